"""What a method's loss is of a whole batch, by hand: weights, temperatures, rows without a label, the step's counts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_logits.methods.mixkd import MixKd, draw
from kdhub_logits.methods.similarity import Feature, Mmd, Rank, median_distance
from kdhub_logits.methods.soft_targets import Dkd, Kd, SoftTargetOptions, SoftTargets

from kdhub import MethodSpec
from kdhub.errors import CompatibilityError
from kdhub.method import Progress
from kdhub.rows import Signals

S = torch.tensor([[1.0, 1.5, 0.0], [0.5, -1.0, 2.0], [3.0, 0.0, 1.0]])
Z = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [-1.0, 2.0, 0.5]])
LABELS = torch.tensor([0, 2, -1])
COUNTS = {"positions": 6.0, "labels": 4.0}


def softmax(logits, t=1.0):
    e = np.exp(logits.double().numpy() / t)
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def terms(method, epoch=100.0, student=S, teacher=Z, **batch):
    given = method.objective(
        Signals(logits=student), Signals(logits=teacher), {"labels": LABELS, **batch}, Progress(1, 2, epoch)
    )
    return {name: term.item() for name, term in given.items()}


P, Q = softmax(Z, 3), softmax(S, 3)
CE = -np.log(softmax(S))[[0, 1], [0, 2]].sum()


@pytest.mark.parametrize("counts", [{}, {"mean_counts": COUNTS}])
def test_soft_targets_of_a_batch(counts):
    positions, labels = (6, 4) if counts else (3, 2)
    method = Kd(Kd.Options(temperature=3.0, alpha=0.3))
    expected = {"teacher": 0.3 * 9 * kl(P, Q).sum() / positions, "labels": 0.7 * CE / labels}
    assert terms(method, **counts) == pytest.approx(expected, rel=1e-5)
    plain = Kd(Kd.Options(temperature=3.0, alpha=1.0, scale_t2=False))
    assert terms(plain, **counts) == pytest.approx({"teacher": kl(P, Q).sum() / positions}, rel=1e-5)


def test_a_divergence_is_found_by_the_methods_name():
    spec = MethodSpec(name="total-variation", target="x:y", tasks=("z",))
    method = SoftTargets(SoftTargetOptions(temperature=3.0, alpha=1.0, scale_t2=False), spec)
    assert terms(method)["teacher"] == pytest.approx(abs(P - Q).sum() / 2 / 3, rel=1e-5)


@pytest.mark.parametrize("counts", [{}, {"mean_counts": COUNTS}])
@pytest.mark.parametrize("scaled", [True, False])
def test_dkd_of_a_batch(counts, scaled):
    """At temperature 3; the third row has no label, and is led by the teacher's own choice, class 1."""
    positions, labels = (6, 4) if counts else (3, 2)
    each = []
    for p, q, y in zip(P, Q, (0, 2, 1)):
        rest = [c for c in range(3) if c != y]
        binary = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        each.append(0.7 * binary + 5 * kl(p[rest] / (1 - p[y]), q[rest] / (1 - q[y])))
    options = {"temperature": 3.0, "target_weight": 0.7, "others_weight": 5.0, "ce_weight": 0.4, "scale_t2": scaled}
    expected = {"teacher": (9 if scaled else 1) * sum(each) / positions, "labels": 0.4 * CE / labels}
    for how in ({"epoch": 100.0}, {"epoch": 0.0, "warmup_epochs": 0.0}):
        epoch = how.pop("epoch")
        assert terms(Dkd(Dkd.Options(**options, **how)), epoch, **counts) == pytest.approx(expected, rel=1e-5)


# -- mixup ----------------------------------------------------------------------------------------------------


def mixing(classes=3, **options):
    method = MixKd(MixKd.Options(**options))
    method.classes = classes
    return method


def test_mixkd_adapts_the_student_to_its_temperature():
    wraps = []
    student = SimpleNamespace(classes=list("abc"), wrap=wraps.append)
    method = MixKd(MixKd.Options())
    method.adapt(student, None)
    assert method.classes == 3 and wraps == ["rescaled"]
    two = SimpleNamespace(classes=list("ab"), wrap=wraps.append)
    with pytest.raises(CompatibilityError, match="with two classes"):
        method.adapt(two, None)
    method = MixKd(MixKd.Options(temperature=4.0))
    method.adapt(two, None)
    assert method.classes == 2 and wraps == ["rescaled"], "a number leaves the student as it is"


