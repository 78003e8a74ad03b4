"""Data: named splits of plain rows, from any source, checked once and memory-mapped afterwards.

The form of rows is recognised by their columns (`kdhub.data.forms`).

Rows are read once, one at a time, checked, and written to an Arrow file below `$KDHUB_HOME/data`, named by the
content of their source; later they are memory-mapped from there. Nothing holds a whole split; what grows with the
number of rows is at most an index (8 bytes a row for a filter or a sample, some 70 bytes an id for retrieval ids).

    Data(name, {"train": source, ...})        a plugin's data set; `Source` is what one split is read from
    Data.from_rows(name, {"train": function}) the short way, for a generator of dictionaries
"""

from __future__ import annotations

import logging
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kdhub.data import forms
from kdhub.data.prepare import (
    SCHEMA,
    BadRow,
    Plan,
    Prepared,
    RowSource,
    Source,
    TableSource,
    fingerprint_of,
    iterate,
    named_values,
    names_of,
    prepare,
    rename,
    rename_table,
    values_of,
)
from kdhub.errors import DataError, RecipeError, UsageError, close_matches
from kdhub.rows import class_names, named

if TYPE_CHECKING:
    import datasets

    from kdhub.data.shared import Shared

logger = logging.getLogger("kdhub")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What a recipe may say about any data set.

    Attributes:
        split: the split to use, when not the usual one of the place it is used in.
        columns: {our name: theirs}; other columns keep their names.
        format: one of `kdhub.data.forms.names()`, when the columns should not decide.
        role: gives every text this role: "document" or "query".
        where: {column: value or values}: only these rows.
        exclude: {column: value or values}: all rows but these.
        limit: the first so many rows.
        sample: so many rows chosen at random (all when there are fewer), in their order.
        sample_seed: of the sample; not the run's, so that seeds share rows.
        on_bad_rows: "stop", or "skip": leave bad rows out and say how many.
    """

    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    role: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    exclude: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    on_bad_rows: str = "stop"

    def __post_init__(self):
        problems = []
        known = (("format", forms.names), ("role", lambda: forms.ROLES), ("on_bad_rows", lambda: ("stop", "skip")))
        for name, choices_of in known:
            value = getattr(self, name)
            if value is not None and value not in (choices := choices_of()):
                problems.append(f"data option {name!r} is {value!r}, should be one of {', '.join(choices)}")
        for name in ("limit", "sample", "sample_seed"):
            value = getattr(self, name)
            least = 0 if name == "sample_seed" else 1
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                problems.append(f"data option {name!r} is {value!r}, should be a whole number from {least}")
        for name in ("columns", "where", "exclude"):
            if not isinstance(getattr(self, name), Mapping):
                problems.append(f"data option {name!r} is {getattr(self, name)!r}, should be a mapping of columns")
        if problems:
            raise RecipeError(problems)

    @property
    def selects(self) -> bool:
        """True when it takes fewer rows than there are."""
        return bool(self.where or self.exclude or self.limit or self.sample)


def parse_source(text: str) -> tuple[str | None, str]:
    """Kind and argument of a data set as people write it.

    `-` is standard input; `./x`, `../x`, `/x`, `~/x` a local file or folder; `kind:argument`; `org/name[@revision]`
    the Hub; a bare name (kind None) is for the catalogue, or a kind that takes no argument.
    """
    if text in ("-", "stdin"):
        return "stdin", ""
    # A local path is marked as one, so that it can never shadow a Hub name.
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        return "path", text
    kind, colon, argument = text.partition(":")
    if colon:
        return kind, argument
    return ("hf", text) if "/" in text else (None, text)


class Data:
    """Named splits of rows.

    Args:
        name: as reports and cards show it.
        sources: split -> `Source`, or a function that gives them when the splits are known only later.
        format: one of `kdhub.data.forms.names()` for every split, {split: format}, or None: by the columns.
        licence: of the rows, as stated by their owner.
        fingerprints: split -> the fingerprint its rows must have (a catalogue entry states them).
        ref: the text that names the same rows again, when `name` does not; `made:...` for those that a method makes
            itself, which no text names.
        tags: see `kdhub.specs.Spec`; those of its kind are added where it is opened by name.
        shared: what rows have in common and name (`kdhub.data.shared`): there before a row is read.
        withheld: why its rows should not be published, in one line (`kdhub.student.Student.withheld`).

    Attributes:
        made_of: the data sets that its kind opened to make its rows; what they left out is `skipped` here too.
    """

    made_of: Sequence[Data] = ()

    def __init__(
        self,
        name: str,
        sources: Mapping[str, Source] | Callable[[], Mapping[str, Source]],
        *,
        format: str | Mapping[str, str] | None = None,
        licence: str = "",
        fingerprints: Mapping[str, str] | None = None,
        options: DataOptions | None = None,
        ref: str | None = None,
        tags: Sequence[str] = (),
        shared: Sequence[Shared] = (),
        withheld: str = "",
    ):
        self.shared, self.withheld = tuple(shared), withheld
        self.name, self.licence, self.ref, self.tags = name, licence, ref or name, tuple(tags)
        self.options = options or DataOptions()
        self._given, self._formats = sources, format
        self._stated = dict(fingerprints or {})
        self._known: Mapping[str, Source] | None = None if callable(sources) else sources
        self._prepared: dict[str, Prepared] = {}
        self._views: dict[str, tuple[datasets.Dataset, str]] = {}

    def __repr__(self) -> str:
        return f"Data({self.ref!r})"

    @classmethod
    def from_rows(
        cls,
        name: str,
        splits: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]],
        *,
        key: Mapping[str, Any],
        **about: Any,
    ) -> Data:
        """A data set of generators: split -> a function that yields dictionaries.

        `key` says what the rows depend on (versions, seeds); equal keys mean equal rows and are made once.
        """
        sources = {
            split: RowSource(rows, {"name": name, "split": split, **key}, f"{name}, split {split}")
            for split, rows in splits.items()
        }
        return cls(name, sources, **about)

    def remade(
        self,
        name: str,
        rows: Callable[[str], Iterable[Mapping[str, Any]]],
        splits: Sequence[str],
        *,
        key: Mapping[str, Any],
    ) -> Data:
        """A data set whose splits are made of this one's: split -> rows. `key` says what else they depend on."""
        of = {split: self.fingerprint(split) for split in splits}
        made = {split: lambda s=split: rows(s) for split in splits}
        return Data.from_rows(
            name, made, key={"of": of, **key}, licence=self.licence, shared=self.shared, withheld=self.withheld
        )

    @classmethod
    def from_dataset(cls, name: str, splits: Mapping[str, datasets.Dataset], **about: Any) -> Data:
        """A data set of `datasets.Dataset` objects; their own fingerprints name the rows."""
        sources = {
            split: TableSource(table, {"kind": "dataset", "id": table._fingerprint}, f"{name}, split {split}")
            for split, table in splits.items()
        }
        return cls(name, sources, **about)

    @classmethod
    def join(cls, parts: Sequence[tuple[Data, str]], *, name: str | None = None) -> Data:
        """The texts of several splits, one after the other, as split `train`.

        Args:
            parts: (data set, split); any form that has texts. Options of each part hold.
        """
        name = name or "+".join(dict.fromkeys(data.name for data, _ in parts))
        licences = dict.fromkeys(data.licence for data, _ in parts if data.licence)
        return cls(name, {"train": _Joined(parts, name)}, format="texts", licence="; ".join(licences))

    def with_options(self, options: DataOptions | None = None, **changes: Any) -> Data:
        """The same data set seen through options (`DataOptions`, or some of its fields)."""
        options = replace(options or self.options, **changes)
        sources, formats, stated = self._given, self._formats, self._stated
        if stated and (options.columns or options.format or options.role):
            # The stated fingerprints are those of the entry's own rows: check these first, then look at them again.
            base = self.with_options(DataOptions(on_bad_rows=options.on_bad_rows))
            sources, formats, stated = {s: _Split(base, s) for s in self.splits}, None, {}
        seen = Data(
            self.name,
            sources,
            format=options.format or formats,
            licence=self.licence,
            fingerprints=stated,
            options=options,
            ref=self.ref,
            tags=self.tags,
            shared=self.shared,
            withheld=self.withheld,
        )
        seen.made_of = self.made_of
        return seen

    # ---- what there is

    @property
    def sources(self) -> Mapping[str, Source]:
        if self._known is None:
            self._known = self._given()  # type: ignore[operator]
        return self._known

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.sources)

    @property
    def format(self) -> str:
        """The form of the whole: "retrieval" when it has a corpus and queries, else that of its first split."""
        return "retrieval" if self._has_corpus else self.form(self.splits[0])

    def form(self, split: str) -> str:
        """The form of one split; a data set may train on texts and be judged by retrieval."""
        return self._declared(split) or self._open(split).form

    @property
    def _has_corpus(self) -> bool:
        return {"corpus", "queries"} <= set(self.splits)

    def _declared(self, split: str) -> str | None:
        given = self._formats if isinstance(self._formats, str) else (self._formats or {}).get(split)
        return given or ("retrieval" if self._has_corpus else None)

    def pick(self, *wanted: str) -> str:
        """The split that `options` name, else the first of `wanted` there is, else the only one.

        Raises:
            UsageError: there is none of them.
        """
        names = [self.options.split] if self.options.split else list(wanted)
        for name in names:
            for alias in (name, {"validation": "dev", "dev": "validation"}.get(name, name)):
                if alias in self.splits:
                    return alias
        if not self.options.split and (len(self.splits) == 1 or not wanted):
            return self.splits[0]
        raise UsageError(
            f"data set {self.name!r} has no split {' or '.join(map(repr, names))}; it has {names_of(self.splits)}",
            hint="name one with `split:`",
        )

    # ---- rows

    def split(self, name: str) -> datasets.Dataset:
        """The rows of a split, memory-mapped; nothing is read before this is called.

        `where`, `exclude`, `limit` and `sample` hold, except for retrieval, whose parts belong together
        (see `retrieval`).

        Raises:
            DataError: bad rows (unless skipped), no rows, a missing column, a wrong fingerprint.
        """
        return self._view(name)[0]

    def whole(self, name: str) -> datasets.Dataset:
        """All rows of a split by their own columns, whatever options choose and rename: of one that says what the rows
        of others are about (`Task.aside`)."""
        return self.with_options(DataOptions(on_bad_rows=self.options.on_bad_rows)).split(name)

    def fingerprint(self, name: str) -> str:
        """sha256 over the content of the rows in their order, whatever file format or columns' order they came in.

        It covers every column that has a value, in rows taken in order.
        """
        return self._view(name)[1]

    def texts(self, name: str) -> datasets.Dataset:
        """The texts of a split of any form, as `text` and, where it is known, `role`.

        A retrieval corpus gives documents, its queries give queries, pairs give both sides.

        Raises:
            DataError: the split has no texts.
        """
        import datasets

        form = self.form(name)
        if form == "texts":
            return self.split(name)
        if columns := forms.of(form).texts:
            rows = self.split(name)
            return datasets.concatenate_datasets([rows.select_columns([c]).rename_column(c, "text") for c in columns])
        if form == "retrieval" and name in ("corpus", "queries"):
            role = "document" if name == "corpus" else "query"
            source = _Split(self.with_options(DataOptions(on_bad_rows=self.options.on_bad_rows)), name)
            options = replace(self.options, format="texts", role=self.options.role or role, columns={})
            return Data(self.name, {name: source}, format="texts", options=options).split(name)
        have = self.split(name).column_names
        if form == "retrieval":
            raise DataError(
                f"data set {self.name!r}, split {name!r}, holds judgements, not texts",
                hint="its texts are the splits corpus and queries",
            )
        raise DataError(
            f"data set {self.name!r}, split {name!r}, has no texts: its columns are {names_of(have)}",
            hint="say which column holds the texts: `columns: {text: THEIRS}`",
        )

    def expect(self, name: str, form: str) -> None:
        """Refuse a split that is not of this form.

        Raises:
            DataError: names both forms and the columns.
        """
        if (found := self.form(name)) == form:
            return
        need = ", ".join(forms.needed(form)) or "the splits corpus and queries"
        raise DataError(
            f"data set {self.name!r}, split {name!r}, is {found}, not {form}: "
            f"its columns are {names_of(self.split(name).column_names)}, {form} has {need}",
            hint="map the columns: `columns: {OURS: THEIRS}`" if form != "retrieval" else None,
        )

    def retrieval(self, name: str) -> Retrieval:
        """Corpus, judged queries and judgements of one judgement split; `limit` and `sample` choose queries.

        Raises:
            DataError: the split holds no judgements.
            UsageError: options that would tear corpus and judgements apart.
        """
        if self.form(name) != "retrieval" or name in ("corpus", "queries"):
            raise DataError(f"data set {self.name!r}, split {name!r}, holds no judgements of a retrieval set")
        if self.options.where or self.options.exclude:
            raise UsageError(
                f"data set {self.name!r} is for retrieval: `where` and `exclude` would separate its parts",
                hint="`limit` and `sample` choose queries",
            )
        qrels: dict[str, dict[str, float]] = {}
        for row in iterate(self.split(name).select_columns(["query_id", "corpus_id", "score"])):
            qrels.setdefault(row["query_id"], {})[row["corpus_id"]] = row["score"]
        queries = self.split("queries")
        judged = [i for i, id in enumerate(values_of(queries, "id")) if id in qrels]
        chosen = queries.select(_choose(judged, self.options))
        if self.options.limit or self.options.sample:
            qrels = {id: qrels[id] for id in values_of(chosen, "id")}
        return Retrieval(self.split("corpus"), chosen, qrels)

    def source(self, name: str) -> dict[str, Any]:
        """Which source the rows of a split came from: kind, and file with sha256, or repository with commit."""
        prepared = self._open(name)
        beside = {"shared": [one.name for one in self.shared]} if self.shared else {}
        record = {k: v for k, v in prepared.record.items() if k != "label"}
        return {**record, "rows": prepared.table.num_rows, **beside}

    @property
    def skipped(self) -> dict[str, dict[str, int]]:
        """Split -> cause -> number of rows left out, for the splits opened so far; those of the splits that these are
        made of, which have the same name, among them."""
        found: dict[str, Counter[str]] = {}
        for name, prepared in self._prepared.items():
            found[name] = Counter(prepared.skipped)
            for part in self.made_of:
                found[name].update(part.skipped.get(name, {}))
        return {name: dict(causes) for name, causes in found.items() if causes}

    # ---- how

    def _view(self, name: str) -> tuple[datasets.Dataset, str]:
        if name not in self._views:
            prepared, options = self._open(name), self.options
            if not options.selects or prepared.form == "retrieval":
                self._views[name] = prepared.table, prepared.fingerprint()
            else:
                rows = _matching(prepared.table, options, f"data set {self.name!r}, split {name!r}")
                table = prepared.table.select(_choose(rows, options))
                view = [dict(options.where), dict(options.exclude), options.limit, options.sample, options.sample_seed]
                self._views[name] = table, fingerprint_of(table, {"of": prepared.key, "view": view})
        return self._views[name]

    def _open(self, name: str) -> Prepared:
        if name not in self._prepared:
            if name not in self.sources:
                raise UsageError(
                    f"data set {self.name!r} has no split {name!r}; it has {names_of(self.splits)}",
                    hint="name one with `split:`",
                )
            for one in self.shared:  # rows that were kept name what may be gone
                one.name  # noqa: B018
            self._prepared[name] = self._prepare(name)
        return self._prepared[name]

    def _prepare(self, name: str) -> Prepared:
        source, options, form = self.sources[name], self.options, self._declared(name)
        part = None
        if form == "retrieval":
            part = name if name in ("corpus", "queries") else "judgements"
        # The first rows are enough when nothing else chooses: a trial on a huge file reads just those.
        head = None if options.where or options.exclude or form == "retrieval" else options.limit
        key = {
            "schema": SCHEMA,
            "source": dict(source.key()),
            "format": form,
            "part": part,
            "columns": dict(options.columns),
            "role": options.role,
            "on_bad_rows": options.on_bad_rows,
            "head": head,
        }
        if form is None:  # the columns decide, among the forms that are known here
            key["forms"] = forms.names()
        ids = None
        if part == "judgements":
            parts = {"query_id": self._open("queries"), "corpus_id": self._open("corpus")}
            key["ids"] = [prepared.key for prepared in parts.values()]
            ids = {column: prepared.table for column, prepared in parts.items()}
        columns = source.columns()
        if form is None and columns is not None:
            form = forms.form_of(rename(dict.fromkeys(columns), options.columns))
        table = source.table() if form == "rows" and columns is not None else None
        if table is not None:  # nothing to check, so no copy
            table = rename_table(table, options.columns, source.label)
            if not table.num_rows:
                raise DataError(f"{source.label} is empty")
            prepared = Prepared(table, "rows", {"label": source.label, **source.record()}, {}, key)
        else:
            checks = Plan(form, part, options.columns, options.role, options.on_bad_rows, head, ids)
            prepared = prepare(source, key, checks)
        if name in self._stated and not head:
            self._check_fingerprint(name, prepared)
        return prepared

    def _check_fingerprint(self, name: str, prepared: Prepared) -> None:
        stated, found = self._stated[name], prepared.fingerprint()
        if stated == found:
            return
        what = f"data set {self.name!r}, split {name!r}: rows of {prepared.record.get('label', 'the source')}"
        if prepared.record.get("checked", True) and not prepared.skipped:
            raise DataError(
                f"{what} have fingerprint {found}, the catalogue says {stated}",
                hint="other rows are another entry: correct the entry's fingerprint or its sources",
            )
        prepared.record["matches_entry"] = False
        logger.warning("%s differ from those the catalogue entry was made with", what)


