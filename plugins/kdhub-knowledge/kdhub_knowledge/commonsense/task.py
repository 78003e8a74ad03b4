"""The task of graphs of commonsense: students that are triples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdhub_tasks.rows.task import DataSet

from kdhub.data.dataset import Data
from kdhub_knowledge.commonsense.world import labelled_rows


class Graph(DataSet):
    """Rows have `head`, `relation`, `tail` and, where they are divided, `split`."""

    name = "commonsense-graph"
    primary = {"rows": "triples"}

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        return []

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        """Triples of the closed world with labels and scores."""
        made = folder / "triples.jsonl"
        made.write_text("".join(json.dumps(row) + "\n" for row in labelled_rows()))
        data = {"source": f"jsonl:{made}"}
        return {
            "student": "rows",
            "data": {"train": [data], "validation": [{**data, "where": {"split": ["train"]}}]},
            "evaluation": {"data": [data], "cost": False},
        }
