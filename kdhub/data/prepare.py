"""From a source to checked rows on disk: reading, checking, the Arrow file, the fingerprint."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.data import forms
from kdhub.errors import DataError
from kdhub.files import canonical_json, home, known_sha256, read_sealed, remember_sha256, sha256_file, write_sealed
from kdhub.rows import BadRows, class_names, dense, named

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

logger = logging.getLogger("kdhub")

SCHEMA = 3  # of the prepared files: raised when checks or layout change, so that old ones are not used
_BATCH, _BYTES = 1000, 2**18
_BLOCK = 256  # numbers of a value from which on its fingerprint is of their bytes
_HELD = 2**26  # bytes of files in rows that wait to be written
_PEEK = 100  # rows looked at to tell the form
# BEIR's names for our columns; used when nobody maps them.
_ALIASES = {"id": "_id", "query_id": "query-id", "corpus_id": "corpus-id"}


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read; a source yields it in place of the row.

    Attributes:
        row: the number of the row that it was to be made of, where rows are made of others.
    """

    cause: str
    row: int | None = None


class Source:
    """What one split is read from. Subclasses give `record` and `rows`; `table` when it is Arrow already."""

    label: str = "data"
    """How messages name it: a file name, `hf:org/name`, ..."""

    def columns(self) -> list[str] | None:
        """Names of the columns that every row has; None when only the rows tell."""
        return None

    def record(self) -> dict[str, Any]:
        """Which rows these are, for provenance: JSON with a digest, a commit or versions. May download."""
        raise NotImplementedError

    def key(self) -> Mapping[str, Any]:
        """What the prepared rows are cached under: equal keys, equal rows."""
        return self.record()

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        """Row number (the line in a file, counted from 1) and row."""
        raise NotImplementedError

    def table(self) -> datasets.Dataset | None:
        """The rows as a memory-mapped data set, when they are one already."""
        return None

    def classes(self) -> dict[str, Any]:
        """Columns that hold the numbers of named classes -> their `datasets` feature, which has the names."""
        table = self.table()
        return {} if table is None else named_columns(table.features)


class RowSource(Source):
    """Rows made by a function. `key` names them: rows under a key that is known are not made again."""

    def __init__(self, rows: Callable[[], Iterable[Mapping[str, Any]]], key: Mapping[str, Any], label: str):
        self._rows, self._key, self.label = rows, {"kind": "rows", **key}, label

    def record(self) -> dict[str, Any]:
        return dict(self._key)

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for number, row in enumerate(self._rows(), 1):
            yield (row.row or number, row) if isinstance(row, BadRow) else (number, dict(row))


class TableSource(Source):
    """Rows of a `datasets.Dataset`."""

    def __init__(self, table: datasets.Dataset, record: Mapping[str, Any], label: str):
        self._table, self._record, self.label = table, dict(record), label

    def record(self) -> dict[str, Any]:
        return dict(self._record)

    def columns(self) -> list[str] | None:
        return self._table.column_names

    def table(self) -> datasets.Dataset | None:
        return self._table

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        return enumerate(iterate(self._table), 1)


@dataclass
class Prepared:
    """One split, checked and memory-mapped."""

    table: datasets.Dataset
    form: str
    record: dict[str, Any]
    skipped: Mapping[str, int]
    key: Mapping[str, Any]
    digest: str | None = None

    def fingerprint(self) -> str:
        if self.digest is None:
            self.digest = fingerprint_of(self.table, self.key)
        return self.digest


@dataclass(frozen=True)
class Plan:
    """How the rows of one source are checked."""

    form: str | None  # None: by the columns
    part: str | None  # of retrieval: corpus, queries or judgements
    columns: Mapping[str, str]
    role: str | None
    on_bad_rows: str
    head: int | None  # stop after so many rows
    ids: Mapping[str, datasets.Dataset] | None  # the splits that the ids of judgements must be in


def prepare(source: Source, key: Mapping[str, Any], plan: Plan) -> Prepared:
    """The rows of a source, checked, as an Arrow file below `$KDHUB_HOME/data`; made unless it is there."""
    table, meta = _once(key, lambda path: _write_rows(path, source, plan))
    record = {"label": source.label, **source.record()}
    return Prepared(table, meta["form"], record, meta["skipped"], key, meta["fingerprint"])


def prepare_tables(key: Mapping[str, Any], tables: Callable[[], Iterable[pa.Table]], label: str) -> datasets.Dataset:
    """Arrow tables as one memory-mapped data set, unchecked; made unless it is there."""

    def write(path: Path) -> dict[str, Any]:
        rows = 0
        with ArrowFile(path) as file:
            for table in tables():
                file.write(table)
                rows += table.num_rows
        if not rows:
            raise DataError(f"{label} is empty")
        return {"bytes": path.stat().st_size}

    return _once({"tables": SCHEMA, **key}, write)[0]


