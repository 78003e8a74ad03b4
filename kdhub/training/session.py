"""A run being executed: what a method is given as `run`. It brings engine, evaluation and store to the method."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from kdhub import named_layers
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_values
from kdhub.errors import CompatibilityError, UsageError
from kdhub.evaluation.evaluator import Encoder, Evaluator, describe_data, student_encoder, teacher_encoder
from kdhub.evaluation.report import Report
from kdhub.findings import Finding
from kdhub.method import ObjectiveMethod
from kdhub.metric import Measure
from kdhub.ranks import barrier, device, of_first, rank, repeatable
from kdhub.recipes.chain import link, models_of, part_in
from kdhub.recipes.doors import noting_teachers
from kdhub.recipes.recipe import Recipe
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.recipes.starts import LOCAL
from kdhub.rows import Rows
from kdhub.sampler import Probe, Select
from kdhub.signals.store import FillReport, SignalStore, row_key
from kdhub.signals.stored import (
    Joined,
    OfRole,
    Recomputed,
    Stored,
    answered,
    measured_signals,
    of_role,
    stored_signals,
)
from kdhub.specs import MAIN
from kdhub.student import BuildContext, Student
from kdhub.teacher import Teacher
from kdhub.training import people, pictured
from kdhub.training.saved import raw, widen

logger = logging.getLogger("kdhub")

PROBE_BATCH = 32
"""Rows that are measured at once for a sampler."""


class Session:
    """One execution of a recipe in its run folder: the `kdhub.RunContext` that methods are given.

    Attributes:
        run: the folder; recipe: resolved; seed, task, resolver, plugins.
        method: built with its checked options.
        calls: groups of rows the teacher was asked for by this process.
        saved: the student's folder, once it is written.
        drawn: use of data -> the numbers of its rows that are tried, and how many there are, where that is not all.
    """

    def __init__(self, run: Run, resolver: Resolver):
        self.run, self.resolver = run, resolver
        self.recipe = run.recipe
        self.folder: Path = run.folder
        self.seed = self.recipe.seed
        self.task = resolver.task(self.recipe.task)
        self.method = resolver.method(self.recipe)
        self.plugins = resolver.registry.plugins
        self.calls = 0
        self.saved: Path | None = None
        self.drawn: dict[str, tuple[Sequence[int], int]] = {}
        self._writers: list[Teacher] = []
        self._wrote = self.run.provenance.get("spent", {}).get("data", {})
        self._looking = 0.0  # seconds of training that were spent on `evaluation.curve`
        self._trained: Counter[str] = Counter()  # seconds, steps and rows of all trainings of this process

    # -- what a method sees -----------------------------------------------------------------------------------

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """By role."""
        refs, found, known = self.recipe.teachers, {}, {}
        for role, ref in refs.items():
            found[role] = teacher = self.resolver.teacher(ref, ref.task or self.recipe.task)
            teacher.on_bad_rows = self.recipe.on_bad_rows
            self.run.same("teacher" if role == MAIN else f"teacher {role}", teacher.identity)
            known[role] = self._known(teacher, ref.source) | ({"task": ref.task} if ref.task else {})
        if list(refs) == [MAIN]:
            self.run.add_provenance(teacher=known[MAIN])
        elif known:
            ids = " and ".join(f"{one.get('id') or one['source']} ({role})" for role, one in known.items())
            members = [{"role": role, **one} for role, one in known.items()]
            self.run.add_provenance(teacher={"source": self.recipe.teacher.source, "id": ids, "members": members})
        return found

    @property
    def teacher(self) -> Teacher | None:
        return self.teachers.get(MAIN)

    def _known(self, teacher: Teacher, source: str) -> dict[str, Any]:
        """What the provenance says of a teacher, and of its members."""
        facts = {"source": source, **teacher.provenance, **({"terms": teacher.terms} if teacher.terms else {})}
        if made := self.resolver.made_by(facts["source"]):  # its folder says nothing to anybody else
            facts |= {"source": made, "id": made}
        if teacher.members:
            told = [self._known(one, str(one.provenance.get("source", one.argument))) for one in teacher.members]
            facts |= {"id": " and ".join(str(one.get("id") or one["source"]) for one in told), "members": told}
        return facts

    @cached_property
    def student(self) -> Student:
        return self.build_student()

    def build_student(self) -> Student:
        """The start, always the same under one seed."""
        from transformers import set_seed

        set_seed(self.seed)
        parts = self.training_data.get("train", [])
        try:
            facts = self.task.survey(parts)
        finally:
            self._note_written()
        self._note_data([describe_data(data, split, "train") for data, split in parts])
        beside = [(data, split) for data, _ in parts for split in self.task.aside if split in data.splits]
        self._note_data([describe_data(data, split, split) for data, split in beside])
        context = BuildContext(self.task, self.teacher, self.seed, facts=facts)
        student = self.resolver.student(self.recipe.student, context)
        self._fits_problem(student)
        self._widen(student.module, student.precision)
        start = {"source": self.recipe.student.source, **student.start}
        if made := self.resolver.made_by(self.recipe.student.source):
            how = str(start.get("how") or LOCAL)  # what the task did to it stays
            start |= {"source": made, "how": how.replace(LOCAL, f"the student of {link(made) or made}")}
        digest = weights_digest(student)
        self.run.same("start", {"source": start["source"], "weights": digest})
        self.run.add_provenance(student={"start": start, "start_sha256": digest})
        return student

    def _fits_problem(self, student: Student) -> None:
        """
        Raises:
            CompatibilityError: the student is for a form of its task that the method is not for.
        """
        if student.problem and student.problem not in self.method.spec.problems:
            entries = self.resolver.registry.all("method", self.recipe.task)
            fitting = [entry.name for entry in entries if student.problem in entry.spec.problems]
            raise CompatibilityError(
                f"method {self.recipe.method} is not for {student.problem}, and the student is",
                hint=f"methods that are: {', '.join(fitting) or 'none here'}",
            )

    def _widen(self, module: Any, saved: str | None = None) -> None:
        """Have weights that are trained in float32, unless the recipe says otherwise: small steps are lost in fewer
        bits."""
        if module is None or not getattr(self.method.options, "master_weights", True):
            return
        if widen(module) and saved is not None and rank() == 0:
            logger.info("the start is in a narrower precision: its weights are trained in float32, saved in %s", saved)

    @cached_property
    def training_data(self) -> dict[str, list[tuple[Data, str]]]:
        """Data sets of each use (`train`, ...) with their splits."""
        opened = {}
        with noting_teachers() as self._writers:
            for use, refs in self.recipe.data.items():
                opened[use] = []
                for ref in refs:
                    data = self.resolver.data(ref, self.recipe.on_bad_rows)
                    opened[use].append((data, data.pick(use, "train")))
        known = self.run.provenance.get("lineage", [])
        for one in (self._known(writer, "") for writer in self._writers):
            known += [part for model in models_of(one) if (part := part_in("data", model)) not in known]
        self.run.add_provenance(lineage=known)
        return opened

    @property
    def data_uses(self) -> tuple[str, ...]:
        return tuple(self.recipe.data)

    def has_rows(self, use: str) -> bool:
        return bool(self.recipe.data.get(use))

    def rows(self, use: str = "train", **settings: Any) -> Rows:
        """The rows of one use of data, prepared for this teacher and this student, read once for keys and lengths."""
        table = self.table(use)
        signal = self.task.primary_signal
        if self.teacher is not None and signal in self.method.spec.needs:
            if why := self.task.mismatch(self.student, self.teacher):
                raise CompatibilityError(why, hint=f"method {self.recipe.method} learns from the teacher's {signal}")
        prepare = self.task.preparer(self.student, self.teacher, **settings)
        logger.info("reading %d %s rows", len(table), use)
        read = Rows.build(table, prepare, row_key)
        whole = " and ".join(f"{data.name} {split}" for data, split in self.training_data[use])
        if drawn := self.drawn.get(use):
            read.bad.drawn, many = drawn
            whole += f" ({len(read)} of its {many} rows were tried)" if len(read) < many else ""
        rows = read.readable(whole, self.recipe.on_bad_rows).learnable()
        facts: dict[str, Any] = {"skipped": read.bad.counts} if read.bad.counts else {}
        for role, asked in self.method.spec.teachers.items():
            unsure = role in self.teachers and not self.teachers[role].complete
            for kind in [k for k in asked.needs if unsure and (role != MAIN or k == signal)]:
                kept = answered(self.signals(rows, kind, role), self.recipe.on_bad_rows, f"data.{use}")
                if len(kept) < len(rows):
                    facts["unanswered"] = facts.get("unanswered", 0) + len(rows) - len(kept)
                rows = rows.select(kept)
        self.run.same(f"{use} rows as the models see them ({', '.join(settings) or 'plain'})", {"digest": rows.digest})
        if rows.truncated:
            logger.info("%d of %d texts are longer than the models take and were cut", rows.truncated, len(rows))
        facts |= {"rows": len(rows), "truncated": rows.truncated, "mean_length": round(float(rows.lengths.mean()), 1)}
        self.run.add_provenance(rows={use: facts})
        return rows

    def table(self, use: str) -> Any:
        """The plain rows of one use of data (`datasets.Dataset`)."""
        if use not in self.training_data:
            raise UsageError(
                f"the recipe has no data for {use!r}", hint=f"set it with --data, or data.{use} in the recipe"
            )
        parts = self.training_data[use]
        self._note_data([describe_data(data, split, use) for data, split in parts])
        return self.task.training_table(parts)

    def signals(self, rows: Rows, kind: str, role: str = MAIN, *, read: bool = False) -> Stored | Joined:
        """Stored signals of these rows of a teacher; what is missing is computed, by all ranks together."""
        teacher, own = self.teachers.get(role), "" if role == MAIN else f" {role}"
        if teacher is None:
            raise UsageError(f"the method asks for {kind!r}, and the recipe has no teacher{own}")
        before = dict(teacher.spent)
        try:
            rows = rows if read else self.read_by(role, rows)
            stored = stored_signals(teacher, rows, kind, dtype=self.recipe.signals.dtype)
        finally:
            self._note_spent(of_role(role, kind), teacher, before)
        kind = of_role(role, kind)
        for n, part in enumerate(stored.parts, 1):
            report, which = part.report, f"teacher{own} {n}" if teacher.members else f"teacher{own}"
            self.calls += report.calls
            if report.computed:
                logger.log(
                    logging.DEBUG if read else logging.INFO,  # a method's own prompts may be many small batches
                    "%s computed %s for %d rows in %.1f s (%d already stored)",
                    which, kind, report.computed, report.seconds, report.found,
                )  # fmt: skip
            self._note_signals(f"{kind} of {which}" if teacher.members else kind, part.store, report)
        return stored

    def read_by(self, role: str, rows: Rows) -> Rows:
        """Rows as a teacher reads them: one of another task by its own task's preparer.

        Raises:
            CompatibilityError: they lack the columns that its task reads. DataError: it cannot read some.
        """
        teacher, task = self.teachers[role], self.recipe.teachers[role].task
        if task is None:
            return rows
        columns, reads = rows.table.column_names, self.resolver.registry.find("task", task).spec.reads
        if reads and not any({*group} <= {*columns} for group in reads):
            wanted = " or ".join(", ".join(group) for group in reads)
            raise CompatibilityError(
                f"teacher {role} is for {task}, which reads {wanted}; the rows have {', '.join(columns)}",
                hint="name the columns of the data after what they hold: columns: {OURS: THEIRS}",
            )
        read = Rows.build(rows.table, teacher.task.preparer(None, teacher), row_key)
        return read.readable(f"rows as teacher {role} reads them")

    def measured_signals(self, rows: Rows, kind: str) -> Stored | Joined | Recomputed:
        """Those of rows that are only measured on: heavy ones of a local teacher are computed again, not stored."""
        given = measured_signals(self.teacher, rows, kind, dtype=self.recipe.signals.dtype, stored=self.signals)
        if isinstance(given, Recomputed):
            known = self.run.provenance.get("not_stored", {}).get(kind, 0)
            self.run.add_provenance(not_stored={kind: max(known, len(rows))})
        return given

    @repeatable()
    def fit(self, method: ObjectiveMethod, student: Student, name: str | None = None) -> Student:
        """Adapt the student, measure its start, and train it to the end."""
        import torch
        from accelerate.utils import send_to_device
        from transformers import set_seed

        from kdhub.evaluation.cost import peak_memory
        from kdhub.rows import Signals, as_tensor
        from kdhub.training.engine import Engine

        method.teachers = self.teachers
        method.check(student, self.teacher)
        rows = method.rows(self)
        live = self._live(method)
        student.layers = named_layers.shapes(self.task, student, rows[[0]], method.uses(student))
        for role, one in live.items():
            for kind in filter(named_layers.is_layer, method.needs_of(role, one)):
                one.look(kind, self.read_by(role, rows)[[0]])
            if one.module is None:  # what it cannot give is said before it is asked
                for kind in method.needs_of(role, one):
                    one.layout(f"{kind}:{self.recipe.signals.keep}")
        given = {}
        for role, kind, asked in self.stored_kinds(method):
            stored = self.signals(rows, asked, role)
            given[of_role(role, kind)] = stored if role == MAIN else OfRole(role, stored)
        # A teacher whose outputs are stored is not built and draws nothing; what is made again must not depend on it.
        set_seed(self.seed)
        method.adapt(student, self.teacher)
        self._widen(student.module)
        for model in (student, *(one for one in live.values() if one.module is not None)):
            model.module.to(device())
        if type(method).initialise is not ObjectiveMethod.initialise:
            some = rows.some(1024)
            stored = {k: as_tensor(v) for s in given.values() for k, v in s[some].items()}
            with torch.no_grad():
                inputs, stored = send_to_device((self.task.collate(rows[some], student), stored), device())
                method.initialise(student, inputs, Signals(stored))
        if self.teacher is not None and rank() == 0:
            say(self.task.compare(student, self.teacher))
        self.mark_start(student)
        set_seed(self.seed)
        extras = method.extras(student, self.teacher)
        for extra in extras.values():
            self._widen(extra)
        engine = Engine(
            self.run,
            method,
            self.task,
            student,
            extras=extras,
            rows=rows,
            signals=given,
            live=live,
            sampler=self._sampler(rows, method),
            probe=partial(self._prober, method, student),
            seed=self.seed,
            fit=of_first(self.run.next_fit(name)),
            name=name,
        )
        engine.logged = self._logged(student, engine.steps)
        before = {role: dict(one.spent) for role, one in live.items()}
        try:
            facts = engine.train()
        finally:
            for role, one in live.items():
                self._note_spent(of_role(role, "training"), one, before[role])
        facts["seconds"] = round(facts["seconds"] - self._looking, 2)
        if live:
            asked, own = facts.pop("asked"), type(method).ask is not ObjectiveMethod.ask
            facts["live_teacher_calls"] = asked["calls"]
            facts["live_teacher_rows"] = asked["rows"] if own else facts["steps"] * method.options.batch_size
        sums = ("seconds", "steps", "live_teacher_calls", "live_teacher_rows")
        self._trained.update({name: facts[name] for name in sums if name in facts})
        self.run.add_provenance(training={**facts, **self._trained, "peak_memory_bytes": peak_memory()})
        return student

    def evaluate(self, student: Student) -> Report:
        """Measure teacher, start and student, and what each costs."""
        report, teacher = Report(), self._teacher_encoder(student)
        if teacher is not None:
            report.measures += self._measured("teacher", teacher)
        elif self.teacher is not None:
            report.notes.append(f"the teacher was not measured: {self.task.mismatch(student, self.teacher)}")
        if self.run.finished("student-before"):
            report.measures += [Measure(**m) for m in self.run.stage("student-before", lambda: None)]
        report.measures += self._measured("student", self._student_encoder(student), teacher, fresh=True)
        report.measures += self._measure_members(student)
        report.notes += self.evaluator.notes
        self._note_data(self.evaluator.used)
        report.facts = self._facts(student)
        return report

    def _measure_members(self, student: Student) -> list[Measure]:
        """Each member of a teacher, and each teacher with a role, and the student's fidelity to each."""
        fidelity = {e.name for e in self.resolver.registry.all("metric", self.task.name) if e.spec.fidelity}
        encode, found = self._student_encoder(student), []
        for n, theirs in self.other_teachers(student):
            mine = [m for m in self.evaluator.of_data("student", encode, theirs) if m.metric in fidelity]
            of_member = self.evaluator.measure("teacher", theirs)
            found += [replace(m, variant={"teacher": n}) for m in (*of_member, *mine) if not m.variant]
        return found

    def other_teachers(
        self, student: Student, ask: Callable[..., Any] | None = None
    ) -> Iterator[tuple[int | str, Encoder]]:
        """Members of the teacher by number, and teachers with a role, as far as they are measured.

        Args:
            ask: gives their signals, as `measured_signals` does, with the number or role in front.
        """
        others = {n: one for n, one in enumerate(self.teacher.members if self.teacher is not None else (), 1)}
        others |= {role: one for role, one in self.teachers.items() if role != MAIN}
        for n, member in others.items():
            if task := self.recipe.teachers[n].task if n in self.teachers else None:
                self.evaluator.notes.append(f"teacher {n} is for {task}: it was not measured")
            elif not self.task.mismatch(student, member):
                ask_it = partial(ask, n) if ask else measured_signals
                asked = partial(ask_it, member, dtype=self.recipe.signals.dtype)
                yield n, teacher_encoder(self.task, member, asked)

    def select(self, name: str) -> Select:
        return self.resolver.select(name, self.task.name)

    def ask_people(self, name: str, rows: Mapping[int, Mapping[str, Any]], labels: Collection[str]) -> dict[int, str]:
        if not rows:
            return {}
        path, what = self.folder / name, f"asked in {name}: from row "
        stage, held = f"{what}{min(rows)}", people.holds(path, rows)
        noted = self.run.finished(stage)
        self.run.stage(stage, lambda: list(rows))
        if rank() == 0 and not held:
            people.write(path, rows)
        barrier()
        stages = self.run.read_json("state.json")["stages"]
        known = {number for one, given in stages.items() if one.startswith(what) for number in given}
        begun_before = held and not noted  # by a version that did not note what it asked
        resume = f"kdhub distill --resume {self.folder}"
        told = people.read(path, rows, labels, None if begun_before else known, resume)
        self.run.same(f"label in {name}, from row {min(rows)}", {f"row {n}": label for n, label in told.items()})
        return told

    def log(self, **record: Any) -> None:
        self.run.log(**record)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        return self.run.stage(name, work)

    # -- evaluation -------------------------------------------------------------------------------------------

    @cached_property
    def evaluator(self) -> Evaluator:
        options = self.resolver.evaluation_options(self.task, self.recipe)
        found = Evaluator(self.task, self.resolver, self.recipe.evaluation, options, self.recipe.on_bad_rows)
        if self.teacher is not None and not self.teacher.complete:
            found.only_answered(self.teacher, self.signals)
        return found

    def _live(self, method: ObjectiveMethod) -> dict[str, Teacher]:
        """The teachers that a method asks in training, by role."""
        roles = method.spec.teachers
        return {role: one for role, one in self.teachers.items() if role in roles and roles[role].live}

    def stored_kinds(self, method: ObjectiveMethod) -> Iterator[tuple[str, str, str]]:
        """The signals of training rows that a method has from the store: the teacher's role, the kind as the method
        names it, and in the form that is kept (`signals.keep`)."""
        roles, live = method.spec.teachers, self._live(method)
        keep = "" if self.recipe.signals.keep == "all" else f":{self.recipe.signals.keep}"
        if MAIN not in live:
            yield from ((MAIN, kind, kind + keep) for kind in method.needs(self.teacher))
        for role, one in self.teachers.items():
            if role in roles and role not in (MAIN, *live):
                yield from ((role, kind, kind) for kind in method.needs_of(role, one))

    def mark_start(self, student: Student) -> None:
        """Measure the student as it stands before training, once in the life of the run."""
        if rank() == 0:
            self.run.add_provenance(student={"start_parameters": parameters(student)})
            encode, against = self._student_encoder(student), self._teacher_encoder(student)
            teacher = self._measured("teacher", against) if against is not None else []
            say(in_order(teacher, self._measured("student-before", encode, against)))
        barrier()

    def _logged(self, student: Student, steps: int) -> Callable[[Mapping[str, Any]], None]:
        """What happens at each logged step: add-ons hear of it, and `evaluation.curve` measures the student."""
        points, reached = self.recipe.evaluation.curve, 0

        def logged(record: Mapping[str, Any]) -> None:
            nonlocal reached
            self.plugins.call("kdhub_step_logged", run=self.run, record=record)
            if points and rank() == 0 and (share := record["step"] * points // steps) > reached:
                reached, began = share, time.monotonic()
                if found := self.evaluator.glance(self._student_encoder(student)):
                    at = {name: record[name] for name in ("fit", "training", "step") if name in record}
                    self.run.log(**at, metric=found[0], measured=found[1])
                self._looking += time.monotonic() - began

        return logged

    def _measured(self, subject: str, encode: Any, against: Any = None, fresh: bool = False) -> list[Measure]:
        """A stage of its own, except for the student: a resumed run that trained again must not show an old score."""
        if fresh:
            return [Measure(**m) for m in self._measure_dicts(subject, encode, against)]
        return [Measure(**m) for m in self.run.stage(subject, lambda: self._measure_dicts(subject, encode, against))]

    def _measure_dicts(self, subject: str, encode: Any, against: Any) -> list[dict[str, Any]]:
        seen = partial(pictured.keep, self.run, self.task, subject)
        return [m.to_dict() for m in self.evaluator.measure(subject, encode, against, seen)]

    def _teacher_encoder(self, student: Student) -> Any:
        """None without a teacher, or where it cannot be compared with the student."""
        if self.teacher is None or self.task.mismatch(student, self.teacher):
            return None
        return teacher_encoder(self.task, self.teacher, self.measured_signals)

    def _student_encoder(self, student: Student) -> Any:
        return student_encoder(self.task, student, self.saved)

    def _facts(self, student: Student) -> dict[str, Any]:
        rows = self.run.provenance.get("rows", {})
        skipped = {
            f"{d['name']} {d['split']}": sum(d["skipped"].values())
            for d in self.run.provenance.get("data", {}).get("use", [])
            if d.get("skipped")
        }
        width = {"student": getattr(student, "width", None), "teacher": getattr(self.teacher, "width", None)}
        width = {of: found for of, found in width.items() if isinstance(found, int)}  # some have one for each signal
        return {
            "primary": self.evaluator.primary,
            "width": width,
            "truncated": {use: f["truncated"] for use, f in rows.items() if f.get("truncated")},
            "skipped": skipped,
            "unanswered": {
                **{f"data.{use}": f["unanswered"] for use, f in rows.items() if f.get("unanswered")},
                **self.evaluator.unanswered,
            },
        }

    # -- notes ------------------------------------------------------------------------------------------------

    def _sampler(self, rows: Rows, method: ObjectiveMethod) -> Any:
        if self.recipe.sampler is None:
            return None
        cls, options = self.resolver.sampler(self.recipe.sampler, self.recipe.task)
        sources = [ref.source for ref in self.recipe.data["train"]]
        counts = [len(self.task.training_table([part])) for part in self.training_data["train"]]
        if rows.kept is not None:
            counts = np.diff(np.searchsorted(rows.kept, [0, *np.cumsum(counts)])).tolist()
        options["parts"] = list(zip(sources, counts))
        if asked := self.resolver.target("sampler", self.recipe.sampler.source, self.recipe.task).entry.spec.columns:
            options["columns"] = {name: self._column(rows, name) for name in asked}
        return cls(rows.lengths, method.options.batch_size, self.seed, **options)

    def _column(self, rows: Rows, name: str) -> list[Any]:
        """The values of a column, one for each training row: of the rows themselves, else of the data that they are
        of, whose other columns a task may have left out.

        Raises:
            CompatibilityError: there is none.
        """
        if name in rows.table.column_names:
            return list(named_values(rows.table, name))
        parts = self.training_data["train"]
        tables = [data.split(split) for data, split in parts]
        if all(name in table.column_names for table in tables):
            values = [value for table in tables for value in named_values(table, name)]
            chosen = values if rows.kept is None else [values[i] for i in rows.kept if i < len(values)]
            if len(chosen) == len(rows) and len(values) == len(self.task.training_table(parts)):  # one for one
                return chosen
        lacking = [data.name for (data, _), table in zip(parts, tables) if name not in table.column_names]
        known = dict.fromkeys(column for table in (rows.table, *tables) for column in table.column_names)
        raise CompatibilityError(
            f"sampler {self.recipe.sampler.source} orders rows by their column {name!r}, which the rows of "
            f"{', '.join(lacking) or 'this method'} do not have; there are {', '.join(c for c in known if c != name)}",
            hint=f"map it: columns: {{{name}: THEIRS}}",
        )

    def _prober(self, method: ObjectiveMethod, student: Student, wanted: Probe) -> Callable[[], dict[str, float]]:
        """What a sampler asks for. The teacher's losses are computed once; it does not change.

        Raises:
            UsageError: no teacher, or not one validation data set for each of the training data.
        """
        import torch
        from accelerate.utils import send_to_device

        from kdhub.rows import Signals, as_tensor

        train, kept = self.training_data["train"], self.training_data.get("validation", [])
        if self.teacher is None or len(kept) != len(train):
            raise UsageError(
                f"sampler {self.recipe.sampler.source} compares student and teacher on validation data of each data "
                f"set: data.train has {len(train)}, data.validation {len(kept)}"
                + ("" if self.teacher else ", and there is no teacher"),
                hint="give data.validation one entry for each of data.train, in the same order",
            )
        prepare = self.task.preparer(student, self.teacher, **method.settings())
        domains = []
        for data, split in kept:
            table = self.task.training_table([(data, split)])
            rows = Rows.build(table.select(range(min(wanted.rows, len(table)))), prepare, row_key)
            domains.append(rows.readable(f"validation rows of {data.name}", self.recipe.on_bad_rows))

        def mean(rows: Rows, outputs: Callable[[np.ndarray, Any], Signals]) -> float:
            losses = []
            for start in range(0, len(rows), PROBE_BATCH):
                some = np.arange(start, min(start + PROBE_BATCH, len(rows)))
                batch = send_to_device(self.task.collate(rows[some], student), device())
                losses.append(self.task.label_losses(outputs(some, batch), batch))
            return float(torch.cat(losses).double().mean())

        signal, found = self.task.primary_signal, {}
        for i, rows in enumerate(domains):
            stored = self.measured_signals(rows, signal)
            read = lambda some, stored=stored: {k: as_tensor(v) for k, v in stored[some].items()}  # noqa: E731
            given = lambda some, _, read=read: Signals(send_to_device(read(some), device()))  # noqa: E731
            found[f"teacher:{i}"] = mean(rows, given)

        def now() -> dict[str, float]:
            was = student.module.training
            student.module.eval()
            with torch.no_grad():
                forward = lambda _, batch: self.task.forward(student.module, batch)  # noqa: E731
                told = {f"student:{i}": mean(rows, forward) for i, rows in enumerate(domains)}
            student.module.train(was)
            return found | told

        return now

    def _note_written(self) -> None:
        """What the teachers of data sets have asked of servers: rows are made where they are first read."""
        spent = Counter(self._wrote)
        for writer in self._writers:
            spent.update(writer.spent)
        if any(spent.values()):
            self.run.add_provenance(spent={"data": {name: round(value, 6) for name, value in spent.items()}})

    def _told(self, facts: Any) -> Any:
        """What is written down of data, at every depth with recipes in place of their students' folders."""
        if isinstance(facts, Mapping):
            return {key: self._told(value) for key, value in facts.items()}
        if isinstance(facts, list | tuple):
            return [self._told(value) for value in facts]
        return (self.resolver.made_by(facts) or facts) if isinstance(facts, str) else facts

    def _note_data(self, used: list[dict[str, Any]]) -> None:
        used = [self._told(d) for d in used]
        seen: Counter[str] = Counter()
        for d in used:
            name = f"{d['use']} data {d['source']} {d['split']}"
            seen[name] += 1  # a source may stand there twice, with other columns or other rows
            again = f" ({seen[name]})" if seen[name] > 1 else ""
            self.run.same(name + again, {k: d[k] for k in ("rows", "fingerprint")})
        known = self.run.provenance.get("data", {}).get("use", [])
        names = {(d["use"], d["source"], d["split"]) for d in used}
        kept = [d for d in known if (d["use"], d["source"], d["split"]) not in names]
        self.run.add_provenance(data={"use": kept + used})

    def _note_spent(self, kind: str, teacher: Teacher, before: Mapping[str, float]) -> None:
        """What somebody else's server was asked for, whether all went well or not; the sum over the processes of a run,
        but for what one had asked when it was killed."""
        known = self.run.provenance.get("spent", {}).get(kind, {})
        now = {name: value - before[name] + known.get(name, 0) for name, value in teacher.spent.items()}
        if any(now.values()):
            self.run.add_provenance(spent={kind: {name: round(value, 6) for name, value in now.items()}})

    def _note_signals(self, kind: str, store: SignalStore, report: FillReport) -> None:
        before = self.run.provenance.get("signals", {}).get(kind, {})
        facts = {n: v + before.get(n, 0) for n, v in asdict(report).items() if n in ("computed", "found", "calls")}
        facts["seconds"] = round(report.seconds + before.get("seconds", 0.0), 2)
        facts |= {"store": store.name, "rows": len(store), "item_bytes": store.item_bytes}
        self.run.add_provenance(signals={kind: facts})


def in_order(teacher: Sequence[Measure], start: Sequence[Measure]) -> list[Finding]:
    """Whether the teacher is above the student's start, by the first thing that both were measured by."""
    mine = {(m.metric, m.dataset, m.split): m for m in reversed(start) if m.value is not None and not m.variant}
    pairs = [(t, mine[key]) for t in teacher if (key := (t.metric, t.dataset, t.split)) in mine and not t.variant]
    for above, below in pairs[:1]:
        found = f"{above.metric} on {above.dataset} {above.split}: teacher {above.value:.4g}, start {below.value:.4g}"
        if (above.value > below.value) == above.higher_is_better or above.value == below.value:
            return [Finding("ok", "teacher above start", found)]
        do = "there is little to learn from it: check its prompts and this data, or take another teacher"
        return [Finding("warn", "teacher above start", found, do)]
    return []


def say(findings: Sequence[Finding]) -> None:
    """Warn of what is likely to spoil the result."""
    for one in findings:
        if one.status in ("warn", "fail"):
            logger.warning("%s: %s%s", one.check, one.found, f"; {one.do}" if one.do else "")


def weights_digest(student: Any) -> str | None:
    """sha256 of a student's weights, by which two starts can be told apart; None when it has none."""
    import hashlib

    module = getattr(student, "module", None)
    if module is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(raw(tensor))
    return digest.hexdigest()


def parameters(student: Any) -> int | None:
    """Parameters of a student's (or teacher's) network, None when it has none."""
    module = getattr(student, "module", None)
    return sum(p.numel() for p in module.parameters()) if module is not None else None


@contextlib.contextmanager
def running(run: Run, plugins: Any):
    """Tell add-ons that a run starts and ends, and hold its lock."""
    plugins.call("kdhub_run_started", run=run)
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        plugins.call("kdhub_run_finished", run=run, error=error)
        run.unlock()


def cost_subjects(recipe: Recipe, student: Path) -> list[dict[str, Any]]:
    """What `kdhub.evaluation.cost.measure` is asked to measure: the recipe's teacher, and a student folder."""
    teachers = [
        {"subject": "teacher" if role == MAIN else f"teacher {role}", "source": ref.source, **ref.options}
        for role, ref in recipe.teachers.items()
        if ref.task is None  # one of another task reads other rows
    ]
    return [*teachers, {"subject": "student", "folder": str(student)}]
