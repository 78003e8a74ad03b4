"""Data sets of the Hugging Face Hub, read by `datasets` at a pinned commit; no code of a repository is ever run."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow, Source, iterate, names_of
from kdhub.errors import DataError, HubError, UsageError
from kdhub.files import home
from kdhub.hub.tokens import token_for

if TYPE_CHECKING:
    import datasets

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRIES = 3
_REST = 300
_NETWORK = {"huggingface_hub", "httpx", "httpx2", "requests", "datasets", "aiohttp", "fsspec"}
_down: dict[str, float] = {}
"""Endpoint -> when it could not be reached. A recipe names several data sets, each with another source to fall back
on: without this, a machine behind a wall would wait for every one of them."""


class HubSource(Source):
    """One split of a data set on the Hub, at a pinned commit; no code of a repository is ever run."""

    def __init__(self, repo: str, split: str, *, config: str | None = None, revision: str | None = None):
        self.repo, self.split, self.config, self.revision = repo, split, config, revision
        self.label = f"hf:{repo}" + (f"@{revision}" if revision else "")

    def _load(self) -> tuple[datasets.Dataset, str]:
        splits, commit = load_hub(self.repo, self.revision, self.config)
        if self.split not in splits:
            raise DataError(f"{self.label} has no split {self.split!r}; it has {names_of(splits)}")
        return splits[self.split], commit

    def record(self) -> dict[str, Any]:
        where = {"config": self.config} if self.config else {}
        return {"kind": "hub", "repo": self.repo, "revision": self._load()[1], **where, "split": self.split}

    def key(self) -> dict[str, Any]:
        table, commit = self._load()
        return {**self.record(), **({} if commit else {"id": table._fingerprint})}

    def columns(self) -> list[str]:
        return self._load()[0].column_names

    def table(self) -> datasets.Dataset:
        return self._load()[0]

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        return enumerate(iterate(self.table()), 1)


def hf(argument: str, *, config: str | None = None) -> Data:
    """A data set on the Hub: `org/name` or `org/name@revision`."""
    repo, _, revision = argument.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"{argument!r} is not a data set on the Hub", hint="write org/name or org/name@revision")

    def sources() -> dict[str, Source]:
        splits, _ = load_hub(repo, revision or None, config)
        return {split: HubSource(repo, split, config=config, revision=revision or None) for split in splits}

    return Data(repo, sources, ref=f"hf:{argument}")


@cache
def load_hub(repo: str, revision: str | None, config: str | None) -> tuple[Mapping[str, datasets.Dataset], str]:
    """All splits of a data set on the Hub, and the commit they are from ("" when a cached copy does not tell).

    Raises:
        HubError: no network, no such repository, no access; says whether trying again helps.
        DataError: it is there, and is no data set that can be read without running code.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi, constants

    doing = f"loading data set {repo}" + (f" at {revision}" if revision else "")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if time.monotonic() - _down.get(constants.ENDPOINT, -_REST) < _REST:
        raise HubError(f"{doing}: no connection to {constants.ENDPOINT} a moment ago", hint=_AGAIN)
    for attempt in range(_TRIES):
        try:
            commit = revision or ""
            if not _COMMIT.fullmatch(commit) and not constants.HF_HUB_OFFLINE:
                commit = HfApi(token=token_for()).dataset_info(repo, revision=revision).sha or ""
            found = datasets.load_dataset(
                repo, config, revision=commit or revision, cache_dir=str(home() / "data" / "hub"), token=token_for()
            )
            break
        except Exception as error:
            status = _status(error)
            if not status and _is_data_fault(error):
                raise DataError(f"{doing}: {error.__cause__ or error}") from error
            if not _is_network_fault(error):
                raise
            passing = not constants.HF_HUB_OFFLINE and (status is None or status == 429 or status >= 500)
            if not passing or attempt == _TRIES - 1 or isinstance(error, DatasetNotFoundError):
                if passing and status is None:
                    _down[constants.ENDPOINT] = time.monotonic()
                raise _hub_error(error, doing) from error
            time.sleep(2**attempt)
    at = _cached_commit(found)
    if at and _COMMIT.fullmatch(commit) and at != commit:
        raise HubError(
            f"{doing}: commit {commit} is not here, the copy that is here is {at}",
            hint="go online once, or ask for that commit",
        )
    return found, at or (commit if _COMMIT.fullmatch(commit) else "")


_AGAIN = "check the network and try again; what was loaded before works with HF_HUB_OFFLINE=1"


def _is_data_fault(error: Exception) -> bool:
    """The repository was reached and its rows is not available: an unknown config, no data file, a loading script."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    if isinstance(error, DatasetNotFoundError):
        return False
    # `datasets` says most things as ValueError or RuntimeError.
    return isinstance(error, (DatasetGenerationError, ValueError, NotImplementedError, RuntimeError))


def _is_network_fault(error: Exception) -> bool:
    return bool(_status(error)) or isinstance(error, OSError) or type(error).__module__.split(".")[0] in _NETWORK


def _cached_commit(splits: Mapping[str, datasets.Dataset]) -> str:
    """`datasets` keeps the rows of a commit in a folder named by it."""
    for table in splits.values():
        for file in table.cache_files:
            if _COMMIT.fullmatch(name := Path(file["filename"]).parent.name):
                return name
    return ""


def _status(error: BaseException | None) -> int | None:
    """HTTP status of an error or of what caused it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _hub_error(error: BaseException, doing: str) -> HubError:
    from huggingface_hub import constants

    status = _status(error)
    if constants.HF_HUB_OFFLINE:
        return HubError(
            f"{doing}: the Hub is switched off (HF_HUB_OFFLINE) and no copy is here",
            hint="unset HF_HUB_OFFLINE and try again",
        )
    if status in (401, 403):
        return HubError(f"{doing}: no access ({status})", hint="log in with `hf auth login`, or ask for access there")
    if status == 404 or type(error).__name__ == "DatasetNotFoundError":
        return HubError(f"{doing}: not found there, or private", hint="check the name; log in if it is private")
    if status == 429:
        return HubError(f"{doing}: too many requests (429)", hint="try again in some minutes")
    if status and status >= 500:
        return HubError(f"{doing}: the hub has a fault of its own ({status})", hint="try again later")
    return HubError(
        f"{doing}: no connection to {constants.ENDPOINT} ({type(error).__name__})",
        hint=_AGAIN,
    )
