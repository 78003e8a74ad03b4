"""Scores of captions against one or more references, in words: lower case, without punctuation.

BLEU-4     n-grams clipped by the most any reference has, over all captions together; brevity by the nearest length
           (Papineni et al., 2002), not smoothed
ROUGE-L    of a caption the best over its references of precision and recall, F = (1 + b^2) P R / (R + b^2 P), b = 1.2
CIDEr-D    mean over n = 1 .. 4 of min(g_c, g_r) g_r / (|g_c| |g_r|) exp(-(l_c - l_r)^2 / (2 * 6^2)), times ten, mean
           over references and captions; g are tf-idf of n-grams, idf = log(captions / captions whose references have
           it) (arXiv:1411.5726). As in the common implementation, tf are counts.

METEOR needs WordNet or Java and is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import exp, log
from time import perf_counter
from typing import Any

import numpy as np

from kdhub.metric import Costed
from kdhub_vision.captioning.words import words_in

MOST = 4
BETA = 1.2
SIGMA = 6.0
REPEATS = 20
"""Passes that the time to a first word is the median of."""


@dataclass
class Captions:
    """What metrics read.

    Attributes:
        rows: numbers from 0 of the rows that were read. texts: captions; references: the true ones of each.
        embedding: (n, width), or None. error: mean squared error of reconstructed pixels, or None.
        measurement: snapshots of the first rows that were read, frames: what was reconstructed of them, or None.
    """

    rows: list[int]
    texts: list[str]
    references: list[list[str]]
    embedding: np.ndarray | None = None
    error: float | None = None
    measurement: np.ndarray | None = None
    frames: np.ndarray | None = None

    @property
    def examples(self) -> int:
        return len(self.texts)

    @property
    def words(self) -> list[tuple[list[str], list[list[str]]]]:
        return [(words_in(text), [words_in(r) for r in own]) for text, own in zip(self.texts, self.references)]


def grams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def exact_match(given: Captions) -> float:
    return float(np.mean([text in references for text, references in given.words]))


def word_accuracy(given: Captions) -> float:
    """Of the reference that fits best, over the longer of both."""
    scores = []
    for text, references in given.words:
        each = [np.mean([a == b for a, b in zip_longest(text, other)]) for other in references if other]
        scores.append(max(each, default=0.0))
    return float(np.mean(scores))


def bleu_4(given: Captions) -> float:
    matched, possible, length, nearest = [0] * MOST, [0] * MOST, 0, 0
    for text, references in given.words:
        length += len(text)
        nearest += min((abs(len(r) - len(text)), len(r)) for r in references)[1]
        for n in range(MOST):
            known = Counter()
            for reference in references:
                known |= grams(reference, n + 1)
            own = grams(text, n + 1)
            matched[n] += sum((own & known).values())
            possible[n] += sum(own.values())
    if not all(matched):
        return 0.0
    precision = sum(log(m / p) for m, p in zip(matched, possible)) / MOST
    return exp(precision + min(0.0, 1 - nearest / length))


def rouge_l(given: Captions) -> float:
    scores = []
    for text, references in given.words:
        common = [(common_length(text, r), len(r)) for r in references if r]
        precision = max((c / len(text) for c, _ in common), default=0.0) if text else 0.0
        recall = max((c / n for c, n in common), default=0.0)
        under = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / under if under else 0.0)
    return float(np.mean(scores))


def common_length(one: Sequence[str], two: Sequence[str]) -> int:
    """Words of the longest common subsequence."""
    row = [0] * (len(two) + 1)
    for word in one:
        before = 0
        for n, other in enumerate(two, 1):
            before, row[n] = row[n], before + 1 if word == other else max(row[n], row[n - 1])
    return row[-1]


def cider_d(given: Captions) -> float:
    pairs = given.words
    known: Counter = Counter()
    for _, references in pairs:
        known.update({gram for r in references for n in range(MOST) for gram in grams(r, n + 1)})
    many, scores = log(max(len(pairs), 1)), []

    def vector(words: Sequence[str], n: int) -> dict[tuple[str, ...], float]:
        return {gram: count * (many - log(max(1, known[gram]))) for gram, count in grams(words, n).items()}

    for text, references in pairs:
        each = []
        for reference in references:
            shrunk = exp(-((len(text) - len(reference)) ** 2) / (2 * SIGMA**2))
            of_n = [_similar(vector(text, n), vector(reference, n)) for n in range(1, MOST + 1)]
            each.append(10 * shrunk * sum(of_n) / MOST)
        scores.append(np.mean(each))
    return float(np.mean(scores))


def _similar(own: dict[Any, float], other: dict[Any, float]) -> float:
    under = (sum(v * v for v in own.values()) * sum(v * v for v in other.values())) ** 0.5
    return sum(min(v, other[g]) * other[g] for g, v in own.items() if g in other) / under if under else 0.0


def psnr(given: Captions) -> float | None:
    """10 log10(1 / mean squared error), of pixels in [0, 1]."""
    return None if given.error is None else float(-10 * np.log10(max(given.error, 1e-12)))


def embedding_cosine(given: Captions, teacher: Captions) -> float | None:
    mine, theirs = given.embedding, teacher.embedding
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return None
    under = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(np.mean((mine * theirs).sum(1) / np.maximum(under, 1e-12)))


def first_word(costed: Costed) -> float | None:
    """None for models that read no snapshot."""
    write = getattr(costed.model, "first_word", None)
    if costed.answer is None or write is None or not costed.model.reads_snapshots:
        return None
    times = []
    for _ in range(REPEATS + 3):
        began = perf_counter()
        write()
        times.append(perf_counter() - began)
    return 1000 * float(np.median(times[3:]))
