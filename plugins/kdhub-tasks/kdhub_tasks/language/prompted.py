"""A language model as the teacher of another task: a template makes a prompt of a row, a parser reads the reply.

    teacher:
      source: prompted
      model: {source: openai:MODEL, input_price: 0.15, output_price: 0.6}
      classes: [negative, positive]
      template: "Is this review negative or positive?\\n\\n{text}\\n\\nReply with one word."

Any model that writes will do, local or behind an API. Replies go through the signal store, one row at a time, so that
none is paid for twice; what is read of them is this teacher's own signal, and the task measures it as any other's.

    class                       p(c) = (replies that name c + smoothing) / (replies + smoothing * classes)
    probabilities               the number after each class's word, over their sum; the mean over replies
    verdict                     log p of the first tokens of each class's word, as the model gives them (LLM guards)
    without `classes`           a score between the ends of `scale`, the mean over replies

Logits are log p, or the score. A reply counts only if it is unambiguous; a row none of whose replies can be read is a
bad row (`Teacher.complete`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdhub import open_task
from kdhub.errors import TeacherError, UsageError
from kdhub.fields import Field as Stored
from kdhub.recipes.recipe import TextRef
from kdhub.rows import Example
from kdhub.teacher import ANSWERED, Teacher
from kdhub_tasks.classes import SCORE
from kdhub_tasks.language.prompting import Prompter, filled, require
from kdhub_tasks.language.replies import read_score

if TYPE_CHECKING:
    from kdhub_tasks.language.prompting import Prompt

logger = logging.getLogger("kdhub")

CLASSES = "{input}\n\nWhich of these is it: {classes}? Reply with that alone.\n"
VALUES = (
    "{input}\n\nHow similar in meaning are they, from {low} (not at all) to {high} (the same)? "
    "Reply with the number alone.\n"
)


Bound = Annotated[float, Field(ge=-1e12, le=1e12)]


class ReadsTexts:
    """For teachers of rows that are read as texts, whatever tokens a student makes of them."""

    @property
    def reads(self) -> Self:
        return self

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> tuple[list[list[int]], list[bool]]:
        return [[0] for _ in texts], [False] * len(texts)

    def encode_pairs(self, pairs: Sequence[Any], max_length: int | None = None) -> list[dict[str, Any]]:
        return [{"length": 1, "cut": False} for _ in pairs]


class Prompted(ReadsTexts, Teacher):
    """See above; a template has the row's own columns as placeholders, all of them as `{input}`, and `{classes}`,
    `{low}`, `{high}`."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        model: TextRef | None = Field(None, description="the language model, as a recipe names a teacher")
        template: str | None = Field(
            None, description="the prompt, with {text} or another column; a plain one if unset"
        )
        classes: list[str] | None = Field(
            None, description="names of the classes, in the student's order; unset for a score"
        )
        words: list[str] | None = Field(None, description="what the model calls them; their names if unset")
        scale: tuple[Bound, Bound] = Field((0.0, 1.0), description="lowest and highest score")
        read: Literal["class", "probabilities", "verdict"] = Field(
            "class",
            description="what a reply says: the word of one class, a number after each word, or by its first token how "
            "probable each word is",
        )
        smoothing: Annotated[float, Field(gt=0)] = Field(0.05, description="added to the replies that name each class")
        samples: int = Field(1, ge=1, description="replies to each row")
        answers: dict[str, Any] = Field({}, description="settings of the replies: temperature, max_new_tokens, ...")
        chat: bool = Field(False, description="use a local model's chat template; API models always have theirs")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
                raise ValueError(f"classes must be two or more different names (classes={self.classes})")
            if self.words is not None and len(set(self.words)) != len(self.classes or ()):
                raise ValueError(f"words must be one for each class (words={self.words}, classes={self.classes})")
            if self.read == "verdict" and (self.classes is None or self.samples > 1):
                raise ValueError(
                    f"for read=verdict classes must be named, and samples must be 1 (classes={self.classes}, "
                    f"samples={self.samples})"
                )
            if self.scale[0] >= self.scale[1]:
                raise ValueError(f"scale must be the lowest and the highest score (scale={list(self.scale)})")
            return self

    options: Options
    complete = False
    group_rows = 1024
    tokenizer = vocabulary = max_length = None

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        from pathlib import Path

        folder = Path(recipe["teacher"]["source"].partition(":")[2]).parent / "prompted"
        folder.mkdir(exist_ok=True)
        return {"model": open_task("causal-lm").tiny_recipe(folder)["teacher"], "classes": ["bad", "good"]}

    @cached_property
    def prompter(self) -> Prompter:
        """Raises:
        UsageError: no model, a template without the row, or samples that would be identical.
        """
        o = self.options
        if o.model is None:
            raise UsageError(
                "prompted needs a model (model=None)", hint="teacher: {source: prompted, model: openai:MODEL}"
            )
        how = {"max_new_tokens": 1, "first_tokens": 20} if o.read == "verdict" else {"max_new_tokens": 32}
        made = Prompter("prompted", o.model, o.answers, o.chat, **how)
        require("prompted", o.samples, made.how)
        return made

    @property
    def template(self) -> str:
        return self.options.template or (VALUES if self.options.classes is None else CLASSES)

    @property
    def identity(self) -> Mapping[str, Any]:
        o, key = self.options, self.prompter.key
        own = {"template": self.template, "samples": o.samples}
        own |= {"scale": o.scale} if o.classes is None else {"classes": o.classes, "words": self.words, "read": o.read}
        own |= {"smoothing": o.smoothing} if o.classes is not None and o.read == "class" else {}
        return {"kind": "prompted", "version": 1, **key, **own}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The model's own, and how it is prompted."""
        how = {name: value for name, value in self.identity.items() if name not in ("kind", "version", "model")}
        return {**self.prompter.model.provenance, "prompted": how}

    @property
    def spent(self) -> Mapping[str, float]:
        return self.prompter.model.spent

    @property
    def classes(self) -> list[str]:
        return self.options.classes or [SCORE]

    @property
    def words(self) -> list[str]:
        return self.options.words or self.classes

    # -- signals ----------------------------------------------------------------------------------------------

    def layout(self, kind: str) -> dict[str, Any]:
        if kind != "logits":
            raise TeacherError(f"a prompted teacher gives logits, not {kind!r}")
        return {"logits": (len(self.classes),), ANSWERED: Stored(ANSWERED, "uint8")}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        self.layout(kind)
        read = self.values(examples)
        logits = np.array([np.zeros(len(self.classes)) if value is None else value for value in read], np.float32)
        return {"logits": logits, ANSWERED: np.array([value is not None for value in read], np.uint8)}

    def values(self, examples: Sequence[Example]) -> list[np.ndarray | None]:
        """The logits of each example, float64; None where no reply can be read."""
        replies = self.prompter([self._prompt(example) for example in examples], self.options.samples)
        if self.options.read == "verdict":
            read = [read_verdict(row[0].first or {}, self.words) for row in replies]
        else:
            read = [self.read([text for text, _ in row]) for row in replies]
        if bad := [row for row, value in zip(replies, read) if value is None]:
            logger.warning("%d of %d replies cannot be read, such as %r", len(bad), len(read), bad[0][0][0][:80])
        return read

    def _prompt(self, example: Example) -> Prompt:
        shown = self.task.shown(example)
        if not any(f"{{{name}}}" in self.template for name in ("input", *shown)):
            names = ", ".join(f"{{{name}}}" for name in ("input", *shown))
            raise UsageError(f"prompted: the template must contain one of {names} (template={self.template[:60]!r})")
        whole = "\n\n".join(f"{name.capitalize()}: {value}" for name, value in shown.items())
        low, high = self.options.scale
        known = {"classes": ", ".join(self.words), "low": f"{low:g}", "high": f"{high:g}"}
        return filled(self.template, input=whole, **known, **shown)

    def read(self, replies: Sequence[str]) -> np.ndarray | None:
        """The logits of one row, from its replies; None where none of them can be read."""
        o = self.options
        if o.classes is None:
            values = [value for text in replies if (value := read_score(text, *o.scale)) is not None]
            return np.array([np.mean(values)]) if values else None
        if o.read == "class":
            named = [n for text in replies if (n := read_class(text, self.words)) is not None]
            counts = np.bincount(named, minlength=len(o.classes)) + o.smoothing
            return np.log(counts / counts.sum()) if named else None
        given = [p for text in replies if (p := read_probabilities(text, self.words)) is not None]
        return np.log(np.clip(np.mean(given, 0), 1e-4, None)) if given else None


