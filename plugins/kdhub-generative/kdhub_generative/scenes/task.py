"""Views of one scene: a row is a photograph and its camera.

A 2D model looks at the photograph, a scene is rendered from the camera; both give maps of the same `features`. So a 2D
teacher's maps are stored once, and teacher and student are measured by the same figures on the same views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from kdhub_tasks.classification import images
from pydantic import BaseModel, ConfigDict, Field

from kdhub.data.prepare import iterate
from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.files import canonical_json
from kdhub.findings import Finding
from kdhub.plain_json import read_json
from kdhub.recipes.recipe import Ref
from kdhub.rows import Example, Prepare, Signals, all_readable
from kdhub.task import Encoder, NetworkTask, View
from kdhub_generative.scenes.cameras import Camera, of_row
from kdhub_generative.scenes.dense import TASK, SceneTeacher, Segmenter
from kdhub_generative.scenes.metrics import Views
from kdhub_generative.scenes.scene import Scene

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture
    from kdhub.student import Student

COLUMNS = ("image", "viewmat", "K", "orthographic", "labels", "clean", "points")
SEEN = ("image", "viewmat", "K", "orthographic")
"""What a model is shown of a row."""
MARGIN = 1e-6
Share = Annotated[float, Field(ge=0, le=1)]


class Looks(BaseModel):
    """How `kdhub render` shows a scene."""

    model_config = ConfigDict(extra="forbid")
    show: Literal["turntable", "sheet"] = Field(
        "turntable", description="an animation once around, or a sheet with depth and opacity"
    )
    frames: int = Field(24, ge=1, le=240, description="pictures of the turntable")
    side: int = Field(160, ge=8, le=1024, description="pixels of a picture's longer side")
    edit: Literal["extract", "delete", "recolour"] | None = Field(None, description="an edit of a class before")
    target: str | None = Field(None, description="the class that is edited")
    threshold: float | None = Field(None, gt=0, description="of its probability, as a multiple of 1 / classes")
    colour: tuple[Share, Share, Share] = Field((1.0, 0.2, 0.2), description="what recolour paints with, 0 to 1")


def rendered(scene: Scene, options: Looks) -> Picture:
    """A picture of a scene, edited or not."""
    from kdhub_generative.scenes.drawing import sheet, turntable

    if options.edit:
        chosen = scene.query(options.target, threshold=options.threshold, union=options.edit == "delete")
        scene = scene.edited(options.edit, chosen, options.colour if options.edit == "recolour" else None)
    if options.show == "sheet":
        return sheet(scene, options.side)
    return turntable(scene, options.side, options.frames)


def load_scene(folder: Path, name: str | None, task: str) -> Student:
    """A scene, or a 2D model of the same task, from its folder."""
    folder = Path(folder)
    try:
        config = read_json(folder / "config.json")
        network = config["network"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UntrustedError(f"{name or folder} is not a model for {task}", hint="expected config.json") from error
    return (Segmenter if network == "segmenter" else Scene).load(folder, config, name or "")


class RadianceField(NetworkTask):
    name = TASK
    primary = {"rows": "miou"}
    primary_signal = "features"
    Teacher = SceneTeacher
    drawn = 3
    RenderOptions = Looks

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        on_renders: Ref | None = Field(
            None, description="a 2D model that also looks at what the scene shows: the baseline of its features"
        )

    # -- rows -------------------------------------------------------------------------------------------------

    def training_rows(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if missing := [c for c in ("image", "viewmat", "K") if c not in table.column_names]:
            raise DataError(
                f"{data.name}, split {split!r}, has no column {missing[0]!r}, only {', '.join(table.column_names)}",
                hint="photographs with cameras: posed:FOLDER; generated ones: shells",
            )
        return table.select_columns([c for c in COLUMNS if c in table.column_names])

    def labelled(self, table: datasets.Dataset) -> bool:
        return "labels" in table.column_names

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`camera` of the first view, `up`, `centre` and `extent` of all, the `points` that they share, and `names` of
        the classes."""
        if not parts:
            return {}
        table = self.training_table(parts)
        columns = [c for c in ("viewmat", "K", "orthographic", "labels", "points") if c in table.column_names]
        cameras, names, points = [], set(), set()
        high, wide = images.read(table[0]["image"]).shape[-2:] if len(table) else (1, 1)
        for row in iterate(table.select_columns(columns)):
            try:
                cameras.append(of_row(row, wide, high))
            except DataError as error:
                raise DataError(f"view {len(cameras) + 1} has {error}", hint=error.hint) from error
            names |= set(np.unique(np.asarray(row["labels"])).tolist()) if row.get("labels") is not None else set()
            points |= {row.get("points")}
        facts = {**facts_of(cameras), "points": points.pop() if len(points) == 1 else None}
        names.discard(-1)
        if names:
            from kdhub_generative.scenes.data import CLASSES

            many = max(names) + 1
            facts["names"] = list(CLASSES) if many <= len(CLASSES) else [str(n) for n in range(many)]
        return facts

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            return all_readable([example_of(row) for row in rows])

        return prepare

    def collate(self, examples: Sequence[Example], student: Any) -> dict[str, torch.Tensor]:
        return student.collate(examples)

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        """Of a 2D model its maps; of a scene `image` and `features` (its colours, where it carries none), the
        pixels of all rows one after the other."""
        if "image" in inputs:
            return Signals(module(inputs))
        import torch

        found = []
        for view, K, (high, wide), flat in zip(*(inputs[n] for n in ("viewmat", "K", "size", "orthographic"))):
            camera = Camera(view.cpu().numpy(), K.cpu().numpy(), int(wide), int(high), bool(flat))
            view = module.render(camera)
            found.append((view.image, view.image if view.features is None else view.features))
        image, features = (torch.cat([v.reshape(-1, v.shape[-1]) for v in of]) for of in zip(*found))
        return Signals(image=image, features=features)

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> Student:
        return load_scene(folder, name, self.name)

    def render(self, student: Any, options: Looks) -> Picture:
        if not isinstance(student, Scene):
            raise CompatibilityError("a 2D model has no scene that could be rendered")
        return rendered(student, options)

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Whether the scene's cameras are right-handed and look at it, and whether its features are the teacher's."""
        if not isinstance(student, Scene):
            return []
        return [*handedness(student), *self._of_features(student, teacher)]

    def _of_features(self, student: Scene, teacher: Any) -> list[Finding]:
        head = getattr(teacher, "head", None)
        if student.has_features and head is not None and student.names and student.names != teacher.knows:
            return [Finding("warn", "features", "the scene's classes are not the teacher's", "distil them again")]
        return []

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Views:
        table, model = self.training_rows(data, split), encode.model
        true, labels = [], []
        for row in iterate(table):
            true.append(picture(row["clean" if row.get("clean") is not None else "image"]).astype(np.float32) / 255)
            labels.append(np.asarray(row["labels"]) if row.get("labels") is not None else None)
        views = Views(true, None if any(one is None for one in labels) else labels)
        if isinstance(model, Scene):
            views.images = [flat.reshape(t.shape) for flat, t in zip(encode(table, "image")["image"], true)]
            views.names = model.names
            if not model.has_features:
                return views
        named = model.names if model is not None else self._named(encode, table)
        for kind in ("features", "logits") if named else ("features",):
            setattr(views, kind, maps_of(encode(table, kind), kind))
        if named and isinstance(model, Scene):
            views.fine = maps_of(encode(table, "fine-logits"), "fine-logits")
        return views

    @staticmethod
    def _named(encode: Encoder, table: Any) -> bool:
        """Whether a teacher names what it sees."""
        from kdhub.errors import TeacherError

        try:
            return bool(len(encode(table.select(range(1)), "logits")["logits"]))
        except TeacherError:
            return False

    def views(self, outputs: Views, options: Any, subject: str) -> Iterator[View]:
        """As it is; and of a scene what a 2D model sees in its pictures."""
        yield View()
        if options.on_renders is not None and outputs.images is not None:
            from kdhub import open_teacher

            model = open_teacher(options.on_renders, self.name)

            def seen(out: Views) -> Views:
                rows = [{"image": (v * 255).round().astype(np.uint8)} for v in out.images]
                found = {}
                for kind in ("features", "logits") if getattr(model, "head", None) is not None else ("features",):
                    found[kind] = maps_of(model.signals(rows, kind), kind)
                return replace(out, fine=None, **found)

            metrics = ("miou", "miou-of-cells", "teacher-agreement-miou", "feature-l1", "feature-cosine")
            yield View({"features": "of the 2D model on renders"}, seen, metrics)

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self.training_rows(data, split)
        known = [c for c in SEEN if c in table.column_names]
        return list(iterate(table.select_columns(known).select(range(min(n, len(table))))))

    # -- pictures ---------------------------------------------------------------------------------------------

    def to_draw(self, outputs: Views, n: int) -> dict[str, np.ndarray]:
        from kdhub_generative.scenes.drawing import fitted
        from kdhub_generative.scenes.metrics import labels_of

        found = {"true": fitted(outputs.true[:n])}
        if outputs.images is not None:
            found["image"] = fitted(outputs.images[:n])
        if outputs.logits is not None:
            sizes = [v.shape[:2] for v in outputs.true[:n]]
            found["labels"] = fitted(
                [labels_of(v, s)[..., None] for v, s in zip((outputs.fine or outputs.logits)[:n], sizes)]
            )
        return found

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_generative.scenes.drawing import views

        yield views(given)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        import torch

        torch.manual_seed(3)
        names = ["background", "first", "second", "third"]
        (folder / "teacher").mkdir(exist_ok=True)
        Segmenter({"settings": {"classes": 4, "channels": 4, "width": 4}, "names": names}).save(folder / "teacher")
        options = {"views": 6, "held_out": 2}
        return {
            "teacher": {"source": f"path:{folder / 'teacher'}"},
            "student": "gaussians:",
            "data": {"train": [{"source": "shells", "split": "train", "options": options}]},
            "evaluation": {"data": [{"source": "shells", "split": "test", "options": options}], "cost": False},
        }


def picture(value: Any) -> np.ndarray:
    """(height, width, 3) bytes, of an image as rows have it."""
    x = images.read(value)
    x = x[None] if x.ndim == 2 else x
    return np.ascontiguousarray(np.broadcast_to(x[:3] if len(x) >= 3 else x[:1], (3, *x.shape[1:])).transpose(1, 2, 0))


def maps_of(given: Mapping[str, Any], kind: str) -> list[np.ndarray]:
    """Maps (h, w, channels) of signals."""
    return [np.asarray(flat).reshape(*size) for flat, size in zip(given[kind], given["size"])]


def example_of(row: Mapping[str, Any]) -> Example:
    """One row; with a `fault` where its picture or its camera cannot be read."""
    one: Example = {"image": np.zeros((1, 1, 3), np.uint8), "length": 0, "cut": False, "content": b""}
    try:
        image = picture(row["image"])
        camera = of_row(row, image.shape[1], image.shape[0])
        labels = None if row.get("labels") is None else np.asarray(row["labels"], np.int64)
        if labels is not None and labels.shape != image.shape[:2]:
            raise DataError(f"labels of {labels.shape} for a picture of {image.shape[:2]}")
    except DataError as error:
        return {**one, "fault": images.fault_of(error, row.get("image"))}
    where = canonical_json([camera.viewmat.ravel().tolist(), camera.K.ravel().tolist(), camera.orthographic])
    content = image.tobytes() + repr(image.shape).encode() + where
    return {"image": image, "camera": camera, "labels": labels, "content": content, "length": 1, "cut": False}


def facts_of(cameras: Sequence[Camera]) -> dict[str, Any]:
    """Where some cameras look: the point nearest to all their axes, and how far they are from it."""
    if not cameras:
        return {}
    centres, forward = np.stack([c.centre for c in cameras]), np.stack([c.forward for c in cameras])
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    A = across.sum(0) + MARGIN * np.eye(3)
    centre = np.linalg.solve(A, (across @ centres[..., None]).sum(0)[:, 0] + MARGIN * centres.mean(0))
    up = -np.stack([c.viewmat[1, :3] for c in cameras]).mean(0)
    up = up / max(np.linalg.norm(up), 1e-9) if np.linalg.norm(up) > MARGIN else np.array([0.0, 0, 1])
    first = cameras[0]
    return {
        "camera": {
            "viewmat": first.viewmat.tolist(), "K": first.K.tolist(), "width": first.width, "height": first.height,
            "orthographic": first.orthographic,
        },
        "centre": centre.tolist(), "up": up.tolist(),
        "extent": float(1.1 * np.linalg.norm(centres - centres.mean(0), axis=1).max()) or 1.0,
        "distance": float(np.linalg.norm(centres - centre, axis=1).mean()),
    }  # fmt: skip


def handedness(scene: Scene) -> list[Finding]:
    """Whether what a scene shows stands in front of its camera. A camera of another convention looks away from it."""
    camera = scene.camera  # refuses reflections
    depth = float(camera.viewmat[2, :3] @ scene.centre + camera.viewmat[2, 3])
    if depth > 0:
        return [Finding("ok", "cameras", "right-handed, looking at the scene (OpenCV axes)")]
    said = f"the scene's centre lies behind its first camera (depth {depth:.3g})"
    return [Finding("warn", "cameras", said, "are they in OpenCV axes: x right, y down, z forward?")]