def _once(key: Mapping[str, Any], write: Callable[[Path], dict[str, Any]]) -> tuple[datasets.Dataset, dict[str, Any]]:
    """The Arrow file of a key and what `write` said of it; written when it is missing or cut short."""
    import datasets
    from filelock import FileLock

    name = hashlib.sha256(canonical_json(key)).hexdigest()[:32]
    folder = home() / "data" / "prepared" / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Ranks of one job and parallel runs ask for the same rows: one makes them, the others wait.
        with FileLock(folder.with_suffix(".lock")):
            meta = _read_meta(folder)
            if meta is None:
                for left in [folder, *folder.parent.glob(f".{name}.*")]:  # cut short, or of a killed process
                    shutil.rmtree(left, ignore_errors=True)
                staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
                try:
                    meta = write(staging / "rows.arrow")
                    meta["sha256"] = sha256_file(staging / "rows.arrow")
                    write_sealed(staging / "meta.json", meta)
                    os.replace(staging, folder)
                    remember_sha256(folder / "rows.arrow", meta["sha256"])
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(
                f"cannot keep prepared rows in {folder.parent}: {error.strerror}",
                hint="free space there, or set KDHUB_HOME to a folder that can be written",
            ) from error
        raise
    return datasets.Dataset.from_file(str(folder / "rows.arrow")), meta


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """What `_write_rows` said, if the file beside it is whole."""
    try:
        meta, rows = read_sealed(folder / "meta.json"), folder / "rows.arrow"
        if rows.stat().st_size == meta["bytes"] and meta.get("sha256") in (None, known_sha256(rows)):
            return meta
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        pass
    logger.warning("prepared rows in %s were damaged, and are made again", folder)
    return None


def _write_rows(path: Path, source: Source, plan: Plan) -> dict[str, Any]:
    """Read, check and write every row; the bad ones are counted, and stop the work unless they are skipped."""
    columns = source.columns()
    if columns is not None:
        if absent := set(plan.columns.values()) - set(columns):
            raise _missing(sorted(absent), columns, source.label)
        columns = list(_mapped(dict.fromkeys(columns), plan))
    rows: Iterator[tuple[int, dict[str, Any] | BadRow]] = iter(source.rows())
    form = plan.form or (forms.form_of(columns) if columns is not None else None)
    if form is None:  # by the columns of the first rows, as one alone may lack some
        first = list(itertools.islice(rows, _PEEK))
        form = forms.form_of(c for _, row in first if not isinstance(row, BadRow) for c in _mapped(row, plan))
        rows = itertools.chain(first, rows)
    needed = forms.needed(plan.part or form)
    if columns is not None and set(needed) - set(columns):
        raise _missing(needed, columns, source.label)
    bad, digest, check = BadRows(), hashlib.sha256(), _Check(form, plan)
    kept = total = 0
    with ArrowFile(path, _mapped(source.classes(), plan)) as file:
        for number, row in rows:
            total += 1
            if isinstance(row, BadRow):
                bad.add(row.cause, number)
                continue
            if columns is None:
                columns = list(row)
            absent = next((f"no column {theirs!r}" for theirs in plan.columns.values() if theirs not in row), None)
            row = _mapped(row, plan)
            if cause := absent or check(row) or file.misfit(row):
                bad.add(cause, number)
                continue
            file.add(number, row)
            digest.update(_canonical(row))
            kept += 1
            if kept == plan.head:
                break
    if not total:
        raise DataError(f"{source.label} is empty")
    if not kept and columns and all(cause.startswith("no column") for cause in bad.counts):
        gone = [c for c in dict.fromkeys([*plan.columns.values(), *needed]) if f"no column {c!r}" in bad.counts]
        raise _missing(gone, columns, source.label)
    if bad.counts and (plan.on_bad_rows == "stop" or not kept):
        raise bad.error(source.label, total, nothing_left=not kept)
    size = path.stat().st_size
    return {"form": form, "rows": kept, "skipped": bad.counts, "fingerprint": digest.hexdigest(), "bytes": size}


