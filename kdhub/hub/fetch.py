"""Fetching model repositories, with every failure of hub and network as one sentence that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

from kdhub.errors import HubError, NotFoundError, UnreachableError, UsageError
from kdhub.hub.tokens import token_for, withheld
from kdhub.hub.trust import ALLOW_PATTERNS, split_card

_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}


def parse_repo(text: str) -> tuple[str, str | None]:
    """`org/name[@revision]` -> (repository, revision).

    Raises:
        UsageError: it is not a repository name.
    """
    repo, _, revision = text.partition("@")
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", repo, re.ASCII)
    if not named or ".." in text or not re.fullmatch(r"[^\s~^:?*\[\\]{0,200}", revision):
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
        fetched = snapshot_download(
            repo, revision=revision, allow_patterns=ALLOW_PATTERNS, endpoint=endpoint, token=token_for(endpoint)
        )
        folder = Path(fetched)
    except Exception as error:
        raise explain(error, f"fetching {repo}" + (f" at {revision}" if revision else ""), endpoint) from error
    return folder, repo, folder.name


def card_licence(folder: Path) -> str | None:
    """The licence in the front matter of a repository's README; None where it says none."""
    try:
        front, _ = split_card((folder / "README.md").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(front["license"]) if front.get("license") else None


def explain(error: Exception, doing: str, endpoint: str | None = None) -> HubError:
    """A client exception as a HubError: what was being done, what the hub said, whether retrying helps."""
    from huggingface_hub import constants

    where = endpoint or constants.ENDPOINT
    response = getattr(error, "response", None)
    if response is not None:
        headers = getattr(response, "headers", {})
        code = headers.get("X-Error-Code") or _CLIENT_CODES.get(type(error).__name__, "")
        return refused(response.status_code, code, headers.get("X-Error-Message", ""), doing, where)
    if is_network_fault(error):
        return UnreachableError(
            f"{doing}: cannot reach {where}, and it is not in the local cache",
            hint="check the network (or HF_HUB_OFFLINE) and try again; a local folder is written ./name or path:name",
        )
    name = type(error).__name__
    return HubError(f"{doing}: {name}: {str(error).splitlines()[0] if str(error) else ''}")


_CODES = {
    "RepoNotFound": (
        "no such repository on {where}, or it is private",
        "check the name (a local folder is written ./name or path:name); log in if it is private",
    ),
    "RevisionNotFound": ("no such revision on {where}", "check the part after @"),
    "EntryNotFound": ("no such file on {where}", "was the repository changed meanwhile? try again"),
}

_CLIENT_CODES = {
    "RepositoryNotFoundError": "RepoNotFound",
    "GatedRepoError": "GatedRepo",
    "RevisionNotFoundError": "RevisionNotFound",
    "RemoteEntryNotFoundError": "EntryNotFound",
}
"""What the client makes of an answer, also where the hub itself sent no code."""


def refused(status: int, code: str, message: str, doing: str, where: str) -> HubError:
    """What a hub's refusal means.

    Args:
        status: of the answer, 400 or more.
        code, message: its headers `X-Error-Code` and `X-Error-Message`; a bare hub sends neither.
        doing: what was being done.
        where: the hub's address.
    """
    kept = withheld(where)
    if code == "GatedRepo":
        hint = kept or "ask for access on its page, then log in"
        return HubError(f"{doing}: the repository is gated on {where}", hint=hint)
    if code in _CODES:
        told, hint = _CODES[code]
        return NotFoundError(f"{doing}: {told.format(where=where)}", hint="; ".join(filter(None, (hint, kept))))
    # Without a code, hubs say 401 for what is private or missing; only this text says that the token itself is bad.
    if status == 404 or (status == 401 and "Invalid credentials" not in message):
        return NotFoundError(
            f"{doing}: not found on {where} ({status}), or not for this token", hint=kept or _CODES["RepoNotFound"][1]
        )
    if status in (401, 403):
        hint = kept or "log in again; retrying does not help"
        return HubError(f"{doing}: {where} refused {'without a' if kept else 'the'} token ({status})", hint=hint)
    again = "try again later" if status in (408, 429) or status >= 500 else "retrying does not help"
    return HubError(f"{doing}: {where} answered {status}", hint=again)


def is_network_fault(error: BaseException) -> bool:
    """Whether an exception comes from the way to the hub, not from what it said."""
    name = type(error).__name__
    return (
        name in ("OfflineModeIsEnabled", "LocalEntryNotFoundError")
        or isinstance(error, OSError)
        or type(error).__module__.partition(".")[0] in _NETWORK
    )
