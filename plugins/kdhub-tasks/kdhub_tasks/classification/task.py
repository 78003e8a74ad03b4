"""Classification: of images, of feature tables, of texts. One class of a closed list for each row."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError, DataError
from kdhub.findings import Finding, shared_tokens
from kdhub.rows import Example, Prepare, Signals, plain_rows
from kdhub.task import Encoder, NetworkTask, View
from kdhub_tasks.classes import label_index
from kdhub_tasks.teachers import ModelTeacher

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext
    from kdhub_tasks.models import Classifier

SUBCLASS = "subclass"
"""Column of some data sets: which part of its class a row is of, a number; for controls (see `data.labels`)."""
SURVEYED = 5000
"""Rows that mean and standard deviation of the inputs are taken from, evenly over the split."""


@dataclass
class Predictions:
    """What metrics read.

    Attributes:
        logits: (n, classes) float32.
        labels: (n,) positions of the true classes.
        classes: their names.
        lengths: words of each row, where n counts words; bytes: of whole texts, where n counts their tokens.
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: list[str] = field(default_factory=list)
    lengths: np.ndarray | None = None
    bytes: int | None = None

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
        return self.logits.argmax(axis=1)


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


class Classification(NetworkTask):
    """Rows have `label`, a number or a name, and an input column. In training a label may be missing (null or -1).

    A batch also has `keys`, a number that a row's content gives, and `subclasses` where rows say so (`SUBCLASS`).

    Attributes:
        column: the input; target: the classes of a row.
        classes: of the models at hand, set when rows are prepared for them.
    """

    column: str
    target: str = "label"
    classes: list[str]
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
        return tables[0] if len(tables) == 1 else concatenate_datasets(tables)

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if self.column not in table.column_names:
            raise DataError(
                f"{data.name}, split {split!r}, has no column {self.column!r}, only {', '.join(table.column_names)}",
                hint=f"map it: columns: {{{', '.join(f'{c}: THEIRS' for c in (self.column, self.target) if c)}}}",
            )
        return table.select_columns([c for c in (self.column, self.target, SUBCLASS) if c in table.column_names])

    def labelled(self, table: datasets.Dataset) -> bool:
        return self.target in table.column_names

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes`; for numbers every one up to the largest, for names in alphabetical order."""
        if not parts:
            return {}
        table = self.training_table(parts)
        labels = self._labels(table) - {None, -1} if self.target in table.column_names else set()
        if labels and all(isinstance(v, int) for v in labels):
            return {"classes": [str(i) for i in range(max(labels) + 1)]}
        return {"classes": sorted(map(str, labels))}

    def _labels(self, table: datasets.Dataset) -> set[Any]:
        return set(table.unique(self.target))

    def mismatch(self, student: Any, teacher: Any) -> str:
        """Other classes, or another order of them."""
        if student.classes == teacher.classes:
            return ""
        return f"the student has the classes {_some(student.classes)}, the teacher {_some(teacher.classes)}"

    def _known(self, student: Any, teacher: Any) -> list[str]:
        """The student's classes; without one the teacher's."""
        self.classes = (student or teacher).classes
        return self.classes

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Classes, which must be the same where the teacher's logits are used, and tokens, which need not."""
        found = [Finding("ok", "classes", f"the same {len(student.classes)}")]
        if why := self.mismatch(student, teacher):
            found = [Finding("note", "classes", why, "fine where the teacher teaches by its states alone")]
        if thorough and getattr(student, "tokenizer", None) and (given := getattr(teacher, "model", None)):
            found += filter(None, [shared_tokens(student.tokenizer, getattr(given, "tokenizer", None))])
        return found

    def collate(self, examples: Sequence[Example], student: Classifier) -> dict[str, torch.Tensor]:
        import torch

        batch = {**student.collate(examples), "labels": torch.tensor([e["label"] for e in examples])}
        batch["keys"] = torch.tensor([zlib.crc32(e["content"]) for e in examples])
        if all(e.get("subclass") is not None for e in examples):
            batch["subclasses"] = torch.tensor([e["subclass"] for e in examples])
        return batch

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """`positions`, rows or words, and how many of them have `labels`."""
        from kdhub_tasks.losses import has_label

        return {"positions": len(batch["labels"]), "labels": int(has_label(batch["labels"]).sum())}

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return Outputs(module(inputs))

    def label_losses(self, outputs: Signals, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from kdhub_tasks.losses import cross_entropies

        labels = batch["labels"]
        return cross_entropies(outputs.logits, labels)[labels >= 0]

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
            facts: of the training rows (`survey`).
        """
        raise CompatibilityError(f"{folder} has no classifier, and models for {self.name} get no fresh one")

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Predictions:
        table = self._columns(data, split)
        if "label" not in table.column_names:
            raise DataError(f"{data.name}, split {split!r}, has no column 'label' to score against")
        given = encode(table, "logits")["logits"]
        labels = np.asarray([label_index(v, self.classes) for v in table["label"]])
        if (labels < 0).any():
            raise DataError(f"{data.name}, split {split!r}: row {int((labels < 0).argmax()) + 1} has no label")
        return Predictions(np.asarray(given, np.float32), labels, self.classes)

    def views(self, outputs: Predictions, options: Any, subject: str) -> Iterator[View]:
        yield View()
        if options.per_class:
            for c in np.unique(outputs.labels).tolist():
                yield View({"class": outputs.classes[c]}, partial(_rows_of_class, c))

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        rows = data.split(split)[:n][self.column]
        return [{self.column: value} for value in rows]


class ArrayClassification(Classification):
    """Inputs that are arrays of one shape."""

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        classes, column, read = self._known(student, teacher), self.column, self.read

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            made = []
            for row in rows:
                x = read(row[column])
                label = label_index(row.get("label"), classes)
                one = {"x": x, "label": label, "subclass": row.get(SUBCLASS)}
                made.append({**one, "content": x.tobytes(), "length": 1, "cut": False})
            return made

        return prepare

    def read(self, value: Any) -> np.ndarray:
        """One input as an array."""
        raise NotImplementedError

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes`, the `shape` of an input, and `mean` and `std` of channels or features."""
        facts = super().survey(parts)
        if not parts:
            return facts
        table = self.training_table(parts)
        some = np.unique(np.linspace(0, len(table) - 1, min(SURVEYED, len(table))).astype(int))
        parts = np.array_split(some, -(-len(some) // 100))  # as floats, thousands of images are large

        def read(at: np.ndarray) -> np.ndarray:
            x = np.stack([self.read(row[self.column]) for row in plain_rows(table, at.tolist())])
            return x / 255 if x.dtype == np.uint8 else x.astype(np.float64)

        shape = read(some[:1]).shape[1:]
        over = {1: (0,), 2: (0, 1, 2), 3: (0, 2, 3)}[len(shape)]  # by feature, whole image, channel

        def mean_of(what: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            return sum(what(read(at)).mean(over, keepdims=len(shape) == 3) * len(at) for at in parts) / len(some)

        mean = mean_of(lambda x: x)
        std = np.sqrt(mean_of(lambda x: (x - mean) ** 2))
        if len(shape) == 3:
            mean, std = mean[0], std[0]
        return {**facts, "shape": list(shape), "mean": mean.tolist(), "std": std.tolist()}


class ImageClassification(ArrayClassification):
    """Images as `image`: height x width (x channels) of bytes; networks see 0 to 1, channels first."""

    name = "image-classification"
    column = "image"
    pipeline_tag = "image-classification"

    def read(self, value: Any) -> np.ndarray:
        x = np.asarray(value)
        if x.ndim not in (2, 3) or x.min() < 0 or x.max() > 255:
            raise DataError(f"an image is height x width (x channels) of 0 to 255, not an array of shape {x.shape}")
        x = x.astype(np.uint8)
        return np.ascontiguousarray(x.transpose(2, 0, 1)) if x.ndim == 3 else x

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        network = {"network": "vit", "shape": [8, 8], "patch": 4, "width": 8, "layers": 1, "heads": 2}
        return {
            "teacher": {"source": f"path:{_tiny_teacher(self, folder, network)}"},
            "student": "mlp:8",
            "data": {"train": [{"source": "digits", "split": "train", "limit": 64}]},
            "evaluation": {"data": [{"source": "digits", "split": "test", "limit": 64}], "cost": False},
        }


class TabularClassification(ArrayClassification):
    """Rows of numbers as `features`."""

    name = "tabular-classification"
    column = "features"
    pipeline_tag = "tabular-classification"

    def read(self, value: Any) -> np.ndarray:
        x = np.asarray(value, np.float32)
        if x.ndim != 1 or not np.isfinite(x).all():
            raise DataError(f"features are a list of finite numbers, not {str(value)[:40]}")
        return x

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        network = {"network": "mlp", "shape": [64], "hidden": [16]}
        return {
            "teacher": {"source": f"path:{_tiny_teacher(self, folder, network)}"},
            "student": "mlp:8",
            "data": {"train": [{"source": "digits", "split": "train", "limit": 64, "options": {"form": "features"}}]},
            "evaluation": {
                "data": [{"source": "digits", "split": "test", "limit": 64, "options": {"form": "features"}}],
                "cost": False,
            },
        }


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
        encode, classes = model.encode, self._known(student, teacher)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            texts = [row["text"] for row in rows]
            ids, cut = encode(texts, limit)
            return [
                {
                    "text": text,
                    "ids": i,
                    "by": model.tokenizer,
                    "label": label_index(row.get("label"), classes),
                    "subclass": row.get(SUBCLASS),
                    "content": text.encode(),
                    "length": len(i),
                    "cut": c,
                }
                for row, text, i, c in zip(rows, texts, ids, cut)
            ]

        return prepare

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Classifier:
        from kdhub_tasks.transformer import TextClassifier

        return TextClassifier.with_head(*how)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """Also `tokens`, where the rows have such."""
        mask = batch.get("attention_mask")
        return {**super().counts(batch), **({} if mask is None else {"tokens": int(mask.sum())})}

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.classification import tiny

        return tiny.text_recipe(folder)


class TokenClassification(Classification):
    """Rows of words as `tokens`, and a class for each of them as `tags` (numbers or names; missing: null or -1).

    Signals and labels are those of words, one row after the other: a loss over rows is here one over words. A batch
    also has `counts`, words of each row, `keys`, a number that a row's content gives, and, where asked for, `private`.
    """

    name = "token-classification"
    column = "tokens"
    target = "tags"
    primary = {"rows": "entity-f1"}
    pipeline_tag = "token-classification"

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")

    def views(self, outputs: Any, options: Any, subject: str) -> Iterator[View]:
        yield View()

    def _labels(self, table: datasets.Dataset) -> set[Any]:
        import pyarrow.compute as pc

        return set(pc.unique(pc.list_flatten(table.with_format("arrow")[:][self.target])).to_pylist())

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens at most, beside the models' own limits; private, a scorer of words (see
        `privacy`). A row ends with the last word that every model sees."""
        limit, scorer, classes = settings.get("max_length"), settings.get("private"), self._known(student, teacher)
        models = [] if student is None else [student]
        if teacher is not None:
            models += [one.reads for one in teacher.members or [teacher]]

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            words = [[str(w) for w in row["tokens"]] for row in rows]
            seen = [model.encode_words(words, limit) for model in models]
            made = []
            for n, row in enumerate(rows):
                kept = min(len(firsts[n]) for _, firsts in seen)
                given = row.get("tags")
                if given is not None and len(given) != len(words[n]):
                    raise DataError(f"a row has {len(words[n])} tokens and {len(given)} tags: {' '.join(words[n][:8])}")
                labels = [-1] * kept if given is None else [label_index(v, classes) for v in given[:kept]]
                own = words[n][:kept]
                ends = np.cumsum([len(word) + 1 for word in own]).tolist()
                spans = [(end - len(word) - 1, end - 1) for word, end in zip(own, ends)]
                private = {"private": scorer([" ".join(own)], [spans])[0]} if scorer else {}
                made.append(
                    {
                        "words": own,
                        "labels": labels,
                        "content": "\x1f".join(own).encode(),
                        "length": len(seen[0][0][n]),
                        "cut": kept < len(words[n]),
                        **private,
                    }
                )
            return made

        return prepare

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Classifier:
        from kdhub_tasks.classification.model import TokenClassifier

        return TokenClassifier.with_head(*how)

    def collate(self, examples: Sequence[Example], student: Classifier) -> dict[str, torch.Tensor]:
        import torch

        labels = [label for e in examples for label in e["labels"]]
        batch = {**student.collate(examples), "labels": torch.tensor(labels, dtype=torch.long)}
        batch["counts"] = torch.tensor([len(e["labels"]) for e in examples])
        batch["keys"] = torch.tensor([zlib.crc32(e["content"]) for e in examples])
        if "private" in examples[0]:
            batch["private"] = torch.tensor([p for e in examples for p in e["private"]], dtype=torch.float32)
        return batch

    def outputs(self, encode: Encoder, data: Data, split: str) -> Predictions:
        """Words that a model did not see count as of the class O, else as of the first."""
        table = self._columns(data, split)
        if "tags" not in table.column_names:
            raise DataError(f"{data.name}, split {split!r}, has no column 'tags' to score against")
        given, tags = encode(table, "logits")["logits"], table["tags"]
        lengths = np.array([len(row) for row in tags])
        unseen = np.full(len(self.classes), -30.0, np.float32)
        unseen[self.classes.index("O") if "O" in self.classes else 0] = 0.0
        logits = [
            np.concatenate([np.asarray(row, np.float32), np.tile(unseen, (n - len(row), 1))])
            for row, n in zip(given, lengths)
        ]
        labels = np.array([label_index(v, self.classes) for row in tags for v in row])
        if (labels < 0).any():
            raise DataError(f"{data.name}, split {split!r}: a word has no tag to score against")
        return Predictions(np.concatenate(logits), labels, self.classes, lengths)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.classification import tiny

        return tiny.token_recipe(folder)


def _rows_of_class(c: int, out: Predictions) -> Predictions:
    rows = out.labels == c
    return Predictions(out.logits[rows], out.labels[rows], out.classes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "")


def _tiny_teacher(task: Classification, folder: Path, network: dict[str, Any]) -> Path:
    """A network of random weights, saved."""
    import torch

    from kdhub_tasks.classification.model import NetworkClassifier

    torch.manual_seed(3)
    made = folder / "teacher"
    made.mkdir(exist_ok=True)
    NetworkClassifier(task.name, {**network, "classes": [str(i) for i in range(10)]}).save(made)
    return made
