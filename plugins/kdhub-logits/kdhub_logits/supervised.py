"""Training by labels alone: the baseline of every comparison, and how teachers are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress
from kdhub_logits.soft_targets import ClassifierOptions, cross_entropy

if TYPE_CHECKING:
    import torch

    from kdhub.task import Signals


class Supervised(ObjectiveMethod):
    """Cross-entropy with the rows' labels; rows without one count nothing. No teacher."""

    class Options(ClassifierOptions):
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")

    options: Options

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        return {"labels": cross_entropy(student.logits, batch["labels"], self.options.label_smoothing)}
