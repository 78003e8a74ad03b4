"""Putting a folder on a hub as one commit that replaces what was there, or nothing."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdhub.errors import HubError, NotFoundError, PublishError, UsageError
from kdhub.hub.client import TRIES, Hub
from kdhub.hub.fetch import explain
from kdhub.hub.files import ATTRIBUTES, CARD, LARGEST_TEXT, MANIFEST, SIGNATURE, Digests, Entry, digests, walk
from kdhub.hub.tokens import token_for

logger = logging.getLogger("kdhub")

_OWNERS = frozenset((ATTRIBUTES, ".gitignore", CARD, "LICENSE", "LICENCE"))
"""What a hub, or whoever made the repository on its page, puts into an empty one."""


@dataclass(frozen=True)
class Uploaded:
    """What publishing a folder came to.

    Attributes:
        commit: that has exactly the folder's files.
        changed: false when the hub had them already, so that no commit was made.
        pull_request: its address, when one was asked for and needed.
    """

    commit: str
    changed: bool
    pull_request: str | None = None


def upload(
    hub: Hub,
    repo: str,
    kind: str,
    folder: Path,
    *,
    message: str,
    private: bool = False,
    create_pr: bool = False,
    replace: bool = False,
    tags: Sequence[str] = (),
) -> Uploaded:
    """Make a repository hold exactly the files of a folder (and the hub's own `.gitattributes`).

    The commit names its parent. When somebody else commits first, everything starts over from their commit, at most
    `TRIES` times: a head is always one publisher's files as a whole.

    Args:
        private: make a new repository private.
        create_pr: propose the commit and leave the head as it is.
        replace: also when the repository holds files that kdhub did not put there; they are deleted.
        tags: names for the commit.

    Raises:
        UsageError: the repository is public, or holds somebody's files.
        HubError: refused, unreachable, or a head that moves again and again. The hub then has its old head, or the
            new one; the same call again finds out which.
    """
    import huggingface_hub

    files = {name: (path, digests(path)) for name, path in walk(folder)}
    api = huggingface_hub.HfApi(endpoint=hub.endpoint, token=token_for(hub.endpoint), library_name="kdhub")
    _ensure(hub, api, repo, kind, private, create_pr)
    settled, fault = False, None
    for attempt in range(TRIES):
        head, _ = hub.head(repo, kind)
        entries = hub.tree(repo, kind, head) if head else []
        if head and holds(entries, files):
            return _tagged(hub, api, repo, kind, Uploaded(head, changed=fault is not None), tags)
        _guard(repo, entries, replace)
        if not settled:
            settled = True
            _settle_transport(hub, repo, kind)
        logger.info("publishing %d files to %s on %s", len(files), repo, hub.endpoint)
        try:
            info = _commit(api, repo, kind, files, entries, head, message, create_pr)
        except Exception as error:
            fault = _passing(error, repo, hub.endpoint)
            logger.info("%s; starting again from the new head", fault.message)
            time.sleep(random.uniform(0.1, 0.5) * 2**attempt)
            continue
        if not holds(hub.tree(repo, kind, info.oid), files):
            fault = HubError(f"publishing {repo}: {hub.endpoint} put other files into commit {info.oid} than were sent")
        elif not create_pr and not _stands(hub, repo, kind, info.oid):
            fault = HubError(f"publishing {repo}: {hub.endpoint} took the commit {info.oid} and no longer has it")
        else:
            return _tagged(hub, api, repo, kind, Uploaded(info.oid, True, info.pr_url), tags)
    raise HubError(
        f"publishing {repo}: gave up after {TRIES} tries. {fault.message}",
        hint="someone else may be publishing there, or the hub loses commits: look at it, and try again later",
    ) from fault


def signature_on(hub: Hub, repo: str, kind: str) -> bytes | None:
    """The signature that a repository holds now."""
    try:
        head, _ = hub.head(repo, kind)
        entry = next((e for e in hub.tree(repo, kind, head) if e.path == SIGNATURE), None) if head else None
    except NotFoundError:
        return None
    if entry is None or entry.size > LARGEST_TEXT:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SIGNATURE
        hub.download(hub.file(repo, kind, head, SIGNATURE), path, entry.size, f"fetching {SIGNATURE} of {repo}")
        return path.read_bytes()


def holds(entries: Sequence[Entry], files: Mapping[str, tuple[Path, Digests]]) -> bool:
    """Whether a tree has exactly these files, byte for byte."""
    there = {entry.path: entry for entry in entries if entry.path != ATTRIBUTES}
    return there.keys() == files.keys() - {ATTRIBUTES} and all(files[n][1].fits(entry) for n, entry in there.items())


def _ensure(hub: Hub, api: Any, repo: str, kind: str, private: bool, create_pr: bool) -> None:
    """Make the repository, unless it is there."""
    try:
        _, info = hub.head(repo, kind)
    except NotFoundError as missing:
        if create_pr:
            raise missing
        try:
            api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        except Exception as error:
            raise explain(error, f"creating {repo}", hub.endpoint) from error
        return
    if private and info.get("private") is False:
        raise UsageError(
            f"{repo} on {hub.endpoint} is there already and is public",
            hint="make it private on its page first, choose another name, or leave out --private",
        )


def _guard(repo: str, entries: Sequence[Entry], replace: bool) -> None:
    names = {entry.path for entry in entries}
    foreign = sorted(names - _OWNERS)
    if foreign and MANIFEST not in names and not replace:
        raise UsageError(
            f"{repo} holds files that kdhub did not put there ({', '.join(foreign[:3])}): publishing deletes them",
            hint="choose another name, or add --replace",
        )


def _settle_transport(hub: Hub, repo: str, kind: str) -> None:
    """Turn Xet off for a hub that has none: the client library would send large files there without asking."""
    from importlib.util import find_spec

    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        return
    try:
        hub.json(f"/api/{kind}s/{repo}/xet-write-token/main", f"asking {hub.endpoint} for Xet")
    except NotFoundError:
        logger.info("%s has no Xet: sending large files as LFS", hub.endpoint)
        constants.HF_HUB_DISABLE_XET = True
    except HubError:
        pass  # the commit itself will say what is wrong


def _commit(
    api: Any,
    repo: str,
    kind: str,
    files: Mapping[str, tuple[Path, Digests]],
    entries: Sequence[Entry],
    head: str | None,
    message: str,
    create_pr: bool,
) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    # New ones for each try: the client keeps in them what the old head held, and would leave those files out.
    additions = [CommitOperationAdd(name, str(path)) for name, (path, _) in files.items()]
    gone = sorted({entry.path for entry in entries} - files.keys() - {ATTRIBUTES})
    # Without this, a .gitignore in the repository would make files vanish from the commit.
    api.preupload_lfs_files(
        repo, additions, repo_type=kind, create_pr=create_pr, free_memory=False, gitignore_content=""
    )
    return api.create_commit(
        repo,
        [*additions, *(CommitOperationDelete(name, is_folder=False) for name in gone)],
        commit_message=message,
        repo_type=kind,
        parent_commit=head,
        create_pr=create_pr,
    )


def _passing(error: Exception, repo: str, endpoint: str) -> HubError:
    """What went wrong with a commit, when starting again may help; raised when it does not."""
    from huggingface_hub import constants

    doing = f"publishing {repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (409, 412):
        return HubError(f"{doing}: the head moved, somebody else published there")
    if status is None and not constants.HF_HUB_DISABLE_XET and "xet" in str(error).lower():
        raise HubError(
            f"{doing}: {endpoint} does not take large files through Xet",
            hint="send them as LFS: set HF_HUB_DISABLE_XET=1 and publish again",
        ) from error
    if isinstance(error, ValueError) and status is None:
        raise PublishError(repo, [" ".join(str(error).split())]) from error
    told = explain(error, doing, endpoint)
    # An answer that was lost on the way may stand for a commit that was made: the next look at the head tells.
    if status is None or status == 429 or status >= 500:
        return told
    raise told from error


def _stands(hub: Hub, repo: str, kind: str, commit: str) -> bool:
    """Whether the commit is the head, or in its history: somebody may have published since."""
    head, _ = hub.head(repo, kind)
    if head == commit:
        return True
    history, _ = hub.json(f"/api/{kind}s/{repo}/commits/main", f"reading the history of {repo}")
    return isinstance(history, list) and any(isinstance(c, Mapping) and c.get("id") == commit for c in history)


def _tagged(hub: Hub, api: Any, repo: str, kind: str, done: Uploaded, tags: Sequence[str]) -> Uploaded:
    for tag in tags:
        try:
            api.create_tag(repo, tag=tag, revision=done.commit, repo_type=kind, exist_ok=True)
        except Exception as error:
            raise explain(error, f"tagging {repo} with {tag} (it is published)", hub.endpoint) from error
        if (at := hub.head(repo, kind, tag)[0]) != done.commit:
            raise HubError(
                f"{repo} has a tag {tag} already, at commit {at}", hint=f"{done.commit} is published; use another tag"
            )
    return done
