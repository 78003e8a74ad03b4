"""Classification: of images, of feature tables, of texts. One class of a closed list for each row; where rows or the
configuration of a model say so, any number of them, or values (`kdhub_tasks.classes`)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub.data.prepare import iterate
from kdhub.errors import CompatibilityError, DataError
from kdhub.findings import Finding, shared_tokens
from kdhub.rows import Example, Prepare, Signals, plain_rows, values_of
from kdhub.task import Encoder, NetworkTask, View
from kdhub_tasks.classes import (
    MULTI_LABEL,
    REGRESSION,
    SCORE,
    Targets,
    class_name,
    classes_of,
    labels_in,
    listed,
    missing,
    problem_of,
    surveyed,
)
from kdhub_tasks.teachers import ModelTeacher

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext
    from kdhub_tasks.models import Classifier

SAID = {"": "one class a row", MULTI_LABEL: "any number of labels", REGRESSION: "values"}
"""What the outputs of a model are, in messages."""
PRIMARY = {MULTI_LABEL: "micro-f1", REGRESSION: "pearson"}
"""The metric that stands for quality where it is not that of one class a row."""
SUBCLASS = "subclass"
"""Column of some data sets: which part of its class a row is of, a number; for controls (see `data.labels`)."""


@dataclass
class Predictions:
    """What metrics read.

    Attributes:
        logits: (n, classes) float32.
        labels: (n,) positions of the true classes; of a model of any number of them (n, classes) 0 or 1, of one of
            values (n,), or (n, values).
        classes: their names.
        problem: what the logits are (`kdhub_tasks.classes`), "" for one class a row.
        lengths: words of each row, where n counts words; bytes: of whole texts, where n counts their tokens.
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: list[str] = field(default_factory=list)
    lengths: np.ndarray | None = None
    bytes: int | None = None
    problem: str = ""

    @property
    def examples(self) -> int:
        return len(self.labels)

    @cached_property
    def log_probabilities(self) -> np.ndarray:
        """(n, classes) float64."""
        x = self.logits.astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    @property
    def probabilities(self) -> np.ndarray:
        return np.exp(self.log_probabilities)

    @property
    def chosen(self) -> np.ndarray:
        """(n,) the most probable class; of any number of labels (n, classes) whether each is more probable than not."""
        return (self.logits > 0).astype(np.int8) if self.problem == MULTI_LABEL else self.logits.argmax(axis=1)


