"""Scores of pairs. A sentence's pairs are a set, of normalised texts. Strict: both sides are equal; lenient: both sides
share a word (letters or digits). Precision is the share of predicted pairs with a match, recall that of right ones,
over all sentences together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdhub_knowledge.relations.spans import normal, reached

Pair = tuple[str, str]
Match = Callable[[Pair, Pair], bool]


@dataclass
class Relations:
    """What metrics read.

    Attributes:
        texts: the sentences; gold, predicted: the pairs of each, as the sentence has them.
    """

    texts: list[str]
    gold: list[list[Pair]]
    predicted: list[list[Pair]]

    @property
    def examples(self) -> int:
        return len(self.texts)

    @cached_property
    def sets(self) -> list[tuple[set[Pair], set[Pair]]]:
        """Right and predicted pairs of each sentence, normalised."""
        return [(normalised(gold), normalised(given)) for gold, given in zip(self.gold, self.predicted)]


def normalised(pairs: Collection[Pair]) -> set[Pair]:
    return {(normal(head), normal(tail)) for head, tail in pairs}


def same(a: Pair, b: Pair) -> bool:
    return a == b


def overlap(a: Pair, b: Pair) -> bool:
    """Whether both sides share a word; signs do not count."""
    return all({w for w in x.split() if w.isalnum()} & {w for w in y.split() if w.isalnum()} for x, y in zip(a, b))


def matched(gold: set[Pair], predicted: set[Pair], match: Match) -> tuple[int, int]:
    """How many predicted pairs have a match among the right ones, and how many right ones among the predicted."""
    return (
        sum(any(match(g, p) for g in gold) for p in predicted),
        sum(any(match(g, p) for p in predicted) for g in gold),
    )


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def scores(out: Relations, match: Match) -> tuple[float, float, float]:
    """Precision, recall and F1 over all sentences; 1 where there is nothing to find and nothing was found."""
    counts = [matched(gold, given, match) for gold, given in out.sets]
    right, found = (sum(column) for column in zip(*counts)) if counts else (0, 0)
    given, gold = sum(len(p) for _, p in out.sets), sum(len(g) for g, _ in out.sets)
    if not given and not gold:
        return 1.0, 1.0, 1.0
    precision, recall = right / given if given else 0.0, found / gold if gold else 0.0
    return precision, recall, f1(precision, recall)


def strict_precision(out: Relations) -> float:
    return scores(out, same)[0]


def strict_recall(out: Relations) -> float:
    return scores(out, same)[1]


def strict_f1(out: Relations) -> float:
    return scores(out, same)[2]


def lenient_precision(out: Relations) -> float:
    return scores(out, overlap)[0]


def lenient_recall(out: Relations) -> float:
    return scores(out, overlap)[1]


def lenient_f1(out: Relations) -> float:
    return scores(out, overlap)[2]


def sentence_f1(out: Relations) -> float:
    """Mean over sentences of strict F1; 1 where a sentence has no pair and none was found."""
    return float(np.mean([scores(Relations([""], [[*g]], [[*p]]), same)[2] for g, p in zip(out.gold, out.predicted)]))


def unreachable(out: Relations) -> float:
    """Right pairs that no tagging of one run of words a pair can give (`spans.reached`), of all; a share."""
    gold = [normalised(pairs) for pairs in out.gold]
    lost = sum(len(pairs - reached(text, given)) for text, given, pairs in zip(out.texts, out.gold, gold))
    return lost / max(1, sum(map(len, gold)))
