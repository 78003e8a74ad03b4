"""Which rows come next, where that follows from their labels."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from kdhub.errors import UsageError
from kdhub.sampler import ShuffledSampler
from kdhub_tasks.classes import class_name, listed


class BalancedSampler(ShuffledSampler):
    """Every class as often as any other: an epoch has as many rows as there are, in equal parts of each class.

    A class's rows come one after the other in random order, again and again, so that none comes a third time before
    each came twice. Rows without a label, from which a teacher teaches, come as often as without a sampler.

        sampler: balanced
    """

    column: ClassVar[str] = "label"

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        values = self.columns[self.column]
        if lists := sum(isinstance(listed(value), list) for value in values):
            raise UsageError(f"sampler balanced needs one class a row, and {lists} of {len(values)} rows have lists")
        names = np.array([class_name(value) or "" for value in values])
        self.groups = [np.flatnonzero(names == name) for name in np.unique(names[names != ""])]
        self.others = np.flatnonzero(names == "")
        if len(self.groups) < 2:
            raise UsageError(
                f"sampler balanced needs rows of two classes or more, and they have {len(self.groups)} "
                f"({self.column}, {len(self.others)} of {len(values)} rows without)"
            )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        labelled = len(self.lengths) - len(self.others)
        order = rng.permutation(len(self.groups))  # which classes have one more, where they do not divide the rows
        sizes = np.diff(np.arange(len(self.groups) + 1) * labelled // len(self.groups))[order]
        drawn = [_again(group, size, rng) for group, size in zip(self.groups, sizes)]
        return rng.permutation(np.concatenate([*drawn, self.others]))


def _again(group: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` rows of a group: all of them in random order, then in another one, ..."""
    return np.concatenate([rng.permutation(group) for _ in range(-(-size // len(group)))] or [group[:0]])[:size]
