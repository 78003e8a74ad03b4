"""The methods' objectives: the specifications' numbers, rows without labels, and what holds over seeds."""

from __future__ import annotations

import inspect
import math
import re
from itertools import permutations
from pathlib import Path

import pytest
import torch
from kdhub_logits import plugin
from kdhub_logits.methods import soft_targets
from kdhub_logits.methods.pld import Pld, plackett_luce
from kdhub_tasks import divergences
from kdhub_tasks.methods.supervised import Supervised

import kdhub
from kdhub import hookimpl
from kdhub.method import Progress
from kdhub.plugins.discovery import get_plugins
from kdhub.recipes.recipe import Recipe
from kdhub.recipes.resolve import Resolver
from kdhub.rows import Signals

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
        (soft_targets.Sym, {}, 0.1 * 0.239401 + 0.9 * 0.245251),
        (soft_targets.Sym, {"reverse": 0.0}, 0.239401),
    ],
)
def test_each_method_is_its_own_divergence_with_its_own_options(cls, options, value):
    assert loss(cls, alpha=1.0, temperature=1.0, **options) == pytest.approx(value, abs=2e-6)


def test_dkd_warms_up_and_keeps_the_labels():
    """By whole epochs from 1, as the authors count."""
    plain = {"temperature": 1.0, "others_weight": 8.0}
    assert loss(soft_targets.Dkd, ce_weight=0.0, **plain) == pytest.approx(0.412807, abs=4e-6)
    for epoch, share in ((0.0, 1 / 20), (0.99, 1 / 20), (1.0, 2 / 20), (4.5, 5 / 20), (19.0, 1), (25.0, 1)):
        warm = loss(soft_targets.Dkd, ce_weight=0.0, epoch=epoch, **plain)
        assert warm == pytest.approx(share * 0.412807, abs=4e-6)
    both = loss(soft_targets.Dkd, epoch=0.0, **plain)
    assert both == pytest.approx(1.104131 + 0.412807 / 20, abs=4e-6)
    assert loss(soft_targets.Dkd, labels=(-1,), **plain) == pytest.approx(0.412807, abs=4e-6), "led by the teacher"


@pytest.mark.parametrize("t", [2.0, 4.0])
def test_dkd_has_the_square_of_its_temperature(t):
    """Both sides are divided by it, and the value is multiplied by its square, unless `scale_t2` is false."""
    (p, q), kl = (torch.softmax(x[0].double() / t, -1) for x in (Z, S)), lambda a, b: (a * (a / b).log()).sum()
    pair = [torch.stack([x[0], 1 - x[0]]) for x in (p, q)]
    by_hand = kl(*pair) + 8 * kl(p[1:] / p[1:].sum(), q[1:] / q[1:].sum())
    for scale, factor in ((True, t * t), (False, 1.0)):
        value = loss(soft_targets.Dkd, ce_weight=0.0, temperature=t, scale_t2=scale)
        assert value == pytest.approx(factor * by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "of_tokens", "of_classes"),
    [
        *((name, {"alpha": 1, "temperature": 1}, {"alpha": 0.5, "temperature": 2}) for name in
          ("kd", "reverse-kl", "jsd", "tvd", "skew-kl", "akl", "sym")),
        ("rank", {"alpha": 1, "temperature": 1}, {"alpha": 0.5, "temperature": 1}),
        ("feature", {"alpha": 0.5}, {"alpha": 0.5}),
        ("dkd", {"target_weight": 1, "others_weight": 0.5, "ce_weight": 0, "warmup_epochs": 0, "temperature": 1},
         {"target_weight": 1, "others_weight": 8, "ce_weight": 1, "warmup_epochs": 20, "temperature": 4}),
    ],
)  # fmt: skip
def test_language_models_have_defaults_of_their_own(method, of_tokens, of_classes):
    """And what a recipe sets is what it sets."""
    for task, expected in (("causal-lm", of_tokens), ("text-classification", of_classes)):
        recipe = {"task": task, "method": method, "student": "-", "teacher": "-"}
        resolver = Resolver()
        options = resolver.method(resolver.completed(Recipe(**recipe))).options
        assert {name: getattr(options, name) for name in expected} == expected
        own = dict.fromkeys(expected, 0.25)
        options = resolver.method(resolver.completed(Recipe(**recipe, options=own))).options
        assert {name: getattr(options, name) for name in own} == own


@pytest.mark.parametrize("cls", [soft_targets.Kd, soft_targets.Tvd, Supervised])
def test_rows_without_a_label_count_for_the_teacher_only(cls):
    both = {"student": torch.cat([S, S]), "teacher": torch.cat([Z, Z])}
    assert loss(cls, labels=(0, -1), **both) == pytest.approx(loss(cls), abs=1e-6)
    alone = loss(cls, labels=(-1,))
    assert math.isfinite(alone) and (alone == 0) == (cls is Supervised)


README = Path(__file__).parents[1] / "README.md"


