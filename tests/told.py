"""A run of a test's own: it gives a method the rows and signals it is made with, and keeps what the method says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np


class Few:
    """Rows: examples as a task prepares them, and the table they are of."""

    def __init__(self, examples: Sequence[Mapping[str, Any]], table: Any = None):
        self.examples, self.table = list(examples), table

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, which: np.ndarray) -> list[Mapping[str, Any]]:
        return [self.examples[i] for i in which]

    def some(self, most: int) -> np.ndarray:
        return np.arange(min(most, len(self)))


class Told:
    """`rows`: use -> examples; `signals`: kind -> an entry for each training row."""

    def __init__(self, student: Any, rows: Mapping[str, Any], signals: Mapping[str, Any] | None = None, **more: Any):
        self.student, self.teacher, self.seed = student, None, 0
        self.of_use = {use: rows if isinstance(rows, Few) else Few(rows) for use, rows in rows.items()}
        self.given = dict(signals or {})
        self.lines: list[dict[str, Any]] = []
        self.starts: list[Any] = []
        self.stages: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.__dict__.update(more)

    def has_rows(self, use: str) -> bool:
        return use in self.of_use

    def rows(self, use: str = "train", **settings: Any) -> Few:
        self.settings = settings
        return self.of_use[use]

    def signals(self, rows: Few, kind: str) -> Any:
        class Stored:
            def __getitem__(_, which: np.ndarray) -> dict[str, np.ndarray]:
                return {kind: np.asarray(self.given[kind])[which]}

        assert rows is self.of_use["train"]
        return Stored()

    def mark_start(self, student: Any) -> None:
        self.starts.append(student)

    def log(self, **record: Any) -> None:
        self.lines.append(record)

    def stage(self, name: str, work: Any) -> Any:
        self.stages[name] = work()
        return self.stages[name]

    def evaluate(self, student: Any) -> Any:
        return SimpleNamespace(measures=[], notes=[], of=student)
