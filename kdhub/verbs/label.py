"""`kdhub.label`: what a run would ask of its teacher, computed and stored ahead of any training.

The run's own code goes as far as its first training, so rows have the content, and the keys, that they will have then:
`distill` finds all of it. Killed, it goes on with what the store lacks.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.errors import UsageError
from kdhub.method import ObjectiveMethod
from kdhub.ranks import barrier, of_first, rank
from kdhub.recipes.chain import resolve_recipe, unmade
from kdhub.recipes.recipe import DataRef, Link, Recipe, Ref
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.rows import Rows
from kdhub.signals.store import SignalStore, distinct, row_key
from kdhub.signals.stored import Joined, Recomputed, Stored, measured_signals, of_role, stored_signals, stores_of
from kdhub.specs import MAIN
from kdhub.teacher import Teacher
from kdhub.training.execute import unchained
from kdhub.training.session import Session

PROBE = 64
"""Rows that a dry run has computed of each signal, to tell what the others take."""


@dataclass
class Labels:
    """A teacher's signal of some rows: what the store had, and what was computed, or in a dry run would be.

    Attributes:
        signal: its name, with the teacher's role in front where it has one.
        rows: distinct ones; found: those that were stored before.
        bytes: of files that came to the store; seconds: of computing.
        tokens: lengths of all rows as the models read them, added up.
        spent: what somebody else's server was asked for (`requests`, tokens, `cost`).
    """

    signal: str
    of: str
    rows: int = 0
    found: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def computed(self) -> int:
        return self.rows - self.found

    @property
    def rows_per_second(self) -> float | None:
        return round(self.computed / self.seconds, 2) if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "computed": self.computed, "rows_per_second": self.rows_per_second}


@dataclass
class Labelling:
    """What was stored, a line for each signal of each use of rows, and what there is to say of it."""

    labels: list[Labels]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {"labels": [one.to_dict() for one in self.labels], "notes": self.notes}


def label(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    signal: str | None = None,
    task: str | None = None,
    dry_run: bool = False,
    set: Sequence[str] | Mapping[str, Any] = (),
    resolver: Resolver | None = None,
    **overrides: Any,
) -> Labelling:
    """Fill the signal store without training.

    Args:
        recipe: as of `distill`; with `method=` alone, the method's own. The rows of its training and of its evaluation
            are labelled, as far as they are stored in a run.
        signal: without recipe and method: the signal of `teacher` for the rows of `data`, as the teacher alone reads
            them; `task` says for which task.
        dry_run: compute a few rows of what is missing (they stay), and say what the rest would take.
        overrides: method, teacher, student, data, seed.

    Raises:
        UsageError: the run would ask nothing of a teacher that can be stored.
        RecipeError, UnknownNameError, CompatibilityError: before the teacher is asked.
    """
    resolver = resolver or Resolver()
    if signal is not None:
        if recipe is not None or overrides.get("method") or set:
            raise UsageError("--signal labels the rows of --data alone; leave out recipe, method and --set")
        return _plain(resolver, task, signal, dry_run, **overrides)
    if task is not None:
        raise UsageError("--task goes with --signal; a recipe says its task")
    resolved = resolve_recipe(recipe, set=set, resolver=resolver, **overrides)
    if not resolved.teachers:
        raise UsageError(f"method {resolved.method} has no teacher in this recipe: there is nothing to label")
    if dry_run and (missing := unmade(resolved, resolver)):
        raise UsageError(
            f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} made before the teacher can be asked",
            hint=f"make it first: kdhub distill --recipe {Link.parse(missing[0]).name}",
        )
    folder = Path(of_first(tempfile.mkdtemp(prefix="kdhub-label-")))
    try:
        run = Run.create(folder / "run", resolved)
        run.recipe, _ = unchained(resolved, resolver)
        return _Labelling(run, resolver, dry_run).label()
    finally:
        barrier()
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


class _Reached(Exception):
    """Training would begin here; or, in a dry run, what comes next stands on what was not computed."""


class _Labelling(Session):
    def __init__(self, run: Run, resolver: Resolver, dry: bool):
        super().__init__(run, resolver)
        self.dry, self.of, self.found, self.notes = dry, "training", [], []

    def label(self) -> Labelling:
        own_course = type(self.method).distill is not ObjectiveMethod.distill
        with suppress(_Reached):
            if self.dry and not own_course:
                self._plan()
            else:
                self.method.distill(self)
        if own_course:
            self.notes.append(
                f"{self.recipe.method} has a course of its own: what it asks after its "
                f"{'first request' if self.dry else 'first training begins'} cannot be known before"
            )
        if not self.found:
            raise UsageError(
                f"method {self.recipe.method} asks nothing of a teacher before it trains",
                hint="a live teacher is asked in each step, and nothing of that is stored",
            )
        return Labelling(self.found, self.notes)

    def _plan(self) -> None:
        """Everything that `fit` asks before it trains."""
        self.method.teachers = self.teachers
        self.method.check(self.student, self.teacher)
        rows = self.method.rows(self)
        for role, _, kind in self.stored_kinds(self.method):
            with suppress(_Reached):
                self.signals(rows, kind, role)
        self.mark_start(self.student)

    # -- what a run asks of its session -----------------------------------------------------------------------

    def signals(self, rows: Rows, kind: str, role: str = MAIN, *, read: bool = False) -> Stored | Joined:
        rows = rows if read else self.read_by(role, rows)
        compute = partial(super().signals, rows, kind, role, read=True)
        return self._told_of(role, self.teachers[role], rows, kind, compute)

    def _told_of(
        self, role: str, teacher: Teacher, rows: Rows, kind: str, compute: Callable[[], Stored | Joined]
    ) -> Stored | Joined:
        self.found.append(one := Labels(of_role(role, kind), self.of))
        if self.dry:
            _expect(one, teacher, rows, kind, self.recipe.signals.dtype)
            raise _Reached
        return _note(one, teacher, rows, compute)

    def measured_signals(self, rows: Rows, kind: str) -> Any:
        return self._stored(super().measured_signals(rows, kind), kind)

    def _stored(self, given: Any, kind: str) -> Any:
        if isinstance(given, Recomputed):
            self.notes.append(f"{kind} of rows to measure on is heavier than computing it again, and is not stored")
            raise _Reached
        return given

    def _ask(self, role: str, teacher: Teacher, rows: Rows, kind: str, **how: Any) -> Any:
        """Another teacher than the first, of rows to measure on."""

        def through(rows: Rows, kind: str) -> Stored | Joined:
            return self._told_of(role, teacher, rows, kind, lambda: stored_signals(teacher, rows, kind, **how))

        return self._stored(measured_signals(teacher, rows, kind, stored=through, **how), kind)

    def mark_start(self, student: Any) -> None:
        """What evaluation asks, then no further."""
        self.of = "evaluation"
        if rank() == 0:
            others = self.other_teachers(student, self._ask)  # members are stored with the whole that they are of
            encoders = [self._teacher_encoder(student), *(encoder for n, encoder in others if isinstance(n, str))]
            for encoder in filter(None, encoders):
                for data, split in self.evaluator.data:
                    with suppress(_Reached):
                        self.evaluator.outputs(encoder, data, split)
        barrier()
        raise _Reached


def _plain(
    resolver: Resolver,
    task: str | None,
    signal: str,
    dry: bool,
    *,
    teacher: Any = None,
    data: Any = None,
    **more: Any,
) -> Labelling:
    """One signal of the rows of one data set, as the teacher alone reads them."""
    if lacking := [f"--{name}" for name, value in (("task", task), ("teacher", teacher), ("data", data)) if not value]:
        raise UsageError(f"--signal {signal} needs {', '.join(lacking)} as well")
    if given := [f"--{name}" for name, value in more.items() if value is not None]:
        raise UsageError(f"--signal takes no {', '.join(given)}")
    model, opened = resolver.teacher(Ref(source=teacher), task), resolver.data(DataRef(source=data))
    split = opened.pick("train")
    table = model.task.training_table([(opened, split)])
    rows = Rows.build(table, model.task.preparer(None, model), row_key).readable(f"{opened.name} {split}")
    one = Labels(signal, f"{opened.name} {split}")
    if dry:
        _expect(one, model, rows, signal, "float16")
    else:
        _note(one, model, rows, lambda: stored_signals(model, rows, signal))
    return Labelling([one], [])


def _spent_since(before: Mapping[str, float], teacher: Teacher, times: float = 1) -> dict[str, float]:
    """What was asked of somebody else's server; `times` as much of it."""
    now = {name: (value - before.get(name, 0)) * times for name, value in teacher.spent.items()}
    return {name: round(value, 6) for name, value in now.items() if value}


