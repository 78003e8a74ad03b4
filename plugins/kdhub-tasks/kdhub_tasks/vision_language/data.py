"""Questions about pictures of handwritten digits, whose answers a verifier can check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.errors import UsageError
from kdhub_tasks.classification.data import SPLITS

QUESTIONS: dict[str, tuple[str, tuple[int, ...], Callable[[Sequence[int]], int]]] = {
    "which": ("which?", (1,), lambda digits: digits[0]),
    "sum": ("sum?", (2,), sum),
    "larger": ("larger?", (2,), max),
    "count": ("count?", (1, 2, 3, 4), len),
}
"""Name -> the question, how many digits its pictures may have, and its answer."""
SIDE = 8
"""Pixels of a digit; a picture is two by two of them."""


def digit_questions(argument: str, *, rows: int = 2000, held_out: int = 400, seed: int = 0) -> Data:
    """`digit-questions:which,sum,larger,count`: questions in turn about pictures of 16 x 16 pixels with one to four
    digits, as `image`, `prompt`, `response` and `question`. A question that is named twice comes twice as often.

    The digits of `validation` and `test` are not in the pictures of `train`: they are those of the splits of `digits`.

    Args:
        rows: of `train`; held_out: of `validation` and of `test`.

    Raises:
        UsageError: an unknown question, or fewer rows than questions.
    """
    names = [name.strip() for name in argument.split(",") if name.strip()]
    if not names or {*names} - {*QUESTIONS} or min(rows, held_out) < len(names):
        raise UsageError(
            f"digit-questions:{argument} needs questions of {', '.join(QUESTIONS)}, and rows of each (rows={rows}, "
            f"held_out={held_out})"
        )

    def made(split: str) -> Iterator[dict[str, Any]]:
        from sklearn.datasets import load_digits

        loaded = load_digits()
        own = np.random.default_rng(0).permutation(len(loaded.target))[SPLITS[split]]
        rng = np.random.default_rng([seed, [*SPLITS].index(split)])
        for n in range(rows if split == "train" else held_out):
            question, counts, answer = QUESTIONS[names[n % len(names)]]
            chosen = rng.choice(own, rng.choice(counts), replace=False)
            cells = rng.permutation(4)[: len(chosen)]
            picture = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
            for cell, digit in zip(cells, chosen):
                top, left = divmod(int(cell), 2)
                picture[top * SIDE :, left * SIDE :][:SIDE, :SIDE] = loaded.images[digit] * 15.9375
            digits = [int(loaded.target[digit]) for digit in chosen]
            yield {
                "image": picture.tolist(), "prompt": question, "response": str(answer(digits)),
                "question": names[n % len(names)],
            }  # fmt: skip

    key = {"argument": ",".join(names), "rows": rows, "held_out": held_out, "seed": seed, "version": 1}
    splits = {name: lambda n=name: made(n) for name in SPLITS}
    return Data.from_rows(f"digit-questions:{argument}", splits, key=key, licence="cc-by-4.0")
