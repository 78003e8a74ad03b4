"""Errors of counts.

mae, rmse      mean absolute error of the count; root of its mean square (arXiv:2003.10120 calls it RMSE as well)
nae            mean of the absolute error over the true count, of images that have any
game@L         grid average mean absolute error: the errors of 4^L regions of an image added up
               (Guerrero-Gomez-Olmedo et al., 2015); of images whose places are known
rae            mae over that of always saying the mean count of these images: 1 for a model that sees nothing
count-bias     mean of predicted - true: what is counted on empty images, or a constant factor, shows here
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from kdhub_vision.counting.targets import FINEST, density_in_regions

SIDE = 2**FINEST


@dataclass
class Counts:
    """What metrics read.

    Attributes:
        rows: numbers from 0 of the rows that were read. predicted, true: their counts.
        regions, true_regions: (n, 8, 8), how many are in each region of an image; NaN where that is not known.
        maps: densities, as the network gives them.
    """

    rows: Any = field(default_factory=list)
    predicted: Any = field(default_factory=list)
    true: Any = field(default_factory=list)
    regions: Any = field(default_factory=list)
    true_regions: Any = field(default_factory=list)
    maps: list[np.ndarray] = field(default_factory=list)

    @property
    def examples(self) -> int:
        return len(self.true)

    def add(
        self,
        row: int,
        density: np.ndarray,
        true: float,
        regions: np.ndarray | None,
        height: int,
        width: int,
    ) -> None:
        """Take in what was found in an image of `height` x `width` pixels, and what is true."""
        self.rows.append(row)
        self.predicted.append(float(density.sum(dtype=np.float64)))
        self.true.append(true)
        self.regions.append(density_in_regions(density, height, width, of_cells=True))
        self.true_regions.append(np.full((SIDE, SIDE), np.nan) if regions is None else regions)
        self.maps.append(density)

    def done(self) -> Counts:
        """The same as arrays."""
        self.rows, self.predicted, self.true = (
            np.asarray(self.rows, int),
            np.asarray(self.predicted),
            np.asarray(self.true),
        )
        shape = (-1, SIDE, SIDE)
        self.regions = np.asarray(self.regions).reshape(shape)
        self.true_regions = np.asarray(self.true_regions).reshape(shape)
        return self

    def some(self, rows: np.ndarray) -> Counts:
        """Those of some images, by a mask."""
        arrays = (self.rows, self.predicted, self.true, self.regions, self.true_regions)
        return Counts(*(array[rows] for array in arrays), [one for one, keep in zip(self.maps, rows) if keep])


def ranges(true: np.ndarray, borders: Sequence[float] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Ranges of the true count, by name, and which images are in each: those without anything first.

    Args:
        borders: the first count of each range but the lowest; None: three ranges of equally many images.
    """
    if (empty := true == 0).any():
        yield "0", empty
    some = true[~empty]
    if not len(some):
        return
    edges = np.quantile(some, [1 / 3, 2 / 3]).round() if borders is None else np.asarray(sorted(borders), float)
    low, edges = some.min(), sorted({float(e) for e in edges if some.min() < e <= some.max()})
    for first, end in zip([low, *edges], [*edges, np.inf]):
        within = ~empty & (true >= first) & (true < end)
        if within.any() and edges:
            yield f"{true[within].min():g}-{true[within].max():g}", within


def mae(out: Counts) -> float:
    return float(np.abs(out.predicted - out.true).mean())


def rmse(out: Counts) -> float:
    return float(np.sqrt(np.square(out.predicted - out.true).mean()))


def nae(out: Counts) -> float | None:
    some = out.true > 0
    return float((np.abs(out.predicted - out.true)[some] / out.true[some]).mean()) if some.any() else None


def rae(out: Counts) -> float | None:
    plain = np.abs(out.true - out.true.mean()).mean()
    return mae(out) / float(plain) if plain else None


def bias(out: Counts) -> float:
    return float((out.predicted - out.true).mean())


def game(out: Counts, level: int) -> float | None:
    known = ~np.isnan(out.true_regions).any((1, 2))
    if not known.any():
        return None
    n, many = 2**level, SIDE // 2**level
    wrong = (out.regions - out.true_regions)[known].reshape(-1, n, many, n, many).sum((2, 4))
    return float(np.abs(wrong).sum((1, 2)).mean())


game_1, game_2, game_3 = (partial(game, level=level) for level in (1, 2, 3))


def gap(student: Counts, teacher: Counts) -> float:
    return float(np.abs(student.predicted - teacher.predicted).mean())
