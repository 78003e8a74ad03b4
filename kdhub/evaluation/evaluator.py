"""Measuring one subject on a recipe's evaluation data: quality, fidelity, and other ways to look at its outputs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.errors import HubError, KdhubError, UnavailableError
from kdhub.evaluation.report import OWN_FILES, STUDENT
from kdhub.families import MEMBER
from kdhub.metric import Measure, Part
from kdhub.plugins.registry import Entry
from kdhub.recipes.recipe import Evaluation
from kdhub.recipes.resolve import Resolver
from kdhub.rows import BadRows, Prepare, Rows, plain_rows, prepared
from kdhub.signals.store import row_key
from kdhub.signals.stored import answered
from kdhub.specs import MetricSpec
from kdhub.student import Student
from kdhub.task import Encoder, NetworkTask, Task, View
from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

BATCH = 4096
"""Rows handed to a model at once in evaluation."""


class Evaluator:
    """Scores subjects on the same data with the same metrics.

    Args:
        task: runs models over data.
        resolver: finds data and metrics.
        plan: the recipe's `evaluation`.
        options: of the task's evaluation.
        on_bad_rows: as in the recipe.

    Attributes:
        notes: what was left out, and why.
        used: what the provenance says of each data set.
        unanswered: data set and split -> rows that the teacher has no answer for, which are left out.
    """

    def __init__(self, task: Task, resolver: Resolver, plan: Evaluation, options: Any, on_bad_rows: str = "stop"):
        self.task, self.resolver, self.plan, self.options = task, resolver, plan, options
        self.on_bad_rows = on_bad_rows
        self.notes: list[str] = []
        self.used: list[dict[str, Any]] = []
        self.unanswered: dict[str, int] = {}
        self._data: list[tuple[Data, str]] | None = None
        self._metrics = self._load_metrics()

    @property
    def reads_files(self) -> bool:
        """Whether some metric needs no data but the student's own files."""
        return any(spec.files for spec, _ in self._metrics)

    def _load_metrics(self) -> list[tuple[MetricSpec, Callable[..., float]]]:
        registry, wanted = self.resolver.registry, self.plan.metrics
        first = set(self.task.primary.values())
        entries = sorted(registry.all("metric", self.task.name), key=lambda e: e.name not in first)
        wanted_here = [e for e in entries if not e.spec.cost and (wanted is None or e.name in wanted)]
        return [(e.spec, registry.load(e)) for e in wanted_here]

    @property
    def data(self) -> list[tuple[Data, str]]:
        """Data sets with their splits, opened once; optional ones that cannot be had are noted and left out."""
        if self._data is None:
            self._data = []
            for ref in self.plan.data:
                try:
                    data = self.resolver.data(ref, self.on_bad_rows)
                    split = data.pick("test", "validation", "train")
                    data.split(split)
                except (UnavailableError, HubError) as error:
                    if not ref.optional:
                        raise
                    reasons = [line.strip(" -") for line in error.message.splitlines()]
                    self.notes.append(f"{ref.source} was left out: {reasons[0]} {'; '.join(reasons[1:])}".strip())
                    logger.info("%s was left out: its files are not here", ref.source)
                    continue
                self._data.append((data, split))
                self.used.append(describe_data(data, split, "evaluation"))
        return self._data

    def only_answered(self, teacher: Teacher, signals: Callable[[Rows, str], Any]) -> None:
        """Leave out the rows that a teacher has no answer for, for all subjects alike (`Teacher.complete`).

        Raises:
            TeacherError: there are some and bad rows stop, or nothing is left.
        """
        for n, (data, split) in enumerate(self.data):
            table = self.task.training_table([(data, split)])
            rows = Rows.build(table, self.task.preparer(None, teacher), row_key)
            where = f"{data.name} {split}"
            kept = answered(signals(rows, self.task.primary_signal), self.on_bad_rows, where)
            if len(kept) < len(table):
                own, form = {"licence": data.licence, "ref": data.ref, "tags": data.tags}, data.form(split)
                chosen = {split: data.split(split).select(kept)}
                self.data[n] = (Data.from_dataset(data.name, chosen, format=form, **own), split)
                self.unanswered[where] = len(table) - len(kept)

    def measure(
        self,
        subject: str,
        encode: Encoder,
        teacher: Encoder | None = None,
        seen: Callable[[Any], None] | None = None,
    ) -> list[Measure]:
        """All numbers of one subject.

        Args:
            subject: "teacher", "student", "student-before", "baseline:<name>".
            encode: gives its outputs.
            teacher: gives the teacher's, for fidelity and for student and teacher used together.
            seen: is given what the task collected of the first data set.
        """
        found = [*self.of_files(subject, encode), *self.of_data(subject, encode, teacher, seen=seen)]
        return [*found, *self.of_members(encode, teacher)] if subject == STUDENT else found

    def of_members(
        self, encode: Encoder, teacher: Encoder | None = None, names: Iterable[str] | None = None
    ) -> list[Measure]:
        """Of a student that is a family of sizes: what its members give, cut out, each with its name as variant.

        Args:
            names: of the members that are asked; all if None.
        """
        family, measures, given = encode.model, [], {}
        for name in (family.members if names is None else names) if isinstance(family, Student) else ():
            logger.info("member %s:", name)
            found = self.of_data(STUDENT, student_encoder(self.task, family.cut(name)), teacher, given)
            measures += [replace(m, variant={MEMBER: name}) for m in found if m.subject == STUDENT and not m.variant]
        return measures

    def of_files(self, subject: str, encode: Encoder) -> list[Measure]:
        """What the files of a student that is not run say of it, of each split where it has some."""
        measures: list[Measure] = []
        if not self.reads_files or not isinstance(encode.model, Student) or encode.model.answers:
            return measures
        with _files(encode) as folder:
            for spec, function in self._metrics:
                for one in _parts(function(folder)) if spec.files else ():
                    if one.value is not None:
                        more = {"value": float(one.value), "variant": dict(one.variant)}
                        measures.append(_measure(spec, subject, OWN_FILES, one.split, **more))
        return measures

    def of_data(
        self,
        subject: str,
        encode: Encoder,
        teacher: Encoder | None = None,
        known: dict[int, Any] | None = None,
        seen: Callable[[Any], None] | None = None,
    ) -> list[Measure]:
        """What a subject gives on the evaluation data.

        Args:
            known: the teacher's outputs on each data set, kept here for other subjects.
            seen: is given what the task collected of the first data set.
        """
        measures: list[Measure] = []
        if isinstance(encode.model, Student) and isinstance(self.task, NetworkTask) and not encode.model.answers:
            if self.data and (note := f"the {encode.model.kind} is not run on evaluation data") not in self.notes:
                self.notes.append(note)
            return measures
        for n, (data, split) in enumerate(self.data):
            logger.info("evaluating %s on %s %s", subject, data.name, split)
            outputs = self.outputs(encode, data, split)
            if seen is not None and not n and not self._owners(data, split):
                seen(outputs)
            given = known.get(n) if known else None
            if given is None and teacher is not None:
                given = self.outputs(teacher, data, split)
                if known is not None:
                    known[n] = given
            measures += self._score(outputs, subject, data, split, given)
            self._settle(subject, encode, data, split)
            if given is not None and subject == "student" and getattr(self.options, "asymmetric", False):
                mixed = self.task.mixed(outputs, given)
                if mixed is not None:
                    measures += self._score(mixed, "asymmetric", data, split, None)
        return measures

    def _settle(self, subject: str, encode: Encoder, data: Data, split: str) -> None:
        """Stop for rows that a subject cannot read, or note how many were left out."""
        bad, rows = BadRows(), len(data.split(split))
        for number, cause in sorted(encode.faults.items()):
            bad.add(cause, number)
        bad.settle(f"{data.name} {split}", rows, self.on_bad_rows)
        if bad.counts:
            self.notes.append(f"{len(bad.numbers)} of {rows} rows of {data.name} {split} were left out for {subject}")
            encode.faults.clear()

    def glance(self, encode: Encoder) -> tuple[str, float] | None:
        """One number, while training: the primary metric on the first data set, None when there is none."""
        for data, split in self.data[:1]:
            outputs = self.outputs(encode, data, split)
            for spec, function in self._metrics:
                if spec.name == self.primary.get(data.form(split)):
                    return spec.name, float(function(outputs))
        return None

    @cached_property
    def primary(self) -> dict[str, str]:
        """Form of data -> the metric that stands for quality there."""
        own = {data.form(split): found[0] for data, split in self.data if (found := self._owners(data, split))}
        return {**self.task.primary, **{form: entry.name for form, entry in own.items()}}

    def _owners(self, data: Data, split: str) -> list[Entry]:
        """The metrics that alone understand the rows of a split (`MetricSpec.rows`)."""
        columns = set(data.split(split).column_names)
        entries = self.resolver.registry.all("metric", self.task.name)
        return [entry for entry in entries if entry.spec.rows and columns.issuperset(entry.spec.rows)]

    def outputs(self, encode: Encoder, data: Data, split: str) -> Any:
        """What metrics read of a subject: what the task collects, or a metric's own function."""
        if owners := self._owners(data, split):
            return self.resolver.registry.load_target(owners[0], "outputs")(encode, data.split(split))
        return self.task.outputs(encode, data, split)

    def _score(self, outputs: Any, subject: str, data: Data, split: str, given: Any) -> list[Measure]:
        form, measures = data.form(split), []
        owners = tuple(entry.name for entry in self._owners(data, split))
        views = [View(metrics=owners)] if owners else self.task.views(outputs, self.options, subject)
        for view in views:
            seen, plain = view.apply(outputs), not view.variant
            wanted = view.metrics
            if wanted is None and not plain:
                wanted = (self.task.primary.get(form),)
            for spec, function in self._metrics:
                if spec.files or (spec.forms and form not in spec.forms) or (spec.rows and spec.name not in owners):
                    continue
                if spec.fidelity and (given is None or not plain):
                    continue
                if wanted is not None and spec.name not in wanted:
                    continue
                measure = _measure(spec, subject, data.name, split, examples=int(seen.examples), variant=view.variant)
                try:
                    value = function(seen, given) if spec.fidelity else function(seen)
                    if value is not None:  # None: it means nothing for these rows
                        measures.append(replace(measure, value=float(value)))
                except KdhubError as error:
                    # A fidelity that cannot be (other widths) is a fact about the pair, not a failure of the run.
                    if not spec.fidelity:
                        raise
                    measures.append(replace(measure, note=error.message))
        return measures


