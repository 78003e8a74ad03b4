"""`kdhub evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json, Member, Set


def evaluate(
    subject: Annotated[str, typer.Argument(metavar="RUN|STUDENT|REPO", help="Run folder, student folder, or model.")],
    member: Member = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Teacher to compare with.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Data set: NAME or NAME:SPLIT.")] = None,
    task: Annotated[str | None, typer.Option(help="Task, when the subject does not say.")] = None,
    cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Measure size, speed and memory.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="With --cost: put what a run costs now into its report and card.")
    ] = False,
    set: Set = None,
    out: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    json: Json = False,
) -> None:
    """Score a run's student, a student folder, or any model, also on other data."""
    from kdhub.verbs import evaluate as verb

    report = verb.evaluate(
        subject, member=member, teacher=teacher, data=data, task=task, cost=cost, update=update, set=set or (), out=out
    )
    if json:
        _output.emit(report.to_dict())
        return
    from kdhub.evaluation.report import render

    print(render(report))
