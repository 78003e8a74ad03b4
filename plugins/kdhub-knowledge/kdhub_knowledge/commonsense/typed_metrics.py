"""Measures of heads in the closed world, from a student's files; nothing for other heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdhub.dataset_student import splits_in
from kdhub_knowledge.commonsense.world_zh import world

REJECTED = "rejected"


def _valid(folder: Path) -> dict[str, list[bool]]:
    """Split -> whether each different head is valid; empty unless the world knows them all."""
    found = {}
    for name, table in splits_in(folder).items():
        if "head" not in table.column_names:
            return {}
        parsed = [world().parsed(head) for head in dict.fromkeys(table["head"])]
        if None in parsed:
            return {}
        found[name] = [one.valid for one in parsed]
    return found


def valid_heads(folder: Path) -> Mapping[str, float]:
    """The share of valid heads of each split (acceptance)."""
    return {name: sum(valid) / len(valid) for name, valid in _valid(folder).items()}


def valid_heads_kept(folder: Path) -> float | None:
    """Valid heads with votes for them, over all valid heads that were voted on; None where nothing was filtered."""
    tables = splits_in(folder)
    if REJECTED not in tables or not _valid(folder):
        return None
    kept = {name: 0 for name in (True, False)}
    for name, table in tables.items():
        for head, votes in zip(table["head"], table["filter_votes"]):
            if votes and world().parsed(head).valid:
                kept[name != REJECTED] += 1
    return kept[True] / max(1, sum(kept.values()))
