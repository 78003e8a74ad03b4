"""Saved language models as teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example
from kdhub_tasks.language.generation import is_text, layout
from kdhub_tasks.language.own_settings import OwnSettings
from kdhub_tasks.language.rows import LONGEST
from kdhub_tasks.reading import longest
from kdhub_tasks.teachers import ModelTeacher


class LmTeacher(ModelTeacher):
    """A language model's folder. Its rows are read without its weights, which signals in the store do not need."""

    group_rows = 64
    kind = "causal-lm"
    auto = "AutoModelForCausalLM"

    def layout(self, kind: str) -> dict[str, Any]:
        return layout(kind) if is_text(kind) else super().layout(kind)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        return self.model.signals(examples, kind) if is_text(kind) else super().signals(examples, kind)

    def identity_of(self, kind: str) -> Mapping[str, Any]:
        """Of texts also what its generation settings say, where that is more than the tokenizer's end token."""
        marks = self.own_settings.marks if is_text(kind) else {}
        return {**self.identity, "generation": marks} if marks else self.identity

    @cached_property
    def own_settings(self) -> OwnSettings:
        from transformers import AutoConfig, GenerationConfig

        tokenizer = self.tokenizer  # whose folder is checked first
        if (self.folder / "generation_config.json").exists():
            return OwnSettings(GenerationConfig.from_pretrained(self.folder, local_files_only=True), tokenizer)
        config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        return OwnSettings(GenerationConfig.from_model_config(config), tokenizer)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        check_model_folder(self.folder, name=self.known.get("id"))
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def max_length(self) -> int:
        import torch
        import transformers

        tokenizer = self.tokenizer  # whose folder is checked first
        with torch.device("meta"):  # the network's parts, without weights
            config = transformers.AutoConfig.from_pretrained(self.folder, local_files_only=True)
            network = getattr(transformers, self.auto).from_config(config)
        return longest(network, tokenizer, default=LONGEST)
