"""Data sets of pictures: a folder of image files, and any data set with its images brought to one size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow, Source, names_of
from kdhub.errors import DataError, UsageError
from kdhub.files import canonical_json
from kdhub.rows import Fault, plain_rows
from kdhub_tasks.classification.images import as_bytes, fault_of, read

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation", "test": "test"}  # fmt: skip
"""Names of folders that are splits and no classes."""
AT_ONCE = 64
"""Images that are decoded together."""
FITS = ("crop", "pad", "stretch")


class Folder(Source):
    """The image files of a split: `image` as `{"bytes", "path"}`, and `label`, the class that a folder is named after.

    Args:
        root: paths are relative to it.
        files: path -> class; None for all of a flat folder.
    """

    def __init__(self, root: Path, files: Mapping[str, str | None], given: str):
        self.root, self.files, self.label = root, dict(sorted(files.items())), given

    def columns(self) -> list[str]:
        return ["image"] if None in self.files.values() else ["image", "label"]

    def key(self) -> Mapping[str, Any]:
        """A file is the same as long as its size and time are: reading a million pictures anew would take long."""
        digest = hashlib.sha256()
        for name in self.files:
            status = os.stat(os.path.join(self.root, name))  # of many: a Path each would take as long as the call
            digest.update(canonical_json([name, status.st_size, status.st_mtime_ns]))
        return {"kind": "images", "folder": str(self.root.resolve()), "files": digest.hexdigest()}

    def record(self) -> dict[str, Any]:
        return {"kind": "images", "folder": self.label, "files": len(self.files)}

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for number, (name, label) in enumerate(self.files.items(), 1):
            try:
                with open(os.path.join(self.root, name), "rb") as file:
                    image = {"bytes": file.read(), "path": name}
            except OSError as error:
                yield number, BadRow(Fault("an image that cannot be read", f"{name}: {error.strerror}"))
            else:
                yield number, {"image": image} | ({"label": label} if label is not None else {})


def images(argument: str) -> Data:
    """A folder of pictures: one folder a class, or all without classes in one; below `train`, `validation` and `test`
    where it has such. Other files, and hidden ones, are not read.

    Raises:
        UsageError: no such folder. DataError: no picture in it, or some in folders of classes and some beside them.
    """
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise UsageError(f"no folder {argument}", hint="images:FOLDER reads the pictures in a folder")
    sources = {
        split: Folder(folder, files_by_class(folder, given, ENDINGS, "pictures"), given)
        for split, (folder, given) in splits_in(root, argument).items()
    }
    return Data(root.resolve().name, sources, ref=f"images:{argument}")


def splits_in(root: Path, given: str) -> dict[str, tuple[Path, str]]:
    """Split -> its folder below `root`, and how messages call it; all is `train` where no folder is named as a split.

    Raises:
        UsageError: two folders are one split.
    """
    inner = {entry.name: SPLITS[entry.name.lower()] for entry in _folders(root) if entry.name.lower() in SPLITS}
    if len(set(inner.values())) < len(inner):
        raise UsageError(f"{given} has two folders for one split: {names_of(sorted(inner))}")
    return {split: (root / name, f"{given}/{name}") for name, split in inner.items()} or {"train": (root, given)}


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def files_by_class(root: Path, given: str, endings: tuple[str, ...], what: str) -> dict[str, str | None]:
    """Path of each file with one of the endings, relative to `root` -> the folder that names its class; None for all of
    a flat folder. Hidden ones are not read.

    Raises:
        DataError: there is none, or some are in folders of classes and some beside them; `what` they are.
    """

    def fits(name: str) -> bool:
        return not name.startswith(".") and name.lower().endswith(endings)

    def below(folder: Path) -> Iterator[str]:
        for place, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if not name.startswith(".")]
            within = os.path.relpath(place, root)
            yield from (os.path.join(within, name) for name in names if fits(name))

    beside = [entry.name for entry in root.iterdir() if fits(entry.name) and entry.is_file()]
    classes = {name: folder.name for folder in _folders(root) for name in below(folder)}
    if not beside and not classes:
        raise DataError(f"{given} has no {what}", hint=f"known endings: {', '.join(endings)}")
    if beside and classes:
        raise DataError(
            f"{given} has {len(classes)} {what} in folders of classes and {len(beside)} beside them: "
            f"{names_of(sorted(beside), 3)}",
            hint="put each into the folder of its class, or all into one folder",
        )
    return classes or dict.fromkeys(beside)


class Resized(Source):
    """A split with its images as arrays of one size."""

    def __init__(self, data: Data, split: str, column: str, change: Mapping[str, Any]):
        self.data, self.split, self.column, self.change = data, split, column, change
        self.label = f"{data.name}, split {split}"

    def key(self) -> Mapping[str, Any]:
        of = self.data.fingerprint(self.split)
        return {"kind": "resized", "of": of, "column": self.column, **self.change, "version": 1}

    def record(self) -> dict[str, Any]:
        return {**self.data.source(self.split), "resized": dict(self.change)}

    def columns(self) -> list[str]:
        return self.data.split(self.split).column_names

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        table = self.data.split(self.split)
        if self.column not in table.column_names:
            raise DataError(
                f"{self.label}, has no column {self.column!r}, only {', '.join(table.column_names)}",
                hint=f"options: {{options: ..., column: THEIRS}}, or map it: columns: {{{self.column}: THEIRS}}",
            )
        table = as_bytes(table, self.column, self.data, self.split)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes outside the GIL
            for start in range(0, len(table), AT_ONCE):
                rows = plain_rows(table, range(start, min(start + AT_ONCE, len(table))))
                yield from pool.map(self._changed, enumerate(rows, start + 1))

    def _changed(self, numbered: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any] | BadRow]:
        number, row = numbered
        try:
            return number, {**row, self.column: resized_image(row[self.column], **self.change)}
        except DataError as error:
            return number, BadRow(fault_of(error, row[self.column]))


def resized(
    argument: str,
    *,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    colours: Literal["rgb", "grey"] = "rgb",
    column: str = "image",
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`resized:32:DATA`, `resized:32x48:DATA`: another data set with its images in so many lines, of so many pixels.
    They are decoded once, and kept as arrays; what reads them (teacher, student, evaluation) sees the same.

    Args:
        fit: `crop` cuts what is too long on both sides, `pad` adds black, `stretch` changes the proportions.
        colours: `rgb` gives grey images three equal channels, `grey` takes the brightness of the others.
        column: the one with the images.
        options: of the other data set.

    Raises:
        UsageError: no size, or an unknown `fit` or `colours`.
    """
    size, _, of = argument.partition(":")
    sides = size.lower().split("x")
    if not of or not 1 <= len(sides) <= 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UsageError(f"resized:{argument} has no size", hint="resized:32:DATA, or resized:32x48:DATA for 32 lines")
    for name, value, known in (("fit", fit, FITS), ("colours", colours, ("rgb", "grey"))):
        if value not in known:
            raise UsageError(f"resized:{argument}: {name} must be one of {', '.join(known)} ({name}={value})")
    data = open_data(of, options=options)
    change = {"height": int(sides[0]), "width": int(sides[-1]), "fit": fit, "colours": colours}
    sources = {split: Resized(data, split, column, change) for split in data.splits}
    return Data(f"resized:{size}:{data.name}", sources, licence=data.licence, ref=f"resized:{argument}", tags=data.tags)


def resized_image(value: Any, height: int, width: int, fit: str, colours: str) -> np.ndarray:
    """An image (see `images.read`) as (3, height, width) or (height, width) of bytes.

    Raises:
        DataError: it cannot be read, or has other channels than one or three.
    """
    from PIL import Image, ImageOps

    x = read(value)
    if x.ndim == 3 and len(x) not in (1, 3):
        raise DataError(f"an image has {len(x)} channels, and is resized with one or three")
    image = Image.fromarray(x if x.ndim == 2 else x[0] if len(x) == 1 else np.ascontiguousarray(x.transpose(1, 2, 0)))
    image, size, how = image.convert("L" if colours == "grey" else "RGB"), (width, height), Image.Resampling.BICUBIC
    if image.size != size:
        change = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}[fit]
        image = change(image, size, how)
    made = np.asarray(image)
    return made if made.ndim == 2 else made.transpose(2, 0, 1)
