"""Losses from labels, what they are divided by, and distances: numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from kdhub_tasks import losses
from kdhub_tasks.distances import attention_distance, feature_distance, layer_pairs, squared_distances

from kdhub.errors import UsageError

Z = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [5.0, 0.0]])  # q = (1/4, 3/4) twice
LABELS = torch.tensor([1, 0, -1])


def test_cross_entropies_by_hand():
    expected = [math.log(4 / 3), math.log(4), 0.0]
    assert losses.cross_entropies(Z, LABELS).tolist() == pytest.approx(expected)
    assert losses.label_losses(Z.half(), LABELS).tolist() == pytest.approx(expected, abs=1e-3)
    assert losses.label_losses(Z.half(), LABELS).dtype == torch.float32
    # smoothed by 0.2 over two classes a label weighs 0.9, the other class 0.1
    smooth = [0.9 * expected[0] + 0.1 * expected[1], 0.9 * expected[1] + 0.1 * expected[0], 0]
    assert losses.cross_entropies(Z, LABELS, 0.2).tolist() == pytest.approx(smooth)
    assert losses.label_losses(Z, LABELS, 0.2).tolist() == pytest.approx(smooth)
    assert losses.has_label(LABELS).tolist() == [True, True, False]


def test_losses_of_values_by_hand():
    logits, labels = torch.tensor([[1.0], [5.0], [2.0]]), torch.tensor([3.0, math.nan, -1.0])
    assert losses.label_losses(logits, labels).tolist() == [4, 0, 9]
    assert losses.has_label(labels).tolist() == [True, False, True]


def test_a_mean_is_over_what_the_step_has_and_else_over_the_batch():
    batch = {"labels": LABELS}
    total = math.log(4 / 3) + math.log(4)
    assert losses.labels_in(LABELS) == 2 and losses.labels_in(LABELS[2:]) == 1
    assert (losses.positions_in(batch), losses.labelled_in(batch), losses.tokens_in(batch, 7)) == (3, 2, 7)
    assert losses.positions_in({"labels": LABELS[:0]}) == 1
    assert losses.label_loss(Z, batch).item() == pytest.approx(total / 2)
    batch["mean_counts"] = {"positions": 6.5, "labels": 4.0, "tokens": 9.0}
    assert (losses.positions_in(batch), losses.labelled_in(batch), losses.tokens_in(batch, 7)) == (6.5, 4, 7)
    assert losses.tokens_in({**batch, "attention_mask": torch.ones(3, 2)}, 7) == 9, "of texts"
    assert losses.label_loss(Z, batch).item() == pytest.approx(total / 4)
    assert losses.label_loss(Z[2:], {"labels": LABELS[2:]}) == 0


def test_distances_by_hand():
    s, t = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 4.0]])
    assert feature_distance(s, t).tolist() == feature_distance(s, t, "mse").tolist() == [2.5, 0]
    assert feature_distance(s, t, "l1").tolist() == [1.5, 0]
    assert feature_distance(s, t, "cosine").tolist() == pytest.approx([1, 0], abs=1e-6)
    for distance in ("mse", "l1", "cosine"):  # over the last axis, whatever the others
        flat = feature_distance(s, t, distance)
        assert torch.equal(feature_distance(s[:, None, None], t[:, None, None], distance), flat[:, None, None])
    assert squared_distances(s, torch.cat([t, s[:1]])).tolist() == [[5, 20, 0], [13, 0, 20]]
    assert attention_distance(s, t).item() == 1.25 and attention_distance(s, t, "l1").item() == 0.75


def test_kl_of_attention_is_the_mean_over_queries():
    t, s = torch.tensor([[0.5], [0.5], [1.0], [0.0]]), torch.tensor([[0.25], [0.75], [1.0], [0.0]])
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert attention_distance(s, t, "kl").item() == pytest.approx(kl / 2)
    nothing = attention_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]]), "kl")
    assert nothing.item() == pytest.approx(12 * math.log(10), rel=1e-5), "a weight of 0 counts as 1e-12"


def test_layers_are_paired():
    assert layer_pairs(3, 12) == layer_pairs(3, 12, "uniform") == [(1, 4), (2, 8), (3, 12)]
    assert layer_pairs(4, 1) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert layer_pairs(3, 12, "last") == [(3, 12)] and layer_pairs(2, 12, [5, 12]) == [(1, 5), (2, 12)]
    for wrong in ([5], [5, 13], [1, 2, 3]):
        with pytest.raises(UsageError, match=r"layer_map \["):
            layer_pairs(2, 12, wrong)
