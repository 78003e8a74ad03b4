"""What the tests of text encoders share: a home of each test's own, and tiny encoders made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kdhub_tasks.tiny import WORDS, random_texts, tiny_encoder, write_jsonl

from kdhub.testing.fixtures import home


class Tiny:
    """Makers of tiny things.

    Attributes:
        words: the whole words of the default vocabulary.
    """

    words = WORDS
    texts = staticmethod(random_texts)
    jsonl = staticmethod(write_jsonl)
    write_encoder = staticmethod(tiny_encoder)

    def __init__(self, folder: Callable[[str], Path]):
        self._folder, self._made = folder, {}

    def encoder(self, **settings: Any) -> Path:
        """`tiny_encoder(**settings)`, made once for each settings; not to be changed."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self._made:
            self._made[key] = tiny_encoder(self._folder("encoder"), **settings)
        return self._made[key]

    @staticmethod
    def recipe(teacher: Path | str, student: str, train: Any, evaluation: Any = (), **options: Any) -> dict[str, Any]:
        """A LEAF recipe for seconds: one short cycle in float32, no costs measured."""
        options = {"cycles": 1, "epochs_per_cycle": 1, "precision": "float32", "max_length": 64, "lr": 1e-3} | options
        teacher = {"source": f"path:{teacher}", "precision": "float32"} if isinstance(teacher, Path) else teacher
        return {
            "schema": 1,
            "task": "text-embedding",
            "method": "leaf",
            "teacher": teacher,
            "student": student,
            "data": {"train": [{"source": f"path:{train}"} if isinstance(train, Path) else train]},
            "options": options,
            "evaluation": {"data": list(evaluation), "cost": False},
        }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp)
