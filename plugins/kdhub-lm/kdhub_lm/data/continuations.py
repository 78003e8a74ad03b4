"""Texts cut in two: the beginning as `prompt`, the continuation as `response`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.errors import DataError, UsageError


def continuations(argument: str, *, characters: int = 40, options: Mapping[str, Any] | None = None) -> Data:
    """`continuations:DATA`: each split of texts, cut at the last space among the first characters. Texts without such a
    space, or that are not longer, are dropped.

    Args:
        argument: the data set, as `--data` takes it.
        characters: of a prompt, at most.
        options: of the other data set.
    """
    if characters < 1:
        raise UsageError(f"continuations:{argument} needs characters of at least 1 (characters={characters})")
    data = open_data(argument, options=options)
    splits = [name for name in data.splits if data.form(name) == "texts"]
    if not splits:
        raise DataError(f"continuations:{argument}: none of its splits {', '.join(data.splits)} has texts")

    def rows(split: str) -> Iterator[dict[str, str]]:
        for text in data.split(split)["text"]:
            at = text.rfind(" ", 0, characters + 1)
            if at > 0 and text[at:].strip():
                yield {"prompt": text[:at], "response": text[at:]}

    return data.remade(f"continuations:{argument}", rows, splits, key={"characters": characters, "version": 1})
