"""What the embedded hub keeps: one folder of content by its sha256, and an index in SQLite.

    blobs/ab/abcd...    content, read-only once written
    incoming/           what is being received; nothing of it is ever read
    hub.sqlite          repositories, commits, refs, pull requests, tokens
    key                 the secret by which links to upload are signed

A commit is one transaction, made after all of its content is on the disk. A process that is killed leaves the old head
or the new one, and at worst content that `collect` removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdhub.files import sync_folder
from kdhub.hub.files import git_digest
from kdhub.hub.server.rules import Refused, check_paths, check_ref_name, check_repo_name, derived_tags, is_oid, sendable
from kdhub.hub.trust import split_card

MAIN = "refs/heads/main"
TEXT_LIMIT = 2**20
"""Bytes beyond which neither a card nor `.gitattributes` is read."""

ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in (
        "7z arrow bin bz2 ckpt ftz gz h5 joblib model msgpack npy npz onnx parquet pb pickle pkl ply pt pth rar "
        "safetensors tar tflite tgz wasm xz zip zst"
    ).split()
)
"""`.gitattributes` of a new repository: which files are LFS."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS repos (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE, private INTEGER NOT NULL,
    created TEXT NOT NULL, updated TEXT NOT NULL, card TEXT NOT NULL DEFAULT '{}', UNIQUE (kind, name));
