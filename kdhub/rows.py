"""Rows as models see them, and the named signals that models give for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import DataError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("kdhub")

Example = dict[str, Any]
"""One prepared row. `content` (bytes) is what the teacher sees and what stored signals are keyed by; `length` (int)
is its cost, in tokens where there are tokens, and 0 where nothing is left to learn; `cut` (bool) says that it was
longer than the model takes. The rest belongs to the task."""


Prepare = Callable[[list[dict[str, Any]]], list[Example]]


class Signals(dict):
    """Named outputs of a teacher or student; `signals.embedding` is `signals["embedding"]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no signal {name!r} here, only {', '.join(sorted(self)) or 'nothing'}") from None


def as_tensor(values: Any) -> torch.Tensor:
    """Stored signals of some rows as one tensor; those of ragged rows (tokens) one row after the other."""
    import torch

    if isinstance(values, list):
        return torch.cat([torch.as_tensor(row) for row in values])
    return torch.as_tensor(values)


@dataclass
class Rows:
    """The rows of one split as models see them, prepared again each time they are read.

    Held in memory for each row: its key (12 bytes) and length (4 bytes); the rows themselves stay on disk.

    Attributes:
        table: memory-mapped rows (`datasets.Dataset`).
        prepare: plain rows -> examples; deterministic.
        keys: (n, 12) uint8, content keys.
        lengths: (n,) int32.
        truncated: how many were longer than the models take.
        kept: which of the rows that were read these are, None for all (see `learnable`).
    """

    table: Any
    prepare: Prepare
    keys: np.ndarray
    lengths: np.ndarray
    truncated: int = 0
    kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        return self.prepare(plain_rows(self._arrow, np.asarray(indices).tolist()))

    def some(self, most: int) -> np.ndarray:
        """Numbers of at most so many rows, evenly spaced: the first ones of a file may all be alike."""
        many = min(len(self), most)
        return np.arange(many) * len(self) // max(many, 1)

    @cached_property
    def _arrow(self) -> Any:
        return self.table.with_format("arrow")

    @classmethod
    def build(cls, table: Any, prepare: Prepare, key: Callable[[bytes], bytes], *, batch: int = 1000) -> Rows:
        """Read the split once, in batches, for keys and lengths."""
        n = len(table)
        keys = np.empty((n, 12), np.uint8)
        lengths = np.empty(n, np.int32)
        truncated, at = 0, 0
        arrow = table.with_format("arrow")
        for start in range(0, n, batch):
            for example in prepare(plain_rows(arrow, range(start, min(start + batch, n)))):
                keys[at] = np.frombuffer(key(example["content"]), np.uint8)
                lengths[at] = example["length"]
                truncated += example["cut"]
                at += 1
        return cls(table, prepare, keys, lengths, truncated)

    def learnable(self) -> Rows:
        """Without the rows of which nothing is left to learn.

        Raises:
            DataError: nothing is left of any.
        """
        kept, gone = np.flatnonzero(self.lengths), np.flatnonzero(self.lengths == 0)
        if not len(gone):
            return self
        first = ", ".join(str(n + 1) for n in gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        what = f"of {len(gone)} of {len(self)} rows nothing is left to learn within what the models take (row {first})"
        if not len(kept):
            raise DataError(what, hint="are they longer than the models take, or without anything to be learnt?")
        logger.warning("%s; they are left out", what)
        return self.select(kept)

    def select(self, numbers: np.ndarray) -> Rows:
        """Some of the rows, by number."""
        kept = numbers if self.kept is None else self.kept[numbers]
        table, keys, lengths = self.table.select(numbers), self.keys[numbers], self.lengths[numbers]
        return Rows(table, self.prepare, keys, lengths, self.truncated, kept)


def plain_rows(table: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of a `datasets.Dataset` as dictionaries of Python values; lists of lists of numbers, all of one shape, as
    `numpy.ndarray`."""
    if not len(indices):
        return []
    chosen = (table if table.format["type"] == "arrow" else table.with_format("arrow"))[indices]
    columns = [_dense(chosen.column(name).combine_chunks()) for name in chosen.column_names]
    return [dict(zip(chosen.column_names, values)) for values in zip(*columns)]


def _dense(column: Any) -> Any:
    """An Arrow column as Python values, or as one array where each is a matrix of numbers, or more, of one shape.

    Images as Python objects take twenty times as long.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    inner, shape = column, [len(column)]
    while pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type) or pa.types.is_fixed_size_list(inner.type):
        sizes = pc.unique(pc.list_value_length(inner)).to_pylist()
        if len(sizes) != 1 or not sizes[0]:
            break
        shape.append(sizes[0])
        inner = inner.flatten()
    numbers = pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type)
    if len(shape) < 3 or not numbers or inner.null_count:
        return column.to_pylist()
    return inner.to_numpy(zero_copy_only=False).reshape(shape)
