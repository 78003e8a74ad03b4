"""What the embedded hub takes: names, trees, which files are LFS, and what it makes of a card."""

from __future__ import annotations

import fnmatch
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from kdhub.hub.files import path_problem

LFS_OVER = 10 * 2**20
"""Bytes beyond which a file is LFS whatever its name, as on the Hugging Face Hub."""

PATTERNS_LIMIT = 1000
"""Lines of `.gitattributes` that are read."""

_REPO = re.compile(r"(?:[A-Za-z0-9](?:[\w.-]{0,94}[\w])?/)[A-Za-z0-9](?:[\w.-]{0,94}[\w])?(?<!\.git)", re.ASCII)
_ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", re.ASCII)
_RESERVED = {"api", "datasets", "models", "spaces", "login"}
"""Owners whose repositories would have another page's address."""


class Refused(Exception):
    """Something the hub does not do: a status of HTTP, a sentence, and the code that clients know it by
    (`X-Error-Code`)."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


def check_repo_name(name: str) -> None:
    if not _REPO.fullmatch(name) or "--" in name or ".." in name or name.split("/")[0].lower() in _RESERVED:
        expected = "owner/name of letters, digits, '.', '_' and '-'"
        raise Refused(400, f"{name!r} cannot be a repository's name: expected {expected}")


def check_ref_name(name: str) -> None:
    """Refuse what git would, and what is read as a commit: by it a tag could stand in the place of one."""
    if path_problem(name) or any(c in name for c in " ~^?*[") or ".." in name or name.endswith(".lock") or is_oid(name):
        raise Refused(400, f"{name!r} cannot be the name of a branch or a tag")


def is_oid(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", text) is not None


def check_paths(paths: Iterable[str]) -> None:
    """Refuse a tree that cannot be put into a folder of every system.

    Raises:
        Refused: names that lead elsewhere, or two names that are one on some systems.
    """
    taken: dict[str, str] = {}
    for path in paths:
        problem = path_problem(path)
        if not problem and any(part.lower() in (".git", ".cache") for part in path.split("/")):
            problem = "belongs to git or to a cache"
        if problem:
            raise Refused(400, f"the file name {path!r} {problem}")
        same = unicodedata.normalize("NFC", path).casefold()
        if same in taken:
            raise Refused(400, f"{path!r} and {taken[same]!r} are one name to some file systems")
        taken[same] = path
    for same in taken:
        parts = same.split("/")
        for n in range(1, len(parts)):
            if (above := "/".join(parts[:n])) in taken:
                raise Refused(400, f"{taken[above]!r} is a file and a folder")


def is_lfs(path: str, size: int, sample: bytes, attributes: str) -> bool:
    """Whether a file goes through LFS: a pattern of `.gitattributes`, more than 10 MB, or not text."""
    if not size:
        return False
    name, by_name = path.rpartition("/")[2], False
    for matches, whole, lfs in _patterns(attributes):
        if lfs is not by_name and matches(path if whole else name):
            by_name = lfs
    return by_name or size > LFS_OVER or b"\0" in sample


@lru_cache(maxsize=64)
def _patterns(attributes: str) -> list[tuple[Callable[[str], Any], bool, bool]]:
    """Of each line that says so: what it matches, whether the whole path, and whether that is LFS."""
    found = []
    for line in attributes.splitlines()[:PATTERNS_LIMIT]:
        pattern, *rest = line[:1000].split() or [""]
        lfs = "filter=lfs" in rest
        if lfs or {"-filter", "!filter"} & set(rest):
            found.append((re.compile(fnmatch.translate(pattern.lstrip("/"))).match, "/" in pattern, lfs))
    return found


def derived_tags(card: Mapping[str, Any], body: str = "") -> list[str]:
    """The tags a hub makes of a card: section 8 of what clients expect."""

    def of(key: str) -> list[str]:
        value = card.get(key)
        found = value if isinstance(value, list) else [value]
        return [v for v in found if isinstance(v, str) and v]

    tags = [*of("tags"), *of("language"), *of("library_name"), *of("pipeline_tag")]
    for key, prefix in (("license", "license"), ("datasets", "dataset"), ("base_model", "base_model")):
        tags += [f"{prefix}:{value}" for value in of(key)]
    for relation in of("base_model_relation")[:1]:
        tags += [f"base_model:{relation}:{value}" for value in of("base_model")]
    tags += [f"arxiv:{paper}" for paper in _ARXIV.findall(body)]
    return list(dict.fromkeys(tag[:300] for tag in tags))


def sendable(value: Any) -> Any:
    """A card as JSON can hold it everywhere: no infinite numbers, no halves of a character. One that came in before
    this was checked must not end everybody's search."""
    if isinstance(value, dict):
        return {sendable(str(k)): sendable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [sendable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
