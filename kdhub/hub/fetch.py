"""Fetching model repositories, with every failure of hub and network as one sentence that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

from kdhub.errors import HubError, UsageError
from kdhub.hub.trust import ALLOW_PATTERNS


def parse_repo(text: str) -> tuple[str, str | None]:
    """`org/name[@revision]` -> (repository, revision).

    Raises:
        UsageError: it is not a repository name.
    """
    repo, _, revision = text.partition("@")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", repo) or ".." in repo:
        raise UsageError(f"{text!r} is not a repository name", hint="expected org/name or org/name@revision")
    return repo, revision or None


def fetch_model(text: str, *, endpoint: str | None = None) -> tuple[Path, str, str]:
    """Bring a model repository's weights and configuration into the Hub cache.

    Returns:
        (folder, repository, commit): the commit is pinned, so that the same bytes can be had again.

    Raises:
        HubError: missing, private, gated, no network, or a broken transfer.
    """
    repo, revision = parse_repo(text)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=ALLOW_PATTERNS, endpoint=endpoint))
    except Exception as error:
        raise explain(error, f"fetching {repo}" + (f" at {revision}" if revision else "")) from error
    return folder, repo, folder.name


def explain(error: Exception, doing: str) -> HubError:
    """A client exception as a HubError: what was being done, what the hub said, whether retrying helps."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return HubError(f"{doing}: the repository is gated on {where}", hint="ask for access on its page, then log in")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"{doing}: no such repository on {where}, or it is private",
            hint="check the name (a local folder is written ./name or path:name); log in if it is private",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{doing}: no such revision on {where}", hint="check the part after @")
    if status in (401, 403):
        return HubError(f"{doing}: {where} refused the token ({status})", hint="log in again; retrying does not help")
    if status is not None:
        again = "try again later" if status == 429 or status >= 500 else "retrying does not help"
        return HubError(f"{doing}: {where} answered {status}", hint=again)
    name = type(error).__name__
    if name in ("OfflineModeIsEnabled", "LocalEntryNotFoundError") or isinstance(error, (OSError, ConnectionError)):
        return HubError(
            f"{doing}: cannot reach {where}, and it is not in the local cache",
            hint="check the network (or HF_HUB_OFFLINE) and try again; a local folder is written ./name or path:name",
        )
    return HubError(f"{doing}: {name}: {str(error).splitlines()[0] if str(error) else ''}")
