"""Triples as rows: `head`, `relation`, `tail`, and `split`; further columns stay as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import DataError, UsageError

if TYPE_CHECKING:
    from kdhub_tasks.language.replies import Tally

    from kdhub_knowledge.commonsense.language import Language

COLUMNS = ("head", "relation", "tail")
SPLITS = ("train", "validation", "test")
SHORTEST = 3
"""Characters of a tail in a language with spaces; of others 1."""
ODD = frozenset("{}[]<>|`\n")
"""Characters of half a JSON, of mark-up or of a second line, which no tail has."""


def plain_tail(text: str, language: Language, names: Sequence[str] = ()) -> str:
    """A reply as a tail: without one leading space and the full stop, persons instead of names."""
    text = text.removeprefix(" ").rstrip()
    text = text.removesuffix(language.stop).rstrip()
    return language.without_names(text, names) if names else text


def fault_of(tail: str, language: Language) -> str | None:
    """Why a tail is dropped, or None."""
    low = tail.lower()
    if not tail.strip():
        return "empty"
    if low in language.nothing:
        return "nothing"
    if low.startswith(language.refusals):
        return "refusals"
    if ODD & set(tail):
        return "not a phrase"
    return "too short" if len(tail) < (SHORTEST if language.spaces else 1) else None


def key_of(row: Mapping[str, Any]) -> bytes:
    """Equal for equal triples; 16 bytes, so that a million of them are held in some 100 MB."""
    text = "\x1f".join(row[name] for name in COLUMNS)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def cleaned(rows: Iterable[Mapping[str, Any]], language: Language, tally: Tally) -> Iterator[dict[str, Any]]:
    """Rows with plain tails, without faulty and repeated ones, which are counted."""
    seen: set[bytes] = set()
    for row in rows:
        made = {**row, "tail": plain_tail(row["tail"], language)}
        if fault := fault_of(made["tail"], language):
            tally[fault] += 1
        elif (key := key_of(made)) in seen:
            tally["repeated"] += 1
        else:
            seen.add(key)
            yield made


def split_by_event(heads: Iterable[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Event -> split. Events are put in an order that depends on the seed and each of them alone, and cut by shares.

    Args:
        shares: of train, validation and test; their sum is 1.

    Raises:
        UsageError: they are none.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"shares must be those of train, validation and test, and 1 in all (shares={list(shares)})")

    def place(head: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{head}".encode(), digest_size=16).digest()

    order = sorted(set(heads), key=place)
    first, second = round(shares[0] * len(order)), round((shares[0] + shares[1]) * len(order))
    names = (SPLITS[0 if n < first else 1 if n < second else 2] for n in range(len(order)))
    return dict(zip(order, names))


def splits_with(events: Mapping[str, str]) -> list[str]:
    """The splits that have an event, in their order."""
    found: Collection[str] = set(events.values())
    return [name for name in SPLITS if name in found]


def require_columns(table: Any, *columns: str) -> None:
    """
    Raises:
        DataError: a table lacks one.
    """
    if missing := [name for name in columns if name not in table.column_names]:
        hints = {
            "split": "cleaned:DATA divides triples by event",
            "label": "the recipe symbolic-kd-annotations adds it",
        }
        raise DataError(
            f"the triples have no column {missing[0]!r}, only {', '.join(table.column_names)}",
            hint=hints.get(missing[0], "map them: columns: {head: THEIRS, relation: THEIRS, tail: THEIRS}"),
        )


def column(table: Any, name: str) -> np.ndarray:
    """All values of a column, read in one go: a `datasets` column is read row by row."""
    return table.select_columns([name]).with_format("arrow")[:][name].to_numpy(zero_copy_only=False)
