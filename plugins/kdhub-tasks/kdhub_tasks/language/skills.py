"""Metrics of instruction tuning (arXiv:2306.04751) besides those of `metrics`: word overlap, and several attempts."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import partial
from math import comb

from kdhub_tasks.language.metrics import mean
from kdhub_tasks.language.outputs import Outputs
from kdhub_tasks.language.rouge import words
from kdhub_tasks.language.verify import verified

ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def f1(out: Outputs) -> float | None:
    """Mean F1 of the words of answer and reference."""
    if out.texts is None:
        return None
    return mean([overlap(a, b) for a, b in zip(out.texts.answers, out.texts.references)])


def overlap(text: str, reference: str) -> float:
    """F1 of two bags of words, 0 to 1, as in SQuAD: lower case, without punctuation and articles. Two texts without any
    word agree."""
    a, b = (Counter(_plain(side).split()) for side in (text, reference))
    if not a or not b:
        return float(a == b)
    return 2 * (a & b).total() / (a.total() + b.total())


def pass_at(k: int, out: Outputs) -> float | None:
    """Mean over rows of the chance that one of k answers has the reference's final answer; None with fewer than k
    answers a row (`evaluation.options.samples`), or with only one."""
    if out.texts is None or out.texts.samples < max(2, k):
        return None
    right = [
        sum(verified(answer, reference) for answer in answers)
        for answers, reference in zip(out.texts.all_answers, out.texts.references)
    ]
    return mean([passing(out.texts.samples, c, k) for c in right])


def passing(n: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k answers is right, from n answers of which c = `right` are:
    1 - C(n - c, k) / C(n, k) (arXiv:2107.03374)."""
    return 1 - comb(n - right, k) / comb(n, k)


pass_at_1, pass_at_10 = partial(pass_at, 1), partial(pass_at, 10)


def unique_words(out: Outputs) -> float | None:
    """Distinct words of an answer. Judges prefer many, so read ratings together with it."""
    return None if out.texts is None else mean([len(set(words(text))) for text in out.texts.answers])


def _plain(text: str) -> str:
    return ARTICLES.sub(" ", text.lower().translate(str.maketrans("", "", string.punctuation)))
