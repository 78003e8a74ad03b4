"""Saved models of images and texts as teachers."""

from __future__ import annotations

from functools import cached_property

from kdhub_tasks.language.teachers import LmTeacher
from kdhub_tasks.vision_language.reader import Reader


class VlmTeacher(LmTeacher):
    """A folder of a model of images and texts. Its rows are read without its weights."""

    kind = "image-text-to-text"
    auto = "AutoModelForImageTextToText"

    @cached_property
    def reader(self) -> Reader:
        from transformers import AutoConfig

        tokenizer = self.tokenizer  # whose folder is checked first
        return Reader.load(self.folder, tokenizer, AutoConfig.from_pretrained(self.folder, local_files_only=True))
