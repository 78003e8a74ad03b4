"""Measures of rows, of each split of a student's own files, and of the evaluation rows that are among them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.data.prepare import iterate
from kdhub.dataset_student import splits_in
from kdhub_tasks.rows.task import Overlap, key_of

if TYPE_CHECKING:
    import datasets

MOST = 100_000
"""Rows of a split whose words are looked at."""


def distinct_rows(folder: Path) -> Mapping[str, float]:
    """Distinct rows over rows."""
    return {
        name: len({_digest(row) for row in iterate(table)}) / len(table) for name, table in splits_in(folder).items()
    }


def distinct_2(folder: Path) -> Mapping[str, float]:
    """Distinct bigrams over bigrams of the words in all columns of text (arXiv:1510.03055), of the first 100,000 rows;
    columns that say the same in each row do not count. Splits without two words in a row have none."""
    found = {name: _bigrams(table) for name, table in splits_in(folder).items()}
    return {name: value for name, value in found.items() if value is not None}


def shared_rows(outputs: Overlap) -> float | None:
    """Evaluation rows that are among the student's over evaluation rows."""
    return None if outputs.shared is None else outputs.shared / outputs.examples


def _digest(row: Mapping[str, Any]) -> bytes:
    return hashlib.blake2b(key_of(row).encode(), digest_size=12).digest()


def _bigrams(table: datasets.Dataset) -> float | None:
    total, seen = 0, set()
    for name, feature in table.features.items():
        if getattr(feature, "dtype", "") != "string":
            continue
        texts = [text or "" for text in table.select_columns([name])[:MOST][name]]
        if len(set(texts)) > 1:  # of one value everywhere: it says who made the rows, or for what
            for words in map(str.split, texts):
                seen.update(map(hash, zip(words, words[1:])))
                total += max(0, len(words) - 1)
    return len(seen) / total if total else None
