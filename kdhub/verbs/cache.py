"""`kdhub cache list|verify|prune`: the signal stores of this machine. Plain functions that return plain records."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.errors import StoreError, UnknownNameError
from kdhub.files import home
from kdhub.signals.chunks import DamagedError, carrier_of, encode, layout_of, open_chunk
from kdhub.signals.store import META, Compute, Field, SignalStore, distinct, read_meta

TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "int8": 1e-2}
"""Default of `replay` by storage type: what storage alone can cost (2**-11, 1/254) more than twice, and room for the
float32 noise of another batch. Integers must be equal."""


def list_stores(root: Path | None = None) -> dict[str, Any]:
    """Every store, the last used first; the contents of groups are not read.

    Returns:
        {"root", "bytes", "stores": [{"name", "teacher", "signal", "dtypes", "rows", "bytes", "bytes_per_row",
        "last_used" (ISO, UTC), "incomplete" (groups begun by a running job, or a killed one), "problem" (or None)}]}
    """
    root = root or home() / "signals"
    stores = [_describe(folder) for folder in _folders(root)]
    stores.sort(key=lambda s: (s["last_used"], s["name"]), reverse=True)
    return {"root": str(root), "bytes": sum(s["bytes"] for s in stores), "stores": stores}


def verify(
    store: str | None = None,
    *,
    root: Path | None = None,
    remove: bool = False,
    live: Callable[[SignalStore], tuple[np.ndarray, Compute] | None] | None = None,
    every: int = 100,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Read every byte of one store, or all, against its digest; with `live`, ask the teacher again for some rows.

    Args:
        store: name or the beginning of one; None checks all.
        remove: delete damaged groups, so that the next fill computes their rows again.
        live: gives for a store the keys of its data and the teacher's `compute`, or None when they cannot be had.
        every, tolerance: see `replay`.

    Returns:
        {"ok": bool, "stores": [{"name", "teacher", "signal", "rows", "damaged": [file], "problem", "replay"}]};
        "replay" is None, or what `replay` returns, or {"status": "not-checkable"}. `ok` needs no damage, no problem
        and no different row.
    """
    reports = []
    for folder in _folders(root or home() / "signals", store):
        report = {"name": folder.name, "teacher": None, "signal": None, "rows": 0, "damaged": [], "problem": None}
        report["replay"] = None
        reports.append(report)
        try:
            opened = SignalStore(folder, read_meta(folder))  # not `load`: looking at a store is not using it
            report.update(_labels(opened.key), damaged=opened.verify(remove=True) if remove else opened.verify())
            report["rows"] = len(opened)
            if live:
                teacher = live(opened)
                report["replay"] = (
                    {"status": "not-checkable"}
                    if teacher is None
                    else replay(opened, *teacher, every=every, tolerance=tolerance)
                )
        except StoreError as error:
            report["problem"] = error.message
    bad = [r for r in reports if r["damaged"] or r["problem"] or (r["replay"] or {}).get("different")]
    return {"ok": not bad, "stores": reports}


def replay(
    store: SignalStore, keys: np.ndarray, compute: Compute, *, every: int = 100, tolerance: float | None = None
) -> dict[str, Any]:
    """Ask the teacher again for one stored row in `every`: finds teachers whose outputs change between calls.

    A store holds no texts, so the rows are those of the caller's data that are stored.

    Args:
        keys: uint8 [n, 12], of the caller's data.
        compute: as for `SignalStore.fill`.
        tolerance: largest difference allowed, as a share of the stored row's largest magnitude; None takes `TOLERANCE`
            by storage type. A teacher that computes in bfloat16 needs about 2e-2: rows meet other neighbours here.

    Returns:
        {"checked": rows, "every", "tolerance": by field, "largest": difference,
        "different": [{"row" (of the data, from 1), "field", "difference"}]}, infinite where shapes differ.

    Raises:
        TeacherError: as `fill` would.
    """
    rows = distinct(keys)  # in the order of the keys, which are random: so is every N-th row
    rows = rows[store.locate(keys[rows]) >= 0][:: max(1, every)]
    limits = {f.name: TOLERANCE.get(f.dtype, 0.0) for f in store.fields}
    if tolerance is not None:
        limits = {f.name: tolerance if f.dtype in TOLERANCE else 0.0 for f in store.fields}
    largest, different = 0.0, []
    for number, begin in enumerate(range(0, len(rows), store.group_rows)):
        group = rows[begin : begin + store.group_rows]
        stored, given = store.read(store.locate(keys[group])), compute(group)
        encode(given, store.fields, group, number)  # for its checks
        for name, limit in limits.items():
            for row, old, new in zip(group.tolist(), stored[name], given[name]):
                difference = _difference(np.asarray(old), np.asarray(new))
                largest = max(largest, difference)
                if difference > limit:
                    different.append({"row": row + 1, "field": name, "difference": difference})
    return {"checked": len(rows), "every": every, "tolerance": limits, "largest": largest, "different": different}