class _Check:
    """Checks one row of a form and brings ids and scores to their types; called with a row, gives a cause or None."""

    def __init__(self, form: str, plan: Plan):
        self.part, self.role = plan.part or form, plan.role
        self.form = forms.of(self.part)
        self.further = forms.check_of(self.form)
        # Python's hash of a text has 64 bits: enough to tell ids apart, and a tenth of keeping them.
        self.seen: set[int] = set()
        self.ids = {column: {hash(id) for id in values_of(table, "id")} for column, table in (plan.ids or {}).items()}

    def __call__(self, row: dict[str, Any]) -> str | None:
        return getattr(self, f"_{self.part}", self._declared)(row)

    def _rows(self, row: dict[str, Any]) -> str | None:
        return None

    def _texts(self, row: dict[str, Any]) -> str | None:
        if self.role:
            row["role"] = self.role
        role = row.get("role")
        if role is not None and role not in forms.ROLES:
            return f"with role {role!r}, not document or query"
        return text_fault(row, "text")

    def _declared(self, row: dict[str, Any]) -> str | None:
        """By the kinds of columns that a task's form states, then by its own check."""
        for name, kind in self.form.columns:
            if cause := _KINDS[kind](row, name):
                return cause
        return self.further(row) if self.further else None

    def _corpus(self, row: dict[str, Any]) -> str | None:
        title = row.pop("title", None)
        if isinstance(title, str) and title.strip() and isinstance(row.get("text"), str):
            row["text"] = f"{title} {row['text']}".strip()
        return self._queries(row)

    def _queries(self, row: dict[str, Any]) -> str | None:
        return _id(row, "id") or text_fault(row, "text") or self._again(row["id"], "with a repeated id")

    def _judgements(self, row: dict[str, Any]) -> str | None:
        if cause := _id(row, "query_id") or _id(row, "corpus_id") or number_fault(row, "score"):
            return cause
        for column, known in self.ids.items():
            if hash(row[column]) not in known:
                return f"with a {column} that the {'queries do' if column == 'query_id' else 'corpus does'} not have"
        return self._again((row["query_id"], row["corpus_id"]), "judging a pair twice")

    def _again(self, value: Any, cause: str) -> str | None:
        number = hash(value)
        if number in self.seen:
            return cause
        self.seen.add(number)
        return None


def text_fault(row: Mapping[str, Any], name: str) -> str | None:
    if name not in row:
        return f"no column {name!r}"
    value = row[name]
    if not isinstance(value, str):
        if value is None or isinstance(value, float) and math.isnan(value):
            return f"with {'nothing' if value is None else 'NaN'} in {name!r}"
        return f"with {_kind(value)} in {name!r} instead of text"
    if not value.strip():
        return f"with empty text in {name!r}"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"with a lone surrogate (half a character) in {name!r}"
    return None


def number_fault(row: dict[str, Any], name: str) -> str | None:
    if name not in row:
        return f"no column {name!r}"
    value = row[name]
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        return f"with no number in {name!r}"
    if not math.isfinite(number):
        return f"with {'NaN' if math.isnan(number) else 'infinity'} in {name!r}"
    row[name] = number
    return None


def _id(row: dict[str, Any], name: str) -> str | None:
    if name not in row:
        return f"no column {name!r}"
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return f"with no id in {name!r}"
    row[name] = str(value)
    return None


def _kind(value: Any) -> str:
    """What kinds of value a column must not mix, in words."""
    for kind, types in (("a truth value", bool), ("a number", (int, float)), ("text", str), ("bytes", bytes)):
        if isinstance(value, types):
            return kind
    return "a list" if isinstance(value, (list, tuple)) else "a mapping" if isinstance(value, dict) else "a value"


def _any(row: Mapping[str, Any], name: str) -> str | None:
    return None if name in row else f"no column {name!r}"


_KINDS = {"text": text_fault, "number": number_fault, "any": _any}
"""Kind of column -> what is wrong with a row's value, or None."""


def _missing(needed: Sequence[str], columns: Iterable[str], label: str) -> DataError:
    gone = [c for c in needed if c not in set(columns)]
    return DataError(
        f"{label}: no column {' and '.join(map(repr, gone))}; it has {names_of(columns)}",
        hint=f"say which column it is: `columns: {{{gone[0]}: THEIRS}}`" if gone else None,
    )


