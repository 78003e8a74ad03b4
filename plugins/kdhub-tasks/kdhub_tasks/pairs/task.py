"""Pairs of texts, for which there is a class or a value. A cross-encoder reads both together, two towers each alone.

    sentence1, sentence2 (or text, text_pair)  and  label, a class      form `rows`    accuracy, F1, ...
                                               and  score, a value      form `sts`     Pearson, Spearman

A model of values has one logit, and its one "class" is called `score`. A model of two classes may have one score
inside, as towers have: its logits are then 0 and the score. Distillation and fidelity compare `scores` of the logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import DataError
from kdhub.rows import Example, Prepare
from kdhub.task import Encoder, NetworkTask, View
from kdhub_tasks.classes import REGRESSION, SCORE, Targets
from kdhub_tasks.classification.task import SUBCLASS, Classification, Predictions
from kdhub_tasks.pairs.spec import TOWERS
from kdhub_tasks.teachers import ModelTeacher

if TYPE_CHECKING:
    import datasets

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

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes`: those of the labels; where rows have scores, or labels with fractions, `score` alone, and the
        `mean` of the values."""
        facts = super().survey(parts)
        if facts.pop("problem", REGRESSION) != REGRESSION or facts.get("classes", [SCORE])[1:2] == [f"{SCORE}-1"]:
            raise DataError("a pair has one label or one score, and these rows have lists of them")
        return facts

    def _known(self, student: Any, teacher: Any) -> Targets:
        given = super()._known(student, teacher)
        if len(given.classes) == 1:
            self.targets = Targets(given.classes, REGRESSION)
        return self.targets

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens at most of what is read at once, besides the model's own limit."""
        model, limit, targets = student or teacher.reads, settings.get("max_length"), self._known(student, teacher)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            pairs = [(row[SIDES[0]], row[SIDES[1]]) for row in rows]
            return [
                {
                    **read,
                    "pair": pair,
                    "label": label,
                    "subclass": row.get(SUBCLASS),
                    "content": "\x1f".join(pair).encode(),
                }
                for row, pair, read, label in zip(rows, pairs, model.encode_pairs(pairs, limit), targets(rows))
            ]

        return prepare

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> Classifier:
        """A cross-encoder of the transformers library, two towers, or another registered network that reads pairs."""

        network = _network(folder)
        if network == TOWERS:
            from kdhub_tasks.pairs.towers import TwoTowerStudent

            return TwoTowerStudent.load(Path(folder), name=name)
        if network is not None:
            return super().load(folder, name=name)
        from kdhub_tasks.pairs.model import PairClassifier

        return PairClassifier.load(Path(folder), name=name)

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> Classifier:
        """Two towers and other networks of ours as they are; a cross-encoder, or an encoder with a fresh head."""
        if _network(folder) is not None:
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
        labels = self._truth(table, f"{data.name}, split {split!r}", column)
        return Predictions(np.asarray(encode(table, "logits")["logits"], np.float32), labels, self.classes)

    def views(self, outputs: Predictions, options: Any, subject: str) -> Iterator[View]:
        return super().views(outputs, options, subject) if len(outputs.classes) > 1 else iter([View()])

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        rows = self._columns(data, split)[:n]
        return [dict(zip(SIDES, pair)) for pair in zip(*(rows[side] for side in SIDES))]

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.pairs import tiny

        return tiny.recipe(folder)


def _network(folder: Path) -> str | None:
    """The network that a folder of ours names."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("network") if isinstance(config, dict) else None
