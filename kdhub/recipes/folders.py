"""What a folder holds: whose student lies where, and which task a bare model folder is for, by what lies in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError, UnknownNameError, UsageError
from kdhub.hub.files import MANIFEST
from kdhub.hub.pull import check_pulled
from kdhub.plain_json import read_json
from kdhub.plugins.registry import Registry
from kdhub.specs import FolderFormat, TaskSpec

if TYPE_CHECKING:
    from kdhub.recipes.resolve import Resolver
    from kdhub.task import Task

FORMAT = 1
"""Of students that have no format of anybody else's: `"kdhub": 1` in their config.json."""


def opened(folder: Path, task: str | None, resolver: Resolver) -> tuple[Task, Path]:
    """The task that opens a student, and the folder with its files: of a run, of its student, of a published student
    or of a bare model.

    Args:
        task: needed where the folder does not say.

    Raises:
        RunError: the run has no student yet, or one that was changed since. UsageError: the task is unknown.
        UntrustedError: a pulled student was changed since.
        CompatibilityError: no plugin here provides it.
    """
    from kdhub.recipes.run import Run

    if (folder / MANIFEST).is_file():
        check_pulled(folder)
        return published_task(folder, task, resolver), folder
    if (folder / "recipe.yaml").is_file():
        run = Run.open(folder)
        task, folder = task or run.recipe.task, run.whole_student()
    elif (folder.parent / "recipe.yaml").is_file() and folder.name == "student":
        run = Run.open(folder.parent)
        task, folder = task or run.recipe.task, run.whole_student()
    return resolver.task(task or guess_task(folder, resolver.registry)), folder


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


def tasks_of(folder: Path, registry: Registry) -> tuple[list[str], list[str]]:
    """The tasks whose models such a folder holds, and those whose models look the same. Where several are sure, those
    count whose format says most: a SentenceTransformer's folder has the configuration of any encoder inside.

    Raises:
        CompatibilityError: a student of kdhub's own, in a format of another version.
    """
    config = _config(folder)
    if "kdhub" in config and isinstance(config.get("task"), str):
        if config["kdhub"] != FORMAT:
            raise CompatibilityError(
                f"{folder}/config.json is of format {config['kdhub']}, and this kdhub reads format {FORMAT}",
                hint="open it with the kdhub that wrote it, or a newer one",
            )
        return [config["task"]], []  # of a network that has no format of anybody else's
    sure, possible = {}, []
    for entry in registry.all("task"):
        fitting = [one for one in entry.spec.formats if _fits(one, folder, config)]
        if certain := [(one.file != "config.json", bool(one.keys)) for one in fitting if one.sure]:
            sure[entry.name] = max(certain)
        elif fitting:
            possible.append(entry.name)
    most = max(sure.values(), default=None)
    return [name for name, said in sure.items() if said == most], possible


def guess_task(folder: Path, registry: Registry, columns: Iterable[Iterable[str]] = ()) -> str:
    """The task of a bare model folder.

    Args:
        columns: of the tables it will be scored on; they decide between tasks whose folders look the same.

    Raises:
        UsageError: no task opens it, or several do; names them.
    """
    sure, possible = tasks_of(folder, registry)
    tables = [set(table) for table in columns]
    if tables and possible:
        specs = {entry.name: entry.spec for entry in registry.all("task")}
        reading = [name for name in (*sure, *possible) if _reads(specs.get(name), tables)]
        if len(reading) == 1:
            return reading[0]
    if len(sure) == 1:
        return sure[0]
    candidates = [*sure, *possible]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UsageError(
            f"{folder} can be a model for {' or '.join(candidates)}",
            hint=f"name one: --task {candidates[0]}, or task={candidates[0]!r} in Python",
        )
    raise UsageError(
        f"no task here opens {folder}: its files say nothing that one knows",
        hint="name the task: --task NAME, or task='NAME' in Python (kdhub list tasks)",
    )


def _fits(one: FolderFormat, folder: Path, config: dict[str, Any]) -> bool:
    if not (folder / one.file).is_file():
        return False
    known = config if one.file == "config.json" else _config(folder, one.file) if one.keys else {}
    heads = [name for name in known.get("architectures") or () if isinstance(name, str)]
    return all(key in known for key in one.keys) and (not one.heads or any(h.endswith(one.heads) for h in heads))


def _reads(spec: TaskSpec | None, tables: list[set[str]]) -> bool:
    return spec is not None and all(any(table.issuperset(group) for group in spec.reads) for table in tables)


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    try:
        read = read_json(folder / name)
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
