"""A judge model that rates answers from 1 to 10 (single-answer grading of arXiv:2306.05685).

Any model that gives text may judge; its replies are stored and not requested again. Judges prefer long answers and
their own: read their ratings together with `mean-length`, and name the judge.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

from kdhub import open_teacher
from kdhub_tasks.language.generation import Generation, answers
from kdhub_tasks.language.verify import extract

if TYPE_CHECKING:
    from kdhub_tasks.language.outputs import Texts

logger = logging.getLogger("kdhub")

QUESTION = """Below are a task, a reference answer, and the answer of an assistant. Rate how helpful, correct and \
clear the assistant's answer is, from 1 (useless) to 10 (perfect). Say in one sentence why, then write the rating \
alone on the last line, after "####".

[Task]
{prompt}

[Reference answer]
{reference}

[Assistant's answer]
{answer}
"""
HOW = Generation(max_new_tokens=256)


class Ratings:
    """A judge's ratings of answers.

    Args:
        texts: the answers.
        judge: a teacher source (`openai:MODEL`).
    """

    def __init__(self, texts: Texts, judge: str):
        self.texts, self.judge = texts, judge

    @property
    def examples(self) -> int:
        return len(self.texts.table)

    @cached_property
    def ratings(self) -> list[float]:
        """Those that could be read, 1 to 10."""
        import datasets

        questions = [
            QUESTION.format(prompt=p, reference=r, answer=a)
            for p, r, a in zip(self.texts.prompts, self.texts.references, self.texts.answers)
        ]
        table = datasets.Dataset.from_dict({"prompt": questions})
        replies = [text for text, _ in answers(open_teacher(self.judge, "causal-lm"), table, HOW)]
        ratings = [rating for text in replies if (rating := read_rating(text)) is not None]
        if unread := len(replies) - len(ratings):
            logger.warning("%s: no rating in %d of %d replies", self.judge, unread, len(replies))
        return ratings


def read_rating(text: str) -> float | None:
    """The rating in a judge's reply; None if there is none from 1 to 10."""
    found = extract(text)
    try:
        value = float(found) if found is not None else 0.0
    except ValueError:
        return None
    return value if 1 <= value <= 10 else None


def rating(out: Ratings) -> float | None:
    """The judge's mean rating; None if it gave none."""
    if not isinstance(out, Ratings) or not out.ratings:
        return None
    return sum(out.ratings) / len(out.ratings)
