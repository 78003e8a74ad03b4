"""Data sets whose labels are changed: exact counts, the same rows under one seed, nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
from kdhub_tasks.classification.data import change_labels

from kdhub.data.dataset import DataOptions
from kdhub.errors import KdhubError
from kdhub.recipes.resolve import Resolver

TEN = [c for c in range(10) for _ in range(100)]


def test_a_long_tail_has_the_sizes_it_states():
    kept, new = change_labels(TEN, imbalance=20, per_class=80)
    assert np.bincount(new).tolist() == [int(80 * 20 ** (-c / 9) + 1e-9) for c in range(10)] and len(kept) == 269
    assert kept.tolist() == sorted(kept) and [TEN[i] for i in kept] == new
    again, _ = change_labels(TEN, imbalance=20, per_class=80, seed=1)
    assert kept.tolist() != again.tolist()


@pytest.mark.parametrize(("kind", "rate"), [("symmetric", 0.3), ("random", 0.27), ("pair", 0.3)])
def test_noise_changes_the_share_it_states(kind, rate):
    _, new = change_labels(TEN * 20, noise=0.3, noise_kind=kind)
    wrong = np.array(new) != np.array(TEN * 20)
    assert wrong.mean() == pytest.approx(rate, abs=0.01) and set(new) == set(range(10))
    if kind == "pair":
        assert set((np.array(new) - np.array(TEN * 20))[wrong] % 10) == {1}


def test_few_labels_and_rows_without():
    kept, new = change_labels(TEN, labelled=3, unlabelled=50)
    assert np.bincount([v for v in new if v >= 0]).tolist() == [3] * 10 and new.count(-1) == 50 and len(kept) == 80
    _, named = change_labels(["a", "b", "a", None], labelled=1)
    assert sorted(named, key=str) == [None, None, "a", "b"]
    # Noise does not depend on how many labels are kept: arms of a comparison share their wrong labels.
    _, noisy = change_labels(TEN, noise=0.3)
    kept, few = change_labels(TEN, noise=0.3, labelled=5)
    assert all(v in (-1, noisy[i]) for i, v in zip(kept, few))


def test_only_the_named_split_changes_and_mistakes_are_told():
    opened = Resolver().open_data("labels:digits", DataOptions(), {"noise": 0.5, "seed": 3})
    plain = Resolver().open_data("digits", DataOptions())
    assert opened.split("test")["label"] == plain.split("test")["label"]
    assert opened.split("train")["label"] != plain.split("train")["label"]
    assert opened.split("train")["image"] == plain.split("train")["image"]
    for wrong in ({"noise": 2}, {"imbalance": 0.5}, {"labelled": -1}, {"split": "dev"}, {"noise_kind": "x"}):
        with pytest.raises(KdhubError):
            Resolver().open_data("labels:digits", DataOptions(), wrong).split("train")


def test_classes_are_joined_in_all_splits_and_rows_know_which_they_were():
    plain = Resolver().open_data("digits", DataOptions())
    groups = {"low": [0, 1, 2], "high": [9, 7]}
    opened = Resolver().open_data("labels:digits", DataOptions(), {"groups": groups, "per_class": 50})
    kept = [v for v in plain.split("test")["label"] if v in (0, 1, 2, 7, 9)]
    found = opened.split("test")
    assert [groups[row["label"]][row["subclass"]] for row in found] == kept
    train = opened.split("train")["label"]
    assert train.count("low") == train.count("high") == 50, "what comes after is of the joined classes"
    numbers = Resolver().open_data("labels:digits", DataOptions(), {"groups": [[1], [2, 0]], "labelled": 5})
    labels, parts = numbers.split("train")["label"], numbers.split("train")["subclass"]
    assert set(labels) == {-1, 0, 1} and labels.count(0) == 5 and -1 not in parts
    for wrong in ([[1, 2], [2]], {"a": []}, {"a": 3}):
        with pytest.raises(KdhubError, match="lists of labels, each in one of them"):
            Resolver().open_data("labels:digits", DataOptions(), {"groups": wrong})


def test_digits_that_lie_on_their_side():
    upright, turned = (
        Resolver().open_data("digits", DataOptions(), {"turned": turn}).split("validation") for turn in (0, 90)
    )
    assert turned["label"] == upright["label"]
    assert np.array_equal(np.array(turned[3]["image"]), np.rot90(np.array(upright[3]["image"])))
    flat = Resolver().open_data("digits", DataOptions(), {"turned": 90, "form": "features"}).split("validation")
    assert (np.array(flat[3]["features"]) * 15.9375).astype(int).tolist() == np.ravel(turned[3]["image"]).tolist()
    with pytest.raises(KdhubError, match="0, 90, 180 or 270"):
        Resolver().open_data("digits", DataOptions(), {"turned": 45})