def _note(one: Labels, teacher: Teacher, rows: Rows, compute: Callable[[], Stored | Joined]) -> Stored | Joined:
    """Have all of it, and say what that took."""
    before = dict(teacher.spent)
    stored = compute()
    report, one.spent = stored.report, _spent_since(before, teacher)
    one.rows, one.found, one.seconds = report.computed + report.found, report.found, round(report.seconds, 3)
    one.tokens = int(rows.lengths.sum())
    many = len(distinct(rows.keys))
    one.bytes = sum(_size(part.store) * part.report.computed // max(1, len(part.store)) for part in stored.parts)
    if report.computed + report.found < many:  # other ranks made the rest
        one.rows = many
    return stored


def _expect(one: Labels, teacher: Teacher, rows: Rows, kind: str, dtype: str) -> None:
    """What is missing, and from a few rows of it what the rest would take."""
    keys = rows.keys[distinct(rows.keys)]
    stores = stores_of(teacher, rows, kind, dtype)
    absent = np.zeros(len(rows), bool)
    for store in stores:
        store.refresh()
        absent |= store.locate(rows.keys) < 0
    one.rows, one.tokens = len(keys), int(rows.lengths.sum())
    missing = distinct(rows.keys[absent])
    one.found = one.rows - len(missing)
    if not len(missing):
        return
    numbers = np.flatnonzero(absent)[missing]
    some = np.sort(np.random.default_rng().permutation(numbers)[:PROBE])
    few, rest = some[: len(some) // 4], some[len(some) // 4 :]
    if len(few):
        stored_signals(teacher, rows.select(few), kind, dtype=dtype)  # what a teacher needs to get going does not count
    before, spent, began = sum(map(_size, stores)), dict(teacher.spent), time.monotonic()
    stored_signals(teacher, rows.select(rest), kind, dtype=dtype)
    times = len(missing) / len(rest)
    one.seconds = round((time.monotonic() - began) * times, 1)
    one.bytes = round((sum(map(_size, stores)) - before) * times)
    one.spent = _spent_since(spent, teacher, times)


def _size(store: SignalStore) -> int:
    return sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
