"""Which items can replace each other, as masses of belief, and what that says of a new set.

Two sets that share items differ by a substitution: T is what the first has alone, V what the second has alone. A table
holds, for unordered pairs (T, V), how far they are similar (the label stays) or dissimilar (it changes); what it does
not hold is unknown. Sets are rows of a matrix, (n, items) bool; T and V have at most two items, and their pair is one
whole number, so that all substitutions between thousands of sets are a few products of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kdhub_knowledge.masses import combine, discount, from_logs, logs

SPREAD = 2
"""Sizes of two sets that are compared differ by at most this."""
AT_ONCE = 512
"""Sets that are compared with all others together."""


@dataclass
class Pairs:
    """Substitutions between two lists of sets, (pairs,) each.

    Attributes:
        left, right: positions of the sets; key: of the substitution.
        likeness: how alike the two sets are, 0 to 1, which version 3 weighs evidence by:
            (sqrt(I^2 / (U min(n, m))) + 1) / (2 max(|T|, |V|)), of I shared items, U in all, n and m in each.
    """

    left: np.ndarray
    right: np.ndarray
    key: np.ndarray
    likeness: np.ndarray

    def where(self, which: np.ndarray) -> Pairs:
        return Pairs(self.left[which], self.right[which], self.key[which], self.likeness[which])


@dataclass
class Table:
    """Masses of similarity by substitution.

    Attributes:
        keys: (pairs,) sorted, of substitutions; masses: (pairs, 3), similar, dissimilar, unknown.
    """

    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    masses: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    def at(self, keys: np.ndarray) -> np.ndarray:
        """(n, 3); unknown for those that it does not hold."""
        found = np.tile([0.0, 0.0, 1.0], (len(keys), 1))
        if len(self.keys):
            place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            known = self.keys[place] == keys
            found[known] = self.masses[place[known]]
        return found

    def trusted(self, trust: float) -> Table:
        """The same, discounted."""
        return Table(self.keys, discount(self.masses, trust))


def fuse(tables: Sequence[Table]) -> Table:
    """Independent sources as one, by Dempster's rule."""
    keys = np.unique(np.concatenate([table.keys for table in tables])) if tables else np.zeros(0, np.int64)
    return Table(keys, combine(*(table.at(keys) for table in tables))) if len(keys) else Table()


def key_of(first: Sequence[int], second: Sequence[int], items: int) -> int:
    """The key of a substitution of at most two items, by their positions, for at most two."""
    codes = sorted(
        sum((item + 1) * (items + 1) ** n for n, item in enumerate(sorted(side))) for side in (first, second)
    )
    return codes[0] * (items + 1) ** 2 + codes[1]


def sides_of(key: int, items: int) -> tuple[list[int], list[int]]:
    """Positions of the items of both sides."""
    base = items + 1
    first, second = divmod(int(key), base**2)
    return tuple([digit - 1 for digit in (code % base, code // base) if digit] for code in (first, second))


def substitutions(left: np.ndarray, right: np.ndarray, most: int) -> Pairs:
    """Those between two lists of sets: with an item in common, and not equal.

    Args:
        left, right: (n, items) and (m, items) bool; most: items of T and of V at most, 1 or 2.
    """
    many, found = right.sum(1), []
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        shared = some.astype(np.float32) @ right.T.astype(np.float32)
        sizes = some.sum(1)[:, None]
        alone, other = sizes - shared, many - shared
        fits = (shared > 0) & (alone <= most) & (other <= most) & (alone + other > 0) & (np.abs(sizes - many) <= SPREAD)
        at, to = np.nonzero(fits)
        one, two = _codes(some[at] & ~right[to]), _codes(right[to] & ~some[at])
        common, longest = shared[at, to].astype(np.float64), np.maximum(alone, other)[at, to]
        union = common + (alone + other)[at, to]
        likeness = (np.sqrt(common**2 / (union * np.minimum(sizes[at, 0], many[to]))) + 1) / (2 * longest)
        key = np.minimum(one, two) * (left.shape[1] + 1) ** 2 + np.maximum(one, two)
        found.append((at + start, to, key, likeness))
    return Pairs(*map(np.concatenate, zip(*found))) if found else Pairs(*np.zeros((3, 0), np.int64), np.zeros(0))


def _codes(sets: np.ndarray) -> np.ndarray:
    """(n,) one number for each set of at most two items."""
    items, size = sets.shape[1], sets.sum(1)
    if not items:
        return np.zeros(len(sets), np.int64)
    first, last = sets.argmax(1), items - 1 - sets[:, ::-1].argmax(1)
    return np.where(size > 0, first + 1, 0) + np.where(size > 1, last + 1, 0) * (items + 1)


def from_labels(pairs: Pairs, labels: np.ndarray, *, alpha: float, likeness: bool) -> Table:
    """What labelled sets say: each two that differ by a substitution speak for it where their labels agree, against it
    where they do not, with a weight of `alpha`, times their likeness in version 3.

    Args:
        pairs: between the sets and themselves; each two count once. labels: (n,).
    """
    pairs = pairs.where(pairs.left < pairs.right)
    keys, where = np.unique(pairs.key, return_inverse=True)
    weight = np.log1p(-alpha * (pairs.likeness if likeness else np.ones(len(pairs.key))))
    agree = labels[pairs.left] == labels[pairs.right]
    for_it, against = (np.bincount(where, np.where(which, weight, 0), len(keys)) for which in (agree, ~agree))
    return Table(keys, from_logs(for_it, against))


def judged(table: Table, pairs: Pairs, labels: np.ndarray, sets: int, *, version: str, alpha: float) -> np.ndarray:
    """Masses (sets, 3) of the first label, the second and what is unknown.

    Each known set that differs by a substitution speaks for its label as far as the substitution is similar; in version
    2 times `alpha`, and for the other label as far as it is dissimilar; in version 3 also times the likeness.

    Args:
        pairs: from the sets to known ones; labels: of these, 0 or 1.
    """
    evidence = weighed(table, pairs, version, alpha)
    own, other = logs(evidence)
    return from_logs(*(np.bincount(pairs.left, np.where(labels[pairs.right] == k, own, other), sets) for k in (0, 1)))


def weighed(table: Table, pairs: Pairs, version: str, alpha: float) -> np.ndarray:
    """Masses (pairs, 3) of what each known set says: its own label, the other, unknown. See `judged`."""
    known = table.at(pairs.key)[:, :2]
    if version == "v1":
        known = known * [1.0, 0.0]
    else:
        known = known * alpha * (pairs.likeness[:, None] if version == "v3" else 1.0)
    return np.concatenate([known, 1 - known.sum(1, keepdims=True)], 1)
