"""Where a pair is in its sentence. All is counted in words on one grid, whatever tokens a model reads, so that
alignment, tagging and scoring cut "azithromycin-induced" alike: into three words. A span is two characters, first and
behind the last."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from kdhub_tasks.classes import listed

from kdhub.errors import DataError

WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s]")
"""A Chinese character, letters and digits, or one other sign."""

Span = tuple[int, int]


def words(text: str) -> list[Span]:
    """The words of a text."""
    return [found.span() for found in WORD.finditer(text)]


def normal(text: str) -> str:
    """The words in lower case with single spaces between them: what is compared."""
    return " ".join(WORD.findall(text.lower()))


def pairs_of(value: Any) -> list[tuple[str, str]]:
    """The pairs of a row: lists of two texts, objects with `head` and `tail`, or such as JSON in a text.

    Raises:
        DataError: a pair that is not two texts.
    """
    value = [] if value is None or value == "" else listed(value)
    if not isinstance(value, list):
        raise DataError(f"pairs must be a list of [head, tail], not {str(value)[:60]!r}")
    found = []
    for one in value:
        one = [one.get("head"), one.get("tail")] if isinstance(one, dict) else listed(one)
        if not isinstance(one, list | tuple) or len(one) != 2 or not all(isinstance(t, str) and t.strip() for t in one):
            raise DataError(f"a pair must be two texts, [head, tail], not {str(one)[:60]!r}")
        found.append((one[0], one[1]))
    return found


def occurrences(text: str, phrase: str) -> list[Span]:
    """Where a phrase is in a text, as whole words, whatever their case and the space between them."""
    parts = [re.escape(word) for word in WORD.findall(phrase)]
    if not parts:
        return []
    edges = [r"(?<!\w)" if re.match(r"[^\W\u3400-\u9fff]", phrase.strip()) else ""]
    edges.append(r"(?!\w)" if re.search(r"[^\W\u3400-\u9fff]$", phrase.strip()) else "")
    return [found.span() for found in re.finditer(edges[0] + r"\s*".join(parts) + edges[1], text, re.IGNORECASE)]


def mentions(text: str, phrases: Iterable[str]) -> list[Span]:
    """Where any of some phrases is in a text; of overlapping ones the longest."""
    return longest(span for phrase in phrases for span in occurrences(text, phrase))


def longest(spans: Iterable[Span]) -> list[Span]:
    """Spans in their order; of those that overlap the longest, of equally long ones the first."""
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda s: (s[0] - s[1], s)):
        if all(span[1] <= a or b <= span[0] for a, b in kept):
            kept.append(span)
    return sorted(kept)


def align(text: str, pairs: Iterable[tuple[str, str]]) -> tuple[list[tuple[Span, Span]], list[tuple[str, str]]]:
    """Pairs of texts as spans of a sentence: every place of the tail, each with the nearest place of the head.

    Returns:
        those that were found, in their order, each once; and the pairs that are not in the sentence.
    """
    found: set[tuple[Span, Span]] = set()
    lost = []
    for head, tail in pairs:
        heads, tails = occurrences(text, head), occurrences(text, tail)
        if not heads or not tails:
            lost.append((head, tail))
        for span in tails if heads else ():
            found.add((min(heads, key=lambda h: (max(h[0] - span[1], span[0] - h[1]), h)), span))
    return sorted(found), lost


def runs(text: str, positive: Collection[int]) -> list[Span]:
    """The spans of words with these numbers; neighbours are of one span."""
    grid, made = words(text), []
    for n in sorted(positive):
        if n - 1 in positive:
            made[-1] = (made[-1][0], grid[n][1])
        else:
            made.append(grid[n])
    return made


def covered(grid: Sequence[Span], spans: Iterable[Span]) -> list[int]:
    """The numbers of the words that overlap any of some spans."""
    spans = list(spans)
    return [n for n, (a, b) in enumerate(grid) if any(a < end and begin < b for begin, end in spans)]


def reached(text: str, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """What is left of pairs when they are tagged and read again: pairs that are not in their sentence are lost, and so
    are tails of one head that overlap or touch a longer one. Normalised."""
    found, _ = align(text, pairs)
    grid, kept = words(text), set()
    for head in {h for h, _ in found}:
        for begin, end in runs(text, covered(grid, longest(t for h, t in found if h == head))):
            kept.add((normal(text[head[0] : head[1]]), normal(text[begin:end])))
    return kept


def as_array(found: Iterable[tuple[Span, Span]]) -> np.ndarray:
    """(pairs, 4) int32: first and last of the head, first and last of the tail, as the signal `pairs` has them."""
    return np.array([(*head, *tail) for head, tail in found], np.int32).reshape(-1, 4)


def as_texts(text: str, pairs: np.ndarray) -> list[tuple[str, str]]:
    """The texts of pairs in a signal."""
    return [(text[a:b], text[c:d]) for a, b, c, d in np.asarray(pairs, int).reshape(-1, 4)]
