"""`kdhub.load`: any student of any task, from its folder, its run, or a hub."""

from __future__ import annotations

from pathlib import Path

from kdhub.errors import CompatibilityError, RunError, UnknownNameError, UsageError
from kdhub.hub.files import MANIFEST
from kdhub.recipes.folders import guess_task
from kdhub.recipes.resolve import Resolver
from kdhub.student import Student
from kdhub.task import Task


def load(
    name: str | Path, *, task: str | None = None, endpoint: str | None = None, resolver: Resolver | None = None
) -> Student:
    """Load a student.

    Args:
        name: a run folder, a student folder, or what `kdhub.pull` takes; a student of a hub is pulled first, unless it
            is here already.
        task: needed for a student folder that lies outside a run.
        endpoint: the hub.

    Raises:
        RunError: the run has no student yet.
        UsageError: there is no such folder, or its task is unknown.
        CompatibilityError: no plugin here provides its task; says which distribution does.
        HubError: it cannot be had, or is not trusted.
    """
    from kdhub.recipes.run import Run

    resolver = resolver or Resolver()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _pulled(str(name), endpoint, resolver)
    if (folder / MANIFEST).is_file():
        return published_task(folder, task, resolver).load(folder)
    if (folder / "recipe.yaml").is_file():
        run = Run.open(folder)
        task, folder = task or run.recipe.task, run.student_folder
        if not folder.is_dir():
            raise RunError(f"{run.folder} has no student yet", hint=f"kdhub distill --resume {run.folder}")
    elif task is None and (folder.parent / "recipe.yaml").is_file():
        task = Run.open(folder.parent).recipe.task
    return resolver.task(task or guess_task(folder, resolver.registry)).load(folder)


def _pulled(name: str, endpoint: str | None, resolver: Resolver) -> Path:
    from kdhub.verbs.pull import pull

    local = name.startswith((".", "/", "~")) or name.count("/") > 2
    if local or ("/" not in name and ("published", name) not in resolver.catalog):
        raise UsageError(f"{name} is not a folder", hint="give a run folder, a student folder, or org/name on a hub")
    return pull(name, endpoint=endpoint, catalog=resolver.catalog).folder


def published_task(folder: Path, task: str | None, resolver: Resolver) -> Task:
    """The task of a student with a manifest. Of plugins it needs that alone; the method that made it may be missing.

    Raises:
        CompatibilityError: no plugin here provides it.
    """
    from kdhub.hub import manifest

    facts = manifest.read(folder / MANIFEST, str(folder))
    try:
        return resolver.task(task or facts.task)
    except UnknownNameError as error:
        provider = facts.get("provided_by", "distribution")
        raise CompatibilityError(
            f"{folder} is a student for {facts.task!r}, and no plugin here knows that task",
            hint=f"it comes with {provider}: install it if you trust it (kdhub plugins shows what is here)"
            if isinstance(provider, str)
            else error.hint,
        ) from error
