"""Captioned clips of moving digits, sentences about digits, and words with pictures, all generated.

The pictures are scikit-learn's 8 x 8 digits. In sentences digits are drawn independently of everything else, so that
text alone cannot tell one digit from another; a caption names the digit of its clip and what was measured on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kdhub.data.dataset import Data

WORDS = tuple("zero one two three four five six seven eight nine".split())
PLACES = tuple("river road hill garden bridge market tower lake door wall".split())
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
CAPTIONS = (
    "the {style} {digit} drifts {way}",
    "we saw the {digit} and the {digit} near the {place}",
    "the {style} {digit} drifts {way} , the {digit} and the {digit} wait",
    "near the {place} the {digit} meets the {digit}",
    "a {style} {digit} waits near the {place} , then the {digit} drifts {way}",
    "the {digit} , the {digit} and the {digit} drift {way}",
)
"""A clip shows several pictures of one digit."""
SENTENCES = (
    "we saw the {a} and the {b} near the {place}",
    "the {style} {a} drifts {way} , the {b} and the {c} wait",
    "near the {place} the {a} meets the {b}",
    "a {style} {a} waits near the {place} , then the {b} drifts {way}",
    "the {a} , the {b} and the {c} drift {way}",
)
NEUTRAL = ("we saw the {digit} near the {place}", "the {digit} drifts {way}", "near the {place} the {digit} waits")
FRAMES = 4
CLIPS = {"train": 3000, "validation": 300}
TEXTS = {"train": 20_000, "validation": 500, "test": 1000}


def digit_clips(*, seed: int = 0) -> Data:
    """Clips of 4 frames of 64 pixels, 0 to 1, and their captions: train 3000, validation 300.

    A clip shows four pictures of one digit that move by two pixels in all to one side, with a little jitter.
    """

    def rows(split: str) -> Iterator[dict[str, Any]]:
        images, labels = pictures()
        half = 1200 if split == "train" else 0  # pictures of validation clips are others
        part = slice(0, half) if half else slice(1200, None)
        images, labels = images[part], labels[part]
        thin, thick = np.quantile(images.mean((1, 2)), [1 / 3, 2 / 3])
        rng = np.random.default_rng([seed, len(split)])
        for _ in range(CLIPS[split]):
            digit = int(rng.integers(10))
            chosen = images[rng.choice(np.flatnonzero(labels == digit), FRAMES, replace=False)]
            way = str(rng.choice(list(WAYS)))
            steps = np.round(np.linspace(-1, 1, FRAMES)).astype(int)
            frames = [moved(x, step * np.array(WAYS[way]) + rng.integers(-1, 2, 2)) for x, step in zip(chosen, steps)]
            ink = chosen.mean()
            style = "slanted" if slant(chosen) > 0.08 else "thin" if ink < thin else "thick" if ink > thick else "plain"
            caption = str(rng.choice(CAPTIONS)).format(
                style=style, digit=WORDS[digit], way=way, place=rng.choice(PLACES)
            )
            yield {"text": caption, "frames": np.stack(frames).reshape(FRAMES, 64).round(4).tolist(), "digit": digit}

    splits = {split: (lambda split=split: rows(split)) for split in CLIPS}
    return Data.from_rows("digit-clips", splits, key={"seed": seed, "version": 2}, licence="cc-by-4.0")


def digit_sentences(*, seed: int = 0) -> Data:
    """Sentences with two or three digits, drawn independently of each other and of the rest: train 20000, validation
    500, test 1000."""

    def rows(split: str) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng([seed, 7, list(TEXTS).index(split)])
        styles = ("thin", "thick", "plain", "slanted")
        for _ in range(TEXTS[split]):
            a, b, c = (WORDS[i] for i in rng.integers(0, 10, 3))
            others = {"style": rng.choice(styles), "way": rng.choice(list(WAYS)), "place": rng.choice(PLACES)}
            yield {"text": str(rng.choice(SENTENCES)).format(a=a, b=b, c=c, **others)}

    splits = {split: (lambda split=split: rows(split)) for split in TEXTS}
    return Data.from_rows("digit-sentences", splits, key={"seed": seed, "version": 1}, licence="cc0-1.0")


def digit_words() -> Data:
    """Each digit in every neutral sentence, its word, and the mean picture of the digit: test."""

    def rows() -> Iterator[dict[str, Any]]:
        images, labels = pictures()
        for digit, word in enumerate(WORDS):
            mean = images[labels == digit].mean(0).ravel().round(4).tolist()
            contexts = {text.format(digit=word, place=p, way=w) for text in NEUTRAL for p in PLACES for w in WAYS}
            for text in sorted(contexts):
                yield {"text": text, "word": word, "picture": mean}

    return Data.from_rows("digit-words", {"test": rows}, key={"version": 1}, licence="cc-by-4.0")


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) pictures of 0 to 1 and their digits, shuffled with seed 0."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    return (loaded.images / 16)[order], loaded.target[order]


def moved(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The picture moved by (rows, columns), filled up with zeros."""
    wide = np.pad(image, 3)
    y, x = 3 - np.clip(by, -3, 3)
    return wide[y : y + image.shape[0], x : x + image.shape[1]]


def slant(images: np.ndarray) -> float:
    """How far ink leans to the right from bottom to top: the covariance of column and height over the variance of
    height."""
    weights = images.sum(0) if images.ndim == 3 else images
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]].astype(float)
    total = weights.sum()
    y, x = -(y - (y * weights).sum() / total), x - (x * weights).sum() / total
    return float((weights * x * y).sum() / (weights * y * y).sum())
