"""Points in MATLAB's files, as published sets of images to count in have them; looked through before scipy reads them.

A few bytes may unpack to gigabytes, or claim a billion cells, for which memory would be taken before anything is wrong.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.data.prepare import names_of
from kdhub.errors import DataError

ROOM = 2**28
"""Bytes that a file may unpack to: millions of points."""
_DEEPEST = 20
_MATRIX, _PACKED = 14, 15
_ENTRIES = (1, 2, 3, 4)
"""Classes of arrays that take memory by the sizes they claim: of cells, structures, objects and letters."""


def points_in(file: Path) -> np.ndarray:
    """ShanghaiTech has `image_info`, in which a structure has `location`; UCF-QNRF has `annPoints`. (n, 2), or of
    another shape where the file has something else there.

    Raises:
        DataError: it cannot be read, or has neither.
    """
    from scipy.io import loadmat

    try:
        content = file.read_bytes()
        if content[:4] not in (b"\0\0\0\0", b"\1\0\0\0"):  # version 4 has plain matrices alone
            _look(memoryview(content)[128:], "<" if content[126:128] == b"IM" else ">")
        found = np.asarray(_found(loadmat(file, squeeze_me=True), file), np.float64)
    except DataError:
        raise
    except Exception as error:  # scipy, and what such a file may hold, fail in many ways
        raise DataError(f"an annotation that cannot be read: {file.name}: {str(error)[:200]}") from error
    return found.reshape(-1, 2) if found.size % 2 == 0 else found


def _found(given: Mapping[str, Any], file: Path) -> Any:
    if "annPoints" in given:
        return given["annPoints"]
    if "image_info" not in given:
        names = names_of(name for name in given if not name.startswith("__"))
        raise DataError(
            f"a .mat without annotation: {file.name} has {names or 'nothing'}, and neither image_info (ShanghaiTech) "
            "nor annPoints (UCF-QNRF)"
        )
    info = given["image_info"]
    info = info if info.dtype.names else np.asarray(info.item() if info.shape == () else info[0])
    if "location" not in (info.dtype.names or ()):
        raise DataError(f"a .mat without annotation: {file.name}: its image_info has no location")
    return info["location"].item()


def _look(content: memoryview, order: str, depth: int = 0) -> None:
    """Go through the elements of a file of version 5.

    Raises:
        ValueError: one is larger than what can be in it, or it goes too deep.
    """
    if depth > _DEEPEST:
        raise ValueError(f"arrays within arrays, more than {_DEEPEST} deep")
    at, room = 0, ROOM
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(order + "II", content, at)
        if kind >> 16:  # up to four bytes stand in the tag itself
            at += 8
            continue
        inner = content[at + 8 : at + 8 + size]
        if kind == _PACKED and not depth:
            unpacking = zlib.decompressobj()
            unpacked = unpacking.decompress(inner, room)
            if unpacking.unconsumed_tail:
                raise ValueError(f"it unpacks to more than {ROOM:,} bytes")
            room -= len(unpacked)
            _look(memoryview(unpacked), order, 1)
        elif kind == _MATRIX:
            if len(inner) >= 24 and inner[8 if order == "<" else 11] in _ENTRIES:
                told, many = struct.unpack_from(order + "II", inner, 16)
                sizes = struct.unpack_from(f"{order}{min(many, 256) // 4}i", inner, 24)
                if told >> 16 or min(sizes, default=0) < 0 or prod(sizes) > len(inner):
                    raise ValueError(f"an array of {' x '.join(map(str, sizes))} in {len(inner):,} bytes")
            _look(inner, order, depth + 1)
        at += 8 + size + (0 if kind == _PACKED else -size % 8)
