"""The tiny recipe of extractive question answering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdhub_tasks.tiny import random_texts, tiny_encoder, write_jsonl


def recipe(folder: Path) -> dict[str, Any]:
    """`QuestionAnswering.tiny_recipe`: which word follows the one that is asked for; readers of random weights."""
    from kdhub_tasks.questions.model import Reader

    for name, layers, seed in (("teacher", 2, 1), ("student", 1, 2)):
        encoder = tiny_encoder(folder / f"encoder-{name}", layers=layers, hidden=16, plain=True)
        (folder / name).mkdir()
        Reader.with_head(encoder, [], seed, {}).save(folder / name)
    train, test = (
        write_jsonl(folder / f"{split}.jsonl", questions(n, seed=n)) for split, n in (("train", 64), ("test", 24))
    )
    return {
        "teacher": {"source": f"path:{folder / 'teacher'}"},
        "student": {"source": f"path:{folder / 'student'}"},
        "data": {"train": [{"source": f"path:{train}"}]},
        "evaluation": {"data": [{"source": f"path:{test}"}], "cost": False},
    }


def questions(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of the tiny vocabulary, one of their words, and the word behind it."""
    rng, made = np.random.default_rng(seed), []
    for text in random_texts(n, seed=seed, shortest=4):
        words = list(dict.fromkeys(text.split()))
        at = int(rng.integers(len(words)))
        before, answer = " ".join(words[: at + 1]), words[at + 1 : at + 2]  # the last has no word behind it
        answers = {"text": answer, "answer_start": [len(before) + 1] * len(answer)}
        made.append({"question": words[at], "context": " ".join(words), "answers": answers})
    return made
