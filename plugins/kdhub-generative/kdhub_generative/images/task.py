"""Drawing pictures: a row is a seed, with a class or a prompt; to train diffusions, a picture."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_tasks.classification import images
from pydantic import BaseModel, ConfigDict, Field

from kdhub.data.prepare import iterate
from kdhub.data.shared import shared
from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.fields import Field as Stored
from kdhub.files import canonical_json
from kdhub.findings import Finding
from kdhub.plain_json import read_json
from kdhub.recipes.recipe import Ref
from kdhub.rows import Example, Fault, Prepare, Signals, all_readable, class_names
from kdhub.task import Encoder, NetworkTask, View
from kdhub.teachers.saved import SavedTeacher
from kdhub_generative.images.settings import Conditions, Drawing

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture
    from kdhub.student import BuildContext
    from kdhub_generative.images.model import ImageModel

MANY = 100
"""Steps of the picture that others of the same seed are compared with."""
LOOKED_AT, STRAY = 16, 0.2
"""Pictures whose range is looked at, and the share of their numbers outside it at which one is warned."""
SHOWN = (1, 2, 4, 25)
"""Steps in which a teacher is drawn and measured."""


@dataclass
class Drawn:
    """What metrics read of a subject on some seeds; pictures are drawn when they are first asked for.

    Attributes:
        reference: bytes (n, channels, height, width), real pictures; None where the rows name none.
        guidance: that its pictures have, where it is another than none.
        one_call: whether there is one way of drawing only.
        feature: in which pictures are compared: None for pixels, else a classifier (`kdhub.Teacher`) whose signal
            `features` it is.
    """

    encode: Encoder
    table: Any
    how: Drawing = Drawing()
    reference: np.ndarray | None = None
    guidance: float | None = None
    one_call: bool = False
    feature: Any = None
    _known: dict[str, Any] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        return len(self.table)

    @cached_property
    def images(self) -> np.ndarray:
        """Bytes (n, channels, height, width)."""
        kind = "image" if self.how == type(self.how)() else self.how.kind
        if kind not in self._known:
            self._known[kind] = np.asarray(self.encode(self.table, kind)["image"])
        return self._known[kind]

    def at(self, **settings: Any) -> Drawn:
        """The same seeds, drawn in another way."""
        return replace(self, how=type(self.how)(**settings))


class ImageTeacher(SavedTeacher):
    """A saved model that draws. What it draws in a way is stored under the way's name."""

    group_rows = 256
    Settings: type[Drawing] = Drawing

    @property
    def knows(self) -> Conditions:
        facts = self.facts
        classes, words = (facts.get(name) and tuple(facts[name]) for name in ("classes", "words"))
        return Conditions(classes, facts["prompts"], facts["has_null"], words)

    def layout(self, kind: str) -> dict[str, Any]:
        if not self.Settings.names(kind):
            return super().layout(kind)
        how = self.Settings.parse(kind)
        if how.steps not in (None, 1) and self.facts["one_call"]:
            raise CompatibilityError(
                f"{self.argument} is a one-call model: steps cannot be several (steps={how.steps})"
            )
        if how.guidance not in (None, 1) and not (self.facts["one_call"] or self.knows.has_null):
            raise CompatibilityError(
                f"{self.argument} does not know conditions and nothing, as guidance needs (guidance={how.guidance:g})"
            )
        return {"image": Stored("image", "uint8", tuple(self.facts["pixels"]))}


