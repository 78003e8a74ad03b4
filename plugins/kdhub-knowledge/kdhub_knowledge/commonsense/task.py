"""The task of graphs of commonsense: students that are triples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdhub_tasks.rows.task import DataSet

from kdhub.data.dataset import Data
from kdhub_knowledge.commonsense.rows import SPLITS
from kdhub_knowledge.commonsense.world import world


class Graph(DataSet):
    """Rows have `head`, `relation`, `tail` and, where they are divided, `split`."""

    name = "commonsense-graph"
    primary = {"rows": "triples"}

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        return []

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        """Triples of the closed world with labels and scores."""
        made = folder / "triples.jsonl"
        made.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows()))
        data = {"source": f"jsonl:{made}"}
        return {
            "student": "rows",
            "data": {"train": [data], "validation": [{**data, "where": {"split": ["train"]}}]},
            "evaluation": {"data": [], "cost": False},
        }


def tiny_rows(events: int = 8) -> list[dict[str, Any]]:
    """Each second triple is wrong; scores of valid ones are higher, with some overlap."""
    topics, rows = list(world().topics), []
    for n, (head, topic) in enumerate(list(world().events.items())[:events]):
        for m, relation in enumerate(world().frames):
            valid = (n + m) % 2 == 0
            tail = world().tails(topic if valid else topics[-1], relation)[m % 6]
            row = {
                "head": head,
                "relation": relation,
                "tail": tail,
                "split": SPLITS[0 if n < events - 2 else n % 2 + 1],
            }
            score = 0.3 + 0.01 * n + (0.3 if valid else 0.0) + 0.05 * m
            rows.append({**row, "label": "valid" if valid else "invalid", "score": round(score, 4)})
    return rows
