"""Extractive question answering: the words of a text that answer a question, given by their first and last token.

    question, context  and  answers    {"text": [...], "answer_start": [...]} as in SQuAD, or a list of texts

A row is two choices, of the first token and of the last, among all tokens that the models can read. So it is
classification with two positions a row, and every method for classes can distil it. Positions that cannot answer (the
question, padding) have a logit so low that no temperature gives them probability. The first token, which begins every
text, stands for "no answer", and so it does for an answer that was cut off with the end of its text.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from kdhub.errors import DataError
from kdhub.fields import Field as StoredField
from kdhub.findings import Finding, shared_tokens
from kdhub.rows import Example, Prepare
from kdhub.task import Encoder, View
from kdhub_tasks.classification.task import Classification
from kdhub_tasks.questions.metrics import Answers
from kdhub_tasks.questions.spans import ENDS, answer, known, place
from kdhub_tasks.teachers import ModelTeacher

if TYPE_CHECKING:
    import datasets
    import torch

    from kdhub.data.dataset import Data
    from kdhub_tasks.questions.model import Reader

COLUMNS = ("question", "context", "answers")


class ReaderTeacher(ModelTeacher):
    """A saved reader."""

    kind = "reader"

    @property
    def vocabulary(self) -> str:
        return self.facts.get("vocabulary") or self.model.vocabulary

    def layout(self, kind: str) -> dict[str, Any]:
        """Logits in float16 whatever the store's type: some stand for "never", and int8 codes on that scale would leave
        nothing of the others."""
        given = super().layout(kind)
        return {kind: StoredField(kind, "float16", given[kind][1:], ragged=True)} if kind == "logits" else given


class QuestionAnswering(Classification):
    """Rows have `question`, `context` and `answers`: in training null for a row without a label, empty where the text
    has no answer. Signals and labels are those of first and last token, row after row."""

    name = "question-answering"
    column = "context"
    target = "answers"
    primary = {"rows": "answer-f1"}
    pipeline_tag = "question-answering"
    Teacher = ReaderTeacher

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")

    # -- rows -------------------------------------------------------------------------------------------------

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if missing := [c for c in COLUMNS[:2] if c not in table.column_names]:
            raise DataError(
                f"{data.name}, split {split!r}, has no column {missing[0]!r}, only {', '.join(table.column_names)}",
                hint="map it: columns: {question: THEIRS, context: THEIRS, answers: THEIRS}",
            )
        return table.select_columns([c for c in COLUMNS if c in table.column_names])

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        return {"classes": list(ENDS)}

    def mismatch(self, student: Any, teacher: Any) -> str:
        """Positions of one are not those of the other where they have different tokens, or room for more or fewer."""
        if student.vocabulary != teacher.vocabulary:
            return "student and teacher use different vocabularies, so the positions of their answers do not match"
        if len(student.classes) != len(teacher.classes):
            return f"the student reads {len(student.classes)} tokens, the teacher {len(teacher.classes)}"
        return ""

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        why = self.mismatch(student, teacher)
        found = [Finding("note", "positions", why, "start the student from this teacher")] if why else []
        if thorough and (given := getattr(teacher, "model", None)):
            found += filter(None, [shared_tokens(student.tokenizer, given.tokenizer)])
        return found

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens at most of question and text together, besides the model's own limit."""
        model, limit = student or teacher.reads, settings.get("max_length")
        self._known(student, teacher)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            texts = [(row["question"], row["context"]) for row in rows]
            return [
                {
                    **read,
                    "texts": both,
                    "labels": place(both[1], row.get("answers"), read["spans"]),
                    "content": "\x1f".join(both).encode(),
                }
                for row, both, read in zip(rows, texts, model.encode_questions(texts, limit))
            ]

        return prepare

    def collate(self, examples: Sequence[Example], student: Reader) -> dict[str, torch.Tensor]:
        import torch

        labels = torch.tensor([label for e in examples for label in e["labels"]])
        keys = torch.tensor([zlib.crc32(e["content"]) for e in examples])
        counts = torch.full((len(examples),), len(ENDS))
        return {**student.collate(examples), "labels": labels, "counts": counts, "keys": keys}

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> Reader:
        from kdhub_tasks.questions.model import Reader

        return Reader.load(Path(folder), name=name)

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Reader:
        from kdhub_tasks.questions.model import Reader

        return Reader.with_head(*how)

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Answers:
        table = self._columns(data, split)
        if "answers" not in table.column_names:
            raise DataError(f"{data.name}, split {split!r}, has no column 'answers' to score against")
        given, rows = encode(table, "logits")["logits"], table.to_list()
        predicted, truths, labels = [], [], []
        for number, (logits, row, example) in enumerate(zip(given, rows, encode.prepare(rows))):
            if row["answers"] is None:
                raise DataError(f"{data.name}, split {split!r}: row {number + 1} has no answers to score against")
            predicted.append(answer(row["context"], logits, example["spans"]))
            truths.append([text for text, _ in known(row["context"], row["answers"])] or [""])
            labels += example["labels"]
        whole = np.concatenate([np.asarray(logits, np.float32) for logits in given])
        return Answers(whole, np.asarray(labels), self.classes, predicted=predicted, truths=truths)

    def views(self, outputs: Answers, options: Any, subject: str) -> Iterator[View]:
        yield View()

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        return table.select(range(min(n, len(table)))).to_list()

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.questions import tiny

        return tiny.recipe(folder)
