"""`python-source`: the source code of the running Python's standard library, read from files; nothing is imported.

Splits are by module: one in ten is for validation and one for test, by a digest of its top-level name.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from kdhub.data.dataset import Data
from kdhub.errors import UsageError

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "pydoc_data"}
HELD_OUT = {0: "validation", 1: "test"}


def python_source(argument: str = "", *, characters: int = 400) -> Data:
    """Rows of `text`: whole lines of one module, up to `characters` of them; longer lines are dropped.

    Raises:
        UsageError: fewer than 40 characters.
    """
    if characters < 40:
        raise UsageError(f"python-source needs characters of at least 40 (characters={characters})")

    def rows(split: str) -> Iterator[dict[str, str]]:
        root = Path(sysconfig.get_path("stdlib"))
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if SKIPPED.isdisjoint(parts) and split_of(parts[0].removesuffix(".py")) == split:
                for text in whole_lines(path.read_text(encoding="utf-8", errors="ignore").splitlines(True), characters):
                    yield {"text": text}

    key = {"kind": "python-source", "python": platform.python_version(), "characters": characters, "version": 1}
    names = ("train", *HELD_OUT.values())
    return Data.from_rows("python-source", {name: lambda n=name: rows(n) for name in names}, key=key)


def split_of(module: str) -> str:
    """The split of a top-level module."""
    return HELD_OUT.get(hashlib.sha256(module.encode()).digest()[0] % 10, "train")


def whole_lines(lines: list[str], size: int) -> Iterator[str]:
    """Texts of whole lines, at most `size` characters each."""
    held = ""
    for line in lines:
        if held and len(held) + len(line) > size:
            yield held
            held = ""
        if len(line) <= size:
            held += line
    if held.strip():
        yield held
