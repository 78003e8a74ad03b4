"""The task causal-lm: texts, each token from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub_logits.tasks import TokenClassification
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import DataError
from kdhub.findings import Finding, shared_tokens
from kdhub.task import Encoder, Example, Prepare, Signals, View, plain_rows
from kdhub_lm.generation import Generation
from kdhub_lm.judge import Judged
from kdhub_lm.outputs import Outputs, require_same_tokens
from kdhub_lm.plugin import ANSWERED, kdhub_metrics
from kdhub_lm.preferences import of_groups
from kdhub_lm.rows import COLUMNS, Encoding, form_of

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data import Data
    from kdhub_lm.models import CausalLm


SURVEYED = 256
"""Training rows that a builder may look at."""


class CausalLanguage(TokenClassification):
    """Rows of `text`, or of `prompt` and `response`. A text's labels are its tokens but the first, a response's its
    tokens and the end; signals are those of the positions before them, so that nothing else counts in any loss.

    All arithmetic of classification holds for tokens as it does for rows: a mean over rows is here one over tokens.
    """

    name = "causal-lm"
    column = "text"
    target = ""  # a text is its own
    primary = {**dict.fromkeys(("texts", *ANSWERED), "perplexity"), "rows": "exposure"}
    pipeline_tag = "text-generation"

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        generate: int = Field(0, ge=0, description="rows that are answered, for metrics of texts; 0 is none")
        max_new_tokens: int = Field(128, ge=1, description="tokens of an answer, at most")
        temperature: float = Field(0.0, ge=0, description="of sampling; 0 takes the most probable token")
        samples: int = Field(1, ge=1, description="answers to each row, for pass@k; of temperature 0 all are one")
        seed: int = Field(0, ge=0, description="of sampling")
        judge: str | None = Field(
            None, description="a model that rates the answers from 1 to 10: openai:MODEL, path:FOLDER, hf:ORG/NAME"
        )

    def labelled(self, table: datasets.Dataset) -> bool:
        return True  # the next token is the label

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if (form := form_of(table.column_names)) is None:
            raise DataError(
                f"{data.name}, split {split!r}, has no column 'text', nor 'prompt' and 'response', only "
                f"{', '.join(table.column_names)}",
                hint="map them: columns: {text: THEIRS}, or {prompt: THEIRS, response: THEIRS}",
            )
        kept = {*COLUMNS[form], "sample", "loss_on"}
        return table.select_columns([name for name in table.column_names if name in kept])

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """The first rows of each, for builders that look at some (`depth-prune:`)."""
        rows: list[dict[str, Any]] = []
        for data, split in parts:
            table = self._columns(data, split)
            rows += plain_rows(table, range(min(SURVEYED // len(parts), len(table))))
        return {"rows": rows}

    def mismatch(self, student: Any, teacher: Any) -> str:
        """Nothing here: its classes are tokens, and texts say something to a student with others (see `agree`)."""
        return ""

    def agree(self, student: Any, teacher: Any) -> list[str]:
        """Both must have the same tokens.

        Raises:
            CompatibilityError: they have others; says how many they share.
        """
        if student is not None and teacher is not None and student.vocabulary != teacher.vocabulary:
            require_same_tokens(student.tokenizer, teacher.tokenizer)
        return []

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Tokens, and how conversations are written out."""
        if not thorough or getattr(teacher, "tokenizer", None) is None:
            return []
        found = [shared_tokens(student.tokenizer, teacher.tokenizer)]
        mine, theirs = (getattr(model.tokenizer, "chat_template", None) for model in (student, teacher))
        if mine != theirs:
            do = "where rows are conversations or prompts, both must write them out alike"
            found.append(Finding("note", "chat template", "student and teacher have others", do))
        return found

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """See `rows`. Settings: max_length, tokens at most; private, a scorer of tokens; prompts, the tokens
        that an answer may have: then rows are prompts for the teacher, which may have other tokens than the student;
        groups, whether rows of preferences have all their responses.
        """
        prompts = settings.get("prompts")
        models = [model for model in ((teacher,) if prompts and teacher else (student, teacher)) if model is not None]
        if not prompts:
            self.agree(student, teacher)
        limits = [n for n in (*(model.max_length for model in models), settings.get("max_length")) if n]
        self._tokenizer = models[0].tokenizer
        self._prepare = Encoding(
            self._tokenizer,
            min(limits, default=None),
            settings.get("private"),
            prompts,
            bool(settings.get("groups")),
            models[1].tokenizer if len(models) > 1 else None,
        )
        return self._prepare

    def collate(self, examples: Sequence[Example], student: CausalLm) -> dict[str, torch.Tensor]:
        """As of words; a batch of groups is one of their sequences (see `preferences`)."""
        sequences = [sequence for e in examples for sequence in e.get("sequences", [e])]
        batch = super().collate(sequences, student)
        if "gold" in examples[0]:  # right answers, which stay texts
            batch["gold"] = [e["gold"] for e in examples]
        return batch | of_groups(examples) if "sequences" in examples[0] else batch

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return module(inputs)

    def load(self, folder: Path) -> CausalLm:
        from kdhub_lm import models

        return models.load(folder)

    def outputs(self, encode: Encoder, data: Data, split: str) -> Any:
        from kdhub_lm import canaries, harness

        table = data.split(split)
        if "secret" in table.column_names:
            return canaries.measure(encode, table)
        if "harness" in table.column_names:
            return harness.measure(encode, table)
        return Outputs(encode, self._columns(data, split))

    def views(self, outputs: Any, options: Any, subject: str) -> Iterator[View]:
        """With `generate`, texts are looked at too; with `judge`, a view of its own has a judge's word on them."""
        yield View()
        if not isinstance(outputs, Outputs) or not options.generate or not outputs.answerable:
            return
        how = Generation(max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed)
        written = outputs.writing(how, options.generate, options.samples)
        yield View(apply=lambda _: written, metrics=tuple(m.name for m in kdhub_metrics() if m.forms == ANSWERED))
        if options.judge is not None:
            yield View({"judge": options.judge}, lambda _: Judged(written.texts, options.judge), ("judge",))

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        return plain_rows(table, range(min(n, len(table))))

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_lm import tiny

        return tiny.recipe(folder)
