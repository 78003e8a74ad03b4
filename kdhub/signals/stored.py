"""A teacher's signals of some rows, through the store: what is missing is computed, what is there is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kdhub.errors import TeacherError
from kdhub.files import home
from kdhub.named_layers import is_layer
from kdhub.progress import Bar
from kdhub.ranks import rank, world_size
from kdhub.rows import Rows
from kdhub.signals.store import Field, FillReport, SignalStore, item_bytes
from kdhub.specs import MAIN
from kdhub.teacher import ANSWERED, Teacher

logger = logging.getLogger("kdhub")

READ = 4096
"""Rows whose answers are looked at together."""
HEAVY = 2**14
"""Bytes of a row's signal, of an item (a token) of a ragged one, over which rows to measure on are not stored: 8,192
logits. A thousand texts over 128,000 tokens would be a hundred gigabytes."""


class Stored:
    """Stored signals of some rows, read by row number.

    Attributes:
        take: what is stored of some rows -> the signal, where that is a part of it (`Teacher.part`).
        parts: what they are read from: itself, but of a teacher with members one for each.
    """

    def __init__(
        self,
        store: SignalStore,
        keys: np.ndarray,
        report: FillReport,
        take: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: given,
    ):
        self.store, self.report, self.take, self.parts = store, report, take, [self]
        self.positions = store.locate(keys)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, indices: Any) -> Mapping[str, Any]:
        return self.take(self.store.read(self.positions[indices]))


class Joined:
    """Signals of a teacher with members, joined whenever they are read; each member's are in its own store."""

    def __init__(self, teacher: Teacher, kind: str, members: Sequence[Stored | Joined]):
        self.teacher, self.kind, self.members = teacher, kind, members
        self.parts = [part for member in members for part in member.parts]

    def __len__(self) -> int:
        return len(self.members[0])

    def __getitem__(self, indices: Any) -> Mapping[str, Any]:
        return self.teacher.joined(self.kind, [member[indices] for member in self.members])

    @property
    def report(self) -> FillReport:
        reports = [part.report for part in self.parts]
        damaged = [name for one in reports for name in one.damaged]
        return FillReport(
            *(sum(getattr(one, name) for one in reports) for name in ("computed", "found", "calls")),
            damaged,
            sum(one.seconds for one in reports),
        )


def of_role(role: str, name: str) -> str:
    """What a signal is called in training: as the teacher calls it, with the role in front where it has one."""
    return name if role == MAIN else f"{role}/{name}"


class OfRole:
    """Stored signals of a teacher with a role, under their names in training."""

    def __init__(self, role: str, stored: Stored | Joined):
        self.role, self.stored = role, stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, indices: Any) -> Mapping[str, Any]:
        return {of_role(self.role, name): values for name, values in self.stored[indices].items()}


class Recomputed:
    """Signals of a local model that are computed whenever they are read."""

    def __init__(self, teacher: Teacher, rows: Rows, kind: str):
        self.teacher, self.rows, self.kind = teacher, rows, kind

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> Mapping[str, Any]:
        return self.teacher.signals(self.rows[indices], self.kind)


def stored_signals(teacher: Teacher, rows: Rows, kind: str, *, dtype: str = "float16") -> Stored | Joined:
    """A teacher's signals of these rows; what is missing is computed, by all ranks together."""
    if teacher.members:
        return Joined(teacher, kind, [stored_signals(one, rows, own, dtype=dtype) for one, own in teacher.parts(kind)])
    (store,) = stores_of(teacher, rows, kind, dtype)
    report = store.fill(
        rows.keys,
        rows.lengths,
        lambda indices: teacher.signals(rows[indices], teacher.stored_in(kind)),
        rank=rank(),
        world_size=world_size(),
        workers=teacher.concurrent_groups,
        progress=_progress(f"teacher {kind}"),
    )
    return Stored(store, rows.keys, report, partial(teacher.part, kind))


def stores_of(teacher: Teacher, rows: Rows, kind: str, dtype: str = "float16") -> list[SignalStore]:
    """The store of a teacher's signal, or those of its members."""
    if teacher.members:
        return [store for one, own in teacher.parts(kind) for store in stores_of(one, rows, own, dtype)]
    if is_layer(kind):
        teacher.look(kind, rows[[0]])
    stored = teacher.stored_in(kind)
    key = {"teacher": teacher.identity_of(stored), "signal": stored}
    fields = fields_of(teacher, stored, dtype)
    return [SignalStore.open(home() / "signals", key, fields, group_rows=teacher.group_rows)]


def measured_signals(
    teacher: Teacher,
    rows: Rows,
    kind: str,
    *,
    dtype: str = "float16",
    stored: Callable[[Rows, str], Stored | Joined] | None = None,
) -> Stored | Joined | Recomputed:
    """A teacher's signals of rows that it is only measured on: through the store, unless they are heavier than
    computing them once more (`HEAVY`) and its weights are local.

    Args:
        stored: what goes through the store; `stored_signals` of this teacher by default.
    """
    if item_bytes(fields_of(teacher, kind, dtype)) > HEAVY and teacher.module is not None:
        return Recomputed(teacher, rows, kind)
    return stored(rows, kind) if stored else stored_signals(teacher, rows, kind, dtype=dtype)


def answered(given: Stored | Joined, on_bad_rows: str, where: str) -> np.ndarray:
    """Numbers of the rows that a teacher, and each of its members, has a signal of (`Teacher.complete`).

    Raises:
        TeacherError: it has none of some and bad rows stop, or none of any.
    """
    kept = np.ones(len(given), bool)
    for part in given.parts:
        if any(field.name == ANSWERED for field in part.store.fields):
            for start in range(0, len(part), READ):
                some = np.arange(start, min(start + READ, len(part)))
                kept[some] &= part[some][ANSWERED] > 0
    gone = np.flatnonzero(~kept)
    if len(gone):
        what = f"{where}: the teacher has no readable answer for {len(gone)} of {len(kept)} rows (row {gone[0] + 1})"
        if on_bad_rows == "stop" or not kept.any():
            hint = "on_bad_rows: skip leaves such rows out, for teacher and student alike"
            raise TeacherError(what, hint=hint if kept.any() else "does this model understand the prompt?")
        logger.warning("%s; they are left out", what)
    return np.flatnonzero(kept)


def fields_of(teacher: Teacher, kind: str, dtype: str = "float16") -> list[Field]:
    """What the store keeps of a row of a signal."""
    return [
        shape
        if isinstance(shape, Field)
        else Field(name, dtype, tuple(n for n in shape if n is not None), ragged=shape[:1] == (None,))
        for name, shape in teacher.layout(kind).items()
    ]


def _progress(what: str, every: float = 5.0) -> Callable[[int, int], None]:
    """Says how far a fill is, every few seconds."""
    began, bar = time.monotonic(), Bar(every)

    def say(done: int, total: int) -> None:
        if rank() != 0:
            return
        if done >= total:
            bar.close()
        elif done:
            speed = done / max(time.monotonic() - began, 1e-9)
            left = (total - done) / speed
            bar(done, total, f"{what}  {done}/{total}  {speed:.0f} rows/s  {left:.0f} s left")

    return say
