"""Long documents: joined from short ones, or generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdhub.data.dataset import Data
from kdhub.errors import UsageError


def long_documents(
    argument: str, *, min_tokens: int = 512, document: str | None = None, options: Mapping[str, Any] | None = None
) -> Data:
    """Another data set with consecutive rows of a split joined until they have `min_tokens` words.

    Rows of `tokens` (with `tags`) or of `text` are joined, never across splits nor, where a column names the document
    of a row, across documents. Without such a column the documents are artificial: rows that follow each other in the
    file. The rest at the end of a document stays a shorter row.

    Args:
        argument: the data set, as `--data` takes it.
        min_tokens: words of a row, at least; in texts, as separated by white space.
        document: the column with a document's name.
        options: of the other data set.
    """
    from kdhub import open_data

    if not isinstance(min_tokens, int) or min_tokens < 1:
        raise UsageError(
            f"long-documents:{argument}: min_tokens must be a whole number from 1 (min_tokens={min_tokens!r})"
        )
    data = open_data(argument, options=options)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        table = data.split(split)
        columns = [c for c in ("tokens", "tags", "text") if c in table.column_names]
        if "tokens" not in columns and "text" not in columns:
            raise UsageError(f"long-documents:{argument}: split {split!r} has neither tokens nor texts to join")
        if document is not None and document not in table.column_names:
            raise UsageError(
                f"long-documents:{argument}: split {split!r} has no column {document!r}, only "
                + ", ".join(table.column_names)
            )
        return joined(table, columns, min_tokens, document)

    said = {"min_tokens": min_tokens, "document": document, "version": 1}
    own = [split for split in data.splits if split != "queries"]  # without queries a corpus is just texts
    return data.remade(f"long-documents:{argument}", rows, own, key=said)


def joined(rows: Any, columns: list[str], min_tokens: int, document: str | None = None) -> Iterator[dict[str, Any]]:
    """Consecutive rows as one, until it has `min_tokens` words; see `long_documents`."""
    parts: list[dict[str, Any]] = []
    words, before = 0, None

    def whole() -> dict[str, Any]:
        made: dict[str, Any] = {}
        for column in columns:
            given = [part[column] for part in parts]
            made[column] = " ".join(given) if column == "text" else [value for values in given for value in values]
        return made

    for row in rows:
        name = row[document] if document else None
        if parts and name != before:
            yield whole()
            parts, words = [], 0
        before = name
        parts.append(row)
        words += len(row["tokens"]) if "tokens" in columns else len(row["text"].split())
        if words >= min_tokens:
            yield whole()
            parts, words = [], 0
    if parts:
        yield whole()


FILLER = tuple("the a of and then there was made one day again old new stone river road hill".split())
NAMES = tuple("arden bexley corwin darnel elmore fenton gorham harlow".split())
THEMES = {"people": "PER", "places": "LOC"}
"""The first word of a document, and the class of the names in it."""
LONG_RANGE = {"train": 300, "validation": 100, "test": 100}


def long_range(*, words: int = 128, seed: int = 0) -> Data:
    """Documents whose first word decides the class of all names in them: words with tags, train 300, validation 100,
    test 100.

    Nothing near a name tells its class, so a tagger that does not see the first word is right half of the time.

    Args:
        words: in each document.
        seed: of the random draws.
    """
    import numpy as np

    def rows(split: str) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng([seed, list(LONG_RANGE).index(split)])
        for _ in range(LONG_RANGE[split]):
            theme = str(rng.choice(list(THEMES)))
            named = rng.random(words) < 0.1
            tokens = [str(rng.choice(NAMES if is_name else FILLER)) for is_name in named]
            tags = [f"B-{THEMES[theme]}" if is_name else "O" for is_name in named]
            yield {"tokens": [theme, *tokens[1:]], "tags": ["O", *tags[1:]]}

    splits = {split: (lambda split=split: rows(split)) for split in LONG_RANGE}
    return Data.from_rows("long-range", splits, key={"words": words, "seed": seed, "version": 1}, licence="cc0-1.0")
