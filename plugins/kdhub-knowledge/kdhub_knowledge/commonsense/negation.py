"""Whether a head is negated: a negator has scope over its main predicate.

A rule by lists, as there is no parser to rely on; the lists are part of a language file (`negation`):

    words       negators
    not         words that contain a negator and do not negate, in every script: 不锈钢, 非常, 特別
    adverbials  may stand between the subject and its negator: 从来, 昨天
    clauses     verbs that take a clause, whose negation is not theirs: 后悔没去 affirms 后悔
    attributive what ends an attribute: in 买了不新鲜的菜 the negator is within one

Questions by repetition (去不去) do not negate. In languages with spaces all of these are whole words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field


class Negation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    words: tuple[str, ...] = Field(min_length=1)
    never: tuple[str, ...] = Field((), alias="not")
    adverbials: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    attributive: str = ""
    subjects: tuple[str, ...] = ()
    spaces: bool = False

    def holds(self, text: str) -> bool:
        """Whether a text is negated."""
        return any(self._over_the_predicate(text, found) for found in self._negators(text))

    def without(self, text: str) -> str:
        """A text without its negators."""
        for found in reversed(self._negators(text)):
            text = text[: found.start()] + text[found.end() :]
        return text

    def _negators(self, text: str) -> list[re.Match[str]]:
        covered = [found.span() for found in self._stops.finditer(text)] if self._stops else []
        return [
            found
            for found in self._words.finditer(text)
            if not any(start < found.end() and found.start() < end for start, end in covered)
        ]

    def _over_the_predicate(self, text: str, found: re.Match[str]) -> bool:
        before, after = text[: found.start()], text[found.end() :]
        if before and not self.spaces and before[-1] == text[found.start() + 1 : found.start() + 2]:
            return False  # a question: 去不去, 有没有
        if self._clauses and self._clauses.search(before):
            return False
        if not self.attributive or self.attributive not in after[1:-1]:
            return True
        return not self._between(before)  # right behind the subject it is over the predicate, whatever follows

    def _between(self, before: str) -> str:
        """What stands between the subject and a negator, without adverbials."""
        for subject in self.subjects:
            if before.startswith(subject):
                before = before[len(subject) :]
                break
        return (self._adverbials.sub("", before) if self._adverbials else before).strip()

    @cached_property
    def _words(self) -> re.Pattern[str]:
        return self._any(self.words)

    @cached_property
    def _stops(self) -> re.Pattern[str] | None:
        return self._any(self.never) if self.never else None

    @cached_property
    def _clauses(self) -> re.Pattern[str] | None:
        return self._any(self.clauses) if self.clauses else None

    @cached_property
    def _adverbials(self) -> re.Pattern[str] | None:
        return self._any(self.adverbials) if self.adverbials else None

    def _any(self, words: Sequence[str]) -> re.Pattern[str]:
        found = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        return re.compile(rf"(?<!\w)(?:{found})(?!\w)" if self.spaces else found, re.I)
