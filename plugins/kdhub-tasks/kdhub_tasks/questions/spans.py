"""Answers as spans of tokens: where they are, and which one a model chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdhub.errors import DataError

LONGEST = 30
"""Tokens of an answer, at most."""
ENDS = ("start", "end")
"""A model's two outputs: first and last token of the answer."""


def known(context: str, answers: Any) -> list[tuple[str, int]]:
    """The right answers of a row, and the character at which each begins in the text.

    Raises:
        DataError: an answer is not there.
    """
    if isinstance(answers, Mapping):
        texts, starts = answers["text"], answers.get("answer_start") or [None] * len(answers["text"])
    else:
        texts = [answers] if isinstance(answers, str) else list(answers)
        starts = [None] * len(texts)
    found = []
    for text, start in zip(texts, starts):
        at = context.find(text) if start is None else start
        if not text or at < 0 or context[at : at + len(text)] != text:
            where = "" if start is None else f" at character {start}"
            raise DataError(
                f"the answer {text!r} is not in its text{where}: {context[:60]!r}...",
                hint="answers are words of their text, and answer_start counts its characters from 0",
            )
        found.append((text, at))
    return found


def place(context: str, answers: Any, spans: Sequence[tuple[int, int]]) -> list[int]:
    """First and last token of a row's first answer: 0, 0 where the text has none, or it was cut off; -1, -1 where the
    row has no label."""
    if answers is None:
        return [-1, -1]
    for text, start in known(context, answers)[:1]:
        inside = [i for i, (a, b) in enumerate(spans) if a < start + len(text) and b > start]
        if inside and spans[inside[-1]][1] >= start + len(text):
            return [inside[0], inside[-1]]
    return [0, 0]


def best_span(logits: np.ndarray, spans: Sequence[tuple[int, int]], longest: int = LONGEST) -> tuple[int, int]:
    """First and last token of the most probable answer, (0, 0) for none: the largest sum of both logits where the first
    is not after the last and the answer has at most `longest` tokens.

    Args:
        logits: (2, positions); spans: the characters of each token in the text, (0, 0) for tokens that are not its.
    """
    n = len(spans)
    own = np.array([b > a for a, b in spans])
    start, end = (np.where(own, x[:n], -np.inf) for x in logits)
    best, where = logits[0, 0] + logits[1, 0], (0, 0)
    for more in range(min(longest, n)):
        sums = start[: n - more] + end[more:]
        at = int(sums.argmax())
        if sums[at] > best:
            best, where = sums[at], (at, at + more)
    return where


def answer(context: str, logits: np.ndarray, spans: Sequence[tuple[int, int]]) -> str:
    """The part of the text that `best_span` chooses, "" for none."""
    first, last = best_span(np.asarray(logits, np.float64), spans)
    return context[spans[first][0] : spans[last][1]] if first else ""
