"""Rows of a catalogue entry: for each split the first source that can be had, checked against what the entry says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.data.dataset import Data
from kdhub.data.hub_rows import HubSource
from kdhub.data.prepare import BadRow, Source, rename, rename_table
from kdhub.data.sources import file_source
from kdhub.errors import DataError, HubError, UnavailableError
from kdhub.files import known_sha256

if TYPE_CHECKING:
    import datasets


class _Unavailable(Exception):
    """A source that cannot be had here; the next one is tried."""


class _Exactly(Source):
    """A source under our names, with no other columns: {ours: theirs}, or a Jinja template of theirs
    (`"{{ question }} {{ answers[0] }}"`)."""

    def __init__(self, source: Source, columns: Mapping[str, str], about: Mapping[str, Any]):
        self.source, self._columns, self.about, self.label = source, dict(columns), dict(about), source.label
        self._written = {ours: written(text) for ours, text in self._columns.items() if "{{" in text}

    def record(self) -> dict[str, Any]:
        return {**self.source.record(), **self.about}

    def key(self) -> dict[str, Any]:
        return {"of": dict(self.source.key()), "exactly": self._columns}

    def columns(self) -> list[str] | None:
        have = self.source.columns()
        if have is None or not self._columns:
            return have
        return [ours for ours, theirs in self._columns.items() if theirs in have or ours in self._written]

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        if not self._columns:
            yield from self.source.rows()
            return
        for number, row in self.source.rows():
            yield number, row if isinstance(row, BadRow) else self._named(row)

    def _named(self, row: dict[str, Any]) -> dict[str, Any] | BadRow:
        made = {}
        for ours, theirs in self._columns.items():
            if ours in self._written:
                made[ours] = self._written[ours](row)
                if isinstance(made[ours], BadRow):
                    return made[ours]
            elif theirs in row:
                made[ours] = row[theirs]
        return made

    def table(self) -> datasets.Dataset | None:
        table = None if self._written else self.source.table()
        if table is None or not self._columns:
            return table
        return rename_table(table, self._columns, self.label).select_columns(list(self._columns))

    def classes(self) -> dict[str, Any]:
        return rename(self.source.classes(), self._columns)


def written(template: str) -> Callable[[Mapping[str, Any]], str | BadRow]:
    """What writes a row by a template, in a sandbox: a catalogue may be a stranger's."""
    from jinja2 import TemplateError

    from kdhub.hub import templates

    try:
        templates.compiled(template, False)
    except TemplateError as error:
        raise DataError(f"the template {template[:100]!r} cannot be used: {error}") from error

    def write(row: Mapping[str, Any]) -> str | BadRow:
        try:
            return templates.render(template, row, trim=False)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            return BadRow(f"no text by the template {template!r}: {error}")

    return write


class _FirstOf(Source):
    """The first source that can be had, of those an entry lists for one split."""

    def __init__(self, label: str, candidates: Sequence[tuple[str, Callable[[], Source]]]):
        self.label, self.candidates = label, candidates
        self._chosen: Source | None = None

    @property
    def chosen(self) -> Source:
        if self._chosen is None:
            reasons = []
            for name, open_source in self.candidates:
                try:
                    source = open_source()
                    source.record()  # the Hub is asked here
                except (_Unavailable, HubError) as error:
                    reasons.append(f"{name}: {error}")
                else:
                    self._chosen, self.label = source, source.label
                    break
            else:
                raise UnavailableError(
                    f"{self.label} is not available:\n" + "\n".join(f"  - {reason}" for reason in reasons),
                    hint="set KDHUB_DATA to a folder that holds the files, or go online",
                )
        return self._chosen

    def record(self) -> dict[str, Any]:
        return self.chosen.record()

    def key(self) -> Mapping[str, Any]:
        return self.chosen.key()

    def columns(self) -> list[str] | None:
        return self.chosen.columns()

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        return self.chosen.rows()

    def table(self) -> datasets.Dataset | None:
        return self.chosen.table()

    def classes(self) -> dict[str, Any]:
        return self.chosen.classes()


def catalog_data(
    name: str,
    entry: Mapping[str, Any],
    *,
    build: Callable[[str, str, Mapping[str, Any]], Data] | None = None,
    data_dir: Path | str | None = None,
    fetch: bool = True,
) -> Data:
    """The data set of a catalogue entry; for each split the first source that can be had.

    Args:
        name: its name.
        entry: as `kdhub.catalogue.catalog` validated it: format, licence, splits.
        build: (kind, argument, options) -> data, for sources that are generators.
        data_dir: folder of the entries' files; default `$KDHUB_DATA`.
        fetch: whether the Hub may be asked.

    Raises:
        UnavailableError: later, when a split is opened: no source can be had; each is listed with why.
        DataError: a file with another sha256, rows with another fingerprint.
    """
    data_dir = data_dir or os.environ.get("KDHUB_DATA") or None
    sources, formats, fingerprints = {}, {}, {}
    for split, about in entry["splits"].items():
        candidates = [
            _candidate(source, about.get("columns") or {}, split, build, Path(data_dir) if data_dir else None, fetch)
            for source in about["sources"]
        ]
        sources[split] = _FirstOf(f"data set {name!r}, split {split!r},", candidates)
        if about.get("format"):
            formats[split] = about["format"]
        if about.get("fingerprint"):
            fingerprints[split] = about["fingerprint"]
    declared = {split: entry["format"] for split in sources} if entry.get("format") else {}
    return Data(
        name,
        sources,
        format={**declared, **formats} or None,
        licence=entry.get("licence") or "",
        fingerprints=fingerprints,
    )


def _candidate(
    source: Mapping[str, Any],
    columns: Mapping[str, str],
    split: str,
    build: Callable[[str, str, Mapping[str, Any]], Data] | None,
    data_dir: Path | None,
    fetch: bool,
) -> tuple[str, Callable[[], Source]]:
    """What an entry calls a source, and a function that opens it or says why not."""
    columns = source.get("columns") or columns
    about = {} if source.get("checked", True) else {"checked": False}

    def open_file() -> Source:
        if data_dir is None:
            raise _Unavailable("KDHUB_DATA is not set")
        file = data_dir / source["file"]
        if not file.is_file():
            raise _Unavailable("not below KDHUB_DATA")
        if (found := known_sha256(file)) != source["sha256"]:
            raise DataError(
                f"{source['file']} below KDHUB_DATA has sha256 {found}, the catalogue says {source['sha256']}",
                hint="get the file again; other rows are another entry",
            )
        return _Exactly(file_source(file, source["file"]), columns, about)

    def open_hub() -> Source:
        if not fetch:
            raise _Unavailable("not fetched, because this use is optional")
        hub = HubSource(
            source["hub"],
            source.get("split") or split,
            config=source.get("config"),
            revision=source.get("revision"),
        )
        return _Exactly(hub, columns, about)

    def open_generator() -> Source:
        if build is None:
            raise _Unavailable("no installed plugin makes rows")
        data = build(source["generator"], source.get("argument") or "", source.get("options") or {})
        return _Exactly(data.sources[source.get("split") or split], columns, about)

    if source.get("file"):
        return f"file {source['file']}", open_file
    if source.get("hub"):
        return f"Hub {source['hub']}", open_hub
    return f"generator {source['generator']}", open_generator
