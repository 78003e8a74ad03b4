"""`kdhub.json`: what a published student is, how it was made, and a digest of every file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdhub.errors import UntrustedError
from kdhub.hub.files import ATTRIBUTES, CARD, LARGEST_TEXT, MANIFEST, SIGNATURE, Digests, name_problem, short
from kdhub.plain_json import fit, plain_json
from kdhub.shapes import Shape, Text

SCHEMA = 1
RECIPE, REPORT = "recipe.yaml", "report.json"
RECORD = ".kdhub-pull.json"
"""What `pull` writes beside the student; never published."""

UNLISTED = frozenset((CARD, MANIFEST, SIGNATURE, ATTRIBUTES, RECORD))
"""Files without a digest in the manifest. People may better the words of a card; its figures are checked one by one."""


class _Named(Shape):
    name: Text = None
    id: Text = None
    source: Text = None
    distribution: Text = None
    version: Text = None


class _Rows(Shape):
    name: Text = None
    split: Text = None
    fingerprint: Text = None


class Facts(Shape):
    """What a manifest must be besides its files, as far as anything here reads it."""

    name: Text = None
    provided_by: _Named | None = None
    method: _Named | None = None
    teacher: _Named | None = None
    withheld: list[str] = []
    data: list[_Rows] = []


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read and checked.

    Attributes:
        values: all of it.
        files: name -> (bytes, sha256).
    """

    values: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]

    @property
    def task(self) -> str:
        return self.values["task"]

    @property
    def kind(self) -> str:
        """`model` or `dataset`."""
        return self.values["kind"]

    def get(self, *keys: str) -> Any:
        """A nested value, None when it is not there."""
        value: Any = self.values
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def problems(self, found: Mapping[str, Digests]) -> list[str]:
        """How files differ from the manifest, one sentence each."""
        told = []
        for name, (size, digest) in sorted(self.files.items()):
            if name not in found:
                told.append(f"{name} is missing")
            elif (found[name].size, found[name].sha256) != (size, digest):
                told.append(f"{name} is not the file that was published")
        told += [f"{name} is not in {MANIFEST}" for name in sorted(found.keys() - self.files.keys() - UNLISTED)]
        return told


def make(facts: Mapping[str, Any], files: Mapping[str, Digests]) -> str:
    """The text of a manifest. The same student gives the same text: there is no date in it."""
    listed = {n: {"size": d.size, "sha256": d.sha256} for n, d in sorted(files.items()) if n not in UNLISTED}
    value = {"schema": SCHEMA, **facts, "files": listed}
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path, name: str) -> Manifest:
    """The manifest in a file.

    Raises:
        UntrustedError: it is no manifest; says what is wrong.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise UntrustedError(f"{name}: {MANIFEST} has {path.stat().st_size:,} bytes")
    return parse(path.read_bytes(), name)


def parse(content: bytes, name: str) -> Manifest:
    try:
        value = plain_json(content, finite=True)
        if problem := next(iter(_problems(value)), None):
            raise UntrustedError(f"{name}: {MANIFEST} {problem}")
        fit(Facts, value)
    except ValueError as error:
        raise UntrustedError(f"{name}: {MANIFEST} cannot be read: {error}") from error
    return Manifest(value, {n: (f["size"], f["sha256"]) for n, f in value["files"].items()})


def _problems(value: Any) -> Iterable[str]:
    if not isinstance(value, Mapping):
        yield f"is a {type(value).__name__}, not an object"
        return
    if value.get("schema") != SCHEMA:
        yield f"has schema {short(value.get('schema'))}, this kdhub reads {SCHEMA}"
        return
    if not isinstance(value.get("task"), str) or not value["task"]:
        yield "names no task"
    if value.get("kind") not in ("model", "dataset"):
        yield f"is of the kind {short(value.get('kind'))}, not model or dataset"
    files = value.get("files")
    if not isinstance(files, Mapping) or not files:
        yield "lists no files"
        return
    for name, file in files.items():
        if problem := name_problem(name):
            yield f"lists {short(name)}, which {problem}"
        size = file.get("size") if isinstance(file, Mapping) else None
        whole = isinstance(size, int) and not isinstance(size, bool)
        if not whole or not re.fullmatch("[0-9a-f]{64}", str(file.get("sha256"))):
            yield f"has no size and sha256 for {name!r}"
