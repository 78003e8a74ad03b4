"""`kdhub.export`: a finished student in another format, checked against torch before anybody hears of it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.errors import CompatibilityError, UsageError
from kdhub.evaluation import cost as costs
from kdhub.evaluation.evaluator import Evaluator, student_encoder
from kdhub.evaluation.report import STUDENT, Report, Table, number
from kdhub.exporting.exporter import EXPORTS, Exporter, ExportError, find, name_of, note
from kdhub.hub.files import MANIFEST
from kdhub.hub.manifest import UNLISTED
from kdhub.metric import Measure
from kdhub.recipes.recipe import Recipe
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.rows import prepared
from kdhub.task import NetworkTask, Task
from kdhub.training.execute import COST_ROWS, unchained, write_page
from kdhub.verbs.evaluate import adjusted, subject_of
from kdhub.verbs.usage import fault

logger = logging.getLogger("kdhub")

ROWS = 64
"""Rows that outputs are compared on."""


@dataclass
class Exported:
    """What was written.

    Attributes:
        name: `onnx`, `onnx-int8`.
        folder: the student's, with the export beside its weights.
        path: the file.
        difference, tolerance: of outputs from those of torch, relative, and what was allowed.
        measures: of torch (`student`) and of the export (by its name): scores, size and speed.
        usage: lines that use it without kdhub; they were run.
    """

    name: str
    folder: Path
    path: Path
    difference: float
    tolerance: float
    measures: list[Measure] = field(default_factory=list)
    usage: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "measures": [m.to_dict() for m in self.measures]}

    def table(self) -> Table:
        """Torch and the export side by side."""
        rows = []
        for one in (m for m in self.measures if m.subject == self.name):
            torch = next((m for m in self.measures if _same(m, one) and m.subject == STUDENT), None)
            where = " ".join(filter(None, (one.dataset, one.split)))
            values = [number(m.value, m.unit) if m else "" for m in (torch, one)]
            times = f"{one.ratio:.2f}" if one.ratio else ""
            rows.append([f"{one.metric} on {where}" if where else one.metric, *values, times])
        return Table(f"{self.name}: outputs differ by {self.difference:.2g}, at most {self.tolerance:g} is allowed",
                     ["", "torch", self.name, "times torch"], rows)  # fmt: skip


def _same(one: Measure, other: Measure) -> bool:
    return (one.metric, one.dataset, one.split) == (other.metric, other.dataset, other.split)


def export(
    subject: str | Path,
    to: str,
    *,
    quantize: str | None = None,
    data: str | Sequence[str] | None = None,
    task: str | None = None,
    out: str | Path | None = None,
    cost: bool = True,
    resolver: Resolver | None = None,
) -> Exported:
    """Write a student in another format, and check what was written.

    Its outputs on real rows are those of torch within the format's tolerance, it is scored again, timed in turns with
    torch, and its usage lines are run; `exports.json` beside the weights says so, and the card of a run shows it.

    Args:
        subject: a run folder, a student folder, a pulled student, or `org/name`.
        to: the format; `kdhub list exporters`.
        quantize: a smaller precision of the weights (`int8`).
        data: data sets with the rows to check it on; a run brings its own.
        task: where the subject does not say.
        out: the folder to write to, new or empty, which gets the student as well; the student's own if None. A pulled
            student stays as it was published, so that it needs one.
        cost: time it.

    Raises:
        UnknownNameError: no such format or precision, or the folder is not there.
        CompatibilityError: this student cannot be written so (an operator that the format does not have).
        ExportError: no room or no permission, or what was written is not the student.
    """
    resolver = resolver or Resolver()
    entry, exporter = find(to, quantize, None, resolver.registry)
    data = [data] if isinstance(data, str) else list(data or ())
    recipe, load, folder = subject_of(subject, task, data, resolver)
    recipe, _ = unchained(adjusted(recipe, None, data, ()), resolver)
    resolver.registry.find("exporter", to, recipe.task)
    task_object = resolver.task(recipe.task)
    if folder is None or not isinstance(task_object, NetworkTask):
        raise CompatibilityError(f"{subject} is not a network with files of its own, and only such can be exported")
    run = _run_of(folder)
    if run is not None:
        run.whole_student()
    student = load(None)
    evaluator = _evaluator(recipe, task_object, resolver)
    rows, examples = _tried(task_object, student, evaluator)
    signal, name = task_object.primary_signal, name_of(entry.name, quantize)
    with _room(folder):
        folder = _own_folder(folder, out).resolve()  # the usage lines are run elsewhere
        before = _flat(student.signals(examples, signal))
        logger.info("writing %s", exporter.file(student))
        exporter.write(student, examples, signal, folder)
    path = folder / exporter.file(student)
    other = task_object.load(folder)
    exporter.attach(other, path)
    difference = _difference(before, _flat(other.signals(examples, signal)))
    made = Exported(name, folder, path, difference, exporter.tolerance[quantize])
    _refuse(made, exporter, student, path)
    made.usage = exporter.usage(student)
    known = Report.from_dict(run.report).measures if run is not None and run.report else []
    made.measures = _scores(evaluator, task_object, name, other, student, folder, known)
    facts = {
        "format": entry.name, "quantize": quantize, "file": exporter.file(student), "provided_by": entry.provider,
        "rows": len(examples), "difference": difference, "tolerance": made.tolerance, "usage": made.usage,
        "versions": {one: version(one) for one in ("torch", *entry.spec.requires)},
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    files = [path, *path.parent.glob(f"{path.name}*data")]
    with _room(folder):
        note(folder, name, facts, files)  # by which it is found where it is timed
        if cost:
            made.measures += _costs(recipe.task, folder, name, rows)
        note(folder, name, {**facts, "measures": [m.to_dict() for m in made.measures]}, files)
    if run is not None and folder == run.student_folder.resolve():
        run.seal_exports(run.student_folder / one.relative_to(folder) for one in (*files, folder / EXPORTS))
        if run.finished("done"):
            write_page(run, resolver)
    return made


def _run_of(folder: Path) -> Run | None:
    """The run whose student a folder is."""
    of_run = folder.name == "student" and (folder.parent / "recipe.yaml").is_file()
    return Run.open(folder.parent) if of_run else None


def _own_folder(folder: Path, out: str | Path | None) -> Path:
    """Where it is written: the student's folder, or another with a copy of the student."""
    if out is None:
        if (folder / MANIFEST).is_file():
            raise UsageError(
                f"{folder} is as it was published, and stays so", hint="name a folder for copy and export: --out DIR"
            )
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return folder
    out = Path(out).expanduser()
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint="choose another folder with --out")
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*UNLISTED), dirs_exist_ok=True)
    return out


