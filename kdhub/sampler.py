"""The sampler contract: which rows come next, in training (`Sampler`) or to have labelled (`Select`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UsageError


@dataclass(frozen=True)
class Probe:
    """Mean losses that a sampler asks for: of student and teacher, on `rows` rows of each data set's validation data,
    before training and `every` so many optimiser steps."""

    every: int
    rows: int


@dataclass(frozen=True)
class Seen:
    """What a student says of some rows.

    Attributes:
        probabilities: (rows, classes).
        features: (rows, width), or None where the student gives none.
        labels: (rows,), the classes that labelled rows have; None for those of a pool.
    """

    probabilities: np.ndarray
    features: np.ndarray | None = None
    labels: np.ndarray | None = None


Select = Callable[[Seen, Seen, int, np.random.Generator], np.ndarray]
"""A rule of active learning: `select(pool, labelled, n, generator)` gives `n` different positions in the pool, those to
have labelled next; all of it where `n` is at least its size. One generator, one choice."""


class Sampler(ABC):
    """Decides the order of rows. State that changes during training is checkpointed with the run.

    Args:
        lengths: (n,) int32, the cost of each row.
        batch: rows of one optimiser step over all ranks. The order must not depend on the number of ranks.
        seed: the run's seed.
        parts: the data sets that the rows are of, in their order: (source as in the recipe, rows).
        columns: the values of the columns that its spec asks for, one a row.
        options: what the recipe sets next to the source, checked against `Options`.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")

    def __init__(
        self,
        lengths: np.ndarray,
        batch: int,
        seed: int,
        *,
        parts: Sequence[tuple[str, int]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **options: Any,
    ):
        self.lengths, self.batch, self.seed = lengths, batch, seed
        self.columns = dict(columns or {})
        self.parts = list(parts or [("rows", len(lengths))])
        self.options = self.Options(**options)

    @abstractmethod
    def epoch(self, number: int) -> np.ndarray | Iterator[int]:
        """Row numbers of one epoch, in order; a whole number of batches.

        Depends on nothing but `number`, the state at its start and what `observe` is told meanwhile: a resumed run
        draws the epoch again up to where it was.
        """

    def probes(self, steps: int) -> Probe | None:
        """What it wants to be told beside loss terms, of a training of `steps` optimiser steps."""
        return None

    def observe(self, step: int, terms: Mapping[str, float]) -> None:
        """Told the loss terms after each logged step; samplers with state (domain mixtures) learn from them. What a
        probe found comes as `student:0`, `teacher:0`, ... by the place of the data set in `parts`.

        Rows are drawn about one batch ahead of training, so what is told here counts from the next batch but one.
        """

    @property
    def enough(self) -> bool:
        """Whether training may end before its last step, by what it was told."""
        return False

    def state(self) -> dict[str, Any]:
        """What it has learnt, as JSON values; samplers without state leave this as it is. Not the place in an epoch,
        which the engine keeps."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""


class ShuffledSampler(Sampler):
    """Every row once an epoch, in random order, batches of like length.

    Rows are shuffled, cut into blocks of 50 batches, sorted by length inside a block, cut into batches, and the batches
    are shuffled: padding nearly vanishes while which rows meet stays random. Where the rows are not a whole number of
    batches, the last batch is filled with rows from the start of the same shuffle, so that every batch has one size.
    """

    class Options(Sampler.Options):
        group_by_length: bool = Field(True, description="batches of rows of like length, less padding")

    blocks: ClassVar[int] = 50

    def epoch(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, number])
        order = self.draw(rng)
        order = np.resize(order, -(-len(order) // self.batch) * self.batch)
        return self.grouped(order, rng) if self.options.group_by_length else order

    def grouped(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Whole batches of rows of like length, in random order."""
        block = self.batch * self.blocks
        pieces = [order[i : i + block] for i in range(0, len(order), block)]
        order = np.concatenate([p[np.argsort(-self.lengths[p], kind="stable")] for p in pieces])
        batches = order.reshape(-1, self.batch)
        return batches[rng.permutation(len(batches))].reshape(-1)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of one epoch, in random order."""
        return rng.permutation(len(self.lengths))


class MixtureSampler(ShuffledSampler):
    """Data sets in stated shares: each row is of a data set drawn by its weight, and any of its rows, with replacement.

    An epoch has as many rows as there are. Batches are of like length, as without it.

        sampler: {source: mixture, weights: {pydoc: 3, sentences: 1}}
    """

    class Options(ShuffledSampler.Options):
        weights: dict[str, float] = Field(
            default_factory=dict, description="data set of data.train: how often its rows come, relative to the others"
        )

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        weights, names = self.options.weights, [name for name, _ in self.parts]
        if not weights:
            weights = dict.fromkeys(names, 1.0)
        wrong = sorted(set(weights) ^ set(names)) or sorted(name for name, w in weights.items() if not 0 <= w < np.inf)
        if wrong or not sum(weights.values()):
            raise UsageError(
                f"sampler.weights must give each data set of data.train a weight of at least 0; see {', '.join(wrong)}",
                hint=f"data sets: {', '.join(names)}",
            )
        sizes = np.asarray([rows for _, rows in self.parts])
        # A source that stands there twice has one weight, shared by the number of rows.
        total = {name: sum(rows for other, rows in self.parts if other == name) for name in names}
        share = np.asarray([weights[name] * rows / max(1, total[name]) for name, rows in self.parts])
        self.ends = np.cumsum(sizes)
        self.shares = share / share.sum()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        part = rng.choice(len(self.parts), size=len(self.lengths), p=self.shares)
        sizes = np.diff(self.ends, prepend=0)
        return (self.ends - sizes)[part] + rng.integers(0, sizes[part])