class Outputs(Signals):
    """A network's signals in float32, also those that it makes when they are asked for."""

    def __init__(self, given: Mapping[str, torch.Tensor]):
        super().__init__({name: value.float() for name, value in given.items()})
        self._given = given

    def __missing__(self, name: str) -> torch.Tensor:
        self[name] = self._given[name].float()
        return self[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._given


class ClassifierTeacher(ModelTeacher):
    kind = "classifier"

    @property
    def problem(self) -> str:
        """What its outputs are: see `kdhub_tasks.classes`."""
        return problem_in(self.folder)

    def layout(self, kind: str) -> dict[str, Any]:
        if self.problem and kind.startswith("logits:"):
            raise CompatibilityError(
                f"signals.keep keeps a part of a distribution over classes (keep={kind.partition(':')[2]}), and the "
                f"outputs of {self.argument} are {SAID[self.problem]}",
                hint="signals: {keep: all}",
            )
        return super().layout(kind)


class Classification(NetworkTask):
    """Rows have `label`, the name of a class, and an input column. In training a label may be missing (null, NaN, -1 or
    an empty text). Lists of labels are any number of classes; numbers with fractions, or a column `score`, are values.

    A batch also has `keys`, a number that a row's content gives, and `subclasses` where rows say so (`SUBCLASS`).

    Attributes:
        column: the input; target: the classes of a row.
        classes: of the models at hand, and `targets`, what these should give; set when rows are prepared for them.
    """

    column: str
    target: str = "label"
    classes: list[str]
    targets: Targets
    problems = (MULTI_LABEL, REGRESSION)
    primary = {"rows": "accuracy", "texts": "accuracy"}
    primary_signal = "logits"
    Teacher = ClassifierTeacher

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        per_class: bool = Field(False, description="also the accuracy of the rows of each class, its recall")

    # -- rows -------------------------------------------------------------------------------------------------

    def training_table(self, parts: Sequence[tuple[Data, str]]) -> datasets.Dataset:
        from datasets import concatenate_datasets

        tables = [self._columns(data, split) for data, split in parts]
        if len({str(t.features[self.target]) for t in tables if self.target in t.column_names}) > 1:
            tables = [_with_names(table, self.target) for table in tables]  # by which they are matched
        try:
            return tables[0] if len(tables) == 1 else concatenate_datasets(tables)
        except ValueError as error:  # features that cannot be aligned
            kinds = "; ".join(f"{data.name}: {t.features[self.column]}" for (data, _), t in zip(parts, tables))
            raise DataError(
                f"training data sets hold {self.column!r} in different kinds of values ({kinds})",
                hint="write them in one format, or train on one of them",
            ) from error

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if self.column not in table.column_names:
            raise DataError(
                f"{data.name}, split {split!r}, has no column {self.column!r}, only {', '.join(table.column_names)}",
                hint=f"map it: columns: {{{', '.join(f'{c}: THEIRS' for c in (self.column, self.target) if c)}}}",
            )
        wanted = (self.column, self.target, *((SCORE,) if self.problems else ()), SUBCLASS)
        return table.select_columns([c for c in wanted if c in table.column_names])

    def labelled(self, table: datasets.Dataset) -> bool:
        return self._label_column(table) is not None

    def _label_column(self, table: datasets.Dataset) -> str | None:
        """The labels, or values where there are no labels."""
        return next((c for c in (self.target, SCORE) if c in table.column_names), None)

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes` in their order (`classes_of`); `problem` where labels are not one class a row, and the `mean` of
        values."""
        if not parts:
            return {}
        table = self.training_table(parts)
        column = self._label_column(table)
        if column is None:
            return {"classes": []}
        labels, names, sizes = labels_in(table, column)
        if not self.problems:
            nested = getattr(getattr(table.features[column], "feature", None), "feature", None) is not None
            if nested or surveyed(labels, names, set()).get("problem"):
                some = ", ".join(map(repr, sorted(labels, key=str)[:3]))
                raise DataError(
                    f"{self.name} is for one class each, and column {column!r} has "
                    + (f"lists of them ({some})" if nested else f"numbers with fractions ({some})"),
                    hint="any number of labels, and values, are for rows: text-classification",
                )
            return {"classes": classes_of(labels, names)}
        facts = surveyed(labels, names, sizes)
        if column == SCORE and not sizes:
            facts = {"classes": [SCORE], "problem": REGRESSION}
        if facts.get("problem") == REGRESSION and len(facts["classes"]) == 1:
            values = np.asarray(Targets([SCORE], REGRESSION)([{SCORE: v} for v in table[column]]))
            facts["mean"] = float(np.nanmean(values)) if not np.isnan(values).all() else 0.0
        return facts

    def mismatch(self, student: Any, teacher: Any) -> str:
        """Other classes, or another order of them; other kinds of outputs."""
        mine, theirs = (getattr(model, "problem", "") for model in (student, teacher))
        if mine != theirs:
            return f"the outputs of the student are {SAID[mine]}, those of the teacher {SAID[theirs]}"
        if student.classes == teacher.classes or (mine == REGRESSION and len(student.classes) == len(teacher.classes)):
            return ""
        shared = len(set(student.classes) & set(teacher.classes))
        return (
            f"the student has the classes {_some(student.classes)}, the teacher {_some(teacher.classes)}: {shared} of "
            f"{len(set(student.classes) | set(teacher.classes))} are in both"
            + (", in another order" if set(student.classes) == set(teacher.classes) else "")
        )

    def _known(self, student: Any, teacher: Any) -> Targets:
        """What the student should give; without one the teacher."""
        self.targets = Targets.of(student or teacher)
        self.classes = self.targets.classes
        if self.targets.problem in PRIMARY:
            self.primary = dict.fromkeys(type(self).primary, PRIMARY[self.targets.problem])
        return self.targets

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Classes, which must be the same where the teacher's logits are used, and tokens, which need not."""
        said = f", {SAID[problem]}" if (problem := getattr(student, "problem", "")) else ""
        found = [Finding("ok", "classes", f"the same {len(student.classes)}{said}")]
        if why := self.mismatch(student, teacher):
            found = [Finding("note", "classes", why, "fine where the teacher teaches by its states alone")]
        if thorough and getattr(student, "tokenizer", None) and (given := getattr(teacher, "model", None)):
            found += filter(None, [shared_tokens(student.tokenizer, getattr(given, "tokenizer", None))])
        return found

    def collate(self, examples: Sequence[Example], student: Classifier) -> dict[str, torch.Tensor]:
        import torch

        labels = torch.as_tensor(values_of(examples, "label"))
        batch = {**student.collate(examples), "labels": labels.float() if labels.is_floating_point() else labels.long()}
        batch["keys"] = torch.as_tensor(values_of(examples, "key", lambda e: zlib.crc32(e["content"])))
        if all(e.get("subclass") is not None for e in examples):
            batch["subclasses"] = torch.tensor([e["subclass"] for e in examples])
        return batch

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """`positions`, rows or words, how many of them have `labels`, and `tokens` without padding, where rows have
        such."""
        from kdhub_tasks.losses import has_label

        mask = batch.get("attention_mask")
        tokens = {} if mask is None else {"tokens": int(mask.sum())}
        return {"positions": len(batch["labels"]), "labels": int(has_label(batch["labels"]).sum()), **tokens}

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return Outputs(module(inputs))

    def label_losses(self, outputs: Signals, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from kdhub_tasks.losses import has_label, label_losses

        labels = batch["labels"]
        if labels.is_floating_point():
            raise CompatibilityError("values have no probability for a sampler to follow")
        return label_losses(outputs.logits, labels)[has_label(labels)]

    def load(self, folder: Path, *, name: str | None = None) -> Classifier:
        from kdhub_tasks.classification import folders

        student = folders.load(Path(folder), name=name)
        if student.task != self.name:
            raise CompatibilityError(f"{name or folder} is a student for {student.task}, not for {self.name}")
        return student

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> Classifier:
        from kdhub_tasks.classification import folders

        return folders.as_start(Path(folder), context, start, name)

    def with_head(
        self, facts: Mapping[str, Any], folder: Path, classes: Sequence[str], seed: int, start: Mapping[str, Any]
    ) -> Classifier:
        """A checked folder's network with a fresh head, unless it has one for just these classes.

        Args:
            facts: of the training rows (`survey`), with the `problem` that the head is for.
        """
        raise CompatibilityError(f"{folder} has no classifier, and models for {self.name} get no fresh one")

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Predictions:
        table = self._columns(data, split)
        column = self._label_column(table)
        if column is None or (column == SCORE and self.targets.problem != REGRESSION):
            raise DataError(f"{data.name}, split {split!r}, has no column 'label' to score against")
        labels = self._truth(table, f"{data.name}, split {split!r}", column, *((SCORE,) if self.problems else ()))
        given = np.asarray(encode(table, "logits")["logits"], np.float32)
        if encode.faults:  # rows that cannot be read, which the evaluation counts
            able = np.setdiff1d(np.arange(len(table)), np.asarray(list(encode.faults)) - 1)
            given, labels = given[able], labels[able]
        return Predictions(given, labels, self.classes, problem=self.targets.problem)

    def _truth(self, table: datasets.Dataset, where: str, *columns: str) -> np.ndarray:
        """What a model should give for each row.

        Raises:
            DataError: labels that are none of its classes, or rows without one, with how many.
        """
        few = table.select_columns([c for c in dict.fromkeys(columns) if c in table.column_names])
        try:
            labels = np.asarray(self.targets(plain_rows(few, range(len(few)))))
        except DataError as error:
            raise DataError(f"{where}: {error.message}", hint=error.hint) from None
        if (none := missing(labels)).any():
            many = f" ({none.sum()} of {len(none)} rows have none)" if none.sum() > 1 else ""
            raise DataError(f"{where}: row {int(none.argmax()) + 1} has no {columns[0]}{many}")
        return labels

    def views(self, outputs: Predictions, options: Any, subject: str) -> Iterator[View]:
        yield View()
        if options.per_class and outputs.problem != REGRESSION:
            multi = outputs.problem == MULTI_LABEL
            for c in range(len(outputs.classes)) if multi else np.unique(outputs.labels).tolist():
                yield View({"class": outputs.classes[c]}, partial(_label_alone if multi else _rows_of_class, c))

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        return list(iterate(table.select_columns([self.column]).select(range(min(n, len(table))))))


class TextClassification(Classification):
    """Texts as `text`."""

    name = "text-classification"
    column = "text"
    pipeline_tag = "text-classification"

    @staticmethod
    def shown(example: Example) -> dict[str, str]:
        """What a language model is shown of an example (`prompted`), by the names of a template's placeholders."""
        return {"text": example["text"]}

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens at most, beside the model's own limit."""
        model, limit = student or teacher.reads, settings.get("max_length")
        encode, targets = model.encode, self._known(student, teacher)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            texts = [row["text"] for row in rows]
            ids, cut = encode(texts, limit)
            return [
                {
                    "text": text,
                    "ids": i,
                    "by": model.tokenizer,
                    "label": label,
                    "subclass": row.get(SUBCLASS),
                    "content": text.encode(),
                    "length": len(i),
                    "cut": c,
                }
                for row, text, i, c, label in zip(rows, texts, ids, cut, targets(rows))
            ]

        return prepare

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Classifier:
        """A fresh head of values starts at their mean: the first steps would do nothing but reach it."""
        from kdhub_tasks.transformer import TextClassifier

        student = TextClassifier.with_head(*how, problem=facts.get("problem", ""))
        student.begin_at(facts.get("mean", 0.0))
        return student

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.classification import tiny

        return tiny.text_recipe(folder)


def _rows_of_class(c: int, out: Predictions) -> Predictions:
    rows = out.labels == c
    return Predictions(out.logits[rows], out.labels[rows], out.classes)


def _label_alone(c: int, out: Predictions) -> Predictions:
    """One of any number of labels."""
    part = slice(c, c + 1)
    return Predictions(out.logits[:, part], out.labels[:, part], out.classes[part], problem=out.problem)


def problem_in(folder: Path) -> str:
    """What the outputs of the model in a folder are, by its configuration."""
    try:
        return problem_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ""


def _with_names(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """The same rows with the names of classes as texts in a column."""
    import pyarrow as pa

    if column not in table.column_names:
        return table

    def names(value: Any) -> Any:
        return [names(one) for one in value] if isinstance(value := listed(value), list) else class_name(value)

    given = [names(row[column]) for row in plain_rows(table.select_columns([column]), range(len(table)))]
    of_lists = any(isinstance(value, list) for value in given)
    made = pa.array(given, pa.list_(pa.string()) if of_lists else pa.string())
    return table.remove_columns(column).add_column(column, made)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "")
