"""Readers of files and of standard input.

Each kind is a function `(argument, **options) -> Data`, named by a `DatasetSpec` in `kdhub/plugins/builtin.py`.
Text files are read a line at a time and may end in `.gz`; a line that cannot be read is a bad row, not the end.
"""

from __future__ import annotations

import csv as _csv
import gzip
import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.data.dataset import Data
from kdhub.data.named_files import NamedFiles
from kdhub.data.prepare import BadRow, Source, array_column, iterate, named_columns, names_of, prepare_tables
from kdhub.errors import DataError, UsageError, close_matches
from kdhub.files import home, known_sha256
from kdhub.plain_arrays import header, opened, telling
from kdhub.plain_yaml import NotPlain

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_READ_ROWS = 1000
_LONGEST = 2**28
"""Bytes of a line, which is held whole: a small compressed file may have one of gigabytes."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_QUOTED = re.compile(rb'"(?:[^"]|"")*"')
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.parquet")


# ---- files


class FileSource(Source):
    """One file; `given` is how people named it."""

    kind = "file"
    via: str | None = None  # how it came here, when not as a file

    def __init__(self, path: Path, given: str | None = None):
        self.path, self.label = path, given or str(path)

    def record(self) -> dict[str, Any]:
        return {"kind": self.via or self.kind, "file": self.label, "sha256": known_sha256(self.path)}

    def key(self) -> dict[str, Any]:
        return {"kind": self.kind, "sha256": known_sha256(self.path)}

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Line number and line without its end."""
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else open(self.path, "rb") as file:
                for number, line in enumerate(iter(lambda: file.readline(_LONGEST + 1), b""), 1):
                    if len(line) > _LONGEST:
                        raise DataError(f"{self.label}: line {number:,} has more than {_LONGEST:,} bytes")
                    if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                        line = line[3:]
                    yield number, line.rstrip(b"\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.label} is damaged or cut short: {error}") from error


class TextFile(FileSource):
    """One text a line."""

    kind = "text"

    def columns(self) -> list[str]:
        return ["text"]

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for number, line in self.lines():
            try:
                yield number, {"text": line.decode()}
            except UnicodeDecodeError:
                yield number, BadRow("not UTF-8")


class JsonLines(FileSource):
    """One JSON object a line; blank lines are nothing."""

    kind = "jsonl"

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for number, line in self.lines():
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
                if b"\\u" in line:  # an escape may be half of a character, which no file can hold
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeDecodeError:
                yield number, BadRow("not UTF-8")
            except UnicodeEncodeError:
                yield number, BadRow("with a lone surrogate (half a character)")
            except (ValueError, RecursionError):
                if number == 1 and line.lstrip().startswith((b"[", b"{")) and line.rstrip().endswith((b"[", b"{")):
                    raise self._one_document() from None
                yield number, BadRow("not valid JSON")
            else:
                if number == 1 and isinstance(row, list) and row and isinstance(row[0], dict):
                    raise self._one_document()
                yield number, row if isinstance(row, dict) else BadRow("not a JSON object")

    def _one_document(self) -> DataError:
        return DataError(
            f"{self.label} is one JSON document, not one object a line",
            hint="write it as JSON lines, for example with `jq -c '.[]'`",
        )


