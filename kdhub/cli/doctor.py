"""`kdhub doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json


def doctor(
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Also try this recipe: a few rows, a few steps.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key of it: --set options.lr=1e-4.")] = None,
    json: Json = False,
) -> None:
    """Check this machine and, before a run, what may spoil it and how long it will take."""
    from kdhub.verbs import doctor as verb

    found = verb.doctor(recipe, set=set_ or ())
    if json:
        _output.emit([one.to_dict() for one in found])
    else:
        rows = [[one.status, one.check, one.found + (f"; {one.do}" if one.do else "")] for one in found]
        _output.table(["", "CHECK", "FOUND"], rows)
    if any(one.status == "fail" for one in found):
        raise typer.Exit(1)
