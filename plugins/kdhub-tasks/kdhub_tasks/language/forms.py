"""Checks of rows beyond the kinds of their columns: what is wrong with one, or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdhub.data.prepare import number_fault, text_fault


def conversation(row: Mapping[str, Any]) -> str | None:
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns) or not turns:
        return "without a list of role and content in 'messages'"
    faults = (text_fault(turn, "role") or _content_fault(turn) for turn in turns)
    return next(filter(None, faults), None)


def _content_fault(turn: Mapping[str, Any]) -> str | None:
    """Content is a text, or a list of parts: texts and places of images."""
    parts = turn.get("content")
    if not isinstance(parts, list):
        return text_fault(turn, "content")
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
    if not parts or {*kinds} - {"text", "image"}:
        return "with parts in 'content' other than {type: text, text: ...} and {type: image}"
    return next(filter(None, (text_fault(p, "text") for p, kind in zip(parts, kinds) if kind == "text")), None)


def ranking(row: Mapping[str, Any]) -> str | None:
    texts, scores = row["responses"], row["scores"]
    if not isinstance(texts, list) or not isinstance(scores, list) or not 2 <= len(texts) == len(scores):
        return "without two responses or more, and as many scores"
    causes = [text_fault({"responses": text}, "responses") for text in texts]
    causes += [number_fault({"scores": score}, "scores") for score in scores]
    return next(filter(None, causes), None)
