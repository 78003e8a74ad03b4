"""DPO: the better response more probable, the worse one less, as against the start (arXiv:2305.18290).

    L = -log sigmoid(beta ((log pi(y+) - log ref(y+)) - (log pi(y-) - log ref(y-))))      eq. 7, mean over pairs

with log-probabilities of whole responses, and ref the student as it was before training. A teacher has chosen y+ and
y- beforehand: rows are preferences, or rankings, of which all pairs count that one of the two is better in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress, TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.method import Run
    from kdhub.task import Rows, Signals


class PreferenceOptions(TrainingOptions):
    lr: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")


class Preferences(ObjectiveMethod):
    """What methods share that learn from groups of responses."""

    options: PreferenceOptions
    tiny_recipe = {
        "data": {"train": [{"source": "preferences:arithmetic:add,larger", "limit": 24}]},
    }

    def rows(self, run: Run) -> Rows:
        from kdhub_lm.preferences import groups_of

        return groups_of(run, self)


class Dpo(Preferences):
    class Options(PreferenceOptions):
        beta: float = Field(0.1, gt=0, description="how hard the start holds the student; less lets it go further")

    options: Options

    def adapt(self, student: Any, teacher: Any) -> None:
        from kdhub_lm.reference import Reference

        self.reference = Reference(student)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_lm.log_probs import label_log_probs, per_row
        from kdhub_lm.preferences import pairs

        labels, counts = batch["labels"], batch["counts"]
        now = per_row(label_log_probs(student, labels), counts)
        start = per_row(label_log_probs(self.reference(batch), labels), counts)
        better, worse = pairs(batch["groups"], batch["scores"])
        return {"preference": preference_loss(now, start, better, worse, self.options.beta)}


def preference_loss(now: Tensor, start: Tensor, better: Tensor, worse: Tensor, beta: float = 0.1) -> Tensor:
    """Mean over pairs, ln 2 where the student has moved neither response; 0 without pairs.

    Args:
        now, start: log-probabilities of responses by student and start, nats, (responses,).
        better, worse: which two make each pair, (pairs,).
    """
    from torch.nn.functional import logsigmoid

    moved = now - start.detach()
    if not len(better):
        return 0 * moved.sum()
    return -logsigmoid(beta * (moved[better] - moved[worse])).mean()
