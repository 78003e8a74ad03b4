"""Running text, line by line, as texts of a few hundred characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdhub.data import Data, DataOptions
from kdhub.errors import DataError, UsageError
from kdhub_lm.canaries import blocks as of_lines


def blocks(
    argument: str, *, characters: int = 256, held_out: float = 0.1, options: Mapping[str, Any] | None = None
) -> Data:
    """`blocks:DATA`: the rows of each split one below the other, cut at the end of a line where `characters` are
    reached. Of a data set with one split, the last part is held out: half of it is `validation`, half `test`.

    Args:
        argument: the data set, as `--data` takes it; its rows have `text`, which may be empty.
        characters: of a block, about; at most twice as many.
        held_out: share of the blocks that is no training data.
        options: of the other data set.
    """
    from kdhub.resolve import Resolver

    if characters < 20 or not 0 < held_out < 1:
        raise UsageError(f"blocks:{argument}: {characters} characters and {held_out} held out, expected 20 and a share")
    data = Resolver().open_data(argument, DataOptions(), options)
    splits = [
        name for name in data.splits if data.form(name) in ("texts", "rows") and "text" in data.split(name).column_names
    ]
    if not splits:
        raise DataError(f"blocks:{argument}: none of its splits {', '.join(data.splits)} has texts")

    def rows(split: str) -> list[dict[str, str]]:
        made = list(of_lines(data.split(split)["text"], characters))
        return [{"text": row["text"].strip("\n")} for row in made if row["text"].strip()]

    def part(start: float, stop: float) -> Iterator[dict[str, str]]:
        whole = rows(splits[0])
        return iter(whole[round(start * len(whole)) : round(stop * len(whole))])

    name, key = f"blocks:{argument}", {"cut": [characters, held_out], "version": 1}
    if len(splits) > 1:
        return data.remade(name, rows, splits, key=key)
    train, validation = 1 - held_out, 1 - held_out / 2
    bounds = {"train": (0, train), "validation": (train, validation), "test": (validation, 1)}
    made = {split: lambda b=b: part(*b) for split, b in bounds.items()}
    key["of"] = {splits[0]: data.fingerprint(splits[0])}
    return Data.from_rows(name, made, key=key, licence=data.licence)
