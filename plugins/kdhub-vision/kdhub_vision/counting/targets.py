"""Points of an image as a density map: how much of a count lies in each cell of the map that a network gives.

A point is one, spread by a Gaussian over the image and cut off at its edges: what lies in the image is brought to sum
1 again (arXiv:2003.10120, section 7 of its toy data; the cubic resize of its code keeps the count only roughly). A
cell has what lies in it, so a map sums to the count exactly, whatever the size of the image.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from kdhub.errors import DataError

STRIDE = 8
"""Pixels of a side of a cell of density maps: all networks of this task have it."""
FINEST = 3
"""Of GAME: an image is cut into 2^3 x 2^3 regions at most."""
NEIGHBOURS, SHARE = 3, 0.3
"""Of adaptive kernels: sigma is so much of the mean distance to the nearest other points (CSRNet, arXiv:1802.10062)."""
LONE = 15.0
"""Sigma of a point without others, in pixels."""

Sigma = float | Literal["adaptive"]


def points_of(value: Any) -> np.ndarray:
    """Points of a row as (n, 2) float64, x (column) and y (row) in pixels from the upper left corner.

    Raises:
        DataError: it is not a list of pairs of finite numbers.
    """
    try:
        points = np.asarray(value, np.float64).reshape(len(value), -1) if len(value) else np.zeros((0, 2))
    except (TypeError, ValueError):
        points = np.zeros((1, 0))
    if points.shape[1] != 2 or not np.isfinite(points).all():
        raise DataError(f"points are a list of [x, y], finite numbers, not {str(value)[:60]}")
    return points


def outside(points: np.ndarray, height: int, width: int) -> int | None:
    """The position of the first point that lies outside an image; one on its edge lies inside."""
    wrong = ((points < 0) | (points > (width, height))).any(1)
    return int(wrong.argmax()) if wrong.any() else None


def density_of(points: np.ndarray, height: int, width: int, sigma: Sigma) -> np.ndarray:
    """Points as a map of cells, (ceil(height / 8), ceil(width / 8)) float32.

    Args:
        sigma: of the Gaussians, in pixels; `adaptive`: see `SHARE`.
    """
    spread = np.full(len(points), sigma) if sigma != "adaptive" else _adaptive(points)
    columns, rows = (_masses(points[:, n], spread, size) for n, size in ((0, width), (1, height)))
    return (rows.T @ columns).astype(np.float32)


def _masses(at: np.ndarray, sigma: np.ndarray, size: int) -> np.ndarray:
    """How much of each Gaussian lies in each cell of an axis, (points, cells); rows sum to 1."""
    from scipy.special import ndtr

    below = ndtr((cells(size)[None] - at[:, None]) / sigma[:, None])
    masses = np.diff(below, axis=1)
    return masses / masses.sum(1, keepdims=True)


def _adaptive(points: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return np.full(len(points), LONE)
    k = min(NEIGHBOURS, len(points) - 1)
    distances = cKDTree(points).query(points, k + 1)[0][:, 1:]
    return np.maximum(SHARE * distances.mean(1), 1.0)


def cells(size: int) -> np.ndarray:
    """Where the cells of an axis begin and end, in pixels; the last may be smaller than the others."""
    return np.append(np.arange(0, size, STRIDE), size).astype(np.float64)


def shared_out(values: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]):
    """A map on other cells: what one has is spread over it evenly. The sum stays.

    Args:
        rows, columns: edges of the cells as they are and as they shall be, in the same units.
    """
    return _overlap(*rows) @ values @ _overlap(*columns).T


def _overlap(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How much of each interval lies in each of others, (others, intervals)."""
    low, high = np.maximum(among[:-1, None], of[None, :-1]), np.minimum(among[1:, None], of[None, 1:])
    return np.clip(high - low, 0, None) / np.diff(of)


def resized_density(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """A density map of any size as one of the network's cells; the count stays."""
    own = [np.linspace(0, size, n + 1) for size, n in zip((height, width), values.shape)]
    rows, columns = ((edges, cells(size)) for edges, size in zip(own, (height, width)))
    return shared_out(values.astype(np.float64), rows, columns).astype(np.float32)


def regions_of(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the finest regions of GAME, of rows and of columns."""
    return np.linspace(0, height, 2**FINEST + 1), np.linspace(0, width, 2**FINEST + 1)


def points_in_regions(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """How many points lie in each region, (8, 8)."""
    return np.histogram2d(points[:, 1], points[:, 0], bins=regions_of(height, width))[0]


def density_in_regions(values: np.ndarray, height: int, width: int, *, of_cells: bool = False) -> np.ndarray:
    """How much of a density map lies in each region, (8, 8).

    Args:
        of_cells: a map of cells, as a network gives it; else one of any size, which covers the image evenly.
    """
    given = (cells(n) if of_cells else np.linspace(0, n, m + 1) for n, m in zip((height, width), values.shape))
    return shared_out(values.astype(np.float64), *zip(given, regions_of(height, width)))