class Table(FileSource):
    """Comma- or tab-separated values under a header. They have no types: all columns are text.

    Comma-separated files are quoted as usual. Tab-separated ones have one row a line, and no quoting but in files where
    each field with a quote in it is quoted, as pandas writes them. A first column without a name, as pandas writes its
    index, is left out.
    """

    kind = "csv"

    def __init__(self, path: Path, given: str | None = None, *, delimiter: str = ","):
        super().__init__(path, given)
        self.delimiter = delimiter

    def key(self) -> dict[str, Any]:
        quoted = {"quoted": True} if self.delimiter == "\t" and self._quoted else {}
        return {**super().key(), "delimiter": self.delimiter, **quoted}

    @cached_property
    def _quoted(self) -> bool:
        """Whether a tab-separated file is quoted: all fields with quotes are so as a whole, and some of these, or all
        names of the header, cannot be meant as they stand."""
        sure = False
        for number, line in self.lines():
            if b'"' in line:
                fields = line.split(b"\t")
                quoted = [field for field in fields if b'"' in field]
                if not all(map(_QUOTED.fullmatch, quoted)):
                    return False
                sure = sure or any(b'""' in one[1:-1] for one in quoted) or (number == 1 and quoted == fields)
        return sure

    def columns(self) -> list[str]:
        return [name for name in self._header() if name]

    def _header(self) -> list[str]:
        for _, fields in self._records():
            if isinstance(fields, BadRow):
                raise DataError(f"{self.label}: the header is {fields.cause}")
            if len(set(fields)) < len(fields) or "" in fields[1:] or fields == [""]:
                raise DataError(f"{self.label}: the header has empty or repeated names: {names_of(fields)}")
            if len(fields) == 1 and (other := next((c for c in ";\t|," if c in fields[0]), None)):
                what = {",": "commas", "\t": "tabs"}
                raise DataError(
                    f"{self.label}: the header is one column, {fields[0]!r}; it seems to be separated by {other!r} and "
                    f"is read as separated by {what[self.delimiter]}",
                    hint="write it with commas (.csv) or tabs (.tsv)",
                )
            return fields
        raise DataError(f"{self.label} is empty", hint="its first line should name the columns")

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        header = self._header()
        records = self._records()
        next(records)
        for number, fields in records:
            if isinstance(fields, BadRow):
                yield number, fields
            elif len(fields) != len(header):
                yield number, BadRow(f"ragged, with {len(fields)} fields where the header has {len(header)}")
            else:
                yield number, {name: field for name, field in zip(header, fields) if name}

    def _records(self) -> Iterator[tuple[int, list[str] | BadRow]]:
        if self.delimiter == "\t":
            for number, line in self.lines():
                try:
                    if line:
                        fields = line.decode().split("\t")
                        if b'"' in line and self._quoted:
                            fields = [f[1:-1].replace('""', '"') if f.startswith('"') else f for f in fields]
                        yield number, fields
                except UnicodeDecodeError:
                    yield number, BadRow("not UTF-8")
            return
        # The module's own limit of 131072 characters a field is a guard for servers, not for data.
        _csv.field_size_limit(2**31 - 1)
        # A quoted field may go over several lines: bytes that are not UTF-8 are carried through, and looked for after.
        reader = _csv.reader(
            (line.decode(errors="surrogateescape") + "\n" for _, line in self.lines()),
            delimiter=self.delimiter,
            strict=True,
        )
        number = 1
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except _csv.Error as error:
                yield number, BadRow(f"not valid CSV ({error})")
            else:
                if any(not f.isascii() and re.search("[\udc80-\udcff]", f) for f in fields):
                    yield number, BadRow("not UTF-8")
                elif fields:
                    yield number, fields
            number = reader.line_num + 1


