"""Captions as words, and words as numbers."""

from __future__ import annotations

import re

PAD, START, END, FIRST = 0, 1, 2, 3
"""Numbers that are no words; the first word has `FIRST`."""


def words_in(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())
