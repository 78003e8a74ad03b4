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
    from kdhub.plugins.discovery import get_plugins

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


@app.command("install", cls=LightCommand)
def install(
    packages: Annotated[list[str], typer.Argument(help="What pip accepts: a name, a folder, a wheel, git+https://...")],
    editable: Annotated[bool, typer.Option("--editable", "-e", help="Install a folder that you work on.")] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", "-U", help="Replace the installed version by a newer one.")
    ] = False,
    json: Json = False,
) -> None:
    """Install plugins with pip where kdhub is installed, and say what they provide."""
    from kdhub.verbs.plugins import install as install_

    done = install_(packages, editable=editable, upgrade=upgrade)
    if json:
        _output.emit(done)
        return
    for r in done["installed"]:
        print(f"{r['distribution']} {r['version']}: {_provides(r['provides']) or 'provides nothing'}")
    if not done["installed"]:
        print("installed; no plugin was added or changed")


@app.command("uninstall", cls=LightCommand)
def uninstall(
    packages: Annotated[list[str], typer.Argument(help="Distributions that kdhub plugins lists.")], json: Json = False
) -> None:
    """Remove plugins with pip."""
    from kdhub.verbs.plugins import uninstall as uninstall_

    done = uninstall_(packages)
    if json:
        _output.emit(done)
        return
    for r in done["removed"]:
        print(f"removed {r['distribution']} {r['version']}")


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
