"""Labels that people give rows in a CSV of the run folder: written when they are asked for, read when they are there.

    row,text,label
    17,"It rained all day.",
    23,"What a show!",

`row` and what is shown beside it stay as they are; `label` is filled in. So one can sort the file, open it in a
spreadsheet and save it again: with a mark at its start, or semicolons or tabs in place of commas.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdhub.errors import AwaitingError, DataError
from kdhub.files import atomic_write
from kdhub.rows import SHOWN

ROW, LABEL = "row", "label"

Asked = Mapping[int, Mapping[str, Any]]
"""Number of a row -> what people are shown of it."""


def holds(path: Path, numbers: Collection[int]) -> bool:
    """Whether a file has any of these rows: rows are added together."""
    return path.exists() and any(row[ROW].strip() in set(map(str, numbers)) for row in _parsed(path, _text(path)))


def write(path: Path, asked: Asked) -> None:
    """Add rows to a file, after those that it has."""
    text = _text(path) if path.exists() else ""
    given = _parsed(path, text) if text.strip() else []
    known = [name for name in (given[0] if given else ()) if name not in (ROW, LABEL)]
    shown = list(dict.fromkeys([*known, *(name for values in asked.values() for name in values)]))
    made = io.StringIO()
    writer = csv.DictWriter(made, [ROW, *shown, LABEL], restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*given, *({ROW: number, **values} for number, values in asked.items())])
    atomic_write(path, made.getvalue())


def read(
    path: Path, asked: Asked, labels: Collection[str], known: Collection[int] | None, resume: str
) -> dict[int, str]:
    """The labels of all rows that are asked for.

    Args:
        labels: what they may be.
        known: all rows that the file should have; None where that was not noted.
        resume: the command that goes on.

    Raises:
        DataError: rows that are gone, new, twice there or changed, labels that are none of these; with row numbers.
        AwaitingError: rows without a label.
    """
    found = _parsed(path, _text(path))
    numbers = [_number(path, line, row[ROW]) for line, row in enumerate(found, 2)]
    told = dict(zip(numbers, found))
    given = {number: (told[number].get(LABEL) or "").strip() for number in asked if number in told}
    wrong = {number: label for number, label in given.items() if label and label not in labels}
    refused: dict[str, Collection[int]] = {
        "there twice": [number for number, many in Counter(numbers).items() if many > 1],
        "gone": [number for number in asked if number not in told],
        "not asked for": [] if known is None else [number for number in told if number not in known],
        "not as they were asked": [n for n, shown in asked.items() if n in told and _changed(shown, told[n])],
        f"with unknown labels {', '.join(map(repr, sorted(set(wrong.values()))[:SHOWN]))}": wrong,
    }
    one_of = f"one of {', '.join(sorted(labels)[:12])}{', ...' * (len(labels) > 12)}"
    if bad := sorted({number for at in refused.values() for number in at}):
        what = "; ".join(f"{_rows(at)} {cause}" for cause, at in refused.items() if at)
        hint = f"fill in the column {LABEL} alone, each with {one_of}; then: {resume}"
        raise DataError(f"{path}: {what}", rows=bad[:SHOWN], hint=hint)
    if empty := [number for number, label in given.items() if not label]:
        raise AwaitingError(
            f"{len(empty)} of {len(asked)} rows wait for a label in {path} ({_rows(empty)})",
            hint=f"write {one_of} into the column {LABEL}, then: {resume}",
        )
    return given


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="save it as CSV in UTF-8") from error


def _parsed(path: Path, text: str) -> list[dict[str, str]]:
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), restval="")
    names = reader.fieldnames or []
    if missing := [name for name in (ROW, LABEL) if name not in names]:
        raise DataError(f"{path} has no column {missing[0]!r}, only {', '.join(names)}")
    return [row for row in reader if any(isinstance(value, str) and value.strip() for value in row.values())]


def _number(path: Path, line: int, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise DataError(f"{path}: entry {line - 1} has no number of a row, but {value!r}", rows=[line - 1]) from None


def _changed(shown: Mapping[str, Any], row: Mapping[str, str]) -> bool:
    """Whether a row shows something else, in the columns that are there; programs write ends of lines their way."""
    return any(name in row and _plain(row[name]) != _plain(str(value)) for name, value in shown.items())


def _plain(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _rows(numbers: Iterable[int]) -> str:
    numbers = sorted(numbers)
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:SHOWN]))}{more}"
