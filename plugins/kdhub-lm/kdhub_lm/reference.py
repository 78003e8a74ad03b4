"""The student as it was before training, to which losses keep it close."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdhub.rows import Signals
    from kdhub.student import Student


class Reference:
    """A frozen copy of a student's network. Created in `adapt`, before a checkpoint is read, it is the start in a
    resumed run too, so checkpoints do not contain it."""

    def __init__(self, student: Student):
        self.module = copy.deepcopy(student.module).eval().requires_grad_(False)

    def __call__(self, batch: Mapping[str, Any]) -> Signals:
        """Its outputs for a batch, without gradient."""
        import torch

        with torch.no_grad():
            return self.module.to(batch["input_ids"].device)(batch)
