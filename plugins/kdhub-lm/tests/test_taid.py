"""TAID: the specification's numbers, the curriculum's bounds, and what a run keeps of it."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from kdhub_lm.methods.taid import Curriculum, Taid, interpolated
from kdhub_tasks.divergences import forward_kl

import kdhub
from kdhub.errors import RecipeError
from kdhub.method import Progress
from kdhub.rows import Signals

S = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
Z = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)


def slope(t, **settings):
    s = S.clone().requires_grad_()
    value = interpolated(s, Z, t, **settings)
    value.backward()
    return value.item(), s.grad


@pytest.mark.parametrize(
    ("t", "value", "gradient"),
    [
        (0.4, 1.201419, [0.290812, -0.212600, -0.078211]),
        (0.0, 0.832396, [0, 0, 0]),
        (1.0, 1.562304, [0.575210, -0.420512, -0.154698]),
    ],
)
def test_numbers_of_the_specification(t, value, gradient):
    found, s = slope(t)
    assert found == pytest.approx(value, abs=1e-6) and s.tolist() == pytest.approx(gradient, abs=1e-6)
    q = torch.softmax(S, -1)
    target = q - s  # the gradient is q - p_t
    geometric = q ** (1 - t) * torch.softmax(Z, -1) ** t
    assert torch.allclose(target, geometric / geometric.sum(), atol=1e-12)
    entropy = -(target * target.log()).sum()
    if t == 0.4:
        assert target.tolist() == pytest.approx([0.374429, 0.457329, 0.168242], abs=1e-6)
        assert found - entropy.item() == pytest.approx(0.175938, abs=1e-6), "as a KL"
    if t == 1:
        assert found - entropy.item() == pytest.approx(forward_kl(S, Z).item()) == pytest.approx(0.729908, abs=1e-6)


def test_mixing_probabilities_is_something_else():
    _, s = slope(0.4, space="prob")
    assert (torch.softmax(S, -1) - s).tolist() == pytest.approx([0.435157, 0.412933, 0.151910], abs=1e-6)


def test_constants_and_impossible_classes_change_nothing():
    assert interpolated(S + 3, Z - 5, 0.4).item() == pytest.approx(interpolated(S, Z, 0.4).item())
    never = torch.tensor([-torch.inf], dtype=torch.float64)
    for t in (0.0, 0.4, 1.0):
        s = torch.cat([S, never]).requires_grad_()
        value = interpolated(s, torch.cat([Z, never]), t)
        value.backward()
        assert value.item() == pytest.approx(interpolated(S, Z, t).item()) and torch.isfinite(s.grad).all()


def walk(losses, start, steps, **settings):
    found = Curriculum(start)
    for n, loss in enumerate(losses):
        found.update(loss, start + (1 - start) * n / steps, **settings)
        yield found.t, found.momentum


def test_the_curriculum_of_the_specification():
    losses = [2.0, 1.6, 1.8, 1.2]
    t, momentum = zip(*walk(losses, 0.2, 100, alpha=0.1, beta=0.99))
    assert t == pytest.approx([0.2, 0.24004, 0.278052, 0.314222], abs=1e-6)
    assert momentum == pytest.approx([0, 0.002, 0.00073, 0.004056], abs=1e-6)
    t, _ = zip(*walk(losses, 0.2, 100, alpha=5e-4, beta=0.99))
    assert t == pytest.approx([0.2, 0.208, 0.216, 0.224], abs=1e-6)


@given(
    losses=some.lists(some.floats(0, 1e6), min_size=2, max_size=30),
    start=some.floats(0, 0.9),
    alpha=some.floats(0, 1),
    beta=some.floats(0, 0.999),
)
def test_it_never_falls_and_never_lags(losses, start, alpha, beta):
    last = start
    for n, (t, _) in enumerate(walk(losses, start, len(losses), alpha=alpha, beta=beta)):
        line = start + (1 - start) * n / len(losses)
        assert last <= t <= 1 and (n == 0 or t >= line - 1e-12) and math.isfinite(t)
        last = t


def test_the_curriculum_ends_at_1_unless_said():
    found = Curriculum(0.5, loss=1.0)
    found.update(1.0, 1.5, alpha=0.1, beta=0.5)
    assert found.t == 1.0


def test_the_lead_is_what_the_specification_measured():
    """With a flat loss: none below 4,000 steps at the default, 0.24 with auto."""
    for alpha, most in ((5e-4, 0.0), (6 / 1000, 0.24)):
        t, _ = zip(*walk([1.0] * 1000, 0.2, 1000, alpha=alpha, beta=0.99))
        lead = max(t[n] - (0.2 + 0.8 * n / 1000) for n in range(1000))
        assert lead == pytest.approx(most, abs=0.01)


def test_a_run_keeps_its_curriculum_and_warns_when_it_cannot_adapt(tmp_path, caplog):
    """t is logged, never falls and ends near 1; two accumulated batches move it as one batch does."""
    recipe = {
        "task": "image-classification", "method": "taid", "teacher": "prototypes:digits", "student": "mlp:8",
        "data": {"train": [{"source": "digits", "split": "train", "limit": 256}]},
        "options": {"max_steps": 40, "batch_size": 32, "precision": "float32", "alpha": 5e-4},
        "evaluation": {"data": [{"source": "digits", "split": "test"}], "cost": False},
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, "kdhub"):
        run = kdhub.distill(recipe, out=tmp_path / "one")
    assert "too small to get ahead of a straight line in 40 steps" in caplog.text
    states = [r["state"] for r in run.metrics() if "state" in r]
    assert [s["t"] for s in states] == sorted(s["t"] for s in states)
    assert states[-1]["t"] == pytest.approx(0.4 + 0.6 * 39 / 40)
    two = kdhub.distill(recipe, out=tmp_path / "two", set=["options.accumulate=2"])
    again = [r["state"] for r in two.metrics() if "state" in r]
    assert [s["loss"] for s in again] == pytest.approx([s["loss"] for s in states], rel=1e-3)


def test_accumulated_means_move_it_once():
    method = Taid(Taid.Options(alpha="auto", t_start=0.2))
    for step in range(3):
        method.stepped({"teacher": 2.0 - step / 2}, Progress(step, 100, 0.0))
    assert method.curriculum.t == pytest.approx(next(
        t for n, (t, _) in enumerate(walk([2.0, 1.5, 1.0], 0.2, 100, alpha=0.06, beta=0.99)) if n == 2))  # fmt: skip
    kept = json.loads(json.dumps(method.state()))
    other = Taid(Taid.Options(alpha="auto", t_start=0.2))
    other.load_state(kept)
    assert other.curriculum == method.curriculum


@pytest.mark.parametrize("space", ["logit", "prob"])
def test_the_objective_by_hand(space):
    """Teacher's and labels' terms, means over positions and over labelled ones; the temperature is of both sides."""
    torch.manual_seed(0)
    s, z, labels = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([1, -1, 3])
    method = Taid(Taid.Options(t_start=0.3, distil_ratio=0.75, temperature=2.0, mix_space=space), "spec")
    terms = method.objective(Signals(logits=s), Signals(logits=z), {"labels": labels}, Progress(0, 10, 0.0))
    target = interpolated(s / 2, z / 2, 0.3, space)
    assert terms["teacher"].item() == pytest.approx(0.75 * target.mean().item(), rel=1e-5)
    log_q = s.log_softmax(-1)
    assert terms["labels"].item() == pytest.approx(-0.25 * (log_q[0, 1] + log_q[2, 3]).item() / 2, rel=1e-5)
    assert method.spec == "spec" and method.curriculum.t == 0.3
    whole = Taid(Taid.Options(distil_ratio=1.0))
    terms = whole.objective(Signals(logits=s), Signals(logits=z), {"labels": labels}, Progress(0, 10, 0.0))
    assert set(terms) == {"teacher"}


def test_mixed_probabilities_by_hand():
    q, p = torch.softmax(S, -1), torch.softmax(Z, -1)
    for t in (0.0, 0.25, 1.0):
        value = interpolated(S[None], Z[None].float(), t, "prob")
        assert value.shape == (1,) and value.item() == pytest.approx(-(((1 - t) * q + t * p) * q.log()).sum().item())
    assert interpolated(S, Z, 0.4).item() == interpolated(S, Z, 0.4, "logit").item()
    half = [x.bfloat16() for x in (S, Z)]
    for space in ("logit", "prob"):  # in few bits alone the rows are, not what is made of them
        exact = interpolated(half[0].float(), half[1].float(), 0.4, space)
        assert torch.equal(interpolated(*half, 0.4, space), exact)


@pytest.mark.parametrize(("options", "t"), [
    ({"alpha": 0.5}, 0.2 + 0.5 / (1 + math.exp(-0.01 * 0.5)) * 0.8),  # the loss fell by half
    ({"alpha": 0.5, "t_end": 0.35}, 0.35),
    ({"alpha": 0.5, "adaptive": False}, 0.2 + 0.8 / 20),
    ({"alpha": 0.5, "distil_ratio": 0.25}, 0.2 + 0.5 / (1 + math.exp(-0.01 * 0.5)) * 0.8),
    ({"alpha": 0.5, "distil_ratio": 0.0}, 0.2),
    ({"alpha": "auto"}, 0.2 + 0.3 / (1 + math.exp(-0.01 * 0.5)) * 0.8),
])  # fmt: skip
def test_two_steps_of_the_curriculum(options, t, caplog):
    method = Taid(Taid.Options(t_start=0.2, **options))
    for step, loss in enumerate((4.0, 2.0)):
        method.stepped({"teacher": loss}, Progress(step, 20, 0.0))
    share = options.get("distil_ratio", 1.0)
    assert method.curriculum.t == pytest.approx(t, rel=1e-6) and not caplog.text
    assert method.curriculum.loss == (2.0 / share if share else None)


@pytest.mark.parametrize(("steps", "warns"), [(3, True), (5, False)])
def test_an_alpha_that_cannot_lead_is_told_once(steps, warns, caplog):
    method = Taid(Taid.Options(alpha=0.4))
    for step in range(2):
        method.stepped({"teacher": 1.0}, Progress(step, steps, 0.0))
    assert caplog.text.count("too small to get ahead of a straight line") == warns


def test_wrong_options_are_refused():
    with pytest.raises(RecipeError, match=r"t_start must be below t_end \(t_start=0.9, t_end=0.5\)"):
        kdhub.distill("taid", set=["options.t_start=0.9", "options.t_end=0.5"])
