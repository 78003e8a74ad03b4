"""`kdhub compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json, Set


def compare(
    comparison: Annotated[
        str | None, typer.Argument(help="A comparison: catalogue name or YAML file; see: kdhub list comparisons")
    ] = None,
    methods: Annotated[str | None, typer.Option("--methods", "-m", help="Methods, separated by commas.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="What they share: recipe or YAML file.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, from 0; 3 by default.")] = None,
    budget: Annotated[str | None, typer.Option(help="Budget of each training: 300steps, 20000examples or 60s.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is compared; the task's first metric by default.")] = None,
    reference: Annotated[str | None, typer.Option(help="The arm others are compared with.")] = None,
    set: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder, new or empty.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue an interrupted comparison.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the outcome of its claims into this ledger.")] = None,
    page: Annotated[bool, typer.Option("--page", help="Also write page.html, which needs no network.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be compared and stop.")] = False,
    json: Json = False,
) -> None:
    """Compare methods on equal terms, over seeds."""
    from kdhub.evaluation.report import aligned
    from kdhub.verbs import compare as verb

    what = {"methods": methods, "recipe": recipe, "seeds": seeds, "budget": budget, "metric": metric}
    what |= {"reference": reference, "set": set or ()}
    if dry_run:
        plan = verb.resolve_comparison(comparison, **what)
        verb.cell_recipes(plan)
        if json:
            _output.emit(plan.to_dict())
        else:
            print(plan.to_yaml(), end="")
        return
    result = verb.compare(comparison, **what, out=out, resume=resume, jobs=jobs, record=record, page=page)
    if json:
        _output.emit({"folder": str(result.folder), **result.to_dict()})
    else:
        print("\n\n".join(map(aligned, result.tables())))
        for note in result.notes():
            print(f"note: {note}")
        print(f"\nnumbers  {result.folder / 'comparison.json'}\nplots    {result.folder / 'plots'}")
        if page:
            print(f"page     {result.folder / 'page.html'}")
        best = result.best()
        if best is not None:
            place = result.folder / "cells" / best[0] / f"seed-{best[1]}"
            print(f"\nnext:\n  kdhub publish {place} ORG/NAME --dry-run  # the best student")
    if any(cell.status == "failed" for cell in result.cells):
        raise typer.Exit(1)
