"""Views of outputs: functions outputs -> outputs of the same form, so that one set of metrics serves full vectors,
truncated ones, int8 and binary storage, and the noise sweep.

    truncate(outputs, 96)      int8(outputs)      binary(outputs)      noise(outputs, 0.9, seed=0)

Views hold what they store (codes, signs) as float32 again, so that one ranking serves all: products of int8 codes or of
signs are whole numbers, which the exact stage of the ranking keeps exact. Vectors are first made unit length, because
a cosine does not depend on length and a fixed int8 range does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from kdhub.errors import ShapeError
from kdhub_tasks.embedding.outputs import Outputs
from kdhub_tasks.embedding.vectors import blocks, mapped, unit

INT8_LIMIT = 0.3
"""The published int8 range of unit vectors, [-0.3, 0.3] in every dimension (LEAF model cards)."""


def truncate(outputs: Outputs, dims: int) -> Outputs:
    """The first `dims` dimensions, made unit length again (Matryoshka).

    Raises:
        ShapeError: the vectors have fewer.
    """
    width = getattr(outputs, outputs.sides[0]).shape[1]
    if not 1 <= dims <= width:
        raise ShapeError(f"dims must be from 1 to {width}, the width of the vectors (dims={dims})")
    return _view(outputs, lambda rows: unit(rows[:, :dims]), width=dims)


def int8(outputs: Outputs, limit: float | None = INT8_LIMIT) -> Outputs:
    """Unit vectors stored in one byte a dimension and compared by the cosine of their codes.

    Args:
        limit: the range of every dimension is [-limit, limit]. The published 0.3 suits hundreds of dimensions; None
            takes the largest magnitude among the documents (retrieval) or right texts (STS).
    """
    if limit is None:
        stored = getattr(outputs, outputs.sides[1])
        limit = max(float(np.abs(unit(block)).max()) for _, block in blocks(stored))
    return _view(outputs, lambda rows: int8_codes(rows, limit))


def int8_codes(vectors: np.ndarray, limit: float = INT8_LIMIT) -> np.ndarray:
    """`trunc((x + limit) / (2 * limit / 255) - 128)` as int8, the formula of sentence-transformers.

    Values beyond the range are clipped first: the bare formula would wrap them around to the other sign.
    """
    step = 2 * limit / 255
    return np.trunc((np.clip(vectors, -limit, limit) + limit) / step - 128).astype(np.int8)


def binary(outputs: Outputs) -> Outputs:
    """One bit a dimension: 1 where above 0. Ranks and scores are those of the Hamming distance H of the packed bits.

    Held as signs, not packed: their cosine is exactly 1 - 2 H / D, and a matrix product of signs is faster than
    counting bits.
    """
    return _view(outputs, lambda rows: np.where(rows > 0, 1.0, -1.0))


def noise(outputs: Outputs, cosine: float, *, seed: int, sides: Literal["queries", "both"] = "queries") -> Outputs:
    """Unit vectors rotated at random, so that their cosine to the original is exactly `cosine`.

    The sweep over cosines shows how much approximation error a use tolerates: with `sides="queries"` asymmetric use
    (the teacher's documents, a student's queries), with "both" a student on both sides. In STS pairs the left text
    counts as the query.

    Args:
        cosine: from -1 to 1.
        seed: of the directions; the two sides get different ones.
    """
    if not -1 <= cosine <= 1:
        raise ValueError(f"cosine must be from -1 to 1 (cosine={cosine})")
    if sides not in ("queries", "both"):
        raise ValueError(f"sides must be 'queries' or 'both' (sides={sides!r})")
    if (width := getattr(outputs, outputs.sides[0]).shape[1]) < 2:
        raise ShapeError(f"vectors need two dimensions or more to be rotated (width={width})")

    def turn(side: int) -> Callable[[np.ndarray], np.ndarray]:
        generator = np.random.default_rng([seed, side])

        def rows_turned(rows: np.ndarray) -> np.ndarray:
            away = generator.standard_normal(rows.shape)
            away -= (away * rows).sum(1, keepdims=True) * rows
            return cosine * rows + np.sqrt(1 - cosine**2) * unit(away)

        return rows_turned

    chosen = outputs.sides[:1] if sides == "queries" else outputs.sides
    return replace(outputs, **{name: mapped(getattr(outputs, name), turn(i)) for i, name in enumerate(chosen)})


def _view(outputs: Outputs, change: Callable[[np.ndarray], np.ndarray], width: int | None = None) -> Outputs:
    return replace(outputs, **{name: mapped(getattr(outputs, name), change, width) for name in outputs.sides})
