"""Classes of models and rows, matched by name; and what a model's outputs are: one class, any number, or values.

A number is a name like any other: 1, "1" and 1.0 (as tables with gaps have it) are the class "1". Null, NaN, -1 and an
empty text are no label. The classes of rows stand in the order of the file's own names (`ClassLabel`), else of numbers,
else of texts. Numbers are positions only for a model none of whose classes is called a number, as labels of the Hub are
read; that is logged.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import DataError, UsageError
from kdhub.rows import class_names, named
from kdhub.student import BuildContext

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("kdhub")

MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"
"""What the outputs of a model are, as `problem_type` in the transformers library's configurations and in ours: a logit
for each of any number of labels, or values. Anything else, here "", is one class a row."""
PROBLEMS = (MULTI_LABEL, REGRESSION)
SCORE = "score"
"""The column of values, and the name of the one output of a model of values."""
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
TRUTH = {"true": "1", "false": "0"}
"""Truth values, however a file or a model writes them, and the numbers that stand for them."""


def problem_of(config: Mapping[str, Any]) -> str:
    """What the outputs of a classifier are, by its configuration; a transformers model with one output and nothing
    stated is one of values, as that library has it."""
    stated = config.get("problem_type")
    if stated is None and len(config.get("id2label") or ()) == 1:
        return REGRESSION
    return stated if stated in PROBLEMS else ""


# -- of rows --------------------------------------------------------------------------------------------------


def class_name(value: Any) -> str | None:
    """The name of a row's class, None where it has none."""
    if isinstance(value, bytes):  # as some writers of Parquet leave texts
        value = value.decode(errors="replace")
    if isinstance(value, str):
        name = value if value.strip() else None
        number = bool(name) and NUMBER.fullmatch(name)
        name = name.partition(".")[0] if number and not name.partition(".")[2].strip("0") else name
    elif value is None or isinstance(value, float | np.floating) and math.isnan(value):
        return None
    else:
        whole = isinstance(value, float | np.floating) and float(value).is_integer()
        name = str(int(value) if whole else value)
    return None if name == "-1" else name


def listed(value: Any) -> Any:
    """A list that a table of texts holds as JSON, or as Python writes it; anything else as it is."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        for read in (json.loads, ast.literal_eval):
            # Without commas, as NumPy writes them, Python would join the texts of a list.
            if read is json.loads or not re.search(r"['\"]\s+['\"]", value):
                try:
                    return read(value.strip())
                except (ValueError, SyntaxError):
                    pass
    return value


def labels_in(table: datasets.Dataset, column: str) -> tuple[set[Any], list[str] | None, set[int]]:
    """The different labels of a column, those in lists one by one; the file's own names of classes, if any; and how
    long its lists are, nothing where it has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = class_names(table.features[column])
    values, sizes = table.select_columns([column]).with_format("arrow")[:][column].combine_chunks(), set()
    while pa.types.is_nested(values.type):
        sizes = {size for size in pc.unique(pc.list_value_length(values)).to_pylist() if size is not None}
        values = pc.list_flatten(values)
    found = named(pc.unique(values).to_pylist(), names) if names else pc.unique(values).to_pylist()
    if not sizes and (lists := [read for label in found if isinstance(read := listed(label), list)]):
        sizes, found = set(map(len, lists)), [label for read in lists for label in read]
    return set(found), names, sizes


def classes_of(labels: Iterable[Any], names: Sequence[str] | None = None) -> list[str]:
    """The classes of rows in their order: the file's own, else numbers by value, else texts."""
    if names:
        return list(names)
    labels = set(labels)
    found = {name for label in labels if (name := class_name(label)) is not None}
    if found and {-1, -1.0, "-1"} & labels:
        logger.warning("rows with the label -1 have none, as -1 says in public sets; if it is a class, give it a name")
    alike = Counter(name.strip().casefold() for name in found)
    if twins := sorted(name for name in found if alike[name.strip().casefold()] > 1):
        shown = ", ".join(map(repr, twins[:6]))
        logger.warning("classes that differ in case or white space alone are different classes: %s", shown)
    return sorted(found, key=float) if all(map(NUMBER.fullmatch, found)) else sorted(found)


