"""DPO: preference pairs, relative to the starting model (arXiv:2305.18290).

    L = -log sigmoid(beta ((log pi(y+) - log ref(y+)) - (log pi(y-) - log ref(y-))))      eq. 7, mean over pairs

with log-probabilities of whole responses, and ref the student before training. Rows are preferences, in which a teacher
has chosen y+ over y-, or rankings, which give all their pairs with different scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress, TrainingOptions, step_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals


class PreferenceOptions(TrainingOptions):
    lr: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")


class PreferenceMethod(ObjectiveMethod):
    """Base of methods that learn from groups of responses."""

    options: PreferenceOptions
    tiny_recipe = {
        "data": {"train": [{"source": "preferences:arithmetic:add,larger", "limit": 24}]},
    }

    def rows(self, run: RunContext) -> Rows:
        return groups_of(run, self)


class Dpo(PreferenceMethod):
    class Options(PreferenceOptions):
        beta: float = Field(0.1, gt=0, description="how strongly the student is kept close to its start")

    options: Options

    def adapt(self, student: Any, teacher: Any) -> None:
        from kdhub_lm.reference import Reference

        self.reference = Reference(student)

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        """`pairs` of a better and a worse response."""
        from kdhub_tasks.language.groups import pairs

        return {"pairs": len(pairs(batch["groups"], batch["scores"])[0])}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.language.groups import pairs

        from kdhub_lm.log_probs import label_log_probs, per_row

        labels, counts = batch["labels"], batch["counts"]
        now = per_row(label_log_probs(student, labels), counts)
        start = per_row(label_log_probs(self.reference(batch), labels), counts)
        better, worse = pairs(batch["groups"], batch["scores"])
        many = step_count(batch, "pairs")
        return {"preference": preference_loss(now, start, better, worse, self.options.beta, many)}


def groups_of(run: RunContext, method: ObjectiveMethod) -> Rows:
    """The training rows as groups of responses.

    Raises:
        DataError: they are not preferences.
    """
    from kdhub_tasks.language.groups import FORMS
    from kdhub_tasks.language.rows import form_of
    from kdhub_tasks.language.spec import COLUMNS

    from kdhub.errors import DataError

    rows = run.rows("train", **method.settings(), groups=True)
    columns = rows.table.column_names
    if form_of(columns) not in FORMS:
        needed = " or ".join(", ".join(COLUMNS[form]) for form in FORMS)
        raise DataError(
            f"{method.spec.name} learns from preferences and needs the columns {needed}; the rows have "
            f"{', '.join(columns)}",
            hint="preferences:DATA makes preferences from prompts: a model answers, a teacher or a verifier scores",
        )
    return rows


def preference_loss(
    now: Tensor, start: Tensor, better: Tensor, worse: Tensor, beta: float = 0.1, many: float | None = None
) -> Tensor:
    """Mean over pairs, ln 2 where the student has changed neither response; 0 without pairs.

    Args:
        now, start: log-probabilities of responses by student and start, nats, (responses,).
        better, worse: indices of the responses of each pair, (pairs,).
        many: pairs that the mean is over; those here if None.
    """
    from torch.nn.functional import logsigmoid

    moved = now - start.detach()
    return -logsigmoid(beta * (moved[better] - moved[worse])).sum() / (many or max(1, len(better)))
