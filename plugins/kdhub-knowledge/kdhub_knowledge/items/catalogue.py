"""The items of a data set: its split `items` has `item`, and `title`, `description` and `tags` where they are known."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdhub_tasks.classes import listed

from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import DataError

logger = logging.getLogger("kdhub")

ITEMS = "items"
"""The split."""
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
"""A word; of Chinese a character."""


@dataclass
class Catalogue:
    """Items in their order.

    Attributes:
        items: their names; titles and texts: what they are called, and what an encoder reads; tags: of each, such as
            genres.
    """

    items: list[str]
    titles: list[str]
    texts: list[str]
    tags: list[list[str]]

    @cached_property
    def at(self) -> dict[str, int]:
        return {item: n for n, item in enumerate(self.items)}

    @classmethod
    def of(cls, *parts: Data) -> Catalogue:
        """The items of some data sets, each once.

        Raises:
            DataError: no split `items`, or an item without a name or twice, by its row.
        """
        found: dict[str, tuple[str, str, list[str]]] = {}
        for data in {data.ref: data for data in parts}.values():
            if ITEMS not in data.splits:
                raise DataError(
                    f"{data.name} has no split 'items', only {', '.join(data.splits)}",
                    hint="interactions:DATA makes one of a log of user, item and time",
                )
            here: set[str] = set()
            for number, row in enumerate(named_rows(data.whole(ITEMS)), 1):
                where = f"{data.name}, split 'items', row {number}"
                if row.get("item") is None:
                    raise DataError(f"{where}: no 'item', only {', '.join(row)}", hint="columns: {item: THEIRS}")
                if (item := str(row["item"])) in here:
                    raise DataError(f"{where}: item {item!r} is there twice", hint="give each item one row")
                here.add(item)
                title = str(row.get("title") or "").strip()
                tags = [str(tag) for tag in listed(row.get("tags")) or ()]
                found[item] = title, str(row.get("description") or "").strip() or title, tags
        if without := sum(not text for _, text, _ in found.values()):
            first = next(item for item, (_, text, _) in found.items() if not text)
            logger.warning("%d of %d items have no text, the first is %r", without, len(found), first)
        titles, texts, tags = map(list, zip(*found.values()))
        return cls(list(found), titles, texts, tags)

    def known(self, n: int) -> list[str]:
        """The tags of an item, or the words of its text that are not in its title."""
        return self.tags[n] or sorted(set(words(self.texts[n])) - set(words(self.titles[n]))) or words(self.titles[n])


def words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def plain_title(title: str) -> str:
    """A title as it is recognised in a text: its words, without a year at the end, an article behind it in front."""
    title = re.sub(r"\s*\(\d{4}\)\s*$", "", title)
    title = re.sub(r"^(.*), (the|an?)$", r"\2 \1", title, flags=re.I)
    return " ".join(words(title))


def names(text: str, title: str, others: Sequence[str] = ()) -> bool:
    """Whether a text has a title in it, as whole words and not as a part of one of the others."""
    read, wanted = f" {' '.join(words(text))} ", plain_title(title)
    for other in sorted(map(plain_title, others), key=len, reverse=True):
        if other and other != wanted:
            read = re.sub(rf"(?<= ){re.escape(other)}(?= )", "|", read)
    return bool(wanted) and f" {wanted} " in read


def held_out(row: Mapping[str, Any], known: Catalogue) -> str:
    """The title of a row's next item; of a row without one nothing."""
    return "" if row.get("item") is None else known.titles[known.at[str(row["item"])]]


def shown(row: Mapping[str, Any], known: Catalogue, most: int) -> list[int]:
    """The last items of a row's history that may be shown, by number: without any of the held-out title."""
    held = plain_title(held_out(row, known))
    history = [known.at[str(item)] for item in listed(row["history"])]
    return [n for n in history if not held or plain_title(known.titles[n]) != held][-most:]
