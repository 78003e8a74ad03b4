"""Pairs of texts: rows as they come, what a cross-encoder gives, and metrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from kdhub_tasks.classes import REGRESSION, Targets
from kdhub_tasks.classification.metrics import regression_loyalty
from kdhub_tasks.classification.task import Predictions
from kdhub_tasks.losses import label_losses
from kdhub_tasks.pairs import metrics as pair_metrics
from kdhub_tasks.pairs.scores import scores
from kdhub_tasks.pairs.task import TextPairs
from kdhub_tasks.pairs.tiny import recipe
from kdhub_tasks.tiny import random_texts

import kdhub
from kdhub.data.dataset import Data
from kdhub.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pairs")
    recipe(made)
    return made


def test_scores_of_two_classes_are_a_difference():
    logits = torch.tensor([[-0.5, 1.5]])
    assert scores(logits).tolist() == scores(logits + 7).tolist() == [[2.0]]
    assert scores(torch.ones(2, 1)).shape == (2, 1) and scores(torch.ones(2, 3)).shape == (2, 3)


def test_label_losses_of_values_give_no_gradient_without_a_label():
    logits = torch.tensor([[1.0], [5.0]], requires_grad=True)
    each = label_losses(logits, torch.tensor([3.0, math.nan]))
    each.sum().backward()
    assert each.tolist() == [4, 0] and logits.grad.tolist() == [[-4], [0]]


def rows_of(*rows):
    return Data.from_rows("given", {"train": lambda: iter(rows)}, key={"rows": json.dumps(rows)})


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("row", "classes"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": 2.5}, ["score"]),
        ({"text": "a", "text_pair": "b", "label": 1}, ["1"]),
        ({"text": "a", "text_pair": "b", "label": 1.0}, ["1"]),
        ({"sentence1": "a", "sentence2": "b", "label": 1.5}, ["score"]),
        ({"sentence1": "a", "sentence2": "b", "label": "entailment"}, ["entailment"]),
    ],
)
def test_columns_say_what_is_asked(row, classes):
    task, parts = TextPairs(), [(rows_of(row), "train")]
    mean = {"mean": row.get("score", row.get("label"))} if classes == ["score"] else {}
    assert task.survey(parts) == {"classes": classes, **mean}
    assert task.training_table(parts).column_names[:2] == ["sentence1", "sentence2"]


@pytest.mark.usefixtures("home")
def test_no_pairs_and_no_values():
    with pytest.raises(DataError, match="no pairs of texts"):
        TextPairs().training_table([(rows_of({"text": "a", "label": 1}), "train")])
    values, classes = Targets(["score"], REGRESSION), Targets(["a", "b"])
    with pytest.raises(DataError, match="must be a number"):
        values([{"score": "much"}])
    with pytest.raises(DataError, match="not one of the 2 classes"):
        classes([{"label": 1.5}])
    assert classes([{"label": math.nan}]) == [-1] and math.isnan(values([{}])[0])


def test_a_pair_reads_alike_in_any_batch(folder):
    teacher = kdhub.open_teacher(f"path:{folder / 'teacher'}", "text-pairs")
    pairs = [{"sentence1": a, "sentence2": b} for a, b in zip(random_texts(9, 1), random_texts(9, 2))]
    examples = TextPairs().preparer(None, teacher)(pairs)
    together = teacher.signals(examples, "logits")["logits"]
    alone = [teacher.signals([e], "logits")["logits"][0] for e in examples]
    assert np.allclose(together, alone, atol=1e-5)
    swapped = TextPairs().preparer(None, teacher)(
        [{"sentence1": p["sentence2"], "sentence2": p["sentence1"]} for p in pairs]
    )
    assert not np.allclose(together, teacher.signals(swapped, "logits")["logits"], atol=1e-3)  # it reads both together


def test_metrics_by_hand():
    mine = Predictions(np.array([[1.0], [2.0], [4.0]], np.float32), np.array([1.0, 2.0, 3.0]), ["score"])
    theirs = Predictions(np.array([[1.0], [2.0], [3.0]], np.float32), np.array([1.0, 2.0, 3.0]), ["score"])
    assert pair_metrics.pearson(mine) == pytest.approx(0.981981, abs=1e-6)
    assert pair_metrics.spearman(mine) == 1
    flat, gold = (np.full((3, 1), 2.0), mine.labels), (mine.logits, np.ones(3))
    for metric in (pair_metrics.pearson, pair_metrics.spearman):
        assert metric(Predictions(*flat, ["score"])) == 0 and metric(Predictions(*gold, ["score"])) is None
    assert pair_metrics.degradation(mine, Predictions(*flat, ["score"])) is None, "nothing to keep"
    assert pair_metrics.f1(mine) is None
    assert pair_metrics.score_rmse(mine, theirs) == pytest.approx((1 / 3) ** 0.5)
    assert pair_metrics.degradation(mine, theirs) == pytest.approx(1.8019, abs=1e-4)
    assert regression_loyalty(mine, theirs) == pytest.approx(0.981981, abs=1e-6)
    two = [
        Predictions(np.array(logits, np.float32), np.array([1, 0]), ["a", "b"])
        for logits in ([[0, 2], [0, 1]], [[1, 4], [3, 3]])
    ]
    assert pair_metrics.score_rmse(*two) == 1 and pair_metrics.f1(two[0]) == pytest.approx(2 / 3)
    none = Predictions(-two[0].logits, np.array([0, 1]), ["a", "b"])
    right = Predictions(np.eye(2)[[1, 0]], two[0].labels, ["a", "b"])
    assert pair_metrics.degradation(none, right) == 50 and pair_metrics.degradation(right, right) == 0
    never = Predictions(np.eye(2)[[0, 0]], np.array([0, 0]), ["a", "b"])
    assert pair_metrics.f1(never) == 0, "none to find, none found"
