"""A 2D model that names each place of a picture, by labels alone: a teacher of scenes, and the baseline beside them.

    labels = mean over cells of -log p(label)

Labels are those nearest to where the map has its cells; what is unknown (-1) counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.errors import CompatibilityError, DataError
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions, step_count

if TYPE_CHECKING:
    import torch

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class Segment(ObjectiveMethod):
    class Options(TrainingOptions):
        lr: float = Field(3e-3, gt=0, description="peak learning rate of AdamW")
        batch_size: int = Field(16, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
        epochs: float = Field(30.0, gt=0, description="passes over the training rows")

    options: Options
    tiny_recipe = {"student": "segmenter:channels=4,width=4"}

    def rows(self, run: RunContext) -> Rows:
        if not run.task.labelled(run.table("train")):
            raise DataError("the training rows have no labels to learn from", hint="--data shells")
        return super().rows(run)

    def check(self, student: Student, teacher: Teacher | None) -> None:
        if not hasattr(student.module, "head") or not hasattr(student.module, "body"):
            raise CompatibilityError(
                "segment trains 2D models, and the student is a scene", hint="--student segmenter:"
            )

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> Mapping[str, int]:
        return {"cells": int((batch["labels"] >= 0).sum())}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(student.logits.float(), batch["labels"], ignore_index=-1, reduction="sum")
        return {"labels": losses / (step_count(batch, "cells") or max(1, int((batch["labels"] >= 0).sum())))}
