"""`kdhub export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json


def export(
    subject: Annotated[str, typer.Argument(metavar="RUN|STUDENT|REPO", help="Run folder, student folder, or model.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="Format; see: kdhub list exporters")],
    quantize: Annotated[str | None, typer.Option(metavar="PRECISION", help="Smaller weights, e.g. int8.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Rows to check it on.")] = None,
    task: Annotated[str | None, typer.Option(help="Task, when the subject does not say.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a copy of the student with the export.")] = None,
    cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Time it in turns with torch.")] = True,
    json: Json = False,
) -> None:
    """Write a student in another format, and check it against torch."""
    from kdhub.verbs import export as verb

    made = verb.export(subject, to, quantize=quantize, data=data, task=task, out=out, cost=cost)
    if json:
        _output.emit(made.to_dict())
        return
    from kdhub.evaluation.report import aligned

    print(aligned(made.table()))
    print(f"\nfile  {made.path}\n\n{made.usage.replace('{path}', str(made.folder))}")
