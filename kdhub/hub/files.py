"""What may be in a student's repository: names, kinds of files, sizes and digests, judged before a byte is fetched."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdhub.errors import HubError, UntrustedError
from kdhub.hub.trust import PICKLES

CARD, MANIFEST, SIGNATURE, ATTRIBUTES = "README.md", "kdhub.json", "model.sig", ".gitattributes"

SUFFIXES = frozenset(
    ".safetensors .onnx .gguf .json .jsonl .txt .model .md .jinja .yaml .yml "
    ".csv .tsv .parquet .arrow .npy .png".split()
)
"""What a student is made of. None of these runs when it is read (NumPy leaves the pickles in `.npy` off by itself)."""

MEDIA = {".gif": 32 * 2**20, ".glb": 512 * 2**20, ".ply": 4 * 2**30}
"""What a student shows, scenes and meshes included -> most bytes of one: viewers read them as a whole."""

NAMES = frozenset(("LICENSE", "LICENCE", "NOTICE", SIGNATURE, ATTRIBUTES))
HIDDEN = frozenset((ATTRIBUTES, ".eval_results"))

MOST_FILES = 10_000
LARGEST_TEXT = 64 * 2**20
"""Bytes of a file that is read as a whole: the manifest, the card, a configuration."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One file of a repository, as its tree tells it.

    Attributes:
        path: with forward slashes, checked.
        size: bytes.
        digest: 64 hex digits are a sha256, 40 a git blob's sha1.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Digests:
    """What one reading of a file gives: its size, sha256, and sha1 as git counts it."""

    size: int
    sha256: str
    git: str

    def fits(self, entry: Entry) -> bool:
        return self.size == entry.size and entry.digest in (self.sha256, self.git)


