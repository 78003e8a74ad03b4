"""`kdhub.load`: any student of any task, from its folder, its run, or a hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdhub.errors import UsageError
from kdhub.families import member_in
from kdhub.recipes.folders import opened
from kdhub.recipes.resolve import Resolver
from kdhub.student import Student


def load(
    name: str | Path,
    *,
    member: str | Mapping[str, Any] | None = None,
    task: str | None = None,
    endpoint: str | None = None,
    resolver: Resolver | None = None,
) -> Student:
    """Load a student.

    Args:
        name: a run folder, a student folder, or what `kdhub.pull` takes; a student of a hub is pulled first, unless it
            is here already.
        member: of a family of sizes: one of its `members`, as a student of its own, by name or as the best within a
            budget (`{"parameters": 100_000}`; see `kdhub.families.Budget`).
        task: needed for a student folder that lies outside a run.
        endpoint: the hub.

    Raises:
        RunError: the run has no student yet.
        UsageError: there is no such folder, or its task is unknown; or no such member.
        CompatibilityError: no plugin here provides its task; says which distribution does.
        HubError: it cannot be had, or is not trusted.
    """
    resolver = resolver or Resolver()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _pulled(str(name), endpoint, resolver)
    own, files = opened(folder, task, resolver)
    student = own.load(files)
    return student if member is None else student.cut(member_in(student, files, member, str(name)))


def _pulled(name: str, endpoint: str | None, resolver: Resolver) -> Path:
    from kdhub.verbs.pull import pull

    local = name.startswith((".", "/", "~")) or name.count("/") > 2
    if local or ("/" not in name and ("published", name) not in resolver.catalog):
        raise UsageError(f"{name} is not a folder", hint="give a run folder, a student folder, or org/name on a hub")
    return pull(name, endpoint=endpoint, catalog=resolver.catalog).folder
