"""Training by labels alone: the baseline of every comparison, and how teachers are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress
from kdhub_tasks.losses import ClassifierOptions, label_losses, labelled_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals


class Supervised(ObjectiveMethod):
    """Cross-entropy with the rows' classes, squared error where labels are values (`label_losses`); rows without one
    count nothing. No teacher."""

    class Options(ClassifierOptions):
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")

    options: Options

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.positions import over_positions

        labels, smoothing = batch["labels"], self.options.label_smoothing
        labelled = labelled_in(batch)

        def sums(s: Tensor, _: None, y: Tensor) -> dict[str, Tensor]:
            return {"labels": label_losses(s, y, smoothing).sum() / labelled}

        return over_positions(sums, student, teacher, labels)
