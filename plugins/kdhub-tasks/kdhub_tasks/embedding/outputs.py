"""What metrics of text embedding read: the vectors of one subject on one split.

    RetrievalOutputs    queries, documents, judgements     ranked by cosine
    StsOutputs          pairs of texts, gold scores        scored by cosine

Memory: the vectors, one more copy of them for each view in use (`views`), and one block of scores (64 MB) or of rows
(8192). Queries x documents never exists at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np

from kdhub.errors import DataError, ShapeError
from kdhub_tasks.embedding.vectors import cosines, nearest, norms

TOP_K = 100
"""How many documents a ranking holds for each query."""
SHOWN = 5
"""Names and rows that a message lists, at most."""


@dataclass(frozen=True)
class RetrievalOutputs:
    """Vectors of queries and documents, with judgements.

    Only queries with a judgement above 0 are scored: without one, no ranking can score above 0. A relevant document
    that is not in the corpus counts as missed, as in trec_eval.

    Args:
        query_ids: Q names, each once.
        corpus_ids: N names, each once.
        queries: (Q, D) float32, any length but zero.
        corpus: (N, D) float32, any length but zero.
        qrels: query id -> document id -> grade; above 0 is relevant.

    Raises:
        ShapeError: ids and vectors, or queries and documents, do not match.
        DataError: zero, NaN or infinite vectors, repeated ids, judged queries without a vector, nothing to score.
    """

    query_ids: Sequence[str]
    corpus_ids: Sequence[str]
    queries: np.ndarray
    corpus: np.ndarray
    qrels: Mapping[str, Mapping[str, float]]

    sides: ClassVar[tuple[str, str]] = ("queries", "corpus")

    def __post_init__(self):
        _check_sides(self)
        for ids, name, vectors in ((self.query_ids, "query", "queries"), (self.corpus_ids, "corpus", "corpus")):
            if len(ids) != len(getattr(self, vectors)):
                raise ShapeError(f"{len(ids)} {name} ids, but {len(getattr(self, vectors))} vectors")
            if len(set(ids)) != len(ids):
                raise DataError(f"{len(ids) - len(set(ids))} {name} ids are repeated")
        if not self.scored:
            raise DataError("no query has a judgement above 0: there is nothing to score")
        if unknown := [q for q in self.scored if q not in self._query_at]:
            names = ", ".join(map(repr, unknown[:SHOWN]))
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

        Equal cosines are ordered by id, the greater first, as in trec_eval. A document with the query's own id is left
        out, as in BEIR, where it is the query itself (ArguAna, Quora); unless it is relevant to that query: then the
        two have the same id because they belong together.
        """
        rows = np.array([self._query_at[q] for q in self.scored])
        at = {d: i for i, d in enumerate(self.corpus_ids)}
        own = np.array([-1 if self.qrels[q].get(q, 0) > 0 else at.get(q, -1) for q in self.scored])
        tie = np.empty(len(self.corpus_ids), np.int64)
        tie[sorted(range(len(tie)), key=self.corpus_ids.__getitem__, reverse=True)] = np.arange(len(tie))
        found = nearest(self.queries[rows], self.corpus, TOP_K, tie=tie, leave_out=own)
        return {q: [self.corpus_ids[d] for d in documents] for q, documents in zip(self.scored, found)}


@dataclass(frozen=True)
class StsOutputs:
    """Vectors of pairs of texts, with a gold score of their similarity.

    Args:
        left, right: (n, D) float32, any length but zero.
        gold: (n,) float, any scale.

    Raises:
        ShapeError: the three do not match.
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
                f"{len(bad)} of {len(self.gold)} gold scores are not finite", rows=(bad[:SHOWN] + 1).tolist()
            )

    @property
    def examples(self) -> int:
        return len(self.gold)

    @cached_property
    def score(self) -> np.ndarray:
        """(n,) float64, the cosine of each pair."""
        return cosines(self.left, self.right)


Outputs = TypeVar("Outputs", RetrievalOutputs, StsOutputs)


def mixed(student: Outputs, teacher: Outputs) -> RetrievalOutputs | None:
    """Asymmetric use: the student's queries against the teacher's documents.

    Returns:
        None for data other than retrieval, and for vectors of different widths.

    Raises:
        DataError: the two are from different rows.
    """
    if not isinstance(student, RetrievalOutputs) or student.queries.shape[1] != teacher.corpus.shape[1]:
        return None
    check_same_rows(student, teacher)
    return replace(student, corpus=teacher.corpus)


def check_same_rows(student: Outputs, teacher: Outputs) -> None:
    """Refuse two outputs that are not of the same rows.

    Raises:
        DataError: with what differs.
    """
    if type(student) is not type(teacher):
        raise DataError(f"the student has {type(student).__name__}, the teacher {type(teacher).__name__}")
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


def _check_sides(outputs: RetrievalOutputs | StsOutputs) -> None:
    """Make both sides float32 matrices of one width, with rows that have a direction."""
    for name in outputs.sides:
        vectors = np.asarray(getattr(outputs, name), np.float32)
        object.__setattr__(outputs, name, vectors)  # frozen for everyone else
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ShapeError(f"{name}: need vectors of shape (rows, dimensions), got {vectors.shape}")
        lengths = norms(vectors)
        for bad, what in ((~np.isfinite(lengths), "hold NaN or infinity"), (lengths == 0, "are zero")):
            if len(rows := np.flatnonzero(bad)):
                raise DataError(
                    f"{name}: {len(rows)} of {len(vectors)} vectors {what}, first at row {rows[0] + 1}",
                    rows=(rows[:SHOWN] + 1).tolist(),
                    hint="a cosine needs a direction: check these texts and the model that embedded them",
                )
    one, other = (getattr(outputs, name).shape[1] for name in outputs.sides)
    if one != other:
        raise ShapeError(f"{outputs.sides[0]} have {one} dimensions, {outputs.sides[1]} {other}: they must be equal")
