"""A student that is rows: named splits as Parquet, in the layout by which `datasets.load_dataset` opens a folder.

    config.json                           `kdhub`, `task`, `splits` in order, and what the card shall say (`about`)
    data/train-00000-of-00001.parquet     one file a split; a split is named by letters, digits, `_` and `.`

Rows are written from memory-mapped tables and read back as such; none of it holds a whole split. Saved, loaded and
saved again, the files have the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.data.prepare import names_of
from kdhub.data.sources import shards
from kdhub.errors import DataError, UntrustedError
from kdhub.files import write_json
from kdhub.student import Student

if TYPE_CHECKING:
    import datasets

CONFIG = "config.json"
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
"""The Hub's `size_categories`, each ten times the one before."""

_ROWS = 1000  # of one row group: part of the files' bytes
_SPLIT = re.compile(r"\w+(\.\w+)*")


class DatasetStudent(Student):
    """Rows as a student.

    Args:
        task: name of the task that opens it.
        splits: name -> rows.
        about: keys of the card's front matter that only people know: `language`, `task_categories`, ...

    Attributes:
        splits: may be changed until it is saved.
    """

    kind = "dataset"

    def __init__(
        self,
        task: str,
        splits: Mapping[str, datasets.Dataset] | None = None,
        about: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
    ):
        super().__init__(start)
        self.task, self.splits = task, dict(splits or {})
        self.about = {key: value for key, value in (about or {}).items() if value}

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(rows):,} rows" for name, rows in self.splits.items())
        return f"<{type(self).__name__} of {self.task}: {splits or 'no rows yet'}>"

    @classmethod
    def load(cls, folder: Path) -> DatasetStudent:
        """A student from its folder.

        Raises:
            DataError: its files cannot be read; says which. UntrustedError: its pictures lie elsewhere.
        """
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            task, names, about = config["task"], list(config["splits"]), dict(config["about"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is not a data set that kdhub saved: {CONFIG} cannot be read") from error
        found = splits_in(folder)
        if found.keys() != set(names):
            raise DataError(f"{folder} has the splits {names_of(found)}, its {CONFIG} names {names_of(names)}")
        for name, table in found.items():
            if column := next(_naming(table), None):
                raise UntrustedError(
                    f"{folder}: split {name!r} names files in {column!r} instead of holding them",
                    hint="they would be read from this machine, or from any address",
                )
        return cls(task, {name: found[name] for name in names}, about)

    def save(self, folder: Path) -> None:
        """
        Raises:
            DataError: a split without rows, or of a name that the `datasets` library does not take.
        """
        write_json(folder / CONFIG, {"kdhub": 1, "task": self.task, "splits": list(self.splits), "about": self.about})
        for name, table in self.splits.items():
            if not _SPLIT.fullmatch(name):
                raise DataError(
                    f"a data set cannot be published with a split {name!r}",
                    hint="name it by letters, digits and underscores: in a recipe, the key below `data`",
                )
            if not len(table):
                raise DataError(f"split {name!r} has no rows")
            path = folder / _file(name)
            path.parent.mkdir(exist_ok=True)
            _write(table, path)

    def costs(self, folder: Path) -> dict[str, float]:
        return {"rows": sum(len(table) for table in self.splits.values()), **super().costs(folder)}

    def front_matter(self) -> dict[str, Any]:
        files = [{"split": name, "path": _file(name)} for name in self.splits]
        digits = len(str(sum(len(table) for table in self.splits.values())))
        size = SIZES[min(max(digits - 3, 0), len(SIZES) - 1)]
        return {
            "configs": [{"config_name": "default", "data_files": files}],
            "size_categories": [size],
            **self.about,
        }

    def usage(self) -> str:
        lines = ["from datasets import load_dataset", 'rows = load_dataset("{path}")']
        return "\n".join([*lines, *(f"print(rows[{name!r}][0])" for name in list(self.splits)[:1])])

    @property
    def library(self) -> str:
        return "datasets"


def splits_in(folder: Path) -> dict[str, datasets.Dataset]:
    """The rows of a folder in this layout, memory-mapped; empty where it has none. What metrics of files begin with."""
    return {name: source.table() for name, source in shards(folder).items()}


def _naming(table: datasets.Dataset) -> Iterator[str]:
    """The columns of pictures, sounds and the like of which the library would open files elsewhere."""
    from datasets.features.features import require_storage_embed

    for name, feature in table.features.items():
        if require_storage_embed(feature) and any(map(_names_files, table.data.column(name).chunks)):
            yield name


def _names_files(array: Any) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(array.type):
        inner = {array.type.field(i).name: array.field(i) for i in range(array.type.num_fields)}
        if {"bytes", "path"} <= inner.keys():
            return pc.any(pc.and_(pc.is_null(inner["bytes"]), pc.is_valid(inner["path"]))).as_py() or False
        return any(map(_names_files, inner.values()))
    if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        return _names_files(array.flatten())
    return pa.types.is_string(array.type) and array.null_count < len(array)  # as older files have their paths


def _file(split: str) -> str:
    return f"data/{split}-00000-of-00001.parquet"


def _write(table: datasets.Dataset, path: Path) -> None:
    """Parquet with the library's own schema (classes, images); row groups do not depend on where the rows come from."""
    import pyarrow.parquet as pq
    from datasets.table import embed_table_storage, table_cast

    schema = table.features.arrow_schema
    with pq.ParquetWriter(path, schema) as file:
        for batch in table.with_format("arrow").iter(_ROWS):
            file.write_table(embed_table_storage(table_cast(batch, schema)))
