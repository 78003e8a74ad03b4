"""Where the next item stands among all, or among some drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ROWS = 4096
"""Rows whose ranks among drawn items are looked at together."""


@dataclass
class Ranks:
    """What metrics read.

    Attributes:
        ranks: (n,) of the next item, 1 for the first; candidates: (n,) items that it is ranked among, itself included.
        tied: (n,) whether another one has its score.
        right: (n,) whether the chosen rationale is a right one, of rows that say which is wrong; else None.
        negatives: how many other items are drawn at random; None for all.
    """

    ranks: np.ndarray
    candidates: np.ndarray
    tied: np.ndarray
    right: np.ndarray | None = None
    negatives: int | None = None

    @property
    def examples(self) -> int:
        return len(self.ranks)

    def mean(self, gain: Callable[[np.ndarray], np.ndarray]) -> float:
        """The mean of what ranks are worth. Among drawn items it is the expectation over all draws, the same for every
        model: of m others drawn, those before the next item are hypergeometric."""
        if self.negatives is None:
            return float(gain(self.ranks).mean())
        from scipy.stats import hypergeom

        total, before = 0.0, np.arange(self.negatives + 1)
        for start in range(0, len(self.ranks), ROWS):
            rank, others = (a[start : start + ROWS, None] for a in (self.ranks, self.candidates - 1))
            chance = hypergeom.pmf(before, others, rank - 1, np.minimum(self.negatives, others))
            total += float((chance * gain(before + 1)).sum())
        return total / len(self.ranks)


def hits(outputs: Ranks, k: int) -> float:
    return outputs.mean(lambda rank: (rank <= k).astype(float))


def ndcg(outputs: Ranks, k: int) -> float:
    return outputs.mean(lambda rank: np.where(rank <= k, 1 / np.log2(rank + 1), 0))


def hr_1(outputs: Ranks) -> float:
    return hits(outputs, 1)


def hr_5(outputs: Ranks) -> float:
    return hits(outputs, 5)


def hr_10(outputs: Ranks) -> float:
    return hits(outputs, 10)


def ndcg_5(outputs: Ranks) -> float:
    return ndcg(outputs, 5)


def ndcg_10(outputs: Ranks) -> float:
    return ndcg(outputs, 10)


def mrr(outputs: Ranks) -> float:
    return outputs.mean(lambda rank: 1 / rank)


def candidates(outputs: Ranks) -> float:
    if outputs.negatives is None:
        return float(outputs.candidates.mean())
    return float(np.minimum(outputs.candidates, outputs.negatives + 1).mean())


def tied(outputs: Ranks) -> float:
    return float(outputs.tied.mean())


def noise_chosen(outputs: Ranks) -> float | None:
    return None if outputs.right is None else float(1 - outputs.right.mean())
