"""The tiny recipe of pairs of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdhub_tasks.tiny import overlap, random_texts, tiny_encoder, write_jsonl


def recipe(folder: Path) -> dict[str, Any]:
    """`TextPairs.tiny_recipe`: pairs with the share of words in common; cross-encoder and encoder of random weights."""
    from kdhub_tasks.pairs.model import PairClassifier

    encoder = tiny_encoder(folder / "encoder", layers=2, hidden=16, plain=True)
    teacher = PairClassifier.with_head(encoder, ["score"], 1, {})
    (folder / "teacher").mkdir()
    teacher.save(folder / "teacher")
    return {
        "teacher": {"source": f"path:{folder / 'teacher'}"},
        "student": f"towers:path:{encoder}",
        "data": {"train": [{"source": f"path:{write_jsonl(folder / 'train.jsonl', pairs(64, seed=1))}"}]},
        "evaluation": {
            "data": [{"source": f"path:{write_jsonl(folder / 'test.jsonl', pairs(24, seed=2))}"}],
            "cost": False,
        },
    }


def pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of texts of the tiny vocabulary with the share of words they have in common; every third has many."""
    texts, others = random_texts(n, seed=seed), random_texts(n, seed=seed + 100)
    made = [(a, b if i % 3 else f"{a} {b}") for i, (a, b) in enumerate(zip(texts, others))]
    return [{"sentence1": a, "sentence2": b, "score": overlap(a, b)} for a, b in made]
