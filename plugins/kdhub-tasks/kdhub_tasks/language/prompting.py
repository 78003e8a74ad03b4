"""Prompting a model many times. Every reply goes through the signal store (`generation`); `replies` reads them."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.errors import DataError, UsageError
from kdhub.files import canonical_json
from kdhub.teacher import Teacher
from kdhub_tasks.language.generation import Answer, Generation, sampled
from kdhub_tasks.language.replies import read_order
from kdhub_tasks.language.rows import answer_of, prompt_of

BATCH = 8192
"""Prompts sent at once; no more of a data set is held in memory."""

Prompt = str | list[dict[str, str]]


class Prompter:
    """A model, and the settings with which it is prompted.

    Args:
        what: the data set, for messages.
        ref: the model as a recipe names a teacher, or an open one.
        given: settings of `Generation`; the others are these `defaults`.
        chat: send prompts as messages of a user, in the model's chat template; API models know no other form.

    Attributes:
        signals: gives stored signals of rows; the store itself unless a method sets it, to `RunContext.signals`.
    """

    def __init__(self, what: str, ref: Any, given: Mapping[str, Any] | None, chat: bool = False, **defaults: Any):
        from pydantic import ValidationError

        from kdhub.recipes.recipe import explain

        if ref is None:
            raise UsageError(f"{what} needs a model to prompt", hint="options: {teacher: openai:MODEL}")
        try:
            self.how = Generation(**{**defaults, **(given or {})})
        except ValidationError as error:
            raise UsageError(f"{what}: {'; '.join(explain(error, Generation, (), ('answers',)))}") from error
        self.model = ref if isinstance(ref, Teacher) else open_teacher(ref, "causal-lm")
        self.chat = chat
        self.signals: Callable[..., Any] | None = None

    @property
    def key(self) -> dict[str, Any]:
        return {"model": dict(self.model.identity_of(self.how.kind)), "how": self.how.kind, "chat": self.chat}

    @property
    def name(self) -> str:
        """The model's name and the beginning of its identity's digest."""
        digest = hashlib.sha256(canonical_json(self.model.identity)).hexdigest()[:12]
        return f"{self.model.provenance.get('id') or 'model'} {digest}"

    def __call__(self, prompts: Sequence[Prompt], samples: int = 1, *, faults: bool = False) -> list[list[Answer]]:
        """The replies to each prompt; `faults` as in `generation.answers`."""
        import datasets

        if not prompts:
            return []
        table = datasets.Dataset.from_list([self.row(prompt) for prompt in prompts])
        return sampled(self.model, table, self.how, samples, self.signals, faults=faults)

    def row(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt as a row of the task `causal-lm`."""
        if isinstance(prompt, str) and not self.chat:
            return {"prompt": prompt}
        return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}


def ranks(
    prompter: Prompter, template: str, pairs: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[list[float | None]]:
    """The rank that a model gives each response to each prompt, 0 for the worst. Models prefer what they see first, so
    responses are shown in a random order, which depends on the prompt alone."""
    orders = [random.Random(prompt).sample(range(len(texts)), len(texts)) for prompt, texts in pairs]
    shown = [
        filled(template, prompt=prompt, responses="\n\n".join(f"[{i}] {texts[n]}" for i, n in enumerate(order, 1)))
        for (prompt, texts), order in zip(pairs, orders)
    ]
    for order, ((text, _),) in zip(orders, prompter(shown)):
        points: list[float | None] = [None] * len(order)
        for place, number in enumerate(read_order(text, len(order)) or ()):
            points[order[number]] = float(len(order) - 1 - place)
        yield points


# -- rows and templates -----------------------------------------------------------------------------------------------


def source(
    name: str, argument: str, options: Mapping[str, Any] | None, *columns: str, limit: int | None = None
) -> Data:
    """The data set with the prompts, its first rows; it needs one of some columns, by default of those that hold a
    prompt."""
    data = open_data(argument, limit=limit, options=options)
    columns = columns or ("prompt", "text", "messages")
    for split in data.splits:
        if not set(columns) & set(has := data.split(split).column_names):
            raise DataError(
                f"{name}, split {split!r}, needs the column {' or '.join(columns)}; it has {', '.join(has)}",
                hint="continuations:DATA makes prompts of texts",
            )
    return data


def fingerprints(data: Data) -> dict[str, str]:
    return {split: data.fingerprint(split) for split in data.splits}


def with_log_probs(what: str, answers: Mapping[str, Any] | None, drop_unlikely: float) -> Mapping[str, Any] | None:
    """Settings of answers of which the least probable are dropped.

    Raises:
        UsageError: no share.
    """
    if not 0 <= drop_unlikely < 1:
        raise UsageError(f"{what}: drop_unlikely must be a share, from 0 to below 1 (drop_unlikely={drop_unlikely:g})")
    return {**(answers or {}), "log_probs": True} if drop_unlikely else answers


def require(what: str, samples: int, how: Generation, template: str = "", *placeholders: str) -> None:
    """Raises:
    UsageError: samples that would all be identical, or a template without a placeholder.
    """
    if samples < 1 or (samples > 1 and not how.temperature):
        raise UsageError(
            f"{what}: samples must be 1, or more at a temperature above 0 "
            f"(samples={samples}, temperature={how.temperature:g})",
            hint="set answers: {temperature: 0.7}, or samples: 1",
        )
    if missing := [name for name in placeholders if f"{{{name}}}" not in template]:
        raise UsageError(f"{what}: the template must contain {{{missing[0]}}} (template={template[:60]!r})")


def batches(rows: Any) -> Iterator[list[Any]]:
    for start in range(0, len(rows), BATCH):
        yield [rows[i] for i in range(start, min(start + BATCH, len(rows)))]


def filled(template: str, **values: str) -> str:
    """The template with values for its placeholders; braces in the values mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)


def prompt_in(row: Mapping[str, Any], template: str = "{prompt}") -> Prompt:
    """The prompt of a row: its messages where it has them, the last of which is put into the template."""
    *before, last = prompt_of(row)
    prompt = filled(template, prompt=last["content"])
    return [*before, {**last, "content": prompt}] if row.get("messages") else prompt


def question_and_answer(row: Mapping[str, Any]) -> tuple[str, str]:
    """The last question of a row, and its answer.

    Raises:
        DataError: it has no answer.
    """
    if (answer := answer_of(row)) is None:
        raise DataError("a row has no response to verify against", hint="set keep: majority or keep: scored")
    return prompt_of(row)[-1]["content"], answer
