"""What text-embedding metrics read: the vectors of one subject on one split, and ways to look at them.

    RetrievalOutputs    queries, documents, judgements     ranked by cosine
    StsOutputs          pairs of texts, gold scores        scored by cosine

A *view* is a function outputs -> outputs of the same form, so that one set of metrics serves full vectors, truncated
ones, int8 and binary storage, and the noise sweep:

    truncate(outputs, 96)      int8(outputs)      binary(outputs)      noise(outputs, 0.9, seed=0)

Views hold what they store (codes, signs) as float32 again, so that one ranking serves all: products of int8 codes or of
signs are whole numbers, which the exact stage of the ranking below keeps exact. Vectors are made unit length first,
because a cosine does not see length while a fixed int8 range does.

Memory: the vectors, one more copy of them for each view that is alive, and one block of scores (64 MB) or of rows
(8192) at work. Queries x documents never exists at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, TypeVar

import numpy as np

from kdhub.errors import DataError, ShapeError

TOP_K = 100
"""How many documents a ranking holds for each query."""

INT8_LIMIT = 0.3
"""The published int8 range of unit vectors, [-0.3, 0.3] in every dimension (LEAF model cards)."""

_SCORES = 2**24  # float32 scores held at once: 64 MB
_ROWS = 8192  # rows turned to float64 at once

_SHOWN = 5


@dataclass(frozen=True)
class RetrievalOutputs:
    """Vectors of queries and documents, with judgements.

    Scored are the queries with at least one judgement above 0: without one, no ranking can score above 0. A relevant
    document that is not in the corpus counts as missed, as in trec_eval.

    Args:
        query_ids: Q names, each once.
        corpus_ids: N names, each once.
        queries: (Q, D) float32, any length but zero.
        corpus: (N, D) float32, any length but zero.
        qrels: query id -> document id -> grade, whole numbers; above 0 is relevant.

    Raises:
        ShapeError: ids and vectors, or queries and documents, do not fit together.
        DataError: zero, NaN or infinite vectors, repeated ids, judged queries without a vector, nothing to score.
    """

    query_ids: Sequence[str]
    corpus_ids: Sequence[str]
    queries: np.ndarray
    corpus: np.ndarray
    qrels: Mapping[str, Mapping[str, int]]

    sides: ClassVar[tuple[str, str]] = ("queries", "corpus")

    def __post_init__(self):
        _check_sides(self)
        for ids, name, vectors in ((self.query_ids, "query", "queries"), (self.corpus_ids, "corpus", "corpus")):
            if len(ids) != len(getattr(self, vectors)):
                raise ShapeError(f"{len(ids)} {name} ids, but {len(getattr(self, vectors))} vectors")
            if len(set(ids)) != len(ids):
                raise DataError(f"{len(ids) - len(set(ids))} {name} ids are there more than once")
        if not self.scored:
            raise DataError("no query has a judgement above 0, so there is nothing to score")
        if unknown := [q for q in self.scored if q not in self._query_at]:
            names = ", ".join(map(repr, unknown[:_SHOWN]))
            raise DataError(f"{len(unknown)} of {len(self.scored)} judged queries have no vector: {names}")

    @cached_property
    def scored(self) -> list[str]:
        """Ids of the queries that count, in the order of the judgements."""
        return [q for q, grades in self.qrels.items() if any(grade > 0 for grade in grades.values())]

    @property
    def examples(self) -> int:
        return len(self.scored)

    @cached_property
    def _query_at(self) -> dict[str, int]:
        return {q: i for i, q in enumerate(self.query_ids)}

    @cached_property
    def ranking(self) -> dict[str, list[str]]:
        """Scored query id -> ids of its `TOP_K` nearest documents by cosine, best first.

        Equal cosines are ordered by id, the greater first, as trec_eval does. A document with the query's own id is
        left out, as BEIR does, because there it is the query itself (ArguAna, Quora); unless it is relevant to that
        query: then the ids are alike because the two belong together.
        """
        rows = np.array([self._query_at[q] for q in self.scored])
        at = {d: i for i, d in enumerate(self.corpus_ids)}
        own = np.array([-1 if self.qrels[q].get(q, 0) > 0 else at.get(q, -1) for q in self.scored])
        tie = np.empty(len(self.corpus_ids), np.int64)
        tie[sorted(range(len(tie)), key=self.corpus_ids.__getitem__, reverse=True)] = np.arange(len(tie))
        found = _nearest(self.queries[rows], self.corpus, TOP_K, tie=tie, leave_out=own)
        return {q: [self.corpus_ids[d] for d in documents] for q, documents in zip(self.scored, found)}


@dataclass(frozen=True)
class StsOutputs:
    """Vectors of pairs of texts, with a gold score of their likeness.

    Args:
        left, right: (n, D) float32, any length but zero.
        gold: (n,) float, any scale.

    Raises:
        ShapeError: the three do not fit together.
        DataError: zero, NaN or infinite vectors, gold scores that are not finite.
    """

    left: np.ndarray
    right: np.ndarray
    gold: np.ndarray

    sides: ClassVar[tuple[str, str]] = ("left", "right")

    def __post_init__(self):
        _check_sides(self)
        object.__setattr__(self, "gold", np.asarray(self.gold, np.float64))
        if not (len(self.left),) == (len(self.right),) == self.gold.shape:
            raise ShapeError(
                f"{len(self.left)} left and {len(self.right)} right vectors, gold scores of shape {self.gold.shape}"
            )
        if len(bad := np.flatnonzero(~np.isfinite(self.gold))):
            raise DataError(
                f"{len(bad)} of {len(self.gold)} gold scores are not finite", rows=(bad[:_SHOWN] + 1).tolist()
            )

    @property
    def examples(self) -> int:
        return len(self.gold)

    @cached_property
    def score(self) -> np.ndarray:
        """(n,) float64, the cosine of each pair."""
        return cosines(self.left, self.right)


Outputs = TypeVar("Outputs", RetrievalOutputs, StsOutputs)


# -- views ----------------------------------------------------------------------------------------------------------


def truncate(outputs: Outputs, dims: int) -> Outputs:
    """The first `dims` dimensions, made unit length again (Matryoshka).

    Raises:
        ShapeError: the vectors have fewer.
    """
    width = getattr(outputs, outputs.sides[0]).shape[1]
    if not 1 <= dims <= width:
        raise ShapeError(f"cannot keep {dims} dimensions: the vectors have {width}", hint=f"use 1 to {width}")
    return _view(outputs, lambda rows: _unit(rows[:, :dims]), width=dims)


def int8(outputs: Outputs, limit: float | None = INT8_LIMIT) -> Outputs:
    """Unit vectors stored in one byte a dimension and compared by the cosine of their codes.

    Args:
        limit: the range of every dimension is [-limit, limit]. The published 0.3 is made for hundreds of dimensions;
            None takes the largest magnitude among the documents (retrieval) or right texts (STS).
    """
    if limit is None:
        stored = getattr(outputs, outputs.sides[1])
        limit = max(float(np.abs(_unit(block)).max()) for _, block in _blocks(stored))
    return _view(outputs, lambda rows: int8_codes(rows, limit))


def int8_codes(vectors: np.ndarray, limit: float = INT8_LIMIT) -> np.ndarray:
    """`trunc((x + limit) / (2 * limit / 255) - 128)` as int8, the formula of sentence-transformers.

    Values beyond the range are clipped first: the bare formula would wrap them around to the other sign.
    """
    step = 2 * limit / 255
    return np.trunc((np.clip(vectors, -limit, limit) + limit) / step - 128).astype(np.int8)


def binary(outputs: Outputs) -> Outputs:
    """One bit a dimension: 1 where above 0. Ranks and scores are those of the Hamming distance H of the packed bits.

    Held as signs, not packed: their cosine is 1 - 2 H / D exactly, and a matrix product of signs is faster than
    counting bits.
    """
    return _view(outputs, lambda rows: np.where(rows > 0, 1.0, -1.0))


def noise(outputs: Outputs, cosine: float, *, seed: int, sides: Literal["queries", "both"] = "queries") -> Outputs:
    """Unit vectors turned away at random until their cosine to what they were is exactly `cosine`.

    The sweep over cosines shows how much approximation error a use tolerates: with `sides="queries"` asymmetric use
    (the teacher's documents, a student's queries), with "both" a student on both sides. Of STS pairs, the left text
    stands for the query.

    Args:
        cosine: from -1 to 1.
        seed: of the directions; the two sides get different ones.
    """
    if not -1 <= cosine <= 1:
        raise ValueError(f"a cosine is between -1 and 1, not {cosine}")
    if sides not in ("queries", "both"):
        raise ValueError(f"sides is 'queries' or 'both', not {sides!r}")
    if (width := getattr(outputs, outputs.sides[0]).shape[1]) < 2:
        raise ShapeError(f"vectors with {width} dimension cannot be turned")

    def turn(side: int) -> Callable[[np.ndarray], np.ndarray]:
        generator = np.random.default_rng([seed, side])

        def rows_turned(rows: np.ndarray) -> np.ndarray:
            away = generator.standard_normal(rows.shape)
            away -= (away * rows).sum(1, keepdims=True) * rows
            return cosine * rows + np.sqrt(1 - cosine**2) * _unit(away)

        return rows_turned

    chosen = outputs.sides[:1] if sides == "queries" else outputs.sides
    return replace(outputs, **{name: _mapped(getattr(outputs, name), turn(i)) for i, name in enumerate(chosen)})


def mixed(student: Outputs, teacher: Outputs) -> RetrievalOutputs | None:
    """Asymmetric use: the student's queries against the teacher's documents.

    Returns:
        None where that means nothing: no retrieval, or vectors of different widths.

    Raises:
        DataError: the two were not made from the same rows.
    """
    if not isinstance(student, RetrievalOutputs) or student.queries.shape[1] != teacher.corpus.shape[1]:
        return None
    check_same_rows(student, teacher)
    return replace(student, corpus=teacher.corpus)


# -- shared with the metrics ----------------------------------------------------------------------------------------


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) float64, the cosine of each row of `left` (n, D) with the same row of `right`."""
    out = np.empty(len(left))
    for at, rows in _blocks(left):
        out[at] = (_unit(rows) * _unit(right[at].astype(np.float64))).sum(1)
    return out.clip(-1, 1, out=out)


