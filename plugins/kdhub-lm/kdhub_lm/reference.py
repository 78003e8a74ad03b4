"""The student as it was before training, which losses hold it to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdhub.student import Student
    from kdhub.task import Signals


class Reference:
    """A frozen copy of a student's network. Made in `adapt`, before a checkpoint is read, it is the start in a resumed
    run too, so no checkpoint keeps it."""

    def __init__(self, student: Student):
        self.module = copy.deepcopy(student.module).eval().requires_grad_(False)

    def __call__(self, batch: Mapping[str, Any]) -> Signals:
        """Its outputs for a batch, without gradient."""
        import torch

        with torch.no_grad():
            return self.module.to(batch["input_ids"].device)(batch)
