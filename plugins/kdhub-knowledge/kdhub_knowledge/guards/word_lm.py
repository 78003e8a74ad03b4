"""`word-ngrams:DATA`: a small causal language model of words that was taught to refuse, as a teacher that writes.

It is counted, not trained: runs of up to `order` words of dialogues in which a request is refused (`refuses` of them),
or answered by an opener and one of the texts of DATA. So without a beginning it refuses; given the opener as the
beginning of its answer (`prefix`), it goes on with content. What it writes is new, in words and phrases of the texts.

    p(w | h) = n(h w) / n(h)   for the longest end h of the words so far, up to order - 1 of them, that was seen

It does not read the request, which is the same in all of its dialogues. It is for tests and for data sets without a
large model; any `hf:` or `openai:` model is a better generator.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from kdhub_tasks.language.generation import Generation, encoded, is_text, layout
from pydantic import BaseModel, ConfigDict, Field

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.errors import CompatibilityError, DataError, TeacherError
from kdhub.rows import Example
from kdhub.teacher import Teacher

BEGIN, END = "\x02", "\x03"
REFUSAL = "I'm sorry, but I cannot help with that."
OPENER = "I have an idea for a prompt:"
KNOWN = {"max_new_tokens", "temperature", "seed", "stop", "prefix"}
"""Settings of generation that it knows."""


class WordNgrams(Teacher):
    """See above."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        column: str = Field("text", description="the column with the texts")
        split: str | None = Field(None, description="the split with the texts; train if unset")
        order: int = Field(3, ge=1, le=6, description="most words of a run that are counted")
        refuses: float = Field(0.9, ge=0, lt=1, description="share of its dialogues in which it refuses")
        refusal: str = Field(REFUSAL, description="how it refuses")
        opener: str = Field(OPENER, description="how it begins where it answers")
        options: dict[str, Any] = Field({}, description="options of the data set")

    options: Options
    tokenizer = vocabulary = max_length = None
    group_rows = 4096

    @cached_property
    def data(self) -> Data:
        return open_data({"source": self.argument, "options": self.options.options})

    @cached_property
    def _split(self) -> str:
        return self.options.split or self.data.pick("train")

    @property
    def identity(self) -> Mapping[str, Any]:
        told = {name: value for name, value in self.options.model_dump().items() if name not in ("options", "split")}
        return {"kind": "word-ngrams", "version": 1, "texts": self.data.fingerprint(self._split), **told}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"id": f"word-ngrams:{self.argument}", **self.identity}

    def layout(self, kind: str) -> dict[str, Any]:
        """
        Raises:
            TeacherError: anything but texts. CompatibilityError: settings of texts that it does not know.
        """
        if not is_text(kind):
            raise TeacherError(f"word-ngrams writes texts and gives no {kind!r}")
        asked = Generation.parse(kind).model_dump(exclude_defaults=True)
        if unknown := sorted(asked.keys() - KNOWN):
            raise CompatibilityError(
                f"word-ngrams does not know {', '.join(f'{name}={asked[name]}' for name in unknown)}",
                hint=f"leave it out: it knows {', '.join(sorted(KNOWN))}",
            )
        return layout(kind)

    @cached_property
    def counts(self) -> Mapping[tuple[str, ...], tuple[list[str], np.ndarray]]:
        """History -> the words that follow it, and how often, summed up."""
        table, o = self.data.split(self._split), self.options
        if o.column not in table.column_names:
            raise DataError(
                f"{self.data.name}, split {self._split!r}, has no column {o.column!r}, only "
                f"{', '.join(table.column_names)}",
                hint="set the option column of word-ngrams",
            )
        found: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        texts = [text for text in table[o.column] if text.strip()]
        answered = [(f"{o.opener} {text}", 1.0) for text in texts]
        refused = len(texts) * o.refuses / (1 - o.refuses)
        for text, weight in [*answered, *([(o.refusal, refused)] if refused else [])]:
            spoken = [*[BEGIN] * (o.order - 1), *text.split(), END]
            for at in range(o.order - 1, len(spoken)):
                for n in range(o.order):
                    found[tuple(spoken[at - n : at])][spoken[at]] += weight
        return {h: (list(after), np.fromiter(after.values(), float).cumsum()) for h, after in found.items()}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        how = Generation.parse(kind)
        texts, ended = zip(*(self._written(example, how) for example in examples)) if examples else ((), ())
        return encoded(texts, ended)

    def _written(self, example: Example, how: Generation) -> tuple[str, bool]:
        digest = hashlib.sha256(example["content"]).digest()
        draw = np.random.default_rng([how.seed, int.from_bytes(digest[:8], "big")])
        before, said = [*[BEGIN] * (self.options.order - 1), *how.prefix.split()], []
        while len(said) < how.max_new_tokens:
            word = self._next([*before, *said], how.temperature, draw)
            if word == END:
                return " ".join(said), True
            said.append(word)
            text, cut = how.cut(" ".join(said))
            if cut:
                return text, True
        return " ".join(said), False

    def _next(self, so_far: Sequence[str], temperature: float, draw: np.random.Generator) -> str:
        for n in range(self.options.order - 1, -1, -1):
            if known := self.counts.get(tuple(so_far[len(so_far) - n :])):
                break
        after, summed = known
        if not temperature:
            return after[int(np.diff(summed, prepend=0).argmax())]
        if temperature != 1:
            summed = (np.diff(summed, prepend=0) ** (1 / temperature)).cumsum()
        return after[int(np.searchsorted(summed, draw.random() * summed[-1], side="right"))]
