"""Answers that a model scores: a prompted teacher (`prompted`) whose rows are a task and an answer to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdhub.errors import UsageError
from kdhub.rows import Example
from kdhub_tasks.language.prompted import Prompted
from kdhub_tasks.language.prompting import Prompter, question_and_answer, require
from kdhub_tasks.language.replies import Tally

SCORE = (
    "How good is the answer to this task, from {low} (useless) to {high} (perfect)?\n\n"
    "Task: {prompt}\n\nAnswer: {response}\n\nReply with the number alone.\n"
)


class Answers:
    """What a template is filled with."""

    @staticmethod
    def shown(example: Example) -> dict[str, str]:
        return {"prompt": example["prompt"], "response": example["response"]}


class Scorer:
    """A model that is prompted to score answers.

    Args:
        what: the data set, for messages.
        ref, chat, given: see `Prompter`.
        template: with {prompt} and {response} in it; scale: the lowest and the highest score.
    """

    def __init__(
        self,
        what: str,
        ref: Any,
        template: str,
        scale: Sequence[float],
        chat: bool = False,
        given: Mapping[str, Any] | None = None,
    ):
        self.prompter = Prompter(what, ref, given, chat, max_new_tokens=32)
        require(what, 1, self.prompter.how, template, "prompt", "response")
        if len(scale) != 2 or not scale[0] < scale[1]:
            raise UsageError(f"{what}: scale must be the lowest and the highest score (scale={list(scale)})")
        self.template, self.scale = template, scale
        self.teacher = Prompted("", Prompted.Options(template=template, scale=tuple(scale)), task=Answers)
        self.teacher.prompter = self.prompter

    @property
    def name(self) -> str:
        return self.prompter.name

    @property
    def key(self) -> dict[str, Any]:
        return {**self.prompter.key, "template": self.template, "scale": [*self.scale]}

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """The score of each prompt and response; None where the reply has none."""
        found = self.teacher.values([{"prompt": prompt, "response": text} for prompt, text in pairs])
        return [None if score is None else float(score[0]) for score in found]

    def of_groups(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[list[float | None]]:
        """The score of each response to each prompt."""
        found = iter(self.scores([(prompt, text) for prompt, texts in pairs for text in texts]))
        return [[next(found) for _ in texts] for _, texts in pairs]

    def kept(self, rows: Sequence[dict[str, Any]], least: float, tally: Tally) -> Iterator[dict[str, Any]]:
        """The rows that score at least `least`, with their `score`."""
        for row, score in zip(rows, self.scores([question_and_answer(row) for row in rows])):
            if score is None or score < least:
                tally["without a readable score" if score is None else f"scored below {least:g}"] += 1
            else:
                yield {**row, "score": score}