class _room:
    """What the system refuses while something is written, in a sentence."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ExportError(
                f"cannot write below {self.folder}: {error.strerror or error}",
                hint="free space, then export again" if full else "write somewhere else with --out",
            ) from error


def _evaluator(recipe: Recipe, task: Task, resolver: Resolver) -> Evaluator:
    options = resolver.evaluation_options(task, recipe)
    evaluator = Evaluator(task, resolver, recipe.evaluation, options, recipe.on_bad_rows)
    if not evaluator.data:
        raise UsageError(
            "there are no rows to check the export on",
            hint="name a data set with --data, --data NAME; kdhub list data shows those there are",
        )
    return evaluator


def _tried(task: NetworkTask, student: Any, evaluator: Evaluator) -> tuple[list[dict[str, Any]], list[Any]]:
    """Plain rows to time it on, and prepared ones to compare outputs on: the shortest first, all lengths among them."""
    rows = task.sample(*evaluator.data[0], COST_ROWS)
    examples = [e for e in prepared(task.preparer(student, None), rows) if "fault" not in e]
    if len(examples) < 2:
        raise UsageError(f"an export is checked on two rows or more, and {evaluator.data[0][0].name} has fewer")
    ordered = sorted(examples, key=lambda e: e["length"])
    n = min(ROWS, len(ordered))
    return rows, [ordered[i * (len(ordered) - 1) // (n - 1)] for i in range(n)]


def _flat(signals: Any) -> np.ndarray:
    parts = [np.asarray(part, np.float64).ravel() for value in signals.values() for part in value]
    return np.concatenate(parts)


def _difference(torch: np.ndarray, other: np.ndarray) -> float:
    """Norm of the difference over that of torch's outputs; infinite where there are others, or NaN."""
    if torch.shape != other.shape or not np.isfinite(other).all():
        return float("inf")
    return float(np.linalg.norm(torch - other) / max(np.linalg.norm(torch), 1e-12))


def _refuse(made: Exported, exporter: Exporter, student: Any, path: Path) -> None:
    """Nothing is left of an export that is not the student, or that nobody can use."""
    problem = None
    if not made.difference <= made.tolerance:
        problem = f"its outputs differ from those of torch by {made.difference:.3g}, and {made.tolerance:g} is allowed"
    elif wrong := fault(exporter.usage(student).replace("{path}", str(made.folder))):
        problem = f"its usage lines {wrong}"
    if problem:
        path.unlink(missing_ok=True)
        raise ExportError(f"{made.name} of {made.folder} was not kept: {problem}")


def _scores(
    evaluator: Evaluator, task: Task, name: str, other: Any, student: Any, folder: Path, known: Sequence[Measure]
) -> list[Measure]:
    """The primary metrics, of torch where no report has them already, and of the export."""
    primary = {*evaluator.primary.values()}
    found = [m for m in evaluator.of_data(name, student_encoder(task, other, folder)) if _plain(m, primary)]
    torch = [m for m in known if m.subject == STUDENT and _plain(m, primary)]
    if not all(any(_same(m, one) for m in torch) for one in found):
        torch = [m for m in evaluator.of_data(STUDENT, student_encoder(task, student, folder)) if _plain(m, primary)]
    return [*torch, *found]


def _plain(measure: Measure, names: set[str]) -> bool:
    return not measure.variant and measure.metric in names and measure.value is not None


def _costs(task: str, folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> list[Measure]:
    """Size and times, both in processes of their own and in turns."""
    logger.info("measuring cost, torch and %s in turns", name)
    subjects = [{"subject": STUDENT, "folder": str(folder)}]
    subjects.append({"subject": name, "folder": str(folder), costs.EXPORT: name})
    wanted = ("disk", *costs.TIMES)
    return [m for m in costs.measure(task, subjects, rows, against=STUDENT) if m.metric in wanted]
