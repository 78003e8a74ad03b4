"""The sampler contract: which rows come next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class Sampler(ABC):
    """Decides the order of rows. State that changes during training is checkpointed with the run.

    Args:
        lengths: (n,) int32, the cost of each row.
        batch: rows of one optimiser step over all ranks. The order must not depend on the number of ranks.
        seed: the run's seed.
    """

    def __init__(self, lengths: np.ndarray, batch: int, seed: int, **options: Any):
        self.lengths, self.batch, self.seed, self.options = lengths, batch, seed, options

    @abstractmethod
    def epoch(self, number: int) -> np.ndarray | Iterator[int]:
        """Row numbers of one epoch, in order; a whole number of batches.

        Depends on nothing but `number`, the state at its start and what `observe` is told meanwhile: a resumed run
        draws the epoch again up to where it was.
        """

    def observe(self, step: int, terms: Mapping[str, float]) -> None:
        """Told the loss terms after each logged step; samplers with state (domain mixtures) learn from them.

        Rows are drawn about one batch ahead of training, so what is told here counts from the next batch but one.
        """

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

    blocks = 50

    def epoch(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.lengths))
        order = np.resize(order, -(-len(order) // self.batch) * self.batch)
        if self.options.get("group_by_length", True):
            block = self.batch * self.blocks
            pieces = [order[i : i + block] for i in range(0, len(order), block)]
            order = np.concatenate([p[np.argsort(-self.lengths[p], kind="stable")] for p in pieces])
            batches = order.reshape(-1, self.batch)
            order = batches[rng.permutation(len(batches))].reshape(-1)
        return order
