"""One committed group of the signal store: what its fields are, how values are stored, the file itself.

A chunk is a safetensors file with `keys` (uint8, [rows, 12]) and, by field: `name`; `name.scale` (float16) for int8
codes; `name.offsets` (int64, [rows + 1]) where rows are ragged. Its bytes depend on nothing but these arrays.

Keys of vectors take no room. In float16 a number below 2 has an exponent of 15 at most, so the exponent's highest bit
is 0; where all numbers of a chunk are so (those of vectors of length 1 are), the bits of all keys stand there, in the
first numbers of the chunk. It has no `keys` then, and the type uint16, so that nobody takes it for numbers: `freed`
gives those back, bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kdhub.errors import StoreError, TeacherError
from kdhub.fields import DTYPES, Field

SCHEMA = 1
KEY_BYTES = 12

PACKED = np.dtype("<u2")
SPARE = np.uint16(1 << 14)
"""Of a float16: the highest bit of the exponent."""

Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]
"""Tensors of a chunk in the order of the file: name -> type, and shape without the first dimension."""


def layout_of(fields: Sequence[Field]) -> Layout:
    if len({f.name for f in fields} - {"keys"}) < len(fields):
        raise StoreError(f"field names must be different and not 'keys': {[f.name for f in fields]}")
    layout: Layout = {"keys": (np.dtype("|u1"), (KEY_BYTES,))}
    for f in fields:
        layout[f.name] = (DTYPES[f.dtype][0], f.shape)
        if f.dtype == "int8":
            layout[f.name + ".scale"] = (np.dtype("<f2"), ())
        if f.ragged:
            layout[f.name + ".offsets"] = (np.dtype("<i8"), ())
    # The widest first: so every tensor of a file is aligned to its type.
    return dict(sorted(layout.items(), key=lambda item: (-item[1][0].itemsize, item[0])))


def row_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def carrier_of(fields: Sequence[Field]) -> str | None:
    """The field that has room for keys: float16, a bit of a row's key for each of its numbers, or more numbers."""
    roomy = (f.name for f in fields if f.dtype == "float16" and not f.ragged and np.prod(f.shape) >= 8 * KEY_BYTES)
    return next(roomy, None)


# Values


