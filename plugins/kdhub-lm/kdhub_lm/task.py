"""The task causal-lm: texts, each token from those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_logits.tasks import Predictions, TokenClassification

from kdhub.errors import CompatibilityError, DataError
from kdhub.task import Encoder, Example, Prepare, Signals, plain_rows
from kdhub_lm.preferences import of_groups
from kdhub_lm.rows import COLUMNS, Encoding, form_of

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data import Data
    from kdhub_lm.models import CausalLm


class CausalLanguage(TokenClassification):
    """Rows of `text`, or of `prompt` and `response`. A text's labels are its tokens but the first, a response's its
    tokens and the end; signals are those of the positions before them, so that nothing else counts in any loss.

    All arithmetic of classification holds for tokens as it does for rows: a mean over rows is here one over tokens.
    """

    name = "causal-lm"
    column = "text"
    target = ""  # a text is its own
    primary = {"texts": "perplexity", "responses": "perplexity", "rows": "exposure"}
    pipeline_tag = "text-generation"

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
        kept = {*COLUMNS[form], "sample"}
        return table.select_columns([name for name in table.column_names if name in kept])

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        return {}

    def agree(self, student: Any, teacher: Any) -> list[str]:
        """Both must have the same tokens.

        Raises:
            CompatibilityError: they have others; says how many they share.
        """
        if student is not None and teacher is not None and student.vocabulary != teacher.vocabulary:
            mine, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
            shared = sum(theirs.get(token) == i for token, i in mine.items())
            raise CompatibilityError(
                f"student and teacher have other tokens: {shared} of {len(mine)} and {len(theirs)} are the same",
                hint="start the student from the teacher's tokens (llama:, layers:)",
            )
        return []

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """See `rows`. Settings: max_length, tokens at most; private, a pattern that marks tokens; prompts, the tokens
        that an answer may have: then rows are prompts for the teacher, which may have other tokens than the student;
        groups, whether rows of preferences have all their responses.
        """
        prompts = settings.get("prompts")
        models = [model for model in ((teacher,) if prompts and teacher else (student, teacher)) if model is not None]
        if not prompts:
            self.agree(student, teacher)
        limits = [n for n in (*(model.max_length for model in models), settings.get("max_length")) if n]
        self._tokenizer = models[0].tokenizer
        groups = bool(settings.get("groups"))
        self._prepare = Encoding(self._tokenizer, min(limits, default=None), settings.get("private"), prompts, groups)
        return self._prepare

    def collate(self, examples: Sequence[Example], student: CausalLm) -> dict[str, torch.Tensor]:
        """As of words; a batch of groups is one of their sequences (see `preferences`)."""
        sequences = [sequence for e in examples for sequence in e.get("sequences", [e])]
        batch = super().collate(sequences, student)
        return batch | of_groups(examples) if "sequences" in examples[0] else batch

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return module(inputs)

    def load(self, folder: Path) -> CausalLm:
        from kdhub_lm import models

        return models.load(folder)

    def outputs(self, encode: Encoder, data: Data, split: str) -> Any:
        from kdhub_lm import canaries

        table = data.split(split)
        if "secret" in table.column_names:
            return canaries.measure(encode, table, self._tokenizer)
        table = self._columns(data, split)
        given = encode(table, "logits")["logits"]
        examples = self._prepare(plain_rows(table, range(len(table))))
        labels = np.array([i for e in examples for i in e["labels"]])
        logits = np.concatenate([np.asarray(row, np.float32) for row in given])
        unknown = any(e["cut"] or e["bytes"] is None for e in examples)
        whole = None if unknown else sum(e["bytes"] for e in examples)
        return Predictions(logits, labels, bytes=whole)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_lm import tiny

        return tiny.recipe(folder)


def perplexity(out: Predictions) -> float:
    """exp of the mean -log p of a token."""
    from kdhub_logits.metrics import nll

    return math.exp(nll(out))


def perplexity_ratio(out: Predictions, teacher: Predictions) -> float:
    """Perplexity over the teacher's, with the same tokens: how far a student lags on one kind of text."""
    from kdhub_logits.metrics import nll

    return math.exp(nll(out) - nll(teacher))


def bits_per_byte(out: Predictions) -> float | None:
    """-log2 p of all tokens over all bytes of the texts, comparable between tokenizers; None where a text was cut."""
    from kdhub_logits.metrics import nll

    return nll(out) * out.examples / math.log(2) / out.bytes if out.bytes else None
