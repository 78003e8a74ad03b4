"""A saved student as a teacher: `path:FOLDER` and `hf:ORG/NAME`, for every task.

The task opens the folder (`Task.load`), and what it opens gives the signals. What a run must know before it asks for
one (classes, shapes, the longest text) is measured once and kept (`Teacher.facts`), so that a run whose signals are all
stored loads no weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdhub import named_layers
from kdhub.errors import TeacherError, UsageError
from kdhub.files import sha256_files
from kdhub.hub.weights import read_header
from kdhub.rows import Example
from kdhub.teacher import Teacher

if TYPE_CHECKING:
    from torch import nn

    from kdhub.student import Student

IDENTIFYING = (".safetensors", ".json", ".txt", ".model")
"""Files of a model's folder that determine its outputs."""


PRECISIONS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""What safetensors call them, and everybody else."""


class SavedTeacher(Teacher):
    """A folder with a model of its task; its identity is read from its files.

    A task that needs more than this class has its own subclass in `Task.Teacher`.

    Attributes:
        kind: names models of one family in the identity; the task's name if empty.
        nested: whether files in folders inside count as well.
        folder: where the model lies.
        known: what a card says of it: `id`, `source`, and of the Hub `revision` and `licence`.
    """

    group_rows = 512
    kind: ClassVar[str] = ""
    nested: ClassVar[bool] = True

    def __init__(self, argument: str, options: Any = None, *, task: Any = None, folder: Path, known: Mapping[str, Any]):
        super().__init__(argument, options, task=task)
        self.folder, self.known = folder, dict(known)
        if not folder.is_dir():
            raise UsageError(f"teacher folder {folder} does not exist")

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        inside = self.folder.rglob("*") if self.nested else self.folder.iterdir()
        files = [p.relative_to(self.folder).as_posix() for p in inside if p.is_file() and self.identifies(p)]
        return {"kind": self.kind or self.task.name, "files": sha256_files(self.folder, sorted(files))}

    @staticmethod
    def identifies(file: Path) -> bool:
        """Whether the outputs depend on a file."""
        return file.suffix in IDENTIFYING

    @property
    def provenance(self) -> Mapping[str, Any]:
        weights = {n: d for n, d in self.identity["files"].items() if n.endswith(".safetensors")}
        return {**self.known, "files": weights, "dtype": self.dtype}

    @cached_property
    def dtype(self) -> str | None:
        """In which most of its weights are stored (`bfloat16`), and so computed with; None without safetensors."""
        counts: Counter[str] = Counter()
        for file in (self.folder / name for name in self.identity["files"] if name.endswith(".safetensors")):
            for dtype, shape in read_header(file).tensors.values():
                if dtype in PRECISIONS:
                    counts[PRECISIONS[dtype]] += prod(shape)
        return counts.most_common(1)[0][0] if counts else None

    @cached_property
    def model(self) -> Student:
        """The saved student, opened when it is first needed."""
        model = self.task.load(self.folder, name=self.known.get("id"))
        if model.module is not None:
            model.module.eval().requires_grad_(False)
        return model

    @property
    def module(self) -> nn.Module | None:
        return self.model.module

    def probe(self) -> Mapping[str, Any]:
        return self.model.describe()

    def look(self, kind: str, examples: Sequence[Example]) -> None:
        known = self.facts.get("layers", {})
        if kind not in known:
            (shape,) = named_layers.shapes(self.task, self.model, examples, [kind]).values()
            self.facts = {**self.facts, "layers": {**known, kind: list(shape)}}
            self._keep_facts(self.facts)

    def layout(self, kind: str) -> dict[str, Any]:
        if named_layers.is_layer(kind):
            return {kind: tuple(self.facts["layers"][kind])}  # see `look`
        widths = self.facts.get("widths", {})
        if kind not in widths:
            raise TeacherError(f"{self.argument} gives {', '.join(widths)}, not {kind!r}")
        return {kind: tuple(widths[kind])}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if named_layers.is_layer(kind):
            return named_layers.run(self.task, self.model, examples, [kind])
        return self.model.signals(examples, kind)


def path(argument: str, options: Any = None, *, task: Any) -> SavedTeacher:
    """A folder; so also the student of another recipe."""
    folder = Path(argument).expanduser()
    known = {"source": f"path:{argument}", "id": folder.name}
    return task.Teacher(argument, options, task=task, folder=folder, known=known)


def hub(argument: str, options: Any = None, *, task: Any) -> SavedTeacher:
    """A model of the Hub, at a pinned commit; weights and configuration only."""
    from kdhub.hub.fetch import card_licence, fetch_model

    folder, repo, commit = fetch_model(argument)
    known = {"source": f"hf:{repo}@{commit}", "id": repo, "revision": commit}
    if licence := card_licence(folder):
        known["licence"] = licence
    return task.Teacher(argument, options, task=task, folder=folder, known=known)
