"""Bringing a student here: everything is checked before it stands in its place, and it comes there by one rename.

In kdhub's store, `<home>/students/<hub>/<kind>s--<org>--<name>/`, there are

<commit>/           the student, with `.kdhub-pull.json` beside its files
refs/<rev>.txt      the commit that a revision named when it was last pulled
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from kdhub.errors import HubError, KdhubError, NotFoundError, UnreachableError, UntrustedError, UsageError
from kdhub.files import atomic_write, changed, home, read_sealed, remember_sha256, write_sealed
from kdhub.hub import manifest
from kdhub.hub.client import Hub, writing
from kdhub.hub.files import (
    CARD,
    MANIFEST,
    Digests,
    Entry,
    check_entries,
    digests,
    is_commit,
    walk,
)
from kdhub.hub.manifest import RECORD
from kdhub.hub.trust import check_configuration

logger = logging.getLogger("kdhub")

KINDS = ("model", "dataset")
MOST_BYTES = 50 * 10**9
"""What a student may weigh unless the user says more."""
AT_ONCE = 4
"""Files fetched at the same time."""


@dataclass(frozen=True)
class Pulled:
    """A student that was brought here.

    Attributes:
        folder: where it is.
        repo, kind, endpoint: where it is from; kind is `model` or `dataset`.
        commit: 40 hex digits; the same bytes can be had again by it.
        bytes: of all files.
        fetched: false when it was here already.
    """

    folder: Path
    repo: str
    kind: str
    endpoint: str
    commit: str
    bytes: int
    fetched: bool


def pull(
    repo: str,
    revision: str | None = None,
    *,
    kind: str | None = None,
    to: Path | None = None,
    endpoint: str | None = None,
    most_bytes: int = MOST_BYTES,
) -> Pulled:
    """Bring a student here, or find it here.

    Args:
        kind: `model` or `dataset`; by default a model of that name is looked for first.
        to: a folder, new or empty; the store of kdhub by default.
        most_bytes: refuse what declares more.

    Raises:
        UntrustedError: it holds what a student may not hold, or its bytes are not those that the hub's tree and the
            manifest name.
        HubError: missing, private, no network, or a broken transfer.
        UsageError: `to` is not empty.
    """
    hub = Hub(endpoint)
    if to is not None and (to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir())))):
        raise UsageError(f"{to} is not empty", hint="choose a new folder with --to")
    found = cached(repo, revision, kind=kind, endpoint=hub.endpoint)
    damage = _damage(found.folder) if found else []
    if found is None or damage or not is_commit(revision):
        try:
            kind, commit = _look_up(hub, repo, revision, kind)
        except UnreachableError as error:
            if found is None:
                raise
            if damage:
                raise UnreachableError(
                    f"{found.folder} was changed since it was pulled ({damage[0]}), and {error.message}",
                    hint="pull it again when the hub can be reached",
                ) from error
            logger.warning("%s; using the local copy, commit %s", error.message, found.commit[:12])
        else:
            found = cached(repo, commit, kind=kind, endpoint=hub.endpoint)
            if found and (damage := _damage(found.folder)):
                logger.warning("%s was changed since it was pulled (%s): fetching it again", found.folder, damage[0])
                with _alone(found.folder):
                    shutil.rmtree(found.folder, ignore_errors=True)
                found = None
            if found is None:
                return _fetch(hub, repo, kind, revision, commit, to, most_bytes)
            if to is None:
                _remember(found, revision)
    return found if to is None else _copy(found, to)


def cached(
    repo: str, revision: str | None = None, *, kind: str | None = None, endpoint: str | None = None
) -> Pulled | None:
    """A student that was pulled before, without asking the hub; None when it is not here."""
    hub = Hub(endpoint)
    for one in [kind] if kind else KINDS:
        place = _place(hub.endpoint, one, repo)
        reference = place / "refs" / _ref(revision)
        commit = revision if is_commit(revision) else reference.read_text().strip() if reference.is_file() else None
        if is_commit(commit) and (record := read_record(place / commit)) is not None:
            return Pulled(place / commit, repo, one, hub.endpoint, commit, record["bytes"], False)
    return None


def read_record(folder: Path) -> dict | None:
    """What `pull` wrote beside a student; None when the folder was not pulled."""
    try:
        record = read_sealed(folder / RECORD)
    except (OSError, ValueError):
        return None
    whole = isinstance(record.get("files"), dict) and isinstance(record.get("bytes"), int)
    return record if whole else None


def check_pulled(folder: Path) -> None:
    """See that a pulled student is still what it was; free when nobody touched it. People may better its card.

    Raises:
        UntrustedError: files were changed since.
    """
    if damage := _damage(folder):
        raise UntrustedError(
            f"{folder} is not what was pulled: {', '.join(damage[:3])} changed since",
            hint="pull it again; a changed student belongs into a folder of its own, without " + RECORD,
        )


def _damage(folder: Path) -> list[str]:
    record = read_record(folder)
    return changed(folder, {n: f for n, f in record["files"].items() if n != CARD}) if record else []


def check_folder(folder: Path, name: str) -> list[str]:
    """How a student's folder differs from its manifest, or from what was pulled; one sentence each.

    Raises:
        UntrustedError: there is neither, or the manifest is none.
    """
    found = {n: digests(path) for n, path in walk(folder)}
    if MANIFEST in found:
        return manifest.read(folder / MANIFEST, name).problems(found)
    record = read_record(folder)
    if record is None:
        raise UntrustedError(f"{name} has no {MANIFEST}: kdhub did not publish it, so there is nothing to verify")
    files = {n: (f.get("size"), f.get("sha256")) for n, f in record["files"].items() if isinstance(f, dict)}
    return manifest.Manifest({}, files).problems(found)


# -- inside ---------------------------------------------------------------------------------------------------


def _look_up(hub: Hub, repo: str, revision: str | None, kind: str | None) -> tuple[str, str]:
    """Kind and commit.

    Raises:
        HubError: none of the kinds has it; the commit is another than was asked for; it is empty.
    """
    missing = None
    for one in [kind] if kind else KINDS:
        try:
            commit, _ = hub.head(repo, one, revision)
        except NotFoundError as error:
            missing = missing or error
            continue
        if commit is None:
            raise HubError(f"{repo} on {hub.endpoint} is empty", hint="nothing was published there yet")
        if is_commit(revision) and commit != revision:
            raise UntrustedError(f"{hub.endpoint} gives commit {commit} of {repo} for {revision}")
        return one, commit
    raise missing


def _fetch(
    hub: Hub, repo: str, kind: str, revision: str | None, commit: str, to: Path | None, most_bytes: int
) -> Pulled:
    entries = hub.tree(repo, kind, commit)
    check_entries(entries, f"{repo} on {hub.endpoint}", most_bytes=most_bytes)
    total = sum(entry.size for entry in entries)
    pulled = Pulled(to or _place(hub.endpoint, kind, repo) / commit, repo, kind, hub.endpoint, commit, total, True)
    target = pulled.folder
    with _alone(target):
        if to is None and read_record(target) is not None:  # another process was faster
            return pulled
        staging = _staging(target, commit, entries)
        free = shutil.disk_usage(staging).free
        if total - sum(p.stat().st_size for _, p in walk(staging)) > free:
            raise KdhubError(f"{repo} has {total:,} bytes, and {staging.parent} has room for {free:,}")
        logger.info("pulling %s at %s, %d files, %s bytes", repo, commit[:12], len(entries), f"{total:,}")
        found = _download(hub, repo, kind, commit, entries, staging)
        _check(staging, found, f"{repo} at {commit[:12]}")
        _record(staging, pulled, revision, found)
        if to is None:
            shutil.rmtree(target, ignore_errors=True)  # without a record it is nobody's
        _move(staging, target)
        for name, known in found.items():
            remember_sha256(target / name, known.sha256)  # it need not be read again to be loaded
    if to is None:
        _remember(pulled, revision)
    return pulled


def _staging(target: Path, commit: str, entries: list[Entry]) -> Path:
    """The folder beside the target that files are fetched into. What an earlier call left of the same commit stays;
    everything else goes."""
    folder = target.parent / f".{target.name}.{commit[:12]}.pull"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        wanted = {entry.path for entry in entries}
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        folder.mkdir(exist_ok=True)
        for path in sorted(folder.rglob("*"), reverse=True):
            name = path.relative_to(folder).as_posix()
            other = (
                path.is_symlink()
                or not (path.is_dir() or path.is_file())
                or (path.is_file() and (name not in wanted or path.stat().st_nlink > 1))
            )
            if other:  # also what has another name somewhere, which would be written to as well
                path.unlink()
        for name in wanted:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdhubError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    return folder


def _download(hub: Hub, repo: str, kind: str, commit: str, entries: list[Entry], staging: Path) -> dict[str, Digests]:
    """Every file, a few at a time, each checked against the tree."""
    stopped = threading.Event()

    def bring(entry: Entry) -> Digests:
        path, doing = staging / entry.path, f"fetching {entry.path} of {repo}"
        hub.download(hub.file(repo, kind, commit, entry.path), path, entry.size, doing, stopped)
        found = digests(path)
        if not found.fits(entry):
            path.unlink()
            raise UntrustedError(
                f"{doing}: the bytes do not match the digest in the hub's file list",
                hint="nothing was put in place; try again, and if it happens again, tell whoever runs the hub",
            )
        return found

    found = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {pool.submit(bring, entry): entry.path for entry in entries}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _check(folder: Path, found: Mapping[str, Digests], name: str) -> None:
    """The manifest against the files, and configurations that would run code."""
    if MANIFEST in found:
        problems = manifest.read(folder / MANIFEST, name).problems(found)
        if problems:
            raise UntrustedError(
                f"{name} is refused: {'; '.join(problems[:3])}",
                hint="files were changed after publishing; pull another revision with @REVISION",
            )
    else:
        logger.warning("%s has no %s: kdhub did not publish it, so its figures cannot be verified", name, MANIFEST)
    check_configuration(folder, name=name)


def _record(staging: Path, pulled: Pulled, revision: str | None, found: Mapping[str, Digests]) -> None:
    files = {n: {"size": d.size, "sha256": d.sha256} for n, d in found.items()}
    value = {
        "schema": 1,
        "endpoint": pulled.endpoint,
        "repo": pulled.repo,
        "kind": pulled.kind,
        "revision": revision,
        "commit": pulled.commit,
        "bytes": pulled.bytes,
        "files": files,
    }
    write_sealed(staging / RECORD, value)


def _entries(record: Mapping) -> Iterator[Entry]:
    return (Entry(name, file["size"], file["sha256"]) for name, file in record["files"].items())


def _copy(found: Pulled, to: Path) -> Pulled:
    """A student of the store in another folder, its digests checked again."""
    record = read_record(found.folder)
    with _alone(to):
        staging = _staging(to, found.commit, list(_entries(record)))
        for entry in _entries(record):
            with writing(staging / entry.path):
                shutil.copyfile(found.folder / entry.path, staging / entry.path)
            if not digests(staging / entry.path).fits(entry):
                raise KdhubError(
                    f"{found.folder / entry.path} was changed since it was pulled",
                    hint=f"delete {found.folder} and pull again",
                )
        shutil.copyfile(found.folder / RECORD, staging / RECORD)
        _move(staging, to)
    return Pulled(to, found.repo, found.kind, found.endpoint, found.commit, found.bytes, False)


def _move(staging: Path, target: Path) -> None:
    try:
        os.rename(staging, target)  # replaces an empty folder, and nothing else
    except OSError as error:
        raise KdhubError(f"cannot move the student to {target}: {error.strerror or error}") from error


def _remember(pulled: Pulled, revision: str | None) -> None:
    if not is_commit(revision):
        refs = _place(pulled.endpoint, pulled.kind, pulled.repo) / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        before = refs / _ref(revision)
        known = before.read_text().strip() if before.is_file() else pulled.commit
        if revision and known != pulled.commit:
            told = "%s of %s named commit %s when it was pulled before, and names %s now"
            logger.warning(told, revision, pulled.repo, known[:12], pulled.commit[:12])
        atomic_write(before, pulled.commit + "\n")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time for one target; the others wait, and then find it there."""
    from filelock import FileLock

    locks = home() / "students" / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:24]):
        yield


def _place(endpoint: str, kind: str, repo: str) -> Path:
    parts = urlsplit(endpoint)
    return home() / "students" / quote(parts.netloc + parts.path, safe="") / f"{kind}s--{repo.replace('/', '--')}"


def _ref(revision: str | None) -> str:
    return quote(revision or "main", safe="") + ".txt"
