"""Running text, line by line, as texts of a few hundred characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdhub_tasks.language.lines import in_blocks

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.errors import DataError, UsageError


def blocks(
    argument: str, *, characters: int = 256, held_out: float = 0.1, options: Mapping[str, Any] | None = None
) -> Data:
    """`blocks:DATA`: the rows of each split as running text, cut at the end of a line where `characters` are reached.
    Of a data set with one split, the last part is held out: half of it is `validation`, half `test`.

    Args:
        argument: the data set, as `--data` takes it; its rows have `text`, which may be empty.
        characters: size of a block, about; at most twice as many.
        held_out: share of the blocks kept out of training.
        options: of the other data set.
    """
    if characters < 20 or not 0 < held_out < 1:
        raise UsageError(
            f"blocks:{argument} needs characters of at least 20 and held_out between 0 and 1 "
            f"(characters={characters}, held_out={held_out})"
        )
    data = open_data(argument, options=options)
    splits = [
        name for name in data.splits if data.form(name) in ("texts", "rows") and "text" in data.split(name).column_names
    ]
    if not splits:
        raise DataError(f"blocks:{argument}: none of its splits {', '.join(data.splits)} has texts")

    def rows(split: str) -> list[dict[str, str]]:
        return [{"text": text.strip("\n")} for text in in_blocks(data.split(split)["text"], characters) if text.strip()]

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
