"""LELP: a few classes are split along linear projections of the teacher's embeddings (arXiv:2409.20449).

With two to five classes, soft labels say little more than the label. LELP makes them say more: inside each class c,
directions V_c of the teacher's embeddings h split it into S pseudo-subclasses, once, before training:

    h'         = P h                             P = I - W^+ W: without what the logits already carry
    a_c(x)     = V_c (h'(x) - mu_c) / s_c        V_c: S principal directions of the class, turned at random
    p_{c,s}(x) = p_c(x) softmax_s(a_c(x) / beta)    p = softmax(z / tau), the teacher's
    L          = (1 - alpha) tau^2 CE(p, softmax(o / tau)) + alpha CE(y, sum_s softmax(o))

o are the student's S outputs a class, which its last layer gives from here on. Used, it has one logit a class again,
tau logsumexp_s(o_{c,s} / tau): at the least loss (alpha 0) the teacher's own, but for a constant. Rows need no labels.

The paper's text was not at hand: of it are the split, P, principal directions, the random turn, tau and beta, alpha 0.
Ours are s_c, the root of the mean variance over the S directions, which makes one beta fit all classes and teachers,
groups by the teacher's choice, and the defaults. W is not read from the teacher's weights: it is the least-squares map
from embeddings to logits over the training rows, which is the same where logits are linear in the embeddings (images,
tables), needs no weights, and where they are not (texts, whose embeddings are means over tokens) takes away what of
the logits is linear in them. The turn is drawn from the run's seed and kept in checkpoints with all of the above.

Controls: `control: random` gives each row the split of another one, `oracle` the true subclass (`data.labels`), as soft
as an embedding that told nothing else would be. The student's last layer is widened to what it was, so often, and a
little noise; S = 1 is `kd`.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from kdhub_logits.soft_targets import ClassifierOptions, label_loss, positions_in
from pydantic import Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.method import Run
    from kdhub.student import Student
    from kdhub.task import Rows, Signals
    from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

READ = 4096
"""Rows whose signals are read at once."""
LEAST, RELATIVE = 1e-8, 1e-6
"""A direction counts from this variance on, and from this share of the class's largest one: below is rounding."""


