"""Sets of items with a label: alloys, recipes, baskets. Which items are in a set, not how many or in which order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_tasks.classes import listed
from kdhub_tasks.classification.task import Classification, Predictions

from kdhub.data.prepare import iterate
from kdhub.errors import DataError, UntrustedError
from kdhub.rows import Example, Prepare
from kdhub.task import Encoder, Task
from kdhub_knowledge.sets.students import Belief, SetClassifier

if TYPE_CHECKING:
    from kdhub_tasks.models import Classifier

    from kdhub.data.dataset import Data

SEPARATORS = "|;,"


@dataclass
class SetPredictions(Predictions):
    """Predictions, and of models of belief also what they do not know.

    Attributes:
        unknown: (n,) mass on neither label; None for networks, which have no such output.
    """

    unknown: np.ndarray | None = None


class ItemSets(Classification):
    """Rows have `items`, a list of names, or a text of names between `|`, `;`, `,` or spaces; and a `label`. A model of
    belief is for two labels; networks take any number."""

    name = "item-sets"
    column = "items"
    problems = ()
    pipeline_tag = "tabular-classification"

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes`, and the `items` of the training rows in the order of their names."""
        if not parts:
            return {}
        table = self.training_table(parts)
        found = {item for row in iterate(table.select_columns([self.column])) for item in items_of(row[self.column])}
        return {**super().survey(parts), "items": sorted(found)}

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        targets = self._known(student, teacher) if getattr(student or teacher, "classes", None) else None

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            labels = targets(rows) if targets else [-1] * len(rows)
            made = []
            for row, label in zip(rows, labels):
                items = items_of(row[self.column])
                content = json.dumps(items, ensure_ascii=False).encode()
                made.append({"items": items, "label": label, "content": content, "length": len(items), "cut": False})
            return made

        return prepare

    def load(self, folder: Path, *, name: str | None = None) -> Classifier | Belief:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = Belief if config.get("belief") else SetClassifier
            config["items"], config["classes"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UntrustedError(f"{name or folder} is not a student for {self.name} that kdhub saved") from error
        return kind.load(folder, config)

    open = Task.open  # as it is: no fresh head is put on what another task made

    def mismatch(self, student: Any, teacher: Any) -> str:
        """Experts are asked about pairs of items, and have no label for a set."""
        if not hasattr(teacher, "classes"):
            return "it is asked which items can replace each other, and has no label for a set"
        return super().mismatch(student, teacher)

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Any]:
        return super().compare(student, teacher, thorough) if hasattr(teacher, "classes") else []

    def outputs(self, encode: Encoder, data: Data, split: str) -> SetPredictions:
        plain = super().outputs(encode, data, split)
        unknown = None
        if isinstance(encode.model, Belief):
            unknown = encode(self._columns(data, split), "belief")["belief"][:, 2]
        return SetPredictions(plain.logits, plain.labels, plain.classes, unknown=unknown)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        import torch

        items, draw = list("abcdefgh"), np.random.default_rng(0)
        for name, many in (("train", 64), ("test", 32)):
            rows = [sorted(draw.choice(items, size=3, replace=False).tolist()) for _ in range(many)]
            lines = [json.dumps({"items": row, "label": "low" if "a" in row or "b" in row else "high"}) for row in rows]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        torch.manual_seed(3)
        (folder / "teacher").mkdir(exist_ok=True)
        SetClassifier.fresh(items, ["high", "low"], [8], {}).save(folder / "teacher")
        return {
            "teacher": {"source": f"path:{folder / 'teacher'}"},
            "student": "bag:8",
            "data": {"train": f"jsonl:{folder / 'train.jsonl'}"},
            "evaluation": {"data": [f"jsonl:{folder / 'test.jsonl'}"], "cost": False},
        }


def items_of(value: Any) -> list[str]:
    """The items of a row, each once, in the order of their names.

    Raises:
        DataError: there are none, or it is not a list of names.
    """
    value = listed(value)
    if isinstance(value, str):
        mark = next((mark for mark in SEPARATORS if mark in value), None)
        value = [part.strip() for part in value.split(mark)]
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise DataError(f"items are a list of names, or a text of names between '|', not {str(value)[:40]!r}")
    if not (items := sorted({str(item) for item in value} - {""})):
        raise DataError("a set without items")
    return items
