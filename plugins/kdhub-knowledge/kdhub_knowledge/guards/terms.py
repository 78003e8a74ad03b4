"""`terms`: a guard that knows a list of words, the simplest labeller there is: a block list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from kdhub_tasks.language.prompted import ReadsTexts
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import TeacherError, UsageError
from kdhub.rows import Example
from kdhub.teacher import Teacher
from kdhub_knowledge.guards.words import words


class Terms(ReadsTexts, Teacher):
    """The second class has probability `sure` where a text has one of the terms, 1 - `sure` where it has none."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        terms: list[str] = Field(default_factory=list, description="words, in whatever case")
        classes: Annotated[list[str], Field(min_length=2, max_length=2)] = Field(
            ["0", "1"], description="names of the two classes"
        )
        sure: float = Field(0.9, gt=0.5, lt=1, description="probability of the class that a text's words speak for")

    options: Options
    tokenizer = vocabulary = max_length = None

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {"terms": ["good", "plot"], "classes": ["bad", "good"]}

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "terms", "version": 1, **self.options.model_dump()}

    @property
    def classes(self) -> list[str]:
        return list(self.options.classes)

    def layout(self, kind: str) -> dict[str, Any]:
        """
        Raises:
            TeacherError: anything but logits. UsageError: no terms.
        """
        if kind != "logits":
            raise TeacherError(f"a list of terms gives logits, not {kind!r}")
        if not self.options.terms:
            raise UsageError("terms needs words (terms=[])", hint="teacher: {source: terms, terms: [word, another]}")
        return {"logits": (2,)}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        self.layout(kind)
        known, sure = {word for term in self.options.terms for word in words(term)}, self.options.sure
        shown = ["\n".join(self.task.shown(example).values()) for example in examples]
        found = np.array([not known.isdisjoint(words(text)) for text in shown])
        p = np.where(found, sure, 1 - sure).reshape(-1, 1)
        return {"logits": np.log(np.concatenate([1 - p, p], 1)).astype(np.float32) - np.float32(math.log(1 - sure))}
