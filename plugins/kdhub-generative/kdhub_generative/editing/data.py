"""Pictures with a shape and a colour, and one of them to be edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from kdhub_tasks.classification import images

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import DataError, UsageError

COLOURS = ("red", "green", "blue")
BESIDE = 0.1
"""Of the brightness, what the other two channels have: of a blue picture 1 / 1.2 = .83 of all light is blue."""


def coloured(
    argument: str,
    *,
    every: bool = True,
    one: str | None = None,
    nth: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`coloured:DATA`: another data set with grey pictures, painted red, green and blue; the label says both, `3 red`.

    Args:
        every: each picture in all three colours; else in one of them in turn.
        one: a label: of each split one picture alone, as rows to tune a guide on. nth: which, from 0: the one that is
            least like the others of its label, by the correlation with their mean.
        options: of the other data set.

    Raises:
        UsageError: no picture has such a label, or not so many. DataError: pictures are of several sizes.
    """
    data, name = open_data(argument, options=options), f"coloured:{argument}"
    if not isinstance(nth, int) or nth < 0:
        raise UsageError(f"{name}: nth is a number from 0 (nth={nth!r})")

    def rows(split: str) -> Iterator[dict[str, Any]]:
        table = data.split(split)
        if lost := {"image", "label"} - set(table.column_names):
            raise DataError(f"{data.name}, split {split!r}, has no column {' and no '.join(sorted(lost))}")
        shape, colour = ("", "") if one is None else one.rpartition(" ")[::2]
        kept = []
        for n, row in enumerate(named_rows(table.select_columns(["image", "label"]))):
            if one is not None and str(row["label"]) != shape:
                continue
            grey = images.read(row["image"])
            grey = grey if grey.ndim == 2 else grey.mean(0).round().astype(np.uint8)
            if one is not None:
                kept.append(grey)
                continue
            for name_of in COLOURS if every else COLOURS[n % 3 : n % 3 + 1]:
                yield {"image": painted(grey, name_of).tolist(), "label": f"{row['label']} {name_of}"}
        if one is None:
            return
        if colour not in COLOURS or nth >= len(kept):
            raise UsageError(
                f"{name}, split {split!r}: there is no picture {nth} of {one!r} ({len(kept)} of {shape!r})",
                hint="one: a label and a colour, such as 3 red",
            )
        yield {"image": painted(kept[least_typical(np.stack(kept))[nth]], colour).tolist(), "label": one}

    key = {"of": {s: data.fingerprint(s) for s in data.splits}, "every": every, "one": one, "nth": nth, "version": 1}
    return Data.from_rows(name, {s: (lambda s=s: rows(s)) for s in data.splits}, key=key, licence=data.licence)


def painted(grey: np.ndarray, colour: str) -> np.ndarray:
    """(height, width) of bytes as (3, height, width)."""
    light = np.full(3, BESIDE)
    light[COLOURS.index(colour)] = 1
    return (light[:, None, None] * grey).round().astype(np.uint8)


def least_typical(pictures: np.ndarray) -> np.ndarray:
    """Numbers of pictures (n, height, width), from the one that correlates least with the mean of all."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    return np.argsort([correlation(one, flat.mean(0)) for one in flat], kind="stable")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays of numbers; 0 where one of them has a single value."""
    a, b = (x.astype(np.float64).ravel() - x.mean() for x in (a, b))
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else 0.0
