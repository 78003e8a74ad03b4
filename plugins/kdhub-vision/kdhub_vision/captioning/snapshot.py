"""The forward model of a snapshot compressive camera (arXiv:2401.04903), and its masks.

    Y = sum_k C_k X_k + noise          X_k (height, width) in [0, 1], k = 1 .. B;  C_k of 0 and 1, fixed as in a camera
    Ybar = Y / max(sum_k C_k, 1)       Xe_k = Ybar C_k

All functions take numpy arrays and torch tensors alike, with any axes in front.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdhub.errors import DataError
from kdhub.plain_arrays import read_arrays

MOST = 32
"""Frames in one snapshot."""


def measure(frames: Any, masks: Any) -> Any:
    """Y, (..., height, width), of frames (..., B, height, width) behind masks (B, height, width), without noise."""
    return (frames * masks).sum(-3)


def normalised(measurement: Any, masks: Any) -> Any:
    """Ybar, (..., height, width): Y by the number of masks that are open at a pixel; where none is, Y is 0 as it is."""
    return measurement / masks.sum(0).clip(1)


def estimates(mean: Any, masks: Any) -> Any:
    """Xe, (..., B, height, width), from Ybar."""
    return mean[..., None, :, :] * masks


def draw_masks(frames: int, height: int, width: int, density: float, seed: int) -> np.ndarray:
    """(frames, height, width) of 0 and 1, each 1 with probability `density`; float32."""
    draw = np.random.default_rng([seed, frames, height, width])
    return (draw.random((frames, height, width)) < density).astype(np.float32)


def read_masks(file: Path, height: int | None = None, width: int | None = None) -> np.ndarray:
    """The masks of a camera: the array of a `.npy` file, or `masks` of an `.npz`, (B, height, width) of 0 and 1.

    Args:
        height, width: of the frames that they are for; None for any.

    Raises:
        DataError: they are not that, have another size, or a column or line of pixels that no mask opens; with the
            file and the number of the column, from 1.
    """
    try:
        arrays = read_arrays(file)
    except (OSError, ValueError) as error:
        raise DataError(f"masks that cannot be read: {file.name}: {error}") from error
    masks = arrays.get("", arrays.get("masks"))
    if masks is None or masks.ndim != 3 or masks.dtype.kind not in "biuf" or not np.isin(masks, (0, 1)).all():
        found = f"an array {masks.shape}" if masks is not None else f"the arrays {', '.join(arrays) or 'none'}"
        raise DataError(
            f"{file.name} has no masks of 0 and 1, (frames, height, width), but {found}",
            hint="a .npy file, or an .npz with an array `masks`",
        )
    if not 2 <= len(masks) <= MOST:
        raise DataError(f"{file.name} has {len(masks)} masks, expected 2 to {MOST}")
    if (height, width) not in ((None, None), masks.shape[1:]):
        raise DataError(f"masks of another size: those of {file.name} have {masks.shape[1:]}, frames {(height, width)}")
    for axis, name in ((1, "column"), (2, "line")):
        if (closed := ~masks.any((0, axis))).any():
            raise DataError(f"a {name} that no mask opens: {file.name}, {name} {int(closed.argmax()) + 1}")
    return masks.astype(np.float32)
