"""Cross-encoders: transformers classifiers that read both texts of a pair at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdhub.errors import CompatibilityError
from kdhub.rows import Example
from kdhub.student import Student
from kdhub_tasks import wrappers
from kdhub_tasks.classes import REGRESSION, SCORE
from kdhub_tasks.transformer import TextClassifier, padded

ROWED = ("logits", "features", "embeddings")
"""Signals with one array a row, all of one shape."""


class SortedRows:
    """Runs rows of similar length together, whatever order they come in."""

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if kind not in ROWED or len(examples) < 2:
            return super().signals(examples, kind)
        order = np.argsort([-example["length"] for example in examples], kind="stable")
        given = super().signals([examples[i] for i in order], kind)[kind]
        result = np.empty_like(given)
        result[order] = given
        return {kind: result}


class PairClassifier(SortedRows, TextClassifier):
    """A cross-encoder in the transformers library's own format. With one output it gives a value, `score`."""

    task_name = "text-pairs"

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        super().__init__(model, tokenizer, start)
        if len(self.classes) > 1 and self.problem:
            raise CompatibilityError(
                f"a model of pairs gives one class or one score (problem_type={self.problem}, "
                f"{len(self.classes)} outputs)"
            )
        self.problem = ""  # values are told by their one output here
        if len(self.classes) == 1:
            self.classes = [SCORE]
            model.config.problem_type = REGRESSION

    @property
    def batch(self) -> int:
        return 32 if self.device.type == "cpu" else 512

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int | None = None) -> list[dict[str, Any]]:
        """Each pair as tokens of both texts between special ones; the longer text is cut first."""
        given, cut = self.tokenized(*zip(*pairs), max_length=max_length, truncation="longest_first")
        ids, kinds = given["input_ids"], given.get("token_type_ids")
        return [
            {"tokens": (i, kinds[n] if kinds else None), "by": self, "length": len(i), "cut": c}
            for n, (i, c) in enumerate(zip(ids, cut))
        ]

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        tokens = [e["tokens"] if e.get("by") is self else None for e in examples]
        if None in tokens:  # prepared for another model
            tokens = [read["tokens"] for read in self.encode_pairs([e["pair"] for e in examples])]
        batch = padded([ids for ids, _ in tokens], self.pad)
        if tokens[0][1] is not None:
            batch["token_type_ids"] = padded([kinds for _, kinds in tokens], 0)["input_ids"]
        return batch

    def usage(self) -> str:
        if wrappers.own_weights(self.module):  # the library would run the network without them
            return Student.usage(self)
        return (
            "from sentence_transformers import CrossEncoder\n"
            "from torch import nn\n\n"
            'model = CrossEncoder("{path}", activation_fn=nn.Identity())\n'
            'print(model.predict([("a text", "another text")]))'
        )
