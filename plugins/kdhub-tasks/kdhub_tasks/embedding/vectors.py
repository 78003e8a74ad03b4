"""Vectors in float32, compared in float64: cosines and nearest neighbours, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

SCORES = 2**24
"""float32 scores in memory at once: 64 MB."""
ROWS = 8192
"""Rows converted to float64 at once."""


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) float64, the cosine of each row of `left` (n, D) with the same row of `right`."""
    out = np.empty(len(left))
    for at, rows in blocks(left):
        out[at] = (unit(rows) * unit(right[at].astype(np.float64))).sum(1)
    return out.clip(-1, 1, out=out)


def nearest(
    queries: np.ndarray, corpus: np.ndarray, k: int, *, tie: np.ndarray, leave_out: np.ndarray
) -> list[np.ndarray]:
    """Positions of the `k` documents with the greatest cosine, best first, one array a query.

    Two stages. float32 matrix products choose the candidates: all within the rounding error of the k-th score. Only
    these are scored again in float64, row by row, so the result depends neither on the size of the blocks nor on the
    threads of the matrix library, and equal vectors get equal scores.

    Args:
        queries: (Q, D); corpus: (N, D), both float32.
        tie: (N,) order among equal scores, the smallest first.
        leave_out: (Q,) a document that the query must not find, or -1.
    """
    n, width = corpus.shape
    lengths = norms(corpus)
    single = lengths.astype(np.float32)
    # |computed - true| <= D u for a product of unit vectors in any order of summation (u = 2^-24), and a few more u for
    # the divisions. Candidate and k-th score may both be off, in opposite directions.
    margin = np.float32(2 * (width + 8) * 2.0**-24)
    kth = min(k + 1, n)  # one more, for the document left out
    block = max(1, SCORES // n)
    found = []
    for start in range(0, len(queries), block):
        raw = queries[start : start + block].astype(np.float64)
        scores = unit(raw).astype(np.float32) @ corpus.T
        scores /= single
        least = np.partition(scores, n - kth, axis=1)[:, n - kth] - margin
        for query, row, floor, out in zip(raw, scores, least, leave_out[start : start + block]):
            near = np.flatnonzero(row >= floor)
            near = near[near != out]
            exact = np.empty(len(near))
            for at, documents in blocks(near):
                # The query's length does not affect the order, and without dividing by it whole numbers stay whole.
                exact[at] = (corpus[documents].astype(np.float64) * query).sum(1) / lengths[documents]
            found.append(near[np.lexsort((tie[near], -exact))[:k]])
    return found


def blocks(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices and their rows; vectors as float64, positions as they are."""
    for start in range(0, len(rows), ROWS):
        at = slice(start, start + ROWS)
        yield at, rows[at].astype(np.float64) if rows.ndim == 2 else rows[at]


def norms(vectors: np.ndarray) -> np.ndarray:
    """(n,) float64; float32 values cannot overflow there, nor underflow to zero."""
    out = np.empty(len(vectors))
    for at, rows in blocks(vectors):
        out[at] = np.sqrt((rows * rows).sum(1))
    return out


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) float64 of length one. A zero row stays zero; the outputs made from it then name it."""
    lengths = np.sqrt((rows * rows).sum(1, keepdims=True))
    return rows / np.where(lengths == 0, 1, lengths)


def mapped(vectors: np.ndarray, change: Callable[[np.ndarray], np.ndarray], width: int | None = None) -> np.ndarray:
    """Float32 rows: `change` of the unit vectors, block by block."""
    out = np.empty((len(vectors), width or vectors.shape[1]), np.float32)
    for at, rows in blocks(vectors):
        out[at] = change(unit(rows))
    return out
