"""Metrics of all tasks where a slip would hardly show: several rows, uneven bins, shifted logits, nothing there."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from kdhub_tasks.classification import metrics
from kdhub_tasks.classification.task import Predictions
from kdhub_tasks.embedding import metrics as embedding
from kdhub_tasks.embedding.outputs import RetrievalOutputs
from kdhub_tasks.language import metrics as language
from kdhub_tasks.masked import metrics as masked
from kdhub_tasks.pairs import metrics as pairs

from kdhub.errors import CompatibilityError
from kdhub.metric import Costed
from kdhub.student import BuildContext

LOG = np.log
SCORES = np.array([0.1, 0.4, 0.35, 0.8])
OTHERS = np.array([1.1, 1.9, 3.2, 4.0])


def of(logits, labels=None, classes="abc"):
    logits = np.asarray(logits, np.float64)
    return Predictions(logits, np.zeros(len(logits), int) if labels is None else np.array(labels), list(classes))


def test_calibration_error_equals_a_slow_loop():
    rng = np.random.default_rng(3)
    logits = np.linspace(0.1, 4, 200)[:, None] * rng.normal(size=(200, 40))  # sure from below 1/15 to nearly 1
    out = of(logits, np.where(rng.random(200) < 0.5, logits.argmax(1), 0))
    p = out.probabilities
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (p.max(1) > low) & (p.max(1) <= low + 1 / 15)
        if inside.any():
            right = p.argmax(1)[inside] == out.labels[inside]
            error += inside.sum() / 200 * abs(right.mean() - p.max(1)[inside].mean())
    assert metrics.calibration_error(out) == pytest.approx(error)


def test_brier_counts_both_of_two_classes():
    out = of(LOG([[0.7, 0.3], [0.4, 0.6]]), [0, 0])
    assert metrics.brier(out) == pytest.approx((2 * 0.3**2 + 2 * 0.6**2) / 2)


def test_fidelity_is_a_mean_over_rows():
    p, q = np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.3, 0.7]])
    out, teacher = of(LOG(q)), of(LOG(p))
    assert metrics.divergence(out, teacher) == pytest.approx((p * LOG(p / q)).sum() / 2)
    m = (p + q) / 2
    js = ((p * np.log2(p / m)).sum(1) + (q * np.log2(q / m)).sum(1)) / 2
    assert metrics.probability_loyalty(out, teacher) == pytest.approx(1 - np.sqrt(js).mean())


def test_of_two_logits_their_difference_counts():
    """Whatever is added to both: the margin of a row, and its correlation with the teacher's."""
    add = np.array([8.0, -5.0, -1.0, -3.0])
    out = of(np.stack([add, add + SCORES], 1), [0, 0, 1, 1])
    assert metrics.auroc(out) == 0.75 and metrics.auprc(out) == pytest.approx(0.8333333)
    expected = np.corrcoef(SCORES, OTHERS)[0, 1]
    teacher = of(np.stack([5 + 3 * OTHERS, 5 + 4 * OTHERS], 1))
    moved = of(np.stack([7 - 2 * SCORES, 7 - SCORES], 1))
    assert metrics.regression_loyalty(out, teacher) == pytest.approx(expected)
    assert metrics.regression_loyalty(moved, teacher) == pytest.approx(expected)
    small = [of(0.01 * x.logits) for x in (out, teacher)]
    assert metrics.regression_loyalty(*small) == pytest.approx(expected)
    assert metrics.regression_loyalty(of(SCORES[:, None]), of(OTHERS[:, None])) == pytest.approx(expected)


def test_an_entity_ends_with_its_row():
    names, lengths = ["B-LOC", "B-PER", "I-PER", "O"], np.array([1, 1, 2])

    def rows(chosen, labels):
        return Predictions(np.eye(4)[chosen], np.array(labels), names, lengths)

    # PER | PER | PER LOC: the third begins inside, and goes on from nothing
    assert metrics.entity_f1(rows([1, 1, 1, 0], [1, 1, 2, 0])) == 1
    assert metrics.entity_f1(rows([1, 1, 1, 3], [1, 2, 2, 0])) == pytest.approx(6 / 7)


def test_recall_at_100_ends_there():
    cosines = np.linspace(0.9, 0.1, 102)
    corpus = np.stack([cosines, np.sqrt(1 - cosines**2)], 1)
    for place, expected in ((99, 1), (100, 0)):
        out = RetrievalOutputs(["q"], [str(n) for n in range(102)], [[1.0, 0.0]], corpus, {"q": {str(place): 1}})
        assert embedding.recall_at_100(out) == expected


