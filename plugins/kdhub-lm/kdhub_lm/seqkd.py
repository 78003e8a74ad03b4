"""Sequence-level distillation: the labels alone, where the teacher has written them (arXiv:1606.07947).

    L = -1/n sum_t log q(y_t | prompt, y_<t),   y what the teacher answers to the prompt

The teacher needs to give text only, and may have other tokens than the student: it may stand behind an API. What it
wrote is stored, so each prompt is asked once. To learn from several answers, or from answers that passed a test, make
them a data set (`labelling:DATA`) and train by `supervised`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub_logits.supervised import Supervised
from pydantic import Field

from kdhub.task import Rows
from kdhub_lm.generation import Generation, answered

if TYPE_CHECKING:
    from kdhub.method import Run


class SeqKd(Supervised):
    class Options(Supervised.Options):
        epochs: float = Field(3.0, gt=0, description="passes over the answers")
        answers: Generation = Field(default_factory=Generation, description="how the teacher is asked")

    options: Options
    tiny_recipe = {"options": {"answers": {"max_new_tokens": 4}}}

    def rows(self, run: Run) -> Rows:
        return answered_rows(run, self.options.answers, self.settings())

    def needs(self, teacher: Any) -> tuple[str, ...]:
        return ()  # what the teacher wrote stands in the rows


def answered_rows(run: Run, how: Generation, settings: Mapping[str, Any]) -> Rows:
    """The training rows of a run with what its teacher answers as responses.

    Args:
        settings: how rows are prepared (`ObjectiveMethod.settings`).
    """
    from kdhub.signals import row_key

    prompts = run.rows("train", prompts=how.max_new_tokens)
    data = answered(run.teacher, prompts.table, how, name="the training rows", signals=run.signals)
    prepare = run.task.preparer(run.student, None, **settings)
    return Rows.build(data.split("train"), prepare, row_key).learnable()