def read_class(text: str, words: Sequence[str]) -> int | None:
    """The number of the one class whose word is in a reply; None where none or several are. Of words within words
    (`safe`, `not safe`) the longer one counts."""
    ordered = sorted(words, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(word.lower())}(?!\w)" for word in ordered)
    found = set(re.findall(pattern, text.lower()))
    return [word.lower() for word in words].index(found.pop()) if len(found) == 1 else None


def read_verdict(first: Mapping[str, float], words: Sequence[str]) -> np.ndarray | None:
    """log p of each class, normalised over the classes, from the tokens that an answer may begin with: the sum over
    those that begin one class's word and no other's. A word that none begins has the least probable token's, which it
    has at most; None where that is true of all words."""
    lower = [word.lower() for word in words]
    found: list[list[float]] = [[] for _ in words]
    for token, value in first.items():
        begun = [n for n, word in enumerate(lower) if word.startswith(token.strip().lower())]
        if len(begun) == 1:
            found[begun[0]].append(value)
    if not any(found):
        return None
    each = np.array([np.logaddexp.reduce(values) if values else min(first.values()) for values in found])
    return each - np.logaddexp.reduce(each)


def read_probabilities(text: str, words: Sequence[str]) -> np.ndarray | None:
    """The number after each class's word (`safe: 0.8`, `"safe": 80 %`), over their sum; None unless each has one, and
    they sum to about 1 or 100."""
    values = []
    for word in words:
        found = re.findall(rf"(?<!\w){re.escape(word.lower())}\W{{1,6}}?(\d*\.?\d+)", text.lower())
        if len(set(found)) != 1:
            return None
        values.append(float(found[0]))
    total = sum(values)
    return np.array(values) / total if 0.95 <= total <= 1.05 or 95 <= total <= 105 else None
