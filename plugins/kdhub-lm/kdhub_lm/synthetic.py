"""Texts that are made: additions and rows of integers, as domains beside written language."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from kdhub.data import Data
from kdhub.errors import UsageError

HELD_OUT = {"train": 10, "validation": 1, "test": 1}
"""Rows of each split, relative to the others."""


def synthetic(argument: str, *, rows: int = 1000, length: int = 120, digits: int = 2, seed: int = 0) -> Data:
    """`synthetic:additions` ("12+7=19;58+3=61;...") or `synthetic:integers` ("8,51,0,7,..."). Splits: train of `rows`,
    validation and test of a tenth.

    Args:
        length: characters of a row, about.
        digits: of the numbers, at most.

    Raises:
        UsageError: another name, or sizes below 1.
    """
    if argument not in MAKERS or min(rows, length, digits) < 1:
        raise UsageError(
            f"synthetic:{argument}: one of {', '.join(MAKERS)}, with rows, length and digits of at least 1"
        )

    def split(name: str) -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{seed} {argument} {name}")
        for _ in range(max(1, rows * HELD_OUT[name] // 10)):
            text = ""
            while len(text) < length:
                text += MAKERS[argument](rng, 10**digits)
            yield {"text": text}

    key = {"argument": argument, "rows": rows, "length": length, "digits": digits, "seed": seed, "version": 1}
    return Data.from_rows(f"synthetic:{argument}", {name: lambda n=name: split(n) for name in HELD_OUT}, key=key)


def _addition(rng: random.Random, limit: int) -> str:
    a, b = rng.randrange(limit), rng.randrange(limit)
    return f"{a}+{b}={a + b};"


MAKERS = {"additions": _addition, "integers": lambda rng, limit: f"{rng.randrange(limit)},"}
