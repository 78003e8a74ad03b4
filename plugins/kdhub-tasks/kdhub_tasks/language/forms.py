"""Checks of rows beyond the kinds of their columns: what is wrong with one, or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdhub.data.prepare import number_fault, text_fault


def conversation(row: Mapping[str, Any]) -> str | None:
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns) or not turns:
        return "without a list of role and content in 'messages'"
    return next(filter(None, (text_fault(turn, name) for turn in turns for name in ("role", "content"))), None)


def ranking(row: Mapping[str, Any]) -> str | None:
    texts, scores = row["responses"], row["scores"]
    if not isinstance(texts, list) or not isinstance(scores, list) or not 2 <= len(texts) == len(scores):
        return "without two responses or more, and as many scores"
    causes = [text_fault({"responses": text}, "responses") for text in texts]
    causes += [number_fault({"scores": score}, "scores") for score in scores]
    return next(filter(None, causes), None)
