"""Text encoders as teachers: from a folder, the Hub, or an installed package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.errors import TeacherError
from kdhub.named_layers import PREFIX, is_layer
from kdhub.rows import Example
from kdhub.teacher import Teacher
from kdhub.teachers.saved import SavedTeacher
from kdhub_tasks.embedding.model import EmbeddingStudent

if TYPE_CHECKING:
    import numpy as np

    from kdhub_tasks.embedding.encoder import Cutter


class EncoderTeacher(SavedTeacher):
    """A saved text encoder. It reads texts by its own tokens, whoever prepared them."""

    class Options(Teacher.Options):
        prompts: dict[str, str] | None = Field(None, description="text put in front, by role; the model's own if unset")
        max_length: int | None = Field(None, ge=4, description="tokens at most; the model's own if unset")
        precision: str = Field(
            "auto", pattern="^(auto|float32|bfloat16|float16)$", description="arithmetic of its runs"
        )
        trust_remote_code: bool = Field(False, description="run Python from the repository; only if you have read it")

    options: Options
    group_rows = 1024
    kind = "sentence-transformer"

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        from kdhub.ranks import resolve_precision

        own = {"precision": resolve_precision(self.options.precision), "max_length": self.options.max_length}
        return {**super().identity, **own}

    @staticmethod
    def identifies(file: Path) -> bool:
        return SavedTeacher.identifies(file) and file.name not in ("README.md", "data_config.json")

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**super().provenance, "precision": self.identity["precision"]}

    @cached_property
    def model(self) -> EmbeddingStudent:
        trusted = self.options.trust_remote_code
        model = EmbeddingStudent.load(self.folder, name=self.known.get("id"), trust_remote_code=trusted)
        model.module.requires_grad_(False)
        return model

    def probe(self) -> Mapping[str, Any]:
        return self.model.describe(self.options.precision)

    @property
    def width(self) -> int:
        return self.facts["width"]

    def layout(self, kind: str) -> dict[str, tuple[int | None, ...]]:
        return super().layout(kind) if is_layer(kind) else {"embedding": (self.width,)}

    def look(self, kind: str, examples: Sequence[Example]) -> None:
        super().look(kind, self._read(examples))

    def _read(self, examples: Sequence[Example]) -> list[Example]:
        """Examples by its own tokens."""
        return [{**e, "ids": ids} for e, ids in zip(examples, self.cutter.ids([e["text"] for e in examples]))]

    @property
    def normalised(self) -> bool:
        """Whether its vectors have length 1; see `EmbeddingStudent.describe`."""
        return self.facts["normalised"]

    @property
    def max_length(self) -> int | None:
        return min(filter(None, (self.facts["max_length"], self.options.max_length)), default=None)

    @property
    def prompts(self) -> dict[str, str]:
        if self.options.prompts is not None:
            return self.options.prompts
        # facts of before say nothing of the default
        return self.facts["prompts"] if "default_prompt" in self.facts else self.model.prompts

    @cached_property
    def cutter(self) -> Cutter:
        from kdhub_tasks.embedding.encoder import Cutter

        return Cutter.of(self.module, self.options.max_length)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        from kdhub_tasks.embedding import encoder

        if is_layer(kind):
            return super().signals(self._read(examples), kind)
        if kind != "embedding":
            raise TeacherError(f"a text encoder gives 'embedding' and {PREFIX}NAME, not {kind!r}")
        prompts = encoder.prompt_lengths(self.module, self.cutter, [e.get("prompt", "") for e in examples])
        ids = self.cutter.ids([e["text"] for e in examples])
        vectors = encoder.encode(self.module, ids, precision=self.options.precision, prompt_lengths=prompts)
        return {"embedding": vectors}