def _parts(found: Any) -> list[Part]:
    """What a metric of files gave, whichever of its forms it took."""
    if isinstance(found, Mapping):
        return [Part(value, split) for split, value in found.items()]
    return found if isinstance(found, list) else [Part(found)]


def _measure(spec: MetricSpec, subject: str, dataset: str, split: str | None, **more: Any) -> Measure:
    stated = {"unit": spec.unit, "higher_is_better": spec.higher_is_better}
    return Measure(**{"metric": spec.name, "value": None, **stated, "subject": subject, "dataset": dataset,
                      "split": split, **more})  # fmt: skip


@contextmanager
def _files(encode: Any) -> Iterator[Path]:
    """Where a student's files are: those that were saved, else some that are gone afterwards."""
    if encode.folder is not None:
        yield encode.folder
        return
    with tempfile.TemporaryDirectory() as folder:
        encode.model.save(Path(folder))
        yield Path(folder)


@dataclass
class _Encoder:
    """See `kdhub.task.Encoder`. `open` makes the reader of a table; `folder` is where a student is saved, if it is;
    `faults` are the rows that could not be read, their numbers and why."""

    prepare: Prepare | None
    open: Callable[[Any, str, Mapping[str, Any]], Callable[[int, int], dict[str, Any]]]
    model: Any = None
    folder: Path | None = None
    faults: dict[int, str] = field(default_factory=dict)

    def reader(self, table: Any, kind: str, **how: Any) -> Callable[[int, int], dict[str, Any]]:
        return self.open(table, kind, how)

    def __call__(self, table: Any, kind: str, **how: Any) -> dict[str, Any]:
        read, parts = self.open(table, kind, how), {}
        for start in range(0, len(table), BATCH):
            for name, values in read(start, min(start + BATCH, len(table))).items():
                parts.setdefault(name, []).append(values)
        return {name: _joined(values) for name, values in parts.items()}


