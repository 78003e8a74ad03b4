"""`kdhub label`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json, Set
from kdhub.files import size_text


def label(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Catalogue recipe or YAML file.")] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="Method, for its own recipe.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Teacher, e.g. hf:org/name.")] = None,
    student: Annotated[str | None, typer.Option("--student", "-s", help="Student, e.g. layers:2.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Rows: pydoc, ./texts.jsonl, ...")] = None,
    signal: Annotated[str | None, typer.Option(help="Without a recipe: the teacher's signal.")] = None,
    task: Annotated[str | None, typer.Option(help="With --signal: the task.")] = None,
    set: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing and what it will take.")] = False,
    json: Json = False,
) -> None:
    """Store what a run would ask of its teacher, without training."""
    from kdhub.ranks import rank
    from kdhub.verbs import label as verb

    flags = {"method": method, "teacher": teacher, "student": student, "data": data}
    flags = {name: value for name, value in flags.items() if value is not None}
    made = verb.label(recipe, signal=signal, task=task, dry_run=dry_run, set=set or (), **flags)
    if rank() != 0:
        return
    if json:
        _output.emit(made.to_dict())
        return
    rows = []
    for one in made.labels:
        spent = ", ".join(f"{name} {value:g}" for name, value in one.spent.items())
        speed = f"{one.rows_per_second:,.3g}" if one.rows_per_second else ""
        tokens = f"{one.tokens:,}" if one.tokens > one.rows else ""
        took = f"{one.seconds:.1f} s" if one.computed else ""
        size = size_text(one.bytes) if one.bytes else ""
        rows.append([one.signal, one.of, one.rows, one.found, one.computed, tokens, size, took, speed, spent])
    what = "MISSING" if dry_run else "COMPUTED"
    _output.table(["SIGNAL", "ROWS OF", "ROWS", "FOUND", what, "TOKENS", "SIZE", "TIME", "ROWS/S", "SPENT"], rows)
    for note in made.notes:
        print(f"\n{note}")
