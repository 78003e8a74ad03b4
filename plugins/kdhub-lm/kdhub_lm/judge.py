"""A model that rates what others write, from 1 to 10 (the single-answer grading of arXiv:2306.05685).

Any model that gives text may judge; what it said is stored, and not asked for again. Judges like long answers and their
own: read their rating beside `mean-length`, and say who judged.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

from kdhub_lm.generation import Generation, answers, opened
from kdhub_lm.verify import extract

if TYPE_CHECKING:
    from kdhub_lm.outputs import Texts

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


class Judged:
    """Answers and who rates them.

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

        asked = [
            QUESTION.format(prompt=p, reference=r, answer=a)
            for p, r, a in zip(self.texts.prompts, self.texts.references, self.texts.given)
        ]
        said = [text for text, _ in answers(opened(self.judge), datasets.Dataset.from_dict({"prompt": asked}), HOW)]
        ratings = [rating for text in said if (rating := rated(text)) is not None]
        if len(ratings) < len(said):
            logger.warning("%s gave no rating in %d of %d answers", self.judge, len(said) - len(ratings), len(said))
        return ratings


def rated(text: str) -> float | None:
    """The rating in a judge's answer; None where there is none from 1 to 10."""
    found = extract(text)
    try:
        value = float(found) if found is not None else 0.0
    except ValueError:
        return None
    return value if 1 <= value <= 10 else None


def rating(out: Judged) -> float | None:
    """Mean rating of the judge; None where it gave none."""
    if not isinstance(out, Judged) or not out.ratings:
        return None
    return sum(out.ratings) / len(out.ratings)
