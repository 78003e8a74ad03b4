"""`kdhub plugins`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli._light import LightCommand, LightGroup
from kdhub.cli.distill import Json

app = typer.Typer(
    cls=LightGroup, help="What plugins are installed, and whether they work.", invoke_without_command=True
)


@app.callback()
def plugins(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(json)


@app.command("list", cls=LightCommand)
def list_(json: Json = False) -> None:
    """Name, version, status, what each provides, and the cause where one does not work."""
    from kdhub.plugins import get_plugins

    records = [record.to_dict() for record in get_plugins().records]
    if json:
        _output.emit(records)
        return
    rows = [
        [r["distribution"], r["version"], r["status"], _provides(r["provides"]) or r["cause"] or ""] for r in records
    ]
    _output.table(["NAME", "VERSION", "STATUS", "PROVIDES"], rows, "no plugins")
    for r in records:
        if r["cause"] and _provides(r["provides"]):
            print(f"\n{r['distribution']}: {r['cause']}")


@app.command("check")
def check(
    package: Annotated[str, typer.Argument(help="An installed distribution, or the name of its entry point.")],
    json: Json = False,
) -> None:
    """Try everything a plugin provides against the contracts; exit 3 when a check fails. Runs for a minute or two."""
    from kdhub.errors import ExitCode
    from kdhub.testing import checks_of, run_checks, summary

    results = []
    for result in run_checks(checks_of(package)):
        results.append(result)
        if not json:
            said = f"  {result.message}" if result.message else ""
            print(f"{result.outcome:<9}{result.subject}  {result.check}{said}", flush=True)
    if json:
        _output.emit({"plugin": package, "summary": summary(results), "results": [r.to_dict() for r in results]})
    else:
        print(f"\n{summary(results)}")
    if any(result.bad for result in results):
        raise typer.Exit(int(ExitCode.PLUGIN))


def _provides(names: dict[str, list[str]]) -> str:
    return "; ".join(f"{kind}s: {', '.join(n)}" if len(n) <= 4 else f"{len(n)} {kind}s" for kind, n in names.items())