def student_encoder(task: Task, student: Any, folder: Path | None = None) -> Encoder:
    """What gives a student's outputs; of a task without networks the student itself, as `encode.model`.

    Args:
        folder: where it is saved, for metrics of its files; without one they read a copy.
    """
    runs = isinstance(task, NetworkTask) and student.answers
    encode = encoder_of(student, task.preparer(student, None) if runs else None)
    encode.folder = folder
    return encode


def teacher_encoder(task: Task, teacher: Any, signals: Callable[[Rows, str], Any]) -> Encoder:
    """What gives a teacher's outputs.

    Args:
        signals: rows and kind -> its stored signals.
    """
    if isinstance(task, NetworkTask):
        return stored_encoder(signals, task.preparer(None, teacher))
    return encoder_of(teacher, None)


def encoder_of(model: Any, prepare: Prepare | None) -> Encoder:
    """An encoder that runs a model over table rows, a few thousand at a time."""

    def open(table: Any, kind: str, how: Mapping[str, Any]) -> Callable[[int, int], dict[str, Any]]:
        def read(start: int, stop: int) -> dict[str, Any]:
            examples = prepared(prepare, [{**row, **how} for row in plain_rows(table, range(start, stop))])
            faults.update({n: e["fault"] for n, e in enumerate(examples, start + 1) if "fault" in e})
            return dict(model.signals(examples, kind))

        return read

    faults: dict[int, str] = {}
    return _Encoder(prepare, open, model, faults=faults)


