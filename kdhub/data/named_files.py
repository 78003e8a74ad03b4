"""Columns that name files: rows get what these hold, so that they are whole wherever they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdhub.data.prepare import BadRow, Source
from kdhub.errors import DataError
from kdhub.files import canonical_json
from kdhub.rows import Fault


class NamedFiles(Source):
    """Rows of a file, some of whose columns name other files: `{"bytes", "path"}` in place of the names, as the Hub has
    them.

    Args:
        of: the rows; path: their file, beside whose folder names are relative.
        columns: those that name files, as the file calls them.
    """

    def __init__(self, of: Source, path: Path, columns: Sequence[str]):
        self.of, self.folder, self.named, self.label = of, path.parent, tuple(columns), of.label

    def columns(self) -> list[str] | None:
        known = self.of.columns()
        if known is not None and (gone := [name for name in self.named if name not in known]):
            raise DataError(f"{self.label}: no column {gone[0]!r} that could name files; it has {', '.join(known)}")
        return known

    def record(self) -> dict[str, Any]:
        return {**self.of.record(), "files": list(self.named)}

    def key(self) -> Mapping[str, Any]:
        """A named file is the same as long as its size and time are."""
        digest = hashlib.sha256()
        for _, row in self.of.rows():
            for name in () if isinstance(row, BadRow) else map(row.get, self.named):
                found = self._path(name).stat() if isinstance(name, str) and self._path(name).is_file() else None
                digest.update(canonical_json([str(name), found and [found.st_size, found.st_mtime_ns]]))
        where = {"folder": str(self.folder.resolve()), "columns": list(self.named), "found": digest.hexdigest()}
        return {**self.of.key(), "files": where}

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for number, row in self.of.rows():
            yield number, row if isinstance(row, BadRow) else self._read(row)

    def _path(self, name: str) -> Path:
        return self.folder / Path(name).expanduser()

    def _read(self, row: Mapping[str, Any]) -> dict[str, Any] | BadRow:
        read = dict(row)
        for column in self.named:
            if column not in row:
                return BadRow(f"no column {column!r}")
            name = row[column]
            if not isinstance(name, str) or not name.strip():
                return BadRow(f"with no name of a file in {column!r}")
            try:
                read[column] = {"bytes": self._path(name).read_bytes(), "path": name}
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                return BadRow(Fault(f"naming a file in {column!r} that cannot be read", f"{name}: {why}"))
        return read
