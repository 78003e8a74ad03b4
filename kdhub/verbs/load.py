"""`kdhub.load`: any student of any task, from its folder or run."""

from __future__ import annotations

from pathlib import Path

from kdhub.errors import RunError, UsageError
from kdhub.resolve import Resolver
from kdhub.student import Student


def load(name: str | Path, *, task: str | None = None, resolver: Resolver | None = None) -> Student:
    """Load a student.

    Args:
        name: a run folder, or a student folder inside one.
        task: needed for a student folder that lies outside a run.

    Raises:
        RunError: the run has no student yet.
        UsageError: there is no such folder, or its task is unknown.
    """
    from kdhub.run import Run

    resolver = resolver or Resolver()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{name} is no folder", hint="give a run folder or a student folder")
    if (folder / "recipe.yaml").is_file():
        run = Run.open(folder)
        task, folder = task or run.recipe.task, run.student_folder
        if not folder.is_dir():
            raise RunError(f"{run.folder} has no student yet", hint=f"kdhub distill --resume {run.folder}")
    elif task is None and (folder.parent / "recipe.yaml").is_file():
        task = Run.open(folder.parent).recipe.task
    return resolver.task(task or guess_task(folder)).load(folder)


def guess_task(folder: Path) -> str:
    """The task of a bare student folder, by its format."""
    if (folder / "modules.json").is_file():
        return "text-embedding"
    raise UsageError(f"the task of {folder} is unknown", hint="name it: task='text-embedding' (kdhub list tasks)")
