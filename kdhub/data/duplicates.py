"""Rows of one set that stand in another too, exactly or nearly: what was trained on must not be tested on.

Texts are sets of their runs of five letters; near are two whose sets share `TEXTS` of their union (Jaccard). All such
pairs are found, without comparing all: of two sets that share so much, the first (1 - t) n + 1 elements in any common
order have one in common (prefix filtering, Chaudhuri et al. 2006; Bayardo et al. 2007).

Arrays are near when their distance is at most `ARRAYS` of what is left of them without their mean, so a change of all
by one constant counts for little. Candidates come from a random projection to a few dimensions, in which distances of
such pairs shrink or grow by little (Johnson and Lindenstrauss); each is then measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RUN, LETTERS = 5, 2000
"""Letters of a run, and of a text that are looked at for near pairs."""
TEXTS, ARRAYS = 0.8, 0.05
DIMENSIONS = 48
BLOCK = 4096


@dataclass
class Shared:
    """What was found of each held-out row, by its number: that of a row it is like.

    Attributes:
        exact, near: held-out row -> the other row; a row is in one of them.
    """

    exact: dict[int, int] = field(default_factory=dict)
    near: dict[int, int] = field(default_factory=dict)


def value_of(row: dict[str, Any], columns: Iterable[str]) -> str | np.ndarray:
    """What a row shows a model: the text of these columns, or the array."""
    parts = [row[name] for name in columns]
    if len(parts) == 1 and not isinstance(parts[0], str):
        array = np.asarray(parts[0])
        if np.issubdtype(array.dtype, np.number):
            return array
    return "\n".join(part if isinstance(part, str) else str(part) for part in parts)


def shared_rows(held: Sequence[str | np.ndarray], others: Iterable[str | np.ndarray]) -> Shared:
    """Which held-out rows are among the others."""
    texts = {i: v for i, v in enumerate(held) if isinstance(v, str)}
    arrays = {i: v for i, v in enumerate(held) if not isinstance(v, str)}
    found, shown = Shared(), [(j, v) for j, v in enumerate(others)]
    _texts(texts, [(j, v) for j, v in shown if isinstance(v, str)], found)
    shapes = {v.shape for v in arrays.values()}
    for shape in shapes:
        same = {i: v for i, v in arrays.items() if v.shape == shape}
        _arrays(same, [(j, v) for j, v in shown if not isinstance(v, str) and v.shape == shape], found)
    return found


def _texts(held: dict[int, str], others: Sequence[tuple[int, str]], found: Shared) -> None:
    whole, holding = defaultdict(list), defaultdict(list)
    sets: dict[int, frozenset[int]] = {}
    for i, text in held.items():
        text = _plain(text)
        whole[text].append(i)
        sets[i] = _runs(text)
        for run in _prefix(sets[i]):
            holding[run].append(i)
    for j, text in others:
        text = _plain(text)
        for i in whole.get(text, ()):
            found.exact.setdefault(i, j)
            found.near.pop(i, None)
        runs = _runs(text)
        candidates = {i for run in _prefix(runs) for i in holding.get(run, ())}
        for i in candidates - found.exact.keys() - found.near.keys():
            both = len(sets[i] & runs)
            if both >= TEXTS * (len(sets[i]) + len(runs) - both):
                found.near[i] = j


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _runs(text: str) -> frozenset[int]:
    text = text[:LETTERS]
    return frozenset(hash(text[k : k + RUN]) for k in range(max(1, len(text) - RUN + 1)))


def _prefix(runs: frozenset[int]) -> list[int]:
    """The first of its elements, in the order of their numbers, of which every near set has one among its first."""
    return sorted(runs)[: len(runs) - math.ceil(TEXTS * len(runs)) + 1]


def _arrays(held: dict[int, np.ndarray], others: Sequence[tuple[int, np.ndarray]], found: Shared) -> None:
    if not held or not others:
        return
    digests = defaultdict(list)
    for i, value in held.items():
        digests[value.astype(np.float64).tobytes()].append(i)
    for j, value in others:
        for i in digests.get(value.astype(np.float64).tobytes(), ()):
            found.exact.setdefault(i, j)
    rest = [i for i in held if i not in found.exact]
    if not rest:
        return
    size = next(iter(held.values())).size
    few = min(size, DIMENSIONS)
    down = np.eye(size) if few == size else np.random.default_rng(0).standard_normal((size, few)) / math.sqrt(few)
    a = _centred([held[i] for i in rest]) @ down
    lengths = np.array([np.linalg.norm(_centred([held[i]])) for i in rest])
    for start in range(0, len(others), BLOCK):
        block = others[start : start + BLOCK]
        b = _centred([v for _, v in block]) @ down
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
        for p, q in zip(*np.nonzero(squared <= (2 * ARRAYS * lengths[:, None]) ** 2 + 1e-12)):
            i, (j, other) = rest[p], block[q]
            difference = held[i].astype(np.float64) - other.astype(np.float64)
            if i not in found.near and np.linalg.norm(difference) <= ARRAYS * lengths[p]:
                found.near[i] = j


def _centred(values: Sequence[np.ndarray]) -> np.ndarray:
    flat = np.stack([v.reshape(-1).astype(np.float64) for v in values])
    return flat - flat.mean(axis=1, keepdims=True)
