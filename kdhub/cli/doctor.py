"""`kdhub doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json


def doctor(
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Also check that this recipe can run.")] = None,
    json: Json = False,
) -> None:
    """Check this machine: plugins, folders, arithmetic, data, network settings."""
    from kdhub.verbs import doctor as verb

    checks = verb.doctor(recipe)
    if json:
        _output.emit(checks)
    else:
        _output.table(["", "CHECK", "FOUND"], [[c["status"], c["check"], c["found"]] for c in checks])
    if any(c["status"] == "fail" for c in checks):
        raise typer.Exit(1)
