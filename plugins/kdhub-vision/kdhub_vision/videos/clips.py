"""Clips as arrays: frames x channels x height x width, bytes of 0 to 255."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from kdhub.errors import DataError


def packed(clip: np.ndarray) -> bytes:
    """A clip as a row holds it: a `.npy` file."""
    file = io.BytesIO()
    np.save(file, clip, allow_pickle=False)
    return file.getvalue()


def read(value: Any) -> np.ndarray:
    """A clip as frames x channels x height x width of bytes.

    Args:
        value: a `.npy` file, as bytes or as `{"bytes": ...}`, or an array: frames x height x width, or with channels
            (1, 3 or 4) before or behind height and width; whole numbers of 0 to 255.

    Raises:
        DataError: none of these.
    """
    file = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(file, bytes):
        try:
            x = np.lib.format.read_array(io.BytesIO(file), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"a clip that cannot be read: {str(error)[:80]}") from error
    else:
        try:
            x = np.asarray(value)
        except ValueError:  # lists of several lengths
            x = np.zeros(())
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3, 4) and x.shape[-1] in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or not x.size or x.shape[1] not in (1, 3, 4):
        raise DataError(f"a clip is frames x height x width (x channels), not an array of shape {x.shape}")
    if x.dtype.kind not in "ui" or x.min() < 0 or x.max() > 255:
        raise DataError(f"a clip has whole numbers of 0 to 255, not {x.dtype} of {x.min():g} to {x.max():g}")
    return np.ascontiguousarray(x.astype(np.uint8))
