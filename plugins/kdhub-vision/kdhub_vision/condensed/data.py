"""Data sets in another style: what an encoder was trained on, so that what it is used for is new to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.errors import UsageError
from kdhub.rows import plain_rows


def styled(
    argument: str, *, degrees: float = 25.0, inverted: float = 0.5, seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Data:  # fmt: skip
    """`styled:DATA`: another data set of images, each turned by an angle drawn between -`degrees` and `degrees`, and a
    share of them with light and dark exchanged.

    Args:
        degrees: 0 to 180. inverted: share of the images, 0 to 1. seed: of both.
        options: of the other data set.

    Raises:
        UsageError: numbers out of their range, or rows without images.
    """
    if not (0 <= degrees <= 180 and 0 <= inverted <= 1):
        raise UsageError(
            f"styled:{argument}: degrees must be 0 to 180 and inverted 0 to 1 (degrees={degrees}, inverted={inverted})"
        )
    data = open_data(argument, options=options)
    how = {"degrees": float(degrees), "inverted": float(inverted), "seed": seed, "version": 1}

    def rows(split: str) -> Iterator[dict[str, Any]]:
        from kdhub_tasks.classification.images import read
        from scipy.ndimage import rotate

        table, rng = data.split(split), np.random.default_rng(seed)
        if "image" not in table.column_names:
            raise UsageError(f"styled:{argument}: split {split} has no column image, only {table.column_names}")
        for start in range(0, len(table), 256):
            for row in plain_rows(table, range(start, min(start + 256, len(table)))):
                x, angle, turn = read(row["image"]), rng.uniform(-degrees, degrees), rng.random() < inverted
                x = rotate(x, angle, axes=(-2, -1), reshape=False, order=1, mode="nearest")
                yield {**row, "image": (255 - x if turn else x).tolist()}

    splits = {name: (lambda name=name: rows(name)) for name in data.splits}
    key = {"of": {name: data.fingerprint(name) for name in data.splits}, **how}
    return Data.from_rows(f"styled:{data.name}", splits, key=key, licence=data.licence)
