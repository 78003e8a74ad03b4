"""The self-instruct filter: a model says whether heads are worth stating, taught by judged examples, and its own
unanimous verdicts become examples of later prompts (arXiv:2306.10241 says that it is so; the rest is a reconstruction
with Self-Instruct, arXiv:2212.10560).

    examples   half valid, half invalid; of each half the most similar anchor, which people judged, and some drawn from
               the other members most similar to the head. Persons and negators, which heads share, do not count
    votes      as many as are asked for, each with examples drawn anew; a head is kept when more than half say valid
    pool       a unanimous verdict joins, if no member is a near duplicate; valid and invalid differ by at most one, and
               a surplus verdict waits for a partner. Anchors are never dropped, and the pool never grows past its limit

Heads are judged one after the other, or a few at a time, as each may teach the next: their order is part of the result.
It is drawn by the seed, so that the pool grows in all topics alike. Once the pool is full, or where it does not grow,
nothing depends on it, and the rest is asked about together.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdhub_tasks.language.prompting import filled

from kdhub.errors import DataError
from kdhub_knowledge.commonsense.near import Units
from kdhub_knowledge.commonsense.typed import TypedLanguage

Ask = Callable[[Sequence[str]], Sequence[str]]
"""Prompts -> replies."""
UNREADABLE = "-"


class Example(NamedTuple):
    head: str
    valid: bool


@dataclass
class Pool:
    """Judged heads.

    Args:
        anchors: by people; most: members at most, anchors included; limit: the least ROUGE-L of near duplicates.
        bare: what of a head is compared with another's when examples are drawn.

    Raises:
        DataError: anchors that are not balanced, of one verdict alone, or more than the pool may have.
    """

    anchors: Sequence[Example]
    most: int
    limit: float
    spaces: bool = False
    bare: Callable[[str], str] = str
    grown: list[Example] = field(default_factory=list)
    waiting: dict[bool, deque[str]] = field(default_factory=lambda: {True: deque(), False: deque()})

    def __post_init__(self) -> None:
        valid = self.count(True)
        if not 0 < valid < len(self.anchors) or abs(2 * valid - len(self.anchors)) > 1:
            raise DataError(
                f"anchors must be as many valid as invalid heads ({valid} valid, {len(self.anchors) - valid} invalid)",
                hint="typed.anchors of the language file; examples of one verdict teach to repeat it",
            )
        if len(self.anchors) > self.most:
            raise DataError(f"pool_max must be at least the {len(self.anchors)} anchors (pool_max={self.most})")
        self._units = Units(self.spaces)

    @property
    def members(self) -> list[Example]:
        return [*self.anchors, *self.grown]

    @property
    def full(self) -> bool:
        return len(self.members) >= self.most

    def count(self, valid: bool) -> int:
        return sum(member.valid == valid for member in self.members)

    def add(self, head: str, valid: bool) -> None:
        """Take in a unanimous verdict, now or when it has a partner."""
        self.waiting[valid].append(head)
        while not self.full and (wanted := [v for v, queue in self.waiting.items() if queue and self._short_of(v)]):
            new = Example(self.waiting[wanted[0]].popleft(), wanted[0])
            if all(self._units.rouge_l(new.head, member.head) < self.limit for member in self.members):
                self.grown.append(new)

    def _short_of(self, valid: bool) -> bool:
        return self.count(valid) <= self.count(not valid)

    @property
    def state(self) -> dict[str, Any]:
        """What grew, as JSON values."""
        return {"grown": [list(one) for one in self.grown], "waiting": [list(self.waiting[v]) for v in (True, False)]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.grown = [Example(*one) for one in state["grown"]]
        self.waiting = {valid: deque(heads) for valid, heads in zip((True, False), state["waiting"])}

    def shown(self, head: str, shots: int, draw: random.Random) -> list[Example]:
        """Examples for a head, in random order."""
        chosen, half = [], shots // 2
        bare = self.bare(head)
        near = sorted(self.members, key=lambda member: -self._units.rouge_l(self.bare(member.head), bare))
        for valid in (True, False):
            mine = [member for member in near if member.valid == valid and member.head != head]
            anchor = next((member for member in mine if member in self.anchors), None)
            others = [member for member in mine if member != anchor][:half]
            chosen += [*([anchor] if anchor else []), *draw.sample(others, min(half - 1, len(others)))]
        draw.shuffle(chosen)
        return chosen


@dataclass
class Filter:
    """The judge of heads of one polarity.

    Args:
        ask: the model; pool: its examples; grows: whether its verdicts become examples.
        votes: odd; shots: examples in a prompt, even; together: heads that are judged before the pool grows.
    """

    typed: TypedLanguage
    ask: Ask
    pool: Pool
    grows: bool = True
    votes: int = 3
    shots: int = 8
    together: int = 1
    seed: int = 0

    def __call__(self, heads: Sequence[str]) -> Iterator[str]:
        """The votes about each head, in order: 1 valid, 0 invalid, - a reply that cannot be read."""
        at = 0
        while at < len(heads):
            growing = self.grows and not self.pool.full
            some = heads[at : at + self.together] if growing else heads[at:]
            asked = [self.prompt(head, vote) for head in some for vote in range(self.votes)]
            marks = "".join({True: "1", False: "0", None: UNREADABLE}[self.typed.verdict(r)] for r in self.ask(asked))
            for n, head in enumerate(some):
                votes = marks[n * self.votes : (n + 1) * self.votes]
                if growing and votes in ("1" * self.votes, "0" * self.votes):
                    self.pool.add(head, accepted(votes))
                yield votes
            at += len(some)

    def prompt(self, head: str, vote: int) -> str:
        prompts, typed = self.typed.typed.prompts, self.typed.typed
        shown = self.pool.shown(head, self.shots, random.Random(f"{self.seed} {vote} {head}"))
        words = {True: typed.affirms[0], False: typed.denies[0]}
        examples = [filled(prompts["example"], head=one.head, answer=words[one.valid]) for one in shown]
        return filled(prompts["judge"], examples="\n\n".join(examples), head=head)


def accepted(votes: str) -> bool:
    """Whether more than half of all votes say valid; what cannot be read is no vote for it."""
    return 2 * votes.count("1") > len(votes)
