"""Self-data distillation: a pruned model learns from answers that the unpruned one rewrote (arXiv:2410.09982).

    y~ = f(c, x, y)                     the unpruned model answers x in its own words, guided by the reference y
    y' = y~ if it passes, else y        conditional selection
    L  = -1/n sum_t log q(y'_t | c, x, y'_<t)      of the answer alone; the reference is not in the prompt

Answers in the model's own words disturb its knowledge less than other people's. A rewrite passes if it is complete,
does not reveal how it was prompted, and has the reference's final answer where there is one. For open answers, in which
a number may occur by chance, `selection: phrase` skips the last condition.

The teacher is the model before pruning, the student `depth-prune:N` of it; two students trained on different rows can
be merged (`merge`). `self-data:DATA` is the rewriting alone, as a data set for any method.

Departures: truncated rewrites are replaced too; the adapter that the paper tunes is an option of the student (`lora`),
its sampling temperature one of `answers`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.language.generation import Generation, answers, digest_of
from kdhub_tasks.language.rows import answer_of, form_of, prompt_of, with_answer
from kdhub_tasks.language.verify import extract
from kdhub_tasks.methods.supervised import Supervised
from pydantic import Field, ValidationError, field_validator

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow
from kdhub.errors import DataError, UsageError
from kdhub.method import MethodOptions
from kdhub.rows import Rows

if TYPE_CHECKING:
    import datasets

    from kdhub.method import RunContext
    from kdhub.student import Student
    from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

TEMPLATE = "{prompt}\n(The answer: {response}) In your own words:\n"
PHRASES = ("reference answer", "my response", "your response", "your own response", "now it's your turn")
"""What reveals a rewrite anywhere in it, and `START` at its beginning (public code of arXiv:2402.13669)."""
START = "your turn"
BATCH = 1024
"""Rows rewritten at once; no more of a data set is held in memory."""
VERSION = 1


class Rewriting(MethodOptions):
    """How answers are rewritten, and which rewrites are used."""

    answers: Generation = Field(
        default_factory=lambda: Generation(max_new_tokens=256), description="settings of generation; greedy by default"
    )
    template: str = Field(TEMPLATE, description="what the model is sent, with {prompt} and {response}, the reference")
    selection: Literal["none", "phrase", "answer_match"] = Field(
        "answer_match", description="rewrites to drop: none, revealing ones (phrase), or also wrong ones (answer_match)"
    )

    @field_validator("template")
    @classmethod
    def _whole(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError(f"the template must contain {{prompt}} (template={template[:60]!r})")
        return template


def passes(rewrite: str, reference: str, selection: str = "answer_match") -> bool:
    """Whether a rewrite replaces the reference."""
    if selection == "none" or not rewrite.strip():
        return bool(rewrite.strip())
    text = rewrite.casefold()
    if any(phrase in text for phrase in PHRASES) or text.lstrip().startswith(START):
        return False
    wanted = extract(reference) if selection == "answer_match" else None
    return wanted is None or extract(rewrite) == wanted


def rewrites(
    teacher: Teacher,
    table: datasets.Dataset,
    how: Rewriting,
    name: str,
    signals: Callable[[Rows, str], Any] | None = None,
) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a table (`prompt` and `response`, or `messages`) with the teacher's answers where they pass, `kept`,
    whether they do, and `origin`, "teacher" or "reference".

    Args:
        signals: see `kdhub_tasks.language.generation.answers`.

    Raises:
        DataError: the rows have no answers.
    """
    import datasets

    form = form_of(table.column_names)
    if form not in ("responses", "conversations"):
        raise DataError(
            f"self-data rewrites answers and needs the columns prompt and response, or messages; {name} has "
            f"{', '.join(table.column_names)}"
        )
    taken = 0
    for start in range(0, len(table), BATCH):
        rows = table.select(range(start, min(start + BATCH, len(table)))).to_list()
        prompts = datasets.Dataset.from_list([_prompt(row, how.template) for row in rows])
        given = answers(teacher, prompts, how.answers, signals, faults=True)
        for number, (row, reply) in enumerate(zip(rows, given), start + 1):
            if reply.fault:
                yield BadRow(reply.fault, number)
                continue
            text, ended = reply
            kept = ended and passes(text, answer_of(row) or "", how.selection)
            taken += kept
            yield {
                **(with_answer(row, text) if kept else row),
                "kept": kept,
                "origin": "teacher" if kept else "reference",
            }
    logger.info("self-data: %d of %d answers of %s were rewritten", taken, len(table), name)