class Lelp(ObjectiveMethod):
    """One cross-entropy over pseudo-subclasses that the teacher's embeddings make."""

    class Options(ClassifierOptions):
        subclasses: int = Field(5, ge=1, le=100, description="pseudo-subclasses of each class (S)")
        beta: float = Field(1.0, gt=0, description="temperature of the split inside a class")
        temperature: float = Field(4.0, gt=0, description="of both sides (tau)")
        alpha: float = Field(0.0, ge=0, le=1, description="weight of the labels")
        null_space: Literal["auto"] | bool = Field(
            "auto", description="take away what the logits carry; auto: where something else is left"
        )
        rotate: bool = Field(True, description="turn the directions of a class at random, so that none dominates")
        direction: Literal["pca", "random", "kmeans"] = Field(
            "pca",
            description="of the split; ablations: random directions, and kmeans, the nearest of S centres takes all",
        )
        group_by: Literal["teacher", "label"] = Field("teacher", description="whose class a row is fitted in")
        center: bool = Field(True, description="take away the mean of a class")
        aggregate: Literal["tempered", "sum"] = Field(
            "tempered", description="of a class's outputs in use: at the temperature of training, or at 1"
        )
        control: Literal["none", "random", "oracle"] = Field(
            "none", description="random: the split of another row; oracle: the true subclass, where rows tell it"
        )

    options: Options
    _rows: Rows
    _number: int
    _split: tuple[np.ndarray, np.ndarray] | None = None
    _others: tuple[Tensor, Tensor] | None = None

    def distill(self, run: Run) -> Student:
        self._rows = run.rows("train", **self.settings())
        if self.options.control == "oracle":
            self._number = self._true_subclasses()
        else:
            self._fit(run)
        return super().distill(run)

    def rows(self, run: Run) -> Rows:
        return self._rows

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return ("logits", "features") if self.options.control == "none" else ("logits",)

    def adapt(self, student: Any, teacher: Teacher | None) -> None:
        student.split_classes(self._number, self.options.temperature, self.options.aggregate)

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        """No module: what classes are split along, for the checkpoints."""
        import torch
        from torch import nn

        if self._split is None:
            return {}
        subspaces = nn.Module()
        for name, value in zip(("weight", "offset"), self._split):
            subspaces.register_buffer(name, torch.from_numpy(value).float())
        return {"subspaces": subspaces}

    def state(self) -> dict[str, Any]:
        return {"subclasses": self._number}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_logits.networks import merged

        o, outputs = self.options, student["subclass_logits"]
        aim = targets(teacher.logits.float(), self._shares(teacher, batch), o.temperature)
        apart = cross_entropies(outputs / o.temperature, aim).sum() / positions_in(batch)
        terms = {"teacher": (1 - o.alpha) * o.temperature**2 * apart}
        if o.alpha:
            terms["labels"] = o.alpha * label_loss(merged(outputs, self._number), batch)
        return terms

    def _shares(self, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        """q, (batch, classes, S)."""
        import torch

        if self.options.control == "oracle":
            classes, beta = teacher.logits.shape[-1], self.options.beta
            return true_shares(batch["labels"], batch["subclasses"], classes, self._number, beta)
        if self._others is not None:
            keys, shares = self._others = tuple(x.to(batch["keys"].device) for x in self._others)
            return shares[torch.searchsorted(keys, batch["keys"])]
        return self._of(teacher.features.float(), self.modules["subspaces"].weight, self.modules["subspaces"].offset)

    def _of(self, features: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        return shares(features, weight, offset, None if self.options.direction == "kmeans" else self.options.beta)

    # -- before training --------------------------------------------------------------------------------------

    def _fit(self, run: Run) -> None:
        """Read all rows' signals once, and find what each class is split along."""
        o, classes = self.options, len(run.student.classes)
        stored = {kind: run.signals(self._rows, kind) for kind in ("logits", "features")}

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for start in range(0, len(self._rows), READ):
                some = np.arange(start, min(start + READ, len(self._rows)))
                h, z = (stored[kind][some][kind].astype(np.float64) for kind in ("features", "logits"))
                given = z.argmax(1) if o.group_by == "teacher" else [e["label"] for e in self._rows[some]]
                yield h, z, np.asarray(given)

        rng = np.random.default_rng([run.seed, 0])
        found = Moments.of(parts(), classes)
        if not found.n[:classes].any():
            raise UsageError("group_by: label, and no training row has a label", hint="--set group_by=teacher")
        p = np.eye(found.width)
        if o.null_space is not False:
            p = null_space(found.map_to_logits())
            left = round(np.trace(p))
            if left == 0 and o.null_space is True:
                raise CompatibilityError(
                    f"the logits carry all {found.width} dimensions of the embeddings: nothing is left to split by",
                    hint="--set null_space=auto",
                )
            p = p if left else np.eye(found.width)
        ways, c = found.narrowest(p, o.subclasses)
        number = max(1, min(o.subclasses, ways))
        if number < o.subclasses:
            logger.warning(
                "the teacher's embeddings of the %d rows of class %s vary in %d directions: %d pseudo-subclasses "
                "instead of %d%s; rows that it was not trained on vary more", found.n[c], run.student.classes[c], ways,
                number, o.subclasses, ", which is plain soft targets" if number == 1 else "",
            )  # fmt: skip
        if o.direction == "kmeans":
            self._split = clusters(parts(), p, classes, number, run.seed)
        else:
            self._split = found.subspaces(p, number, rng, direction=o.direction, rotate=o.rotate, center=o.center)
        self._number = number
        if o.control == "random":
            self._others = self._permuted(parts, rng)

    def _permuted(self, parts: Any, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Content keys in order, and for each the split of some other row, of each class another row's."""
        import torch

        weight, offset = (torch.from_numpy(x).float() for x in self._split)
        table = torch.cat([self._of(torch.from_numpy(h).float(), weight, offset) for h, _, _ in parts()])
        for c in range(table.shape[1]):
            table[:, c] = table[torch.from_numpy(rng.permutation(len(table))), c]
        content = (example["content"] for example in self._examples())
        keys, order = torch.tensor([zlib.crc32(one) for one in content]).sort()
        return keys, table[order]

    def _true_subclasses(self) -> int:
        """How many there are.

        Raises:
            UsageError: rows do not tell.
        """
        found = [e.get("subclass") for e in self._examples()]
        if None in found or max(found) < 0:
            raise UsageError(
                "control oracle: the training rows have no column 'subclass'",
                hint="data: {source: 'labels:DATA', options: {groups: ...}} makes one",
            )
        return max(found) + 1

    def _examples(self) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(self._rows), READ):
            yield from self._rows[np.arange(start, min(start + READ, len(self._rows)))]


@dataclass
class Moments:
    """Sums over rows, in one pass: n rows, embeddings and their products for each class and, last, for rows of none;
    logits and their products with embeddings over all rows.

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
        """From embeddings (n, D), logits (n, C) and classes (n,), -1 for rows of none."""
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
        """W, (C, D): the least-squares map from embeddings to logits, without what embeddings hardly vary in."""
        n = max(1, self.n.sum())
        mean, of_logits = self.sums.sum(0) / n, self.logits / n
        covariance = self.products.sum(0) / n - np.outer(mean, mean)
        crossed = self.crossed / n - np.outer(mean, of_logits)
        return (np.linalg.pinv(covariance, RELATIVE, hermitian=True) @ crossed).T

    def directions(self, p: np.ndarray) -> np.ndarray:
        """In how many the embeddings of each class vary, (C,)."""
        many = np.zeros(self.classes, int)
        for c in range(self.classes):
            whole = self.covariance(c)
            most = max(LEAST, RELATIVE * np.linalg.eigvalsh(whole)[-1])
            many[c] = (np.linalg.eigvalsh(p @ whole @ p) > most).sum()
        return many

    def narrowest(self, p: np.ndarray, wanted: int) -> tuple[int, int]:
        """The fewest directions of a class, and the class, of those with more rows than are wanted: what few rows vary
        in says nothing of the other classes. Where there are none such, the most directions."""
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
    """P = I - W^+ W, (D, D), of W (C, D): what is left of an embedding when W is given all that it sees."""
    return np.eye(weight.shape[1]) - np.linalg.pinv(weight, RELATIVE) @ weight


def orthonormal(n: int, rng: np.random.Generator) -> np.ndarray:
    """An orthonormal n x n matrix, all alike likely."""
    q, r = np.linalg.qr(rng.normal(size=(n, n)))
    return q * np.sign(np.diag(r))


def clusters(
    parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], p: np.ndarray, classes: int, number: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `Moments.subspaces`, but the largest score, c h - |c|^2 / 2, is that of the nearest of S centres of the class.
    All rows' embeddings are held."""
    from sklearn.cluster import KMeans

    h, group = (np.concatenate(x) for x in zip(*((h @ p, group) for h, _, group in parts)))
    weight, offset = np.zeros((classes, number, len(p))), np.zeros((classes, number))
    for c in range(classes):
        rows = h[group == c]
        if len(np.unique(rows, axis=0)) >= number:
            weight[c] = KMeans(number, n_init=4, random_state=seed).fit(rows).cluster_centers_
            offset[c] = np.square(weight[c]).sum(1) / 2
    return weight @ p, offset


def shares(features: Tensor, weight: Tensor, offset: Tensor, beta: float | None) -> Tensor:
    """q = softmax(a / beta) over each class's S scores a = weight h - offset, (n, C, S); without beta the largest takes
    all, and equal ones share."""
    import torch

    scores = torch.einsum("csd,nd->ncs", weight, features) - offset
    if beta is None:
        largest = (scores == scores.amax(-1, keepdim=True)).to(scores)
        return largest / largest.sum(-1, keepdim=True)
    return torch.softmax(scores / beta, -1)


def true_shares(labels: Tensor, subclasses: Tensor, classes: int, number: int, beta: float) -> Tensor:
    """q where it is known, in the true class: softmax(a / beta) of an embedding that is the true subclass, one of S
    alike, standardised as others are; equal parts elsewhere. (n, C, S).

    All to the true one would teach outputs that they are never meant, and at T = 4 a row between two subclasses then
    goes to another class: students ended far below `kd`.
    """
    import torch
    from torch.nn.functional import one_hot

    q = torch.full((len(labels), classes, number), 1 / number, device=labels.device)
    known = ((labels >= 0) & (subclasses >= 0)).nonzero().squeeze(-1)
    deviation = max(number - 1, 1) ** 0.5 / number
    q[known, labels[known]] = torch.softmax(one_hot(subclasses[known], number).to(q) / (deviation * beta), -1)
    return q


def targets(teacher: Tensor, shares: Tensor, temperature: float = 1.0) -> Tensor:
    """p_{c,s} = p_c q_{c,s}, (n, C S), of the teacher's logits (n, C) and q (n, C, S); the classes keep their p_c."""
    import torch

    return (torch.softmax(teacher / temperature, -1).unsqueeze(-1) * shares).flatten(1)


def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """-sum p log softmax(outputs) of each row, in nats."""
    from kdhub_logits.divergences import log_probabilities

    return -(targets * log_probabilities(outputs)).sum(-1)
