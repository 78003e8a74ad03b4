"""Small problems whose answers a verifier can check: `3+5=` and `8`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from kdhub.data.dataset import Data
from kdhub.errors import UsageError

OPERATIONS: dict[str, tuple[str, Callable[[int, int], str]]] = {
    "add": ("+", lambda a, b: str(a + b)),
    "larger": (">", lambda a, b: str(max(a, b))),
    "twice": ("&", lambda a, b: f"{b}{b}"),  # the second number, written twice
}
"""Name -> its sign in a prompt, and its answer for two numbers."""


def arithmetic(argument: str, *, numbers: int = 12, held_out: float = 0.25, seed: int = 0) -> Data:
    """`arithmetic:add,larger`: every problem of two numbers from 1 to `numbers` - 1, as `prompt`, `response` and
    `operation`, shuffled.

    Splits: `train`, and `test` with a share of the problems of each operation, which are not in `train`.

    Args:
        numbers: at least 3.
        held_out: the share of `test`, from 0 to below 1; 0 for no such split.

    Raises:
        UsageError: an unknown operation, or a value out of range.
    """
    names = [name.strip() for name in argument.split(",") if name.strip()]
    if not names or set(names) - set(OPERATIONS) or numbers < 3 or not 0 <= held_out < 1:
        raise UsageError(
            f"arithmetic:{argument} needs operations of {', '.join(OPERATIONS)}, numbers of at least 3 and held_out of "
            f"at least 0 and below 1 (numbers={numbers}, held_out={held_out})"
        )

    def rows(split: str) -> Iterator[dict[str, Any]]:
        chosen = []
        for name in names:
            sign, answer = OPERATIONS[name]
            problems = [(a, b) for a in range(1, numbers) for b in range(1, numbers)]
            random.Random(f"{seed} {name}").shuffle(problems)
            first = round(held_out * len(problems))
            for a, b in problems[:first] if split == "test" else problems[first:]:
                chosen.append({"prompt": f"{a}{sign}{b}=", "response": answer(a, b), "operation": name})
        random.Random(f"{seed} {split}").shuffle(chosen)
        return iter(chosen)

    splits = ("train", "test") if held_out else ("train",)
    key = {"argument": ",".join(names), "numbers": numbers, "held_out": held_out, "seed": seed, "version": 1}
    return Data.from_rows(f"arithmetic:{argument}", {name: lambda n=name: rows(n) for name in splits}, key=key)
