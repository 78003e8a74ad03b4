"""A student that is its start: nothing is trained. What a builder makes (a merge, a cut, somebody's model) becomes a
run with a report and a card, and a link of a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdhub.errors import TrainingError
from kdhub.method import Method

if TYPE_CHECKING:
    from kdhub.method import RunContext
    from kdhub.student import Student


class AsIs(Method):
    def distill(self, run: RunContext) -> Student:
        """
        Raises:
            TrainingError: a weight is not a number.
        """
        import torch

        student = run.student
        if student.module is not None:
            for name, weights in student.module.named_parameters():
                if not torch.isfinite(weights).all():
                    raise TrainingError(f"the student's {name} holds NaN or infinite values")
        run.mark_start(student)
        return student
