"""Images of rows as arrays of bytes: their range and their layout are found here, for training, evaluation and use."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.data.prepare import prepare_tables
from kdhub.errors import DataError
from kdhub.rows import plain_rows

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from kdhub.data.dataset import Data

logger = logging.getLogger("kdhub")

CHANNELS = 4
"""An image has at most so many; a first axis of that size before a longer last one is that of the channels."""
BATCH = 256
_known: dict[str, bool] = {}
"""Kind of numbers and fingerprint of rows -> whether some images must be told from ones of 0 to 1 (see `as_bytes`)."""


def read(value: Any) -> np.ndarray:
    """An image as height x width, or channels x height x width, of bytes 0 to 255.

    Args:
        value: an array of height x width (x channels, first or last): whole numbers of 0 to 255, truth values, or
            fractions of 0 to 1, or of 0 to 255 where they reach above 1; an image file, as bytes or as
            `{"bytes": ...}`.

    Raises:
        DataError: none of these, or an image that cannot be opened.
    """
    x = _opened(value) if isinstance(value, bytes | Mapping) or hasattr(value, "getexif") else _array(value)
    if x.ndim not in (2, 3) or not x.size:
        raise DataError(f"an image is height x width (x channels), not an array of shape {x.shape}")
    if x.dtype.kind not in "buif" or not np.isfinite(x).all() or x.min() < 0 or x.max() > 255:
        raise DataError(
            f"an image has values of 0 to 255, or fractions of 0 to 1, not {_range(x)}",
            hint="undo the standardisation: networks have their own",
        )
    if x.dtype.kind == "b" or (x.dtype.kind == "f" and x.max() <= 1):
        x = x * 255.0
    x = np.rint(x).astype(np.uint8) if x.dtype.kind == "f" else x.astype(np.uint8)
    return np.ascontiguousarray(x if x.ndim == 2 or channels_first(x.shape) else x.transpose(2, 0, 1))


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image has its channels first; last where both could be."""
    return len(shape) == 3 and shape[0] <= CHANNELS < shape[2]


def as_bytes(table: datasets.Dataset, column: str, data: Data, split: str) -> datasets.Dataset:
    """The rows of a split, with images that `read` understands one by one; what they are is logged.

    An image of fractions says by itself which range it has, but for a dark one among images of 0 to 255. Where there
    is such a one, the images are kept once more, as bytes.
    """
    kind, depth = table.features[column], 0
    while inner := getattr(kind, "feature", None):
        kind, depth = inner, depth + 1
    if not depth:  # image files
        return table
    name = f"{kind.dtype} {data.fingerprint(split)}"  # 255 and 255.0 have one fingerprint
    if name not in _known:
        fractions, highest = str(kind.dtype).startswith("float"), []
        if fractions:
            highest = [float(np.max(x, initial=0)) for batch in _batches(table, column) for x in batch]
        first, upper = channels_first(read_shape(table, column)), 255 if max(highest, default=0) > 1 else 1
        if fractions or first:
            values = f"fractions of 0 to {upper}" if fractions else "whole numbers"
            where = "first" if first else "last, if there are any"
            logger.info("%s, split %s: images are %s, channels %s", data.name, split, values, where)
        _known[name] = upper == 255 and any(0 < high <= 1 for high in highest)
    if not _known[name]:
        return table
    return prepare_tables({"images": "bytes", "of": name, "column": column}, lambda: _tables(table, column), data.name)


def read_shape(table: datasets.Dataset, column: str) -> tuple[int, ...]:
    """Of the first image that is an array."""
    return _array(plain_rows(table.select_columns([column]), [0])[0][column]).shape


def _batches(table: datasets.Dataset, column: str) -> Iterator[list[np.ndarray]]:
    images = table.select_columns([column])
    for start in range(0, len(table), BATCH):
        rows = plain_rows(images, range(start, min(start + BATCH, len(table))))
        yield [_array(row[column]) for row in rows]


def _tables(table: datasets.Dataset, column: str) -> Iterator[pa.Table]:
    import pyarrow as pa

    rows = table.with_format("arrow")
    for n, batch in enumerate(_batches(table, column)):
        given = rows[n * BATCH : n * BATCH + len(batch)]
        kind: Any = pa.uint8()
        for _ in batch[0].shape:
            kind = pa.list_(kind)
        made = pa.array([np.rint(x).clip(0, 255).astype(np.uint8).tolist() for x in batch], kind)
        yield given.set_column(given.column_names.index(column), column, made)


def _array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise DataError("an image is height x width (x channels), and this one has lines of several lengths") from None


def _opened(value: Any) -> np.ndarray:
    """An image file; grey ones have two axes, all others red, green and blue."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = value.get("bytes") if isinstance(value, Mapping) else value
    if content is None:
        raise DataError(f"an image is named ({value.get('path')!r}) and not in the row", hint="write its bytes into it")
    try:
        image = content if hasattr(content, "getexif") else Image.open(io.BytesIO(content))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits a pixel
            return np.rint(np.asarray(image) * (255 / 65535)).clip(0, 255).astype(np.uint8)
        return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"an image cannot be opened: {error}") from None


def _range(x: np.ndarray) -> str:
    if x.dtype.kind not in "buif":
        return f"{x.dtype} values"
    return "NaN or infinite ones" if not np.isfinite(x).all() else f"{x.min():g} to {x.max():g}"
