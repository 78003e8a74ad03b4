"""A short trial of a recipe: a few rows, a few steps, in a folder that is gone afterwards.

It finds how teacher and start fit together, how large the loss terms are, how many rows are cut, which evaluation rows
stand in the training data, and how long the whole will take. The teacher is asked for the rows of these steps and of
the first evaluation data alone; what it gave stays in the signal store, where the run finds it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.data.duplicates import shared_rows, value_of
from kdhub.errors import KdhubError
from kdhub.files import size_text
from kdhub.findings import Finding
from kdhub.method import ObjectiveMethod
from kdhub.recipes import chain
from kdhub.recipes.recipe import Link, Recipe, merge
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.rows import Rows, plain_rows
from kdhub.signals.stored import of_role
from kdhub.specs import MAIN
from kdhub.student import Student
from kdhub.training.execute import unchained
from kdhub.training.session import Session, in_order

STEPS, WARM = 24, 6
"""Optimiser steps of the trial, and those of them that are not timed: the first are slower."""
SECONDS = 60.0
"""The trial stops after so long, once there is something to time."""
COMPARED, HELD = 100_000, 20_000
"""Training rows, and evaluation rows of each data set, that are looked through for rows in both."""
MUCH = {"rows in both": 0.01, "cut": 0.1}
"""Shares from which on a finding is a warning."""
COST_SECONDS, PAGE_SECONDS = 20.0, 5.0
"""What measuring cost takes (processes that start, and turns of a set length), and plots and card."""
BESIDE = ("role", "source")
"""Columns of texts that are no part of them (see `Data.texts`)."""


def rehearse(recipe: Recipe, resolver: Resolver) -> list[Finding]:
    """Try a recipe that was resolved and checked; what goes wrong is a finding."""
    if missing := chain.unmade(recipe, resolver):
        found = f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} made before anything else"
        do = f"to try what comes then, make it first: kdhub distill --recipe {Link.parse(missing[0]).name}"
        return [Finding("note", "trial", found, do)]
    try:
        recipe, _ = unchained(recipe, resolver)
        with tempfile.TemporaryDirectory(prefix="kdhub-doctor-") as folder:
            return _Trial(Run.create(Path(folder) / "run", _short(recipe, resolver)), resolver, recipe).findings()
    except KdhubError as error:
        return [Finding("fail", "trial", error.message, error.hint or "")]


def _short(recipe: Recipe, resolver: Resolver) -> Recipe:
    options = resolver.method(recipe).options
    change: dict[str, Any] = {"evaluation": {"data": recipe.to_dict().get("evaluation", {}).get("data", [])[:1]}}
    if hasattr(options, "max_steps"):
        change["options"] = {"max_steps": min(STEPS, options.max_steps or STEPS)}
    return Recipe.model_validate(merge(recipe.to_dict(), change))


class _Enough(Exception):
    """The trial has shown what it was to show."""


class _Trial(Session):
    """A session of a few rows and steps, which measures teacher and start on the first evaluation data.

    Attributes:
        whole: rows of the training data, of which some were read.
        seconds: what -> how long it took here.
        asked: signal -> share of its training rows that the store lacked, and seconds for each of them.
    """

    def __init__(self, run: Run, resolver: Resolver, recipe: Recipe):
        super().__init__(run, resolver)
        self.planned = recipe
        self.whole = 0
        self.seconds: dict[str, float] = {}
        self.asked: dict[str, tuple[float, float]] = {}
        self.seen: list[Finding] = []
        self._filled = 0.0  # seconds of the teacher, until now

    def findings(self) -> list[Finding]:
        from kdhub.evaluation.cost import peak_memory, reset_peak_memory

        reset_peak_memory()
        found: list[Finding] = []
        if isinstance(self.method, ObjectiveMethod):
            try:
                self.method.distill(self)
            except _Enough:
                pass
            found += [*self.seen, self._terms(), self._cut()]
        else:
            found.append(Finding("note", "trial", f"{self.recipe.method} has its own training loop: not tried"))
        memory = peak_memory()
        held = self._held()
        if isinstance(self.method, ObjectiveMethod):
            found.append(self._expected([len(rows) for *_, rows in held], memory))
        return found + self._in_both(held)

    # -- what a run asks of its session -----------------------------------------------------------------------

    def table(self, use: str) -> Any:
        """Rows for the steps, drawn again each time: the same ones would be stored by then, and cost nothing."""
        table = super().table(use)
        few = min(len(table), STEPS * self.method.options.batch_size)
        if use == "train":
            self.whole = len(table)
        some = sorted(np.random.default_rng().choice(len(table), few, replace=False).tolist())
        self.drawn[use] = some, len(table)
        return table.select(some)

    def rows(self, use: str = "train", **settings: Any) -> Rows:
        _ = self.student  # built now, so that it is not timed
        began = time.monotonic()
        rows = super().rows(use, **settings)
        self.seconds["reading"] = (time.monotonic() - began) / len(rows)
        return rows

    def signals(self, rows: Rows, kind: str, role: str = MAIN) -> Any:
        """The first quarter apart: what a teacher needs to get going does not count."""
        some = max(1, len(rows) // 4)
        quarter = Rows(rows.table.select(range(some)), rows.prepare, rows.keys[:some], rows.lengths[:some])
        first = super().signals(quarter, kind, role)
        stored = super().signals(rows, kind, role)
        lacked = first.report.computed + stored.report.computed
        each = stored.report.seconds / stored.report.computed if stored.report.computed else 0.0
        self.asked.setdefault(of_role(role, kind), (lacked / len(rows), each))
        self._filled += first.report.seconds + stored.report.seconds
        return stored

    def mark_start(self, student: Student) -> None:
        """The student is adapted now, and the teacher was asked for all that training needs."""
        asked, before, began = dict(self.asked), self._filled, time.monotonic()
        teacher, encoder = [], None
        if self.teacher is not None:
            self.seen += self.task.compare(student, self.teacher, thorough=True)
            encoder = self._teacher_encoder(student)
            teacher = self.evaluator.measure("teacher", encoder) if encoder is not None else []
        between = time.monotonic()
        start = self.evaluator.measure("student-before", self._student_encoder(student), encoder)
        self.seconds["evaluating the teacher"] = between - began
        self.seconds["of which asking it"] = self._filled - before
        self.seconds["evaluating the start"] = time.monotonic() - between
        self.asked = asked
        self.seen += in_order(teacher, start)

    def _sampler(self, rows: Rows, method: ObjectiveMethod) -> Any:
        return None  # it would choose from more rows than there are here

    def _logged(self, student: Student, steps: int) -> Callable[[Mapping[str, Any]], None]:
        began = time.monotonic()

        def logged(record: Mapping[str, Any]) -> None:
            if record["step"] > 2 * WARM and time.monotonic() - began > SECONDS:
                raise _Enough

        return logged

    # -- what was found ---------------------------------------------------------------------------------------

    def _terms(self) -> Finding:
        from kdhub.training.engine import magnitudes

        return magnitudes([record["terms"] for record in self.run.metrics() if "terms" in record][:5])

    def _cut(self) -> Finding:
        rows = self.run.provenance["rows"]["train"]
        share = rows["truncated"] / rows["rows"]
        found = f"{rows['truncated']} of {rows['rows']} rows tried are longer than the models take"
        if not rows["truncated"]:
            return Finding("ok", "cut", found, values={"share": 0.0})
        do = "nothing is learned from what is cut off: split long rows, raise max_length, or take another student"
        return Finding("warn" if share > MUCH["cut"] else "note", "cut", f"{found} ({share:.1%})", do, {"share": share})

    def _expected(self, held: Sequence[int], memory: int) -> Finding:
        """Seconds and bytes of the whole run, what this trial stored left out."""
        from kdhub.training.engine import steps_of

        options = self.resolver.method(self.planned).options
        speeds = [r["rows_per_second"] for r in self.run.metrics() if "rows_per_second" in r]
        timed = speeds[WARM:] or speeds
        step = statistics.fmean(options.batch_size / speed for speed in timed)
        tried = self.run.provenance["rows"]["train"]["rows"]
        each, here = max(0, self.whole - tried), self.seconds
        times = sum(held) / max(1, held[0]) if held else 0.0
        asking = here.get("evaluating the teacher", 0.0) * times - here.get("of which asking it", 0.0)
        seconds = {
            "reading": self.whole * here.get("reading", 0.0),
            "teacher": sum(each * lacked * second for lacked, second in self.asked.values()),
            "training": steps_of(options, self.whole)[1] * step,
            "evaluation": asking + 2 * times * here.get("evaluating the start", 0.0),
            "cost": COST_SECONDS if self.planned.evaluation.cost and held else 0.0,
            "page": PAGE_SECONDS,
        }
        whole = sum(seconds.values())
        parts = ", ".join(f"{name} {_clock(value)}" for name, value in seconds.items() if value >= 0.5)
        found = f"about {_clock(whole)} ({parts}) and {size_text(memory)} of memory"
        return Finding("note", "expected", found, values={**seconds, "seconds": whole, "memory_bytes": memory})

    def _held(self) -> list[tuple[Data, str, list[dict[str, Any]]]]:
        """Evaluation data sets with their rows, as models see them."""
        from kdhub.evaluation.evaluator import Evaluator

        options = self.resolver.evaluation_options(self.task, self.planned)
        evaluator = Evaluator(self.task, self.resolver, self.planned.evaluation, options, self.planned.on_bad_rows)
        return [(data, split, self.task.sample(data, split, HELD)) for data, split in evaluator.data]

    def _in_both(self, held: Sequence[tuple[Data, str, list[dict[str, Any]]]]) -> list[Finding]:
        """Which rows that are measured on are trained on as well."""
        found: list[Finding] = []
        if not self.recipe.data.get("train"):
            return found
        table = super().table("train")
        some = sorted(np.random.default_rng(0).permutation(len(table))[:COMPARED].tolist())
        for data, split, rows in held:
            check = f"rows in both: {data.name} {split}"
            columns = [name for name in (rows[0] if rows else ()) if name not in BESIDE]
            if not columns or not set(columns) <= set(table.column_names):
                found.append(
                    Finding("note", check, f"training rows have no {' and '.join(columns) or 'rows'}: not compared")
                )
                continue
            train = [value_of(row, columns) for row in plain_rows(table.select_columns(columns), some)]
            shared = shared_rows([value_of(row, columns) for row in rows], train)
            found.append(_overlap(check, shared, rows, columns, len(some)))
        return found


def _overlap(check: str, shared: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], train: int) -> Finding:
    exact, near = len(shared.exact), len(shared.near)
    values = {"exact": exact / len(rows), "near": near / len(rows)}
    if not exact + near:
        return Finding("ok", check, f"none of {len(rows)} rows is among {train} training rows", values=values)
    shown = rows[next(iter(shared.exact or shared.near))][columns[0]]
    example = f", as {' '.join(shown.split())[:60]!r}" if isinstance(shown, str) else ""
    found = f"{exact} of {len(rows)} rows are among {train} training rows and {near} more nearly{example}"
    status = "warn" if (exact + near) / len(rows) > MUCH["rows in both"] else "note"
    do = "scores on them are too good: leave them out of training, or measure on another split"
    return Finding(status, check, found, do, values)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
