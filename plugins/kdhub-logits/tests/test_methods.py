"""The methods' objectives: the specifications' numbers, rows without labels, and what holds over seeds."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from kdhub_logits import soft_targets
from kdhub_logits.pld import Pld, plackett_luce
from kdhub_logits.supervised import Supervised

from kdhub.method import Progress
from kdhub.task import Signals

Z, S = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.5, 0.0]])


def loss(cls, labels=(0,), student=S, teacher=Z, epoch=100.0, **options) -> float:
    method = cls(cls.Options(**options))
    batch = {"labels": torch.tensor(labels)}
    terms = method.objective(Signals(logits=student), Signals(logits=teacher), batch, Progress(1, 2, epoch))
    return sum(term.item() for term in terms.values())


# -- soft targets ---------------------------------------------------------------------------------------------


def test_kd_of_the_specification():
    assert loss(Supervised) == pytest.approx(1.104131, abs=2e-6)
    assert loss(soft_targets.Kd, alpha=0.5, temperature=2.0) == pytest.approx(0.667306, abs=2e-6)
    assert loss(soft_targets.Kd, alpha=0.0) == pytest.approx(1.104131, abs=2e-6)
    assert loss(soft_targets.Kd, alpha=1.0, temperature=1.0) == pytest.approx(0.239401, abs=2e-6)
    assert loss(soft_targets.Kd, alpha=1.0, scale_t2=False) == pytest.approx(0.057620, abs=2e-6)


@pytest.mark.parametrize(
    ("cls", "options", "value"),
    [
        (soft_targets.ReverseKl, {}, 0.245251),
        (soft_targets.Jsd, {"beta": 0.9}, 0.021829),
        (soft_targets.Tvd, {}, 0.333742),
        (soft_targets.SkewKl, {"direction": "reverse"}, 0.194503),
        (soft_targets.Akl, {}, 0.242326),
    ],
)
def test_each_method_is_its_own_divergence_with_its_own_options(cls, options, value):
    assert loss(cls, alpha=1.0, temperature=1.0, **options) == pytest.approx(value, abs=2e-6)


def test_dkd_warms_up_and_keeps_the_labels():
    plain = {"temperature": 1.0, "others_weight": 8.0}
    assert loss(soft_targets.Dkd, ce_weight=0.0, **plain) == pytest.approx(0.412807, abs=4e-6)
    assert loss(soft_targets.Dkd, ce_weight=0.0, epoch=5.0, **plain) == pytest.approx(0.412807 / 4, abs=4e-6)
    assert loss(soft_targets.Dkd, epoch=0.0) == pytest.approx(1.104131, abs=2e-6)
    assert loss(soft_targets.Dkd, labels=(-1,), **plain) == pytest.approx(0.412807, abs=4e-6), "led by the teacher"


@pytest.mark.parametrize("cls", [soft_targets.Kd, soft_targets.Tvd, Supervised])
def test_rows_without_a_label_count_for_the_teacher_only(cls):
    both = {"student": torch.cat([S, S]), "teacher": torch.cat([Z, Z])}
    assert loss(cls, labels=(0, -1), **both) == pytest.approx(loss(cls), abs=1e-6)
    alone = loss(cls, labels=(-1,))
    assert math.isfinite(alone) and (alone == 0) == (cls is Supervised)


# -- PLD ------------------------------------------------------------------------------------------------------

STUDENT, TEACHER = torch.tensor([[1.0, 2.0, 0.0, -1.0]]), torch.tensor([[3.0, 1.0, 2.0, 0.0]])


def pld(label: int | None, **how) -> float:
    labels = None if label is None else torch.tensor([label])
    return plackett_luce(STUDENT, TEACHER, labels, **how).item()


@pytest.mark.parametrize(
    ("how", "first", "second"),
    [
        ({}, 1.445592, 0.375030),
        ({"weighting": "onehot"}, 1.440190, 0.440190),
        ({"weighting": "uniform"}, 0.914656, 0.290264),
        ({"weighting": "position"}, 1.512678, 0.419764),
        ({"temperature": 2.0}, 1.262385, 0.345634),
    ],
)
def test_pld_of_the_specification(how, first, second):
    assert (pld(0, **how), pld(1, **how)) == pytest.approx((first, second), abs=2e-6)


def test_pld_gradient_and_constants():
    s = STUDENT.clone().requires_grad_()
    plackett_luce(s, TEACHER, torch.tensor([0])).sum().backward()
    assert s.grad[0].tolist() == pytest.approx([-0.491382, 0.610373, -0.153718, 0.034727], abs=2e-6)
    moved = plackett_luce(STUDENT + 7, TEACHER - 5, torch.tensor([0])).item()
    assert moved == pytest.approx(pld(0), abs=1e-5)
    flat = plackett_luce(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([2])).item()
    assert flat == pytest.approx(math.log(24) / 4, abs=1e-6)


def test_pld_of_a_sure_teacher_and_of_two_classes_is_cross_entropy():
    sure = plackett_luce(STUDENT, torch.tensor([[50.0, 1, 2, 0]]), torch.tensor([0])).item()
    assert sure == pytest.approx(1.440190, abs=2e-6)
    s, t = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.1, 0.9]])
    entropy = torch.nn.functional.cross_entropy(s, torch.tensor([0])).item()
    given = plackett_luce(s, t, torch.tensor([0])).item()
    assert given == pytest.approx(torch.softmax(t, -1)[0, 0].item() * entropy, abs=1e-6)


def test_steps_of_pld_are_the_probability_of_an_order():
    """exp(-sum of the steps) is a Plackett-Luce probability: over all orders of four classes they sum to 1."""
    total = 0.0
    for order in permutations(range(4)):
        ranks = torch.empty(1, 4)
        ranks[0, list(order)] = torch.tensor([4.0, 3, 2, 1])
        steps = 4 * plackett_luce(STUDENT, ranks, None, weighting="uniform").item()
        total += math.exp(-steps)
        if order == (0, 2, 1, 3):
            assert math.exp(-steps) == pytest.approx(0.025768, abs=1e-6)
    assert total == pytest.approx(1, abs=1e-5)


def test_pld_options():
    assert pld(0, topk=4) == pld(0) and pld(0, topk=1) == pytest.approx(0.643914 * 1.440190, abs=2e-6)
    assert pld(None) == pytest.approx(pld(0), abs=1e-6), "here the teacher ranks the label first by itself"
    assert loss(Pld, labels=(-1,)) == 0, "without a label there is nothing to put first"
    assert loss(Pld, labels=(-1,), force_label_first=False) > 0
    many = plackett_luce(torch.zeros(1, 5000), torch.zeros(1, 5000), torch.tensor([7]), weighting="position")
    assert torch.isfinite(many).all()
