"""`ngrams:N`: a linear classifier of hashed n-grams of words, the smallest guard there is.

    x        each different run of 1 to N words of a text, hashed to one of so many buckets
    logits   sum over x of W[bucket] / sqrt(|x|) + b

Of a pair both texts have buckets of their own: the order of prompt and response counts. An empty text has none. Texts
are read whole; there is no vocabulary, so a saved student needs nothing but its weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from kdhub_tasks.classes import classes_for, problem_for
from kdhub_tasks.classification.model import NetworkClassifier
from kdhub_tasks.transformer import padded
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from kdhub.errors import CompatibilityError, UsageError
from kdhub.rows import Example
from kdhub.student import BuildContext
from kdhub_knowledge.guards.words import words

NETWORK = "hashed-ngrams"


class HashedNgrams(nn.Module):
    """
    Args:
        classes: how many; buckets: rows of the table, of which one more is padding; n, shape: of the reader.
    """

    def __init__(self, classes: int, buckets: int, n: int = 1, shape: Any = None):
        super().__init__()
        self.table = nn.EmbeddingBag(buckets + 1, classes, mode="sum", padding_idx=buckets)
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.zeros_(self.table.weight)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        many = inputs["attention_mask"].sum(1, keepdim=True).clamp_min(1)
        return {"logits": self.table(inputs["input_ids"]) / many.sqrt() + self.bias}


class NgramClassifier(NetworkClassifier):
    """Reads texts and pairs of texts."""

    tokenizer = None

    @property
    def batch(self) -> int:
        return 512

    def blank(self) -> dict[str, torch.Tensor]:
        return padded([[0]], self.config["buckets"])

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> tuple[list[list[int]], list[bool]]:
        """Buckets of each text; none is cut."""
        return [self._buckets([text]) for text in texts], [False] * len(texts)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int | None = None) -> list[dict[str, Any]]:
        made = [self._buckets(pair) for pair in pairs]
        return [{"tokens": ids, "by": self, "length": len(ids), "cut": False} for ids in made]

    def _buckets(self, texts: Sequence[str]) -> list[int]:
        most, buckets, found = self.config["n"], self.config["buckets"], set()
        for side, text in enumerate(texts):
            given = words(text) if text.strip() else []
            for n in range(1, most + 1):
                found |= {f"{side}\0{' '.join(given[i : i + n])}" for i in range(len(given) - n + 1)}
        return sorted({zlib.crc32(gram.encode()) % buckets for gram in found}) or [buckets]

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        # `tokens` and `ids` of rows that were prepared for another model are of its tokenizer.
        if "pair" in examples[0]:
            ids = [e["tokens"] if e.get("by") is self else self._buckets(e["pair"]) for e in examples]
        else:
            ids = [self._buckets([e["text"]]) for e in examples]
        return padded(ids, self.config["buckets"])

    def wrap(self, name: str, **settings: Any) -> None:
        raise CompatibilityError(f"a {NETWORK} has no layers that a wrapper ({name}) could use")


HashedNgrams.student = NgramClassifier


class NgramOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    buckets: int = Field(2**17, ge=16, le=2**24, description="rows of its table, which n-grams are hashed to")


def ngrams(argument: str, context: BuildContext) -> NgramClassifier:
    """`ngrams:2`: runs of one and of two words.

    Raises:
        UsageError: N is not a number from 1 to 5.
    """
    if argument not in map(str, range(1, 6)):
        raise UsageError(f"student ngrams:{argument}: N, the most words of a run, must be 1 to 5")
    config = {"network": NETWORK, "n": int(argument), "shape": [], "classes": classes_for(context)}
    config |= {"problem_type": problem} if (problem := problem_for(context)) else {}
    buckets = NgramOptions.model_validate(context.options).buckets
    return NgramClassifier(context.task.name, {**config, "buckets": buckets}, {"how": f"fresh ngrams:{argument}"})


ngrams.Options = NgramOptions
