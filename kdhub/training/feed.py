"""What training is fed: prepared rows with their stored signals, in the order that a sampler draws them in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kdhub.method import StoredSignals
from kdhub.rows import Example, HeldExamples, Rows
from kdhub.sampler import Sampler

KEPT = 64 * 2**20
"""Bytes of prepared rows that are held from one epoch to the next, at most."""


class TrainingRows(torch.utils.data.Dataset):
    """Batches of prepared rows with their stored signals, read by row number.

    Examples that are read again in a later epoch are kept, where those of all rows take less than `KEPT`.
    """

    def __init__(self, rows: Rows, signals: Mapping[str, StoredSignals], *, again: bool):
        self.rows, self.signals = rows, signals
        self._kept: dict[int, Example] | None = {} if again else None
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def _examples(self, indices: list[int]) -> Sequence[Example]:
        kept = self._kept
        if kept is None:
            return self.rows[indices]
        if len(kept) < len(self) and (new := [n for n in dict.fromkeys(indices) if n not in kept]):
            made = self.rows[new]
            if not kept and memory_of(made) / len(made) * len(self) > KEPT:
                self._kept = None
            kept.update(zip(new, made))
        if len(kept) == len(self):
            return HeldExamples(kept, indices, self._columns)
        return list(map(kept.__getitem__, indices))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        given = {}
        for stored in self.signals.values():
            given.update(stored[indices])
        return [(self._examples(indices), given)]

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]


def memory_of(value: Any) -> int:
    """Bytes of memory that prepared rows take, about; what several share counts for each."""
    if isinstance(value, (list, tuple, dict)):
        return sys.getsizeof(value) + sum(map(memory_of, value.values() if isinstance(value, dict) else value))
    return getattr(value, "nbytes", 0) or sys.getsizeof(value)


class Order(torch.utils.data.Sampler):
    """The row numbers of the whole training, epoch after epoch, as one pass; a resumed run begins at row `first`.

    A sampler that learns from the losses draws its next rows by what it was told before, and rows are drawn a batch
    ahead of training. So a checkpoint keeps its state at the start of the epoch and what it was told after which row,
    and a resumed run draws that epoch again up to where it was.
    """

    def __init__(self, sampler: Sampler, total: int):
        self.sampler, self.total, self.first = sampler, total, 0
        self._learns = type(sampler).state is not Sampler.state
        self._given = self._replayed = 0
        self._epoch, self._start = 0, 0  # the epoch under way, and the rows given before it
        self._begun = sampler.state()
        self._told: list[tuple[int, int, dict[str, float]]] = []  # since then: rows given, step, loss terms

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        self._given = self._start
        while self._given < self.total:
            drawn = self.sampler.epoch(self._epoch)
            if isinstance(drawn, np.ndarray) and not self._learns:
                drawn, before = drawn[: self.total - self._given].tolist(), self._given
                self._given += len(drawn)
                yield from drawn[max(0, self.first - before) :]
                drawn = ()
            rows = iter(drawn)
            while True:
                if self._told:
                    self._replay()
                row = next(rows, None)
                if row is None or self._given == self.total:
                    break
                self._given += 1
                if self._given > self.first:
                    yield int(row)
            self._epoch, self._start = self._epoch + 1, self._given
            self._begun, self._told, self._replayed = self.sampler.state(), [], 0

    def observe(self, step: int, terms: Mapping[str, float]) -> None:
        """Tell the sampler the loss terms of a logged step."""
        if self._learns:
            self._told.append((self._given, step, dict(terms)))
            self._replay()
        else:
            self.sampler.observe(step, terms)

    def _replay(self) -> None:
        for given, step, terms in self._told[self._replayed :]:
            if given > self._given:
                break
            self._replayed += 1
            self.sampler.observe(step, terms)

    def state(self) -> dict[str, Any]:
        if not self._learns:
            return {}
        return {"epoch": self._epoch, "start": self._start, "begun": self._begun, "told": self._told}

    def resume(self, first: int, state: Mapping[str, Any]) -> None:
        """Go on after `first` rows, with what `state` gave."""
        self.first = first
        if state:
            self._epoch, self._start, self._begun = state["epoch"], state["start"], state["begun"]
            self._told, self._replayed = [tuple(entry) for entry in state["told"]], 0
            self.sampler.load_state(self._begun)
