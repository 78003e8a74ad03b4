"""Data sets of kdhub-logits: scikit-learn's digits, which every installation has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from kdhub.data import Data
from kdhub.errors import UsageError

SPLITS = {"train": slice(0, 1200), "validation": slice(1200, 1400), "test": slice(1400, None)}
"""Of the 1797 rows, shuffled with seed 0."""


def digits(form: Literal["image", "features"] = "image") -> Data:
    """1797 handwritten digits of 8 x 8 pixels, 0 to 16 (UCI, as scikit-learn has it): train 1200, validation 200,
    test 397.

    Args:
        form: `image`, bytes of 0 to 255, or `features`, 64 numbers a row.
    """
    if form not in ("image", "features"):
        raise UsageError(f"digits has the forms image and features, not {form!r}")

    def rows(part: slice) -> Iterator[dict[str, Any]]:
        from sklearn.datasets import load_digits

        loaded = load_digits()
        for i in np.random.default_rng(0).permutation(len(loaded.target))[part]:
            if form == "image":
                yield {"image": (loaded.images[i] * 15.9375).astype(int).tolist(), "label": int(loaded.target[i])}
            else:
                yield {"features": loaded.data[i].tolist(), "label": int(loaded.target[i])}

    splits = {name: (lambda part=part: rows(part)) for name, part in SPLITS.items()}
    return Data.from_rows("digits", splits, key={"form": form, "version": 1}, licence="cc-by-4.0")
