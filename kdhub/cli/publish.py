"""`kdhub publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json, Member
from kdhub.files import size_text

Endpoint = Annotated[str | None, typer.Option(help="Address of the hub; HF_ENDPOINT, or the Hugging Face Hub.")]


def publish(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run, or a student that was pulled.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="org/name")],
    member: Member = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all and show all, upload nothing.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Also delete files that kdhub did not put there.")] = False,
    licence: Annotated[str | None, typer.Option("--license", "--licence", help="Licence, e.g. apache-2.0.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag for this version.")] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign with this private key.")] = None,
    register: Annotated[bool, typer.Option("--register", help="Add it to `kdhub list published` here.")] = False,
    despite: Annotated[
        list[str] | None, typer.Option(metavar="REASON", help="Repeat a reason that stands against publishing it.")
    ] = None,
    allow_secret: Annotated[
        list[str] | None, typer.Option(metavar="PATH:LINE", help="What looks like a secret there is none.")
    ] = None,
    endpoint: Endpoint = None,
    json: Json = False,
) -> None:
    """Publish a run's student with its card, report and manifest, as one commit."""
    from kdhub.verbs import publish as verb

    done = verb.publish(
        source,
        repo,
        member=member,
        private=private,
        create_pr=create_pr,
        dry_run=dry_run,
        replace=replace,
        licence=licence,
        tags=tag or (),
        sign=sign,
        register=register,
        despite=despite or (),
        allow_secrets=allow_secret or (),
        endpoint=endpoint,
    )
    if json:
        _output.emit(done.to_dict())
        return
    if dry_run:
        print(done.card)
        _output.table(["SIZE", "FILE"], [[size_text(count), name] for name, count in done.files.items()])
        where = f"{done.repo} on {done.endpoint}"
        print(f"\n{len(done.files)} files, {size_text(sum(done.files.values()))}, would be published to {where}")
        return
    if done.pull_request:
        print(f"proposed  {done.pull_request}")
    else:
        said = "published" if done.changed else "unchanged"
        print(f"{said}  {done.repo} on {done.endpoint}\ncommit     {done.commit}")
    if done.registered:
        print(f"entry      {done.registered}")
    print(f"\nnext:\n  kdhub verify {done.repo}@{done.commit}  # as anyone else would")