def test_mixkd_of_a_batch():
    student, teacher = torch.cat([S, Z[:1]]), torch.cat([Z, S[:1]])
    targets = torch.tensor([[0.3, 0.0, 0.7], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.6, 0.4]])
    labels = torch.tensor([0, -1, 0, 1])
    both, rows = {"student": student, "teacher": teacher, "targets": targets, "labels": labels}, [0, 2, 3]
    method = mixing(temperature=3.0, gamma=0.2, alpha=0.6)
    each = -(targets.numpy() * np.log(softmax(student))).sum(-1)
    apart = kl(softmax(teacher, 3), softmax(student, 3))
    expected = {"labels": 0.2 * each[rows].mean(), "teacher": 0.6 * 9 * apart.mean()}
    assert terms(method, **both) == pytest.approx(expected, rel=1e-5)
    s, z = (x / x.std(-1, keepdim=True) for x in (student, teacher))
    each = -(targets.numpy() * np.log(softmax(s))).sum(-1)
    expected = {"labels": 0.1 * each[rows].mean(), "teacher": 0.9 * kl(softmax(z), softmax(s)).mean()}
    assert terms(mixing(), **both) == pytest.approx(expected, rel=1e-4), "each row by its own deviation"


def test_how_much_of_a_batch_is_mixed():
    x, labels = torch.eye(20, dtype=torch.float64), torch.arange(20) % 3

    def mixed(**options):
        made = mixing(classes=4, **options).prepare_batch({"x": x, "labels": labels}, torch.Generator().manual_seed(3))
        assert made["x"].dtype == made["targets"].dtype == torch.float64 and made["targets"].shape == (20, 4)
        assert torch.equal(made["labels"], labels)
        torch.testing.assert_close(made["targets"].sum(1), torch.ones(20, dtype=torch.float64))
        return ((made["x"] > 0).sum(1) > 1).sum().item()

    assert mixed(mix_fraction=0.0) == 0 and mixed(mode="fmu", mix_fraction=0.0) >= 17  # some meet themselves
    assert 3 <= mixed(mix_fraction=0.25) <= 5 and mixed(mode="none", mix_fraction=1.0) == 0
    assert mixed(mix_fraction=0.25, legacy_sampling=True) > 6, "fewer are clean"
    made = mixing().prepare_batch({"x": x, "labels": labels - 1}, torch.Generator())
    unlabelled = mixing(mode="none").prepare_batch({"x": x, "labels": labels - 1}, torch.Generator())
    assert made["targets"].sum() < 20 and unlabelled["targets"].sum(1).tolist() == (labels > 0).tolist()


def test_every_batch_is_drawn_anew():
    generator, method = torch.Generator().manual_seed(0), mixing(mode="fmu")
    batch = {"x": torch.eye(8), "labels": torch.arange(8) % 3}
    seen = [method.prepare_batch(batch, generator)["x"] for _ in range(300)]
    assert len({x.numpy().tobytes() for x in seen}) == 300 and seen[0].dtype == torch.float32


def test_clean_rows_have_a_share_of_one_wherever_they_stand():
    rng = np.random.default_rng(0)
    for legacy in (False, True):
        shares = np.stack([draw(8, 1.0, 0.5, rng, legacy)[2] for _ in range(200)])
        assert shares.max() == 1 and shares.min() > 0 and (0.3 < (shares == 1).mean(0)).all()


# -- likeness -------------------------------------------------------------------------------------------------


def likeness(method, **modules):
    method.modules = modules
    return method


def linear(weight):
    layer = torch.nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


def of_features(method, student, teacher, alpha=0.3):
    """The teacher's term, after the labels' were looked at."""
    batch = {"labels": LABELS}
    found = method.objective(Signals(logits=S, **student), Signals(logits=Z, **teacher), batch, Progress(1, 2, 1.0))
    assert found["labels"].item() == pytest.approx((1 - alpha) * CE / 2, rel=1e-5) and len(found) == 2
    return found["teacher"].item()


W = [[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]]
MINE = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 0.5]])
THEIRS = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 4.0], [-1.0, 0.0, 2.0]])


@pytest.mark.parametrize("distance", ["mse", "l1", "cosine"])
def test_feature_of_a_batch(distance):
    method = Feature(Feature.Options(distance=distance, alpha=0.3, weight=5.0))
    likeness(method, projector=linear(W))
    s, t = MINE.numpy() @ np.array(W).T, THEIRS.numpy()
    each = {
        "mse": ((s - t) ** 2).mean(1),
        "l1": abs(s - t).mean(1),
        "cosine": 1 - (s * t).sum(1) / np.sqrt((s**2).sum(1) * (t**2).sum(1)),
    }[distance]
    found = of_features(method, {"features": MINE}, {"features": THEIRS.half()})
    assert found == pytest.approx(0.3 * 5 * each.mean(), rel=1e-5)
    alone = likeness(Feature(Feature.Options(alpha=1.0)), projector=linear(W))
    terms_ = alone.objective(Signals(features=MINE), Signals(features=THEIRS), {"labels": LABELS}, Progress(1, 2, 1.0))
    assert set(terms_) == {"teacher"}, "no labels are asked for"


