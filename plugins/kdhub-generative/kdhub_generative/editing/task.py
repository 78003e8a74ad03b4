"""Edits of one picture: a row is a seed and what the picture shall become; to tune a guide, the picture itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.plain_json import read_json
from kdhub.task import Encoder, View
from kdhub_generative.editing.data import COLOURS
from kdhub_generative.editing.settings import UNTIL, WEIGHTS, Editing, Only, Time
from kdhub_generative.images.task import Drawn, ImageGeneration, ImageTeacher

if TYPE_CHECKING:
    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture
    from kdhub.student import BuildContext
    from kdhub_generative.editing.guides import Guide
    from kdhub_generative.editing.model import EditModel


@dataclass
class Edited(Drawn):
    """What metrics read of a subject.

    Attributes:
        reference: the source, as one picture.
        guided: whether it has guides. varied: whether it is also measured over windows and weights.
        channel: of pictures, in which light is measured; None: in none.
    """

    guided: bool = False
    varied: bool = False
    channel: int | None = None

    def at(self, **settings: Any) -> Edited:
        made = super().at(**settings)
        made.varied = False
        return made


class EditTeacher(ImageTeacher):
    Settings = Editing


class ImageEditing(ImageGeneration):
    """Rows have a `seed` and a `condition`, what the picture shall become; rows to tune a guide on are one `image` with
    its `label` or `prompt`. A student is a diffusion and its guides (`EditModel`); a diffusion alone is one without.
    The source that edits are compared with is the `reference` of `noise:N`, one picture."""

    name = "image-editing"
    primary = {"rows": "shape-kept"}
    pipeline_tag = "image-to-image"
    Teacher = EditTeacher

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        colour: Literal["red", "green", "blue"] | None = Field(None, description="in which light is measured")

    class StudentOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        steps: int | None = Field(None, ge=1, le=1000, description="calls of the base from noise to the picture")
        guidance: float | None = Field(None, ge=0, le=100, description="classifier-free guidance")
        only: Only | None = Field(
            None, description="draw with the base or the guide alone, which may be asked for the edit"
        )

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> EditModel:
        """An edit, or a diffusion as an edit without guides."""
        from kdhub_generative.editing.model import EditModel

        folder, config = Path(folder), {}
        if (file := folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
            config = read_json(file)
        diffusions = ImageGeneration()
        if isinstance(config, Mapping) and "guides" in config:
            return EditModel.load(folder, diffusions.load, name or "")
        base = diffusions.load(folder, name=name)
        if base.one_call:
            raise CompatibilityError(f"{name or folder} is a one-call model, and an edit needs one that draws in steps")
        return EditModel(base, guidance=1.0, steps=base.steps)

    def configure(self, student: EditModel, context: BuildContext) -> EditModel:
        for name in ("steps", "guidance", "only"):
            if (value := context.options.get(name)) is not None:
                setattr(student, name, value)
        if student.only not in (None, "base") and not student.guides:
            raise CompatibilityError(f"the student has no guide that could draw alone (only={student.only})")
        return student

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Edited:
        """
        Raises:
            DataError: the rows name several pictures as their source.
        """
        drawn = super().outputs(encode, data, split)
        if drawn.reference is not None and len(drawn.reference) != 1:
            raise DataError(
                f"{data.name}, split {split!r}: edits are compared with one picture, and their reference has "
                f"{len(drawn.reference)}",
                hint="reference: {source: ..., split: test, limit: 1}",
            )
        given = {f.name: getattr(drawn, f.name) for f in fields(Drawn)} | {"how": Editing()}
        return Edited(**given, guided=bool(getattr(encode.model, "guides", ())) and not encode.model.only)

    def views(self, outputs: Edited, options: Any, subject: str) -> Iterator[View]:
        """As it draws by itself; a student also over windows and weights, and base and guide alone."""
        channel = None if options.colour is None else COLOURS.index(options.colour)
        varied = outputs.guided and subject == "student"

        def seen(out: Edited, **settings: Any) -> Edited:
            made = out.at(**settings) if settings else out.at(**out.how.model_dump())
            made.channel, made.varied = channel, varied and not settings
            return made

        yield View(apply=seen)
        ways = [{"guide_until": until, "guide_weight": weight} for until in UNTIL for weight in WEIGHTS]
        for way in [*ways, *({"only": only} for only in get_args(Only))] if varied else ():
            yield View(way, lambda out, way=way: seen(out, **way), ("shape-kept", "colour-share"))

    def to_draw(self, outputs: Edited, n: int) -> dict[str, np.ndarray]:
        some = self._first(outputs, n // 2)
        taken = {"edit": some.images}
        if outputs.guided:
            first = self._first(outputs, 1)
            every = [first.at(guide_until=u, guide_weight=w).images for u in UNTIL for w in WEIGHTS]
            taken |= {only: some.at(only=only).images for only in ("base", "guide")}
            taken["varied"] = np.concatenate(every)[:n]
            if outputs.reference is not None and outputs.reference.shape[1:] == some.images.shape[1:]:
                taken["source"] = np.asarray(outputs.reference)
        return taken

    @staticmethod
    def _first(outputs: Edited, n: int) -> Edited:
        made = outputs.at()
        made.table, made._known = outputs.table.select(range(min(n, len(outputs.table)))), {}
        return made

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_generative.editing.drawing import sheets

        yield from sheets(given)

    # -- edits to a file --------------------------------------------------------------------------------------

    class GuideOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        model: str = Field(description="a folder or org/name: a diffusion that was tuned, or an edit with its guide")
        prompt: str | None = Field(None, description="that it was tuned with; known of an edit's guide")
        weight: float = Field(0.3, ge=0, le=1, description="of the guide; all together at most 1")
        until: Time = Field(None, ge=0, le=1, description="diffusion time at which it ends, from 0 to 1")
        since: float = Field(1.0, ge=0, le=1, description="diffusion time at which it begins")

    class RenderOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        prompt: str | None = Field(None, description="what the picture shall become; the edit's own if unset")
        guides: list[ImageEditing.GuideOptions] = Field(
            [], description="further guides: [{model: FOLDER, prompt: ...}]"
        )
        guide_weight: float | None = Field(None, ge=0, le=1, description="of all guides together")
        guide_until: Time = Field(None, ge=0, le=1, description="diffusion time at which guides end, from 0 to 1")
        only: Only | None = Field(
            None, description="draw with the base or the guide alone, which may be asked for the edit"
        )
        guidance: float | None = Field(None, ge=0, le=100, description="classifier-free guidance")
        steps: int | None = Field(None, ge=1, le=1000, description="calls of the base from noise to the picture")
        size: int | None = Field(None, ge=1, description="pixels a side; the base's own if unset")
        seed: int = Field(0, ge=0, description="of the first picture")
        count: int = Field(4, ge=1, le=64, description="pictures")
        grid: bool = Field(False, description="one seed over windows and weights in place of several")

    def render(self, student: EditModel, options: Any) -> Picture:
        """Edits of some seeds side by side; or of one seed, over windows and weights.

        Raises:
            UsageError: weights that add up to more than 1, windows in steps, a prompt that the base does not know.
            CompatibilityError: a guide is not like the base.
        """
        from kdhub.pictures import Picture
        from kdhub_generative.editing.drawing import sheets
        from kdhub_generative.images.drawing import grid

        student = self.guided(student, [given.model_dump() for given in options.guides])
        student.resize(options.size)
        prompt = options.prompt or student.prompt
        if fault := student.knows.fault(prompt):
            raise UsageError(f"prompt: {fault}", hint="--set prompt='...'")
        names = ("guide_weight", "guide_until", "only", "guidance", "steps")
        how = {name: value for name in names if (value := getattr(options, name)) is not None}
        rows = [{"seed": options.seed + n, "condition": prompt} for n in range(1 if options.grid else options.count)]
        if options.grid:
            ways = [{**how, "guide_until": until, "guide_weight": weight} for until in UNTIL for weight in WEIGHTS]
            varied = np.concatenate([self.pictures(student, rows, **way) for way in ways])
            *_, made = sheets({"student": {"edit": varied[:1], "varied": varied}})
            return made
        drawn = self.pictures(student, rows, **how)
        return Picture("edits.png", f"Edits to {prompt or 'nothing said'}."[:300], grid([("", drawn)], label=0))

    def guided(self, student: EditModel, guides: Sequence[Mapping[str, Any]]) -> EditModel:
        """An edit with further guides, and nothing trained.

        Args:
            guides: as in `GuideOptions`, `model` being a folder, a name or a model.
        """
        from kdhub_generative.editing.model import EditModel

        found = [*student.guides]
        for given in guides:
            found += self._guides_of(student, dict(given))
        known = {
            name: getattr(student, name) for name in ("guidance", "steps", "prompt", "source", "from_image", "size")
        }
        if guides and not student.guides and student.guidance == 1 and student.base.has_null:
            known["guidance"] = 7.5
        made = EditModel(student.base, found, **known)
        made.only = student.only
        return made

    def _guides_of(self, student: EditModel, given: dict[str, Any]) -> list[Guide]:
        import kdhub
        from kdhub_generative.editing.guides import Guide

        model = given.pop("model")
        if isinstance(model, str | Path):
            model = kdhub.load(model, task=self.name)
        until = given.pop("until", None)
        given["until"] = student.until if until is None else until
        if getattr(model, "guides", ()):
            prompt = given.pop("prompt", None)
            return [Guide(one.model, prompt or one.prompt, lora=one.lora, **given) for one in model.guides]
        return [Guide(getattr(model, "base", model), **{"prompt": None, **given})]

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        import torch

        from kdhub_generative.images.model import NetworkModel

        (folder / "teacher").mkdir(exist_ok=True)
        torch.manual_seed(3)
        config = {"network": "denoiser-mlp", "settings": {"width": 16, "blocks": 1}, "shape": [1, 8, 8], "steps": 4}
        config |= {"prediction": "epsilon", "words": [*map(str, range(10)), "*"], "has_null": True}
        teacher = NetworkModel(config)
        torch.nn.init.normal_(teacher.module.network.write.weight, std=0.1)
        teacher.save(folder / "teacher")
        seeds = {"conditions": ["3"], "reference": {"source": "digits", "split": "test", "limit": 1}}
        return {
            "teacher": {"source": f"path:{folder / 'teacher'}"},
            "student": {"source": f"path:{folder / 'teacher'}"},
            "data": {"train": [{"source": "digits", "split": "train", "limit": 1}]},
            "evaluation": {"data": [{"source": "noise:8", "split": "test", "options": seeds}], "cost": False},
        }
