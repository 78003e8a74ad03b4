"""Members of a family: what they cost, all of them by counting, some of them by the clock; one as a run of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.evaluation import cost
from kdhub.evaluation.counting import count_costs, middle_row
from kdhub.evaluation.plots import plot_run
from kdhub.evaluation.report import STUDENT, Report
from kdhub.families import MEMBER, member_in
from kdhub.recipes.run import Run
from kdhub.training.saved import narrow

if TYPE_CHECKING:
    from kdhub.metric import Measure
    from kdhub.recipes.resolve import Resolver
    from kdhub.student import Student
    from kdhub.task import Task

TIMED = 8
"""Members that run in processes of their own, evenly spread from the smallest to the largest: all run side by side."""


def save_member(family: Student, name: str, folder: Path, precision: str | None) -> Student:
    """Cut a member out and save it as a student of its own, in the precision in which the family is saved."""
    part = family.cut(name)
    if part.module is not None and precision is not None:
        narrow(part.module, precision)
    part.save(folder)
    return part


def counted(task: Task, family: Student, rows: Sequence[Mapping[str, Any]], precision: str | None) -> list[Measure]:
    """Of each member: parameters, FLOPs for the row of median length, and bytes on disk as a student of its own."""
    measures, row = [], middle_row(task, family, rows) if family.members else None
    for name in family.members:
        found: dict[str, float] = dict(count_costs(family.cut(name), row, task=task))
        with tempfile.TemporaryDirectory() as folder:
            save_member(family, name, Path(folder), precision)
            found["disk"] = cost.weight_bytes(Path(folder))
        variant = {MEMBER: name}
        measures += [cost.cost_of(STUDENT, m, value, cost.UNITS[m], variant=variant) for m, value in found.items()]
    return measures


def timed(family: Student) -> list[str]:
    """The members that are measured by the clock."""
    names = list(family.members)
    if len(names) <= TIMED:
        return names
    return [names[i * (len(names) - 1) // (TIMED - 1)] for i in range(TIMED)]


def subjects(family: Student, folder: Path) -> list[dict[str, str]]:
    """Members as `kdhub.evaluation.cost.measure` takes them."""
    return [{"subject": STUDENT, "folder": str(folder), MEMBER: name} for name in timed(family)]


def by_the_clock(measures: Sequence[Measure]) -> list[Measure]:
    """Of what processes found, all but what members have by counting."""
    return [m for m in measures if not m.variant or m.metric not in ("parameters", "flops", "disk")]


@contextmanager
def run_of_member(run: Run, name: str | None, resolver: Resolver) -> Iterator[Run]:
    """The run of a family as one that made a member of it: its student, its figures, its card. The run itself without a
    name.

    Raises:
        UsageError: its student is no family. UnknownNameError: it has no such member.
    """
    if name is None:
        yield run
        return
    family = resolver.task(run.recipe.task).load(run.student_folder)
    member_in(family, run.student_folder, name, str(run.folder))
    with tempfile.TemporaryDirectory() as place:
        made = Run(Path(place), run.recipe)
        made.student_folder.mkdir()
        for file in ("recipe.yaml", "metrics.jsonl"):
            if (run.folder / file).is_file():
                shutil.copy(run.folder / file, made.folder / file)
        known = run.provenance
        part = save_member(family, name, made.student_folder, known.get("student", {}).get("dtype"))
        about = {"name": name, "of": len(family.members), "cut": dict(family.members[name])}
        own = {"parameters": count_costs(part).get("parameters"), "usage": part.usage(), "member": about}
        of_family = {key: value for key, value in known.get("student", {}).items() if key != "members"}
        made.write_json("provenance.json", {**known, "student": {**of_family, **own}})
        report = Report.from_dict(run.report)
        its = [replace(m, variant={}) for m in report.measures if m.variant == {MEMBER: name}]
        report.measures = [m for m in report.measures if m.subject != STUDENT] + its
        made.write_json("report.json", report.to_dict())
        plot_run(made)
        yield made
