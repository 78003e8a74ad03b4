"""Metrics of instruction tuning (arXiv:2306.04751) beside those of `metrics`: overlap of words, and several tries."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import partial
from math import comb

from kdhub_lm.metrics import mean
from kdhub_lm.outputs import Outputs
from kdhub_lm.rouge import words
from kdhub_lm.verify import verified

ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def f1(out: Outputs) -> float | None:
    """Mean F1 of the words that answer and reference share."""
    if out.texts is None:
        return None
    return mean([overlap(a, b) for a, b in zip(out.texts.given, out.texts.references)])


def overlap(text: str, reference: str) -> float:
    """F1 of two bags of words, 0 to 1, as SQuAD has it: lower case, without punctuation and articles. Two texts without
    any word are alike."""
    a, b = (Counter(_plain(side).split()) for side in (text, reference))
    if not a or not b:
        return float(a == b)
    return 2 * (a & b).total() / (a.total() + b.total())


def pass_at(k: int, out: Outputs) -> float | None:
    """Mean over rows of the chance that one of k answers comes to the reference's final answer; None below k answers a
    row (`evaluation.options.samples`), or where only one was asked for."""
    if out.texts is None or out.texts.samples < max(2, k):
        return None
    right = [
        sum(verified(answer, reference) for answer in answers)
        for answers, reference in zip(out.texts.several, out.texts.references)
    ]
    return mean([passing(out.texts.samples, c, k) for c in right])


def passing(n: int, right: int, k: int) -> float:
    """The chance that one of k answers is right, by n of which so many are: 1 - C(n - c, k) / C(n, k), without bias
    (arXiv:2107.03374)."""
    return 1 - comb(n - right, k) / comb(n, k)


pass_at_1, pass_at_10 = partial(pass_at, 1), partial(pass_at, 10)


def unique_words(out: Outputs) -> float | None:
    """Different words of an answer. Judges like many: read it beside whatever they say."""
    return None if out.texts is None else mean([len(set(words(text))) for text in out.texts.given])


def _plain(text: str) -> str:
    return ARTICLES.sub(" ", text.lower().translate(str.maketrans("", "", string.punctuation)))
