"""Which parts of a pool are stitched together, and how a stitch begins (SN-Net, arXiv:2302.06586; Learngene Pool,
arXiv:2312.05743). Indices of blocks are from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor


def pairs(blocks: int, window: int = 2, stride: int = 1) -> list[tuple[int, int, int]]:
    """Paired stitching: (i, j, layer), leave the front after block i, enter the end at block j, by this stitch layer.

    A window slides over the blocks; all pairs inside that are seen for the first time use the window's layer. With a
    window of 2 and a stride of 1 there are 3n - 2 pairs and n - 1 layers.
    """
    seen: dict[tuple[int, int], int] = {}
    for layer, start in enumerate(range(0, max(1, blocks - window + 1), stride)):
        inside = range(start, min(start + window, blocks))
        for pair in ((i, j) for i in inside for j in inside):
            seen.setdefault(pair, layer)
    return [(i, j, layer) for (i, j), layer in seen.items()]


@dataclass(frozen=True)
class Path:
    """Some first blocks of one anchor and some last ones of a wider one.

    Attributes:
        front, end: which anchors.
        leave, enter: the last block of the front, and the first of the end.
        layer: the stitch layer between them.
    """

    front: int
    end: int
    leave: int
    enter: int
    layer: int


def paths(anchors: int, blocks: int, window: int, stride: int, all_pairs: bool) -> list[Path]:
    """From narrow to wide: of the first anchor to the last alone, or of each to each that is wider."""
    ends = combinations(range(anchors), 2) if all_pairs else [(0, anchors - 1)][: anchors - 1]
    return [Path(a, b, *pair) for a, b in ends for pair in pairs(blocks, window, stride)]


def positions(where: str, blocks: int) -> list[int]:
    """At which of so many blocks features are compared: the end; the middle and the end; or also the front, at a third.

    n / 3 - 1, 2n / 3 - 1 and n - 1, cut towards zero, for a student and its ancestor alike.
    """
    thirds = [max(0, part * blocks // 3 - 1) for part in (1, 2, 3)]
    return thirds[{"front-end": 0, "mid-end": 1, "end": 2}[where] :]


def least_squares(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (m, n) and bias (m,) of the linear map from features (rows, n) to features (rows, m): [X, 1]^+ Y, the
    start of SN-Net's stitches."""
    x = torch.cat([before, before.new_ones(len(before), 1)], 1).double()
    solved = torch.linalg.lstsq(x, after.double(), driver="gelsd").solution.to(before.dtype)
    return solved[:-1].T.contiguous(), solved[-1].contiguous()


def learned(maps: Sequence[Tensor], front: int, end: int) -> Tensor:
    """The weight (D_end, D_front) of a stitch from the maps of distillation, ancestor to anchor, each (D_anchor, D_T)
    the mean over its positions: the front's transposed; where the end is narrower than the ancestor, the end's map
    after it."""
    back = maps[front].T
    return back if back.shape[0] == maps[end].shape[0] else maps[end] @ back
