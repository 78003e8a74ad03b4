"""Masking: which tokens of a text, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """The tokens that masking needs to know.

    Attributes:
        mask: the mask token; special: tokens that are never masked; others: tokens that may replace a masked one.
    """

    mask: int
    special: frozenset[int]
    others: np.ndarray


def mask_tokens(
    ids: Sequence[int], tokens: Tokens, share: float, key: int, epoch: int = 0
) -> tuple[list[int], list[int], list[int]]:
    """A text with some tokens masked, their positions, and the true tokens there; drawn from `key` and `epoch`.

    At least one token is masked, unless all are special.
    """
    own = [i for i, token in enumerate(ids) if token not in tokens.special]
    if not own:
        return list(ids), [], []
    rng = np.random.default_rng([key, epoch])
    many = max(1, round(share * len(own)))
    at = np.sort(rng.choice(own, many, replace=False)).tolist()
    made, labels = list(ids), [ids[i] for i in at]
    for i, way, other in zip(at, ways(key, many, epoch), rng.choice(tokens.others, many)):
        made[i] = tokens.mask if way < 0.8 else int(other) if way < 0.9 else made[i]
    return made, at, labels


def ways(key: int, many: int, epoch: int = 0) -> list[float]:
    """How each masked token is masked, 0 to 1, in order: by the mask token below .8, by another token below .9, else
    left as it is."""
    return np.random.default_rng([key, epoch, 1]).random(many).tolist()


def places(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """For each token its number in the text, the characters where it starts and ends, and the number of its word, as
    separated by white space; -1 for special tokens and for white space."""
    words, inside = [], False
    number = -1
    for letter in text:
        number += not letter.isspace() and not inside
        inside = not letter.isspace()
        words.append(number)
    return [(n, start, end, words[start] if text[start:end].strip() else -1) for n, (start, end) in enumerate(spans)]


def trim_space(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters without leading white space, which some tokenizers include; all of them if there are no
    others."""
    return end - len(text[start:end].lstrip() or text[start:end]), end