def git_digest(size: int) -> hashlib._Hash:
    """The sha1 by which git knows a content of so many bytes, which is still to come."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def digests(path: Path) -> Digests:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), git_digest(size)
    # The hub keeps large files by their sha256 alone; the other digest of them is never asked for.
    both = size <= LARGEST_TEXT
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            if both:
                git.update(block)
    return Digests(size, sha256.hexdigest(), git.hexdigest() if both else "")


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder, by its name with forward slashes, in order.

    Raises:
        UntrustedError: a link, or something that is neither file nor folder.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UntrustedError(f"{folder}: {name!r} is a link or a special file", hint="put the file itself there")
        if path.is_file():
            yield name, path


# -- names ----------------------------------------------------------------------------------------------------


def path_problem(name: str) -> str | None:
    """Why no system should write a file of this name; None when it may be."""
    parts = name.split("/")
    if not name or max(len(part.encode(errors="replace")) for part in parts) > 255 or len(name) > 1000:
        return "is empty or too long"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "is an absolute path, or one of another system"
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of its folder"
    if any(unicodedata.category(c)[0] == "C" for c in name):
        return "holds control characters"
    if any(part != part.strip(" ") or part.endswith(".") for part in parts):
        return "has a part that ends with a space or a dot"
    return None


def name_problem(name: str) -> str | None:
    """Why a file of this name may not be in a student; None when it may."""
    if problem := path_problem(name):
        return problem
    parts = name.split("/")
    if parts[0].startswith(".") and parts[0] not in HIDDEN or any(part.startswith(".") for part in parts[1:]):
        return "is hidden; git, caches and shells act on such files"
    return None


def kind_problem(name: str) -> str | None:
    """Why a file of this type may not be in a student; None when it may."""
    base = name.rpartition("/")[2]
    suffix = Path(base).suffix.lower()
    if suffix in PICKLES:
        return "is a pickle, which can run code when loaded"
    if suffix in (".py", ".pyc", ".so", ".sh", ".ipynb"):
        return "is code"
    if suffix in SUFFIXES or suffix in MEDIA or base in NAMES or base.startswith(("LICENSE.", "LICENCE.", "NOTICE.")):
        return None
    return "is of a type that no student needs"


def size_problem(name: str, size: int) -> str | None:
    """Why a file may not be that large; None when it may."""
    if name in (CARD, MANIFEST) and size > LARGEST_TEXT:
        return f"has {size:,} bytes"
    suffix = Path(name).suffix.lower()
    if size > (most := MEDIA.get(suffix, size)):
        return f"has {size:,} bytes, and a {suffix} file may have {most:,}"
    return None


def check_entries(entries: Iterable[Entry], where: str, *, most_bytes: int) -> None:
    """Refuse names, types, numbers and sizes that a student does not have.

    Raises:
        UntrustedError: the first three faults, by name.
    """
    entries, faults, taken = list(entries), [], {}
    for entry in entries:
        if problem := name_problem(entry.path) or kind_problem(entry.path):
            faults.append(f"{short(entry.path)} {problem}")
            continue
        # A file system that ignores case, or writes accents its own way, would put one of the two over the other.
        same = unicodedata.normalize("NFC", entry.path).casefold()
        if same in taken:
            faults.append(f"{entry.path!r} and {taken[same]!r} are one name to some file systems")
        taken[same] = entry.path
        if problem := size_problem(entry.path, entry.size):
            faults.append(f"{short(entry.path)} {problem}")
    for same in taken:
        parts = same.split("/")
        if inside := next((p for n in range(1, len(parts)) if (p := "/".join(parts[:n])) in taken), None):
            faults.append(f"{taken[inside]!r} is a file and a folder")
    if len(entries) > MOST_FILES:
        faults.append(f"it has {len(entries):,} files, more than {MOST_FILES:,}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UntrustedError(
            f"{where} is refused: {'; '.join(faults[:3])}{more}",
            hint="nothing was fetched; there is no switch that allows it",
        )
    total = sum(entry.size for entry in entries)
    if total > most_bytes:
        raise UntrustedError(
            f"{where} is refused: it declares {total:,} bytes, more than {most_bytes:,}",
            hint="nothing was fetched; allow it with --max-size if you expect that much",
        )


def short(value: Any) -> str:
    """Something of a stranger in a message: escaped, and never a page long."""
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


# -- trees ----------------------------------------------------------------------------------------------------


def parse_tree(rows: Any, where: str) -> list[Entry]:
    """The files in one answer of a hub about its tree. Folders are left out; names are checked later.

    Raises:
        HubError: the answer is no list of files with sizes and digests.
        UntrustedError: something in it is neither a file nor a folder (a link, another repository).
    """
    if not isinstance(rows, list):
        raise HubError(f"{where}: the hub's list of files is a {type(rows).__name__}")
    entries = []
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("path"), str):
            raise HubError(f"{where}: the hub's list of files has an entry that is not an object")
        if row.get("type") == "directory":
            continue
        if row.get("type") != "file":
            raise UntrustedError(f"{where} is refused: {short(row['path'])} is a {short(row.get('type'))}, not a file")
        lfs = row.get("lfs")
        pointed = lfs if isinstance(lfs, Mapping) else row
        size, digest = pointed.get("size", row.get("size")), pointed.get("oid")
        if isinstance(digest, str):
            digest = digest.removeprefix("sha256:")
        expected = _SHA256 if pointed is lfs else _COMMIT
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise HubError(f"{where}: the hub gives {short(row['path'])} the size {short(size)}")
        if not isinstance(digest, str) or not expected.fullmatch(digest):
            raise HubError(f"{where}: the hub gives {short(row['path'])} no digest to check it with")
        entries.append(Entry(row["path"], size, digest))
    return entries


def parse_commit(answer: Any, where: str) -> str | None:
    """The commit a hub's answer about a repository names; None for a repository without one.

    Raises:
        HubError: the answer is none about a repository, or names something else.
    """
    commit = answer.get("sha") if isinstance(answer, Mapping) else answer
    if isinstance(answer, Mapping) and commit is None:
        return None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError(f"{where}: the hub names no commit", hint="is this the address of a hub? see --endpoint")
    return commit


def is_commit(revision: str | None) -> bool:
    return bool(revision and _COMMIT.fullmatch(revision))
