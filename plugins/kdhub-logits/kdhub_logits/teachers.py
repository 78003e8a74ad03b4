"""Teachers that are no network of their task: prototypes of a few labelled rows, and zero-shot text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from kdhub_tasks.classes import class_name, classes_of, labels_in
from pydantic import BaseModel, ConfigDict, Field

from kdhub import open_data, open_task, open_teacher
from kdhub.errors import TeacherError, UsageError
from kdhub.rows import Example, plain_rows
from kdhub.teacher import Teacher


class Prototypes(Teacher):
    """A few-shot teacher of arrays: scale times the cosine to each class's mean, the mean of all taken away."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        split: str = Field("train", description="split of the data set")
        per_class: int | None = Field(None, ge=1, description="labelled rows of each class that are used; all if unset")
        noise: float = Field(0.0, ge=0, description="deviation of noise on the means, over that of their numbers")
        scale: float = Field(20.0, gt=0, description="factor on the cosine")
        seed: int = Field(0, ge=0, description="seed of the choice and of the noise")
        data: dict[str, Any] = Field(default_factory=dict, description="options of the data set")

    @cached_property
    def _data(self) -> Any:
        return open_data(self.argument, options=self.options.data)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        options = self.options.model_dump(exclude={"data"})
        return {"kind": "prototypes", "rows": self._data.fingerprint(self.options.split), **options}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"id": f"prototypes:{self.argument}", **self.identity}

    @cached_property
    def _means(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Classes, the mean of all rows, and each class's mean without it."""
        o, columns = self.options, self._data.split(self.options.split).column_names
        task = self.task or open_task(f"{'image' if 'image' in columns else 'tabular'}-classification")
        table = task.training_table([(self._data, o.split)])
        if "label" not in table.column_names:
            raise UsageError(f"prototypes:{self.argument}: needs labelled rows of images or features")
        rows = plain_rows(table, range(len(table)))
        x = np.stack([np.asarray(task.read(row[task.column]), np.float64).ravel() for row in rows])
        labels = [class_name(row["label"]) for row in rows]
        named = [name for name in classes_of(*labels_in(table, "label")[:2]) if name in labels]
        rng = np.random.default_rng(o.seed)
        found = [rng.permutation([i for i, v in enumerate(labels) if v == c])[: o.per_class] for c in named]
        centre = x[np.concatenate(found)].mean(0)
        means = np.stack([x[rows].mean(0) for rows in found]) - centre
        means += o.noise * means.std() * rng.normal(size=means.shape)
        return named, centre, means

    def probe(self) -> Mapping[str, Any]:
        return {"classes": self._means[0]}

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    def layout(self, kind: str) -> dict[str, tuple[int | None, ...]]:
        return _logits_only(self, kind)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        return {"logits": self._logits(self._vectors(examples), self._means[2])}

    def fitted(self, examples: Sequence[Example], labels: Mapping[int, int]) -> np.ndarray:
        """(n, classes): the logits of examples, after the means were fitted to those of them that have a label (see
        `adapter`)."""
        from kdhub_logits.adapter import adapted

        vectors, at = self._vectors(examples), sorted(labels)
        truth = np.array([labels[i] for i in at])
        return self._logits(vectors, adapted(self._means[2], vectors[at], truth, scale=self.options.scale))

    def _vectors(self, examples: Sequence[Example]) -> np.ndarray:
        return np.stack([np.asarray(e["x"], np.float64).ravel() for e in examples]) - self._means[1]

    def _logits(self, vectors: np.ndarray, means: np.ndarray) -> np.ndarray:
        return (self.options.scale * _cosine(vectors, means)).astype(np.float32)


class ZeroShot(Teacher):
    """A text encoder that never saw the task: scale times the cosine of a text to each class's description.

    The argument is a teacher of text embeddings (`packaged:all-minilm-l6-v2`, `hf:org/name`).
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        classes: dict[str, str | list[str]] = Field(
            default_factory=dict, description="each class's description, or several, whose embeddings are averaged"
        )
        scale: float = Field(20.0, gt=0, description="factor on the cosine")

    @cached_property
    def encoder(self) -> Teacher:
        if len(self.options.classes) < 2:
            raise UsageError(
                f"zero-shot:{self.argument} needs a description of each class",
                hint="teacher: {source: zero-shot:..., classes: {NAME: a text, ...}}",
            )
        return open_teacher(self.argument, "text-embedding")

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "zero-shot", "encoder": dict(self.encoder.identity), **self.options.model_dump()}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.encoder.provenance, "classes": self.options.classes}

    @property
    def classes(self) -> list[str]:
        return list(self.options.classes)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        prepare = open_task("text-embedding").preparer(None, self.encoder)
        examples = prepare([{"text": text} for text in texts])
        return np.asarray(self.encoder.signals(examples, "embedding")["embedding"], np.float64)

    @cached_property
    def _means(self) -> np.ndarray:
        told = [[text] if isinstance(text, str) else text for text in self.options.classes.values()]
        vectors = self._embed([text for texts in told for text in texts])
        ends = np.cumsum([len(texts) for texts in told])
        return np.stack([part.mean(0) for part in np.split(vectors, ends[:-1])])

    def layout(self, kind: str) -> dict[str, tuple[int | None, ...]]:
        return _logits_only(self, kind)

    @property
    def reads(self) -> ZeroShot:
        return self

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> Any:
        return [[0] for _ in texts], [False for _ in texts]  # its encoder cuts them

    @property
    def tokenizer(self) -> None:
        return None

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        vectors = self._embed([e["text"] for e in examples])
        return {"logits": (self.options.scale * _cosine(vectors, self._means)).astype(np.float32)}


def _logits_only(teacher: Any, kind: str) -> dict[str, tuple[int | None, ...]]:
    if kind != "logits":
        raise TeacherError(f"{teacher.argument} gives logits, not {kind!r}")
    return {"logits": (len(teacher.classes),)}


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) of (n, d) and (m, d)."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T
