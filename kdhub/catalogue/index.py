"""What stands in a section of the catalogue that programs write and that may grow to hundreds of thousands of files.

One SQLite file in `$KDHUB_HOME`, a copy of the YAML files that can be made again at any time: what is no database, of
another schema, or cannot be written is replaced, in memory if need be.

A folder whose time is the one known is not listed again. Of its files, `CHECKED` are looked at in each use, in turns by
chance, and each that is part of an answer: so an entry that was added, removed or replaced by rename is seen at once,
and one that was changed in its place as well where there are no more than `CHECKED` files or it was part of the answer.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from kdhub.errors import RecipeError

logger = logging.getLogger("kdhub")

SCHEMA = 1
CHECKED = 10_000
YOUNG = 2_000_000_000
"""Nanoseconds within which a file may be changed again without another time: what is younger is read again."""

FIELDS = ("repo", "kind", "commit", "licence", "task", "method", "teacher", "updated")
NUMBERS = ("parameters", "size", "latency")

_columns = [*(f'"{name}" TEXT' for name in FIELDS), *(f'"{name}" REAL' for name in NUMBERS)]
TABLES = f"""
CREATE TABLE folders (path TEXT PRIMARY KEY, parent TEXT, root TEXT, stamp TEXT);
CREATE TABLE entries (id INTEGER PRIMARY KEY, root TEXT, folder TEXT, file TEXT UNIQUE, name TEXT, stamp TEXT,
    value TEXT, problems TEXT, words TEXT, {", ".join(_columns)});