def surveyed(labels: set[Any], names: Sequence[str] | None, sizes: set[int]) -> dict[str, Any]:
    """`classes` of labels, and `problem` where they are not one class a row (see `labels_in`).

    Lists are any number of labels; where all have as many 0 and 1, or truth values, these say it of each class. Numbers
    with fractions are values, lists of these several values a row.
    """
    numbers = [float(label) for label in labels if (name := class_name(label)) and NUMBER.fullmatch(name)]
    only = bool(numbers) and len(numbers) == sum(class_name(label) is not None for label in labels)
    if only and not names and any(not number.is_integer() for number in numbers):
        many = max(sizes, default=1)
        return {"classes": [SCORE] if many == 1 else [f"{SCORE}-{i}" for i in range(many)], "problem": REGRESSION}
    if sizes and not names and is_one_hot(labels, sizes):
        return {"classes": [str(i) for i in range(max(sizes))], "problem": MULTI_LABEL}
    return {"classes": classes_of(labels, names), **({"problem": MULTI_LABEL} if sizes else {})}


def is_one_hot(labels: Iterable[Any], sizes: set[int]) -> bool:
    """Whether lists of these values and sizes say of each class whether it is one of the row's."""
    labels = set(labels)
    said = all(isinstance(label, bool | float) for label in labels)
    return len(sizes) == 1 and labels <= {0, 1} and (said or max(sizes) > 2)


# -- of models ------------------------------------------------------------------------------------------------


def classes_for(context: BuildContext) -> list[str]:
    """The teacher's classes, in its order; without one, or where the training rows have others, those of the rows.

    Raises:
        UsageError: neither says any.
    """
    return _target_for(context)[0]


def problem_for(context: BuildContext) -> str:
    """What the outputs of a fresh classifier are: with the teacher's classes as for the teacher, else as rows say."""
    return _target_for(context)[1]


def _target_for(context: BuildContext) -> tuple[list[str], str]:
    rows, problem, teacher = context.facts.get("classes"), context.facts.get("problem", ""), context.teacher
    classes = teacher.classes if teacher is not None else None
    if classes:
        theirs = getattr(teacher, "problem", "")
        others = [name for name in rows or () if Targets(classes).named(name) is None]
        if theirs == REGRESSION or not others or _are_positions(rows, classes):
            return list(classes), theirs
        logger.info(
            "%d of the rows' %d classes are not among the teacher's %d: %s; the student has those of the rows",
            len(others), len(rows), len(classes), ", ".join(map(repr, others[:8])),
        )  # fmt: skip
    if not rows:
        raise UsageError("a fresh classifier needs a teacher or labelled rows to know its classes")
    return list(rows), problem


