"""The task contract: what a model is for, how rows become batches, how a model is run and scored."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from kdhub.errors import DataError

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data import Data
    from kdhub.findings import Finding
    from kdhub.student import Student
    from kdhub.teacher import Teacher

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
        return Rows(self.table.select(kept), self.prepare, self.keys[kept], self.lengths[kept], self.truncated, kept)


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


class Encoder(Protocol):
    """What evaluation hands a task: signals of table rows for one subject, from store or model. Further arguments
    (`prompts=32`) are put into each row before it is prepared.

    Attributes:
        prepare: plain rows -> examples, as this subject sees them.
        model: the student, or None where signals come through the store.
    """

    prepare: Prepare
    model: Any

    def __call__(self, table: Any, kind: str, **how: Any) -> dict[str, Any]: ...

    def reader(self, table: Any, kind: str, **how: Any) -> Callable[[int, int], dict[str, Any]]:
        """A function (start, stop) -> signals of these rows, for signals that cannot be held all at once."""
        ...


@dataclass
class View:
    """One way of looking at outputs: as they are, truncated to 96 dimensions, stored in int8, ...

    Attributes:
        variant: what is written into each measure, empty for the plain view (`{"dims": 96}`).
        apply: outputs -> outputs.
        metrics: those that are measured so; None: all of the plain view, else the primary one.
    """

    variant: dict[str, Any] = field(default_factory=dict)
    apply: Callable[[Any], Any] = lambda outputs: outputs
    metrics: tuple[str, ...] | None = None


class Task(ABC):
    """What a model is for.

    Attributes:
        name: as registered.
        primary: form of data -> the metric that stands for quality there.
        primary_signal: what its models give when they are used ("embedding", "logits").
        pipeline_tag: what the Hub calls this task.
        EvaluationOptions: what a recipe may set under `evaluation.options` (truncations, precisions, ...).
    """

    name: ClassVar[str]
    primary: ClassVar[Mapping[str, str]]
    primary_signal: ClassVar[str]
    pipeline_tag: ClassVar[str] = ""
    EvaluationOptions: ClassVar[type]

    # -- training ---------------------------------------------------------------------------------------------

    @abstractmethod
    def training_table(self, parts: Sequence[tuple[Data, str]]) -> datasets.Dataset:
        """The plain rows to train on: of one split, or of several one after the other; on disk, never in memory.

        Raises:
            DataError: a split cannot be trained on, with the columns it has and those that are needed.
        """

    def labelled(self, table: datasets.Dataset) -> bool:
        """Whether such rows can be learnt from without a teacher."""
        return False

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """What a fresh model must know of the training rows (classes, the shape of an input), as JSON values. A student
        builder finds it at `context.facts`."""
        return {}

    @abstractmethod
    def preparer(self, student: Student | None, teacher: Teacher | None, **settings: Any) -> Prepare:
        """The function that turns plain rows into examples both models see alike."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], student: Student) -> dict[str, torch.Tensor]:
        """A padded batch for `forward`."""

    def counts(self, batch: Mapping[str, Any]) -> Mapping[str, int]:
        """How many there are in a batch of what losses are means over and batches have not alike (tokens, labels).

        In training an objective finds at `batch["mean_counts"]` what a batch has on average, over all ranks and
        accumulated batches of an optimiser step. Sums divided by that are, all together, the mean over the whole step,
        however its rows are shared out.
        """
        return {}

    def vary(self, batch: Mapping[str, Any], student: Student, epoch: int) -> Mapping[str, Any]:
        """A batch with what is drawn anew in each pass over the rows (which tokens are hidden), from its content and
        `epoch`; the first, 0, has what `collate` made. Not called where the teacher's outputs are stored: those are of
        what `collate` made."""
        return batch

    @abstractmethod
    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        """Run a student's (or a live teacher's) network on a batch; gradient flows."""

    def mismatch(self, student: Any, teacher: Any) -> str:
        """Why what the teacher gives when it is used says nothing to this student (other classes); empty where it does.
        Such a teacher is not measured on the student's data; it may still teach by its states."""
        return ""

    def compare(self, student: Student, teacher: Teacher, thorough: bool = False) -> list[Finding]:
        """What of the two is alike and what differs, of all that may spoil learning: prompts, normalisation, tokens,
        classes. Nothing by default.

        Args:
            student: as the method adapted it.
            thorough: also what can only be known of a teacher that is loaded.
        """
        return []

    # -- saving -----------------------------------------------------------------------------------------------

    @abstractmethod
    def load(self, folder: Path) -> Student:
        """A student from its folder. Safetensors only, no code from the folder."""

    # -- evaluation -------------------------------------------------------------------------------------------

    @abstractmethod
    def outputs(self, encode: Encoder, data: Data, split: str) -> Any:
        """Run one subject over an evaluation split and collect what metrics read.

        Raises:
            DataError: the data set has no such split or a form this task cannot score.
        """

    def views(self, outputs: Any, options: Any, subject: str) -> Iterator[View]:
        """The ways to look at a subject's outputs; plain first."""
        yield View()

    def mixed(self, student: Any, teacher: Any) -> Any | None:
        """Student and teacher used together (student queries, teacher documents), where that means something."""
        return None

    @abstractmethod
    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        """`n` plain rows to measure cost on."""

    def flops(self, student: Any, example: Example) -> int | None:
        """Floating-point operations of one forward pass, or None when they cannot be counted."""
        return None

    def label_losses(self, outputs: Signals, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """-log probability of each label of a batch, (labels,); for samplers that follow how far models are.

        Raises:
            CompatibilityError: labels have no probability in this task.
        """
        from kdhub.errors import CompatibilityError

        raise CompatibilityError(f"in task {self.name} labels have no probability that a sampler could follow")

    # -- trying methods ---------------------------------------------------------------------------------------

    def tiny_recipe(self, folder: Path) -> dict[str, Any] | None:
        """A recipe without a method that trains in a second and needs no network, for the conformance kit.

        Args:
            folder: empty; for the files that it names.

        Returns:
            teacher, student, data and evaluation; the same every time. None: methods for this task cannot be tried.
        """
        return None
