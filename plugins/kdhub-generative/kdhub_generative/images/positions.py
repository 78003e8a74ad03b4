"""Where in a larger picture a crop lies, for networks that are tuned on crops of one picture (arXiv:2212.04489).

A code is fixed, not learnt. Half of the channels C say where a cell lies from left to right, the other half from top to
bottom, each as C / 4 sines and C / 4 cosines of p w_k for p = 1 .. G, the number of the cell, with
w_k = 10000^(-k / (C / 4 - 1)).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kdhub.errors import CompatibilityError


@lru_cache(maxsize=8)
def position_codes(channels: int, grid: int) -> Tensor:
    """(channels, grid, grid) float32.

    Raises:
        CompatibilityError: `channels` is no multiple of 4 from 8.
    """
    if channels < 8 or channels % 4:
        raise CompatibilityError(
            f"position codes need channels in fours, from 8, and the first convolution has {channels}",
            hint="patch_training: false, or another network",
        )
    many = channels // 4
    rates = 10000.0 ** (-torch.arange(many, dtype=torch.float64) / (many - 1))
    angles = torch.arange(1, grid + 1, dtype=torch.float64) * rates[:, None]
    row = torch.cat([angles.sin(), angles.cos()]).float()  # (channels / 2, grid)
    return torch.cat([row[:, None].expand(-1, grid, -1), row[:, :, None].expand(-1, -1, grid)])


def placed_codes(features: Tensor, grid: int, boxes: Tensor | None) -> Tensor:
    """Codes of the size of a feature map (rows, channels, height, width).

    Args:
        boxes: (rows, 4) int64: y0, x0, y1, x1 in cells, the ends excluded; None: the whole grid.
    """
    codes, size = position_codes(features.shape[1], grid).to(features), features.shape[2:]
    found = [
        interpolate(codes[None, :, y0:y1, x0:x1], size, mode="bilinear", align_corners=True)
        for y0, x0, y1, x1 in ([[0, 0, grid, grid]] if boxes is None else boxes.tolist())
    ]
    return torch.cat(found)
