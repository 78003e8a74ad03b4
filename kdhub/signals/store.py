"""The signal store: teacher outputs computed once, looked up by content, memory-mapped, safe against kills.

A store is one folder, `<root>/<32 hex digits>/`, named by what the signals depend on (teacher, signal kind,
settings, storage). Inside it:

    store.json            schema version, the key in full, the fields, rows per group; its mtime is the last use
    <32 hex>.safetensors  one *group* of rows, named by the sha256 of its row keys; never changed once it is there
    .<32 hex>.tmp         a group somebody is computing now, locked by that process (a killed one leaves it unlocked)

The folder of groups is the store: there is no index file that could disagree with it. A group holds `keys`
(uint8, [rows, 12]), the fields, and in its metadata the sha256 of all tensor bytes; any safetensors reader opens it.

Why a resumed store has the same bits. `fill` sorts the missing rows by (length descending, key) and cuts them into
blocks of `group_rows`; the teacher is called once for each block, and a block is committed whole, by one rename.
Taking whole blocks out of a sorted list leaves the other blocks as they were (only the last is short, and nothing
follows it). So whatever set of groups a killed job left behind, in whatever order, the next job cuts the remaining
rows into the very blocks the first would have made: same rows, same order, same file name, and from a deterministic
teacher the same bytes. The same argument lets ranks, and unrelated jobs on the same data, start at different times.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kdhub.errors import StoreError
from kdhub.fields import Field
from kdhub.files import canonical_json, is_leftover, read_sealed, sync_folder, write_sealed
from kdhub.signals.chunks import (
    KEY_BYTES,
    SCHEMA,
    Chunk,
    DamagedError,
    carrier_of,
    decode,
    encode,
    freed,
    group_name,
    layout_of,
    open_chunk,
    row_bytes,
    write_chunk,
)

META = "store.json"
PAGE = 4096
"""Bytes; smaller files are read, not mapped."""
TEMPORARY = re.compile(r"\.([0-9a-f]{32})\.tmp")

Compute = Callable[[np.ndarray], Mapping[str, Any]]


def row_key(content: bytes) -> bytes:
    """The key of one example: the first 96 bits of the sha256 of its content."""
    return hashlib.sha256(content).digest()[:KEY_BYTES]


def row_keys(contents: Iterable[bytes]) -> np.ndarray:
    """Keys of many examples, uint8 [n, 12]."""
    return np.frombuffer(b"".join(map(row_key, contents)), np.uint8).reshape(-1, KEY_BYTES)


def item_bytes(fields: Sequence[Field]) -> int:
    """What one row takes, or one item (token) of a ragged one, without keys and offsets."""
    layout = layout_of(fields)
    parts = (name for f in fields for name in (f.name, f.name + ".scale") if name in layout)
    return sum(row_bytes(*layout[name]) for name in parts)


@dataclass
class FillReport:
    """What one `fill` did. Rows are distinct contents; `found` includes rows that other processes made meanwhile."""

    computed: int = 0
    found: int = 0
    calls: int = 0
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0


class SignalStore:
    """Outputs of one teacher for one signal. Made by `open` (creates) or `load` (must exist).

    Rows have *positions*, valid in this process only: `locate` once for a data set, then `read` by position.

    Attributes:
        folder, key, fields, group_rows: as in `store.json`.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]):
        self.folder = folder
        self.name = folder.name
        self.key: dict[str, Any] = meta["key"]
        self.fields = tuple(Field(**f) for f in meta["fields"])
        self.group_rows: int = meta["group_rows"]
        self._layout, self._carrier = layout_of(self.fields), carrier_of(self.fields)
        self._carries = np.zeros(0, bool)  # of each chunk: whether its vectors carry its keys
        self._chunks: list[Chunk] = []
        self._known: dict[str, int] = {}
        self._bad: set[str] = set()  # files whose header or keys are not whole
        self._starts = np.zeros(1, np.int64)  # position of each chunk's first row, and the end
        self._prefix = np.zeros(0, np.uint64)
        self._rest = np.zeros(0, np.uint32)
        self._position = np.zeros(0, np.int64)
        self._ready = np.zeros(0, bool)
        self._views: dict[str, list[memoryview | None]] = {name: [] for name in self._layout}
        # Scales and scores, a few bytes a row, are copied from the map once: one array is ten times as fast as many.
        fixed = [n for f in self.fields if not f.ragged for n in (f.name, f.name + ".scale") if n in self._layout]
        self._small = {
            name: np.zeros((0, *self._layout[name][1]), self._layout[name][0])
            for name in fixed
            if row_bytes(*self._layout[name]) <= 16
        }
        self.refresh()

    @classmethod
    def open(
        cls, root: Path | str, key: Mapping[str, Any], fields: Sequence[Field], *, group_rows: int = 1024
    ) -> SignalStore:
        """The store of this key and these fields below `root`, made when it is not there.

        Args:
            root: folder of all stores (`kdhub.files.home() / "signals"`).
            key: plain JSON: everything the signals depend on (teacher's file hashes or revision, signal, prompt,
                maximum length, pooling, computing precision, top-k). `teacher` and `signal` are shown in lists.
            fields: what a row holds. Part of the identity too: another storage type is another store.
            group_rows: rows that are computed and committed together; a store that exists keeps its own.

        Raises:
            StoreError: another schema version, no permission, disk full.
        """
        meta = {"key": dict(key), "fields": [asdict(f) for f in fields]}
        name = hashlib.sha256(canonical_json(meta)).hexdigest()[:32]
        folder = Path(root) / name
        with _explained(f"make a signal store in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / META).exists():
                try:
                    write_sealed(folder / META, {"schema": SCHEMA, **meta, "group_rows": int(group_rows)})
                except FileNotFoundError:  # swept by a process that wrote its own meanwhile
                    if not (folder / META).exists():
                        raise
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path | str) -> SignalStore:
        """A store that exists, by its folder."""
        folder = Path(folder)
        meta = read_meta(folder)
        with suppress(OSError):  # a store one may only read is still a store
            os.utime(folder / META)
        return cls(folder, meta)

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned: positions stay valid, maps are made again.
        views = {name: [None] * len(self._chunks) for name in self._layout}
        return {**self.__dict__, "_views": views, "_ready": np.zeros(len(self._chunks), bool)}

    def __len__(self) -> int:
        """Distinct rows that can be read."""
        return len(self._position)

    @property
    def item_bytes(self) -> int:
        """See `item_bytes`."""
        return item_bytes(self.fields)

    # Index: every chunk's keys, sorted; 20 bytes a row.

    def refresh(self) -> None:
        """Take in groups that appeared since, from this process or another. Positions given out stay valid."""
        names = sorted(p.name for p in _scan(self.folder) if p.name.endswith(".safetensors"))
        new: list[tuple[Chunk, np.ndarray]] = []
        for name in names:
            if name in self._known or name in self._bad:
                continue
            with _explained(f"read {self.folder / name}"):
                try:
                    chunk = open_chunk(self.folder / name, self._layout, self._carrier)
                    new.append((chunk, chunk.keys()))
                except FileNotFoundError:  # pruned, or removed as damaged, since the folder was read
                    pass
                except DamagedError:
                    self._bad.add(name)
        if not new:
            return
        for chunk, _ in new:
            self._known[chunk.path.name] = len(self._chunks)
            self._chunks.append(chunk)
        first = int(self._starts[-1])
        self._starts = np.cumsum([0, *(c.rows for c in self._chunks)], dtype=np.int64)
        self._carries = np.array([c.carrier is not None for c in self._chunks])
        for views in self._views.values():
            views.extend([None] * len(new))
        for name, array in self._small.items():
            self._small[name] = np.concatenate(
                [array, np.zeros((self._starts[-1] - first, *array.shape[1:]), array.dtype)]
            )
        self._ready = np.append(self._ready, np.zeros(len(new), bool))
        prefix, rest = _split(np.concatenate([keys for _, keys in new]))
        position = np.arange(first, self._starts[-1])
        self._index(np.append(self._prefix, prefix), np.append(self._rest, rest), np.append(self._position, position))

    def _index(self, prefix: np.ndarray, rest: np.ndarray, position: np.ndarray) -> None:
        # Independent jobs may have stored a row twice; the one in the file whose name sorts first counts, always.
        rank = np.argsort(np.argsort([c.path.name for c in self._chunks]))
        order = np.lexsort((rank[self._chunk_of(position)], rest, prefix))
        prefix, rest, position = prefix[order], rest[order], position[order]
        first = _first_of_runs(prefix, rest)
        self._prefix, self._rest, self._position = prefix[first], rest[first], position[first]

    def _chunk_of(self, positions: np.ndarray) -> np.ndarray:
        return self._starts.searchsorted(positions, side="right") - 1

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """Positions of rows by key, -1 where the store has none.

        Args:
            keys: uint8 [n, 12].
        Returns:
            int64 [n].
        """
        prefix, rest = _split(_as_keys(keys))
        at = self._prefix.searchsorted(prefix)
        found = np.full(len(prefix), -1, np.int64)
        todo = np.arange(len(prefix))
        while len(todo):  # once, and again only for keys that share 64 bits with a neighbour
            todo = todo[at[todo] < len(self._prefix)]
            todo = todo[self._prefix[at[todo]] == prefix[todo]]
            hit = self._rest[at[todo]] == rest[todo]
            found[todo[hit]] = self._position[at[todo[hit]]]
            todo = todo[~hit]
            at[todo] += 1
        return found

    # Reading

    def read(self, positions: np.ndarray) -> dict[str, Any]:
        """Rows by position, in the order asked for, as copies.

        Returns:
            By field: an array [n, *shape], or for a ragged field a list of n arrays [items, *shape]. int8 codes come
            back as float32, the rest in its storage type (float16 stays float16: cast where you compute).

        Raises:
            StoreError: a position the store does not have (-1), or a damaged group.
        """
        positions = np.asarray(positions, np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < self._starts[-1]:
            absent = int(((positions < 0) | (positions >= self._starts[-1])).sum())
            raise StoreError(f"{absent} of {len(positions)} rows are not in the signal store {self.folder}")
        chunk = self._chunk_of(positions)
        row = positions - self._starts[chunk]
        if not self._ready[chunk].all():
            for number in np.unique(chunk[~self._ready[chunk]]).tolist():
                self._map(number)
        return {
            f.name: self._read_ragged(f, chunk, row) if f.ragged else self._read(f, chunk, row) for f in self.fields
        }

    def _read(self, f: Field, chunk: np.ndarray, row: np.ndarray) -> np.ndarray:
        values = self._gather(f.name, chunk, row)
        if f.name == self._carrier:
            return freed(values, self._carries[chunk])
        if f.dtype != "int8":
            return values
        return decode(values, self._gather(f.name + ".scale", chunk, row))

    def _read_ragged(self, f: Field, chunk: np.ndarray, row: np.ndarray) -> list[np.ndarray]:
        values, scales, offsets = (self._views.get(f.name + part) for part in ("", ".scale", ".offsets"))
        dtype, shape = self._layout[f.name][0], f.shape
        width = row_bytes(dtype, shape)
        out = []
        for c, r in zip(chunk.tolist(), row.tolist()):
            begin, end = np.frombuffer(offsets[c], np.int64, 2, 8 * r).tolist()
            # reshape with a number, not -1: a row without items, or items without elements, has a shape too
            array = np.frombuffer(bytearray(values[c][begin * width : end * width]), dtype).reshape(end - begin, *shape)
            if scales is not None:
                array = decode(array, np.frombuffer(scales[c], np.float16, end - begin, 2 * begin))
            out.append(array)
        return out

    def _gather(self, name: str, chunk: np.ndarray, row: np.ndarray) -> np.ndarray:
        if name in self._small:
            return self._small[name][self._starts[chunk] + row]
        views, (dtype, shape) = self._views[name], self._layout[name]
        width = row_bytes(dtype, shape)
        if len(row) < 8 * len(self._chunks):
            # Few rows from each of many files: slicing bytes and one join is twice as fast as indexing arrays.
            begins = (row * width).tolist()
            rows = bytearray().join([views[c][b : b + width] for c, b in zip(chunk.tolist(), begins)])
            return np.frombuffer(rows, dtype).reshape(len(row), *shape)
        out = np.empty((len(row), *shape), dtype)
        order = np.argsort(chunk, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1):
            if len(run):
                c = chunk[run[0]]
                out[run] = np.frombuffer(views[c], dtype).reshape(self._chunks[c].rows, *shape)[row[run]]
        return out

    def _map(self, number: int) -> None:
        """Map one chunk. Its digest is checked once in each process, before its first byte is used."""
        import torch

        chunk = self._chunks[number]
        try:
            if not chunk.check():
                raise StoreError(
                    f"{chunk.path.name} in the signal store {self.folder} is damaged: its bytes differ from its digest",
                    hint="run the same command again: fill computes its rows again",
                )
            if chunk.size <= PAGE:  # as much as a map of it would take, and a process may have 65,530 maps
                whole = memoryview(chunk.path.read_bytes())
            else:
                # torch, because Python's mmap keeps a file open for each map (until 3.13), and a store has thousands.
                whole = memoryview(torch.from_file(str(chunk.path), size=chunk.size, dtype=torch.uint8).numpy())
        except (OSError, RuntimeError) as error:
            raise StoreError(f"cannot read {chunk.path}: {error}", hint="was the store pruned meanwhile?") from error
        for name, (begin, end) in chunk.spans.items():
            self._views[name][number] = whole[begin:end].toreadonly()
        for name, array in self._small.items():
            rows = array[self._starts[number] : self._starts[number + 1]]
            rows[:] = np.frombuffer(self._views[name][number], array.dtype).reshape(rows.shape)
        self._ready[number] = True

    # Filling

    def fill(
        self,
        keys: np.ndarray,
        lengths: np.ndarray | Sequence[int],
        compute: Compute,
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> FillReport:
        """Compute the rows that are missing; when it returns, every row of `keys` is in the store.

        Ranks start with the groups rank, rank + world_size, ... of the plan, then help each other, and return when all
        groups are there. A group is claimed by a file lock, so that neither ranks nor other jobs on the same data make
        a row twice, and the groups of a rank that died are made by others. No barrier is needed before: the plan is
        made from what is stored when `fill` starts, and does not depend on which of its groups are (top of this file).
        Only jobs on *different* data with common rows may store a row twice; then one of the two counts, always.

        No value is held longer than its group: the plan and the index take 110 bytes a row at their peak, 20 after it.

        Args:
            keys: uint8 [n, 12], see `row_keys`; equal keys are computed once.
            lengths: [n], any measure of a row's length; longest first, so that running out of memory shows at once.
            compute: takes the row numbers of one group (int64 [at most group_rows], from 0, into the caller's data)
                and gives by field an array [rows, *shape], or for a ragged field a sequence of arrays.
            workers: groups computed at once, each in a thread; `compute` must allow it. For teachers that mostly wait
                (`Teacher.concurrent_groups`). Groups are the same, so are the bits; after a failure those under way
                are still finished and kept.
            progress: called with (rows done, rows that were missing) after each group, in the caller's thread.

        Raises:
            TeacherError: NaN, infinite values or a wrong shape from `compute`; names batch (group) and row, from 1.
            StoreError: disk full, no permission, values that do not fit the storage type. Finished groups stay.
        """
        began = time.monotonic()
        keys, lengths = _as_keys(keys), np.asarray(lengths)
        if lengths.shape != keys.shape[:1]:
            raise StoreError(f"{len(keys)} keys, but lengths of shape {lengths.shape}")
        self.sweep()
        self.refresh()
        unique = distinct(keys)
        positions = self.locate(keys[unique])
        report = FillReport(damaged=self._drop_damaged(positions))
        if report.damaged:
            positions = self.locate(keys[unique])
        missing = unique[positions < 0]
        del positions
        missing = missing[np.argsort(-lengths[missing], kind="stable")]  # equal lengths stay in the order of their keys
        groups = [missing[i : i + self.group_rows] for i in range(0, len(missing), self.group_rows)]
        own = list(range(rank, len(groups), world_size))
        others = sorted({*range(len(groups))} - {*own}, reverse=True)  # from the end: the owner comes from the front
        done, pending = 0, own + others

        def make(number: int) -> bool | None:
            """Whether the group was made here; None while another process is at it."""
            group = groups[number]
            name = group_name(keys[group])
            with self._claim(name) as file:
                if file is None:
                    return False if self._path(name).exists() else None
                arrays = encode(compute(group), self.fields, group, number)
                safe = f"{len(unique) - len(missing) + done} of {len(unique)} rows are stored and safe"
                with _explained(f"write to the signal store {self.folder} ({safe})"):
                    write_chunk(file, self._layout, {"keys": keys[group], **arrays}, self._carrier)
                    self._commit(name)
                return True

        while pending:
            waiting = []
            for number, made in _each(make, pending, workers):
                if made is None:
                    waiting.append(number)
                    continue
                report.calls += made
                report.computed += made * len(groups[number])
                done += len(groups[number])
                if progress:
                    progress(done, len(missing))
            if len(waiting) == len(pending):
                time.sleep(0.1)
            pending = waiting
        if len(missing):
            self.refresh()
            if lost := int((self.locate(keys[missing]) < 0).sum()):
                raise StoreError(f"{lost} rows vanished from {self.folder} during fill: was it pruned meanwhile?")
        report.found = len(unique) - report.computed
        report.seconds = time.monotonic() - began
        return report

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    @contextmanager
    def _claim(self, name: str) -> Iterator[BinaryIO | None]:
        """The group's temporary file, locked and empty; None when another process has it or the group is there.

        The lock goes with its process, so a killed one leaves nothing but a file that the next claim takes over. Only
        the holder of the lock renames or removes the path.
        """
        path = self.folder / f".{name}.tmp"
        with _explained(f"write to the signal store {self.folder}"):
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        with file:
            try:
                with _explained(f"lock {path}"):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if not _is_at(file, path):  # its holder committed or dropped it between our open and our lock
                yield None
                return
            try:
                if self._path(name).exists():
                    yield None
                else:
                    file.truncate(0)
                    yield file
            finally:
                if _is_at(file, path):
                    path.unlink()

    def _commit(self, name: str) -> None:
        os.replace(self.folder / f".{name}.tmp", self._path(name))
        sync_folder(self.folder)

    def sweep(self) -> list[Path]:
        """Remove temporary files whose process is gone, and those of a `store.json` that is there; returns them."""
        stale = []
        for path in _scan(self.folder):
            if is_leftover(path, META):
                with suppress(OSError):
                    path.unlink()
                    stale.append(path)
            if match := TEMPORARY.fullmatch(path.name):
                with suppress(StoreError), self._claim(match[1]) as file:  # a store one may only read stays
                    if file is not None:
                        stale.append(path)
        return stale

    # Damage

    def verify(self, *, remove: bool = False) -> list[str]:
        """Names of damaged groups, every byte of the store read again; with `remove` they are deleted."""
        for chunk in self._chunks:
            chunk.intact = False
        bad = [c.path.name for c in self._chunks if not c.gone and not c.check()]
        return self._remove(bad) if remove else sorted({*bad, *self._bad})

    def _drop_damaged(self, positions: np.ndarray) -> list[str]:
        """Check the digests of these positions' groups and remove bad files, so that fill makes them again."""
        used = [self._chunks[c] for c in np.unique(self._chunk_of(positions[positions >= 0])).tolist()]
        return self._remove([c.path.name for c in used if not c.check()])

    def _remove(self, names: Iterable[str]) -> list[str]:
        names = sorted({*names, *self._bad})
        for name in names:
            with _explained(f"remove the damaged {self.folder / name}"):
                (self.folder / name).unlink(missing_ok=True)
            if (number := self._known.pop(name, None)) is not None:
                self._chunks[number].gone = True
        self._bad.clear()
        gone = np.array([c.gone for c in self._chunks], bool)
        if gone.any():
            keep = ~gone[self._chunk_of(self._position)]
            self._prefix, self._rest, self._position = self._prefix[keep], self._rest[keep], self._position[keep]
        return names


# Files


def read_meta(folder: Path) -> dict[str, Any]:
    """`store.json` of a store.

    Raises:
        StoreError: not a store, or one of another schema version.
    """
    try:
        meta = read_sealed(folder / META)
        schema = meta["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} is not a signal store: {error}") from error
    if schema != SCHEMA:
        raise StoreError(
            f"the signal store {folder} has schema version {schema}, this kdhub reads {SCHEMA}",
            hint="use the kdhub that wrote it, or delete it with `kdhub cache prune`",
        )
    return meta


def _scan(folder: Path) -> list[Path]:
    with _explained(f"read the signal store {folder}"):
        return list(folder.iterdir())


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _each(work: Callable[[int], Any], items: Sequence[int], workers: int) -> Iterator[tuple[int, Any]]:
    """(item, work(item)) as they are done, `workers` at once; what was begun is finished before an error is raised."""
    if workers == 1:
        yield from ((item, work(item)) for item in items)
        return
    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(work, item): item for item in islice(rest, workers)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item, made = running.pop(future), future.result()
                for following in islice(rest, 1):
                    running[pool.submit(work, following)] = following
                yield item, made


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn errors of the system into a StoreError that says what was being done, and what helps."""
    try:
        yield
    except BlockingIOError:  # a lock that another process has, which is no error
        raise
    except OSError as error:
        message, hint = f"cannot {doing}: {error.strerror or error}", None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full: cannot {doing}"
            hint = "free space, or set KDHUB_HOME to a larger disk, and run again: what is stored is kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message, hint = f"no permission to {doing}", "set KDHUB_HOME to a folder you may write to"
        raise StoreError(message, hint=hint) from error


# Keys


def _as_keys(keys: np.ndarray) -> np.ndarray:
    keys = np.asarray(keys)
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise StoreError(f"keys are {keys.dtype} of shape {keys.shape}, expected uint8 of shape (rows, {KEY_BYTES})")
    return keys


def _split(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys as (first 8 bytes, last 4 bytes) numbers that sort as the bytes do."""
    prefix = np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    return prefix, np.ascontiguousarray(keys[:, 8:]).view(">u4")[:, 0].astype(np.uint32)


def distinct(keys: np.ndarray) -> np.ndarray:
    """Row number of the first row with each key, in the order of the keys."""
    prefix, rest = _split(keys)
    order = np.lexsort((rest, prefix))
    return order[_first_of_runs(prefix[order], rest[order])]


def _first_of_runs(prefix: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """For sorted keys: True where a key differs from the one before."""
    first = np.ones(len(prefix), bool)
    first[1:] = (prefix[1:] != prefix[:-1]) | (rest[1:] != rest[:-1])
    return first
