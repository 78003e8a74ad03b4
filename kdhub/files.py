"""Writing files so that a reader never sees half of one, and the folders kdhub keeps things in."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from kdhub.plain_json import read_json


def home() -> Path:
    """Where stores, prepared data and made-once students live: `$KDHUB_HOME`, else the user's cache folder."""
    return _folder("", "user_cache_dir")


def data_home() -> Path:
    """Where what must last is kept: `$KDHUB_HOME`, else the user's data folder."""
    return _folder("", "user_data_dir")


def config_home() -> Path:
    """Where a user's own catalogue lives: `$KDHUB_HOME/config`, else the user's configuration folder."""
    return _folder("config", "user_config_dir")


def _folder(below: str, of_user: str) -> Path:
    if folder := os.environ.get("KDHUB_HOME"):
        return Path(folder).expanduser() / below
    import platformdirs

    return Path(getattr(platformdirs, of_user)("kdhub", appauthor=False))


def atomic_write(path: Path | str, content: bytes | str) -> None:
    """Write a file by rename: a reader sees the old content or the new, never between.

    Raises:
        OSError: as the system gave it (disk full, no permission); the old file is untouched.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def is_leftover(path: Path, of: str = "") -> bool:
    """Whether it is a file that `atomic_write` was about to rename to `of`, to any name if empty, when its process was
    killed."""
    return path.name.startswith(f".{of}") and path.suffix == ".tmp"


def sync_folder(folder: Path) -> None:
    """Make what was renamed into a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path | str, value: Any) -> None:
    """JSON with sorted keys, two spaces and a last newline, written by rename."""
    atomic_write(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n")


_SEAL = "seal"


def write_sealed(path: Path | str, value: Mapping[str, Any]) -> None:
    """As `write_json`, with a digest of the values among them, by which `read_sealed` notices a changed one."""
    value = json.loads(json.dumps(value, default=str))
    write_json(path, {**value, _SEAL: _seal_of(value)})


def read_sealed(path: Path | str) -> dict[str, Any]:
    """The values of a file that `write_sealed` or, before there were seals, `write_json` wrote.

    Raises:
        OSError: it cannot be read. ValueError: it is not a JSON object, or was changed since it was written.
    """
    value = read_json(path, dict[str, Any])
    seal = value.pop(_SEAL, None)
    if seal is not None and seal != _seal_of(value):
        raise ValueError("it was changed since it was written")
    return value


def _seal_of(value: Any) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def given_or_shared(argument: str, fits: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """A file as it is named, else below `KDHUB_DATA`; None where neither `fits`."""
    data = os.environ.get("KDHUB_DATA")
    places = (Path(argument).expanduser(), *([Path(data) / argument] if data else []))
    return next(filter(fits, places), None)


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value that digests are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_file(path: Path | str) -> str:
    import hashlib  # here and not above: it opens OpenSSL, which commands that hash nothing would wait for

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Digest of each named file below a folder, by its name with forward slashes."""
    return {name: sha256_file(folder / name) for name in sorted(names)}


TICK = 20 * 10**6
"""Nanoseconds: by its times a file that was changed again within a tick of the system's clock is still the same one."""
_digests: dict[str, tuple[list[int], str]] = {}
"""What this process knows: path -> identity and digest."""


def known_sha256(path: Path | str) -> str:
    """As `sha256_file`, remembered as long as the file is the same one by size, times and inode: a large one is not
    read for every run."""
    identity = identity_of(path)
    if (held := _digests.get(place := os.path.abspath(path))) and held[0] == identity:
        return held[1]
    try:
        known = read_sealed(_note(path))
        if known["identity"] == identity:
            _digests[place] = (identity, known["sha256"])
            return known["sha256"]
    except (OSError, ValueError, KeyError):
        pass
    value = sha256_file(path)
    if settled(identity):
        _remember(path, identity, value)
    return value


def remember_sha256(path: Path | str, value: str) -> None:
    """Tell `known_sha256` the digest of a file that this process has just written, and nobody else."""
    _remember(path, identity_of(path), value)


def _remember(path: Path | str, identity: list[int], value: str) -> None:
    _digests[os.path.abspath(path)] = (identity, value)
    try:
        note = _note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(note, {"identity": identity, "sha256": value})
    except OSError:
        pass  # only a saving of time


def identity_of(path: Path | str) -> list[int]:
    """What changes when a file does: size, times and inode."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def settled(identity: list[int]) -> bool:
    """Whether a file was changed so long ago that another change would have changed its identity."""
    return time.time_ns() - identity[2] > TICK


def identities(folder: Path | str) -> dict[str, list[int]] | None:
    """Of everything below a folder; None where something was changed just now."""
    found, waiting = {}, [os.fspath(folder)]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    found[entry.path] = identity_of(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    except OSError:  # a link to nothing
        return None
    return found if all(map(settled, found.values())) else None


def once(check: Callable[..., None]) -> Callable[..., None]:
    """A check of a folder, made again only when something below it was changed since this process made it."""
    passed: dict[tuple[Any, ...], dict[str, list[int]]] = {}

    @wraps(check)
    def checked(folder: Path, name: str, *how: Any) -> None:
        place, now = (os.path.realpath(folder), *how), identities(folder)
        if now is None or passed.get(place) != now:
            check(folder, name, *how)
            if now is not None:
                passed[place] = now

    return checked


def _note(path: Path | str) -> Path:
    import hashlib

    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return home() / "data" / "files" / f"{name}.json"


def sealed(folder: Path, paths: Iterable[Path] | None = None) -> dict[str, dict[str, Any]]:
    """Size and digest of every file below a folder, or of some, by which `changed` finds what was changed since."""
    files = sorted(path for path in (folder.rglob("*") if paths is None else paths) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": known_sha256(path)}
        for path in files
    }


def changed(folder: Path, seals: Mapping[str, Any]) -> list[str]:
    """The files that are not what they were when they were sealed, by name: missing, or of other bytes. Free when
    nobody touched them."""

    def same(name: str, seal: Any) -> bool:
        path = folder / name
        try:
            return path.stat().st_size == seal["size"] and known_sha256(path) == seal["sha256"]
        except (OSError, ValueError, KeyError, TypeError):  # also a name that no file can have
            return False

    return [name for name, seal in seals.items() if not same(name, seal)]


def size_text(count: float) -> str:
    """Bytes for people: 1.2 MB is 1.2 million."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
