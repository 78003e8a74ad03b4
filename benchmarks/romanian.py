"""Romanian masked language models on five tasks, in the shape of the table of arXiv:2112.12650: fine-tuned alike.

    python -m benchmarks.romanian FOLDER ...     a line for each model

Data is found below KDHUB_DATA. Each model gets a fresh head and the same rows, steps and seed in a task. It is a table
of small models on few rows, and no match of the published one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import kdhub

TASKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "NER": ("token-classification", {"source": "ronec"}, "entity-f1"),
    "reviews": ("text-classification", {"source": "laroseda", "sample": 2000}, "accuracy"),
    "dialect": ("text-classification", {"source": "moroco-dialect"}, "macro-f1"),
    "topic": ("text-classification", {"source": "moroco-topic"}, "macro-f1"),
    "STS": ("text-pairs", {"source": "ro-sts", "sample": 3000}, "pearson"),
}
"""Task, training rows, and what is measured, on at most a thousand rows of the test split."""


def scores(model: Path, seed: int = 0) -> dict[str, float]:
    """What a model reaches in each task."""
    found = {}
    for name, (task, data, metric) in TASKS.items():
        recipe = {
            "task": task,
            "method": "supervised",
            "student": f"path:{model}",
            "data": {"train": [data]},
            "options": {"lr": 1e-3, "batch_size": 32, "epochs": 3, "warmup": 0.1, "precision": "float32"},
            "evaluation": {"data": [{"source": data["source"], "split": "test", "sample": 800}], "cost": False},
            "seed": seed,
        }
        with tempfile.TemporaryDirectory() as folder:
            run = kdhub.distill(recipe=recipe, out=Path(folder) / "run")
            [found[name]] = [
                m["value"] for m in run.report["measures"] if (m["subject"], m["metric"]) == ("student", metric)
            ]
    return found


if __name__ == "__main__":
    print("| model |", " | ".join(TASKS), "|")
    for given in sys.argv[1:]:
        print(
            f"| {given} |", " | ".join(f"{100 * value:.1f}" for value in scores(Path(given)).values()), "|", flush=True
        )
