"""A tiny language model and texts, for trying methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def recipe(folder: Path) -> dict[str, Any]:
    """`CausalLanguage.tiny_recipe`."""
    from kdhub.student import BuildContext
    from kdhub_tasks.classification.tiny import rows
    from kdhub_tasks.language.students import llama

    made = folder / "teacher"
    made.mkdir(exist_ok=True)
    llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3)).save(made)
    for name, n, seed in (("train", 48, 1), ("test", 16, 2)):
        lines = "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows(n, seed))
        (folder / f"{name}.jsonl").write_text(lines)
    return {
        "teacher": {"source": f"path:{made}"},
        "student": "llama:width=8,layers=1,heads=2,length=64",
        "data": {"train": [{"source": f"path:{folder / 'train.jsonl'}"}]},
        "evaluation": {"data": [{"source": f"path:{folder / 'test.jsonl'}"}], "cost": False},
    }