def _mapped(row: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A row under our names."""
    if plan.form == "retrieval":
        for ours, theirs in _ALIASES.items():
            if ours not in row and theirs in row:
                row[ours] = row.pop(theirs)
    return rename(row, plan.columns)


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """{ours: theirs} applied to a row; columns not named keep their name, unless one of ours takes it."""
    if not columns:
        return dict(row)
    taken = set(columns.values()) | set(columns)
    result = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {**result, **{name: value for name, value in row.items() if name not in taken}}


def rename_table(table: datasets.Dataset, columns: Mapping[str, str], label: str) -> datasets.Dataset:
    """`rename` for a whole table, without a copy."""
    for theirs in columns.values():
        if theirs not in table.column_names:
            raise _missing([theirs], table.column_names, label)
    names = {theirs: ours for ours, theirs in columns.items()}
    dropped = [c for c in table.column_names if c in columns and c not in names]
    return table.remove_columns(dropped).rename_columns({t: o for t, o in names.items() if t != o})


def _canonical(row: Mapping[str, Any]) -> bytes:
    """The bytes of a row that its fingerprint covers: sorted names, nothing for values that are not there."""
    text = json.dumps(_plain(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _plain(value: Any) -> Any:
    """A value as every file format gives it: whole numbers are integers, as a column of CSV, JSON or Arrow may hold
    1 or 1.0 for the same thing; missing and null are the same."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        if block := _block(value):
            return block
        if set(map(type, value)) <= {int, str}:  # as most are: tokens
            return list(value)
        return [_plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, np.ndarray):
        return _block(value) or _plain(value.tolist())
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _block(value: Any) -> list[Any] | None:
    """The shape and the digest of many numbers in rows of one length: pixels, whose text would be many times as long.

    None of anything else, and of numbers that 64 bits do not hold.
    """
    first, depth = value, 0
    while isinstance(first, (list, tuple, np.ndarray)) and len(first):
        first, depth = first[0], depth + 1
    if not isinstance(first, (int, float, np.number)) or isinstance(first, bool) or depth == 1 and len(value) < _BLOCK:
        return None
    try:
        numbers = np.asarray(value)
    except ValueError:  # rows of other lengths
        return None
    if numbers.dtype.kind not in "iuf" or numbers.size < _BLOCK:
        return None
    whole = numbers.dtype.kind != "f" or bool((numbers == np.floor(numbers)).all())
    if whole and (numbers.max() >= 2**63 or numbers.min() < -(2**63)):
        return None
    numbers = np.ascontiguousarray(numbers, "<i8") if whole else numbers.astype("<f8", "C") + 0.0  # no negative zero
    return [*numbers.shape, hashlib.sha256(numbers).hexdigest()]


def fingerprint_of(table: datasets.Dataset, key: Mapping[str, Any]) -> str:
    """sha256 over the rows of a table, kept under the key so that it is not computed for every run."""
    name = hashlib.sha256(canonical_json({"of": key, "block": _BLOCK})).hexdigest()[:32]
    path = home() / "data" / "fingerprints" / f"{name}.json"
    try:
        return read_sealed(path)["fingerprint"]
    except (OSError, ValueError, KeyError):
        pass
    digest = hashlib.sha256()
    for row in iterate(table, arrays=True):
        digest.update(_canonical(row))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"fingerprint": digest.hexdigest(), "rows": table.num_rows})
    except OSError:
        pass  # only a saving of time
    return digest.hexdigest()


class ArrowFile:
    """An Arrow stream written in batches; its schema grows as columns and wider numbers turn up.

    `datasets.Dataset.from_file` memory-maps it. Columns may be missing in some rows (null there). A column with a whole
    number that 64 bits do not hold is one of texts.

    Args:
        classes: columns that hold the numbers of named classes -> their `datasets` feature, which is kept in the file.
    """

    def __init__(self, path: Path, classes: Mapping[str, Any] | None = None):
        self.path, self.classes = path, dict(classes or {})
        self.as_text: set[str] = set()
        self.schema: pa.Schema | None = None
        self.kinds: dict[str, str] = {}
        self.batch: list[tuple[int, dict[str, Any]]] = []
        self.held = 0
        self.writer: Any = None

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        if self.writer is not None:
            self.writer.close()

    def misfit(self, row: Mapping[str, Any]) -> str | None:
        """Why a row does not fit the columns so far."""
        for name, value in row.items():
            if value is not None and (kind := _kind(value)) != (known := self.kinds.setdefault(name, kind)):
                return f"with {kind} in {name!r}, where others have {known}"
        return None

    def add(self, number: int, row: dict[str, Any]) -> None:
        self.batch.append((number, row))
        self.held += sum(map(_bytes_in, row.values()))
        if len(self.batch) >= _BATCH or self.held >= _HELD:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self.batch:
            return
        names = list(dict.fromkeys(name for _, row in self.batch for name in row))
        arrays = []
        for name in names:
            values = [row.get(name) for _, row in self.batch]
            try:
                arrays.append(self._array(name, values))
            except (pa.ArrowException, TypeError, ValueError) as error:
                low, high = self.batch[0][0], self.batch[-1][0]
                raise DataError(f"column {name!r}, rows {low} to {high}, cannot be stored: {error}") from error
        self.batch, self.held = [], 0
        self.write(pa.Table.from_arrays(arrays, names=names))

    def _array(self, name: str, values: list[Any]) -> pa.Array:
        import pyarrow as pa

        if name not in self.as_text:
            if all(isinstance(value, np.ndarray) for value in values) and len({value.shape for value in values}) == 1:
                return array_column(np.stack(values))
            try:
                return pa.array(values)
            except OverflowError:
                self.as_text.add(name)
        return _text_array(values)

    def write(self, table: pa.Table) -> None:
        """Add a table as it is."""
        import pyarrow as pa

        if self.schema is None:
            import datasets

            kept = datasets.Features(self.classes).arrow_schema.metadata if self.classes else {}
            schema = table.schema.with_metadata({**(table.schema.metadata or {}), **kept})
        else:
            try:
                before = pa.schema([f.with_type(pa.string()) if f.name in self.as_text else f for f in self.schema])
                known = before.with_metadata(self.schema.metadata)
                schema = pa.unify_schemas([known, table.schema], promote_options="permissive")
            except pa.ArrowException as error:
                raise DataError(f"{self.path.name}: columns change their kind: {error}") from error
        if schema != self.schema:
            self._widen(schema)
        self.writer.write_table(_cast(table, schema))

    def _widen(self, schema: pa.Schema) -> None:
        """Start the file, or start it again under a wider schema with what it holds."""
        import pyarrow as pa

        old = None
        if self.writer is not None:
            self.writer.close()
            old = self.path.with_suffix(".old")
            self.path.rename(old)
        self.schema, self.writer = schema, pa.ipc.new_stream(str(self.path), schema)
        if old is not None:
            with pa.memory_map(str(old)) as file:
                for batch in pa.ipc.open_stream(file):
                    self.writer.write_table(_cast(pa.Table.from_batches([batch]), schema))
            old.unlink()


