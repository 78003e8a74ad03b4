"""Generated pairs of sentences with graded similarity, for trying methods for pairs without other data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.errors import UsageError

SLOTS = {
    "size": ("small little tiny", "large big huge"),
    "colour": ("red crimson scarlet", "blue azure navy", "white pale snowy", "black dark inky"),
    "who": ("dog hound puppy", "cat kitten tomcat", "boy lad youngster", "woman lady mother", "man fellow guy"),
    "does": ("chases follows pursues", "watches observes eyes", "finds discovers spots", "pushes shoves moves"),
    "what": ("ball globe sphere", "car auto automobile", "bird finch sparrow", "box crate chest", "cart wagon trolley"),
    "where": ("garden yard lawn", "street road alley", "kitchen pantry galley", "field meadow pasture"),
}
"""Parts of a scene, what each can be, and words that mean the same."""
WEIGHTS = {"size": 0.5, "colour": 0.5, "who": 1.25, "does": 1.0, "what": 1.25, "where": 0.5}
"""The weight of each part in the score, 5 in all."""
SPLITS = {"train": 8000, "validation": 500, "test": 1000}


def scenes(noise: float = 0.0, seed: int = 0) -> Data:
    """`sentence1`, `sentence2` and `score` from 0 to 5: the weights of the parts that mean the same.

    Args:
        noise: deviation of noise on the scores of `train`, as people disagree; scores stay between 0 and 5.
        seed: of the noise; pairs and the scores of the other splits are always the same.
    """
    if noise < 0 or seed < 0:
        raise UsageError(f"scenes: noise and seed must be 0 or more (noise={noise}, seed={seed})")
    splits = {split: lambda split=split: _rows(split, noise if split == "train" else 0.0, seed) for split in SPLITS}
    key = {"version": 1, "noise": noise, "seed": seed}
    return Data.from_rows("scenes", splits, key=key, format="sts", licence="CC0-1.0")


def _rows(split: str, noise: float, seed: int) -> Iterator[dict[str, Any]]:
    number = list(SPLITS).index(split)
    rng, of_noise = np.random.default_rng([7, number]), np.random.default_rng([seed, 11])
    for _ in range(SPLITS[split]):
        one = {slot: int(rng.integers(len(means))) for slot, means in SLOTS.items()}
        other = {slot: v if rng.random() < 0.5 else int(rng.integers(len(SLOTS[slot]))) for slot, v in one.items()}
        score = sum(WEIGHTS[slot] for slot in SLOTS if one[slot] == other[slot])
        score = float(np.clip(score + noise * of_noise.standard_normal(), 0, 5))
        yield {"sentence1": _sentence(one, rng), "sentence2": _sentence(other, rng), "score": round(score, 3)}


def _sentence(scene: dict[str, int], rng: np.random.Generator) -> str:
    said = {slot: str(rng.choice(SLOTS[slot][meaning].split())) for slot, meaning in scene.items()}
    who = f"the {said['size']} {said['who']} {said['does']} the {said['colour']} {said['what']}"
    where = f"in the {said['where']}"
    return f"{who} {where}" if rng.random() < 0.5 else f"{where} {who}"
