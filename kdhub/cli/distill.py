"""`kdhub distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdhub.cli import _output

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe.")]
Member = Annotated[str | None, typer.Option(metavar="NAME", help="Of a family of sizes: this member alone.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def distill(
    method: Annotated[str | None, typer.Option("--method", "-m", help="Method; see: kdhub list methods")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Catalogue recipe or YAML file.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Teacher, e.g. hf:org/name.")] = None,
    student: Annotated[str | None, typer.Option("--student", "-s", help="Student, e.g. layers:2.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Training data: pydoc, ./texts.jsonl, ...")] = None,
    set: Set = None,
    track: Annotated[list[str] | None, typer.Option("--track", help="tensorboard, wandb, mlflow or trackio.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for everything random.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder, new or empty.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue an interrupted run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    json: Json = False,
) -> None:
    """Distil a student from a teacher."""
    from kdhub.verbs import distill as verb

    flags = {"method": method, "teacher": teacher, "student": student, "data": data, "seed": seed}
    flags["tracking"] = track or None
    flags = {k: v for k, v in flags.items() if v is not None}
    if dry_run:
        resolved = verb.resolve_recipe(recipe, set=set or (), **flags)
        if json:
            _output.emit(resolved.to_dict())
        else:
            print(resolved.to_yaml(), end="")
        return
    run = verb.distill(recipe, out=out, resume=resume, set=set or (), **flags)
    from kdhub.ranks import rank

    if rank() != 0:
        return
    if json:
        _output.emit({"run": str(run.folder), "student": str(run.student_folder), "report": run.report})
        return
    from kdhub.evaluation.report import Report, render

    print(render(Report.from_dict(run.report)))
    print(f"\nstudent  {run.student_folder}\ncard     {run.folder / 'README.md'}\n\nnext:")
    for command, what in next_commands(run):
        print(f"  {command}  # {what}")


def next_commands(run) -> list[tuple[str, str]]:
    """The exact commands that make sense after a run."""
    student, score, opened = run.student_folder, "score it on other data", "import kdhub; print(kdhub.load('{}'))"
    if (run.provenance.get("student") or {}).get("kind") == "dataset":
        score, opened = "compare it with other rows", "import datasets; print(datasets.load_dataset('{}'))"
    return [
        (f"kdhub evaluate {run.folder} --data DATA", score),
        (
            f"kdhub distill --recipe {run.folder / 'recipe.yaml'} --seed {run.recipe.seed + 1}",
            "again, with another seed",
        ),
        (f"kdhub publish {run.folder} ORG/NAME --dry-run", "see what would be published"),
        (f'python -c "{opened.format(student)}"', "load it"),
    ]
