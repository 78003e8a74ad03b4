"""Saved language models as teachers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example
from kdhub_tasks.language.generation import is_text, layout
from kdhub_tasks.language.rows import max_length
from kdhub_tasks.teachers import ModelTeacher


class LmTeacher(ModelTeacher):
    """A language model's folder. Its rows are read without its weights, which signals in the store do not need."""

    group_rows = 64
    kind = "causal-lm"

    def layout(self, kind: str) -> dict[str, Any]:
        return layout() if is_text(kind) else super().layout(kind)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        return self.model.signals(examples, kind) if is_text(kind) else super().signals(examples, kind)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        check_model_folder(self.folder, name=self.known.get("id"))
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def max_length(self) -> int:
        from transformers import AutoConfig

        tokenizer = self.tokenizer  # whose folder is checked first
        return max_length(AutoConfig.from_pretrained(self.folder, local_files_only=True), tokenizer)
