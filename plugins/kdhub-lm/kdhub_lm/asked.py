"""Asking a model for many things, and reading what it says.

Every answer goes through the store (`kdhub_lm.generation`). Answers that are empty or that nobody can read are counted
by reason; a data set whose rows count so is `made`.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kdhub._files import canonical_json
from kdhub.data import Data, DataOptions
from kdhub.errors import DataError, TeacherError, UsageError
from kdhub_lm.generation import Generation, opened, several
from kdhub_lm.rows import answer_of, prompt_of

logger = logging.getLogger("kdhub")

BLOCK = 8192
"""Prompts that are asked for at once; no more of a data set is held."""

SCORE = (
    "How good is the answer to this task, from {low} (useless) to {high} (perfect)?\n\n"
    "Task: {prompt}\n\nAnswer: {response}\n\nReply with the number alone.\n"
)
Prompt = str | list[dict[str, str]]


class Asked:
    """A model, and how it is asked.

    Args:
        what: the data set, for messages.
        ref: the model as a recipe names a teacher.
        given: settings of `Generation`; others are these `defaults`.
        chat: prompts are messages of a user, written by the model's chat template; API models have no other form.
    """

    def __init__(self, what: str, ref: Any, given: Mapping[str, Any] | None, chat: bool = False, **defaults: Any):
        from pydantic import ValidationError

        from kdhub.recipe import explain

        if ref is None:
            raise UsageError(f"{what} needs a model to ask", hint="options: {teacher: openai:MODEL}")
        try:
            self.how = Generation(**{**defaults, **(given or {})})
        except ValidationError as error:
            told = "; ".join(explain(error, Generation, (), ("answers",)))
            raise UsageError(f"{what}: {told}") from error
        self.model, self.chat = opened(ref), chat

    @property
    def key(self) -> dict[str, Any]:
        return {"model": dict(self.model.identity), "how": self.how.kind, "chat": self.chat}

    @property
    def name(self) -> str:
        """Name and digest."""
        digest = hashlib.sha256(canonical_json(self.model.identity)).hexdigest()[:12]
        return f"{self.model.provenance.get('id') or 'model'} {digest}"

    def __call__(self, prompts: Sequence[Prompt], samples: int = 1) -> list[list[tuple[str, bool]]]:
        """The answers to each prompt, and whether the model ended them."""
        import datasets

        if not prompts:
            return []
        asked = datasets.Dataset.from_list([self._row(prompt) for prompt in prompts])
        return several(self.model, asked, self.how, samples)

    def _row(self, prompt: Prompt) -> dict[str, Any]:
        if isinstance(prompt, str) and not self.chat:
            return {"prompt": prompt}
        return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}


class Judge(Asked):
    """A model that scores answers."""

    def __init__(
        self,
        what: str,
        ref: Any,
        template: str,
        scale: Sequence[float],
        chat: bool = False,
        given: Mapping[str, Any] | None = None,
    ):
        super().__init__(what, ref, given, chat, max_new_tokens=32)
        require(what, 1, self.how, template, "prompt", "response")
        if len(scale) != 2 or not scale[0] < scale[1]:
            raise UsageError(f"{what}: scale is {list(scale)}, should be the lowest and the highest score")
        self.template, (self.low, self.high) = template, scale

    @property
    def key(self) -> dict[str, Any]:
        return {**super().key, "template": self.template, "scale": [self.low, self.high]}

    def of_all(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[list[float | None]]:
        """Of each prompt and each of its responses."""
        found = iter(self.scores([(prompt, text) for prompt, texts in pairs for text in texts]))
        return [[next(found) for _ in texts] for _, texts in pairs]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Of each prompt and response; None where what it said is no score."""
        scale = {"low": f"{self.low:g}", "high": f"{self.high:g}"}
        shown = [filled(self.template, prompt=prompt, response=text, **scale) for prompt, text in pairs]
        return [read_score(text, self.low, self.high) for ((text, _),) in self(shown)]

    def kept(self, rows: Sequence[dict[str, Any]], least: float, tally: Tally) -> Iterator[dict[str, Any]]:
        """The rows that score so high, with their `score`."""
        for row, score in zip(rows, self.scores([said_in(row) for row in rows])):
            if score is None or score < least:
                tally["scored unreadably" if score is None else f"scored below {least:g}"] += 1
            else:
                yield {**row, "score": score}


def in_order(judge: Asked, template: str, pairs: Sequence[tuple[str, Sequence[str]]]) -> Iterator[list[float | None]]:
    """Of each prompt its responses' points by the order that a model puts them in, 0 for the worst. They are shown in
    an order of chance, for models prefer what stands first; it is the same each time for one prompt."""
    orders = [random.Random(prompt).sample(range(len(texts)), len(texts)) for prompt, texts in pairs]
    shown = [
        filled(template, prompt=prompt, responses="\n\n".join(f"[{i}] {texts[n]}" for i, n in enumerate(order, 1)))
        for (prompt, texts), order in zip(pairs, orders)
    ]
    for order, ((text, _),) in zip(orders, judge(shown)):
        points: list[float | None] = [None] * len(order)
        for place, number in enumerate(read_order(text, len(order)) or ()):
            points[order[number]] = float(len(order) - 1 - place)
        yield points


class Tally(Counter):
    """Why answers were left out."""

    def report(self, what: str, kept: int) -> None:
        """Raises:
        TeacherError: none was kept.
        """
        if not self and kept:
            return
        told = f"{what}: {kept} rows, and {self.total()} answers left out: " + (
            ", ".join(f"{n} {why}" for why, n in self.most_common()) or "there were none"
        )
        if not kept:
            raise TeacherError(told, hint="does this model understand the template? Ask it once by hand")
        logger.warning("%s", told)