def prune(
    store: str | None = None,
    *,
    older_than_days: float | None = None,
    teacher: str | None = None,
    everything: bool = False,
    dry_run: bool = False,
    root: Path | None = None,
) -> dict[str, Any]:
    """Delete stores, and always what killed jobs left behind; a store that a job is filling is never touched.

    Args:
        store, older_than_days (since the last use), teacher (a name, `*` allowed): a store is deleted when it meets all
            that are given. With none of them only leftovers go, unless `everything`.
        dry_run: say what would go, delete nothing.

    Returns:
        {"removed": [as in `list_stores`], "in_use": [name], "leftovers": files, "bytes": freed, "dry_run": bool}
    """
    root = root or home() / "signals"
    chosen = everything or not (store is None and older_than_days is None and teacher is None)
    oldest = datetime.fromtimestamp(time.time() - 86400 * (older_than_days or 0), UTC).isoformat(timespec="seconds")
    removed, in_use, leftovers, freed = [], [], [], 0
    for folder in _folders(root, store):
        described = _describe(folder)
        files = _temporary(folder)
        free = [path for path in files if _unlocked(path)]
        if (
            chosen
            and (older_than_days is None or described["last_used"] <= oldest)
            and (teacher is None or fnmatch.fnmatchcase(str(described["teacher"]), teacher))
        ):
            if len(free) < len(files):
                in_use.append(folder.name)
                continue
            removed.append(described)
            freed += described["bytes"]
            if not dry_run:
                _delete(folder)
        else:
            leftovers += free
            freed += sum(_size(path) for path in free)
            if not dry_run:
                _remove_leftovers(folder)
    if not dry_run and root.is_dir():
        for folder in root.glob(".*.removed"):  # a prune that was killed
            _delete(folder)
    return {"removed": removed, "in_use": in_use, "leftovers": len(leftovers), "bytes": freed, "dry_run": dry_run}


def _folders(root: Path, beginning: str | None = None) -> list[Path]:
    folders = sorted(p.parent for p in root.glob(f"[!.]*/{META}")) if root.is_dir() else []
    if beginning is None:
        return folders
    found = [f for f in folders if f.name.startswith(beginning)]
    if not found:
        raise UnknownNameError("signal store", beginning, [f.name for f in folders], how_to_list="kdhub cache list")
    return found


def _describe(folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"name": folder.name, "teacher": None, "signal": None, "dtypes": [], "rows": 0}
    out["bytes"] = sum(_size(path) for path in folder.iterdir())
    out["bytes_per_row"], out["problem"] = None, None
    out["incomplete"] = len(_temporary(folder))
    used = (folder / META).stat().st_mtime
    out["last_used"] = datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds")
    try:
        meta = read_meta(folder)
        fields = [Field(**f) for f in meta["fields"]]
        layout, carrier = layout_of(fields), carrier_of(fields)
        out.update(_labels(meta["key"]), dtypes=[f.dtype for f in fields])
        for path in folder.glob("*.safetensors"):
            try:
                out["rows"] += open_chunk(path, layout, carrier).rows
            except FileNotFoundError:
                pass
            except DamagedError:
                out["problem"] = "damaged groups: see `kdhub cache verify`"
    except StoreError as error:
        out["problem"] = error.message
    if out["rows"]:
        out["bytes_per_row"] = round(out["bytes"] / out["rows"], 1)
    return out


def _labels(key: dict[str, Any]) -> dict[str, str | None]:
    """Teacher and signal of a key for lists: texts as they are, records by their name."""
    teacher, signal = key.get("teacher"), key.get("signal")
    if isinstance(teacher, dict):
        teacher = teacher.get("name") or _known_name(teacher) or teacher.get("model") or f"a {teacher.get('kind')}"
    return {"teacher": teacher, "signal": signal if signal is None or isinstance(signal, str) else json.dumps(signal)}


def _known_name(identity: dict[str, Any]) -> str | None:
    """What the teacher was called when its facts were first measured; its identity is digests, whatever its name."""
    from kdhub.teacher import facts_path

    with suppress(OSError, ValueError):
        return json.loads(facts_path(identity).read_text()).get("name")
    return None


def _difference(old: np.ndarray, new: np.ndarray) -> float:
    if old.shape != new.shape:
        return float("inf")
    if old.dtype.kind in "iu":
        return float((old != new).any())
    old, new = old.astype(np.float64), new.astype(np.float64)
    return float(np.abs(old - new).max(initial=0) / max(np.abs(old).max(initial=0), 2.0**-24))


def _temporary(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".") and path.name.endswith(".tmp")]


def _unlocked(path: Path) -> bool:
    """Whether no process is writing it: locks go with their process. `store.json` on its way has an hour instead."""
    if path.name.startswith(f".{META}."):
        return time.time() - path.stat().st_mtime > 3600
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):  # being written; committed a moment ago
        return False
    return True


def _remove_leftovers(folder: Path) -> None:
    with suppress(StoreError):  # a store of another version keeps its own
        SignalStore(folder, read_meta(folder)).sweep()
    for path in folder.glob(f".{META}.*.tmp"):
        if _unlocked(path):
            path.unlink(missing_ok=True)


def _delete(folder: Path) -> None:
    """Out of sight by one rename first: nobody opens a store that is half gone."""
    try:
        hidden = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}.removed")
        if hidden != folder:
            if hidden.exists():
                shutil.rmtree(hidden)
            os.rename(folder, hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise StoreError(f"cannot delete the signal store {folder}: {error.strerror or error}") from error


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
