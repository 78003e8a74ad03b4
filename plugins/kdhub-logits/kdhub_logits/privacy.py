"""Where a text is likely to hold something private: patterns, a tagger, what only a teacher that saw it can know."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdhub.errors import CompatibilityError

if TYPE_CHECKING:
    from kdhub.teacher import Teacher

Spans = Sequence[tuple[int, int]]
"""Begin and end of each token in its text."""
Scorer = Callable[[Sequence[str], Sequence[Spans]], list[list[float]]]
"""How likely each token of some texts is private, from 0 to 1."""

PATTERN = (
    r"\d+"  # numbers: codes, phones, cards, dates
    r"|[\w.+-]+@[\w-]+\.[\w.]+"  # e-mail addresses
    r"|\b(?=\w*\d)(?=\w*[A-Za-z])\w{6,}\b"  # identifiers of letters and digits
)
"""What the scorer `pattern` looks for. Names have no pattern: see the scorer `memorisation`."""


WORDS = 100
"""Words that a tagger is shown at once."""


def by_pattern(pattern: str) -> Scorer:
    """See `marked`."""
    return lambda texts, spans: [marked(text, own, pattern) for text, own in zip(texts, spans)]


def by_tagger(tagger: Teacher) -> Scorer:
    """1 - p(O) of the word that a token overlaps, the most of several; words are what stands between spaces.

    Args:
        tagger: a classifier of words with the class O for what is nothing.

    Raises:
        CompatibilityError: it has no such class.
    """
    from kdhub import open_task

    if "O" not in tagger.classes:
        raise CompatibilityError(
            f"a tagger calls what is not private O; {tagger.argument} has the classes {', '.join(tagger.classes[:6])}"
        )
    prepare = open_task("token-classification").preparer(None, tagger)
    outside = tagger.classes.index("O")

    def score(texts: Sequence[str], spans: Sequence[Spans]) -> list[list[float]]:
        characters = [np.zeros(len(text)) for text in texts]
        pieces = []  # text, and where its next words are
        for n, text in enumerate(texts):
            places = [match.span() for match in re.finditer(r"\S+", text)]
            pieces += [(n, places[at : at + WORDS]) for at in range(0, len(places), WORDS)]
        rows = [{"tokens": [texts[n][a:b] for a, b in places]} for n, places in pieces]
        examples = prepare(rows)
        given = tagger.signals(examples, "logits")["logits"] if rows else ()
        for (n, places), example, logits in zip(pieces, examples, given):
            p = np.exp(logits - logits.max(1, keepdims=True))
            for i, rho in zip(example["kept"], 1 - p[:, outside] / p.sum(1)):  # a word may be nothing to the tagger
                characters[n][slice(*places[i])] = rho
        return [[float(own[a:b].max(initial=0.0)) for a, b in of] for own, of in zip(characters, spans)]

    return score


def any_of(scorers: Sequence[Scorer]) -> Scorer:
    """1 - the product of what each of them leaves."""

    def score(texts: Sequence[str], spans: Sequence[Spans]) -> list[list[float]]:
        each = [scorer(texts, spans) for scorer in scorers]
        return [[1 - float(np.prod([1 - rho for rho in of_token])) for of_token in zip(*rows)] for rows in zip(*each)]

    return score


def marked(text: str, spans: Spans, pattern: str) -> list[float]:
    """1 for each token that overlaps a match of the pattern, or stands beside one that does; else 0."""
    found = [match.span() for match in re.finditer(pattern, text)]
    inside = [any(a < end and b > start for start, end in found) for a, b in spans]
    wide = [any(inside[max(0, i - 1) : i + 2]) for i in range(len(inside))]
    return [float(hit) for hit in wide]


class Ngrams:
    """A language model of token counts, for what a model could know without having seen the private texts.

    p_k(y | last k tokens) = (count + weight p_{k-1}) / (count of the context + weight), from p_{-1} = 1 / vocabulary.

    Args:
        texts: token ids of public texts.
        vocabulary: how many tokens there are.
        order: tokens of the longest context and the next one.
    """

    def __init__(self, texts: Sequence[Sequence[int]], vocabulary: int, order: int = 5, weight: float = 2.0):
        self.vocabulary, self.order, self.weight = vocabulary, order, weight
        self._counts: list[tuple[np.ndarray, np.ndarray]] = []
        self._contexts: list[tuple[np.ndarray, np.ndarray]] = []
        for k in range(order):
            both = [self._codes(np.asarray(ids, np.uint64), k) for ids in ([], *texts)]
            context, code = (np.concatenate(part) for part in zip(*both))
            self._counts.append(np.unique(code, return_counts=True))
            self._contexts.append(np.unique(context, return_counts=True))

    def _codes(self, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """One number for the k tokens before each token that has so many, and one with the token itself."""
        base, many = np.uint64(2 * self.vocabulary + 1), max(0, len(ids) - k)
        context = np.zeros(many, np.uint64)
        with np.errstate(over="ignore"):  # beyond 64 bits two contexts may share a number, rarely
            for i in range(k):
                context = context * base + ids[i : many + i] + np.uint64(1)
            return context, context * base + ids[k:] + np.uint64(1)

    def log_probabilities(self, ids: Sequence[int]) -> np.ndarray:
        """log p of each token from those before it, as far as the order reaches; (tokens,)."""
        x = np.asarray(ids, np.uint64)
        p = np.full(len(x), 1.0 / self.vocabulary)
        for k in range(self.order):
            if len(x) <= k:
                break
            context, code = self._codes(x, k)
            seen, of_context = _look(self._counts[k], code), _look(self._contexts[k], context)
            p[k:] = (seen + self.weight * p[k:]) / (of_context + self.weight)
        return np.log(p)


def _look(table: tuple[np.ndarray, np.ndarray], codes: np.ndarray) -> np.ndarray:
    known, counts = table
    if not len(known):
        return np.zeros(len(codes))
    at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[at] == codes, counts[at], 0).astype(float)
