"""Extractive question answering: which words of a text answer a question, by its first and its last token.

    question, context  and  answers    {"text": [...], "answer_start": [...]} as SQuAD has it, or a list of texts

A row is two choices, of the first token and of the last, each out of all tokens that the models can read. So it is
classification with two positions a row, and every method of classes distils it. What may not answer (the question,
padding) has a logit so low that no temperature brings it back; the first token, which begins every text, stands for
"it does not say". An answer that is cut off with the end of its text is such a one too.
"""

from __future__ import annotations

import re
import string
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_logits.tasks import Classification, Predictions
from pydantic import BaseModel, ConfigDict

from kdhub.errors import DataError
from kdhub.findings import Finding, shared_tokens
from kdhub.task import Encoder, Example, Prepare, View

if TYPE_CHECKING:
    import datasets
    import torch

    from kdhub.data import Data
    from kdhub_text.reader import Reader

COLUMNS = ("question", "context", "answers")
LONGEST = 30
"""Tokens of an answer, at most."""
ENDS = ("start", "end")
"""What is chosen; the names of a model's two outputs."""


@dataclass
class Answers(Predictions):
    """What metrics read: as `Predictions`, two positions a row, and

    Attributes:
        told: the answer to each question, "" for none.
        truths: the right ones of each; [""] where there is none.
    """

    told: list[str] = field(default_factory=list)
    truths: list[list[str]] = field(default_factory=list)

    @property
    def examples(self) -> int:
        return len(self.told)


class QuestionAnswering(Classification):
    """Rows have `question`, `context` and `answers` (in training null for a row without a label, empty where the text
    does not say). Signals and labels are those of first and last token, row after row."""

    name = "question-answering"
    column = "context"
    target = "answers"
    primary = {"rows": "answer-f1"}
    pipeline_tag = "question-answering"

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Reader:
        from kdhub_text.reader import Reader

        return Reader.with_head(*how)

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
        """Other tokens, or room for more or fewer: positions of one say nothing of those of the other."""
        if student.vocabulary != teacher.vocabulary:
            return "student and teacher have other tokens, so the places of their answers are not the same"
        if len(student.classes) != len(teacher.classes):
            return f"the student reads {len(student.classes)} tokens, the teacher {len(teacher.classes)}"
        return ""

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        why = self.mismatch(student, teacher)
        found = [Finding("note", "places", why, "start the student from this teacher")] if why else []
        if thorough and (given := getattr(teacher, "model", None)):
            found += filter(None, [shared_tokens(student.tokenizer, given.tokenizer)])
        return found

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens of question and text together at most, beside the model's own limit."""
        model, limit = student or teacher, settings.get("max_length")
        self._known(student, teacher)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            asked = [(row["question"], row["context"]) for row in rows]
            return [
                {
                    **read,
                    "asked": one,
                    "labels": place(one[1], row.get("answers"), read["spans"]),
                    "content": "\x1f".join(one).encode(),
                }
                for row, one, read in zip(rows, asked, model.encode_questions(asked, limit))
            ]

        return prepare

    def collate(self, examples: Sequence[Example], student: Reader) -> dict[str, torch.Tensor]:
        import torch

        labels = torch.tensor([label for e in examples for label in e["labels"]])
        keys = torch.tensor([zlib.crc32(e["content"]) for e in examples])
        counts = torch.full((len(examples),), len(ENDS))
        return {**student.collate(examples), "labels": labels, "counts": counts, "keys": keys}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """Also `tokens`, all but padding."""
        return {**super().counts(batch), "tokens": int(batch["attention_mask"].sum())}

    def load(self, folder: Path) -> Reader:
        from kdhub_text.reader import Reader

        return Reader.load(folder)

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Answers:
        table = self._columns(data, split)
        if "answers" not in table.column_names:
            raise DataError(f"{data.name}, split {split!r}, has no column 'answers' to score against")
        given, rows = encode(table, "logits")["logits"], table.to_list()
        told, truths, labels = [], [], []
        for number, (logits, row, example) in enumerate(zip(given, rows, encode.prepare(rows))):
            if row["answers"] is None:
                raise DataError(f"{data.name}, split {split!r}: row {number + 1} has no answers to score against")
            told.append(answer(row["context"], logits, example["spans"]))
            truths.append([text for text, _ in known(row["context"], row["answers"])] or [""])
            labels += example["labels"]
        whole = np.concatenate([np.asarray(logits, np.float32) for logits in given])
        return Answers(whole, np.asarray(labels), self.classes, told=told, truths=truths)

    def views(self, outputs: Answers, options: Any, subject: str) -> Iterator[View]:
        yield View()

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        return table.select(range(min(n, len(table)))).to_list()

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_text import tiny

        return tiny.question_recipe(folder)


