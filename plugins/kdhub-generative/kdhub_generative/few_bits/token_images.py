"""Images as sentences, so that whatever learns texts draws: each patch is the nearest word of a k-means code book.

A sentence has a character a patch, from left to right and top to bottom; a model of bytes sees a token a patch. The
code book is of the training images alone, so the other splits are read by the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.errors import DataError, UsageError

FITTED = 100_000
"""Patches that a code book is made of, at most."""
PRINTED = 94
"""Words that are one byte each."""


def token_images(
    argument: str, *, codes: int = 64, patch: int = 2, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Data:
    """`token-images:DATA`: each split with images, as `text`; a `label` stays beside it.

    Args:
        argument: the data set, as `--data` takes it; images of one size.
        codes: words of the code book, 2 to 4,096; up to 94 of them are one byte each.
        patch: pixels of a side.
        seed: of k-means.
        options: of the other data set.
    """
    if not isinstance(codes, int) or not 2 <= codes <= 4096:
        raise UsageError(f"token-images:{argument}: codes must be from 2 to 4096 (codes={codes!r})")
    if not isinstance(patch, int) or patch < 1:
        raise UsageError(f"token-images:{argument}: patch must be at least 1 (patch={patch!r})")
    data = open_data(argument, options=options)
    splits = [name for name in data.splits if "image" in data.split(name).column_names]
    if "train" not in splits:
        raise DataError(f"token-images:{argument}: its split 'train' has no column 'image', which a code book needs")
    book = CodeBook(data, codes, patch, seed)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        labels = "label" in data.split(split).column_names
        for row in data.split(split):
            label = {"label": row["label"]} if labels else {}
            yield {"text": book.sentence(np.asarray(row["image"]), split), **label}

    key = {"codes": codes, "patch": patch, "seed": seed, "version": 1}
    return data.remade(f"token-images:{argument}", rows, splits, key=key)


class CodeBook:
    """Words for the patches of a data set's training images.

    Attributes:
        words: (codes, numbers of a patch), fitted when they are first needed.
    """

    def __init__(self, data: Data, codes: int, patch: int, seed: int = 0):
        self.data, self.codes, self.patch, self.seed = data, codes, patch, seed

    @cached_property
    def words(self) -> np.ndarray:
        from sklearn.cluster import KMeans

        found, have = [], 0
        for row in self.data.split("train"):
            found.append(self.patches(np.asarray(row["image"]), "train"))
            if (have := have + len(found[-1])) >= FITTED:
                break
        fitted = KMeans(self.codes, n_init=1, random_state=self.seed).fit(np.concatenate(found)).cluster_centers_
        return fitted[np.lexsort(fitted.T)]  # an order that does not depend on the library

    def patches(self, image: np.ndarray, split: str = "") -> np.ndarray:
        """(height, width) or (channels, height, width) -> (patches, numbers of one), as float64.

        Raises:
            DataError: patches do not divide it.
        """
        image = np.asarray(image, np.float64)
        image = image[None] if image.ndim == 2 else image
        channels, height, width = image.shape
        if height % self.patch or width % self.patch:
            raise DataError(
                f"{self.data.name}, split {split!r}: patches of {self.patch} do not divide {height} x {width} pixels",
                hint="set patch, or bring the images to another size: resized:SIZE:DATA",
            )
        cut = image.reshape(channels, height // self.patch, self.patch, width // self.patch, self.patch)
        return cut.transpose(1, 3, 0, 2, 4).reshape(-1, channels * self.patch**2)

    def sentence(self, image: np.ndarray, split: str = "") -> str:
        patches = self.patches(image, split)
        apart = (patches**2).sum(1)[:, None] - 2 * patches @ self.words.T + (self.words**2).sum(1)
        return "".join(letter(int(n)) for n in apart.argmin(1))

    def image(self, sentence: str, width: int, channels: int = 1) -> np.ndarray:
        """What a sentence says: (channels, height, width); a code that is no word of the book is the first.

        Args:
            width: of the images, in pixels.
        """
        at = np.array([n if 0 <= (n := number(c)) < self.codes else 0 for c in sentence], int)
        across, p = width // self.patch, self.patch
        cut = self.words[at[: len(at) // across * across]].reshape(-1, across, channels, p, p)
        return cut.transpose(2, 0, 3, 1, 4).reshape(channels, -1, width)


def letter(code: int) -> str:
    """How a code is written: printable ASCII, then Chinese characters, of which there are enough in a row."""
    return chr(0x21 + code) if code < PRINTED else chr(0x4E00 + code - PRINTED)


def number(character: str) -> int:
    """The code that a character stands for; one outside 0 to 4,095 for others."""
    return ord(character) - 0x21 if ord(character) < 0x4E00 else ord(character) - 0x4E00 + PRINTED
