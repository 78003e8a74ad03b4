"""`kdhub verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json, Member
from kdhub.cli.publish import Endpoint


def verify(
    target: Annotated[str, typer.Argument(metavar="REPO|DIR", help="Published student, or the folder of one.")],
    member: Member = None,
    key: Annotated[Path | None, typer.Option(metavar="KEY", help="Also its signature, with this public key.")] = None,
    with_teacher: Annotated[bool, typer.Option("--with-teacher", help="Also what needs the teacher.")] = False,
    trust_recipe: Annotated[
        bool, typer.Option("--trust-recipe", help="Open and ask whatever its recipe names, also what costs money.")
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference allowed.")] = 0.01,
    endpoint: Endpoint = None,
    json: Json = False,
) -> None:
    """Check a published student: its files by digest, and the figures of its card by evaluating it again."""
    from kdhub.verbs import verify as verb

    found = verb.verify(
        target,
        member=member,
        key=key,
        with_teacher=with_teacher,
        trust_recipe=trust_recipe,
        tolerance=tolerance,
        endpoint=endpoint,
    )
    if json:
        _output.emit(found.to_dict())
    else:
        _show(found)
    if found.status != "verified":
        raise typer.Exit(1)


def _show(found) -> None:
    from kdhub.evaluation.report import number

    rows = [
        [
            " ".join(filter(None, (f.dataset, f.split))),
            f.metric
            + (" (with the teacher)" if f.subject == "asymmetric" else "")
            + (f", member {f.member}" if f.member is not None else ""),
            number(f.card),
            number(f.now),
            "" if f.difference is None else f"{f.difference:+.4f}",
            f.verdict + (f": {f.note}" if f.note else ""),
        ]
        for f in found.figures
    ]
    _output.table(["DATA", "METRIC", "CARD", "NOW", "DIFFERENCE", ""], rows, "the card has no figures")
    print()
    for problem in found.problems:
        print(f"- {_output.one_line(problem)}")
    relative, absolute = found.tolerance
    print(f"allowed    {100 * relative:g} % or {absolute:g}, whichever is more")
    print(f"files      {'not those that were published' if found.problems else 'as published'}")
    if found.signed:
        print("signature  of this key, over exactly these files")
    at = f" at {found.commit}" if found.commit else ""
    print(f"{found.status:<10} {_output.one_line(found.target)}{at}")
