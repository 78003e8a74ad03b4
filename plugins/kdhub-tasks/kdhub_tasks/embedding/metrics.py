"""Metrics of text embeddings: ranking, similarity of pairs, and closeness to the teacher's vectors.

Ranking metrics are trec_eval's, through pytrec_eval, as in BEIR and MTEB; so nDCG has linear gains, `grade / log2(rank
+ 1)`, over the best order of *all* judged documents. trec_eval knows whole grades only: with fractions (0.9, 0.5) the
same nDCG is computed here, and for the other metrics a document above 0 is relevant. They are means over the queries
that have a relevant document. The order of documents, ties included, comes from `RetrievalOutputs.ranking`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import ceil, log2

import numpy as np

from kdhub.errors import DataError, ShapeError
from kdhub.metric import Costed
from kdhub_tasks.embedding.outputs import RetrievalOutputs, StsOutputs, check_same_rows
from kdhub_tasks.embedding.vectors import cosines

# -- retrieval ------------------------------------------------------------------------------------------------------


def ndcg_at_10(outputs: RetrievalOutputs) -> float:
    """Normalised discounted cumulative gain of the first ten documents, 0 to 1."""
    return _mean(per_query(outputs, "ndcg_cut", 10))


def recall_at_10(outputs: RetrievalOutputs) -> float:
    """Share of a query's relevant documents among the first ten, 0 to 1."""
    return _mean(per_query(outputs, "recall", 10))


def recall_at_100(outputs: RetrievalOutputs) -> float:
    """Share of a query's relevant documents among the first hundred, 0 to 1."""
    return _mean(per_query(outputs, "recall", 100))


def mrr_at_10(outputs: RetrievalOutputs) -> float:
    """One over the rank of the first relevant document, 0 if none is among the first ten."""
    return _mean(per_query(outputs, "recip_rank", 10))


def per_query(outputs: RetrievalOutputs, measure: str, cut: int) -> dict[str, float]:
    """A trec_eval measure of each scored query, on the first `cut` documents.

    Args:
        measure: "ndcg_cut", "recall", "recip_rank", "map_cut", ...
        cut: at most `outputs.TOP_K`.
    """
    import pytrec_eval

    # trec_eval sorts again by score, in float32 and with its own order of ties: with ranks in place of cosines it has
    # nothing to decide, and the cut turns its plain reciprocal rank into MRR@10.
    graded = any(grade != int(grade) for q in outputs.scored for grade in outputs.qrels[q].values())
    if graded and measure == "ndcg_cut":
        return {q: _ndcg(outputs.qrels[q], outputs.ranking[q], cut) for q in outputs.scored}
    run = {q: {d: float(cut - rank) for rank, d in enumerate(ids[:cut])} for q, ids in outputs.ranking.items()}
    qrels = {q: {d: ceil(grade) for d, grade in outputs.qrels[q].items()} for q in outputs.scored}
    name = measure if measure == "recip_rank" else f"{measure}.{cut}"
    results = pytrec_eval.RelevanceEvaluator(qrels, {name}).evaluate(run)
    return {q: results[q][name.replace(".", "_")] for q in outputs.scored}


def _ndcg(grades: Mapping[str, float], ranking: Sequence[str], cut: int) -> float:
    """Of one query, with linear gains; a grade below 0 gains nothing."""

    def gained(given: Iterable[float]) -> float:
        return sum(max(grade, 0.0) / log2(rank + 1) for rank, grade in enumerate(islice(given, cut), 1))

    return gained(grades.get(d, 0.0) for d in ranking) / gained(sorted(grades.values(), reverse=True))


# -- similarity of pairs ----------------------------------------------------------------------------------------------


def spearman(outputs: StsOutputs) -> float:
    """Rank correlation of cosines and gold scores, -1 to 1; equal values share their mean rank.

    0 if all cosines are equal: a model that sees no difference has found no relation.

    Raises:
        DataError: all gold scores are equal, or there are fewer than two pairs.
    """
    from scipy.stats import spearmanr

    return _correlation(spearmanr, outputs)


def pearson(outputs: StsOutputs) -> float:
    """Linear correlation of cosines and gold scores, -1 to 1; otherwise as `spearman`."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, outputs)


def _correlation(function, outputs: StsOutputs) -> float:
    if np.ptp(outputs.gold) == 0:
        raise DataError(f"the gold scores of all {outputs.examples} pairs are equal: there is nothing to correlate")
    if np.ptp(outputs.score) == 0:
        return 0.0
    return float(function(outputs.score, outputs.gold).statistic)


# -- fidelity -------------------------------------------------------------------------------------------------------


def alignment(outputs: RetrievalOutputs | StsOutputs, teacher_outputs: RetrievalOutputs | StsOutputs) -> float:
    """Mean cosine of the student's vectors to the teacher's of the same texts, each row once, -1 to 1.

    Raises:
        ShapeError: the widths differ, so there is no common space.
        DataError: the two were run on different rows.
    """
    return _mean_cosine(outputs, teacher_outputs, *outputs.sides)


def alignment_queries(outputs: RetrievalOutputs, teacher_outputs: RetrievalOutputs) -> float:
    """As `alignment`, queries only: asymmetric use depends on these."""
    return _mean_cosine(outputs, teacher_outputs, "queries")


def alignment_documents(outputs: RetrievalOutputs, teacher_outputs: RetrievalOutputs) -> float:
    """As `alignment`, documents only."""
    return _mean_cosine(outputs, teacher_outputs, "corpus")


def _mean_cosine(student, teacher, *sides: str) -> float:
    check_same_rows(student, teacher)
    ours, theirs = (getattr(o, sides[0]).shape[1] for o in (student, teacher))
    if ours != theirs:
        raise ShapeError(
            f"student has {ours} dimensions, teacher {theirs}: there is no cosine between them",
            hint="alignment is measured for students in the teacher's own space",
        )
    return _mean(np.concatenate([cosines(getattr(student, side), getattr(teacher, side)) for side in sides]))


def _mean(values) -> float:
    return float(np.mean(list(values.values()) if isinstance(values, dict) else values))


def vector_bytes(costed: Costed) -> int | None:
    """Bytes of a vector in float32; None for a student that gives none."""
    return None if costed.answer is None else 4 * int(np.asarray(costed.answer(1)["embedding"]).shape[-1])