class ImageGeneration(NetworkTask):
    """Rows have a `seed` and, for models with conditions, a `condition`: a class or a prompt. Rows to train a diffusion
    on have an `image`, and their condition is its `label` or `prompt`. `noise:N` makes seeds."""

    name = "image-generation"
    primary = {"rows": "frechet"}
    primary_signal = "image"
    pipeline_tag = "unconditional-image-generation"
    Teacher = ImageTeacher
    drawn = 16

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        feature: Ref | None = Field(
            None, description="a classifier of images in whose features pictures are compared as well as in pixels"
        )

    class StudentOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        steps: int | None = Field(
            None,
            ge=1,
            le=1000,
            description="calls that a model which draws in steps takes from here on; its own if unset",
        )

    # -- rows -------------------------------------------------------------------------------------------------

    def training_rows(self, data: Data, split: str) -> datasets.Dataset:
        """
        Raises:
            DataError: there are neither seeds nor pictures.
        """
        table = data.split(split)
        if "image" in table.column_names:
            table = images.as_bytes(table, "image", data, split)
        elif "seed" not in table.column_names:
            raise DataError(
                f"{data.name}, split {split!r}, has neither seeds nor images, only {', '.join(table.column_names)}",
                hint="noise:N makes seeds; pictures are named by columns: {image: THEIRS}",
            )
        known = ("seed", "condition", "reference", "image", "label", "prompt")
        return table.select_columns([c for c in known if c in table.column_names])

    def labelled(self, table: datasets.Dataset) -> bool:
        """Whether there are pictures to learn from."""
        return "image" in table.column_names

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`shape` of the pictures, and `classes` where they have labels; nothing of seeds."""
        if not parts or "image" not in (table := self.training_table(parts)).column_names:
            return {}
        shape = images.read(table[0]["image"]).shape
        facts: dict[str, Any] = {"shape": list(shape if len(shape) == 3 else (1, *shape))}
        if "label" in table.column_names:
            names = class_names(table.features["label"])
            found = {str(row["label"]) for row in iterate(table.select_columns(["label"])) if row["label"] is not None}
            facts["classes"] = list(names) if names else sorted(found, key=lambda n: (not n.isdigit(), len(n), n))
        return facts

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        knows = (student or teacher).knows

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            return all_readable([example_of(row, knows) for row in rows])

        return prepare

    def collate(self, examples: Sequence[Example], student: ImageModel) -> dict[str, torch.Tensor]:
        return student.collate(examples)

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return module(inputs)

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> ImageModel:
        """A network of ours, or a pipeline's folder of the diffusers library."""
        folder = Path(folder)
        if (folder / "model_index.json").is_file():
            from kdhub_generative.images.pipelines import PipelineModel

            return PipelineModel.load(folder, name or "")
        from kdhub_generative.images.model import NetworkModel

        try:
            config = read_json(folder / "config.json")
            config["network"], config["shape"], config["prediction"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UntrustedError(
                f"{name or folder} is not a model for {self.name}",
                hint="expected model_index.json of a diffusers pipeline, or config.json of a model that kdhub saved",
            ) from error
        return NetworkModel.load(folder, config, name or "")

    def configure(self, student: ImageModel, context: BuildContext) -> ImageModel:
        """
        Raises:
            CompatibilityError: `steps` of a one-call model.
        """
        if (steps := context.options.get("steps")) is not None:
            if student.one_call:
                raise CompatibilityError(f"a one-call model is not drawn in steps (steps={steps})")
            student.steps = steps
        return student

    def mismatch(self, student: Any, teacher: Any) -> str:
        mine, theirs = tuple(student.pixels), tuple(teacher.facts["pixels"])
        if mine != theirs:
            mine, theirs = (" x ".join(map(str, size)) for size in (mine, theirs))
            return f"the student draws pictures of {mine}, the teacher of {theirs}"
        return ""

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Whether they draw pictures of one size, and, where the teacher may be asked, whether what it draws is in the
        range of pictures: with another `prediction_type` than it was trained for it is not."""
        if why := self.mismatch(student, teacher):
            return [Finding("warn", "pictures", why, "--student signal takes the teacher's own network")]
        found = [Finding("ok", "pictures", "of one size")]
        if not thorough or not (model := getattr(teacher, "model", None)):
            return found
        rows = [{"seed": n, "condition": None, "content": b"", "length": 1} for n in range(LOOKED_AT)]
        if model.classes is not None and not model.has_null:
            rows = [{**row, "condition": model.classes[n % len(model.classes)]} for n, row in enumerate(rows)]
        drawn = model.raw(rows).abs()  # in pixels, whatever the process runs in
        stray = float((drawn > 1.25).float().mean())
        said = f"{stray:.0%} of what the teacher draws lies outside -1 to 1, up to {drawn.max():.3g}"
        if stray > STRAY:
            return [
                *found,
                Finding("warn", "range", said, "does its scheduler say another prediction_type than it has?"),
            ]
        return [*found, Finding("ok", "range", said)]

    def pictures(self, model: ImageModel, rows: Sequence[Mapping[str, Any]], **how: Any) -> np.ndarray:
        """Pictures of some seeds, bytes (rows, channels, height, width).

        Args:
            rows: each with a `seed` and, where the model has conditions, a `condition`.
            how: settings of `Drawing`: steps, guidance.
        """
        examples = self.preparer(model, None)([dict(row) for row in rows])
        return model.signals(examples, model.Settings(**how).kind)["image"]

    class RenderOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        prompts: list[str] = Field([], description="conditions, a row of pictures for each; if unset without one")
        seed: int = Field(0, ge=0, description="of the first picture of a row; the others have the next ones")
        count: int = Field(8, ge=1, le=64, description="pictures of a row")
        steps: int | None = Field(None, ge=1, le=1000, description="calls of the network; the model's own if unset")
        guidance: float | None = Field(None, ge=0, le=100, description="classifier-free guidance; 1 is none")

    def render(self, student: ImageModel, options: Any) -> Picture:
        """A grid: a row for each condition, a column for each seed."""
        from kdhub.pictures import Picture
        from kdhub_generative.images.drawing import grid

        prompts: list[str | None] = [*options.prompts]
        if not prompts:
            knows = student.knows
            prompts = [None] if knows.has_null or not knows.any else list(knows.classes or ())[:8]
        how = {name: value for name in ("steps", "guidance") if (value := getattr(options, name)) is not None}
        seeds, rows = range(options.seed, options.seed + options.count), []
        for prompt in prompts:
            drawn = self.pictures(student, [{"seed": seed, "condition": prompt} for seed in seeds], **how)
            rows.append((prompt or "", drawn))
        said = f"Seeds {seeds[0]} to {seeds[-1]}" + (f" of {', '.join(filter(None, prompts))}" if any(prompts) else "")
        return Picture("samples.png", f"{said[:290]}.", grid(rows))

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Drawn:
        table = data.split(split)
        if "seed" not in table.column_names:
            raise DataError(
                f"{data.name}, split {split!r}, has no seeds to draw pictures of", hint="evaluate on noise:N"
            )
        name = table[0].get("reference")
        reference = shared(name)["images"] if name else None
        known = ("seed", "condition")
        table, model = table.select_columns([c for c in known if c in table.column_names]), encode.model
        if model is None:
            return Drawn(encode, table, reference=reference)
        guidance = model.guidance if isinstance(model.guidance, float | int) and model.guidance != 1 else None
        return Drawn(encode, table, reference=reference, guidance=guidance, one_call=model.one_call)

    def views(self, outputs: Drawn, options: Any, subject: str) -> Iterator[View]:
        """As it draws by itself; in the features of a classifier, where one is named; and a teacher in few steps."""
        yield View()
        if options.feature is not None:
            from kdhub import open_teacher

            judge = open_teacher(options.feature, "image-classification")
            named_so = {"feature": options.feature.source}
            metrics = ("frechet", "kernel-distance", "precision", "recall")
            yield View(named_so, lambda out: replace(out, feature=judge), metrics)
        if subject == "teacher" and not self._once(outputs):
            for steps in SHOWN[:-1]:
                yield View({"steps": steps}, lambda out, n=steps: out.at(steps=n), ("frechet", "own-error"))

    @staticmethod
    def _once(outputs: Drawn) -> bool:
        """Whether a subject can be drawn in one way alone."""
        if outputs.one_call:
            return True
        try:
            return outputs.at(steps=2).images is None
        except CompatibilityError:
            return True

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = data.split(split)
        known = [c for c in ("seed", "condition") if c in table.column_names]
        return list(iterate(table.select_columns(known).select(range(min(n, len(table))))))

    # -- pictures ---------------------------------------------------------------------------------------------

    def to_draw(self, outputs: Drawn, n: int) -> dict[str, np.ndarray]:
        some = replace(outputs, table=outputs.table.select(range(min(n, len(outputs.table)))), _known={})
        if self._once(some):
            return {"1": some.images}
        return {str(steps): some.at(steps=steps).images for steps in SHOWN}

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_generative.images.drawing import sheet

        yield sheet(given)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        import torch

        from kdhub_generative.images.model import NetworkModel

        (folder / "teacher").mkdir(exist_ok=True)
        torch.manual_seed(3)
        settings = {"width": 16, "blocks": 1}
        config = {"network": "denoiser-mlp", "settings": settings, "shape": [1, 8, 8], "prediction": "v", "steps": 4}
        teacher = NetworkModel(config)
        torch.nn.init.normal_(teacher.module.network.write.weight, std=0.1)
        teacher.save(folder / "teacher")
        seeds = {"reference": {"source": "digits", "split": "test", "limit": 40}}
        return {
            "teacher": {"source": f"path:{folder / 'teacher'}"},
            "student": {"source": f"path:{folder / 'teacher'}"},
            "data": {"train": "noise:64"},
            "evaluation": {"data": [{"source": "noise:24", "split": "test", "options": seeds}], "cost": False},
        }


def example_of(row: Mapping[str, Any], knows: Conditions) -> Example:
    """One row as models see it; with a `fault` where they cannot draw its condition or read its picture."""
    if "image" not in row:
        condition = None if row.get("condition") is None else str(row["condition"])
        one = {"seed": int(row["seed"]), "condition": condition, "length": 1, "cut": False}
        one["content"] = canonical_json([one["seed"], condition])
        if fault := knows.fault(condition):
            return {**one, "fault": fault, "length": 0}
        return one
    given = row.get("prompt" if knows.prompts else "label")
    condition = str(given) if given is not None and knows.any else None
    try:
        picture, content = images.seen(row["image"])
    except DataError as error:
        fault = images.fault_of(error, row["image"])
        return {"seed": 0, "condition": None, "content": b"", "length": 0, "cut": False, "fault": fault}
    content += canonical_json(condition)
    seed = zlib.crc32(content) if row.get("seed") is None else int(row["seed"])  # of the noise that hides it
    if row.get("seed") is not None:
        content += canonical_json(seed)
    one = {"seed": seed, "condition": condition, "picture": np.asarray(picture), "content": content}
    if fault := knows.fault(condition):
        return {**one, "length": 0, "cut": False, "fault": Fault(fault)}
    return {**one, "length": 1, "cut": False}
