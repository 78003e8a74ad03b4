"""Views of a scene with their cameras: generated ones, and those of folders.

A row has `image`, `viewmat` (4 x 4, world to camera, OpenCV axes) and `K` (3 x 3); where they are known also
`orthographic`, `labels` (height x width, a class each, -1 where unknown), `clean`, the picture without noise, which
views are compared with, and `points`, the name of what all rows of the scene share: `points` (n, 3) and `colours`
(n, 3) of 0 to 1 to begin at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.data.shared import Shared
from kdhub.errors import DataError, UsageError
from kdhub.plain_json import read_json
from kdhub_generative.scenes import colmap
from kdhub_generative.scenes.cameras import Camera, looking_at, undistorted
from kdhub_generative.scenes.colmap import ENDINGS

CLASSES = ("background", "first", "second", "third")
HUES = np.array([[0.85, 0.25, 0.2], [0.2, 0.75, 0.3], [0.25, 0.35, 0.85]])
EACH, PIXELS, FOCAL, DISTANCE = 90, 32, 36.0, 4.0
FORGOTTEN = 0.06
"""By how much, in each direction, the points to begin at miss the centres (standard deviation)."""
ELEVATIONS = (-10, 45)


def shells(
    seed: int = 0, scenes: int = 1, views: int = 14, held_out: int = 6, noise: float = 0.1, points: bool = True
) -> Data:
    """`shells`: three ellipsoid shells of 90 Gaussians, each of a hue, on black, 32 x 32 pixels: `train` from a
    ring, `test` from other azimuths and elevations. With several scenes their views stand one after the other, and
    there are no points to begin at: rows to train a 2D teacher on.

    Args:
        seed: of the scene, or of all of them; those of another seed share none. scenes: how many.
        views, held_out: of each.
        noise: of pixels, standard deviation. points: whether there are some, near the true centres.

    Raises:
        UsageError: no such number.
    """
    if min(scenes, views, held_out) < 1 or noise < 0 or seed < 0:
        raise UsageError(
            f"shells: scenes, views and held_out from 1, noise and seed from 0 ({scenes=}, {views=}, {held_out=}, "
            f"{noise=}, {seed=})"
        )
    begin = Shared({"shells": seed, "version": 1}, lambda: _points(seed)) if points and scenes == 1 else None

    def rows(split: str) -> Iterator[dict[str, Any]]:
        for scene in range(scenes):
            true = _shell_scene(seed, scene)
            draw = np.random.default_rng([seed, scene, split == "test"])
            for n in range(views if split == "train" else held_out):
                if split == "train":
                    azimuth, elevation = 360 * n / views, 15.0
                    if scenes > 1:
                        azimuth, elevation = draw.uniform(0, 360), draw.uniform(*ELEVATIONS)
                else:
                    azimuth, elevation = 360 * (n + 0.5) / held_out, float(draw.uniform(*ELEVATIONS))
                camera = looking_at(azimuth, elevation, DISTANCE, PIXELS, PIXELS, FOCAL)
                image, labels = _seen(true, camera)
                noisy = (image + noise * draw.standard_normal(image.shape)).clip(0, 1)
                row = {name: (of * 255).round().astype(np.uint8) for name, of in (("image", noisy), ("clean", image))}
                row["labels"] = labels.tolist()
                yield row | camera_columns(camera) | ({"points": begin.name} if begin else {})

    key = {"seed": seed, "scenes": scenes, "views": views, "held": held_out, "noise": noise, "points": points, "v": 2}
    splits = {split: (lambda split=split: rows(split)) for split in ("train", "test")}
    return Data.from_rows("shells", splits, key=key, licence="cc0-1.0", shared=[begin] if begin else [])


def _shell_scene(seed: int, scene: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng([seed, scene])
    turn, parts = draw.uniform(0, 2 * pi), {"means": [], "scales": [], "colours": []}
    for n, hue in enumerate(HUES):
        angle = turn + 2 * pi * n / 3 + draw.uniform(-0.3, 0.3)
        centre = np.array([0.75 * cos(angle), 0.75 * sin(angle), draw.uniform(-0.35, 0.35)])
        out = draw.standard_normal((EACH, 3))
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        parts["means"].append(centre + out * draw.uniform(0.3, 0.55, 3))
        parts["scales"].append(draw.uniform(0.07, 0.11, (EACH, 3)))
        parts["colours"].append((hue + 0.08 * draw.standard_normal((EACH, 3))).clip(0.02, 0.98))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _points(seed: int) -> dict[str, np.ndarray]:
    true, draw = _shell_scene(seed), np.random.default_rng([seed, 7])
    noisy = true["means"] + FORGOTTEN * draw.standard_normal(true["means"].shape)
    return {"points": noisy.astype(np.float32), "colours": np.full_like(noisy, 0.5, np.float32)}


def _seen(true: Mapping[str, np.ndarray], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """The picture (height, width, 3), and the class that most of the light of each pixel is of."""
    import torch

    from kdhub_generative.scenes.splats import rasterize

    n = len(true["means"])
    named = np.repeat(np.eye(3), EACH, 0)
    tensors = [torch.tensor(v) for v in (true["means"], true["scales"], np.hstack([true["colours"], named]))]
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).expand(n, 4)
    opacities = torch.full((n,), 0.9, dtype=torch.float64)
    view, K = torch.tensor(camera.viewmat), torch.tensor(camera.K)
    given = rasterize(tensors[0], quats, tensors[1], opacities, tensors[2], view, K, camera.width, camera.height)
    shares = torch.cat([1 - given.alpha[..., None], given.image[..., 3:]], -1)
    return given.image[..., :3].numpy(), shares.argmax(-1).numpy()


def camera_columns(camera: Camera) -> dict[str, Any]:
    """A camera as columns of a row."""
    return {"viewmat": camera.viewmat.tolist(), "K": camera.K.tolist(), "orthographic": camera.orthographic}


# -- folders --------------------------------------------------------------------------------------------------

EVERY = 8
"""Which views are held out where nobody says which: each eighth, as is usual."""
FLIP = np.diag([1.0, -1, -1, 1])
"""From a camera with y up and z backward, as `transforms.json` has it, to OpenCV's."""


