"""Where students start that are models already: `path:FOLDER` and `hf:ORG/NAME`, for every task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdhub.errors import UsageError

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
    return context.task.open(folder, context, {"how": LOCAL})


def hub(argument: str, context: BuildContext) -> Student:
    """A model of the Hub, at a pinned commit."""
    from kdhub.hub.fetch import card_licence, fetch_model

    folder, repo, commit = fetch_model(argument)
    start = {"base_model": repo, "revision": commit, "licence": card_licence(folder), "how": "as it is"}
    return context.task.open(folder, context, {k: v for k, v in start.items() if v is not None}, name=repo)