def test_language_metrics_of_nothing():
    nothing = SimpleNamespace(tokens=None, texts=None)
    for name in ("nll", "perplexity", "bits_per_byte", "accuracy", "rouge_l", "exact_match", "distinct_1", "distinct_2",
                 "mean_length"):  # fmt: skip
        assert getattr(language, name)(nothing) is None, name
    empty = SimpleNamespace(texts=SimpleNamespace(answers=[], references=[]))
    assert language.mean_length(empty) is language.rouge_l(empty) is language.distinct_2(empty) is None


def test_a_preferred_response_is_ahead_by_the_mean_of_its_tokens(monkeypatch):
    """aaaa at -1 a token before b at -2, though its sum is lower; then two that are the other way round, and a tie."""
    each = {"a": -1.0, "b": -2.0}

    def tokens(encode, table):
        return SimpleNamespace(tokens=SimpleNamespace(log_p=np.array([each[c] for t in table["response"] for c in t])))

    monkeypatch.setattr(language, "Outputs", tokens)
    encode = SimpleNamespace(prepare=lambda rows: [{"labels": list(r["response"])} for r in rows])

    def accuracy(*sets):
        table = [{"prompt": "x", "responses": list(r), "scores": list(range(len(r), 0, -1))} for r in sets]
        return language.preference_accuracy(SimpleNamespace(table=table, encode=encode))

    assert accuracy(["aaaa", "b"]) == 1 and accuracy(["b", "aaaa"]) == 0 and accuracy(["ab", "ba"]) == 0.5
    assert accuracy(["aaaa", "ab", "b"], ["b", "a"]) == pytest.approx(3 / 4)


def test_masked_tokens_by_hand():
    def of(p, chosen, labels):
        return masked.MaskedPredictions(LOG(np.array(p)), np.array(chosen), np.array(labels))

    out = of([0.5, 0.25, 0.5], [1, 2, 3], [1, 2, 9])
    assert masked.accuracy(out) == pytest.approx(2 / 3) and masked.perplexity(out) == pytest.approx(16 ** (1 / 3))
    assert masked.agreement(out, of([1, 1, 1], [1, 7, 8], [1, 2, 9])) == pytest.approx(1 / 3)
    for labels in ([1, 2], [1, 2, 3]):
        with pytest.raises(CompatibilityError):
            masked.agreement(out, of([1] * len(labels), labels, labels))


def test_degradation_is_relative():
    labels = [1, 0, 1, 0, 1]
    teacher, student = (of(np.eye(2)[c], labels, "ab") for c in ([1, 0, 1, 0, 0], [1, 0, 0, 1, 0]))
    assert pairs.degradation(student, teacher) == pytest.approx(50)
    assert pairs.score_rmse(of([[1.0], [3.0]]), of([[1.0], [1.0]])) == pytest.approx(math.sqrt(2))


def test_costs_of_embeddings_and_language_models():
    from kdhub_tasks.language.students import llama

    vectors = Costed(None, None, lambda n: {"embedding": np.zeros((n, 24), np.float16)})
    assert embedding.vector_bytes(vectors) == 4 * 24 and embedding.vector_bytes(Costed(None)) is None
    student = llama("width=16,layers=3,heads=4,length=64", BuildContext(None, None, 0))
    heads, width = student.module.model.config.num_key_value_heads, 16 // 4
    assert language.cache_bytes(Costed(student)) == 3 * 2 * heads * width * 4, "layers, keys and values, float32"
    assert language.cache_bytes(Costed(SimpleNamespace(module=None))) is None


def test_the_operating_point_takes_most_rows_within_a_rate_of_false_positives():
    margins = np.array([4.0, 3.0, 3.0, 2.0, 1.0, 0.0, -1.0])
    labels = np.array([1, 1, 0, 1, 0, 0, 0])
    out = Predictions(np.stack([np.zeros(7), margins], 1), labels, ["no", "yes"])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    assert metrics.operating_point(out, 0.25) == pytest.approx((1.0, sigmoid(2))), (
        "one of four is taken, all three found"
    )
    assert metrics.operating_point(out, 0.2) == pytest.approx((1 / 3, sigmoid(4))), "equal ones are taken together"
    assert metrics.recall_at_1(out) == metrics.recall_at_5(out) == pytest.approx(1 / 3)
    turned = Predictions(out.logits[:, ::-1], labels, ["no", "yes"])
    assert metrics.operating_point(turned, 0.2) == (0.0, 1.0), "a row of the first class is the surest"
    assert metrics.threshold_at_1(Predictions(np.zeros((2, 3)), np.array([0, 1]), list("abc"))) is None
