"""The task causal-lm: next-token prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import DataError
from kdhub.findings import Finding, shared_tokens
from kdhub.rows import Example, Prepare, Signals, plain_rows
from kdhub.task import Encoder, Task, View
from kdhub_tasks.classification.tokens import TokenClassification
from kdhub_tasks.language import lora
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.groups import batch_of_groups
from kdhub_tasks.language.judge import Ratings
from kdhub_tasks.language.outputs import Outputs, require_same_tokens
from kdhub_tasks.language.rows import Encoding, form_of
from kdhub_tasks.language.spec import ANSWERED, COLUMNS, METRICS
from kdhub_tasks.language.teachers import LmTeacher

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext
    from kdhub_tasks.language.model import CausalLm


SURVEYED = 256
"""Training rows that a builder may look at."""


class CausalLanguage(TokenClassification):
    """Rows of `text`, of `prompt` and `response`, and others (see `rows`). A text's labels are its tokens but the
    first, a response's its tokens and the end; signals exist only at the positions from which these are predicted, so
    nothing else counts in any loss.

    All arithmetic of classification holds for tokens as it does for rows: a mean over rows is one over tokens here.
    """

    name = "causal-lm"
    column = "text"
    target = ""  # a text is its own
    primary = dict.fromkeys(("texts", *ANSWERED), "perplexity")
    pipeline_tag = "text-generation"
    Teacher = LmTeacher
    StudentOptions = lora.StudentOptions
    open = Task.open  # no model gets a fresh head

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        generate: int = Field(0, ge=0, description="rows to generate answers to, for metrics of texts; 0 for none")
        max_new_tokens: int = Field(128, ge=1, description="most tokens of an answer")
        temperature: float = Field(0.0, ge=0, description="sampling temperature; 0 takes the most probable token")
        samples: int = Field(1, ge=1, description="answers to each row, for pass@k; identical at temperature 0")
        seed: int = Field(0, ge=0, description="seed of sampling")
        judge: str | None = Field(
            None, description="a model that rates the answers from 1 to 10: openai:MODEL, path:FOLDER, hf:ORG/NAME"
        )

    # -- rows -------------------------------------------------------------------------------------------------

    def labelled(self, table: datasets.Dataset) -> bool:
        return True  # the next token is the label

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if (form := form_of(table.column_names)) is None:
            raise DataError(
                f"{data.name}, split {split!r}, needs the column 'text', or 'prompt' and 'response'; it has "
                f"{', '.join(table.column_names)}",
                hint="map its columns: columns: {text: THEIRS}, or {prompt: THEIRS, response: THEIRS}",
            )
        kept = {*COLUMNS[form], "sample", "loss_on"}
        return table.select_columns([name for name in table.column_names if name in kept])

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`rows`, the first of each, for builders that look at some (`depth-prune:`), and `tables`, all of them."""
        tables, rows = [self._columns(data, split) for data, split in parts], []
        for table in tables:
            rows += plain_rows(table, range(min(SURVEYED // len(parts), len(table))))
        return {"rows": rows, "tables": tables}

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """See `rows`. Settings: max_length, most tokens of a row; private, see `Encoding`; groups, whether rows of
        preferences have all their responses; prompts, the most tokens of an answer: then rows are prompts for the
        teacher, whose vocabulary may differ from the student's; prefix, how the answer begins (`Generation.prompting`);
        unlike, whether the teacher's vocabulary may differ, and rows are for the student alone (see `alignment`).

        Raises:
            CompatibilityError: student and teacher use different vocabularies; says how many tokens they share.
        """
        prompts = settings.get("prompts")
        pair = (
            (teacher,)
            if prompts and teacher
            else (student,)
            if settings.get("unlike") and student
            else (student, teacher)
        )
        models = [model for model in pair if model is not None]
        if len(models) > 1 and student.vocabulary != teacher.vocabulary and not prompts:
            require_same_tokens(student.tokenizer, teacher.tokenizer)
        limits = [n for n in (*(model.max_length for model in models), settings.get("max_length")) if n]
        return Encoding(
            models[0].tokenizer,
            min(limits, default=None),
            settings.get("private"),
            prompts,
            bool(settings.get("groups")),
            teacher.tokenizer if student is not None and teacher is not None and not prompts else None,
            settings.get("prefix", ""),
        )

    def collate(self, examples: Sequence[Example], student: CausalLm) -> dict[str, torch.Tensor]:
        """As of words; a batch of groups is one of their sequences (see `groups`)."""
        sequences = [sequence for e in examples for sequence in e.get("sequences", [e])]
        batch = super().collate(sequences, student)
        if "gold" in examples[0]:  # right answers, which stay texts
            batch["gold"] = [e["gold"] for e in examples]
        return batch | batch_of_groups(examples) if "sequences" in examples[0] else batch

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> CausalLm:
        from kdhub_tasks.language import model

        return model.load(folder, name=name)

    def configure(self, student: CausalLm, context: BuildContext) -> CausalLm:
        """Packing, and an adapter."""
        if context.options.get("packing"):
            from kdhub_tasks.language.packing import require_packing

            require_packing(student.module.model)
            student.packing = True
        if adapter := context.options.get("lora"):
            lora.attach(student, lora.Lora(**adapter), context.seed)
        return student

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return module(inputs)

    def mismatch(self, student: Any, teacher: Any) -> str:
        """None: its classes are tokens, and a teacher's texts suit a student with any vocabulary (see `preparer`)."""
        return ""

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Vocabularies, and chat templates."""
        if not thorough or getattr(teacher, "tokenizer", None) is None:
            return []
        found = [shared_tokens(student.tokenizer, teacher.tokenizer)]
        mine, theirs = (getattr(model.tokenizer, "chat_template", None) for model in (student, teacher))
        if mine != theirs:
            do = "both must render conversations and prompts alike; fine for plain texts"
            found.append(Finding("note", "chat template", "student and teacher have different ones", do))
        return found

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Outputs:
        return Outputs(encode, self._columns(data, split))

    def views(self, outputs: Outputs, options: Any, subject: str) -> Iterator[View]:
        """With `generate` also of generated answers, with `judge` also of a judge's ratings of them."""
        yield View()
        if not options.generate or not outputs.answerable:
            return
        how = Generation(max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed)
        written = outputs.writing(how, options.generate, options.samples)
        yield View(apply=lambda _: written, metrics=tuple(m.name for m in METRICS if m.forms == ANSWERED))
        if options.judge is not None:
            yield View({"judge": options.judge}, lambda _: Ratings(written.texts, options.judge), ("judge",))

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        return plain_rows(table, range(min(n, len(table))))

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.language import tiny

        return tiny.recipe(folder)
