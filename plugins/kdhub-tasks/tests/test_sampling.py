"""Rows in an order that follows their labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from kdhub_tasks.sampling import BalancedSampler

import kdhub
from kdhub.errors import CompatibilityError, UsageError

LABELS = ["cat"] * 40 + ["dog"] * 10 + ["owl"] * 3 + [None] * 6


def sampler(labels=LABELS, batch=1, seed=0):
    return BalancedSampler(np.full(len(labels), 3, np.int32), batch, seed, columns={"label": labels})


def test_every_class_comes_as_often_as_any_other():
    for number in range(3):
        rows = sampler().epoch(number).tolist()
        found, times = Counter(LABELS[i] for i in rows), Counter(rows)
        assert len(rows) == 59 and found[None] == 6 and max(times[i] for i in range(53, 59)) == 1
        assert {found[name] for name in ("cat", "dog", "owl")} == {17, 18}
        for name, of in (("dog", range(40, 50)), ("owl", range(50, 53))):
            assert max(times[i] for i in of) - min(times[i] for i in of) <= 1, f"rows of {name} come alike"
    assert sampler(seed=1).epoch(0).tolist() != sampler().epoch(0).tolist()
    assert len(sampler(batch=8).epoch(0)) == 64


def test_labels_that_it_cannot_balance():
    with pytest.raises(UsageError, match="needs rows of two classes or more, and they have 1 .label, 2 of 4 rows"):
        sampler(["a", "a", None, -1])
    with pytest.raises(UsageError, match="needs one class a row, and 2 of 3 rows have lists"):
        sampler([["a"], '["a", "b"]', "a"])


def test_a_recipe_with_it(home, tmp_path):
    """Long-tailed digits whose rows a method of the logits family learns from; a column that is named otherwise is
    mapped, one that is not there is named."""
    seen = []
    own = BalancedSampler.epoch

    class Noted(BalancedSampler):
        def epoch(self, number):
            seen.append(np.asarray(self.columns["label"])[own(self, number)])
            return own(self, number)

    recipe = {
        "task": "tabular-classification", "method": "kd", "student": "mlp:4",
        "data": {"train": {"source": "labels:digits", "options": {
            "imbalance": 10, "per_class": 20, "options": {"form": "features"}}}},
        "sampler": "balanced", "options": {"epochs": 1, "batch_size": 4}, "evaluation": {"data": [], "cost": False},
        "teacher": {"source": "prototypes:digits", "data": {"form": "features"}},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdhub_tasks.sampling.BalancedSampler", Noted)
        kdhub.distill(recipe, out=tmp_path / "run")
    counts = Counter(seen[0].tolist())
    assert len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 4, "where a batch is filled up"
    without = {**recipe, "data": {"train": {**recipe["data"]["train"], "columns": {"other": "label"}}}}
    with pytest.raises(CompatibilityError, match="by their column 'label', which the rows of labels:digits"):
        kdhub.distill(without, out=tmp_path / "other")
