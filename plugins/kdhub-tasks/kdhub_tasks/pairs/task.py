"""Pairs of texts, for which there is a class or a value. A cross-encoder reads both together, two towers each alone.

    sentence1, sentence2 (or text, text_pair)  and  label, a class      form `rows`    accuracy, F1, ...
                                               and  score, a value      form `sts`     Pearson, Spearman

A model of values has one logit, and its one "class" is called `score`. A model of two classes may have one score
inside, as towers have: its logits are then 0 and the score. Distillation and fidelity compare `scores` of the logits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import CompatibilityError, DataError
from kdhub.rows import Example, Prepare, Signals
from kdhub.task import Encoder, NetworkTask, View
from kdhub_tasks.classes import label_index
from kdhub_tasks.classification.task import SUBCLASS, Classification, Predictions
from kdhub_tasks.pairs.scores import SCORE
from kdhub_tasks.pairs.spec import TOWERS
from kdhub_tasks.teachers import ModelTeacher

if TYPE_CHECKING:
    import datasets
    import torch

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext
    from kdhub_tasks.models import Classifier

SIDES = ("sentence1", "sentence2")
NAMES = (SIDES, ("text", "text_pair"))
"""What the two columns may be called; the first names are ours."""


class PairTeacher(ModelTeacher):
    """A saved model of pairs."""

    kind = "pair-classifier"
    nested = True  # two towers have their encoder in a folder of its own


class TextPairs(Classification):
    """Rows have two texts and a `label`, or a `score`. In training it may be missing (null, -1 or NaN)."""

    name = "text-pairs"
    column = SIDES[0]
    primary = {"sts": "pearson", "rows": "accuracy", "texts": "accuracy"}
    pipeline_tag = "text-ranking"
    Teacher = PairTeacher

    @staticmethod
    def shown(example: Example) -> dict[str, str]:
        """What a language model is shown of an example (`prompted`)."""
        return dict(zip(SIDES, example["pair"]))

    # -- rows -------------------------------------------------------------------------------------------------

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        """Both texts under our names, and what is there of label and score."""
        table = data.split(split)
        have = table.column_names
        names = next((pair for pair in NAMES if set(pair) <= set(have)), None)
        if names is None:
            raise DataError(
                f"{data.name}, split {split!r}, has no pairs of texts; its columns are {', '.join(have)}",
                hint="map them: columns: {sentence1: THEIRS, sentence2: THEIRS, label: THEIRS} (or score: THEIRS)",
            )
        table = table.select_columns([c for c in (*names, "label", SCORE, SUBCLASS) if c in have])
        return table.rename_columns({theirs: ours for ours, theirs in zip(SIDES, names) if ours != theirs})

    def labelled(self, table: datasets.Dataset) -> bool:
        return bool({"label", SCORE} & set(table.column_names))

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes`: those of the labels; where rows have scores, or labels with fractions, `score` alone, and the
        `mean` of the values."""
        if not parts:
            return {}
        table = self.training_table(parts)
        column = "label" if "label" in table.column_names else SCORE
        if column not in table.column_names:
            return {"classes": []}
        values = [v for v in table[column] if v is not None and v == v]
        floats = bool(values) and all(isinstance(v, float) for v in values)
        if column == SCORE or (floats and any(not v.is_integer() for v in values)):
            return {"classes": [SCORE], "mean": float(np.mean(values)) if values else 0.0}
        return {"classes": [str(i) for i in range(int(max(values)) + 1)]} if floats else super().survey(parts)

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens at most of what is read at once, besides the model's own limit."""
        model, limit, classes = student or teacher.reads, settings.get("max_length"), self._known(student, teacher)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            pairs = [(row[SIDES[0]], row[SIDES[1]]) for row in rows]
            return [
                {
                    **read,
                    "pair": pair,
                    "label": target(row, classes),
                    "subclass": row.get(SUBCLASS),
                    "content": "\x1f".join(pair).encode(),
                }
                for row, pair, read in zip(rows, pairs, model.encode_pairs(pairs, limit))
            ]

        return prepare

    def label_losses(self, outputs: Signals, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if batch["labels"].is_floating_point():
            raise CompatibilityError("scores of pairs have no probability for a sampler to follow")
        return super().label_losses(outputs, batch)

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> Classifier:
        """A cross-encoder of the transformers library, or two towers."""
        if _has_towers(folder):
            from kdhub_tasks.pairs.towers import TwoTowerStudent

            return TwoTowerStudent.load(Path(folder), name=name)
        from kdhub_tasks.pairs.model import PairClassifier

        return PairClassifier.load(Path(folder), name=name)

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> Classifier:
        """Two towers as they are; a cross-encoder, or an encoder with a fresh head."""
        if _has_towers(folder):
            return NetworkTask.open(self, folder, context, start, name=name)
        return super().open(folder, context, start, name=name)

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Classifier:
        """A cross-encoder (`PairClassifier.with_head`). A fresh head of values starts at their mean: otherwise the
        first steps only raise the score, and a network that gives one number for all texts may stay so."""
        from kdhub_tasks.pairs.model import PairClassifier

        student = PairClassifier.with_head(*how)
        student.begin_at(facts.get("mean", 0.0))
        return student

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Predictions:
        table, form, of_values = self._columns(data, split), data.form(split), len(self.classes) == 1
        column = SCORE if of_values else "label"
        if column not in table.column_names or (form == "sts") != of_values:
            has = f"the form {form!r} and {', '.join(table.column_names)}"
            raise DataError(
                f"{data.name}, split {split!r}, has {has}: a model of {'values' if of_values else 'classes'} is scored "
                f"on pairs with a {column}",
                hint=f"map the columns: {{sentence1: THEIRS, sentence2: THEIRS, {column}: THEIRS}}",
            )
        given = np.asarray(encode(table, "logits")["logits"], np.float32)
        labels = np.asarray([target({column: v}, self.classes) for v in table[column]])
        missing = np.isnan(labels) if of_values else labels < 0
        if missing.any():
            raise DataError(f"{data.name}, split {split!r}: row {int(missing.argmax()) + 1} has no {column}")
        return Predictions(given, labels, self.classes)

    def views(self, outputs: Predictions, options: Any, subject: str) -> Iterator[View]:
        return super().views(outputs, options, subject) if len(outputs.classes) > 1 else iter([View()])

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        rows = self._columns(data, split)[:n]
        return [dict(zip(SIDES, pair)) for pair in zip(*(rows[side] for side in SIDES))]

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.pairs import tiny

        return tiny.recipe(folder)


def target(row: Mapping[str, Any], classes: Sequence[str]) -> float | int:
    """What a model should give for a row: its score, or its label as a value, NaN for none; for a model of classes the
    position of the row's class, -1 for none.

    Raises:
        DataError: no such class, or no number.
    """
    if len(classes) > 1:
        value = row.get("label")
        if isinstance(value, float):
            value = -1 if math.isnan(value) else int(value) if value.is_integer() else value
        return label_index(value, classes)
    column = SCORE if row.get(SCORE) is not None else "label"
    value = row.get(column)
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        raise DataError(f"{column} must be a number for a model of values ({column}={value!r})") from None


def _has_towers(folder: Path) -> bool:
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("network") == TOWERS