CREATE INDEX entries_of ON entries (root, name);
CREATE INDEX entries_in ON entries (folder);
CREATE TABLE results (entry INTEGER, metric TEXT, value REAL, PRIMARY KEY (metric, entry)) WITHOUT ROWID;
CREATE INDEX results_of ON results (entry);
PRAGMA user_version = {SCHEMA};
"""

T = TypeVar("T")


class Index:
    """The entries below some folders; of two with one name, that of the earlier folder.

    Args:
        path: of the database.
        roots: folders in order of precedence; they need not be there.
        read: a file -> its keys.
    """

    def __init__(self, path: Path, roots: Sequence[Path], read: Callable[[Path], dict[str, Any]]):
        self.path, self.roots, self.read = path, [str(root) for root in roots], read
        self._base: sqlite3.Connection | None = None

    def names(self) -> list[str]:
        """In alphabetical order."""
        query, values = self._from()
        found = self._do(lambda base: base.execute(f"SELECT DISTINCT e.name {query} ORDER BY e.name", values))
        return [name for (name,) in found]

    def file(self, name: str) -> Path | None:
        query, values = self._from("e.name = ?", name)
        found = self._do(lambda base: base.execute(f"SELECT e.file {query}", values))
        return Path(found[0][0]) if found else None

    def near(self, name: str, most: int = 1000) -> list[str]:
        """Names that begin alike, for "did you mean"."""
        for length in (3, 1):
            query, values = self._from("substr(e.name, 1, ?) = ?", length, name[:length])
            sql = f"SELECT DISTINCT e.name {query} ORDER BY abs(length(e.name) - ?), e.name LIMIT ?"
            if found := self._do(lambda base, v=values, s=sql: base.execute(s, (*v, len(name), most))):
                return [one for (one,) in found]
        return []

    def entries(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """All that can be read, by name, and one sentence for each that cannot."""
        query, values = self._from()
        sql = f"SELECT e.name, e.value, e.problems {query} ORDER BY e.name"
        rows = self._do(lambda base: base.execute(sql, values))
        problems = [problem for _, _, text in rows if text for problem in json.loads(text)]
        return {name: json.loads(value) for name, value, _ in rows if value}, problems

    def search(
        self, words: Sequence[str], equal: Mapping[str, str], sort: str, descending: bool, limit: int
    ) -> list[dict[str, Any]]:
        """Entries, best first and without that number last, by name where they are alike.

        Args:
            words: all in name, repository, task, method or teacher, in small letters.
            equal: field -> its value.
            sort: a field, or a metric.

        Returns:
            Fields, numbers, name and results of each, and under `sorted` its number.
        """
        where = ["e.value IS NOT NULL", *(["instr(e.words, ?)"] * len(words)), *(f'e."{name}" = ?' for name in equal)]
        query, values = self._from(" AND ".join(where), *words, *equal.values())
        own = sort in (*FIELDS, *NUMBERS)
        number = f'e."{sort}"' if own else "r.value"
        columns = ", ".join(["e.id", "e.file", "e.stamp", "e.name", *(f'e."{n}"' for n in (*FIELDS, *NUMBERS))])
        direction = "DESC" if descending else "ASC"
        with_metric = query.replace("entries e", "results r JOIN entries e ON e.id = r.entry AND r.metric = ?", 1)
        without = f"{query} AND NOT EXISTS (SELECT 1 FROM results r WHERE r.metric = ? AND r.entry = e.id)"

        def ask(base: sqlite3.Connection) -> list[Any]:
            if own:
                order = f"ORDER BY {number} IS NULL, {number} {direction}, e.name LIMIT ?"
                return base.execute(f"SELECT {columns}, {number} {query} {order}", (*values, limit)).fetchall()
            sql = f"SELECT {columns}, r.value {with_metric} ORDER BY r.value {direction}, e.name LIMIT ?"
            found = base.execute(sql, (sort, *values, limit)).fetchall()
            if len(found) < limit:
                sql = f"SELECT {columns}, NULL {without} ORDER BY e.name LIMIT ?"
                found += base.execute(sql, (*values, sort, limit - len(found))).fetchall()
            return found

        def checked(base: sqlite3.Connection) -> list[dict[str, Any]]:
            found = ask(base)
            if self._look(base, [row[:3] for row in found]):
                found = ask(base)
            results = "SELECT metric, value FROM results WHERE entry = ? ORDER BY metric"
            names = ("name", *FIELDS, *NUMBERS, "sorted")
            return [
                {**dict(zip(names, row[3:])), "results": dict(base.execute(results, row[:1]).fetchall())}
                for row in found
            ]

        return self._do(checked)

    def metrics(self) -> list[str]:
        """Names of the results that there are, `metric` and `metric on data split`."""
        query, values = self._from()
        sql = f"SELECT DISTINCT r.metric FROM results r WHERE r.entry IN (SELECT e.id {query}) ORDER BY r.metric"
        return [metric for (metric,) in self._do(lambda base: base.execute(sql, values))]

    # -- asking -----------------------------------------------------------------------------------------------

    def _from(self, where: str = "1", *values: Any) -> tuple[str, tuple[Any, ...]]:
        """FROM and WHERE of the entries that no earlier root covers up."""
        several = self._several
        covered = [
            f"(e.root = ? AND e.name NOT IN (SELECT name FROM entries WHERE root IN ({', '.join('?' * i)})))"
            if i
            else "(e.root = ?)"
            for i in range(len(several))
        ]
        at = [part for i, root in enumerate(several) for part in (root, *several[:i])]
        return f"FROM entries e WHERE ({' OR '.join(covered) or '0'}) AND {where}", (*at, *values)

    @property
    def _several(self) -> list[str]:
        """The roots that have entries: mostly one, and then nothing can be covered up."""
        have = {r for (r,) in self._do(lambda base: base.execute("SELECT DISTINCT root FROM folders"))}
        return [root for root in self.roots if root in have]

    def _do(self, ask: Callable[[sqlite3.Connection], Any]) -> Any:
        """What `ask` gives; from a database made again when this one is damaged, in memory when it cannot be kept."""
        for place in (self.path, self.path, None):
            try:
                if self._base is None:
                    self._base = self._fresh(self._open(place))
                found = ask(self._base)
                return found.fetchall() if isinstance(found, sqlite3.Cursor) else found
            except (sqlite3.Error, OSError) as error:
                if place is None:
                    raise
                self._close()
                logger.debug("%s: %s", self.path, error)
                if not isinstance(error, (sqlite3.OperationalError, OSError)):
                    self.path.unlink(missing_ok=True)
        raise AssertionError("not reached")

    @staticmethod
    def _open(path: Path | None) -> sqlite3.Connection:
        """A database with our tables; None for one in memory."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None)
        (schema,) = base.execute("PRAGMA user_version").fetchone()
        if schema == SCHEMA:
            return base
        with closing(base.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")  # of two that begin at once, one makes it
            (schema,) = cursor.execute("PRAGMA user_version").fetchone()
            if schema != SCHEMA:
                for (table,) in cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    cursor.execute(f'DROP TABLE "{table}"')
                for statement in filter(str.strip, TABLES.split(";")):
                    cursor.execute(statement)
            cursor.execute("COMMIT")
        return base

    def _close(self) -> None:
        if self._base is not None:
            with suppress(sqlite3.Error):
                self._base.close()
        self._base = None

    # -- keeping up -------------------------------------------------------------------------------------------

    def _fresh(self, base: sqlite3.Connection) -> sqlite3.Connection:
        """Bring the database to what is on disk now."""
        for root in self.roots:
            self._list(base, root)
        ours = f"FROM entries WHERE root IN ({', '.join('?' * len(self.roots))})"
        count, last = base.execute(f"SELECT count(*), max(id) {ours}", self.roots).fetchone()
        after = random.randrange(last) if count > CHECKED else 0
        some = f"SELECT id, file, stamp {ours} AND id > ? ORDER BY id LIMIT ?"
        self._look(base, base.execute(some, (*self.roots, after, CHECKED)).fetchall())
        return base

    def _list(self, base: sqlite3.Connection, root: str) -> None:
        """Note what was added below a root, and what is gone."""
        found = base.execute("SELECT path, parent, stamp FROM folders WHERE root = ?", (root,))
        known = {path: (parent, stamp) for path, parent, stamp in found}
        seen: dict[str, tuple[str, str, list[os.DirEntry] | None]] = {}
        self._walk(root, "", known, seen)
        gone = set(known) - set(seen)
        listed = {path: entries for path, (_, _, entries) in seen.items() if entries is not None}
        if gone or listed:
            self._write(base, lambda: self._relist(base, root, gone, seen, listed))

    def _walk(self, folder: str, parent: str, known: Mapping[str, Any], seen: dict[str, Any]) -> None:
        """Note of each folder its parent, its time, and what is in it unless that is known."""
        try:
            stamp = _stamp(os.stat(folder))  # before it is listed: what comes later is seen the next time
            if stamp and known.get(folder, ("", ""))[1] == stamp:
                seen[folder] = (parent, stamp, None)
                inside = [path for path, (above, _) in known.items() if above == folder]
            else:
                with os.scandir(folder) as listing:
                    entries = [e for e in listing if _is_text(e.path)]
                seen[folder] = (parent, stamp, entries)
                inside = [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:  # not there, or not ours to read
            return
        for path in inside:
            self._walk(path, folder, known, seen)

    def _relist(
        self,
        base: sqlite3.Connection,
        root: str,
        gone: set[str],
        seen: Mapping[str, tuple[str, str, Any]],
        listed: Mapping[str, list[os.DirEntry]],
    ) -> None:
        for folder in gone:
            self._forget(base, base.execute("SELECT id FROM entries WHERE folder = ?", (folder,)).fetchall())
            base.execute("DELETE FROM folders WHERE path = ?", (folder,))
        for folder, entries in listed.items():
            files = [e for e in entries if e.name.endswith(".yaml")]
            found = base.execute("SELECT id, file, stamp FROM entries WHERE folder = ?", (folder,))
            known = {file: (id, stamp) for id, file, stamp in found}
            if len(files) - len(known) > 1000:
                logger.info("reading %d entries of %s, this once", len(files) - len(known), folder)
            for entry in files:
                id, old = known.pop(entry.path, (None, None))
                with suppress(FileNotFoundError):
                    if not old or old != _stamp(entry.stat()):
                        self._put(base, id, root, folder, entry.path)
            self._forget(base, [(id,) for id, _ in known.values()])
            parent, stamp, _ = seen[folder]
            base.execute("REPLACE INTO folders VALUES (?, ?, ?, ?)", (folder, parent, root, stamp))
        twice = base.execute(
            "SELECT min(file), max(file) FROM entries WHERE root = ? GROUP BY name HAVING count(*) > 1", (root,)
        ).fetchone()
        if twice:
            raise RecipeError([f"{twice[1]}: {twice[0]} has the same name"])

    def _look(self, base: sqlite3.Connection, rows: Sequence[tuple[int, str, str]]) -> bool:
        """Whether any of these files is another than it was; what it holds now is then here."""
        changed = []
        for id, file, stamp in rows:
            try:
                now = _stamp(os.stat(file))
            except OSError:
                now = None
            if not stamp or now != stamp:
                changed.append((id, file))

        def again() -> None:
            for id, file in changed:
                root, folder = base.execute("SELECT root, folder FROM entries WHERE id = ?", (id,)).fetchone()
                if os.path.exists(file):
                    self._put(base, id, root, folder, file)
                else:
                    self._forget(base, [(id,)])

        if changed:
            self._write(base, again)
        return bool(changed)

    @staticmethod
    def _write(base: sqlite3.Connection, work: Callable[[], None]) -> None:
        base.execute("BEGIN IMMEDIATE")
        try:
            work()
            base.execute("COMMIT")
        except BaseException:
            base.execute("ROLLBACK")
            raise

    @staticmethod
    def _forget(base: sqlite3.Connection, ids: Sequence[tuple[int]]) -> None:
        base.executemany("DELETE FROM results WHERE entry = ?", ids)
        base.executemany("DELETE FROM entries WHERE id = ?", ids)

    def _put(self, base: sqlite3.Connection, id: int | None, root: str, folder: str, file: str) -> None:
        """Read a file again."""
        stamp, value, problems = _stamp(os.stat(file)), {}, None
        try:
            value = self.read(Path(file))
            text = json.dumps(value, default=str)
        except RecipeError as error:
            text, problems = None, json.dumps(error.problems)
        except (ValueError, RecursionError, TypeError) as error:
            text, problems, value = None, json.dumps([f"{file}: cannot be read ({error})"]), {}
        name = os.path.basename(file)[: -len(".yaml")]
        fields = {key: _text(value.get(key)) for key in FIELDS}
        numbers = {key: number(value.get(key)) for key in NUMBERS}
        told = (fields[key] for key in ("repo", "task", "method", "teacher"))
        words = " ".join([name, *filter(None, told)]).lower()
        row = (id, root, folder, file, name, stamp, text, problems, words, *fields.values(), *numbers.values())
        if id is not None:
            base.execute("DELETE FROM results WHERE entry = ?", (id,))
        id = base.execute(f"REPLACE INTO entries VALUES ({', '.join('?' * len(row))})", row).lastrowid
        results = [(id, metric, v) for metric, v in _results(value.get("results"))]
        base.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", results)


def _stamp(stat: os.stat_result) -> str:
    """By which a file or folder is known again; empty for one so young that it may change unseen."""
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    return "" if changed > time.time_ns() - YOUNG else f"{stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_size}"


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, (dict, list)):
        return None
    return str(value).encode("utf-8", "replace").decode() or None


def number(value: Any) -> float | None:
    """A finite number of reasonable size, or None."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if right and math.isfinite(value) else None


def _results(value: Any) -> Iterator[tuple[str, float]]:
    """Results as they are searched by: `metric on data split`, and the first of a metric by its bare name."""
    for key, v in value.items() if isinstance(value, Mapping) else ():
        if isinstance(key, str) and (found := number(v)) is not None:
            yield key.encode("utf-8", "replace").decode(), found
            if " on " in key:
                yield key.partition(" on ")[0].encode("utf-8", "replace").decode(), found
