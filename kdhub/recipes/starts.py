"""Where students start that are models already: `path:FOLDER`, `hf:ORG/NAME`, `member:...`, for every task."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import UsageError
from kdhub.families import Budget, member_in
from kdhub.student import enclosed_in

if TYPE_CHECKING:
    from kdhub.student import BuildContext, Student


LOCAL = "a model in a local folder"


def path(argument: str, context: BuildContext) -> Student:
    """A folder that the task can open as a start (`Task.open`).

    Raises:
        UsageError: there is no such folder.
    """
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise UsageError(f"student folder {folder} does not exist")
    return _opened(folder, context, {"how": LOCAL})


def hub(argument: str, context: BuildContext) -> Student:
    """A model of the Hub, at a pinned commit."""
    from kdhub.hub.fetch import card_licence, fetch_model

    folder, repo, commit = fetch_model(argument)
    start = {"base_model": repo, "revision": commit, "licence": card_licence(folder), "how": "as it is"}
    return _opened(folder, context, {k: v for k, v in start.items() if v is not None}, name=repo)


def _opened(folder: Path, context: BuildContext, start: Mapping[str, Any], **how: Any) -> Student:
    student = context.task.open(folder, context, start, **how)
    student.enclosed = enclosed_in(folder)
    return student


def member(argument: str, context: BuildContext) -> Student:
    """`member:FAMILY` with its `name`, or a budget beside it: a member of a family of sizes, as the task opens it, so
    that the family may be one of another task whose students are starts of this one.

    Raises:
        UsageError: it is no family, nothing is said of which member, or none is within the budget.
    """
    from kdhub.hub.fetch import card_licence, parse_repo
    from kdhub.hub.pull import pull
    from kdhub.recipes.folders import opened
    from kdhub.recipes.resolve import Resolver

    folder, start = Path(argument.removeprefix("path:")).expanduser(), {"how": LOCAL}
    if not folder.is_dir():
        if argument.startswith(("path:", ".", "/", "~")) or argument.count("/") != 1:
            raise UsageError(f"student member:{argument}: there is no such folder", hint="or give org/name of a hub")
        found = pull(*parse_repo(argument))
        folder, start = found.folder, {"base_model": found.repo, "revision": found.commit, "how": "a family"}
        if licence := card_licence(folder):
            start["licence"] = licence
    task, files = opened(folder, None, Resolver())
    family = task.load(files)
    name = member_in(family, files, context.options, argument)
    start |= {"how": f"the member {name} of {start['how']}", "member": {"name": name, **family.members[name]}}
    with tempfile.TemporaryDirectory() as place:
        family.cut(name).save(Path(place))
        return context.task.open(Path(place), context, start)


member.Options = Budget