def stored_encoder(signals: Callable[[Rows, str], Any], prepare: Prepare) -> Encoder:
    """An encoder that goes through the signal store, so that a teacher scores its test texts once in its life."""

    def open(table: Any, kind: str, how: Mapping[str, Any]) -> Callable[[int, int], dict[str, Any]]:
        rows = Rows.build(table, lambda plain: prepare([{**row, **how} for row in plain]), row_key)
        faults.update(rows.bad.numbers)
        given = signals(rows, kind)

        def read(start: int, stop: int) -> dict[str, Any]:
            return {
                name: [_wide(v) for v in values] if isinstance(values, list) else _wide(values)
                for name, values in given[np.arange(start, stop)].items()
            }

        return read

    faults: dict[int, str] = {}
    return _Encoder(prepare, open, faults=faults)


def _wide(values: np.ndarray) -> np.ndarray:
    """Stored fractions as float32; whole numbers (bytes of a text) as they are."""
    return values.astype(np.float32) if np.issubdtype(values.dtype, np.floating) else values


def _joined(parts: list[Any]) -> Any:
    """Batches one after the other: one array, or for ragged rows a list of arrays."""
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return np.concatenate(parts)


def describe_data(data: Data, split: str, use: str) -> dict[str, Any]:
    """What the provenance says about one data set in use."""
    return {
        "use": use,
        "source": data.ref,
        "name": data.name,
        "split": split,
        "rows": len(data.split(split)),
        "fingerprint": data.fingerprint(split),
        "licence": data.licence or None,
        "from": data.source(split),
        "skipped": data.skipped.get(split, {}),
        **({"tags": list(data.tags)} if data.tags else {}),
    }
