"""`kdhub list` and `kdhub show`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json

What = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        help="methods, teachers, students, datasets, tasks, samplers, metrics, recipes, comparisons, published",
    ),
]


def list_(
    what: What = "methods",
    task: Annotated[str | None, typer.Option(help="Only what works for this task.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Only methods that fit this teacher.")] = None,
    json: Json = False,
) -> None:
    """List what there is."""
    from kdhub.verbs import listing

    what = listing.plural(what)
    rows = listing.rows(what, task=task, teacher=teacher)
    if json:
        _output.emit(rows)
        return
    columns = listing.COLUMNS[what]
    for row in rows:
        if "tasks" in row:
            row["tasks"] = listing.tasks_in_short(row["tasks"])
    cells = [[_cell(row.get(c), c) for c in columns] for row in rows]
    _output.table([c.upper() for c in columns], cells, f"no {what} found")


def show(
    name: Annotated[str, typer.Argument(help="A method, a data set, a recipe, a model, ...")], json: Json = False
) -> None:
    """Show everything about one name: options of a method, sources of a data set, keys of a recipe."""
    from kdhub.verbs import listing

    found = listing.show(name)
    if json:
        _output.emit(found)
        return
    for i, item in enumerate(found):
        if i:
            print()
        print(listing.describe(item))


def _cell(value: object, column: str = "") -> str:
    if value is None and column == "gives":
        return "those of its task"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple, dict)) else "" if value is None else str(value)
