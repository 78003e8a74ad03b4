"""What the tests of text encoders share: a home of each test's own, and tiny encoders made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import encoders
import pytest

from kdhub.testing.fixtures import home


class Tiny(encoders.Tiny):
    """Also recipes of this family."""

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
