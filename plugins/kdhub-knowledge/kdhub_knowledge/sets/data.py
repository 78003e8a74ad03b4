"""Data sets of item sets: any with one item held out, and a closed world in which what can replace what is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import UsageError
from kdhub_knowledge.sets.task import items_of

FAMILIES, MEMBERS = 4, 5
"""Of the closed world: items of one family can replace each other."""


def left_out(
    argument: str,
    *,
    item: str | int | None = None,
    share: float = 0.5,
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """The rows of one split of another data set as `train` and `test`: those without an item and those with it, or a
    random share of them and the rest.

    Args:
        argument: the data set, as `--data` takes it.
        item: is in all sets of `test` and in none of `train`; by name, or by number, from 0, among all names.
        share: of the rows that are `train`, between 0 and 1, drawn by `seed`, where no item is named.
        split: the one that is divided. columns: our column name -> the data set's. options: of the other data set.

    Raises:
        UsageError: the share is not between 0 and 1, or no set has the item.
    """
    if not 0 < share < 1:
        raise UsageError(f"left-out:{argument}: share must be between 0 and 1 (share={share})")
    data = open_data({"source": argument, "columns": dict(columns or {}), "options": dict(options or {})})
    table = data.split(split)

    def held() -> np.ndarray:
        if item is None:
            order = np.random.default_rng(seed).permutation(len(table))
            return np.isin(np.arange(len(table)), order[round(share * len(table)) :])
        sets = [items_of(row["items"]) for row in named_rows(table.select_columns(["items"]))]
        names = sorted({name for names in sets for name in names})
        name = names[item] if isinstance(item, int) and 0 <= item < len(names) else item
        found = np.array([name in names for names in sets])
        if found.all() or not found.any():
            raise UsageError(
                f"left-out:{argument}: {'all' if found.any() else 'no'} sets have the item (item={item})",
                hint=f"items are {', '.join(names[:8])}, ... ({len(names)})",
            )
        return found

    def part(test: bool) -> Iterator[dict[str, Any]]:
        return named_rows(table.select(np.flatnonzero(held() == test)))

    key = {"of": data.fingerprint(split), "item": item, "share": share, "seed": seed, "version": 1}
    splits = {"train": lambda: part(False), "test": lambda: part(True)}
    return Data.from_rows(f"left-out:{argument}", splits, key=key, licence=data.licence)


def families(sets: int = 400, size: int = 4, seed: int = 0) -> Data:
    """A closed world: 20 items in four families of five, `a1` to `d5`. A set is High when it has an item of family a
    and none of family d, or of c and none of b; so one item can replace another of its family. Half of the sets are
    `train`, half `test`.

    Args:
        sets: in all; size: items in each.
    """
    if sets < 8 or not 2 <= size <= FAMILIES * MEMBERS // 2:
        raise UsageError(f"families takes at least 8 sets of 2 to {FAMILIES * MEMBERS // 2} items ({sets=}, {size=})")
    names = [f"{family}{n}" for family in "abcd" for n in range(1, MEMBERS + 1)]

    def rows(part: slice) -> Iterator[dict[str, Any]]:
        draw, seen = np.random.default_rng(seed), {}
        while len(seen) < sets:
            chosen = tuple(sorted(draw.choice(names, size, replace=False).tolist()))
            of = {item[0] for item in chosen}
            seen[chosen] = "High" if ("a" in of and "d" not in of) or ("c" in of and "b" not in of) else "Low"
        for chosen, label in list(seen.items())[part]:
            yield {"items": list(chosen), "label": label}

    half = sets // 2
    splits = {"train": lambda: rows(slice(0, half)), "test": lambda: rows(slice(half, None))}
    key = {"sets": sets, "size": size, "seed": seed, "version": 1}
    return Data.from_rows("families", splits, key=key, licence="cc0-1.0")


def family_answers() -> Iterator[dict[str, str]]:
    """What three experts say of the closed world: of one family high, of two low; they err in a tenth, a fifth and
    three tenths of the pairs, there mostly by `medium`, and do not know about as many."""
    names = [f"{family}{n}" for family in "abcd" for n in range(1, MEMBERS + 1)]
    for number, expert in enumerate(("careful", "hasty", "wild"), 1):
        draw = np.random.default_rng(number)
        for n, a in enumerate(names):
            for b in names[n + 1 :]:
                right, wrong = ("high", "low") if a[0] == b[0] else ("low", "high")
                errs, unknown = draw.random(2) < number / 10
                answer = draw.choice(["medium", wrong], p=[0.7, 0.3]) if errs else right
                yield {"a": a, "b": b, "expert": expert, "answer": "unknown" if unknown else str(answer)}
