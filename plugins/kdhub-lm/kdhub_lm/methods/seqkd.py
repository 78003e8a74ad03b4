"""Sequence-level distillation: the teacher's answers as labels (arXiv:1606.07947).

    L = -1/n sum_t log q(y_t | prompt, y_<t),   y the teacher's answer to the prompt

The teacher only needs to give text, and its vocabulary may differ from the student's: it may be behind an API. Answers
are stored, so each prompt is sent once. To learn from several answers, or from filtered ones, make them a data set
(`labelling:DATA`) and train by `supervised`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub_tasks.language.generation import Generation, answered
from kdhub_tasks.methods.supervised import Supervised
from pydantic import Field

from kdhub.rows import Rows

if TYPE_CHECKING:
    from kdhub.method import RunContext


class SeqKd(Supervised):
    class Options(Supervised.Options):
        epochs: float = Field(3.0, gt=0, description="passes over the answers")
        answers: Generation = Field(default_factory=Generation, description="settings of the teacher's generation")

    options: Options
    tiny_recipe = {"options": {"answers": {"max_new_tokens": 4}}}

    def rows(self, run: RunContext) -> Rows:
        return answered_rows(run, self.options.answers, self.settings())

    def needs(self, teacher: Any) -> tuple[str, ...]:
        return ()  # its answers are in the rows


def answered_rows(run: RunContext, how: Generation, settings: Mapping[str, Any]) -> Rows:
    """The training rows of a run with its teacher's answers as responses.

    Args:
        settings: how rows are prepared (`ObjectiveMethod.settings`).
    """
    from kdhub.signals.store import row_key

    prompts = run.rows("train", prompts=how.max_new_tokens)
    data = answered(run.teacher, prompts.table, how, name="the training rows", signals=run.signals)
    prepare = run.task.preparer(run.student, None, **settings)
    return Rows.build(data.split("train"), prepare, row_key).readable("answered rows").learnable()