CREATE INDEX IF NOT EXISTS repos_by_age ON repos (kind, updated, id);
CREATE TABLE IF NOT EXISTS ids (one INTEGER PRIMARY KEY CHECK (one = 1), last INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tags (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, tag TEXT NOT NULL, PRIMARY KEY (tag, repo)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, parent TEXT, title TEXT NOT NULL,
    message TEXT NOT NULL, author TEXT NOT NULL, date TEXT NOT NULL, tree BLOB NOT NULL, PRIMARY KEY (repo, oid));
CREATE TABLE IF NOT EXISTS refs (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, name TEXT NOT NULL, oid TEXT NOT NULL,
    PRIMARY KEY (repo, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pulls (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, num INTEGER NOT NULL, title TEXT NOT NULL,
    author TEXT NOT NULL, created TEXT NOT NULL, status TEXT NOT NULL, base TEXT NOT NULL, merged TEXT,
    events TEXT NOT NULL, PRIMARY KEY (repo, num)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL);
"""


@dataclass(frozen=True)
class File:
    """One file of a commit: bytes, digest as git counts it, sha256, and whether clients are to know it as LFS."""

    size: int
    git: str
    sha256: str
    lfs: bool

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.git


def place_of(kind: str, name: str) -> str:
    """Where a repository's pages are, below the address of the hub."""
    return name if kind == "model" else f"datasets/{name}"


@dataclass(frozen=True)
class Repo:
    id: int
    kind: str
    name: str
    private: bool
    created: str
    updated: str
    card: Mapping[str, Any]

    @property
    def place(self) -> str:
        return place_of(self.kind, self.name)


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, File]


@dataclass
class Change:
    """What one commit asks for, in this order: folders and files away, then files in."""

    title: str
    message: str = ""
    parent: str | None = None
    put: dict[str, File] = field(default_factory=dict)
    remove: set[str] = field(default_factory=set)
    remove_below: set[str] = field(default_factory=set)


class Store:
    """One folder. Safe for many threads, and for several processes on one machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.blobs, self.incoming = folder / "blobs", folder / "incoming"
        for each in (folder, self.blobs, self.incoming):
            each.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        self._connections = threading.local()
        self.key = self._key()
        with self.reading() as db:
            db.executescript(_SCHEMA)
        self._commit = lru_cache(maxsize=512)(self._read_commit)

    def _key(self) -> bytes:
        path = self.folder / "key"
        if not path.exists():
            handle, made = tempfile.mkstemp(dir=self.incoming)  # mode 600
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(made, path)  # of two that begin together, the first wins
            except FileExistsError:
                pass
            os.unlink(made)
        return path.read_bytes()

    # -- SQLite -----------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        db = getattr(self._connections, "db", None)
        if db is None:
            db = sqlite3.connect(self.folder / "hub.sqlite", timeout=60, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
            self._connections.db = db
        yield db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone: what is read in it still holds when it is written."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if isinstance(error, sqlite3.IntegrityError) and "FOREIGN KEY" in str(error):
                    raise Refused(404, "the repository was deleted meanwhile", "RepoNotFound") from error
                raise

    # -- content ----------------------------------------------------------------------------------------------

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256[:2] / sha256

    def receive(self) -> Incoming:
        """A file to write content into, which becomes a blob when it is kept."""
        return Incoming(self)

    def text(self, files: Mapping[str, File], path: str, errors: str = "strict") -> str:
        """A small text of a commit; empty when there is none, or when it is larger than anything we read.

        Raises:
            ValueError: it is not UTF-8, and `errors` is strict.
        """
        file = files.get(path)
        if file is None or file.size > TEXT_LIMIT:
            return ""
        return self.blob(file.sha256).read_text(encoding="utf-8", errors=errors)

    def put(self, content: bytes) -> File:
        """Keep the content of a file that is not LFS."""
        with self.receive() as incoming:
            incoming.write(content)
            incoming.keep()
        return File(len(content), git_oid(content), incoming.sha256.hexdigest(), False)

    def has(self, sha256: str, size: int) -> bool:
        """Whether this content is here. It is then kept for another day, until a commit may name it."""
        with self.writing():  # not while `collect` decides
            path = self.blob(sha256)
            if not path.exists() or path.stat().st_size != size:
                return False
            os.utime(path)
            return True

    def collect(self, older: float = 86400.0) -> tuple[int, int]:
        """Remove content that no commit names and nothing received for so many seconds. Returns files and bytes."""
        before, files, freed = time.time() - older, 0, 0
        with self.writing() as db:
            named = {
                row[2]
                for (tree,) in map(tuple, db.execute("SELECT tree FROM commits"))
                for row in json.loads(zlib.decompress(tree)).values()
            }
            for path in [*self.blobs.glob("*/*"), *self.incoming.iterdir()]:
                try:
                    found = path.stat()
                    if path.name not in named and found.st_mtime < before:
                        path.unlink()
                        files, freed = files + 1, freed + found.st_size
                except FileNotFoundError:  # received meanwhile, and now a blob
                    pass
        return files, freed

    # -- repositories -----------------------------------------------------------------------------------------

    def repo(self, kind: str, name: str) -> Repo:
        with self.reading() as db:
            row = db.execute("SELECT * FROM repos WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        if row is None:
            raise no_repo(kind, name)
        return _repo(row)

    def create(self, kind: str, name: str, *, private: bool, author: str) -> Repo:
        """A new repository, with `.gitattributes` as its first commit.

        Raises:
            Refused: the name is taken, or cannot be one.
        """
        check_repo_name(name)
        attributes = {".gitattributes": self.put(ATTRIBUTES.encode())}
        with self.writing() as db:
            if db.execute("SELECT 1 FROM repos WHERE kind = ? AND name = ?", (kind, name)).fetchone():
                raise Refused(409, f"{kind} {name} exists already")
            # A number is given once: what is still under way for a repository that was deleted ends up in no other.
            known = "SELECT max(coalesce((SELECT max(id) FROM repos), 0), coalesce((SELECT last FROM ids), 0)) + 1"
            repo = Repo(db.execute(known).fetchone()[0], kind, name, private, now := _now(), now, {})
            db.execute("REPLACE INTO ids VALUES (1, ?)", (repo.id,))
            db.execute(
                "INSERT INTO repos (id, kind, name, private, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
                (repo.id, kind, name, private, now, now),
            )
            self._add_commit(db, repo, MAIN, None, "initial commit", "", author, attributes)
        return repo

    def delete(self, repo: Repo) -> None:
        with self.writing() as db:
            db.execute("DELETE FROM repos WHERE id = ?", (repo.id,))

    def move(self, repo: Repo, name: str) -> None:
        check_repo_name(name)
        with self.writing() as db:
            try:
                db.execute("UPDATE repos SET name = ? WHERE id = ?", (name, repo.id))
            except sqlite3.IntegrityError:
                raise Refused(409, f"{repo.kind} {name} exists already") from None

    def set_private(self, repo: Repo, private: bool) -> None:
        with self.writing() as db:
            db.execute("UPDATE repos SET private = ? WHERE id = ?", (private, repo.id))

    def repos(
        self,
        kind: str,
        *,
        private: bool,
        tags: Sequence[str] = (),
        search: str = "",
        author: str = "",
        by: str = "updated",
        newest_first: bool = True,
        after: tuple[str, int] | None = None,
        limit: int = 100,
    ) -> list[Repo]:
        """Repositories that have all the tags, in the order of a date (`updated` or `created`).

        Args:
            private: also those.
            after: date and id of the last one of the page before.
        """
        order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = ["kind = ?"], [kind]
        if not private:
            where.append("NOT private")
        for tag in tags:
            where.append("id IN (SELECT repo FROM tags WHERE tag = ?)")
            values.append(tag)
        for text, pattern in ((search, "%{}%"), (author, "{}/%")):
            if text:
                where.append("name LIKE ? ESCAPE '!'")
                values.append(pattern.format("".join("!" + c if c in "!%_" else c for c in text)))
        if after:
            where.append(f"({by}, id) {beyond} (?, ?)")
            values += after
        query = f"SELECT * FROM repos WHERE {' AND '.join(where)} ORDER BY {by} {order}, id {order} LIMIT ?"
        with self.reading() as db:
            return [_repo(row) for row in db.execute(query, (*values, limit))]

    def tags(self, repo: Repo) -> list[str]:
        with self.reading() as db:
            return [row[0] for row in db.execute("SELECT tag FROM tags WHERE repo = ? ORDER BY tag", (repo.id,))]

    # -- commits ----------------------------------------------------------------------------------------------

    def resolve(self, repo: Repo, revision: str) -> str:
        """The commit that a branch, a tag, a whole ref, `HEAD` or a commit's 40 digits name now."""
        names = [MAIN] if revision == "HEAD" else [f"refs/heads/{revision}", f"refs/tags/{revision}", revision]
        with self.reading() as db:
            if is_oid(revision) and self._has_commit(db, repo, revision):  # whatever else has its name
                return revision
            for name in names:
                row = db.execute("SELECT oid FROM refs WHERE repo = ? AND name = ?", (repo.id, name)).fetchone()
                if row:
                    return row[0]
        raise Refused(404, f"{repo.name} has no revision {revision!r}", "RevisionNotFound")

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        return self._commit(repo.id, self.resolve(repo, revision))

    def _read_commit(self, repo: int, oid: str) -> Commit:
        with self.reading() as db:
            row = db.execute("SELECT * FROM commits WHERE repo = ? AND oid = ?", (repo, oid)).fetchone()
        files = {path: File(*file) for path, file in json.loads(zlib.decompress(row["tree"])).items()}
        return Commit(oid, *(row[name] for name in ("parent", "title", "message", "author", "date")), files)

    def history(self, repo: Repo, revision: str, limit: int) -> list[dict[str, Any]]:
        """A commit and its ancestors, newest first: oid, title, message, author, date."""
        query = """WITH RECURSIVE line (oid, parent, title, message, author, date, n) AS (
            SELECT oid, parent, title, message, author, date, 1 FROM commits WHERE repo = ?1 AND oid = ?2
            UNION ALL SELECT c.oid, c.parent, c.title, c.message, c.author, c.date, n + 1
            FROM line JOIN commits c ON c.repo = ?1 AND c.oid = line.parent WHERE n < ?3) SELECT * FROM line"""
        with self.reading() as db:
            return [dict(row) for row in db.execute(query, (repo.id, self.resolve(repo, revision), limit))]

    def take(self, repo: Repo, revision: str, change: Change, author: str) -> str:
        """Make a commit on a branch or on the ref of a pull request. Returns its oid, or that of the head when the
        change changes nothing.

        Raises:
            Refused: 412 when the head is no more what the change was made for; 400 when the change does not fit.
        """
        name = MAIN if revision == "HEAD" else revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if not name.startswith(("refs/heads/", "refs/pr/")):
            raise Refused(400, f"no commit can be made on {revision!r}")
        with self.writing() as db:
            head = self._ref(db, repo, name)
            if head is None:
                raise Refused(404, f"{repo.name} has no branch {revision!r}", "RevisionNotFound")
            files = self._changed(repo, head, change)
            if files == self._commit(repo.id, head).files:
                return head
            return self._add_commit(db, repo, name, head, change.title, change.message, author, files)

    def _changed(self, repo: Repo, head: str, change: Change) -> dict[str, File]:
        if change.parent and not (len(change.parent) >= 7 and head.startswith(change.parent)):
            raise Refused(412, f"the head of {repo.name} is {head}, not {change.parent}")
        files = dict(self._commit(repo.id, head).files)
        for path in change.remove:
            if files.pop(path, None) is None:
                raise Refused(400, f"there is no file {path!r} to delete")
        for folder in change.remove_below:
            files = {path: file for path, file in files.items() if not path.startswith(folder.rstrip("/") + "/")}
        files |= change.put
        for path, file in change.put.items():
            if not self.blob(file.sha256).exists():
                raise Refused(400, f"the content of {path!r} was not uploaded", sha256=file.sha256)
        check_paths(files)
        return files

    def _has_commit(self, db: sqlite3.Connection, repo: Repo, oid: str) -> bool:
        return db.execute("SELECT 1 FROM commits WHERE repo = ? AND oid = ?", (repo.id, oid)).fetchone() is not None

    def _ref(self, db: sqlite3.Connection, repo: Repo, name: str) -> str | None:
        row = db.execute("SELECT oid FROM refs WHERE repo = ? AND name = ?", (repo.id, name)).fetchone()
        return row and row[0]

    def _add_commit(
        self,
        db: sqlite3.Connection,
        repo: Repo,
        ref: str,
        parent: str | None,
        title: str,
        message: str,
        author: str,
        files: Mapping[str, File],
    ) -> str:
        now = _now()
        tree = json.dumps({p: [f.size, f.git, f.sha256, f.lfs] for p, f in sorted(files.items())}).encode()
        # Two commits of one content in one second are still two.
        told = [repo.id, parent, title, message, author, now, secrets.token_hex(8), tree.decode()]
        oid = hashlib.sha1(json.dumps(told).encode(), usedforsecurity=False).hexdigest()
        row = (repo.id, oid, parent, title, message, author, now, zlib.compress(tree))
        db.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", (repo.id, ref, oid))
        if ref == MAIN:
            card, body = self._card(files)
            known = (now, json.dumps(sendable(card)), repo.id)
            db.execute("UPDATE repos SET updated = ?, card = ? WHERE id = ?", known)
            db.execute("DELETE FROM tags WHERE repo = ?", (repo.id,))
            db.executemany("INSERT INTO tags VALUES (?, ?)", [(repo.id, tag) for tag in derived_tags(card, body)])
        return oid

    def _card(self, files: Mapping[str, File]) -> tuple[dict[str, Any], str]:
        try:
            return split_card(self.text(files, "README.md"))
        except ValueError:
            return {}, ""

    # -- refs -------------------------------------------------------------------------------------------------

    def refs(self, repo: Repo) -> dict[str, str]:
        with self.reading() as db:
            found = db.execute("SELECT name, oid FROM refs WHERE repo = ? ORDER BY name", (repo.id,))
            return {row["name"]: row["oid"] for row in found}

    def add_ref(self, repo: Repo, name: str, oid: str, *, replace: bool = False) -> None:
        short = name.split("/", 2)[2]
        check_ref_name(short)
        with self.writing() as db:
            if self._ref(db, repo, name) and not replace:
                raise Refused(409, f"{short!r} exists already in {repo.name}")
            db.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", (repo.id, name, oid))

    def delete_ref(self, repo: Repo, name: str) -> None:
        if name == MAIN:
            raise Refused(403, "the main branch cannot be deleted")
        with self.writing() as db:
            if not db.execute("DELETE FROM refs WHERE repo = ? AND name = ?", (repo.id, name)).rowcount:
                raise Refused(404, f"{repo.name} has no {name!r}", "RevisionNotFound")

    # -- pull requests ----------------------------------------------------------------------------------------

    def open_pull(self, repo: Repo, title: str, text: str, author: str, status: str = "open") -> int:
        """A pull request that changes nothing yet. Returns its number; its ref is `refs/pr/N`."""
        with self.writing() as db:
            num = db.execute("SELECT coalesce(max(num), 0) + 1 FROM pulls WHERE repo = ?", (repo.id,)).fetchone()[0]
            if (base := self._ref(db, repo, MAIN)) is None:
                raise no_repo(repo.kind, repo.name)
            events = [event("comment", author, **_comment(text))] if text else []
            row = (repo.id, num, title, author, _now(), status, base, None, json.dumps(events))
            db.execute("INSERT INTO pulls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.execute("INSERT INTO refs VALUES (?, ?, ?)", (repo.id, f"refs/pr/{num}", base))
        return num

    def propose(self, repo: Repo, change: Change, author: str) -> tuple[int, str]:
        """A pull request with one commit on the head of main. Returns its number and the commit.

        Raises:
            Refused: as `take`; no pull request is left then.
        """
        head = self.resolve(repo, MAIN)
        self._changed(repo, head, change)
        num = self.open_pull(repo, change.title, change.message, author)
        change.parent = None
        return num, self.take(repo, f"refs/pr/{num}", change, author)

    def pull(self, repo: Repo, num: int) -> dict[str, Any]:
        with self.reading() as db:
            row = db.execute("SELECT * FROM pulls WHERE repo = ? AND num = ?", (repo.id, num)).fetchone()
        if row is None:
            raise Refused(404, f"{repo.name} has no pull request {num}")
        return {**dict(row), "events": json.loads(row["events"])}

    def pulls(self, repo: Repo) -> list[dict[str, Any]]:
        with self.reading() as db:
            found = db.execute("SELECT * FROM pulls WHERE repo = ? ORDER BY num DESC", (repo.id,))
            return [{**dict(row), "events": json.loads(row["events"])} for row in found]

    def discuss(self, repo: Repo, num: int, made: Mapping[str, Any], **fields: Any) -> None:
        """Add an event to a pull request and change fields of it (`status`, `title`, `merged`)."""
        with self.writing() as db:
            events = [*self.pull(repo, num)["events"], made]
            names = ["events", *fields]
            values = [json.dumps(events), *fields.values(), repo.id, num]
            db.execute(f"UPDATE pulls SET {', '.join(f'{n} = ?' for n in names)} WHERE repo = ? AND num = ?", values)

    def conflicts(self, repo: Repo, num: int) -> tuple[list[str], dict[str, File | None]]:
        """Files that main changed since as the pull request did, and all that it changes (None: deleted)."""
        pull = self.pull(repo, num)
        base, tip, main = (self.commit_of(repo, r).files for r in (pull["base"], f"refs/pr/{num}", MAIN))
        changed = {path: tip.get(path) for path in {*base, *tip} if base.get(path) != tip.get(path)}
        both = [p for p, file in changed.items() if main.get(p) != base.get(p) and main.get(p) != file]
        return sorted(both), changed

    def merge(self, repo: Repo, num: int, author: str) -> str:
        """Bring a pull request's changes onto main. Returns the commit."""
        if self.pull(repo, num)["status"] not in ("open", "draft"):
            raise Refused(400, f"pull request {num} is not open")
        head = self.resolve(repo, MAIN)
        both, changed = self.conflicts(repo, num)
        if both:
            raise Refused(409, f"pull request {num} and main both changed {', '.join(both[:3])}")
        gone = {path for path, file in changed.items() if file is None and path in self._commit(repo.id, head).files}
        put = {path: file for path, file in changed.items() if file is not None}
        oid = self.take(repo, "main", Change(f"Merge pull request {num}", parent=head, put=put, remove=gone), author)
        self.discuss(repo, num, event("status-change", author, status="merged"), status="merged", merged=oid)
        return oid

    # -- tokens -----------------------------------------------------------------------------------------------

    def add_token(self, name: str, role: str) -> str:
        """A new token, which is told here once and kept as its digest alone."""
        check_repo_name(f"{name}/x")
        token = "hf_" + "".join(secrets.choice(_LETTERS) for _ in range(34))
        with self.writing() as db:
            try:
                row = (name, role, _digest(token), _now())
                db.execute("INSERT INTO tokens (name, role, digest, created) VALUES (?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise Refused(409, f"there is a token {name!r} already") from None
        return token

    def token(self, token: str) -> tuple[str, str] | None:
        """Name and role of a token; None when it is none of ours."""
        with self.reading() as db:
            row = db.execute("SELECT name, role FROM tokens WHERE digest = ?", (_digest(token),)).fetchone()
        return row and (row["name"], row["role"])

    def tokens(self) -> list[dict[str, Any]]:
        with self.reading() as db:
            return [dict(row) for row in db.execute("SELECT name, role, created FROM tokens ORDER BY id")]

    def remove_token(self, name: str) -> bool:
        with self.writing() as db:
            return bool(db.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount)


class Incoming:
    """Content being received. Kept whole, or gone."""

    def __init__(self, store: Store):
        self.store = store

    def __enter__(self) -> Incoming:
        handle, path = tempfile.mkstemp(dir=self.store.incoming)
        self.path, self.file = Path(path), os.fdopen(handle, "wb")
        self.size, self.sha256 = 0, hashlib.sha256()
        return self

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.sha256.update(content)
        self.size += len(content)

    def keep(self) -> None:
        """Make a blob of what was written. On the disk when this returns."""
        self.file.flush()
        os.fsync(self.file.fileno())
        target = self.store.blob(self.sha256.hexdigest())
        target.parent.mkdir(exist_ok=True)
        os.chmod(self.path, 0o400)
        os.replace(self.path, target)
        sync_folder(target.parent)

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


# -- rules ----------------------------------------------------------------------------------------------------


def no_repo(kind: str, name: str) -> Refused:
    return Refused(404, f"there is no {kind} {name} here, or it is private", "RepoNotFound")


def no_entry(repo: Repo, commit: Commit, path: str) -> Refused:
    return Refused(404, f"{repo.name} has no {path!r} at {commit.oid}", "EntryNotFound", commit=commit.oid)


def event(kind: str, author: str, **data: Any) -> dict[str, Any]:
    """One line of a pull request's story, as clients read it."""
    told = {"id": secrets.token_hex(12), "type": kind, "createdAt": _now(), "author": {"name": author}}
    return {**told, "data": data}


def comment(author: str, text: str) -> dict[str, Any]:
    return event("comment", author, **_comment(text))


def git_oid(content: bytes) -> str:
    digest = git_digest(len(content))
    digest.update(content)
    return digest.hexdigest()


def lfs_file(sha256: str, size: int) -> File:
    """A file that git knows by a pointer of three lines."""
    return File(size, git_oid(pointer(sha256, size)), sha256, True)


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def _comment(text: str) -> dict[str, Any]:
    return {"edited": False, "hidden": False, "latest": {"raw": text}}


def _repo(row: sqlite3.Row) -> Repo:
    private, card = bool(row["private"]), sendable(json.loads(row["card"]))
    return Repo(row["id"], row["kind"], row["name"], private, row["created"], row["updated"], card)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