def test_a_divergence_takes_one_function_and_one_line(monkeypatch, tmp_path):
    """Those that the README shows; by hand 1 - sum sqrt(p q), and a run that learns."""
    function, line = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    made = {"log_probabilities": divergences.log_probabilities, "Tensor": torch.Tensor}
    exec(function, made)
    monkeypatch.setattr(divergences, "hellinger", made["hellinger"], raising=False)

    class Plugin:
        @hookimpl
        def kdhub_methods(self):
            source = inspect.getsource(plugin.kdhub_methods).partition("def kdhub_methods():")[2]
            named = {}
            exec("def methods():" + source.rstrip() + f"\n    yield {line}", {**vars(plugin)}, named)
            return [spec for spec in named["methods"]() if spec.name == "hellinger"]

    get_plugins().register(Plugin())
    p, q = [0.665241, 0.244728, 0.090031], [0.331499, 0.546549, 0.121952]
    by_hand = 1 - sum(math.sqrt(a * b) for a, b in zip(p, q))
    (spec,) = Plugin().kdhub_methods()
    method = soft_targets.SoftTargets(soft_targets.SoftTargetOptions(alpha=1.0, temperature=1.0), spec)
    terms = method.objective(Signals(logits=S), Signals(logits=Z), {"labels": torch.tensor([0])}, Progress(0, 1, 0.0))
    assert terms["teacher"].item() == pytest.approx(by_hand, abs=2e-6)
    run = kdhub.distill(method="hellinger", out=tmp_path / "run", set={"options.epochs": 15, "evaluation.cost": False})
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "accuracy"}
    assert values["student"] > values["student-before"] + 0.15


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


@pytest.mark.parametrize(
    ("label", "weights", "terms"),
    [
        (0, [0.643914, 0.236883, 0.087144, 0.032059], [1.440190, 2.169846, 0.048587, 0]),
        (1, [0.087144, 0.643914, 0.236883, 0.032059], [0.440190, 0.407606, 0.313262, 0]),
    ],
)
def test_pld_step_by_step(label, weights, terms):
    for k in range(1, 5):
        expected = sum(a * term for a, term in zip(weights[:k], terms))
        assert pld(label, topk=k) == pytest.approx(expected, abs=3e-6)
    equal = [4 * (pld(label, topk=k, weighting="uniform") - (k > 1 and pld(label, topk=k - 1, weighting="uniform")))
             for k in range(1, 5)]  # fmt: skip
    assert equal == pytest.approx(terms, abs=4e-6)


def test_pld_of_a_batch():
    both = {"student": STUDENT.repeat(2, 1), "teacher": TEACHER.repeat(2, 1)}
    assert loss(Pld, labels=(0, 1), **both) == pytest.approx(0.910311, abs=2e-6)


@pytest.mark.parametrize("hard", ["plain", "float16", "bfloat16", "impossible", "huge", "one class"])
def test_pld_equals_a_slow_loop(hard):
    generator = torch.Generator().manual_seed(1)
    s, t = (3 * torch.randn(5, 1 if hard == "one class" else 6, generator=generator) for _ in range(2))
    if hard in ("float16", "bfloat16"):
        s, t = (x.to(getattr(torch, hard)) for x in (s, t))
    elif hard == "impossible":
        s[:, 4:], t[:, 4:] = -torch.inf, -torch.inf
    elif hard == "huge":
        s, t = 1e4 * s, 1e4 * t
    labels = torch.arange(5) % min(4, s.shape[1])
    student = s.clone().requires_grad_()
    given = plackett_luce(student, t, labels)
    for row, (a, b, y) in enumerate(zip(s.double().tolist(), t.double(), labels.tolist())):
        q = torch.softmax(b, -1).tolist()
        order = [y, *sorted((c for c in range(len(a)) if c != y), key=lambda c: -b[c])]
        total = 0.0
        for k, chosen in enumerate(order):
            top = max(a[c] for c in order[k:])
            if q[chosen] and math.isfinite(top):
                total += q[chosen] * (top + math.log(sum(math.exp(a[c] - top) for c in order[k:])) - a[chosen])
        assert given[row].item() == pytest.approx(total, rel=1e-5, abs=1e-5)
    given.sum().backward()
    assert torch.isfinite(student.grad).all()


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


def test_pld_options_reach_the_loss():
    both = {"student": STUDENT, "teacher": TEACHER}
    assert loss(Pld, topk=2, **both) == pytest.approx(pld(0, topk=2))
    assert loss(Pld, weighting="uniform", **both) == pytest.approx(pld(0, weighting="uniform"))
    assert loss(Pld, teacher_temperature=2.0, **both) == pytest.approx(pld(0, temperature=2.0))
    twice = {"student": STUDENT.repeat(2, 1), "teacher": TEACHER.repeat(2, 1)}
    assert loss(Pld, labels=(0, -1), **twice) == pytest.approx(pld(0)), "a mean over the rows with a label"
    ranked = loss(Pld, labels=(1, -1), force_label_first=False, **twice)
    assert ranked == pytest.approx(pld(None)), "over all rows, whatever their labels"
    terms = Pld(Pld.Options()).objective(
        Signals(logits=S), Signals(logits=Z), {"labels": torch.tensor([0])}, Progress(0, 1, 0.0)
    )
    assert set(terms) == {"ranking"}


def test_pld_by_position_of_one_and_of_two_classes():
    one, two = torch.ones(1, 1), torch.tensor([[0.3, -0.2]])
    assert plackett_luce(one, one, torch.tensor([0]), weighting="position").item() == 0
    entropy = torch.nn.functional.cross_entropy(two, torch.tensor([1])).item()
    given = plackett_luce(two, two, torch.tensor([1]), weighting="position")
    assert given.item() == pytest.approx(entropy) and given.dtype == torch.float32


def test_pld_options():
    assert pld(0, topk=4) == pld(0) and pld(0, topk=1) == pytest.approx(0.643914 * 1.440190, abs=2e-6)
    assert pld(None) == pytest.approx(pld(0), abs=1e-6), "here the teacher ranks the label first by itself"
    assert loss(Pld, labels=(-1,)) == 0, "without a label there is nothing to put first"
    assert loss(Pld, labels=(-1,), force_label_first=False) > 0
    many = plackett_luce(torch.zeros(1, 5000), torch.zeros(1, 5000), torch.tensor([7]), weighting="position")
    assert torch.isfinite(many).all()