def _prompt(row: Mapping[str, Any], template: str) -> dict[str, Any]:
    *before, last = prompt_of(row)
    parts = {"{prompt}": last["content"], "{response}": answer_of(row) or ""}
    text = re.sub(r"\{prompt\}|\{response\}", lambda found: parts[found[0]], template)
    return {"messages": [*before, {**last, "content": text}]} if row.get("messages") else {"prompt": text}


def self_data(
    argument: str, *, teacher: Any = None, options: Mapping[str, Any] | None = None, **rewriting: Any
) -> Data:
    """`self-data:DATA`: each split of another data set, its answers rewritten by a teacher.

    Args:
        argument: the data set, as `--data` takes it.
        teacher: a text, or a mapping as in a recipe: `{source: recipe:NAME}` is the student of another one.
        options: of the other data set.
        rewriting: `answers`, `template`, `selection`; see `Rewriting`.
    """
    from kdhub.recipes.recipe import explain

    if teacher is None:
        raise UsageError(
            f"self-data:{argument} needs a model that rewrites (teacher=None)",
            hint="options: {teacher: {source: recipe:NAME}}",
        )
    try:
        how = Rewriting(**rewriting)
    except ValidationError as error:
        raise UsageError(f"self-data:{argument}: {'; '.join(explain(error, Rewriting))}") from error
    data, model = open_data(argument, options=options), open_teacher(teacher, "causal-lm")
    key = {"teacher": dict(model.identity_of(how.answers.kind)), "how": how.model_dump(), "version": VERSION}
    made = lambda split: rewrites(model, data.split(split), how, f"{argument} {split}")  # noqa: E731
    return data.remade(f"self-data:{argument}", made, data.splits, key=key)


class SelfData(Supervised):
    """Supervised training on answers that the teacher rewrote."""

    class Options(Supervised.Options, Rewriting):
        epochs: float = Field(3.0, gt=0, description="passes over the rewritten answers")

    options: Options
    tiny_recipe = {
        "student": {"source": "depth-prune:1", "protect_first": 0},
        "data": {"train": [{"source": "synthetic:sums", "options": {"rows": 24}}]},
        "options": {"answers": {"max_new_tokens": 4}, "selection": "none"},
    }

    def rows(self, run: RunContext) -> Rows:
        from kdhub.signals.store import row_key

        o = self.options
        how = Rewriting(answers=o.answers, template=o.template, selection=o.selection)
        table = run.rows("train", prompts=o.answers.max_new_tokens).table
        key = {
            "of": digest_of(table),
            "teacher": dict(run.teacher.identity_of(how.answers.kind)), "how": how.model_dump(), "version": VERSION,
        }  # fmt: skip
        made = {"train": lambda: rewrites(run.teacher, table, how, "the training rows", run.signals)}
        name = "answers to the training rows, rewritten"
        data = Data.from_rows(name, made, key=key, ref=f"made:{name}")
        rewritten = data.with_options(on_bad_rows=run.teacher.on_bad_rows).split("train")
        self.kept = f"{sum(rewritten['kept'])} of {len(rewritten)} answers were rewritten by the unpruned model"
        prepare = run.task.preparer(run.student, None, **self.settings())
        return Rows.build(rewritten, prepare, row_key).readable("rewritten rows").learnable()

    def needs(self, teacher: Any) -> tuple[str, ...]:
        return ()  # its answers are in the rows

    def evaluate(self, run: RunContext, student: Student) -> Any:
        report = super().evaluate(run, student)
        if kept := getattr(self, "kept", None):
            report.notes.append(f"self-data: {kept}; the others are the references")
        return report
