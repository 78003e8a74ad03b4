"""`kdhub search`."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json
from kdhub.cli.publish import Endpoint
from kdhub.files import size_text


def search(
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="Words in name, task, method or teacher.")] = "",
    method: Annotated[str | None, typer.Option("--method", "-m", help="Only students made with it.")] = None,
    task: Annotated[str | None, typer.Option(help="Only students for it.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Only students of it.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="A metric, or parameters, size, latency, updated, downloads.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most results shown.")] = 20,
    local: Annotated[
        bool, typer.Option("--local", help="Search the catalogue (kdhub list published), offline.")
    ] = False,
    endpoint: Endpoint = None,
    json: Json = False,
) -> None:
    """Find published students, on a hub or in the catalogue."""
    from kdhub.verbs import search as verb

    wanted = {"method": method, "task": task, "teacher": teacher}
    found = verb.search(text, **wanted, sort=sort, limit=limit, endpoint=endpoint, local=local)
    if json:
        _output.emit([f.to_dict() for f in found])
        return
    metric = sort if sort and sort not in verb.SORTS else None
    headers = ["NAME", "TASK", "METHOD", "TEACHER", (metric or "RESULT").upper(), "PARAMETERS", "SIZE", "LATENCY"]
    rows = [
        [
            f.name or (f.repo if f.kind == "model" else f"{f.kind}s/{f.repo}"),
            f.task,
            f.method,
            f.teacher,
            _result(f, metric),
        ]
        + [f"{f.parameters / 1e6:.1f} M" if f.parameters else "", size_text(f.size) if f.size else ""]
        + [f"{f.latency:.3g} ms" if f.latency else ""]
        for f in found
    ]
    _output.table(headers, rows, "no such student was found")


def _result(found, metric: str | None) -> str:
    """The metric sorted by, else the first that the card has."""
    name = metric or next(iter(found.results), "")
    value = found.results.get(name)
    return "" if value is None else f"{value:.3f}" if metric else f"{name} {value:.3f}"
