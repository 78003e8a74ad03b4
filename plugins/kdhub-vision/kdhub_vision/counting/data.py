"""`points:FOLDER`: images, and what is known of their counts, as people and published data sets have it.

For each image the first of these that is there, beside it or in a folder such as `ground_truth` or `annotations`:

    NAME.csv             x,y          a point a line; the header may be missing
    NAME.json            [[x, y], ...], [{"x":, "y":}, ...], {"points": ...} or {"count": n}
    GT_NAME.mat          ShanghaiTech: image_info, its location
    NAME_ann.mat         UCF-QNRF: annPoints (also NAME.mat, either)
    NAME.npy             a density map of any size
    points.csv           image,x,y    of all images of a split; without x and y: an image without any
    counts.csv           image,count
    points.json, counts.json          {image: any of the above or a number, ...}

Splits are folders named train, val or test, also as `train_data`; images that nothing is known of make a split without
counts, unless others have some. x is the column and y the row, in pixels from the upper left corner.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from kdhub_tasks.classification.images import size_of
from kdhub_tasks.classification.pictures import ENDINGS, SPLITS

from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow, Source, names_of
from kdhub.errors import DataError, UsageError
from kdhub.files import canonical_json
from kdhub.plain_arrays import read_arrays
from kdhub.plain_json import read_json
from kdhub.rows import Fault
from kdhub_vision.counting.matlab import points_in
from kdhub_vision.counting.targets import outside, points_of

BESIDE = ("", "ground_truth", "ground-truth", "annotations", "labels", "points", "density")
"""Folders with annotations: that of the images itself, one in it, and one beside it."""
NAMES = ("{}.csv", "{}.json", "GT_{}.mat", "{}_ann.mat", "{}.mat", "{}.npy")
COMMON = ("points.csv", "points.json", "counts.csv", "counts.json")
KINDS = ("points", "density", "count")

Known = dict[str, Any]
"""What an annotation says: one of `KINDS`, and `lines` of a file that points stand in."""


class Annotated(Source):
    """The images of a split with what is known of each.

    Args:
        root: of the split; label: how messages call it. near: pixels by which a point may lie outside its image; it is
            moved to the edge.
    """

    def __init__(self, root: Path, label: str, near: float):
        self.root, self.label, self.near = root, label, near

    @cached_property
    def images(self) -> list[Path]:
        found = []
        for place, inner, names in os.walk(self.root):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            found += [Path(place) / n for n in sorted(names) if n.lower().endswith(ENDINGS) and not n.startswith(".")]
        if not found:
            raise DataError(f"{self.label} has no images", hint=f"known endings: {', '.join(ENDINGS)}")
        return found

    @cached_property
    def annotations(self) -> dict[Path, Path]:
        """Image -> the file that says something of it."""
        common = next((self.root / name for name in COMMON if (self.root / name).is_file()), None)
        found = {image: annotation_of(image) or common for image in self.images}
        return {image: file for image, file in found.items() if file is not None}

    @cached_property
    def _common(self) -> dict[str, Known | DataError]:
        """What a file of all images of the split says, by their names."""
        file = next((file for file in self.annotations.values() if file.name in COMMON), None)
        try:
            return {} if file is None else _of_all(file)
        except (ValueError, csv.Error) as error:
            raise DataError(f"an annotation that cannot be read: {file.name}: {error}") from error

    def columns(self) -> list[str]:
        return ["image", *KINDS] if self.annotations else ["image"]

    def key(self) -> Mapping[str, Any]:
        """A file is the same as long as its size and time are."""
        digest = hashlib.sha256()
        for file in sorted({*self.images, *self.annotations.values()}):
            status = file.stat()
            digest.update(canonical_json([str(file.relative_to(self.root)), status.st_size, status.st_mtime_ns]))
        where = {"folder": str(self.root.resolve()), "files": digest.hexdigest(), "near": self.near}
        return {"kind": "points", "version": 1, **where}

    def record(self) -> dict[str, Any]:
        return {"kind": "points", "folder": self.label, "images": len(self.images), "annotated": len(self.annotations)}

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        self._common  # noqa: B018 - where it cannot be read, no image is to blame
        for number, image in enumerate(self.images, 1):
            name = str(image.relative_to(self.root))
            try:
                row: dict[str, Any] = {"image": {"bytes": image.read_bytes(), "path": name}}
                if self.annotations:
                    known = self._known(image, row["image"]["bytes"])
                    row |= {kind: known.get(kind) for kind in KINDS}
            except DataError as error:
                cause, _, detail = error.message.partition(": ")
                yield number, BadRow(Fault(cause, detail or name))
            except OSError as error:
                yield number, BadRow(Fault("an image that cannot be read", f"{name}: {error.strerror}"))
            else:
                yield number, row

    def _known(self, image: Path, content: bytes) -> Known:
        """
        Raises:
            DataError: nothing is known of it, its annotation cannot be read, or a point lies outside of it.
        """
        file, name = self.annotations.get(image), str(image.relative_to(self.root))
        if file is None:
            raise DataError(f"an image without annotation: {name}")
        if file.name in COMMON:
            known = next((self._common[n] for n in (name, image.name, image.stem) if n in self._common), None)
            if known is None:
                raise DataError(f"an image without annotation: {name} is not in {file.name}")
            if isinstance(known, DataError):
                raise known
        else:
            known = read_annotation(file)
        if "points" in known:
            known = {**known, "points": self._inside(known, content, file.name, name)}
        return known

    def _inside(self, known: Known, content: bytes, file: str, image: str) -> list[list[float]]:
        points = known["points"]
        if (size := size_of(content)) is None or not len(
            points
        ):  # an image that cannot be opened is found as a bad row
            return points.tolist()
        moved = np.clip(points, 0, size)
        points = np.where(np.abs(moved - points).max(1, keepdims=True) <= self.near, moved, points)
        if (n := outside(points, size[1], size[0])) is not None:
            line = known["lines"][n] if "lines" in known else f"point {n + 1}"
            at = ", ".join(f"{c:g}" for c in points[n])
            raise DataError(
                f"a point outside its image: {file}, {line}: ({at}), and {image} has {size[0]} x {size[1]} pixels"
            )
        return points.tolist()


def points(argument: str, *, near: float = 0.0) -> Data:
    """Images of a folder with points, densities or counts; see this module.

    Args:
        near: pixels by which a point may lie outside its image and is moved to its edge; published annotations have
            such points.

    Raises:
        UsageError: no such folder, or `near` below 0. DataError: no image in it.
    """
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise UsageError(f"no folder {argument}", hint="points:FOLDER reads images and their annotations in a folder")
    if near < 0:
        raise UsageError(f"points:{argument}: near must not be below 0 (near={near})")
    named = {f: f.name.lower().removesuffix("_data") for f in sorted(root.iterdir()) if f.is_dir()}
    inner = {f: SPLITS[name] for f, name in named.items() if name in SPLITS}
    if len(set(inner.values())) < len(inner):
        raise UsageError(f"{argument} has two folders for one split: {names_of(f.name for f in inner)}")
    sources = {split: Annotated(folder, f"{argument}/{folder.name}", near) for folder, split in inner.items()}
    sources = sources or {"train": Annotated(root, argument, near)}
    for source in sources.values():
        source.images  # noqa: B018 - says at once that there are none
    return Data(root.resolve().name, sources, ref=f"points:{argument}")


def annotation_of(image: Path) -> Path | None:
    """The file beside an image that says something of it alone."""
    places = [image.parent / name for name in BESIDE] + [image.parent.parent / name for name in BESIDE[1:]]
    files = (place / name.format(image.stem) for place in places for name in NAMES)
    return next((file for file in files if file.is_file()), None)


def read_annotation(file: Path) -> Known:
    """What a file says of one image.

    Raises:
        DataError: it cannot be read, or says nothing; with the file and the line.
    """
    try:
        if file.suffix == ".csv":
            return _points_csv(file)
        if file.suffix == ".json":
            return _value(read_json(file), file.name)
        return {"points": points_of(points_in(file))} if file.suffix == ".mat" else _npy(file)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"an annotation that cannot be read: {file.name}: {error}") from error


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    with open(file, newline="", encoding="utf-8-sig") as given:
        reader = csv.reader(given)
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _point(cells: list[str], where: str) -> list[float]:
    given = [_number(cell) for cell in cells]
    if len(given) != 2 or None in given or not np.isfinite(given).all():
        raise DataError(f"a point that is not two numbers: {where}: {', '.join(cells)[:60]!r}")
    return given


def _points_csv(file: Path) -> Known:
    lines, at = list(_lines(file)), (0, 1)
    if lines and _number(lines[0][1][0]) is None:
        at = _header(file, lines[0][1], ("x", "y"))
        lines = lines[1:]
    found = [_point([row[i] for i in at if i < len(row)], f"{file.name}, line {n}") for n, row in lines]
    return {"points": points_of(found), "lines": [f"line {n}" for n, _ in lines]}


def _header(file: Path, header: list[str], wanted: tuple[str, ...]) -> tuple[int, ...]:
    names = [name.lower() for name in header]
    if missing := [name for name in wanted if name not in names]:
        raise DataError(
            f"an annotation that cannot be read: {file.name} has no column {missing[0]!r}, only {names_of(names)}"
        )
    return tuple(map(names.index, wanted))


def _of_all(file: Path) -> dict[str, Known | DataError]:
    """Name of an image -> what is known of it, or what is wrong with that."""
    found: dict[str, Known | DataError] = {}
    if file.suffix == ".json":
        given = read_json(file)
        if not isinstance(given, dict):
            raise DataError(f"{file.name} must be an object with the names of images as keys")
        for name, value in given.items():
            try:
                found[name] = _value(value, f"{file.name}, {name}")
            except DataError as error:
                found[name] = error
        return found
    lines, points = list(_lines(file)), {}
    wanted = ("image", "count") if file.name == "counts.csv" else ("image", "x", "y")
    at = _header(file, lines[0][1], wanted) if lines else ()
    for number, row in lines[1:]:
        name, *cells = (row[i] if i < len(row) else "" for i in at)
        where = f"{file.name}, line {number}"
        try:
            if wanted[1] == "count":
                found[name] = _value(_number(cells[0]), where)
                continue
            of_image = points.setdefault(name, [])
            if any(cells):
                of_image.append((_point(cells, where), f"line {number}"))
        except DataError as error:
            found[name] = error
    for name, given in points.items():
        found.setdefault(name, {"points": points_of([p for p, _ in given]), "lines": [line for _, line in given]})
    return found


def _value(value: Any, where: str) -> Known:
    """A value of JSON: points, or a count."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("points", "count") if name in value), None)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < np.inf:
        return {"count": float(value)}
    if isinstance(value, list):
        try:
            return {"points": points_of([[p["x"], p["y"]] if isinstance(p, dict) else p for p in value])}
        except (DataError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DataError(f"points that are not pairs of numbers: {where}: {str(value[:9])[:60]}") from error
    raise DataError(f"an annotation without points or a count: {where}")


def _npy(file: Path) -> Known:
    density = read_arrays(file).get("", np.zeros(0))
    if density.dtype.kind not in "iufb":
        raise DataError(f"a density that is not of numbers: {file.name}: {density.dtype}")
    if density.ndim != 2 or not density.size or not np.isfinite(density).all() or density.min() < 0:
        raise DataError(f"a density that is not height x width of numbers from 0: {file.name}: {density.shape}")
    return {"density": density.astype(np.float32).tolist()}
