"""`kdhub pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json
from kdhub.cli.publish import Endpoint
from kdhub.files import size_text

Published = Annotated[
    str, typer.Argument(metavar="REPO[@REVISION]", help="org/name, or a name of: kdhub list published")
]


def pull(
    repo: Published,
    to: Annotated[Path | None, typer.Option(help="Folder, new or empty; kdhub's own store otherwise.")] = None,
    max_size: Annotated[str, typer.Option(help="Refuse repositories larger than this.")] = "50GB",
    endpoint: Endpoint = None,
    json: Json = False,
) -> None:
    """Bring a published student here; every byte is checked before it stands in its place."""
    from kdhub.verbs import pull as verb

    found = verb.pull(repo, to=to, endpoint=endpoint, max_size=max_size)
    if json:
        _output.emit(vars(found))
        return
    said = "pulled" if found.fetched else "here"
    print(f"{said:<7} {found.repo} at {found.commit}, {size_text(found.bytes)}\nfolder  {found.folder}")
    what = found.folder if to is not None else f"{found.repo}@{found.commit}"
    print(f"\nnext:\n  kdhub verify {what}  # do its figures hold here?")
    print(f"  python -c \"import kdhub; print(kdhub.load('{what}'))\"  # load it")
