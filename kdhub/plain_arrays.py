"""NumPy's files (`.npy`, `.npz`) that others made: plain arrays, looked at before memory is taken for them.

Arrays of Python objects are pickles, which run what they like when they are read; they are refused by name. So is a
file of a few bytes that unpacks to gigabytes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

from kdhub.plain_yaml import NotPlain

ROOM, TIMES = 2**28, 200
"""Bytes that any file may unpack to, and how many times its own size a larger one may."""


def read_arrays(path: Path | str) -> dict[str, Any]:
    """The arrays of a file by name; that of a `.npy` file has the name "".

    Raises:
        OSError: it cannot be read. NotPlain: it is none of these, damaged, holds objects, or takes more room than such
            a file may.
    """
    import numpy as np

    path, found = Path(path), {}
    with open(path, "rb") as file:
        zipped = zipfile.is_zipfile(file)
    if not zipped:
        with open(path, "rb") as file, telling("it"):
            shape, _, dtype = header(file, "it")
            _whole(shape, dtype, path.stat().st_size - file.tell(), "it")
            file.seek(0)
            return {"": np.lib.format.read_array(file, allow_pickle=False)}
    with opened(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        room = sum(entry.file_size for entry in entries)
        if room > max(ROOM, TIMES * path.stat().st_size):
            raise NotPlain(f"it unpacks to {room:,} bytes, {room // path.stat().st_size:,} times its size")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            with telling(repr(name)), archive.open(entry) as member:
                shape, _, dtype = header(member, repr(name))
                _whole(shape, dtype, entry.file_size - member.tell(), repr(name))
            with telling(repr(name)), archive.open(entry) as member:
                found[name] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether the first axis runs fastest, and type, of an array that begins here.

    Raises:
        NotPlain: none does, or one of objects.
    """
    from numpy.lib import format

    try:
        version = format.read_magic(member)
        read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except Exception as error:  # what stands there is read as Python, in which much can be wrong
        raise NotPlain(f"{name} is not a NumPy array: {str(error)[:200]}") from None
    if dtype.hasobject:
        raise NotPlain(f"{name} holds pickled objects, which are never loaded; text may be of a fixed width")
    if min(shape, default=0) < 0:
        raise NotPlain(f"{name} has the shape {shape}")
    return shape, fortran, dtype


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive.

    Raises:
        NotPlain: it is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise NotPlain(f"it is not an .npz file: {error}") from None
    with archive:
        yield archive


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Whatever goes wrong while an array is read, in a sentence."""
    try:
        yield
    except NotPlain:
        raise
    except (EOFError, zlib.error, zipfile.BadZipFile, ValueError, RuntimeError, MemoryError) as error:
        raise NotPlain(f"{name} is damaged: {str(error)[:200]}") from None


def _whole(shape: tuple[int, ...], dtype: Any, size: int, name: str) -> None:
    if (needed := prod(shape) * dtype.itemsize) != size:
        raise NotPlain(f"{name} is cut short or damaged: {list(shape)} of {dtype} are {needed:,} bytes, not {size:,}")
