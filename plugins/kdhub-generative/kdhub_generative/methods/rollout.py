"""Direct regression: the student learns, from the noise, the picture that the teacher draws of it in many steps
(arXiv:2101.02388), the simplest way to one call and the baseline of others.

    L = E |g(e) - teacher's picture of e in `teacher_steps` steps|^2

Pictures go through the signal store: each costs `teacher_steps` calls once in its life, and students of other seeds or
options find them there. They are bytes, as pictures are; the rounding is a thousandth of the error that is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import Progress
from kdhub_generative.images.settings import Drawing
from kdhub_generative.methods.averaged import Averaged, DrawingOptions, row_mean

if TYPE_CHECKING:
    import torch

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class Rollout(Averaged):
    """The student learns stored pictures of the teacher from their noise."""

    class Options(DrawingOptions):
        teacher_steps: int = Field(25, ge=1, le=1000, description="calls of the teacher for a picture")
        guidance_scale: float = Field(1.0, ge=0, description="guidance of the teacher's pictures")

    options: Options
    tiny_recipe = {"student": "signal", "options": {"teacher_steps": 2}}

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        scale = self.options.guidance_scale
        return (Drawing(steps=self.options.teacher_steps, guidance=None if scale == 1 else scale).kind,)

    def check(self, student: Student, teacher: Teacher | None) -> None:
        if not student.one_call:
            raise CompatibilityError(
                "rollout trains a one-call model, and the student draws in steps", hint="--student signal"
            )
        if student.shape != student.pixels:
            raise CompatibilityError(
                "rollout learns pictures, and the student ends at codes of them", hint="--method boot"
            )

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        super().adapt(student, teacher)
        student.guidance = self.options.guidance_scale

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        picture = teacher.image.to(student.x0.dtype) / 127.5 - 1
        return {"picture": row_mean((student.x0 - picture).square())}
