"""A tiny graph with models of random weights: what methods for nodes are tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdhub import open_data, open_student, open_task

OPTIONS = {"nodes": 60, "classes": 2, "features": 12, "sizes": [0.6, 0.1]}
SOURCE = {"source": "papers", "options": OPTIONS}


def recipe(folder: Path) -> dict[str, Any]:
    """`NodeClassification.tiny_recipe`; `reader` beside the teacher is a text classifier for hop prompts."""
    from kdhub_tasks.classification import tiny

    teacher = folder / "teacher"
    teacher.mkdir(exist_ok=True)
    data = open_data("papers", options=OPTIONS)
    facts = open_task("node-classification").survey([(data, "train")])
    open_student("sage:width=16,layers=2", "node-classification", seed=3, facts=facts).save(teacher)
    tiny.text_classifier(folder / "reader", classes=facts["classes"])
    return {
        "teacher": {"source": f"path:{teacher}"},
        "student": "gcn:width=8,layers=2",
        "data": {"train": [{**SOURCE, "split": "train"}]},
        "evaluation": {"data": [{**SOURCE, "split": "test"}], "cost": False},
    }
