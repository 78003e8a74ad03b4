"""Classes of models and rows: which ones a fresh head has, and where a label stands among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdhub.errors import DataError, UsageError
from kdhub.student import BuildContext


def classes_for(context: BuildContext) -> list[str]:
    """The teacher's classes, in its order; without one, or where the training rows have others, those of the rows.

    Raises:
        UsageError: neither says any.
    """
    of_rows, classes = context.facts.get("classes"), context.teacher.classes if context.teacher is not None else None
    if not classes or (of_rows and not _are_of(of_rows, classes)):
        classes = of_rows
    if not classes:
        raise UsageError("a fresh classifier needs a teacher or labelled rows to know its classes")
    return list(classes)


def _are_of(rows: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether rows' classes are some of these; numbers are their positions."""
    return set(rows) <= set(classes) or (all(c.isdecimal() for c in rows) and len(rows) <= len(classes))


def label_index(value: Any, classes: Sequence[str]) -> int:
    """The position of a row's label: a number is a position, a text is a name, or a number; -1 for none.

    Raises:
        DataError: no such class.
    """
    if value is None or value == -1:
        return -1
    if isinstance(value, (int, np.integer)):
        if 0 <= value < len(classes):
            return int(value)
    elif value in classes:
        return list(classes).index(value)
    elif isinstance(value, str) and value.isdecimal() and int(value) < len(classes):  # files of texts have no numbers
        return int(value)
    raise DataError(
        f"label {value!r} is not one of the {len(classes)} classes {', '.join(map(repr, classes[:8]))}",
        hint="the model was made for other classes; map the column, or start from another model",
    )
