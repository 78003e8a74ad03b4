"""A log of who took what when, as rows: the last item of each user is for the test, the one before for validation.

The order is that of time, and of equal times that of the log's rows. Of an item that a user took again the first time
counts. What that decided, and who has too few items, is counted and logged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import DataError, UsageError
from kdhub_knowledge.items.catalogue import ITEMS

logger = logging.getLogger("kdhub")

LEAST = 4
"""Items of a user: one to begin with, and one for each split."""
ORDER = "by time, and where times are equal by the row of the log"


@dataclass(frozen=True)
class Taken:
    """A line of a log.

    Attributes:
        where: for messages.
    """

    user: str
    item: str
    time: float
    where: str


def leave_last(
    name: str,
    log: Callable[[], Iterable[Taken]],
    items: Callable[[], Iterable[Mapping[str, Any]]] | None,
    *,
    least: int,
    rows_per_user: int,
    key: Mapping[str, Any],
    **about: Any,
) -> Data:
    """A log as `items`, `train`, `validation` and `test`.

    Args:
        items: rows of `item`, `title`, ...; those of the log, by their names, if None.
        least: items of a user, who is left out with fewer.
        rows_per_user: training rows of a user at most: the last items before those held out, each with its history.

    Raises:
        UsageError: `least` or `rows_per_user` are too small.
    """
    if least < LEAST:
        raise UsageError(
            f"{name}: least must be at least {LEAST}, one item for each split and a history (least={least})"
        )
    if rows_per_user < 1:
        raise UsageError(f"{name}: rows_per_user must be at least 1 (rows_per_user={rows_per_user})")

    @cache
    def known() -> dict[str, dict[str, Any]]:
        if items is None:
            return {item: {"item": item, "title": item} for item in sorted({taken.item for taken in log()})}
        return {str(row["item"]): {**row, "item": str(row["item"])} for row in items()}

    @cache
    def users() -> dict[str, list[str]]:
        by_user: dict[str, list[Taken]] = {}
        for taken in log():
            if taken.item not in known():
                raise DataError(f"{taken.where}: item {taken.item!r} is not among the {len(known())} items")
            by_user.setdefault(taken.user, []).append(taken)
        tally, kept = Counter(), {}
        for user, given in by_user.items():
            first: dict[str, Taken] = {}
            for taken in sorted(given, key=lambda taken: taken.time):
                first.setdefault(taken.item, taken)
            tally["taken again"] += len(given) - len(first)
            if len(first) < least:
                tally["few"] += 1
                continue
            times = [taken.time for taken in first.values()]
            tally["equal times"] += len(set(times)) < len(times)
            tally["held out by a tie"] += len(set(times[-LEAST:])) < LEAST
            kept[user] = list(first)
        logger.info("%s: %d users, %d items, %s", name, len(kept), len(known()), ORDER)
        for why, what in (
            ("few", f"users have fewer than {least} items and are left out"),
            ("taken again", "rows take an item again: the first time counts"),
            ("equal times", "users have items of equal times: the row of the log decides"),
            ("held out by a tie", "users have equal times among the last four items, so that decides what is held out"),
        ):
            if tally[why]:
                logger.warning("%s: %d %s", name, tally[why], what)
        if not kept:
            raise DataError(
                f"{name}: none of {len(by_user)} users has {least} items or more",
                hint=f"set least, from {LEAST}, or take more of the log",
            )
        return kept

    def rows(split: str) -> Iterator[dict[str, Any]]:
        end = {"train": -3, "validation": -2, "test": -1}[split]
        for user, taken in users().items():
            at = len(taken) + end
            for n in range(max(1, at - rows_per_user + 1), at + 1) if split == "train" else (at,):
                yield {"user": user, "history": taken[:n], "item": taken[n]}

    splits = {ITEMS: lambda: known().values()}
    splits |= {split: lambda split=split: rows(split) for split in ("train", "validation", "test")}
    key = {**key, "least": least, "rows_per_user": rows_per_user, "version": 1}
    return Data.from_rows(name, splits, key=key, format="rows", **about)


def interactions(
    argument: str,
    *,
    items: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    least_rating: float | None = None,
    least: int = 5,
    rows_per_user: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`interactions:DATA`: rows of `user`, `item` and `time`, as numbers, perhaps `rating`.

    Args:
        argument: the data set, as `--data` takes it.
        items: a data set of `item`, `title`, `description`, `tags`; without one items are called by their names.
        split: of the log. columns: our column name -> the log's. options: of the other data set.
        least_rating: only rows of this rating or a better one.
        least, rows_per_user: see `leave_last`.

    Raises:
        DataError: a column is missing, or a row has no user, no item or no time that is a number.
    """
    data = open_data({"source": argument, "columns": dict(columns or {}), "options": dict(options or {})})
    name, texts = f"interactions:{argument}", open_data(items) if items else None
    needed = ("user", "item", "time", *(["rating"] if least_rating is not None else []))

    def log() -> Iterator[Taken]:
        table = data.split(split)
        if missing := [column for column in needed if column not in table.column_names]:
            raise DataError(
                f"{name}, split {split!r}, has no column {missing[0]!r}, only {', '.join(table.column_names)}",
                hint=f"map it: columns: {{{missing[0]}: THEIRS}}",
            )
        for number, row in enumerate(named_rows(table.select_columns(list(needed))), 1):
            where = f"{name}, split {split!r}, row {number}"
            if row["user"] is None or row["item"] is None:
                raise DataError(f"{where}: no {'user' if row['user'] is None else 'item'}")
            time, rating = (number_in(row[column], column, where) for column in ("time", needed[-1]))
            if least_rating is None or rating >= least_rating:
                yield Taken(str(row["user"]), str(row["item"]), time, where)

    def rows() -> Iterator[dict[str, Any]]:
        return named_rows(texts.split(texts.pick(ITEMS, "train")))

    key = {"of": data.fingerprint(split), "least_rating": least_rating}
    key["items"] = texts and texts.fingerprint(texts.pick(ITEMS, "train"))
    return leave_last(
        name, log, rows if texts else None, least=least, rows_per_user=rows_per_user, key=key, licence=data.licence
    )


def number_in(value: Any, what: str, where: str) -> float:
    """
    Raises:
        DataError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if found != found:
        raise DataError(f"{where}: the {what} is {value!r}, not a number")
    return found
