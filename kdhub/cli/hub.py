"""`kdhub hub`: a hub of one's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json

app = typer.Typer(help="A hub of your own: serve, token, gc.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens of your own hub: create, list, revoke.", no_args_is_help=True)
app.add_typer(token_app, name="token")

Folder = Annotated[
    Path | None,
    typer.Option(help="Where the hub keeps everything. Default: hub/, below KDHUB_HOME.", show_default=False),
]


class Role(StrEnum):
    read = "read"
    write = "write"


@app.command("serve")
def serve(
    folder: Folder = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8787,
    address: Annotated[
        str | None, typer.Option(help="What clients call it, behind a server with TLS: https://hub.example.")
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous/--no-anonymous", help="Let anyone read what is not private.")
    ] = True,
) -> None:
    """Serve models and data sets to kdhub, `hf` and every other client of the Hugging Face Hub."""
    from kdhub.verbs import hub

    hub.serve(folder, host=host, port=port, anonymous=anonymous, tell=_output.tell_once, address=address)


@app.command("gc")
def gc(
    folder: Folder = None,
    hours: Annotated[float, typer.Option(min=0, help="Keep what was received in the last N hours.")] = 24.0,
    json: Json = False,
) -> None:
    """Remove content that no commit names any more."""
    from kdhub.files import size_text
    from kdhub.verbs import hub

    files, freed = hub.collect(folder, hours=hours)
    if json:
        _output.emit({"files": files, "bytes": freed})
    else:
        print(f"removed {files} files, {size_text(freed)}")


@token_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Name of its user, shown in commits.")],
    role: Annotated[Role, typer.Option(help="What it allows.")] = Role.read,
    folder: Folder = None,
) -> None:
    """Make a token. It is printed this once; the hub keeps only its digest."""
    from kdhub.verbs import hub

    _output.tell_once(hub.add_token(folder, name, role.value))


@token_app.command("list")
def list_(folder: Folder = None, json: Json = False) -> None:
    """Every token's name, role and age; never the token."""
    from kdhub.verbs import hub

    found = hub.tokens(folder)
    if json:
        _output.emit(found)
        return
    rows = [[token["name"], token["role"], token["created"][:16].replace("T", " ")] for token in found]
    _output.table(["NAME", "ROLE", "CREATED"], rows, "there are no tokens")


@token_app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="As `list` shows it.")], folder: Folder = None) -> None:
    """Remove a token; who holds it may do nothing more from now on."""
    from kdhub.verbs import hub

    hub.remove_token(folder, name)
    print(f"revoked {name}")
