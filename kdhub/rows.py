"""Rows as models see them, and the named signals that models give for them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import DataError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("kdhub")

SHOWN = 5
"""Row numbers that a message lists, at most."""

Example = dict[str, Any]
"""One prepared row. `content` (bytes) is what the teacher sees and what stored signals are keyed by; `length` (int)
is its cost, in tokens where there are tokens, and 0 where nothing is left to learn; `cut` (bool) says that it was
longer than the model takes; `fault` (str), where there is one, why the models cannot read the row, which then has
length 0. The rest belongs to the task."""


Prepare = Callable[[list[dict[str, Any]]], list[Example]]


class HeldExamples(Sequence):
    """Examples of a batch, out of all rows of a training, which are held, so that `values_of` reads each row once.

    Args:
        every: row number -> example.
        indices: the rows of this batch.
        columns: what was read of all rows before, by name.
    """

    def __init__(self, every: Mapping[int, Example], indices: Sequence[int], columns: dict[str, np.ndarray]):
        self._every, self._indices, self._columns = every, indices, columns

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Example]:
        return map(self._every.__getitem__, self._indices)

    def __getitem__(self, at: Any) -> Any:
        chosen = self._indices[at]
        return [self._every[n] for n in chosen] if isinstance(at, slice) else self._every[chosen]

    def column(self, name: str, value: Callable[[Example], Any]) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = np.asarray([value(self._every[n]) for n in range(len(self._every))])
        return self._columns[name][self._at]

    @cached_property
    def _at(self) -> np.ndarray:
        return np.fromiter(self._indices, np.int64, len(self._indices))


def values_of(examples: Sequence[Example], name: str, value: Callable[[Example], Any] | None = None) -> np.ndarray:
    """(n, ...) one value of each of some examples.

    Args:
        name: of the column, and of the value in an example unless `value` finds it.
    """
    value = value or itemgetter(name)
    if isinstance(examples, HeldExamples):
        return examples.column(name, value)
    return np.asarray([value(e) for e in examples])


class Fault(str):
    """Why a row cannot be read, in words that other such rows share; `where` says the rest of this one alone: the file
    that it names, what exactly is wrong with it."""

    where: str

    def __new__(cls, cause: str, where: str = ""):
        fault = super().__new__(cls, cause)
        fault.where = where
        return fault


class UnreadableRows(DataError):
    """Raised where rows are prepared of which the models cannot read some.

    Args:
        examples: of all the rows; those of the bad ones have a `fault`, and nothing to be learnt or measured.
    """

    def __init__(self, examples: list[Example]):
        faults = [(n, e["fault"]) for n, e in enumerate(examples, 1) if "fault" in e]
        cause, where = faults[0][1], getattr(faults[0][1], "where", "")
        super().__init__(f"{cause}: {where}" if where else cause, rows=[n for n, _ in faults[:SHOWN]])
        self.examples = examples


def all_readable(examples: list[Example]) -> list[Example]:
    """The examples as they are, of which none has a `fault`.

    Raises:
        UnreadableRows: some have.
    """
    if any("fault" in example for example in examples):
        raise UnreadableRows(examples)
    return examples


def prepared(prepare: Prepare, rows: list[dict[str, Any]]) -> list[Example]:
    """Examples of all rows, also of those that the models cannot read (`fault`)."""
    try:
        return prepare(rows)
    except UnreadableRows as error:
        return error.examples


class Signals(dict):
    """Named outputs of a teacher or student; `signals.embedding` is `signals["embedding"]`. Those of a teacher with a
    role have it in front, `view/embedding`, and `signals.of("view")` has them alone."""

    def add(self, role: str, given: Signals) -> None:
        """Take in the signals of the teacher with a role."""
        self.update({f"{role}/{name}": value for name, value in given.items()})
        self.__dict__.setdefault("_by_role", {})[role] = given  # it may know more than its entries (lazy logits)

    def of(self, role: str) -> Signals:
        """The signals of the teacher with a role; empty where the recipe names none."""
        if role in self.__dict__.get("_by_role", {}):
            return self._by_role[role]
        return Signals({name[len(role) + 1 :]: value for name, value in self.items() if name.startswith(f"{role}/")})

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


class BadRows:
    """Bad rows by cause: how many, and the first few row numbers.

    Attributes:
        drawn: numbers from 0 of the rows that were looked at, where these are some of others: messages name theirs.
    """

    drawn: Sequence[int] | None = None

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.rows: dict[str, list[int]] = {}
        self.numbers: dict[int, str] = {}

    def add(self, cause: str, number: int) -> None:
        self.numbers[number] = cause
        self.counts[cause] = self.counts.get(cause, 0) + 1
        first = self.rows.setdefault(cause, [])
        if len(first) < SHOWN:
            first.append(number)

    def _named(self, number: int) -> str:
        where = getattr(self.numbers[number], "where", "")
        known = number if self.drawn is None else self.drawn[number - 1] + 1
        return f"{known}: {where}" if where else str(known)

    def error(self, label: str, total: int, *, nothing_left: bool) -> DataError:
        bad = sum(self.counts.values())
        parts = []
        for cause, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            named = [self._named(number) for number in self.rows[cause]]
            rows = ("; " if any(":" in one for one in named) else ", ").join(named)
            more = f" and {count - len(self.rows[cause])} more" if count > len(self.rows[cause]) else ""
            parts.append(f"{count} {cause} (row{'s' if count > 1 else ''} {rows}{more})")
        left = "; no row is left" if nothing_left else ""
        return DataError(
            f"{label}: {bad} of {total} rows {'is' if bad == 1 else 'are'} bad: {'; '.join(parts)}{left}",
            rows=sorted(n for numbers in self.rows.values() for n in numbers)[:SHOWN],
            hint=None if nothing_left else "correct them, or leave them out with `on_bad_rows: skip`",
        )

    def settle(self, label: str, total: int, on_bad_rows: str) -> None:
        """Stop for bad rows, or say how many are left out.

        Args:
            on_bad_rows: "stop" or "skip".

        Raises:
            DataError: to stop for, or none of `total` rows is left.
        """
        bad = sum(self.counts.values())
        if bad and (on_bad_rows == "stop" or bad == total):
            raise self.error(label, total, nothing_left=bad == total)
        if bad:
            logger.warning("%s; left out", self.error(label, total, nothing_left=False).message)


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
        bad: those that the models cannot read (`fault`), numbered from 1.
    """

    table: Any
    prepare: Prepare
    keys: np.ndarray
    lengths: np.ndarray
    truncated: int = 0
    kept: np.ndarray | None = None
    bad: BadRows = field(default_factory=BadRows)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        return prepared(self.prepare, plain_rows(self._arrow, np.asarray(indices).tolist()))

    @property
    def digest(self) -> str:
        """Of keys and lengths, in their order: what the models see of each row."""
        return hashlib.sha256(self.keys.tobytes() + self.lengths.tobytes()).hexdigest()

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
        truncated, at, bad = 0, 0, BadRows()
        arrow = table.with_format("arrow")
        for start in range(0, n, batch):
            for example in prepared(prepare, plain_rows(arrow, range(start, min(start + batch, n)))):
                keys[at] = np.frombuffer(key(example["content"]), np.uint8)
                lengths[at] = example["length"]
                truncated += example["cut"]
                at += 1
                if "fault" in example:
                    bad.add(example["fault"], at)
        return cls(table, prepare, keys, lengths, truncated, bad=bad)

    def readable(self, label: str, on_bad_rows: str = "stop") -> Rows:
        """Without the rows that the models cannot read; by default there may be none (`BadRows.settle`)."""
        self.bad.settle(label, len(self), on_bad_rows)
        if not self.bad.counts:
            return self
        gone = {number - 1 for number in self.bad.numbers}
        return self.select(np.array([n for n in range(len(self)) if n not in gone]))

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
    `numpy.ndarray`, and the names of classes in place of their numbers (see `class_names`)."""
    if not len(indices):
        return []
    chosen = (table if table.format["type"] == "arrow" else table.with_format("arrow"))[indices]

    def read(name: str) -> Any:
        column, names = chosen.column(name).combine_chunks(), class_names(table.features[name])
        return dense(column) if names is None else named(column.to_pylist(), names)

    columns = [read(name) for name in chosen.column_names]
    return [dict(zip(chosen.column_names, values)) for values in zip(*columns)]


def class_names(feature: Any) -> list[str] | None:
    """The names of classes that a column of a `datasets.Dataset` has the numbers of (`ClassLabel`, also in lists); None
    for any other column."""
    while inner := getattr(feature, "feature", None):
        feature = inner
    return feature.names if type(feature).__name__ == "ClassLabel" else None


def named(value: Any, names: Sequence[str]) -> Any:
    """The name of a class, given its number, also in lists; None where there is none (-1). A number beyond the names
    stays as it is, for whoever reads it to refuse."""
    if isinstance(value, list):
        return [named(one, names) for one in value]
    return None if value is None or value < 0 else names[value] if value < len(names) else value


def dense(column: Any) -> Any:
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
