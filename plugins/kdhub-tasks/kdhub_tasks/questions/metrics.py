"""Metrics of extractive question answering."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from kdhub_tasks.classification.task import Predictions


@dataclass
class Answers(Predictions):
    """What metrics read: `Predictions` with two positions a row, and answers as text.

    Attributes:
        predicted: the model's answer to each question, "" for none.
        truths: the right answers to each; [""] where there is none.
    """

    predicted: list[str] = field(default_factory=list)
    truths: list[list[str]] = field(default_factory=list)

    @property
    def examples(self) -> int:
        return len(self.predicted)


def exact_match(out: Answers) -> float:
    """Share of questions with a right answer, compared as SQuAD does (`plain`)."""
    return float(np.mean([max(plain(a) == plain(b) for b in truths) for a, truths in zip(out.predicted, out.truths)]))


def answer_f1(out: Answers) -> float:
    """F1 of the words of an answer against the best matching right one, mean over questions (arXiv:1606.05250)."""
    return float(np.mean([max(word_f1(a, b) for b in truths) for a, truths in zip(out.predicted, out.truths)]))


def answer_agreement(out: Answers, teacher: Answers) -> float:
    """Share of questions to which student and teacher give the same answer."""
    return float(np.mean([a == b for a, b in zip(out.predicted, teacher.predicted)]))


def word_f1(given: str, truth: str) -> float:
    """F1 of two answers as bags of words; where one is empty, 1 if both are, else 0."""
    a, b = plain(given).split(), plain(truth).split()
    if not a or not b:
        return float(a == b)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b))


def plain(text: str) -> str:
    """Normalised as by SQuAD's script: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