@dataclass(frozen=True)
class Retrieval:
    """One retrieval evaluation.

    Attributes:
        corpus: {id, text}.
        queries: {id, text}, only those with judgements.
        judgements: query id -> corpus id -> score (0 is not relevant).
    """

    corpus: datasets.Dataset
    queries: datasets.Dataset
    judgements: dict[str, dict[str, float]]


class _Split(Source):
    """A split of another data set."""

    def __init__(self, data: Data, split: str):
        self.data, self.name, self.label = data, split, f"data set {data.name!r}, split {split!r}"

    def record(self) -> dict[str, Any]:
        return {**self.data._open(self.name).record, "fingerprint": self.data.fingerprint(self.name)}

    def key(self) -> Mapping[str, Any]:
        return {"kind": "split", "of": self.data._open(self.name).key}

    def columns(self) -> list[str]:
        return self.data.split(self.name).column_names

    def table(self) -> datasets.Dataset:
        return self.data.split(self.name)

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        return enumerate(iterate(self.table()), 1)


class _Joined(Source):
    """The texts of several splits, one after the other."""

    def __init__(self, parts: Sequence[tuple[Data, str]], label: str):
        self.parts, self.label = list(parts), label

    def record(self) -> dict[str, Any]:
        return {
            "kind": "join",
            "parts": [
                {"name": data.name, "split": split, "fingerprint": data.fingerprint(split), **data.source(split)}
                for data, split in self.parts
            ],
        }

    def key(self) -> Mapping[str, Any]:
        return {"kind": "join", "parts": [[d.name, s, d.fingerprint(s)] for d, s in self.parts]}

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        number = 0
        for data, split in self.parts:
            for row in iterate(data.texts(split)):
                number += 1
                source = row.get("source") or data.name
                yield number, {"text": row["text"], "role": row.get("role"), "source": str(source)}


