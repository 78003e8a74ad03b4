"""Images to count in that need no folder: pasted digits, and dots of one file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.errors import DataError, UsageError
from kdhub.files import given_or_shared, known_sha256
from kdhub.plain_arrays import read_arrays

DIGIT = 8
"""Pixels of a side of scikit-learn's digits."""
SOURCES = {"train": (0, 1200), "validation": (1200, 1400), "test": (1400, 1797)}
"""Which of its digits, in an order of their own, are pasted in which split: no digit is in two."""


def pasted_digits(
    canvas: int = 64, most: int = 20, train: int = 500, validation: int = 100, test: int = 200, seed: int = 0
) -> Data:
    """0 to `most` handwritten digits of 8 x 8 pixels (UCI, as scikit-learn has it) at random places of a square canvas;
    where they overlap, the brighter pixel is seen. A point is a digit's centre.

    Args:
        canvas: pixels of a side; train, validation, test: images of each split; seed: of places and digits.

    Raises:
        UsageError: a canvas smaller than a digit, or no images.
    """
    many = {"train": train, "validation": validation, "test": test}
    if canvas < 2 * DIGIT or most < 0 or min(many.values()) < 1:
        raise UsageError(
            f"pasted-digits takes a canvas from {2 * DIGIT} and at least one image of each split ({canvas=}, {most=}, "
            f"{train=}, {validation=}, {test=})"
        )

    def rows(split: str) -> Iterator[dict[str, Any]]:
        from sklearn.datasets import load_digits

        digits, (first, end) = load_digits().images, SOURCES[split]
        order = np.random.default_rng(0).permutation(len(digits))[first:end]
        draw = np.random.default_rng([seed, first])
        for _ in range(many[split]):
            image, n = np.zeros((canvas, canvas)), draw.integers(0, most + 1)
            corners = draw.integers(0, canvas - DIGIT + 1, (n, 2))
            for (x, y), which in zip(corners, draw.choice(order, n)):
                at = image[y : y + DIGIT, x : x + DIGIT]
                np.maximum(at, digits[which] * 15.9375, out=at)
            yield {"image": image.astype(np.uint8), "points": (corners + DIGIT / 2).tolist()}

    key = {"canvas": canvas, "most": most, **many, "seed": seed, "version": 1}
    splits = {split: (lambda split=split: rows(split)) for split in many}
    return Data.from_rows("pasted-digits", splits, key=key, licence="cc-by-4.0")


def dots(argument: str, *, train: int = 100, validation: int = 50, seed: int = 0) -> Data:
    """Images and dots of an .npz file: `image` (n, height, width) and `dots` (m, 3), the image, row and column of each.
    Images are shared out by chance.

    Args:
        train, validation: how many images; all others are `test`. seed: of the chance.

    Raises:
        UsageError: no such file. DataError: it has other arrays, or a dot outside its image.
    """
    file = given_or_shared(argument)
    if file is None:
        raise UsageError(f"dots:{argument}: there is no such file", hint="it is also searched below KDHUB_DATA")

    def rows(split: str) -> Iterator[dict[str, Any]]:
        images, where = _arrays(file)
        if not 0 < train + validation < len(images):
            raise UsageError(f"dots:{argument} has {len(images)} images, too few ({train=}, {validation=})")
        order = np.random.default_rng(seed).permutation(len(images))
        ends = {"train": (0, train), "validation": (train, train + validation), "test": (train + validation, None)}
        for n in order[slice(*ends[split])]:
            own = where[where[:, 0] == n]
            yield {"image": images[n], "points": (own[:, [2, 1]] + 0.5).tolist()}

    key = {"file": known_sha256(file), "train": train, "validation": validation, "seed": seed, "version": 1}
    splits = {split: (lambda split=split: rows(split)) for split in ("train", "validation", "test")}
    return Data.from_rows(f"dots:{file.name}", splits, key=key)


def _arrays(file: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        given = read_arrays(file)
        images, where = given["image"], given["dots"].astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file.name} has no arrays `image` and `dots`: {error}") from error
    if images.ndim not in (3, 4) or where.ndim != 2 or where.shape[1] != 3:
        raise DataError(
            f"{file.name}: image {images.shape} and dots {where.shape}, expected (n, height, width) and (m, 3)"
        )
    size = np.array(images.shape[:3])
    if (wrong := ((where < 0) | (where >= size)).any(1)).any():
        n = int(wrong.argmax())
        raise DataError(
            f"{file.name}, row {n + 1} of dots: {where[n].tolist()} lies outside of the images {size.tolist()}"
        )
    return images, where