def test_feature_of_layers():
    """Of positions of both rows: the student's layers 1 and 3 beside the teacher's two, each through its own map."""
    method = Feature(Feature.Options(of="hidden_states", alpha=0.3))
    method.pairs = [(1, 2), (3, 5)]
    assert method.needs(None) == ("hidden_states:2,5",)
    other = [[0.5, 0.0], [1.0, 1.0], [0.0, -2.0]]
    likeness(method, projector=torch.nn.ModuleList([linear(W), linear(other)]))
    generator = torch.Generator().manual_seed(0)
    mine, theirs = torch.randn(5, 3, 2, generator=generator), torch.randn(5, 2, 3, generator=generator)
    s = np.stack([mine[:, 0].numpy() @ np.array(W).T, mine[:, 2].numpy() @ np.array(other).T], 1)
    expected = 0.3 * ((s - theirs.numpy()) ** 2).mean()
    found = of_features(method, {"hidden_states": mine}, {"hidden_states": theirs})
    assert found == pytest.approx(expected, rel=1e-5)
    method.options.distance = "l1"
    found = of_features(method, {"hidden_states": mine}, {"hidden_states": theirs})
    assert found == pytest.approx(0.3 * abs(s - theirs.numpy()).mean(), rel=1e-5)
    method.options.distance = "mse"
    padded = of_features(method, {"hidden_states": mine[None]}, {"hidden_states": theirs[None].double()})
    assert padded == pytest.approx(expected, rel=1e-5), "positions of rows, one after the other"


def test_feature_of_attention():
    method = Feature(Feature.Options(of="attentions", distance="kl", alpha=0.3))
    method.pairs = [(2, 1)]
    assert method.needs(None) == ("attentions:1",) and method.extras(None, None) == {}
    mine, theirs = torch.tensor([[0.9, 0.5], [0.1, 0.5]]), torch.tensor([[0.75], [0.25]])
    apart = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert of_features(method, {"attentions": mine}, {"attentions": theirs}) == pytest.approx(0.3 * apart, rel=1e-5)
    method.options.distance = "l1"
    assert of_features(method, {"attentions": mine}, {"attentions": theirs}) == pytest.approx(0.3 * 0.25)


def test_maps_of_feature_have_the_widths_of_both_sides():
    student = SimpleNamespace(width=lambda name: {"features": (2,), "hidden_states": (7, 4)}[name], layers={})
    teacher = SimpleNamespace(layout=lambda name: {name: {"features": (3,), "hidden_states": (None, 9, 5)}[name]})
    for method in (Feature(Feature.Options()), Mmd(Mmd.Options())):
        (made,) = method.extras(student, teacher).values()
        assert (made.in_features, made.out_features, made.bias) == (2, 3, None)
        assert set(method.extras(student, teacher)) == {"projector"}
    assert Feature(Feature.Options()).needs(None) == ("features",)
    layers = Feature(Feature.Options(of="hidden_states"))
    layers.pairs = [(1, 2), (2, 4)]
    made = layers.extras(student, teacher)["projector"]
    assert [(m.in_features, m.out_features, m.bias) for m in made] == [(4, 5, None)] * 2


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"of": "attentions", "distance": "kl"}, True),
        ({"of": "attentions", "distance": "l1"}, True),
        ({"of": "hidden_states", "distance": "cosine"}, True),
        ({"of": "attentions", "distance": "cosine"}, False),
        ({"of": "features", "distance": "kl"}, False),
    ],
)
def test_distances_of_feature(options, fits):
    if fits:
        assert Feature.Options(**options).distance == options["distance"]
    else:
        with pytest.raises(ValueError, match=f"one of .* between {options['of']} .distance={options['distance']}"):
            Feature.Options(**options)


def test_mmd_of_a_batch():
    method = likeness(Mmd(Mmd.Options(bandwidths=(0.5, 2.0), alpha=0.3, weight=2.0)), projector=linear(W))
    s, t = MINE.numpy() @ np.array(W).T, THEIRS.numpy()
    both = np.concatenate([s, t])
    apart = np.sqrt(((both[:, None] - both) ** 2).sum(-1))
    median = np.sort(apart[np.triu_indices(6, 1)])[7]  # of 15

    def k(a, b):
        d2 = ((a[:, None] - b) ** 2).sum(-1)
        return np.mean([np.exp(-d2 / (2 * (width * median) ** 2)) for width in (0.5, 2.0)])

    assert median < 1 or median_distance(torch.tensor(s / 100), torch.tensor(t / 100)).item() == pytest.approx(
        median / 100
    )
    expected = 0.3 * 2 * (k(s, s) + k(t, t) - 2 * k(s, t))
    assert of_features(method, {"features": MINE}, {"features": THEIRS.half()}) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["hinge", "logistic"])
def test_rank_of_a_batch(form):
    """Two best of three classes at temperature 3, hence one pair a row."""
    method = Rank(Rank.Options(rank_k=2, form=form, temperature=3.0, alpha=0.3))
    each = []
    for p, q, s in zip(P, Q, S.numpy() / 3):
        i, j = np.argsort(-p)[:2]
        each.append(max(0, (p[i] - p[j]) - (q[i] - q[j])) if form == "hinge" else np.logaddexp(0, s[j] - s[i]))
    found = method.objective(Signals(logits=S), Signals(logits=Z.half()), {"labels": LABELS}, Progress(1, 2, 1.0))
    assert found["teacher"].item() == pytest.approx(0.3 * np.mean(each), rel=1e-4)