def _matching(table: datasets.Dataset, options: DataOptions, label: str) -> Sequence[int]:
    """Numbers of the rows that `where` and `exclude` leave; classes are named as the file names them, or by number.

    Raises:
        DataError: a column, or a value, that does not occur (a misspelt exclusion would silently exclude nothing),
            or no row left.
    """
    if not options.where and not options.exclude:
        return range(table.num_rows)
    wanted = [(name, _values(value), True) for name, value in options.where.items()]
    wanted += [(name, _values(value), False) for name, value in options.exclude.items()]
    for name, _, _ in wanted:
        if name not in table.column_names:
            raise DataError(f"{label}: no column {name!r} to choose rows by; it has {names_of(table.column_names)}")
    names = {name: class_names(table.features[name]) for name, _, _ in wanted}
    wanted = [(n, [named(v, names[n]) if names[n] and isinstance(v, int) else v for v in vs], i) for n, vs, i in wanted]

    seen: list[set] = [set() for _ in wanted]
    chosen = array("q")
    for number, values in enumerate(zip(*(named_values(table, name) for name, _, _ in wanted))):
        keep = True
        for value, found, (_, those, inside) in zip(values, seen, wanted):
            found.add(value)
            keep = keep and (value in those) == inside
        if keep:
            chosen.append(number)
    for (name, those, _), found in zip(wanted, seen):
        for value in those:
            if value not in found:
                close = close_matches(str(value), map(str, found))
                raise DataError(
                    f"{label}: no row has {value!r} as {name!r}",
                    hint=f"Did you mean {close[0]!r}?" if close else f"it has {names_of(sorted(map(str, found)))}",
                )
    if not chosen:
        raise DataError(f"{label}: `where` and `exclude` leave no row of {table.num_rows}")
    return chosen


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def _choose(rows: Sequence[int], options: DataOptions) -> Sequence[int]:
    """`limit`, then `sample`, of row numbers; in their order."""
    if options.limit:
        rows = rows[: options.limit]
    if options.sample and options.sample < len(rows):
        picked = sorted(random.Random(options.sample_seed).sample(range(len(rows)), options.sample))
        rows = [rows[i] for i in picked]
    return rows
