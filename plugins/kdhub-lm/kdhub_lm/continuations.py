"""Texts cut in two: how they begin as `prompt`, how they go on as `response`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdhub.data import Data, DataOptions
from kdhub.errors import DataError, UsageError


def continuations(argument: str, *, characters: int = 40, options: Mapping[str, Any] | None = None) -> Data:
    """`continuations:DATA`: each split of texts, cut at the last space among the first characters. Texts without one
    are left out, and texts that are not longer.

    Args:
        argument: the data set, as `--data` takes it.
        characters: of a prompt, at most.
        options: of the other data set.
    """
    from kdhub.resolve import Resolver

    if characters < 1:
        raise UsageError(f"continuations:{argument}: prompts of {characters} characters, expected at least 1")
    data = Resolver().open_data(argument, DataOptions(), options)
    splits = [name for name in data.splits if data.form(name) == "texts"]
    if not splits:
        raise DataError(f"continuations:{argument}: none of its splits {', '.join(data.splits)} has texts")

    def rows(split: str) -> Iterator[dict[str, str]]:
        for text in data.split(split)["text"]:
            at = text.rfind(" ", 0, characters + 1)
            if at > 0 and text[at:].strip():
                yield {"prompt": text[:at], "response": text[at:]}

    return data.remade(f"continuations:{argument}", rows, splits, key={"characters": characters, "version": 1})
