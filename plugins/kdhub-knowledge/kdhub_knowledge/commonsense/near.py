"""Texts that are not near duplicates of each other, at scale: a text stays if its ROUGE-L with every text kept before
is below a limit (Self-Instruct, arXiv:2212.10560), exactly as if all pairs were compared.

Over characters in languages without spaces, over words in others (`units`). F of ROUGE-L is 2 L / (m + n) for texts of
m and n units with a longest common subsequence of L: what rapidfuzz calls the normalised similarity of Indel.

Few pairs are compared. F >= limit needs L >= limit (m + n) / 2, and as L <= n that is L >= limit m / (2 - limit). So
two near duplicates share at least so many units; then their prefixes, the m - ceil(limit m / (2 - limit)) + 1 rarest
units of each by one order of all units, share one too (prefix filter, Chaudhuri et al., ICDE 2006). An index from units
to the texts with them in their prefixes finds all candidates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from kdhub_tasks.language.rouge import words

_ROUNDING = 1e-9
"""Two fractions of whole numbers below 10,000 and a limit with 4 decimals differ by more, or not at all."""
_FIRST = 0x10000
"""Code point of the first word, where each word is written as one character."""


class Units:
    """Writes texts as strings of one character a unit.

    Args:
        spaces: whether the language separates words by spaces; then words are units.
    """

    def __init__(self, spaces: bool):
        self.spaces = spaces
        self._codes: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if not self.spaces:
            return text
        known = self._codes
        return "".join(known.setdefault(word, chr(_FIRST + len(known))) for word in words(text))

    def rouge_l(self, one: str, other: str) -> float:
        """F, from 0 to 1; 0 where a text has no units."""
        from rapidfuzz.distance import Indel

        one, other = self(one), self(other)
        return Indel.normalized_similarity(one, other) if one and other else 0.0


class Novel:
    """Texts of which no two are near duplicates.

    Args:
        limit: the least ROUGE-L of near duplicates, above 0 to 1; spaces: see `Units`.
    """

    def __init__(self, limit: float, spaces: bool = False, known: Iterable[str] = ()):
        self.limit, self.units = limit, Units(spaces)
        self._kept: list[str] = []
        self._index: dict[str, list[int]] = {}
        self._rank: dict[str, int] = {}
        self._next = 64
        for text in known:
            self.add(text)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, text: str) -> bool:
        """Keep a text unless it is a near duplicate of a kept one; whether it was kept."""
        code = self.units(text)
        prefix = self._prefix(code)
        if self._known(code, prefix):
            return False
        self._kept.append(code)
        for unit in prefix:
            self._index.setdefault(unit, []).append(len(self._kept) - 1)
        if len(self._kept) == self._next:
            self._sort()
        return True

    def _known(self, code: str, prefix: list[str]) -> bool:
        from rapidfuzz.distance import Indel
        from rapidfuzz.process import extractOne

        found: set[int] = set()
        for unit in prefix:
            found.update(self._index.get(unit, ()))
        texts = map(self._kept.__getitem__, found)
        cutoff = self.limit - _ROUNDING
        return extractOne(code, texts, scorer=Indel.normalized_similarity, score_cutoff=cutoff) is not None

    def _prefix(self, code: str) -> list[str]:
        """The rarest units of a text, the second of a kind apart from the first."""
        needed = max(1, math.ceil(self.limit * len(code) / (2 - self.limit) - _ROUNDING))
        seen: Counter[str] = Counter()
        units = []
        for unit in code:
            seen[unit] += 1
            units.append(unit * seen[unit])
        rank = self._rank
        for unit in units:  # one that was never seen is the rarest from now on
            rank.setdefault(unit, -len(rank))
        return sorted(units, key=rank.__getitem__)[: len(code) - needed + 1]

    def _sort(self) -> None:
        """Order units by how many kept texts have them; again whenever there are twice as many."""
        self._next *= 2
        counts: Counter[str] = Counter(unit for code in self._kept for unit in set(code))
        self._rank = {
            unit: n for n, (unit, _) in enumerate(sorted(counts.items(), key=lambda item: (item[1], item[0])))
        }
        self._index = {}
        for n, code in enumerate(self._kept):
            for unit in self._prefix(code):
                self._index.setdefault(unit, []).append(n)