def _are_positions(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether names of rows' classes can only be positions among a model's."""
    if any(map(NUMBER.fullmatch, classes)):
        return False
    return all(name.isdecimal() and int(name) < len(classes) for name in names)


class Targets:
    """What a model should give for rows: for one class its position, -1 for none; for any number of labels 0 or 1 for
    each class, -1 for none stated; for values the value, or values, NaN for none."""

    def __init__(self, classes: Sequence[str], problem: str = ""):
        self.classes, self.problem = list(classes), problem
        # Also as rows are read: a model that learnt "1.0" from a table with gaps knows the class 1.
        self._at = {class_name(name): i for i, name in enumerate(self.classes)}
        self._at |= {name: i for i, name in enumerate(self.classes)}
        self._numbered = any(NUMBER.fullmatch(name) or name.lower() in TRUTH for name in self.classes)
        self._said = False

    @classmethod
    def of(cls, model: Any) -> Targets:
        return cls(model.classes, getattr(model, "problem", ""))

    def __call__(self, rows: Sequence[Mapping[str, Any]], column: str = "label") -> list[Any]:
        """Raises: DataError: labels that are no classes of the model, with how many, or no numbers."""
        if self.problem == REGRESSION:
            return [self._values(row) for row in rows]
        if self.problem != MULTI_LABEL:
            return self.positions([row.get(column) for row in rows])
        return [self._labels(row.get(column)) for row in rows]

    def named(self, name: str) -> int | None:
        """The position of the class of this name; of True also that of `true`, `TRUE` or 1, of False likewise."""
        if name in self._at or name.lower() not in TRUTH:
            return self._at.get(name)
        said = name.lower()
        return next((self._at[n] for n in (said, said.title(), said.upper(), TRUTH[said]) if n in self._at), None)

    def positions(self, labels: Sequence[Any]) -> list[int]:
        """The position of each label."""
        found = [self._position(label) for label in labels]
        if None in found:
            raise self._unknown([label for label, at in zip(labels, found) if at is None], len(labels))
        return found

    def _position(self, label: Any) -> int | None:
        name = class_name(label)
        if name is None:
            return -1
        if (at := self.named(name)) is not None:
            return at
        name = TRUTH.get(name.lower(), name)
        if self._numbered or not name.isdecimal() or int(name) >= len(self.classes):
            return None
        if not self._said:
            self._said = True
            shown = ", ".join(f"{i} for {name!r}" for i, name in enumerate(self.classes[:4]))
            logger.info("labels are numbers without names: %s%s", shown, ", ..." if len(self.classes) > 4 else "")
        return int(name)

    def _labels(self, value: Any) -> np.ndarray:
        value = listed(value)
        if not isinstance(value, list):
            value = None if class_name(value) is None else [value]
        if value is None:
            return np.full(len(self.classes), -1, np.int8)
        if len(self.classes) == len(value) == 2 and all(type(one) is int and one in (0, 1) for one in value):
            raise DataError(
                f"label {value} may say yes or no of each class, or number two classes",
                hint="write truth values (true, false) or the names of classes",
            )
        if len(value) == len(self.classes) and is_one_hot(value, {len(value)}):
            return np.asarray(value, np.int8)
        made = np.zeros(len(self.classes), np.int8)
        made[[at for at in self.positions(value) if at >= 0]] = 1
        return made

    def _values(self, row: Mapping[str, Any]) -> Any:
        column = SCORE if row.get(SCORE) is not None else "label"
        value, many = listed(row.get(column)), len(self.classes)
        given = value if isinstance(value, list) else [value]
        try:
            made = [math.nan if v is None or v == "" else float(v) for v in given]
        except (TypeError, ValueError):
            raise DataError(f"{column} must be a number for a model of values ({column}={value!r})") from None
        if len(made) != many and made != [made[0]] * math.isnan(made[0]):
            raise DataError(f"{column} must be {many} numbers for a model of {many} values ({column}={value!r})")
        return made[0] if many == 1 else np.resize(np.asarray(made, np.float32), many)

    def _unknown(self, labels: Sequence[Any], total: int) -> DataError:
        counts = Counter(map(repr, labels))
        first, others = labels[0], [f"{label} in {n}" for label, n in counts.items() if label != repr(labels[0])][:5]
        listed = ", ".join(map(repr, self.classes[:8])) + (", ..." if len(self.classes) > 8 else "")
        also = f"; also {', '.join(others)}" if others else ""
        counted = f" ({counts[repr(first)]} of {total} labels{also})" if total > 1 else ""
        return DataError(
            f"label {first!r} is not one of the {len(self.classes)} classes {listed}{counted}",
            hint="the model was made for other classes: map the column, name the classes alike, or take another model",
        )


def label_index(value: Any, classes: Sequence[str]) -> int:
    """The position of a row's class, -1 for none.

    Raises:
        DataError: no such class.
    """
    return Targets(classes).positions([value])[0]


def missing(labels: np.ndarray) -> np.ndarray:
    """Which rows have no label, by what `Targets` gives for them."""
    none = np.isnan(labels) if np.issubdtype(labels.dtype, np.floating) else labels < 0
    return none.any(axis=1) if none.ndim > 1 else none