class Parquet(FileSource):
    kind = "parquet"

    def columns(self) -> list[str]:
        return self._open().schema_arrow.names

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        number = 0
        for table in self._tables():
            for row in table.to_pylist():
                number += 1
                yield number, row

    def table(self) -> datasets.Dataset:
        return prepare_tables(self.key(), self._tables, self.label)

    def classes(self) -> dict[str, Any]:
        import datasets

        try:
            return named_columns(datasets.Features.from_arrow_schema(self._open().schema_arrow))
        except (ValueError, TypeError) as error:  # of a newer `datasets`
            raise DataError(f"{self.label} states features that cannot be read: {error}") from error

    def _open(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except pa.ArrowException as error:
            raise DataError(f"{self.label} is not a Parquet file: {error}") from error

    def _tables(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        try:
            for batch in self._open().iter_batches(_READ_ROWS):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.label} is damaged: {error}") from error


class Npz(FileSource):
    """NumPy arrays with one first dimension, one array a column; pickled arrays are refused.

    Read a few rows at a time, so an archive may be larger than memory.
    """

    kind = "npz"

    def __init__(self, path: Path, given: str | None = None, *, arrays: Sequence[str] | None = None):
        super().__init__(path, given)
        self.arrays = list(arrays) if arrays else None

    def key(self) -> dict[str, Any]:
        return {**super().key(), "arrays": self.arrays}

    def columns(self) -> list[str]:
        shapes = self._shapes()
        names = self.arrays or list(shapes)
        if gone := [name for name in names if name not in shapes]:
            raise DataError(f"{self.label}: no array {names_of(gone)}; it has {names_of(shapes)}")
        lengths = {shapes[name][0] if shapes[name] else None for name in names}
        if len(lengths) > 1 or None in lengths:
            listed = ", ".join(f"{name} {list(shapes[name])}" for name in names)
            raise DataError(
                f"{self.label}: the arrays do not form a table: their first dimensions differ: {listed}",
                hint="name those that belong together: `options: {arrays: [...]}`",
            )
        return names

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        return enumerate(iterate(self.table()), 1)

    def table(self) -> datasets.Dataset:
        return prepare_tables(self.key(), self._tables, self.label)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with opened(self.path) as archive:
                yield archive
        except NotPlain as error:
            raise DataError(f"{self.label}: {error}") from error

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {}
        with self._archive() as archive:
            for entry in archive.namelist():
                if entry.endswith(".npy"):
                    with telling(repr(entry[:-4])), archive.open(entry) as member:
                        shapes[entry[:-4]] = header(member, repr(entry[:-4]))[0]
        return shapes

    def _tables(self) -> Iterator[pa.Table]:
        import numpy as np
        import pyarrow as pa

        names = self.columns()
        with self._archive() as archive:
            members = {name: archive.open(f"{name}.npy") for name in names}
            headers = {name: header(members[name], repr(name)) for name in names}
            if any(fortran and len(shape) > 1 for shape, fortran, _ in headers.values()):
                raise DataError(f"{self.label}: an array is in Fortran order; save it with numpy.ascontiguousarray")
            length = headers[names[0]][0][0]
            row_bytes = sum(dtype.itemsize * int(np.prod(shape[1:])) for shape, _, dtype in headers.values())
            step = max(1, min(_READ_ROWS, (16 << 20) // max(1, row_bytes)))
            for start in range(0, length, step):
                count, columns = min(step, length - start), []
                for name in names:
                    shape, _, dtype = headers[name]
                    size = count * int(np.prod(shape[1:])) * dtype.itemsize
                    with telling(repr(name)):
                        data = members[name].read(size)
                    if len(data) != size:
                        raise DataError(f"{self.label} is cut short: {name!r} ends at row {start}")
                    columns.append(array_column(np.frombuffer(data, dtype).reshape(count, *shape[1:])))
                yield pa.Table.from_arrays(columns, names=names)


# ---- kinds that name files

Files = str | Sequence[str]
"""Columns whose values name other files, relative to the folder of the file that they stand in (option `files`)."""


def text(argument: str) -> Data:
    return _one(TextFile(_existing(argument), argument), argument)


def jsonl(argument: str, *, files: Files = ()) -> Data:
    return _one(JsonLines(_existing(argument), argument), argument, files)


def csv(argument: str, *, delimiter: str | None = None, files: Files = ()) -> Data:
    path = _existing(argument)
    if delimiter is None:
        delimiter = "\t" if ".tsv" in path.suffixes[-2:] else ","
    return _one(Table(path, argument, delimiter=delimiter), argument, files)


def tsv(argument: str, *, files: Files = ()) -> Data:
    return csv(argument, delimiter="\t", files=files)


def parquet(argument: str, *, files: Files = ()) -> Data:
    return _one(Parquet(_existing(argument), argument), argument, files)


def npz(argument: str, *, arrays: Sequence[str] | None = None) -> Data:
    return _one(Npz(_existing(argument), argument, arrays=arrays), argument)


def path(argument: str, *, files: Files = ()) -> Data:
    """A file, its kind told by its ending, or a folder of such files, a split each.

    A folder in the BEIR layout works as it is: `corpus`, `queries`, and `qrels_test.tsv` or `qrels/test.tsv`. So does
    one in the layout of the Hub (`data/train-00000-of-00001.parquet`), as students that are rows have it.
    """
    file = Path(argument).expanduser()
    if not file.is_dir():
        return _one(file_source(_existing(argument), argument), argument, files)
    sources: dict[str, Source] = {split: _with_files(shard, files) for split, shard in shards(file).items()}
    if sources:
        return Data(file.resolve().name, sources, ref=f"path:{argument}")
    for found in sorted([*file.iterdir(), *(file / "qrels").glob("*")]):
        if found.is_file() and _kind_of(found):
            split = found.name.split(".")[0].removeprefix("qrels_").removeprefix("qrels-")
            if split in sources:
                raise UsageError(f"{argument} has two files for split {split!r}: {sources[split].label}, {found.name}")
            sources[split] = _with_files(file_source(found, str(found.relative_to(file))), files)
    if not sources:
        raise DataError(f"{argument} holds no data file", hint=f"known endings: {', '.join(_ENDINGS)}")
    return Data(file.resolve().name, dict(sorted(sources.items())), ref=f"path:{argument}")


def shards(folder: Path) -> dict[str, Parquet]:
    """The splits of a folder in the layout of the Hub, one Parquet file each; empty where it has none.

    Raises:
        DataError: a split in several files.
    """
    found: dict[str, Parquet] = {}
    for file in sorted((folder / "data").glob("*-of-*.parquet")):
        if match := _SHARD.fullmatch(file.name):
            name = f"data/{file.name}"
            if int(match[3]) != 1:
                raise DataError(
                    f"{folder}: split {match[1]!r} is in {int(match[3])} files",
                    hint=f"name one of them: parquet:{name}",
                )
            found[match[1]] = Parquet(file, name)
    return found


_ENDINGS: dict[str, Callable[[Path, str], FileSource]] = {
    ".txt": TextFile,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".csv": Table,
    ".tsv": lambda path, given: Table(path, given, delimiter="\t"),
    ".parquet": Parquet,
    ".npz": Npz,
}


def _kind_of(file: Path) -> Callable[[Path, str], FileSource] | None:
    return _ENDINGS.get(Path(file.name.removesuffix(".gz")).suffix.lower())


def file_source(file: Path, given: str) -> FileSource:
    """The reader for a file, told by its ending.

    Raises:
        UsageError: an ending nobody knows.
    """
    kind = _kind_of(file)
    if kind is None:
        raise UsageError(
            f"{given}: the ending does not tell what kind of file it is",
            hint=f"known: {', '.join(_ENDINGS)}; or say it: jsonl:{given}",
        )
    return kind(file, given)


def _existing(argument: str) -> Path:
    file = Path(argument).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        raise UsageError(f"{argument} is a folder, not a file", hint=f"write path:{argument} for a folder of files")
    near = close_matches(file.name, (f.name for f in file.parent.iterdir())) if file.parent.is_dir() else []
    raise UsageError(f"no file {argument}", hint=f"there is {names_of(near)}" if near else None)


def _one(source: FileSource, argument: str, files: Files = ()) -> Data:
    return Data(Path(argument).name, {"train": _with_files(source, files)}, ref=f"{source.kind}:{argument}")


def _with_files(source: FileSource, files: Files) -> Source:
    """What the files hold that some columns name, in place of their names."""
    return NamedFiles(source, source.path, [files] if isinstance(files, str) else files) if files else source


# ---- standard input


def stdin(argument: str = "") -> Data:
    """What comes in on standard input, kept on disk once: text lines, or JSON lines when the first is an object.

    Args:
        argument: sha256 of input that was kept before; this is how a resumed run finds it again.
    """
    folder = home() / "data" / "stdin"
    if not argument:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("standard input is a terminal", hint="pipe texts or JSON lines into kdhub")
        argument = _spool(folder)
    file = folder / argument
    if not re.fullmatch(r"[0-9a-f]{64}", argument) or not file.is_file():
        raise DataError(f"no standard input with sha256 {argument} was kept here")
    with open(file, "rb") as start:
        first = next((line for line in start if line.strip()), b"")
    try:
        reader = JsonLines if isinstance(json.loads(first), dict) else TextFile
    except ValueError:
        reader = TextFile
    source = reader(file, "standard input")
    source.via = "stdin"
    return Data("stdin", {"train": source}, ref=f"stdin:{argument}")


def _spool(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    running = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            while block := sys.stdin.buffer.read(1 << 20):
                running.update(block)
                file.write(block)
            size = file.tell()
        if not size:
            raise DataError("standard input is empty")
        os.replace(name, folder / running.hexdigest())
    finally:
        Path(name).unlink(missing_ok=True)
    return running.hexdigest()
