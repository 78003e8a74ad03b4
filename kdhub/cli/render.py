"""`kdhub render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json, Member
from kdhub.cli.publish import Endpoint


def render(
    source: Annotated[str, typer.Argument(metavar="RUN|STUDENT|REPO", help="Run folder, student folder, or model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .png or .gif.")],
    member: Member = None,
    task: Annotated[str | None, typer.Option(help="Task to open it for, when that is not what it says.")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the task's rendering.")
    ] = None,
    endpoint: Endpoint = None,
    json: Json = False,
) -> None:
    """Write a picture or an animation of what a student makes."""
    from kdhub.verbs import render as verb

    made = verb.render(source, out, member=member, task=task, set=set or (), endpoint=endpoint)
    if json:
        _output.emit({"file": str(out), "sentence": made.sentence, "bytes": len(made.content)})
        return
    print(f"{out}: {made.sentence}")
