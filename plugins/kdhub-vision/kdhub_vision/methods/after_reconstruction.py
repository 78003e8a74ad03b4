"""Captions after reconstruction: what `snapcap` is to be compared with (arXiv:2401.04903, introduction).

Two trainings in one run. First a reconstructor learns the frames from snapshots,

    reconstruction = mean (r(Y, C) - X)^2

then, with it and the CLIP frozen, a decoder learns captions on the CLIP's vectors of the reconstructed frames. Both run
whenever a caption is wanted.

Departure: the captioner learns on reconstructed frames, as it will see them, not on the originals; that favours it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import Progress
from kdhub_vision.methods.snapcap import Caption, CaptionOptions, _OfSnapshots

if TYPE_CHECKING:
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

CLIP = "clip"


class AfterReconstructionOptions(CaptionOptions):
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"reconstructor": 0.0, "clip": 0.0},
        description="factors on lr for named parts of the student, in the second training; 0 freezes a part",
    )
    reconstructor_epochs: float = Field(10.0, gt=0, description="passes over the training rows by the reconstructor")
    reconstructor_lr: float = Field(1e-3, gt=0, description="its peak learning rate")


class Reconstruct(_OfSnapshots):
    """The first training."""

    def settings(self) -> dict[str, Any]:
        return {"frames": True}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        _check(self, student)

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        student.take_clip(self.teachers[CLIP].model)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        return {"reconstruction": (student.frames - batch["frames"]).square().mean()}


class AfterReconstruction(Caption):
    Options = AfterReconstructionOptions
    options: AfterReconstructionOptions
    tiny_recipe = {"student": "after-reconstruction:width=16,channels=8,layers=1,heads=2"}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        _check(self, student)

    def distill(self, run: RunContext) -> Student:
        o = self.options
        shared = {name: getattr(o, name) for name in CaptionOptions.model_fields}
        first = {**shared, "rates": {}, "epochs": o.reconstructor_epochs, "lr": o.reconstructor_lr}
        student = run.fit(Reconstruct(CaptionOptions(**first), self.spec), run.student, "reconstructor")
        return run.fit(self, student, "captioner")


def _check(method: Any, student: Student) -> None:
    if "frames" not in student.kinds:
        raise CompatibilityError(
            f"{method.spec.name} trains a student that reconstructs frames",
            hint="student: after-reconstruction:width=64",
        )
