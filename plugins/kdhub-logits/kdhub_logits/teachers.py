"""Teachers of classification whose weights are at hand: a folder, or the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kdhub._files import sha256_files
from kdhub.errors import TeacherError, UsageError
from kdhub.task import Example
from kdhub.teacher import Teacher


class LocalClassifier(Teacher):
    """A classifier folder, ours or the transformers library's; its identity is read from its files."""

    group_rows = 512

    def __init__(self, argument: str, options: Any = None, *, folder: Path, known: Mapping[str, Any]):
        super().__init__(argument, options)
        self.folder, self.known = folder, dict(known)
        if not folder.is_dir():
            raise UsageError(f"teacher folder {folder} does not exist")

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        kept = (".safetensors", ".json", ".txt", ".model")
        files = [p.name for p in sorted(self.folder.iterdir()) if p.is_file() and p.suffix in kept]
        return {"kind": "classifier", "files": sha256_files(self.folder, files)}

    @property
    def provenance(self) -> Mapping[str, Any]:
        weights = {n: d for n, d in self.identity["files"].items() if n.endswith(".safetensors")}
        return {**self.known, "files": weights}

    @cached_property
    def model(self) -> Any:
        from kdhub_logits import classifiers

        model = classifiers.load(self.folder, name=self.known.get("id"))
        model.module.requires_grad_(False)
        return model

    @property
    def module(self) -> Any:
        return self.model.module

    def probe(self) -> Mapping[str, Any]:
        return {
            "classes": self.model.classes,
            "widths": {kind: list(self.model.width(kind)) for kind in self.model.kinds},
        }

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> Any:
        return self.model.encode(texts, max_length)

    def layout(self, kind: str) -> dict[str, tuple[int | None, ...]]:
        widths = self.facts["widths"]
        if kind not in widths:
            raise TeacherError(f"{self.argument} gives {', '.join(widths)}, not {kind!r}")
        return {kind: tuple(widths[kind])}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        return self.model.signals(examples, kind)


def path(argument: str, options: Any = None) -> LocalClassifier:
    """A classifier folder; so also the student of another recipe."""
    folder = Path(argument).expanduser()
    return LocalClassifier(argument, options, folder=folder, known={"source": f"path:{argument}", "id": folder.name})


def hub(argument: str, options: Any = None) -> LocalClassifier:
    """A transformers classifier of the Hub, at a pinned commit."""
    from kdhub.hub.fetch import fetch_model

    folder, repo, commit = fetch_model(argument)
    known = {"source": f"hf:{repo}@{commit}", "id": repo, "revision": commit}
    return LocalClassifier(argument, options, folder=folder, known=known)


for _build in (path, hub):
    _build.Options = LocalClassifier.Options