def made(
    name: str, splits: Mapping[str, Callable[[Tally], Iterable[dict[str, Any]]]], key: Mapping[str, Any], **about: Any
) -> Data:
    """A data set of rows that count what they leave out."""

    def rows(split: str) -> Iterator[dict[str, Any]]:
        tally, kept = Tally(), 0
        for row in splits[split](tally):
            kept += 1
            yield row
        tally.report(f"{name}, split {split!r}", kept)

    return Data.from_rows(name, {s: lambda s=s: rows(s) for s in splits}, key={**key, "version": 1}, **about)


# -- reading what was said --------------------------------------------------------------------------------------------


def read_score(text: str, low: float, high: float) -> float | None:
    """The score in an answer: `7`, `7/10`, `7 out of 10`, `Score: 7`; None where it could be another number's."""
    number = r"(?<![\d.])(-?\d+(?:\.\d+)?)(?!\.?\d)"
    found = re.findall(rf"{number}\s*(?:/|out of)\s*{high:g}\b", text)
    found = found or re.findall(rf"\b(?:score|rating|grade)\b\D{{0,12}}?{number}(?!\s*(?:-|to)\s*\d)", text, re.I)
    values = {float(value) for value in found or re.findall(number, text)}
    return value if len(values) == 1 and low <= (value := values.pop()) <= high else None


def read_order(text: str, count: int) -> list[int] | None:
    """Places from 0, the best first, from a line with `2 > 1 > 3`, the last such line; None where it is no order of
    all. Of other words nobody knows whether the better or the worse one comes first."""
    for line in reversed(text.splitlines()):
        for chain in re.findall(r"(?:\[?\d+\]?\s*[>,;]\s*)*\[?\d+\]?", line):
            found = [int(n) - 1 for n in re.findall(r"\d+", chain)]
            if sorted(found) == list(range(count)) and len(re.findall(r"\d+", line)) == count:
                return found
    return None


def read_pairs(text: str) -> list[tuple[str, str]]:
    """Tasks and answers from `Input: ... Output: ...`, as often as they come; the first Input may stand in what was
    asked."""
    begun = text if re.match(r"\s*[*#]*Input\s*:", text, re.I) else f"Input: {text}"
    parts = re.split(r"^[*#]*Input\s*:\**", begun, flags=re.I | re.M)[1:]
    pairs = [re.split(r"^[*#]*Output\s*:\**", part, maxsplit=1, flags=re.I | re.M) for part in parts]
    found = [[side.strip() for side in pair] for pair in pairs if len(pair) == 2]
    return [(prompt, response) for prompt, response in found if prompt and response]


def distinct(given: Iterable[tuple[str, bool]], tally: Tally) -> Iterator[tuple[int, tuple[str, bool]]]:
    """Answers with their numbers, without empty ones and those that came before."""
    seen = set()
    for n, (text, ended) in enumerate(given):
        if not text.strip() or text in seen:
            tally["the same again" if text in seen else "empty"] += 1
        else:
            seen.add(text)
            yield n, (text, ended)


# -- rows and templates -----------------------------------------------------------------------------------------------


def source(
    name: str, argument: str, options: Mapping[str, Any] | None, *columns: str, limit: int | None = None
) -> Data:
    """The first rows of the data set that is asked about; it has one of some columns, by default of those that hold a
    prompt."""
    from kdhub.resolve import Resolver

    data = Resolver().open_data(argument, DataOptions(limit=limit), options)
    columns = columns or ("prompt", "text", "messages")
    for split in data.splits:
        if not set(columns) & set(has := data.split(split).column_names):
            raise DataError(
                f"{name}, split {split!r}: its columns are {', '.join(has)}; it needs {' or '.join(columns)}",
                hint="continuations:DATA makes prompts of texts",
            )
    return data


def prints(data: Data) -> dict[str, str]:
    return {split: data.fingerprint(split) for split in data.splits}


def require(what: str, samples: int, how: Generation, template: str = "", *fields: str) -> None:
    """Raises:
    UsageError: samples that would all be the same, or a template without a field.
    """
    if samples < 1 or (samples > 1 and not how.temperature):
        raise UsageError(
            f"{what}: {samples} samples at temperature {how.temperature:g}",
            hint="the most probable answer is one: set answers: {temperature: 0.7}, or samples: 1",
        )
    if missing := [field for field in fields if f"{{{field}}}" not in template]:
        raise UsageError(f"{what}: its template lacks {{{missing[0]}}}: {template[:60]!r}")


def blocks(rows: Any) -> Iterator[list[Any]]:
    for start in range(0, len(rows), BLOCK):
        yield [rows[i] for i in range(start, min(start + BLOCK, len(rows)))]


def filled(template: str, **values: str) -> str:
    """The template with values in it; braces of the values mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)


def prompt_in(row: Mapping[str, Any], template: str = "{prompt}") -> Prompt:
    """What a model is asked by a row: messages where it has them, of which the last is put into the template."""
    *before, last = prompt_of(row)
    asked = filled(template, prompt=last["content"])
    return [*before, {**last, "content": asked}] if row.get("messages") else asked


def said_in(row: Mapping[str, Any]) -> tuple[str, str]:
    """What was last asked in a row, and what was answered.

    Raises:
        DataError: it has no answer.
    """
    if (answer := answer_of(row)) is None:
        raise DataError("a row has no response to verify with", hint="keep: majority or scored")
    return prompt_of(row)[-1]["content"], answer