def array_column(values: np.ndarray) -> pa.Array:
    """A NumPy array as an Arrow column: nested fixed-size lists, one list a dimension after the first."""
    import pyarrow as pa

    if values.dtype.kind not in "USmM" and not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _bytes_in(value: Any) -> int:
    """Bytes of a file that stands in a row, by itself or beside its name."""
    if isinstance(value, bytes):
        return len(value)
    return sum(map(_bytes_in, value.values())) if isinstance(value, dict) else getattr(value, "nbytes", 0)


def named_columns(features: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a data set that hold the numbers of named classes."""
    return {name: feature for name, feature in features.items() if class_names(feature)}


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    def column(field: pa.Field) -> Any:
        if field.name not in table.column_names:
            return pa.nulls(table.num_rows, field.type)
        given = table[field.name]
        as_text = pa.types.is_string(field.type) and pa.types.is_nested(given.type)  # which Arrow does not cast
        return _text_array(given.to_pylist()) if as_text else given.cast(field.type)

    return pa.Table.from_arrays([column(field) for field in schema], schema=schema)


def _text_array(values: Iterable[Any]) -> pa.Array:
    """Values as texts: anything else than a text as JSON."""
    import pyarrow as pa

    given = (v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values)
    return pa.array(given, pa.string())


def iterate(table: datasets.Dataset, arrays: bool = False) -> Iterator[dict[str, Any]]:
    """Plain rows, a batch at a time; nothing is decoded (images stay bytes).

    A batch of large rows has few: pixels as Python's values take forty times their bytes.

    Args:
        arrays: leave matrices of numbers, where all of a batch have one shape, as arrays.
    """
    fit = _BYTES * table.data.num_rows // max(1, table.data.nbytes)
    for batch in table.with_format("arrow").iter(max(1, min(_BATCH, fit))):
        columns = [dense(column.combine_chunks()) for column in batch.columns]
        values = columns if arrays else [x.tolist() if isinstance(x, np.ndarray) else x for x in columns]
        yield from (dict(zip(batch.column_names, row)) for row in zip(*values))


def named_rows(table: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """The same, with the names of classes in place of their numbers."""
    names = {name: class_names(feature) for name, feature in named_columns(table.features).items()}
    for row in iterate(table):
        yield {**row, **{name: named(row[name], of) for name, of in names.items()}}


def values_of(table: datasets.Dataset, name: str) -> Iterator[Any]:
    for batch in table.select_columns([name]).with_format("arrow").iter(10 * _BATCH):
        yield from batch[name].to_pylist()


def named_values(table: datasets.Dataset, name: str) -> Iterator[Any]:
    """The values of a column, with the names of classes in place of their numbers."""
    of = class_names(table.features[name])
    return (named(value, of) if of else value for value in values_of(table, name))


def names_of(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