def known(context: str, answers: Any) -> list[tuple[str, int]]:
    """The right answers of a row, and where in the text each begins.

    Raises:
        DataError: an answer does not stand there.
    """
    if isinstance(answers, Mapping):
        texts, starts = answers["text"], answers.get("answer_start") or [None] * len(answers["text"])
    else:
        texts = [answers] if isinstance(answers, str) else list(answers)
        starts = [None] * len(texts)
    found = []
    for text, start in zip(texts, starts):
        at = context.find(text) if start is None else start
        if not text or at < 0 or context[at : at + len(text)] != text:
            where = "stand in the text" if start is None else f"begin at character {start} of the text"
            raise DataError(
                f"the answer {text!r} does not {where} {context[:60]!r}...",
                hint="answers are words of their text, and answer_start counts its characters from 0",
            )
        found.append((text, at))
    return found


def place(context: str, answers: Any, spans: Sequence[tuple[int, int]]) -> list[int]:
    """First and last token of a row's first answer: 0, 0 where the text does not say, or no longer; -1, -1 for none."""
    if answers is None:
        return [-1, -1]
    for text, start in known(context, answers)[:1]:
        inside = [i for i, (a, b) in enumerate(spans) if a < start + len(text) and b > start]
        if inside and spans[inside[-1]][1] >= start + len(text):
            return [inside[0], inside[-1]]
    return [0, 0]


def best_span(logits: np.ndarray, spans: Sequence[tuple[int, int]], longest: int = LONGEST) -> tuple[int, int]:
    """First and last token of the likeliest answer, (0, 0) for none: the largest sum of both logits with the first not
    behind the last, and no more than so many tokens.

    Args:
        logits: (2, positions); spans: of each token where it stands in the text, (0, 0) for those of other things.
    """
    n = len(spans)
    own = np.array([b > a for a, b in spans])
    start, end = (np.where(own, x[:n], -np.inf) for x in logits)
    best, where = logits[0, 0] + logits[1, 0], (0, 0)
    for more in range(min(longest, n)):
        sums = start[: n - more] + end[more:]
        at = int(sums.argmax())
        if sums[at] > best:
            best, where = sums[at], (at, at + more)
    return where


def answer(context: str, logits: np.ndarray, spans: Sequence[tuple[int, int]]) -> str:
    """The words of the text that `best_span` chooses, "" for none."""
    first, last = best_span(np.asarray(logits, np.float64), spans)
    return context[spans[first][0] : spans[last][1]] if first else ""


# -- metrics --------------------------------------------------------------------------------------------------


def exact_match(out: Answers) -> float:
    """Share of questions with a right answer, letter by letter as SQuAD compares them (`plain`)."""
    return float(np.mean([max(plain(a) == plain(b) for b in truths) for a, truths in zip(out.told, out.truths)]))


def answer_f1(out: Answers) -> float:
    """F1 of the words of an answer, against the truth it has most of, mean over questions (arXiv:1606.05250)."""
    return float(np.mean([max(word_f1(a, b) for b in truths) for a, truths in zip(out.told, out.truths)]))


def answer_agreement(out: Answers, teacher: Answers) -> float:
    """Share of questions that student and teacher answer with the same words."""
    return float(np.mean([a == b for a, b in zip(out.told, teacher.told)]))


def word_f1(given: str, truth: str) -> float:
    """F1 of two answers as bags of words; where one has none, whether both have none."""
    a, b = plain(given).split(), plain(truth).split()
    if not a or not b:
        return float(a == b)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b))


def plain(text: str) -> str:
    """What SQuAD's script compares: lower case, without punctuation and articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
