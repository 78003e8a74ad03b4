"""Numbers worked out by hand or by a slow plain loop."""

from __future__ import annotations

from dataclasses import replace
from math import log2, sqrt

import numpy as np
import pytest
from kdhub_tasks.embedding import metrics, outputs, vectors
from kdhub_tasks.embedding.outputs import RetrievalOutputs, StsOutputs, mixed
from kdhub_tasks.embedding.views import binary, int8, int8_codes, noise, truncate

from kdhub.errors import DataError, ShapeError


def at_cosines(*values: float) -> np.ndarray:
    """Vectors (n, 2) with these cosines to [1, 0], of various lengths."""
    vectors = np.array([[c, sqrt(1 - c * c)] for c in values])
    return vectors * np.linspace(0.5, 3, len(values))[:, None]


def one_query(order: dict[str, float], grades: dict[str, int], query: str = "q") -> RetrievalOutputs:
    """One query, documents at the given cosines to it."""
    return RetrievalOutputs([query], list(order), [[2.0, 0.0]], at_cosines(*order.values()), {query: grades})


def random_retrieval(q: int, n: int, width: int, seed: int = 0) -> RetrievalOutputs:
    rng = np.random.default_rng(seed)
    corpus = rng.standard_normal((n, width)).astype(np.float32)
    corpus[n // 2 : n // 2 + n // 4] = corpus[: n // 4]  # ties: equal documents far apart
    ids = [f"d{i}" for i in rng.permutation(n)]
    queries = rng.standard_normal((q, width)).astype(np.float32)
    return RetrievalOutputs([f"q{i}" for i in range(q)], ids, queries, corpus, {f"q{i}": {"d0": 1} for i in range(q)})


def ranked_by_loop(o: RetrievalOutputs, likeness) -> dict[str, list[str]]:
    """Sort everything; equal scores by id, the greater first."""
    result = {}
    for name, query in zip(o.query_ids, o.queries.astype(np.float64)):
        scored = [(likeness(query, row), d) for row, d in zip(o.corpus.astype(np.float64), o.corpus_ids)]
        result[name] = [d for _, d in sorted(scored, reverse=True)[: outputs.TOP_K]]
    return result


# -- ranking metrics ------------------------------------------------------------------------------------------------


def test_graded_judgements():
    o = one_query({"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}, {"a": 0, "b": 2, "c": 1})
    ideal = 2 / log2(2) + 1 / log2(3)
    assert metrics.ndcg_at_10(o) == pytest.approx((2 / log2(3) + 1 / log2(4)) / ideal)  # 0.6697; 2^grade-1 gives 0.6590
    assert metrics.mrr_at_10(o) == pytest.approx(1 / 2)
    assert metrics.recall_at_10(o) == 1


def test_fractional_grades_count_as_they_are():
    o = one_query({"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}, {"a": 0.0, "b": 0.9, "c": 0.5, "gone": 0.1, "d": -0.5})
    ideal = 0.9 / log2(2) + 0.5 / log2(3) + 0.1 / log2(4)
    assert metrics.ndcg_at_10(o) == pytest.approx((0.9 / log2(3) + 0.5 / log2(4)) / ideal)
    assert metrics.mrr_at_10(o) == pytest.approx(1 / 2) and metrics.recall_at_10(o) == pytest.approx(2 / 3)
    # Any unit of the grades is the same nDCG, and that of whole ones is trec_eval's.
    many = random_retrieval(5, 60, 4)
    grades = {q: {f"d{n}": (n * 7 + i) % 4 for n in range(30)} for i, q in enumerate(many.query_ids)}
    halves = {q: {d: g / 2 for d, g in of.items()} for q, of in grades.items()}
    whole, half = (metrics.per_query(replace(many, qrels=qrels), "ndcg_cut", 10) for qrels in (grades, halves))
    assert half == pytest.approx(whole)


def test_a_task_hands_fractional_grades_to_its_metrics(tmp_path):
    import kdhub

    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "bees make honey"}\n{"_id": "d2", "text": "ants"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "honey"}\n')
    (tmp_path / "qrels_test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t0.9\nq\td2\t0.5\n")
    data, task = kdhub.open_data(f"path:{tmp_path}"), kdhub.open_task("text-embedding")
    encode = lambda table, kind, **how: {kind: np.eye(2, dtype=np.float32)[: len(table)]}  # noqa: E731
    given = task.outputs(encode, data, "test")
    assert given.qrels == {"q": {"d1": 0.9, "d2": 0.5}} and given.examples == 1


def test_only_the_first_ten_count():
    o = one_query({f"d{i:02}": 0.99 - i / 100 for i in range(12)}, {"d10": 1, "d09": 1, "d11": 3})
    assert metrics.recall_at_10(o) == pytest.approx(1 / 3)
    assert metrics.recall_at_100(o) == 1
    assert metrics.mrr_at_10(o) == pytest.approx(1 / 10)
    ideal = 3 + 1 / log2(3) + 1 / log2(4)
    assert metrics.ndcg_at_10(o) == pytest.approx(1 / log2(11) / ideal)
    assert metrics.mrr_at_10(one_query({f"d{i:02}": 0.99 - i / 100 for i in range(12)}, {"d10": 1})) == 0


def test_a_relevant_document_outside_the_corpus_counts_as_missed():
    o = one_query({"a": 0.9, "b": 0.8}, {"a": 1, "gone": 1})
    assert metrics.recall_at_10(o) == pytest.approx(1 / 2)
    assert metrics.ndcg_at_10(o) == pytest.approx(1 / (1 + 1 / log2(3)))


def test_mean_over_queries_with_a_relevant_document():
    qrels = {"first": {"a": 1}, "second": {"a": 1}, "zeros": {"a": 0, "b": 0}}
    o = RetrievalOutputs(["unjudged", "zeros", "second", "first"], ["a", "b"], [[1, 0], [1, 0], [0, 1], [1, 0]],
                         [[1, 0], [0, 1]], qrels)  # fmt: skip
    assert o.examples == 2
    assert list(o.ranking) == ["first", "second"]
    assert metrics.mrr_at_10(o) == pytest.approx((1 + 1 / 2) / 2)


def test_equal_scores_put_the_greater_id_first():
    o = one_query({"a": 0.5, "c": 0.5, "b": 0.5}, {"a": 1})
    same = RetrievalOutputs(o.query_ids, o.corpus_ids, o.queries, np.tile(o.corpus[:1], (3, 1)), o.qrels)
    assert same.ranking["q"] == ["c", "b", "a"]
    assert metrics.mrr_at_10(same) == pytest.approx(1 / 3)


def test_the_query_itself_is_not_found_unless_it_is_relevant():
    order = {"q": 1.0, "a": 0.5, "b": 0.4}
    assert one_query(order, {"a": 1}).ranking["q"] == ["a", "b"]
    assert metrics.mrr_at_10(one_query(order, {"a": 1, "q": 0})) == 1
    assert one_query(order, {"q": 1}).ranking["q"] == ["q", "a", "b"]
    many = {"q": 1.0, **{f"d{i:03}": 0.99 - i / 200 for i in range(outputs.TOP_K + 1)}}
    assert one_query(many, {"d000": 1}).ranking["q"] == list(many)[1 : outputs.TOP_K + 1]  # another takes its place


def test_blocks_give_the_full_ranking(monkeypatch):
    def cosine(query, row):
        return (query * row).sum() / sqrt((row * row).sum())

    for n in (7, 300):  # fewer and more than the ranking holds
        o = random_retrieval(9, n, 16)
        expected = ranked_by_loop(o, cosine)
        assert o.ranking == expected
        with monkeypatch.context() as small:
            small.setattr(vectors, "SCORES", 2 * n)  # two queries at a time
            small.setattr(vectors, "ROWS", 5)
            assert random_retrieval(9, n, 16).ranking == expected


def test_ranking_does_not_trust_float32():
    """Documents closer together than float32 can tell are still in the right order."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(512)
    corpus = (base + 1e-4 * rng.standard_normal((400, 512))).astype(np.float32)
    query = base.astype(np.float32)
    o = RetrievalOutputs(["q"], [f"d{i}" for i in range(400)], query[None], corpus, {"q": {"d0": 1}})
    wide = corpus.astype(np.float64)
    exact = wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1)
    assert o.ranking["q"] == [f"d{i}" for i in np.argsort(-exact)[: outputs.TOP_K]]


# -- views ----------------------------------------------------------------------------------------------------------


def test_truncation_makes_unit_length_again():
    o = StsOutputs([[3 / 13, 4 / 13, 12 / 13]], [[30, -40, 1]], [1])
    cut = truncate(o, 2)
    assert np.allclose(cut.left, [[0.6, 0.8]], atol=1e-7) and np.allclose(cut.right, [[0.6, -0.8]], atol=1e-7)
    with pytest.raises(ShapeError, match="dims must be from 1 to 3, the width of the vectors .dims=4"):
        truncate(o, 4)
    with pytest.raises(ShapeError):
        truncate(o, 0)


def test_truncation_that_leaves_nothing_is_an_error():
    with pytest.raises(DataError, match="right: 1 of 2 vectors are zero, first at row 2") as caught:
        truncate(StsOutputs([[1, 1], [1, 1]], [[1, 0], [0, 1]], [0, 1]), 1)
    assert caught.value.rows == [2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_int8_codes(dtype):
    assert int8_codes(np.array([-0.3, 0, 0.1, 0.3], dtype)).tolist() == [-128, 0, 42, 127]
    assert int8_codes(np.array([-0.9, -0.31, 0.31, 5], dtype)).tolist() == [-128, -128, 127, 127]  # no wrap-around


def test_int8_view_is_the_cosine_of_codes():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 20, 64)) * 7  # any length: the view makes them unit vectors first
    view = int8(StsOutputs(left, right, np.arange(20)))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (left, right)]
    codes = [np.trunc((v.clip(-0.3, 0.3) + 0.3) / (0.6 / 255) - 128) for v in unit]
    assert np.array_equal(view.left, codes[0]) and np.array_equal(view.right, codes[1])
    assert view.score[3] == pytest.approx(
        codes[0][3] @ codes[1][3] / sqrt((codes[0][3] ** 2).sum() * (codes[1][3] ** 2).sum())
    )


def test_int8_range_can_come_from_the_documents():
    o = one_query({"a": 0.6, "b": -0.28}, {"a": 1})  # largest magnitude 0.96
    view = int8(o, limit=None)
    assert view.corpus.tolist() == [np.trunc([0.6 * 255 / 1.92 - 0.5, 0.8 * 255 / 1.92 - 0.5]).tolist(), [-37, 127]]


def test_binary_ranks_by_hamming_distance():
    o = random_retrieval(6, 250, 70)  # 71 possible distances: many ties

    def nearness(query, row):
        packed = np.packbits(query > 0) ^ np.packbits(row > 0)
        return -sum(int(byte).bit_count() for byte in packed)

    o.corpus[3, 5] = o.queries[2, 7] = 0  # the bit of zero is 0
    view = binary(o)
    assert view.ranking == ranked_by_loop(o, nearness)
    likeness = binary(StsOutputs(o.queries, o.corpus[:6], np.arange(6)))
    distances = [-nearness(q, d) for q, d in zip(o.queries, o.corpus)]
    assert np.array_equal(view.corpus[3] > 0, o.corpus[3] > 0)
    assert np.allclose(likeness.score, 1 - 2 * np.array(distances) / 70, atol=1e-12)


@pytest.mark.parametrize("cosine", [1.0, 0.95, 0.5, 0.0, -0.3])
def test_noise_has_exactly_this_cosine(cosine):
    o = random_retrieval(40, 50, 24)
    both = noise(o, cosine, seed=1, sides="both")
    for side in ("queries", "corpus"):
        assert np.allclose(vectors.cosines(getattr(o, side), getattr(both, side)), cosine, atol=1e-6)
    only = noise(o, cosine, seed=1)
    assert only.corpus is o.corpus
    assert np.array_equal(only.queries, both.queries)


def test_noise_is_drawn_from_its_seed_alone(monkeypatch):
    o = random_retrieval(40, 40, 24)
    o = RetrievalOutputs(o.query_ids, o.corpus_ids, o.queries, o.queries, o.qrels)
    one = noise(o, 0.5, seed=1, sides="both")
    assert not np.allclose(one.queries, one.corpus)  # the two sides turn differently
    assert not np.allclose(one.queries, noise(o, 0.5, seed=2).queries)
    monkeypatch.setattr(vectors, "ROWS", 7)
    assert np.array_equal(one.queries, noise(o, 0.5, seed=1).queries)


def test_noise_refuses_what_it_cannot_do():
    o = one_query({"a": 0.5}, {"a": 1})
    with pytest.raises(ValueError, match="1.1"):
        noise(o, 1.1, seed=0)
    with pytest.raises(ValueError, match="query"):
        noise(o, 0.5, seed=0, sides="query")
    with pytest.raises(ShapeError):
        noise(truncate(o, 1), 0.5, seed=0)


def test_asymmetric_use_takes_the_teachers_documents():
    student = RetrievalOutputs(["q"], ["a", "b"], [[1, 0]], [[1, 0], [0, 1]], {"q": {"b": 1}})
    teacher = RetrievalOutputs(["q"], ["a", "b"], [[0, 1]], [[0, 1], [1, 0]], {"q": {"b": 1}})
    assert metrics.mrr_at_10(student) == 0.5
    assert metrics.mrr_at_10(mixed(student, teacher)) == 1
    wider = RetrievalOutputs(["q"], ["a", "b"], [[0, 1, 0]], [[0, 1, 0], [1, 0, 0]], {"q": {"b": 1}})
    assert mixed(student, wider) is None
    pairs = StsOutputs([[1, 0]], [[1, 0]], [1])
    assert mixed(pairs, pairs) is None
    other = RetrievalOutputs(["q"], ["b", "a"], [[0, 1]], [[0, 1], [1, 0]], {"q": {"b": 1}})
    with pytest.raises(DataError, match="different rows"):
        mixed(student, other)


# -- pairs ----------------------------------------------------------------------------------------------------------


def pairs(scores, gold) -> StsOutputs:
    return StsOutputs(np.tile([2.0, 0.0], (len(scores), 1)), at_cosines(*scores), gold)


def test_correlations_with_ties():
    o = pairs([0.1, 0.2, 0.8, 0.3], [1, 2, 2, 3])
    assert np.allclose(o.score, [0.1, 0.2, 0.8, 0.3], atol=1e-6)
    # ranks 1 2 4 3 and 1 2.5 2.5 4, deviations from the mean 2.5
    assert metrics.spearman(o) == pytest.approx((1.5 * 1.5 + 0.5 * 1.5) / sqrt(5 * 4.5))  # 0.6325
    assert metrics.pearson(o) == pytest.approx((0.25 - 0.05) / sqrt(0.29 * 2), abs=1e-6)  # 0.2626


def test_correlation_of_what_does_not_vary():
    collapsed = StsOutputs(np.ones((3, 2)), np.ones((3, 2)), [1, 2, 3])
    assert metrics.spearman(collapsed) == metrics.pearson(collapsed) == 0
    with pytest.raises(DataError, match="gold scores of all 3 pairs are equal"):
        metrics.spearman(pairs([0.1, 0.2, 0.3], [2, 2, 2]))


# -- fidelity -------------------------------------------------------------------------------------------------------


def test_alignment():
    grades = {"q": {"a": 1}}
    teacher = RetrievalOutputs(["q"], ["a", "b", "c"], [[1, 0]], [[1, 0], [0, 1], [1, 1]], grades)
    student = RetrievalOutputs(["q"], ["a", "b", "c"], [[3, 4]], [[2, 0], [5, 0], [3, 3]], grades)
    assert metrics.alignment(student, teacher) == pytest.approx((0.6 + 1 + 0 + 1) / 4)
    assert metrics.alignment_queries(student, teacher) == pytest.approx(0.6)
    assert metrics.alignment_documents(student, teacher) == pytest.approx(2 / 3)
    assert metrics.alignment(pairs([0.6, 0.8], [0, 1]), pairs([1, 1], [0, 1])) == pytest.approx((1 + 1 + 0.6 + 0.8) / 4)


def test_alignment_needs_one_space_and_the_same_rows():
    two = pairs([0.6, 0.8], [0, 1])
    with pytest.raises(ShapeError, match="student has 2 dimensions, teacher 3"):
        metrics.alignment(two, StsOutputs(np.ones((2, 3)), np.ones((2, 3)), [0, 1]))
    with pytest.raises(DataError, match="different rows .2 and 3 pairs."):
        metrics.alignment(two, pairs([0.6, 0.8, 0.9], [0, 1, 2]))
    with pytest.raises(DataError, match="the student has StsOutputs, the teacher RetrievalOutputs"):
        metrics.alignment(two, one_query({"a": 0.5}, {"a": 1}))


# -- bad input ------------------------------------------------------------------------------------------------------

GOOD = dict(
    query_ids=["p", "q"], corpus_ids=["a", "b"], queries=np.eye(2), corpus=np.eye(2), qrels={"q": {"a": 1}}
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": [[1, 0], [0, 0]]}, DataError, "queries: 1 of 2 vectors are zero, first at row 2"),
        ({"corpus": [[np.nan, 0], [0, 1]]}, DataError, "corpus: 1 of 2 vectors hold NaN or infinity, first at row 1"),
        ({"corpus": [[np.inf, 0], [0, 1]]}, DataError, "NaN or infinity"),
        ({"corpus": np.ones((2, 3))}, ShapeError, "queries have 2 dimensions, corpus 3"),
        ({"corpus": np.ones(2)}, ShapeError, r"shape \(rows, dimensions\), got \(2,\)"),
        ({"corpus": np.ones((0, 2)), "corpus_ids": []}, ShapeError, r"got \(0, 2\)"),
        ({"corpus_ids": ["a"]}, ShapeError, "1 corpus ids, but 2 vectors"),
        ({"corpus_ids": ["a", "a"]}, DataError, "1 corpus ids are repeated"),
        ({"qrels": {"q": {"a": 1}, "r": {"a": 1}}}, DataError, "1 of 2 judged queries have no vector: 'r'"),
        ({"qrels": {"q": {"a": 0}}}, DataError, "nothing to score"),
        ({"qrels": {}}, DataError, "nothing to score"),
    ],
)
def test_bad_retrieval_outputs(change, error, message):
    RetrievalOutputs(**GOOD)
    with pytest.raises(error, match=message):
        RetrievalOutputs(**{**GOOD, **change})


def test_bad_pairs():
    with pytest.raises(DataError, match="1 of 2 gold scores are not finite") as caught:
        pairs([0.1, 0.2], [1, np.nan])
    assert caught.value.rows == [2]
    with pytest.raises(ShapeError, match="1 left and 2 right vectors"):
        StsOutputs(np.ones((1, 2)), np.ones((2, 2)), [1])


def test_extreme_lengths_do_not_overflow():
    o = pairs([0.1, 0.2, 0.3], [1, 2, 3])
    for scale in (1e-30, 1e30):
        assert np.allclose(StsOutputs(o.left * scale, o.right * scale, o.gold).score, o.score, atol=1e-6)
