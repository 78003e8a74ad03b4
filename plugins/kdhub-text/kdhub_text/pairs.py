"""Pairs of sentences: one class of a list, or one value. Read together by a cross-encoder, or apart by two towers.

    sentence1, sentence2 (or text, text_pair)  and  label, a class      form `rows`    accuracy, F1, ...
                                               and  score, a value      form `sts`     Pearson, Spearman

A model of values has one logit, and its one "class" is called `score`. A model of two classes may have one score inside
(towers have): its logits are then 0 and the score. `scores` gives of any logits what distillation and fidelity compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from kdhub_logits.tasks import SUBCLASS, Classification, Predictions
from kdhub_logits.teachers import LocalClassifier, local

from kdhub.errors import CompatibilityError, DataError
from kdhub.task import Encoder, Example, Prepare, Signals, View

if TYPE_CHECKING:
    import datasets
    import torch
    from kdhub_logits.classifiers import Classifier

    from kdhub.data import Data

SIDES = ("sentence1", "sentence2")
NAMES = (SIDES, ("text", "text_pair"))
"""What the two columns may be called; the first names are ours."""
SCORE = "score"
"""The column of values, and the name of the one output of a model of values."""

Array = TypeVar("Array", "np.ndarray", "torch.Tensor")


def scores(logits: Array) -> Array:
    """What a pair's logits (n, classes) say whatever constant stands in them: of two classes the second less the
    first, (n, 1); of one or of more the logits themselves."""
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


class TextPairs(Classification):
    """Rows have two texts and a `label`, or a `score`. In training it may be missing (null, -1 or NaN)."""

    name = "text-pairs"
    column = SIDES[0]
    primary = {"sts": "pearson", "rows": "accuracy", "texts": "accuracy"}
    pipeline_tag = "text-ranking"

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Classifier:
        """A cross-encoder (`PairClassifier.with_head`). A fresh head of values begins at their mean: else the first
        steps only lift it, and a network that has learnt to give one number for all texts may never leave it."""
        from kdhub_text.cross_encoder import PairClassifier

        student = PairClassifier.with_head(*how)
        student.begin_at(facts.get("mean", 0.0))
        return student

    # -- rows -------------------------------------------------------------------------------------------------

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        """Both texts under our names, and what is there of label and score."""
        table = data.split(split)
        have = table.column_names
        names = next((pair for pair in NAMES if set(pair) <= set(have)), None)
        if names is None:
            raise DataError(
                f"{data.name}, split {split!r}, has no pairs of texts: its columns are {', '.join(have)}",
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
        """Settings: max_length, tokens of what is read at once at most, beside the model's own limit."""
        model, limit, classes = student or teacher, settings.get("max_length"), self._known(student, teacher)

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
            raise CompatibilityError("scores of pairs have no probability that a sampler could follow")
        return super().label_losses(outputs, batch)

    def load(self, folder: Path) -> Classifier:
        return load(folder)

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
        from kdhub_text import tiny

        return tiny.pair_recipe(folder)


def target(row: Mapping[str, Any], classes: Sequence[str]) -> float | int:
    """What a row should give: of a model of values its score, or its label as a value, NaN for none; else the position
    of its class, -1 for none.

    Raises:
        DataError: no such class, or no number.
    """
    from kdhub_logits.classifiers import label_index

    if len(classes) > 1:
        value = row.get("label")
        if isinstance(value, float):
            value = -1 if math.isnan(value) else int(value) if value.is_integer() else value
        return label_index(value, classes)
    value = row.get(SCORE) if row.get(SCORE) is not None else row.get("label")
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        raise DataError(f"{value!r} is no value that a model of values could meet") from None


def load(folder: Path, *, name: str | None = None) -> Classifier:
    """A model of pairs from its folder: a cross-encoder of the transformers library, or two towers."""
    from kdhub_text import cross_encoder, towers

    if towers.are_in(Path(folder)):
        return towers.TwoTowerStudent.load(Path(folder), name=name)
    return cross_encoder.PairClassifier.load(Path(folder), name=name)


# -- teachers -------------------------------------------------------------------------------------------------


class PairTeacher(LocalClassifier):
    """A folder with a model of pairs."""

    kind = "pair-classifier"
    nested = True

    @staticmethod
    def read(folder: Path, name: str | None) -> Any:
        return load(folder, name=name)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int | None = None) -> list[dict[str, Any]]:
        return self.model.encode_pairs(pairs, max_length)


path, hub = local(PairTeacher)
