"""Teachers of classification whose weights are at hand: a folder, or the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub._files import sha256_files
from kdhub.errors import TeacherError, UsageError
from kdhub.task import Example
from kdhub.teacher import Teacher
from kdhub_logits.plugin import LAYERED
from kdhub_logits.sparse import Form, packed

IDENTIFYING = (".safetensors", ".json", ".txt", ".model")
"""Files of a model's folder that say what it gives."""


class LocalClassifier(Teacher):
    """A classifier folder, ours or the transformers library's; its identity is read from its files, those of folders in
    it too where it is `nested`."""

    group_rows = 512
    kind = "classifier"
    nested = False

    @staticmethod
    def read(folder: Path, name: str | None) -> Any:
        """The model of a folder."""
        from kdhub_logits import classifiers

        return classifiers.load(folder, name=name)

    def __init__(self, argument: str, options: Any = None, *, folder: Path, known: Mapping[str, Any]):
        super().__init__(argument, options)
        self.folder, self.known = folder, dict(known)
        if not folder.is_dir():
            raise UsageError(f"teacher folder {folder} does not exist")

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        inside = self.folder.rglob("*") if self.nested else self.folder.iterdir()
        files = [p.relative_to(self.folder).as_posix() for p in inside if p.is_file() and p.suffix in IDENTIFYING]
        return {"kind": self.kind, "files": sha256_files(self.folder, sorted(files))}

    @property
    def provenance(self) -> Mapping[str, Any]:
        weights = {n: d for n, d in self.identity["files"].items() if n.endswith(".safetensors")}
        return {**self.known, "files": weights}

    @cached_property
    def model(self) -> Any:
        model = self.read(self.folder, self.known.get("id"))
        model.module.eval().requires_grad_(False)
        return model

    @property
    def module(self) -> Any:
        return self.model.module

    def probe(self) -> Mapping[str, Any]:
        return {
            "classes": self.model.classes,
            "widths": {kind: list(self.model.shape(kind)) for kind in self.model.kinds},
        }

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> Any:
        return self.model.encode(texts, max_length)

    def encode_words(self, rows: Sequence[Sequence[str]], max_length: int | None = None) -> Any:
        return self.model.encode_words(rows, max_length)

    def layout(self, kind: str) -> dict[str, Any]:
        widths, (kind, _, keep) = self.facts["widths"], kind.partition(":")
        if kind in LAYERED and kind not in widths:  # of a teacher that was known before it had them
            widths = self.probe()["widths"]
        if kind not in widths or (keep and kind not in ("logits", *LAYERED)):
            raise TeacherError(f"{self.argument} gives {', '.join(widths)}, and of logits a part, not {kind!r}")
        shape = list(widths[kind])
        if kind in LAYERED and keep:
            shape[LAYERED[kind]] = len(keep.split(","))
        if kind in LAYERED or not keep:
            return {kind: tuple(shape)}
        field = Form.parse(keep, shape[-1]).field(kind, ragged=shape[0] is None)
        return {field.name: field}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        kind, _, keep = kind.partition(":")
        given = self.model.signals(examples, kind)
        if not keep:
            return given
        if kind in LAYERED:
            at, axis = [int(layer) - 1 for layer in keep.split(",")], LAYERED[kind]
            rows = given[kind]
            return {kind: np.take(rows, at, axis) if isinstance(rows, np.ndarray) else [r.take(at, axis) for r in rows]}
        ragged, form = self.model.ragged, Form.parse(keep, self.facts["widths"][kind][-1])
        contents = [example["content"] for example in examples]
        return {form.field(kind, ragged).name: packed(given[kind], form, contents, ragged)}


class Prototypes(Teacher):
    """A few-shot teacher of arrays: scale times the cosine to each class's mean, the mean of all taken away."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        split: str = Field("train", description="of the data set")
        per_class: int | None = Field(None, ge=1, description="labelled rows of each class that are used; all if unset")
        noise: float = Field(0.0, ge=0, description="deviation of noise on the means, over that of their numbers")
        scale: float = Field(20.0, gt=0, description="of the cosine")
        seed: int = Field(0, ge=0, description="of the choice and the noise")
        data: dict[str, Any] = Field(default_factory=dict, description="options of the data set")

    @cached_property
    def _data(self) -> Any:
        from kdhub.data import DataOptions
        from kdhub.resolve import Resolver

        return Resolver().open_data(self.argument, DataOptions(), self.options.data)

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
        o, table = self.options, self._data.split(self.options.split)
        column = next((c for c in ("image", "features") if c in table.column_names), None)
        if column is None or "label" not in table.column_names:
            raise UsageError(f"prototypes:{self.argument}: needs labelled rows of images or features")
        x = np.asarray(table[column], np.float64).reshape(len(table), -1)
        labels = [v for v in table["label"]]
        named = sorted({v for v in labels if v is not None and v != -1}, key=lambda v: (isinstance(v, str), v))
        rng = np.random.default_rng(o.seed)
        found = [rng.permutation([i for i, v in enumerate(labels) if v == c])[: o.per_class] for c in named]
        centre = x[np.concatenate(found)].mean(0)
        means = np.stack([x[rows].mean(0) for rows in found]) - centre
        means += o.noise * means.std() * rng.normal(size=means.shape)
        return [str(c) for c in named], centre, means

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
        scale: float = Field(20.0, gt=0, description="of the cosine")

    @cached_property
    def encoder(self) -> Teacher:
        from kdhub.recipe import Ref
        from kdhub.resolve import Resolver

        if len(self.options.classes) < 2:
            raise UsageError(
                f"zero-shot:{self.argument} needs a description of each class",
                hint="teacher: {source: zero-shot:..., classes: {NAME: a text, ...}}",
            )
        return Resolver().teacher(Ref(source=self.argument), "text-embedding")

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
        from kdhub.resolve import Resolver

        prepare = Resolver().task("text-embedding").preparer(None, self.encoder)
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


def local(cls: type[LocalClassifier]) -> tuple[Any, Any]:
    """What builds such a teacher from a folder, and from a repository of the Hub."""

    def path(argument: str, options: Any = None) -> LocalClassifier:
        """A folder; so also the student of another recipe."""
        folder = Path(argument).expanduser()
        return cls(argument, options, folder=folder, known={"source": f"path:{argument}", "id": folder.name})

    def hub(argument: str, options: Any = None) -> LocalClassifier:
        """A transformers model of the Hub, at a pinned commit."""
        from kdhub.hub.fetch import fetch_model

        folder, repo, commit = fetch_model(argument)
        known = {"source": f"hf:{repo}@{commit}", "id": repo, "revision": commit}
        return cls(argument, options, folder=folder, known=known)

    path.Options = hub.Options = cls.Options
    return path, hub


path, hub = local(LocalClassifier)
