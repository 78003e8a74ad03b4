"""Words of a text, and texts that are nearly the same by them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

_ALONE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Characters of scripts without spaces, each a word of its own."""
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case; of a text without any the text itself."""
    return _WORD.findall(text.lower()) or [text.strip()]


class Near:
    """Texts so far, and whether another one is nearly one of them: shared words over all words of both (Jaccard) above
    a threshold. Exact, without comparing all: of two sets that share so much, the first n - ceil(t n) + 1 words in any
    common order have one in common (prefix filtering, Bayardo et al. 2007). Long words come first: they are rare."""

    def __init__(self, threshold: float, texts: Iterable[str] = ()):
        self.threshold = Fraction(str(threshold))
        self.sets: list[frozenset[str]] = []
        self.having: dict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        held = frozenset(words(text))
        for word in self._first(held):
            self.having[word].append(len(self.sets))
        self.sets.append(held)

    def __contains__(self, text: str) -> bool:
        held = frozenset(words(text))
        candidates = {n for word in self._first(held) for n in self.having.get(word, ())}
        return any(self._alike(held, self.sets[n]) for n in candidates)

    def _alike(self, a: frozenset[str], b: frozenset[str]) -> bool:
        both = len(a & b)
        return both > self.threshold * (len(a) + len(b) - both) or a == b

    def _first(self, held: frozenset[str]) -> list[str]:
        ordered = sorted(held, key=lambda word: (-len(word), word))
        return ordered[: len(ordered) - math.ceil(self.threshold * len(ordered)) + 1]
