"""COLMAP models, as text and binary: cameras with their lens, poses of images, and points."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.errors import DataError
from kdhub_generative.scenes.cameras import Camera

MODELS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}
"""Parameters of each model in COLMAP's order."""
IDS = dict(enumerate(MODELS))
PLACES = ("", "sparse/0", "sparse", "colmap/sparse/0")
PICTURES = ("images", "")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Of image files."""


def found(folder: Path) -> Path | None:
    """The file with the cameras of a model in a folder."""
    files = (folder / place / f"cameras{end}" for place in PLACES for end in (".bin", ".txt"))
    return next((file for file in files if file.is_file()), None)


def views(folder: Path, model: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Views in the order of their names, and the points.

    Raises:
        DataError: an unknown lens, an image without camera or picture, a picture without image, damaged files.
    """
    try:
        read = _binary(model.parent) if model.suffix == ".bin" else _text(model.parent)
    except (OSError, ValueError, OverflowError, struct.error, IndexError) as error:
        raise DataError(f"{model.parent} is not a whole COLMAP model: {error}") from error
    cameras, images, points = read
    base = next((folder / p for p in PICTURES if images and (folder / p / images[0][0]).is_file()), folder / "images")
    made = []
    for name, quat, shift, number in sorted(images, key=lambda one: one[0]):
        if number not in cameras:
            raise DataError(f"{model.name}: image {name} is of camera {number}, and there is no such camera")
        if not (base / name).is_file():
            raise DataError(f"there is a camera and no image {name} in {base.name}", hint="as many as cameras")
        kind, width, height, values = cameras[number]
        of = dict(zip(MODELS[kind], values))
        fx, fy = of.get("fx", of.get("f", 0)), of.get("fy", of.get("f", 0))
        viewmat = np.eye(4)
        viewmat[:3, :3], viewmat[:3, 3] = _rotation(quat), shift
        K = np.array([[fx, 0, of["cx"]], [0, fy, of["cy"]], [0, 0, 1.0]])
        try:
            camera = Camera(viewmat, K, width, height)
        except DataError as error:
            raise DataError(f"{model.name}, image {name}: {error}", hint=error.hint) from error
        lens = {k: float(v) for k, v in of.items() if k[0] in "kp"}
        made.append({"file": base / name, "camera": camera, "lens": lens, "fisheye": kind == "OPENCV_FISHEYE"})
    if base.is_dir() and base != folder:
        there = {p.relative_to(base).as_posix() for p in base.rglob("*") if p.suffix.lower() in ENDINGS}
        if alone := sorted(there - {name for name, *_ in images}):
            raise DataError(
                f"{model.name} has {len(images)} cameras for {len(there)} images: none for {alone[0]}",
                hint="take the image away, or register it",
            )
    return made, points


def _rotation(quat: np.ndarray) -> np.ndarray:
    import torch

    from kdhub_generative.scenes.splats import rotations

    return rotations(torch.tensor(quat[None], dtype=torch.float64))[0].numpy()


def _lines(file: Path) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield line.strip()


def _model(name: Any) -> str:
    kind = name if isinstance(name, str) else IDS.get(name, str(name))
    if kind not in MODELS:
        raise DataError(f"the camera model {kind} is not known", hint=f"known are {', '.join(MODELS)}")
    return kind


def _text(folder: Path) -> Any:
    cameras, images = {}, []
    for line in filter(None, _lines(folder / "cameras.txt")):
        number, kind, width, height, *values = line.split()
        cameras[int(number)] = (_model(kind), int(width), int(height), [float(v) for v in values])
    lines = list(_lines(folder / "images.txt"))  # two for each image, of which the second may be empty
    for line in filter(None, lines[::2]):
        part = line.split(maxsplit=9)
        numbers = [float(v) for v in part[1:8]]
        images.append((part[9], np.array(numbers[:4]), np.array(numbers[4:]), int(part[8])))
    file = folder / "points3D.txt"
    rows = [[float(v) for v in line.split()[1:7]] for line in filter(None, _lines(file))] if file.is_file() else []
    return cameras, images, _points(np.array(rows).reshape(-1, 6))


def _binary(folder: Path) -> Any:
    cameras, images, at = {}, [], 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, content, at)
        at += struct.calcsize("<" + form)
        return values

    content = (folder / "cameras.bin").read_bytes()
    for _ in range(take("Q")[0]):
        number, kind, width, height = take("iiQQ")
        kind = _model(kind)
        cameras[number] = (kind, width, height, list(take(f"{len(MODELS[kind])}d")))
    content, at = (folder / "images.bin").read_bytes(), 0
    for _ in range(take("Q")[0]):
        _, *numbers, camera = take("i7di")
        end = content.index(b"\0", at)
        name, at = content[at:end].decode(), end + 1
        (many,) = take("Q")
        at += 24 * many
        images.append((name, np.array(numbers[:4]), np.array(numbers[4:]), camera))
    rows, file = [], folder / "points3D.bin"
    if file.is_file():
        content, at = file.read_bytes(), 0
        for _ in range(take("Q")[0]):
            _, *values, _ = take("Q3d3Bd")
            rows.append(values)
            (many,) = take("Q")
            at += 8 * many
    return cameras, images, _points(np.array(rows, np.float64).reshape(-1, 6))


def _points(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"points": rows[:, :3].astype(np.float32), "colours": (rows[:, 3:] / 255).astype(np.float32)}