def encode(given: Mapping[str, Any], fields: Sequence[Field], rows: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """Check what the teacher gave for one group and bring it into the storage types.

    Args:
        given: by field, as `SignalStore.fill` describes.
        rows: [n], the caller's row numbers; batch: number of the group. Both from 0, and from 1 in messages.
    """
    if set(given) != {f.name for f in fields}:
        wanted = sorted(f.name for f in fields)
        raise TeacherError(f"the teacher gave {sorted(given)} for batch {batch + 1}, expected {wanted}")
    arrays: dict[str, np.ndarray] = {}
    for f in fields:
        owner, values = rows, given[f.name]  # owner: row number of each stored vector
        if f.ragged:
            values, counts = _concatenate(values, f, len(rows), batch)
            owner = np.repeat(rows, counts)
            arrays[f.name + ".offsets"] = np.cumsum([0, *counts], dtype=np.int64)
        values = np.asarray(values)
        if values.shape != (len(owner), *f.shape):
            raise TeacherError(
                f"the teacher gave {f.name!r} of shape {values.shape} in batch {batch + 1}, "
                f"expected {(len(owner), *f.shape)}"
            )
        arrays.update(_encode(values, f, owner, batch))
    return arrays


def _concatenate(given: Any, f: Field, rows: int, batch: int) -> tuple[np.ndarray, list[int]]:
    items = [np.asarray(a) for a in given]
    wrong = next((a for a in items if a.ndim != len(f.shape) + 1 or a.shape[1:] != f.shape), None)
    if wrong is not None or len(items) != rows:
        got = f"{len(items)} arrays" if wrong is None else f"an array of shape {wrong.shape}"
        wanted = f"{rows} arrays of shape ({', '.join(map(str, ('items', *f.shape)))})"
        raise TeacherError(f"the teacher gave {got} as {f.name!r} in batch {batch + 1}, expected {wanted}")
    filled = [a for a in items if len(a)]  # an empty list is float64 to numpy, and would make the others so
    return np.concatenate(filled) if filled else np.zeros((0, *f.shape), np.uint8), [len(a) for a in items]


def _encode(values: np.ndarray, f: Field, owner: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    dtype = DTYPES[f.dtype][0]
    integer = f.dtype in ("int32", "int64", "uint8")
    if values.dtype.kind not in ("iub" if integer else "fiub"):
        wanted = "integers" if integer else "numbers"
        raise TeacherError(f"the teacher gave {f.name!r} as {values.dtype} in batch {batch + 1}, expected {wanted}")

    def row(bad: np.ndarray) -> str:
        first = int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
        return f"row {int(owner[first]) + 1} of the data (batch {batch + 1})"

    if not integer and (bad := ~np.isfinite(values)).any():
        raise TeacherError(f"the teacher gave NaN or infinite values as {f.name!r} in {row(bad)}")
    with np.errstate(over="ignore"):
        if f.dtype == "int8":
            codes, scale = _quantise(values)
            arrays, bad = {f.name: codes, f.name + ".scale": scale}, ~np.isfinite(scale)
        else:
            arrays = {f.name: values.astype(dtype)}
            bad = arrays[f.name] != values if integer else ~np.isfinite(arrays[f.name])
    if bad.any():
        hint = f"store it as {'int64' if integer else 'float32'}"
        raise StoreError(f"{f.name!r} has values too large for {f.dtype} in {row(bad)}", hint=hint)
    return arrays


def _quantise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and float16 scales; an infinite scale where a vector is too large for one."""
    values = values.astype(np.float32)
    exact = np.abs(values).max(tuple(range(1, values.ndim)), initial=0) / np.float32(127)
    scale = exact.astype(np.float16)
    scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)  # up, so that no code clips
    divisor = np.where((scale > 0) & np.isfinite(scale), scale, 1).astype(np.float32)
    codes = np.rint(values / divisor.reshape(-1, *[1] * (values.ndim - 1)))
    return np.clip(codes, -127, 127).astype(np.int8), scale  # the clip is for vectors that are refused anyway


def decode(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    values = codes.astype(np.float32)
    values *= scale.astype(np.float32).reshape(-1, *[1] * (codes.ndim - 1))
    return values


def carrying(values: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
    """Float16 values with the bits of keys in their first numbers, as uint16; None where a number is 2 or more."""
    packed = values.reshape(-1).view(PACKED)
    if (packed & SPARE).any():
        return None
    packed = packed.copy()
    packed[: 8 * keys.size] |= np.unpackbits(keys.reshape(-1)).astype(PACKED) << 14
    return packed.reshape(values.shape)


def carried(packed: np.ndarray) -> np.ndarray:
    """The keys in the first 96 numbers a row, uint8 [rows, 12]."""
    return np.packbits((packed & SPARE) != 0).reshape(-1, KEY_BYTES)


def freed(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Take the bits of keys out of these rows of float16 values, in place."""
    packed = values.view(PACKED)
    if rows.all():
        packed &= ~SPARE
    elif rows.any():
        packed[rows] &= ~SPARE
    return values


# Files


class DamagedError(Exception):
    """A file that is not what `write_chunk` writes."""


@dataclass
class Chunk:
    """A committed group. `intact` once its digest was checked in this process, `gone` once it was removed. `carrier` is
    the field whose numbers carry the keys, where one does."""

    path: Path
    rows: int
    sha256: str
    start: int  # of the tensors in the file
    size: int  # of the file
    spans: dict[str, tuple[int, int]]  # tensor -> begin and end in the file
    carrier: str | None = None
    intact: bool = False
    gone: bool = False

    def check(self) -> bool:
        """Whether all bytes are what the digest says; read once, then remembered."""
        if not self.intact:
            with suppress(OSError), open(self.path, "rb") as file:
                file.seek(self.start)
                self.intact = hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        return self.intact

    def keys(self) -> np.ndarray:
        """uint8 [rows, 12], checked against the file's name, so that a lookup never finds a wrong row."""
        begin, end = self.spans[self.carrier or "keys"]
        if self.carrier:
            end = begin + PACKED.itemsize * 8 * KEY_BYTES * self.rows
        with open(self.path, "rb") as file:
            file.seek(begin)
            read = file.read(end - begin)
        keys = carried(np.frombuffer(read, PACKED)) if self.carrier else np.frombuffer(read, np.uint8)
        if group_name(keys.tobytes()) != self.path.stem:
            raise DamagedError(self.path)
        return keys.reshape(-1, KEY_BYTES)


def group_name(keys: bytes | np.ndarray) -> str:
    return hashlib.sha256(keys).hexdigest()[:32]


def write_chunk(file: BinaryIO, layout: Layout, arrays: Mapping[str, np.ndarray], carrier: str | None = None) -> None:
    """Write and fsync. `file` is unbuffered; the field `carrier` carries the keys where its numbers allow it."""
    if carrier and (packed := carrying(arrays[carrier], arrays["keys"])) is not None:
        layout, arrays = _without_keys(layout, carrier), {**arrays, carrier: packed}
    flat = [np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8) for name in layout]
    digest = hashlib.sha256()
    for array in flat:
        digest.update(array)
    counts = {name: len(array) for name, array in arrays.items()}
    head, _ = _head(layout, counts, counts["keys"], digest.hexdigest())
    for part in (head, *flat):
        view = memoryview(part)
        while len(view):  # a nearly full disk takes less than it is given, and says so at the next write
            view = view[file.write(view) :]
    os.fsync(file.fileno())


def _without_keys(layout: Layout, carrier: str) -> Layout:
    return {n: (PACKED if n == carrier else dtype, shape) for n, (dtype, shape) in layout.items() if n != "keys"}


def open_chunk(path: Path, layout: Layout, carrier: str | None = None) -> Chunk:
    """Read and check head and size.

    Raises:
        DamagedError: see there.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        head += file.read(min(int.from_bytes(head, "little"), 1 << 20))
    try:
        header = json.loads(head[8:])
        carrier = None if "keys" in header else carrier
        if carrier:
            layout = _without_keys(layout, carrier)
        counts = {name: header[name]["shape"][0] for name in layout}
        rows, sha256 = counts[carrier or "keys"], header["__metadata__"]["sha256"]
        expected, spans = _head(layout, counts, rows, sha256)
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedError(path) from error
    if head != expected or size != max(end for _, end in spans.values()):
        raise DamagedError(path)
    return Chunk(path, rows, sha256, len(head), size, spans, carrier)


def _head(
    layout: Layout, counts: Mapping[str, int], rows: int, sha256: str
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The head of a safetensors file, and where its tensors are in the file.

    The safetensors library is not used: its heads must not depend on its version, or a resumed store might differ.
    """
    names = {dtype: name for dtype, name in DTYPES.values()} | {PACKED: "U16"}
    header: dict[str, Any] = {"__metadata__": {"schema": str(SCHEMA), "rows": str(rows), "sha256": sha256}}
    spans, at = {}, 0
    for name, (dtype, shape) in layout.items():
        end = at + counts[name] * row_bytes(dtype, shape)
        header[name] = {"dtype": names[dtype], "shape": [counts[name], *shape], "data_offsets": [at, end]}
        spans[name], at = (at, end), end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: (len(head) + begin, len(head) + end) for name, (begin, end) in spans.items()}
