"""Seeds: what models that draw are given, in place of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from kdhub_tasks.classification import images

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.data.shared import Shared
from kdhub.errors import DataError, UsageError

SPLITS = {"train": 0, "validation": 1, "test": 2}
"""Split -> which part of all seeds is its own: no two share one."""
APART = 2**40


def noise(
    argument: str,
    *,
    conditions: int | Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    reference: Mapping[str, Any] | str | None = None,
    seed: int = 0,
) -> Data:
    """`noise:N`: N seeds a split, as `seed`, and a `condition` for each in turn where there are some.

    Args:
        conditions: classes, or how many: then they are called 0, 1, ... prompts: texts, in their place.
        reference: a data set with pictures (`image`) that metrics compare with; models never see them. All of one size.
        seed: others than with 0.

    Raises:
        UsageError: N is no number from 1, or both classes and prompts.
    """
    if not argument.isdigit() or not 0 < int(argument) <= 2**31:
        raise UsageError(f"noise:{argument}: how many seeds is a whole number from 1")
    if conditions is not None and prompts is not None:
        raise UsageError(f"noise:{argument}: conditions are classes or prompts, not both")
    many = int(argument)
    named = (
        list(map(str, range(conditions))) if isinstance(conditions, int) else [*map(str, conditions or prompts or ())]
    )
    real = None if reference is None else real_pictures(reference)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        first = (seed * len(SPLITS) + SPLITS[split]) * APART % 2**62
        for n in range(many):
            row = {"seed": first + n, "condition": named[n % len(named)] if named else None}
            yield {k: v for k, v in row.items() if v is not None} | ({"reference": real.name} if real else {})

    key = {"many": many, "conditions": named, "seed": seed, "version": 1, "reference": real.key if real else None}
    splits = {split: (lambda split=split: rows(split)) for split in SPLITS}
    return Data.from_rows(f"noise:{argument}", splits, key=key, licence="cc0-1.0", shared=[real] if real else [])


def real_pictures(source: Mapping[str, Any] | str) -> Shared:
    """The pictures of a data set, as bytes (n, channels, height, width), beside the rows that name them.

    Raises:
        DataError: it has no pictures, or of several sizes.
    """
    data = open_data(source)
    split = data.pick("train")
    table = data.split(split)
    if "image" not in table.column_names:
        raise DataError(f"{data.name}, split {split!r}, has no column 'image', only {', '.join(table.column_names)}")

    def read() -> dict[str, np.ndarray]:
        found = [images.read(row["image"]) for row in iterate(table.select_columns(["image"]))]
        found = [x if x.ndim == 3 else x[None] for x in found]
        if len(sizes := {x.shape for x in found}) > 1:
            raise DataError(
                f"{data.name}, split {split!r}, has pictures of {len(sizes)} sizes, such as "
                + " and ".join(" x ".join(map(str, size)) for size in sorted(sizes)[:2]),
                hint="bring them to one: resized:SIZE:DATA",
            )
        return {"images": np.stack(found)}

    return Shared({"pictures of": data.fingerprint(split), "version": 1}, read)