def check_same_rows(student: Outputs, teacher: Outputs) -> None:
    """Refuse two outputs that are not of the same rows.

    Raises:
        DataError: with what differs.
    """
    if type(student) is not type(teacher):
        raise DataError(f"{type(student).__name__} of the student, {type(teacher).__name__} of the teacher")
    if isinstance(student, StsOutputs):
        same = np.array_equal(student.gold, teacher.gold)
        what = f"{student.examples} and {teacher.examples} pairs"
    else:
        names = ("query_ids", "corpus_ids")
        same = all(list(getattr(student, name)) == list(getattr(teacher, name)) for name in names)
        what = " and ".join(
            f"{len(o.query_ids)} queries with {len(o.corpus_ids)} documents" for o in (student, teacher)
        )
    if not same:
        raise DataError(f"student and teacher were run on different rows ({what})")


# -- inside ---------------------------------------------------------------------------------------------------------


def _nearest(
    queries: np.ndarray, corpus: np.ndarray, k: int, *, tie: np.ndarray, leave_out: np.ndarray
) -> list[np.ndarray]:
    """Positions of the `k` documents with the greatest cosine, best first, one array a query.

    Two stages. float32 matrix products choose the candidates: whatever lies within the rounding error of the k-th
    score. Only these are scored again in float64, row by row, so the result depends neither on the size of the blocks
    nor on the threads of the matrix library, and equal vectors get equal scores.

    Args:
        queries: (Q, D); corpus: (N, D), both float32.
        tie: (N,) order among equal scores, the smallest first.
        leave_out: (Q,) a document each query may not find, or -1.
    """
    n, width = corpus.shape
    norms = _norms(corpus)
    single = norms.astype(np.float32)
    # |computed - true| <= D u for a product of unit vectors in any order of summation (u = 2^-24); a few more u for
    # the divisions. Candidate and k-th score may both be off, to opposite sides.
    margin = np.float32(2 * (width + 8) * 2.0**-24)
    kth = min(k + 1, n)  # one more, for the document left out
    block = max(1, _SCORES // n)
    found = []
    for start in range(0, len(queries), block):
        raw = queries[start : start + block].astype(np.float64)
        scores = _unit(raw).astype(np.float32) @ corpus.T
        scores /= single
        least = np.partition(scores, n - kth, axis=1)[:, n - kth] - margin
        for query, row, floor, out in zip(raw, scores, least, leave_out[start : start + block]):
            near = np.flatnonzero(row >= floor)
            near = near[near != out]
            exact = np.empty(len(near))
            for at, documents in _blocks(near):
                # The query's length does not matter for the order, and left alone whole numbers stay whole.
                exact[at] = (corpus[documents].astype(np.float64) * query).sum(1) / norms[documents]
            found.append(near[np.lexsort((tie[near], -exact))[:k]])
    return found


def _blocks(rows: np.ndarray):
    """Slices and the rows they hold; vectors as float64, positions as they are."""
    for start in range(0, len(rows), _ROWS):
        at = slice(start, start + _ROWS)
        yield at, rows[at].astype(np.float64) if rows.ndim == 2 else rows[at]


def _norms(vectors: np.ndarray) -> np.ndarray:
    """(n,) float64; float32 values cannot overflow there, nor underflow to zero."""
    out = np.empty(len(vectors))
    for at, rows in _blocks(vectors):
        out[at] = np.sqrt((rows * rows).sum(1))
    return out


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) float64 of length one. A zero row stays zero: the outputs made of it then say which it was."""
    norms = np.sqrt((rows * rows).sum(1, keepdims=True))
    return rows / np.where(norms == 0, 1, norms)


def _mapped(vectors: np.ndarray, change: Callable[[np.ndarray], np.ndarray], width: int | None = None) -> np.ndarray:
    """Float32 rows: `change` of the unit vectors, block by block."""
    out = np.empty((len(vectors), width or vectors.shape[1]), np.float32)
    for at, rows in _blocks(vectors):
        out[at] = change(_unit(rows))
    return out


def _view(outputs: Outputs, change: Callable[[np.ndarray], np.ndarray], width: int | None = None) -> Outputs:
    return replace(outputs, **{name: _mapped(getattr(outputs, name), change, width) for name in outputs.sides})


def _check_sides(outputs: RetrievalOutputs | StsOutputs) -> None:
    """Make both sides float32 matrices of one width, with rows that have a direction."""
    for name in outputs.sides:
        vectors = np.asarray(getattr(outputs, name), np.float32)
        object.__setattr__(outputs, name, vectors)  # frozen for everyone else
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ShapeError(f"{name}: need vectors of shape (rows, dimensions), got {vectors.shape}")
        norms = _norms(vectors)
        for bad, what in ((~np.isfinite(norms), "hold NaN or infinity"), (norms == 0, "are zero")):
            if len(rows := np.flatnonzero(bad)):
                raise DataError(
                    f"{name}: {len(rows)} of {len(vectors)} vectors {what}, first at row {rows[0] + 1}",
                    rows=(rows[:_SHOWN] + 1).tolist(),
                    hint="a cosine needs a direction: look at these texts and at the model that embedded them",
                )
    one, other = (getattr(outputs, name).shape[1] for name in outputs.sides)
    if one != other:
        raise ShapeError(f"{outputs.sides[0]} have {one} dimensions, {outputs.sides[1]} {other}: they must be equal")
