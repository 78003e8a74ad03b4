"""`kdhub new`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli._light import LightCommand, LightGroup
from kdhub.cli.distill import Json

app = typer.Typer(cls=LightGroup, help="Create a plugin of your own.", no_args_is_help=True)


@app.callback()
def new() -> None:
    pass


@app.command("plugin", cls=LightCommand)
def plugin(
    name: Annotated[str, typer.Argument(help="Lower-case with hyphens: similarity makes kdhub-similarity.")],
    kind: Annotated[str, typer.Option(help="method, teacher, student, dataset, task, sampler or metric.")] = "method",
    folder: Annotated[str, typer.Option("--in", help="Where its folder is made.")] = ".",
    json: Json = False,
) -> None:
    """Write a complete plugin that works: code, README, tests, CI."""
    from kdhub.verbs.new import new_plugin

    made = new_plugin(name, kind=kind, parent=folder)
    files = sorted(str(p.relative_to(made)) for p in made.rglob("*") if p.is_file())
    if json:
        _output.emit({"folder": str(made), "files": files})
        return
    print(f"{made}\n" + "".join(f"  {name}\n" for name in files))
    print("next:")
    print(f"  kdhub plugins install -e {made}")
    print(f"  kdhub plugins check {made.name}")
    print(f"  kdhub show {made.name.removeprefix('kdhub-')}")
