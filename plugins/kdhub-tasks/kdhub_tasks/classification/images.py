"""Images of rows as arrays of bytes: their range and their layout are found here, for training, evaluation and use.

Of image files: turned as their EXIF says; colours of a palette, CMYK, ... become red, green and blue; what is
transparent is seen before white; of an animation the first picture. One of more than `MOST` pixels is refused before it
is decoded, and so is what is damaged or cut short.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.data.prepare import prepare_tables
from kdhub.errors import DataError
from kdhub.rows import Fault, plain_rows

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from kdhub.data.dataset import Data

logger = logging.getLogger("kdhub")

OVER = 1e-3
"""What fractions may reach beyond 0 and 1 by rounding; those of 0 to 255 reach 2 at least in some image."""
CHANNELS = 4
"""An image has at most so many; a first axis of that size before a longer last one is that of the channels."""
BATCH = 256
MOST = 2**26
"""Pixels: 67 million. A small file may hold so many more that decoding it fills the memory."""
LARGE = 2**20
"""Bytes of pixels over which an image file is decoded again where it is used (`Large`)."""
HELD = 2**28
"""Bytes of decoded image files that a process holds: small ones are decoded once, not in each pass over the rows."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Decoders of Pillow's that are used; others run programs, or read what is no picture."""
BARE = ("L", "RGB")
"""Modes of Pillow's that need no conversion."""
TURNING = (b"xif", b"XIF", b"xmp", b"XMP", b"xap/", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""One of these stands in every file that says how it is to be turned: EXIF, or XMP, or the tags of TIFF. To ask
Pillow is a good part of the time that a small picture takes."""
_held: dict[bytes, np.ndarray] = {}
_free = HELD
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
    x = _opened(value) if is_file(value) else _array(value)
    if x.ndim not in (2, 3) or not x.size:
        raise DataError(f"an image is height x width (x channels), not an array of shape {x.shape}")
    if x.dtype != np.uint8:
        x = _in_bytes(x)
    return np.ascontiguousarray(x if x.ndim == 2 or channels_first(x.shape) else x.transpose(2, 0, 1))


def is_file(value: Any) -> bool:
    """Whether an image is encoded, or one of Pillow's, and no array."""
    return isinstance(value, bytes | Mapping) or hasattr(value, "getexif")


def _in_bytes(x: np.ndarray) -> np.ndarray:
    fit = x.dtype.kind in "buif" and np.isfinite(x).all() and -OVER <= x.min() and x.max() <= 255
    if not fit or (x.dtype.kind == "f" and _between(x.max())):
        raise DataError(
            f"an image has values of 0 to 255, or fractions of 0 to 1, not {_range(x)}",
            hint="undo the standardisation: networks have their own",
        )
    if x.dtype.kind == "b" or (x.dtype.kind == "f" and x.max() < 2):
        x = x * 255.0
    return np.rint(x).clip(0, 255).astype(np.uint8) if x.dtype.kind == "f" else x.astype(np.uint8)


def _between(highest: float) -> bool:
    """Whether the highest fraction of one or all images fits neither 0 to 1 nor 0 to 255."""
    return 1 + OVER < highest < 2


def held(value: Any) -> np.ndarray:
    """The same, from what was decoded before; not to be written to."""
    global _free
    file = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(file, bytes):
        return read(value)
    if (x := _held.get(file)) is None:
        x = read(value)
        if x.nbytes <= LARGE and (needed := len(file) + x.nbytes) <= _free:
            x.flags.writeable = False
            _held[file], _free = x, _free - needed
    return x


class Large:
    """An image file of many pixels: they are decoded whenever they are asked for (`numpy.asarray`), so that a group of
    rows takes what their files take."""

    def __init__(self, value: Any, shape: tuple[int, ...]):
        self.value, self.shape, self.ndim = value, shape, len(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        x = read(self.value)
        return x if dtype is None else x.astype(dtype)


def seen(value: Any) -> tuple[np.ndarray | Large, bytes]:
    """An image as it stands in an example, and its content. That of a file that is no square has its shape: a picture
    and the same pixels in other lines are two."""
    if not is_file(value):
        x = read(value)
        return x, x.tobytes()
    x = held(value)
    shape = b"" if x.shape[-1] == x.shape[-2] else repr(x.shape).encode()
    if x.nbytes > LARGE:
        return Large(value, x.shape), hashlib.sha256(x.data).digest() + shape
    return x, x.tobytes() + shape


def fault_of(error: DataError, value: Any) -> Fault:
    """Why a row's image cannot be read: the kind of fault, and with its file what exactly was wrong."""
    cause, _, detail = error.message.partition(": ")
    name = value.get("path") if isinstance(value, Mapping) else None
    return Fault(cause, ": ".join(filter(None, (name, detail))))


def size_of(content: bytes) -> tuple[int, int] | None:
    """Width and height of an image file as `read` turns it, without decoding it; None where it cannot be opened, which
    `read` explains."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # by its EXIF
            return (image.height, image.width) if turned else (image.width, image.height)
    except Exception:  # decoders fail in many ways
        return None


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
        top = max(highest, default=0)
        if _between(top):
            raise DataError(
                f"{data.name}, split {split!r}: the highest fraction of all images is {top:g}, so they are neither of "
                "0 to 1 nor of 0 to 255",
                hint="bring them to 0 to 1, as numpy.clip does",
            )
        first, upper = channels_first(read_shape(table, column)), 255 if top >= 2 else 1
        if fractions or first:
            values = f"fractions of 0 to {upper}" if fractions else "whole numbers"
            where = "first" if first else "last, if there are any"
            logger.info("%s, split %s: images are %s, channels %s", data.name, split, values, where)
        _known[name] = upper == 255 and any(0 < high < 2 for high in highest)
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
        raise DataError(
            f"an image is named ({value.get('path')!r}) and not in the row",
            hint="write its bytes into it, or have the files that a column names read: options: {files: COLUMN}",
        )
    try:
        if given := hasattr(content, "getexif"):
            image = content
        else:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if (pixels := image.width * image.height) > MOST:
            raise DataError(f"an image has more than {MOST:,} pixels: {pixels:,}")
        if given:
            image = ImageOps.exif_transpose(image)
        elif any(mark in content for mark in TURNING):
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            return np.asarray(image)
        if image.mode.startswith("I"):  # 16 bits a pixel
            return np.rint(np.asarray(image) * (255 / 65535)).clip(0, 255).astype(np.uint8)
        return np.asarray(image if image.mode in BARE and "transparency" not in image.info else _flat(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"an image cannot be opened: it is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"an image has more than {MOST:,} pixels: {error}") from None
    except Exception as error:  # decoders fail in many ways on what was made to, or happened to, break them
        raise DataError(f"an image cannot be opened: {error or type(error).__name__}") from None


def _flat(image: Any) -> Any:
    """An image as grey or in colours, before white where it is transparent."""
    from PIL import Image

    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L" if grey else "RGB")


def _range(x: np.ndarray) -> str:
    if x.dtype.kind not in "buif":
        return f"{x.dtype} values"
    return "NaN or infinite ones" if not np.isfinite(x).all() else f"{x.min():g} to {x.max():g}"
