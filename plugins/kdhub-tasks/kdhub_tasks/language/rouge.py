"""ROUGE-L: the longest common subsequence of words of two texts (Lin 2004, aclanthology W04-1013).

    F = 2 P R / (P + R),   P = LCS / words of the text,   R = LCS / words of the reference

Words are lower-case runs of letters and digits, without stemming; in scripts without spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) each character is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSPACED = (
    "\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u104f\u1780-\u17d3\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"(?:(?=[{_UNSPACED}])[^\W_])|(?:(?![{_UNSPACED}])[^\W_])+")


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, all positions of `a` at once as the bits of one number (Hyyro 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    free = full
    for word in b:
        hit = free & places.get(word, 0)
        free = ((free + hit) | (free - hit)) & full
    return len(a) - free.bit_count()


def rouge_l(text: Sequence[str], reference: Sequence[str]) -> float:
    """F of two lists of words, from 0 to 1; 0 where one is empty."""
    # 2 LCS / (m + n) is the same as 2 P R / (P + R)
    return 2 * common(text, reference) / (len(text) + len(reference)) if text and reference else 0.0


class NovelTexts:
    """Texts that are not too similar to each other (Self-Instruct, arXiv:2212.10560, keeps a text whose ROUGE-L to
    every kept one is below 0.7)."""

    def __init__(self, limit: float):
        self.limit = limit
        self._kept: list[tuple[list[str], frozenset[str]]] = []

    def add(self, text: str) -> bool:
        """Keep a text if its ROUGE-L to every kept one is below the limit; whether it was kept."""
        mine = words(text)
        kinds = frozenset(mine)
        for other, theirs in self._kept:
            # A common subsequence is not longer than the shorter text, and empty if they share no word.
            most = min(len(mine), len(other)) if kinds & theirs else 0
            if 2 * most >= self.limit * (len(mine) + len(other)) and rouge_l(mine, other) >= self.limit:
                return False
        self._kept.append((mine, kinds))
        return True
