"""Which task a bare model folder is for, by what lies in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdhub.errors import UsageError
from kdhub.plugins.registry import Registry
from kdhub.specs import FolderFormat, TaskSpec


def tasks_of(folder: Path, registry: Registry) -> tuple[list[str], list[str]]:
    """The tasks whose models such a folder holds, and those whose models look the same. Where several are sure, those
    count whose format says most: a SentenceTransformer's folder has the configuration of any encoder inside."""
    config = _config(folder)
    if "kdhub" in config and isinstance(config.get("task"), str):
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
        read = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
