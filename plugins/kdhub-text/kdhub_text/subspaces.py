"""Along which directions the embeddings of a class vary, and what of them the logits carry (see `methods.lelp`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LEAST, RELATIVE = 1e-8, 1e-6
"""A direction counts from this variance on, and from this share of the class's largest one: below is rounding."""


@dataclass
class Moments:
    """Sums over rows, in one pass: for each class, and last for rows without one, how many rows, their embeddings and
    products of these; over all rows, logits and their products with embeddings.

    Attributes:
        n: (C + 1,); sums: (C + 1, D); products: (C + 1, D, D); logits: (C,); crossed: (D, C).
    """

    n: np.ndarray
    sums: np.ndarray
    products: np.ndarray
    logits: np.ndarray
    crossed: np.ndarray

    @classmethod
    def of(cls, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int) -> Moments:
        """From embeddings (n, D), logits (n, C) and classes (n,), -1 for rows without one."""
        made: Moments | None = None
        for h, z, group in parts:
            if made is None:
                n, d = classes + 1, h.shape[1]
                made = cls(*(np.zeros(s) for s in (n, (n, d), (n, d, d), classes, (d, classes))))
            for c in (*range(classes), -1):
                rows = h[group == c]
                made.n[c] += len(rows)
                made.sums[c] += rows.sum(0)
                made.products[c] += rows.T @ rows
            made.logits += z.sum(0)
            made.crossed += h.T @ z
        return made

    @property
    def classes(self) -> int:
        return len(self.logits)

    @property
    def width(self) -> int:
        return self.sums.shape[1]

    def mean(self, c: int) -> np.ndarray:
        return self.sums[c] / max(1, self.n[c])

    def covariance(self, c: int, center: bool = True) -> np.ndarray:
        mean = self.mean(c) if center else np.zeros(self.width)
        return self.products[c] / max(1, self.n[c]) - np.outer(mean, mean)

    def map_to_logits(self) -> np.ndarray:
        """W, (C, D): the least-squares map from embeddings to logits, without directions in which they hardly vary."""
        n = max(1, self.n.sum())
        mean, of_logits = self.sums.sum(0) / n, self.logits / n
        covariance = self.products.sum(0) / n - np.outer(mean, mean)
        crossed = self.crossed / n - np.outer(mean, of_logits)
        return (np.linalg.pinv(covariance, RELATIVE, hermitian=True) @ crossed).T

    def directions(self, p: np.ndarray) -> np.ndarray:
        """In how many directions the embeddings of each class vary, (C,)."""
        many = np.zeros(self.classes, int)
        for c in range(self.classes):
            whole = self.covariance(c)
            most = max(LEAST, RELATIVE * np.linalg.eigvalsh(whole)[-1])
            many[c] = (np.linalg.eigvalsh(p @ whole @ p) > most).sum()
        return many

    def narrowest(self, p: np.ndarray, wanted: int) -> tuple[int, int]:
        """The fewest directions of a class, and the class, among classes with more rows than `wanted`: few rows say
        little about how a class varies. If there is no such class, the most directions."""
        ways, large = self.directions(p), np.flatnonzero(self.n[: self.classes] > wanted)
        c = int(large[ways[large].argmin()] if len(large) else ways.argmax())
        return int(ways[c]), c

    def subspaces(
        self, p: np.ndarray, number: int, rng: np.random.Generator, *, direction: str = "pca", rotate: bool = True,
        center: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """V_c P / s_c, (C, S, D), and V_c P mu_c / s_c, (C, S); 0 for a class without variance, which is split
        evenly."""
        weight, offset = np.zeros((self.classes, number, self.width)), np.zeros((self.classes, number))
        for c in range(self.classes):
            within = p @ self.covariance(c, center) @ p
            if direction == "pca":
                v = np.linalg.eigh(within)[1][:, ::-1][:, :number].T
            else:
                v = np.linalg.qr(p @ rng.normal(size=(self.width, number)))[0].T
            if rotate:
                v = orthonormal(number, rng) @ v
            variance = np.trace(v @ within @ v.T) / number
            if self.n[c] > 1 and variance > LEAST:
                weight[c] = v @ p / np.sqrt(variance)
                offset[c] = weight[c] @ self.mean(c) if center else 0
        return weight, offset


def null_space(weight: np.ndarray) -> np.ndarray:
    """P = I - W^+ W, (D, D), of W (C, D): what is left of an embedding without the part that W sees."""
    return np.eye(weight.shape[1]) - np.linalg.pinv(weight, RELATIVE) @ weight


def orthonormal(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random orthonormal n x n matrix, uniformly distributed."""
    q, r = np.linalg.qr(rng.normal(size=(n, n)))
    return q * np.sign(np.diag(r))


def clusters(
    parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], p: np.ndarray, classes: int, number: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `Moments.subspaces`, but the largest score, c h - |c|^2 / 2, is that of the nearest of S centres of the class.
    Holds the embeddings of all rows in memory."""
    from sklearn.cluster import KMeans

    h, group = (np.concatenate(x) for x in zip(*((h @ p, group) for h, _, group in parts)))
    weight, offset = np.zeros((classes, number, len(p))), np.zeros((classes, number))
    for c in range(classes):
        rows = h[group == c]
        if len(np.unique(rows, axis=0)) >= number:
            weight[c] = KMeans(number, n_init=4, random_state=seed).fit(rows).cluster_centers_
            offset[c] = np.square(weight[c]).sum(1) / 2
    return weight @ p, offset
