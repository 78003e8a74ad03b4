"""Aging evolution and random search over a space (regularised evolution, arXiv:1802.01548).

Both propose candidates that fit, one after the other, and are told the score of each; neither keeps a state beyond the
generator that it is given, so the same scores lead the same way again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kdhub_search.spaces.space import Candidate


class Searchable(Protocol):
    """What is searched: `kdhub_search.spaces.space.Space`, or anything with these two."""

    def sample(self, rng: np.random.Generator) -> Candidate: ...
    def mutate(self, candidate: Candidate, rng: np.random.Generator) -> Candidate: ...


@dataclass(frozen=True)
class Evaluated:
    """A candidate and its score, the higher the better."""

    candidate: Candidate
    score: float


def evolve(
    space: Searchable,
    score: Callable[[Candidate], float],
    rng: np.random.Generator,
    *,
    population: int,
    sample: int,
    evaluations: int,
) -> list[Evaluated]:
    """Random candidates until the population is full; then each time the best of `sample` of them has a child with one
    choice made otherwise, which joins, and the oldest leaves.

    Returns:
        All that were evaluated, in their order.
    """
    history: list[Evaluated] = []
    alive: deque[Evaluated] = deque(maxlen=population)
    while len(history) < evaluations:
        if len(alive) < population:
            candidate = space.sample(rng)
        else:
            drawn = [alive[i] for i in rng.choice(population, min(sample, population), replace=False)]
            candidate = space.mutate(max(drawn, key=lambda one: one.score).candidate, rng)
        history.append(Evaluated(candidate, score(candidate)))
        alive.append(history[-1])
    return history


def at_random(
    space: Searchable, score: Callable[[Candidate], float], rng: np.random.Generator, evaluations: int
) -> list[Evaluated]:
    """As many random candidates."""
    drawn = [space.sample(rng) for _ in range(evaluations)]
    return [Evaluated(candidate, score(candidate)) for candidate in drawn]


def best(history: list[Evaluated], count: int = 1) -> list[Evaluated]:
    """The best different candidates, the first evaluated of equals."""
    different = {repr(one.candidate): one for one in reversed(history)}
    return sorted(reversed(different.values()), key=lambda one: -one.score)[:count]
