"""SINE: an edit of one picture, guided by a copy of the diffusion that was tuned on it (arXiv:2212.04489).

The copy is tuned on the one picture, with a prompt of its own, until it knows little else:

    L = E |e - e_guide(alpha_t z + sigma_t e, t, c^)|^2        z: the picture, or a crop of it; t uniform

and then mixed into the base's guidance while much of the picture is noise (`editing.guides`): it plants layout and
identity, and the base, which is never changed, makes of it what the target prompt says. Guide and base are both in the
student.

With `patch_training` z is a crop of the picture, brought to the model's size, each side by itself: sides are drawn
between `min_crop` and `max_crop`, and where it lies is told by position codes behind the first convolution
(`images.positions`). Without a box they cover the whole grid, whatever the size: so other sizes are drawn.

Of base and guide all weights are tuned, the text encoder's as well, or low-rank adapters of the network
(`student: {source: guide, lora: {r: 8}}`).

Departures: of networks that predict v or the picture the error is of that, as in their own training; adapters leave the
text encoder as it is; a box's cells and the pixels cut are the same share of the picture, rounded apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions
from kdhub_generative.editing.settings import Time

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

LEAST = 8
"""Pixels a side of the smallest crop: one of fewer is magnified into a blur."""
NOISES = 64
"""Rows that the picture is, each with noise of its own in each step."""


class Sine(ObjectiveMethod):
    """A guide is tuned on one picture, and mixed into the early steps of what it was copied from."""

    class Options(TrainingOptions):
        lr: float = Field(1e-6, gt=0, description="learning rate of AdamW; 3e-4 for networks of less than a million")
        batch_size: int = Field(1, ge=1, description="noises of the picture in an optimiser step")
        max_steps: int | None = Field(None, ge=1, description="optimiser steps; if unset 800, with patches 10,000")
        warmup: float = Field(0.0, ge=0, lt=1, description="share of steps in which the rate rises")
        schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="learning rate after warm-up")
        precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
            "float32", description="arithmetic of forward and backward"
        )
        target_prompt: str | None = Field(None, description="what the picture shall become, for the base; required")
        guide_prompt: str | None = Field(
            None, description="what the picture is, for the guide, with a word of its own; the row's label if unset"
        )
        guide_weight: float = Field(
            0.3, ge=0, le=1, description="1 - v: share of the guide in the conditional prediction"
        )
        guide_until: Time = Field(
            None,
            ge=0,
            le=1,
            description="K / 1000: diffusion time at which the guide ends, 0 to 1; if unset 0.4, up to 16 pixels 0.2",
        )
        guidance_scale: float = Field(7.5, ge=1, le=100, description="w, classifier-free guidance of the edit")
        sampler_steps: int = Field(100, ge=10, le=1000, description="steps of DDIM, from noise to the edit")
        patch_training: bool = Field(False, description="tune on crops with position codes, to draw at other sizes")
        min_crop: float = Field(0.1, gt=0, le=1, description="least side of a crop, as a share of the picture's")
        max_crop: float = Field(1.0, gt=0, le=1, description="largest side of a crop")
        whole_image_prob: float = Field(0.1, ge=0, le=1, description="how often the whole picture is shown in place")
        position_grid: int = Field(128, ge=2, le=1024, description="cells a side of the position codes")
        size: int | None = Field(None, ge=1, description="pixels a side of edits; those of the base if unset")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.min_crop > self.max_crop:
                raise ValueError(
                    f"min_crop must be at most max_crop (min_crop={self.min_crop:g}, max_crop={self.max_crop:g})"
                )
            if self.max_steps is None:
                self.max_steps = 10_000 if self.patch_training else 800
            return self

    options: Options
    tiny_recipe = {"student": "guide", "options": {"target_prompt": "4", "guide_prompt": "* 3", "sampler_steps": 10}}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """
        Raises:
            UsageError: a prompt that the model does not know, or none. CompatibilityError: the student has no guide.
        """
        if not getattr(student, "guides", ()):
            raise CompatibilityError("sine tunes a guide, and the student has none", hint="--student guide")
        o = self.options
        if o.target_prompt is None:
            raise UsageError(
                "target_prompt: what the picture shall become is not said", hint="--set options.target_prompt='...'"
            )
        for name, prompt in (("target_prompt", o.target_prompt), ("guide_prompt", o.guide_prompt)):
            if name == "guide_prompt" and prompt is None:
                continue
            if fault := student.knows.fault(prompt):
                raise UsageError(f"{name}: {fault}", hint=f"--set options.{name}='...'")

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        o, self._model = self.options, student
        guide = student.guides[-1]
        student.prompt, student.steps, student.guidance = o.target_prompt, o.sampler_steps, o.guidance_scale
        guide.prompt = o.guide_prompt if o.guide_prompt is not None else guide.prompt
        if guide.lora is None:
            guide.model.train_text()
        if o.patch_training:
            guide.model.place(o.position_grid)
        student.resize(o.size)
        student.set_last(weight=o.guide_weight, until=student.until if o.guide_until is None else o.guide_until)

    def rows(self, run: RunContext) -> Rows:
        """The picture, several times.

        Raises:
            DataError: it is not one picture, or too small.
        """
        from kdhub.rows import Rows
        from kdhub.signals.store import row_key

        rows = super().rows(run)
        if "image" not in rows.table.column_names or len(rows) != 1:
            many = f"{len(rows)} pictures" if "image" in rows.table.column_names else "seeds"
            raise DataError(f"sine learns from one picture, and the training rows are {many}", hint="limit: 1")
        (example,), student = rows[[0]], run.student
        picture = np.asarray(example["picture"])
        picture = picture if picture.ndim == 3 else picture[None]
        self.measure(picture.shape, student.base.pixels)
        data, split = run.training_data["train"][0]
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        student.source = picture
        student.from_image = {"name": f"{data.name}, {split}", "sha256": digest, "licence": data.licence or "unknown"}
        if (guide := student.guides[-1]).prompt is None:
            guide.prompt = example["condition"]
        each = max(NOISES, self.options.batch_size)
        table = rows.table.select([0] * each).add_column("seed", list(range(each)))
        return Rows.build(table, rows.prepare, row_key)

    def measure(self, picture: tuple[int, ...], pixels: tuple[int, ...]) -> None:
        """
        Raises:
            DataError: the picture is smaller than the smallest crop may be, or than what the model draws, or has other
                channels.
        """
        o, (channels, high, wide) = self.options, picture
        if channels != pixels[0]:
            raise DataError(
                f"the picture has {channels} channels, and the model draws {pixels[0]}",
                hint=f"resized:{pixels[1]}:DATA gives three, with options: {{colours: grey}} one",
            )
        least = int(min(high, wide) * o.min_crop)
        if o.patch_training and least < LEAST:
            raise DataError(
                f"the smallest crop of a picture of {high} x {wide} is {least} pixels a side, and at least {LEAST} are "
                f"needed (min_crop={o.min_crop:g})",
                hint="take a larger picture, or a larger min_crop",
            )
        if not o.patch_training and (high < pixels[1] or wide < pixels[2]):
            raise DataError(
                f"the picture is {high} x {wide}, smaller than the {pixels[1]} x {pixels[2]} that the model draws",
                hint=f"enlarge it: resized:{pixels[1]}:DATA",
            )

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        from kdhub_generative.editing.model import brought
        from kdhub_generative.methods.averaged import drawn_anew

        o, student = self.options, self._model
        guide, process, picture = student.guides[-1], student.process, batch["picture"]
        draws, e = drawn_anew(batch["seed"], guide.model.shape, generator, 6)
        size = student.base.pixels[1:]
        if o.patch_training:
            boxes = boxes_of(draws[:, 1:], o)
            batch["box"] = boxes
            picture = torch.cat([brought(cut(one, box, o.position_grid), size) for one, box in zip(picture, boxes)])
        else:
            picture = brought(picture, size)
        z, t = student.coded(within(picture)), times(draws[:, 0], process)
        told = guide.model.conditions([guide.prompt] * len(z))
        condition = {"condition": told["condition"].to(z.device)} if told else {}
        return batch | {"x": process.noised(z, e, t), "t": t, "noise": e, "z": z} | condition

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_generative.methods.averaged import row_mean

        model = self._model.guides[-1].model
        target = model.process.target(model.module.prediction, batch["z"], batch["noise"], batch["t"])
        return {"denoising": row_mean((student.output - target).square())}


def times(u: Tensor, process: Any) -> Tensor:
    """t of uniform numbers: of all discrete steps alike, or from 0 to where sampling begins."""
    if process.kept is None:
        return u * process.start
    many = len(process.kept) - 1
    return ((u * many).floor() + 1).clamp(max=many) / many


def boxes_of(draws: Tensor, options: Any) -> Tensor:
    """(rows, 4) int64: y0, x0, y1, x1 in cells of the grid.

    Args:
        draws: (rows, 5) of 0 to 1: whether it is the whole picture, height, width, top, left.
    """
    grid, low, high = options.position_grid, options.min_crop, options.max_crop
    sides = (grid * (draws[:, 1:3] * (high - low) + low)).long().clamp(1, grid)
    corner = (draws[:, 3:] * (grid - sides + 1)).floor().long()
    boxes = draws.new_zeros(len(draws), 4).long()
    boxes[:, :2], boxes[:, 2:] = corner, corner + sides
    whole = draws[:, 0] < options.whole_image_prob
    boxes[whole] = boxes.new_tensor([0, 0, grid, grid])
    return boxes


def cut(picture: Tensor, box: Tensor, grid: int) -> Tensor:
    """(1, channels, height, width): the part of a picture (channels, height, width) that a box covers."""
    high, wide = picture.shape[1:]
    y0, x0, y1, x1 = box.tolist()
    rows = slice(y0 * high // grid, max(-(-y1 * high // grid), y0 * high // grid + 1))
    columns = slice(x0 * wide // grid, max(-(-x1 * wide // grid), x0 * wide // grid + 1))
    return picture[None, :, rows, columns]


def within(picture: Tensor) -> Tensor:
    """
    Raises:
        DataError: it reaches far beyond -1 to 1.
    """
    if (most := float(picture.abs().max())) > 1.01:
        raise DataError(f"pictures are numbers of -1 to 1 here, and these reach {most:.3g}", hint="x / 127.5 - 1")
    return picture