def posed(argument: str, *, shrink: int = 1, held_out: int = EVERY) -> Data:
    """`posed:FOLDER`: photographs with a `transforms.json` (also `transforms_train.json`, `transforms_test.json`), or a
    COLMAP model as text or binary (`cameras`, `images` and `points3D` in the folder, `sparse/0` or `sparse`).

    Args:
        shrink: read pictures smaller by this whole number. held_out: each so many-th view is `test`, where the folder
            does not say.

    Raises:
        UsageError: no such folder, or it has neither. DataError: pictures and cameras that do not belong together.
    """
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise UsageError(f"posed:{argument}: there is no such folder")
    if shrink < 1 or held_out < 2:
        raise UsageError(f"posed:{argument}: shrink is from 1, held_out from 2 ({shrink=}, {held_out=})")
    shared = None
    if files := sorted(folder.glob("transforms*.json")):
        views = transforms(folder, files, held_out)
    elif model := colmap.found(folder):
        read, points = colmap.views(folder, model)
        views = _shared_out(read, held_out)
        if len(points["points"]):
            shared = Shared({"posed": str(folder), "at": model.stat().st_mtime_ns, "version": 1}, lambda: points)
    else:
        raise UsageError(
            f"posed:{argument} has neither transforms.json nor a COLMAP model",
            hint="export one: colmap model_converter --output_type TXT",
        )

    def rows(split: str) -> Iterator[dict[str, Any]]:
        from PIL import Image

        for view in views[split]:
            with Image.open(view["file"]) as opened:
                image = np.asarray(opened.convert("RGB"))
            camera = view["camera"]
            if image.shape[:2] != (camera.height, camera.width):
                camera = camera.scaled(image.shape[1], image.shape[0])
            image = undistorted(image, camera, view["lens"], view["fisheye"])
            if shrink > 1:
                size = (camera.width // shrink, camera.height // shrink)
                image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
                camera = camera.scaled(*size)
            yield {"image": image} | camera_columns(camera) | ({"points": shared.name} if shared else {})

    stamps = {str(v["file"]): v["file"].stat().st_mtime_ns for of in views.values() for v in of}
    poses = [camera_columns(v["camera"]) | v["lens"] for of in views.values() for v in of]
    key = {"files": stamps, "poses": poses, "shrink": shrink, "held": held_out, "version": 1}
    splits = {split: (lambda split=split: rows(split)) for split, of in views.items() if of}
    return Data.from_rows(f"posed:{folder.name}", splits, key=key, shared=[shared] if shared else [])


def _shared_out(views: list[dict[str, Any]], held_out: int) -> dict[str, list[dict[str, Any]]]:
    return {
        "train": [v for n, v in enumerate(views) if n % held_out or len(views) < held_out],
        "test": [v for n, v in enumerate(views) if not n % held_out and len(views) >= held_out],
    }


def transforms(folder: Path, files: list[Path], held_out: int) -> dict[str, list[dict[str, Any]]]:
    """Views of `transforms.json` files, as Instant-NGP and nerfstudio write them.

    Raises:
        DataError: a frame without picture or pose, pictures without a frame, no focal length, a reflection; by file.
    """
    known: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        given = read_json(file)
        if not isinstance(frames := given.get("frames"), list) or not frames:
            raise DataError(f"{file.name} has no frames")
        views = [_frame(folder, file, given, frame, n) for n, frame in enumerate(frames, 1)]
        split = file.stem.removeprefix("transforms").strip("_")
        named = {"val": "validation", "": ""}.get(split, split)
        known[named] = views
        of = {view["file"].parent for view in views}
        told = {view["file"] for views in known.values() for view in views}
        there = {p for one in of for p in one.iterdir() if p.suffix.lower() in ENDINGS}
        if file == files[-1] and (alone := sorted(there - told)) and "" in known:
            raise DataError(
                f"{file.name} has {len(views)} cameras for {len(there)} images: none for {alone[0].name}",
                hint="take the image away, or add its frame",
            )
    return _shared_out(known[""], held_out) if set(known) == {""} else {k or "train": v for k, v in known.items()}


def _frame(folder: Path, file: Path, given: Mapping[str, Any], frame: Mapping[str, Any], n: int) -> dict[str, Any]:
    where = f"{file.name}, frame {n}"
    value = lambda name: frame.get(name, given.get(name))  # noqa: E731
    try:
        path, pose = folder / frame["file_path"], np.array(frame["transform_matrix"], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where} needs file_path and transform_matrix, 4 x 4 numbers") from error
    image = next((p for p in (path, *(path.with_name(path.name + e) for e in ENDINGS)) if p.is_file()), None)
    if image is None:
        raise DataError(f"{where}: there is a camera and no image {frame['file_path']}", hint="as many as cameras")
    from PIL import Image

    with Image.open(image) as opened:
        width, height = opened.size
    w, h = value("w") or width, value("h") or height
    fx = value("fl_x") or (w / (2 * np.tan(value("camera_angle_x") / 2)) if value("camera_angle_x") else 0)
    fy = value("fl_y") or (h / (2 * np.tan(value("camera_angle_y") / 2)) if value("camera_angle_y") else fx)
    K = np.array([[fx, 0, value("cx") or w / 2], [0, fy, value("cy") or h / 2], [0, 0, 1.0]])
    model = value("camera_model") or "OPENCV"
    if pose.shape != (4, 4):
        raise DataError(f"{where}: transform_matrix has the shape {pose.shape}, not (4, 4)")
    try:
        camera = Camera(np.linalg.inv(pose @ FLIP), K, int(w), int(h), model == "ORTHOPHOTO")
    except (DataError, np.linalg.LinAlgError) as error:
        raise DataError(f"{where}: {error}", hint=getattr(error, "hint", None)) from error
    lens = {name: float(value(name) or 0) for name in ("k1", "k2", "k3", "k4", "p1", "p2")}
    return {"file": image, "camera": camera, "lens": lens, "fisheye": model == "OPENCV_FISHEYE"}
