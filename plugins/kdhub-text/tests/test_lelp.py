"""LELP: the specification's numbers, what a split leaves alone, students saved with several outputs a class."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_tasks.classification import tiny
from kdhub_tasks.classification.folders import load
from kdhub_tasks.classification.model import NetworkClassifier
from kdhub_tasks.transformer import TextClassifier
from kdhub_text.methods import lelp
from kdhub_text.methods.lelp import Lelp, cross_entropies, shares, targets, true_shares
from kdhub_text.subclasses import Subclasses, merged
from kdhub_text.subspaces import Moments, clusters, null_space, orthonormal
from told import Told

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals

P = torch.tensor([[0.8, 0.2]])
SCORES = torch.tensor([[[1.0, 0.0, -1.0], [0.5, 0.5, 0.0]]])
STUDENT = torch.tensor([[0.3, 0.1, -0.2, 0.4, 0.0, -0.1]])
SPLIT = [0.693451, 0.093848, 0.012701, 0.084464, 0.084464, 0.031072]
PARITY = {"groups": {"even": [0, 2, 4, 6, 8], "odd": [1, 3, 5, 7, 9]}, "options": {"form": "features"}}


def near(value, expected, abs=2e-6):
    got = value.tolist() if isinstance(value, torch.Tensor) else value
    assert np.asarray(got) == pytest.approx(np.asarray(expected), abs=abs)


# -- the loss -------------------------------------------------------------------------------------------------


def test_split_loss_and_its_two_parts_of_the_specification():
    q = torch.softmax(SCORES / 0.5, -1)
    p = targets(P.log(), q)
    near(p, [SPLIT])
    near(p.unflatten(-1, (2, 3)).sum(-1), P)
    near(torch.softmax(merged(STUDENT, 3), -1), [[0.490788, 0.509212]])
    apart = cross_entropies(STUDENT, p)
    near(apart, [1.652125])
    near(apart + (p * p.log()).sum(-1), [0.595405])
    mine = torch.log_softmax(STUDENT, -1).unflatten(-1, (2, 3))
    of_classes = (P * (P.log() - mine.logsumexp(-1))).sum()
    inside = (P * (q * (q.log() - mine.log_softmax(-1))).sum(-1)).sum()
    near([of_classes, inside], [0.203971, 0.391435])


def test_in_use_the_classes_have_the_teachers_probabilities_at_any_temperature():
    p, q = torch.tensor([[0.45, 0.55]]), torch.tensor([[[0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]]])
    best = 4 * targets(p.log(), q).log()
    near(torch.softmax(merged(best, 3, 4.0) / 4, -1), p)
    near(torch.softmax(merged(best, 3), -1), [[0.888125, 0.111875]])
    near(merged(STUDENT + 7, 3, 4.0), merged(STUDENT, 3, 4.0) + 7, abs=1e-5)
    for aggregate, t in (("tempered", 4.0), ("sum", 1.0)):
        made = Subclasses(Fixed(), classes=2, number=3, temperature=4.0, aggregate=aggregate)({})
        near(made["logits"], merged(STUDENT, 3, t))
        near(made["subclass_logits"], STUDENT)


class Fixed(torch.nn.Module):
    def forward(self, inputs):
        return {"logits": STUDENT}


def objective(student, features, teacher, split, labels=(0,), **options):
    method = Lelp(Lelp.Options(**options))
    weight, offset = split
    method._number = weight.shape[1]
    method.modules = {"subspaces": Signals(weight=weight, offset=offset)}
    batch = {"labels": torch.tensor(labels)}
    given = Signals(subclass_logits=student), Signals(logits=teacher, features=features)
    return method.objective(*given, batch, Progress(0, 1, 0.0))


def test_one_subclass_is_plain_soft_targets_and_labels_count_the_sum():
    from kdhub_logits.methods.soft_targets import Kd

    z, s = torch.tensor([[2.0, 0.5]]), torch.tensor([[0.3, -0.4]])
    grads = []
    for mine in (s.clone().requires_grad_(), s.clone().requires_grad_()):
        if not grads:
            terms = objective(mine, torch.ones(1, 3), z, (torch.zeros(2, 1, 3), torch.zeros(2, 1)), temperature=2.0)
        else:
            kd = Kd(Kd.Options(alpha=1.0, temperature=2.0))
            batch = {"labels": torch.tensor([0])}
            terms = kd.objective(Signals(logits=mine), Signals(logits=z), batch, Progress(0, 1, 0.0))
        sum(terms.values()).backward()
        grads.append(mine.grad)
    near(grads[0], grads[1])
    # Scores of 0 for all: p_c / S; the labels' term is -log of the class's whole probability, .490788.
    flat = (torch.zeros(2, 3, 3), torch.zeros(2, 3))
    terms = objective(STUDENT, torch.ones(1, 3), P.log(), flat, temperature=1.0, alpha=0.25)
    near(terms["labels"] / 0.25, -np.log(0.490788))
    near(terms["teacher"] / 0.75, cross_entropies(STUDENT, P.repeat_interleave(3, -1) / 3)[0])


# -- directions -----------------------------------------------------------------------------------------------


def test_null_space_of_the_specification():
    near(null_space(np.array([[1.0, 0, 0], [0, 1, 0]])) @ [2, 3, 5], [0, 0, 5])
    near(null_space(np.array([[1.0, 1, 0]])) @ [2, 3, 5], [-0.5, 0.5, 5])
    w = np.random.default_rng(0).normal(size=(3, 7))
    p = null_space(w)
    near(p @ w.T, np.zeros((7, 3)), abs=1e-12)
    near(p @ p, p, abs=1e-12)


def made(seed=0, n=400, d=6, spread=(3.0, 1.0, 1.0, 0.5, 2.0, 1.0)):
    """Embeddings of two classes, logits linear in them, and the map."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    h = rng.normal(size=(n, d)) * spread + 4 * group[:, None] + 2
    w = rng.normal(size=(2, d))
    return h, h @ w.T + [1.0, -2.0], group, w


def test_the_map_to_the_logits_is_the_teachers_own_in_one_pass_or_many():
    h, z, group, w = made()
    whole = Moments.of([(h, z, group)], 2)
    parts = Moments.of([(h[i::3], z[i::3], group[i::3]) for i in range(3)], 2)
    near(whole.map_to_logits(), w, abs=1e-9)
    near(parts.products, whole.products, abs=1e-6)
    few = Moments.of([(h, z, np.where(np.arange(len(h)) < 3, group, -1))], 2)
    near(few.map_to_logits(), w, abs=1e-9)  # rows of no class have logits too
    near(whole.covariance(1), np.cov(h[group == 1].T, bias=True), abs=1e-9)
    p = null_space(whole.map_to_logits())
    assert whole.directions(np.eye(6)).tolist() == [6, 6] and whole.directions(p).tolist() == [4, 4]
    weight, offset = whole.subspaces(p, 3, np.random.default_rng(0))
    moved = h + np.random.default_rng(1).normal(size=(len(h), 2)) @ w
    scores = [np.einsum("csd,nd->ncs", weight, x) - offset for x in (h, moved)]
    near(scores[1], scores[0], abs=1e-8)
    # Centred, and of mean variance 1 over the directions, class by class.
    for c in range(2):
        own = scores[0][group == c, c]
        near(own.mean(0), np.zeros(3), abs=1e-9)
        near(own.var(0).mean(), 1.0, abs=1e-9)


def test_moments_of_few_rows_by_hand():
    h, z, group = np.array([[1.0, 2], [3, 4], [5, 9]]), np.array([[1.0, 0], [2, 5], [0, 1]]), np.array([0, -1, 0])
    found = Moments.of([(h[:2], z[:2], group[:2]), (h[2:], z[2:], group[2:])], 2)
    assert found.n.tolist() == [2, 0, 1] and found.sums.tolist() == [[6, 11], [0, 0], [3, 4]]
    assert found.products.tolist() == [[[26, 47], [47, 85]], [[0, 0], [0, 0]], [[9, 12], [12, 16]]]
    assert found.logits.tolist() == [3, 6] and found.crossed.tolist() == (h.T @ z).tolist()
    assert (found.classes, found.width) == (2, 2) and found.mean(0).tolist() == [3, 5.5]
    assert found.covariance(0).tolist() == [[4, 7], [7, 12.25]]
    assert found.covariance(0, center=False).tolist() == [[13, 23.5], [23.5, 42.5]]
    one = Moments.of([(h[:1], z[:1], group[:1])], 2)
    assert one.mean(0).tolist() == [1, 2] and not one.covariance(0).any() and not one.map_to_logits().any()
    assert one.mean(1).tolist() == [0, 0], "of no row"


def test_directions_in_which_embeddings_hardly_vary_are_not_in_the_map():
    h, z, group, w = made()
    noise = np.random.default_rng(1).normal(size=(len(h), 1))
    found = Moments.of([(np.concatenate([h, 1e-4 * noise], 1), z + noise, group)], 2)
    near(found.map_to_logits()[:, 6], [0, 0], abs=1e-2)


def test_a_turn_evens_out_variances_and_keeps_their_sum():
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    near(np.diag(turn @ np.diag([9.0, 1.0]) @ turn.T), [5.0, 5.0])
    q = orthonormal(5, np.random.default_rng(3))
    near(q @ q.T, np.eye(5), abs=1e-12)
    h, z, group, _ = made()
    found = Moments.of([(h, z, group)], 2)
    spread = {}
    for rotate in (True, False):
        many = [found.subspaces(np.eye(6), 3, np.random.default_rng(s), rotate=rotate)[0][0] for s in range(200)]
        spread[rotate] = np.mean([np.diag(v @ found.covariance(0) @ v.T) for v in many], 0)
    near(spread[True], np.ones(3), abs=0.15)
    assert spread[False][0] / spread[False][2] > 4


def test_a_class_of_few_rows_does_not_decide_for_the_others():
    h, z, group, _ = made()
    group[:] = 0
    group[:2] = 1
    found = Moments.of([(h, z, group)], 2)
    assert found.directions(np.eye(6)).tolist() == [6, 1]
    assert found.narrowest(np.eye(6), 5) == (6, 0) and found.narrowest(np.eye(6), 1) == (1, 1)
    assert found.narrowest(np.eye(6), 400) == (6, 0)


def test_flat_classes_are_split_evenly_and_clusters_by_their_nearest_centre():
    h, z, group, _ = made()
    h[group == 1] = h[group == 1][0]
    group[0] = -1
    found = Moments.of([(h, z, group)], 2)
    assert found.n[:2].sum() == len(h) - 1 and found.directions(np.eye(6)).tolist() == [6, 0]
    weight, offset = (torch.from_numpy(x).float() for x in found.subspaces(np.eye(6), 2, np.random.default_rng(0)))
    near(shares(torch.from_numpy(h).float(), weight, offset, 0.5)[:, 1], np.full((len(h), 2), 0.5))
    weight, offset = clusters([(h, z, group)], np.eye(6), 2, 3, seed=0)
    q = shares(*(torch.from_numpy(x) for x in (h, weight, offset)), None)[:, 0].numpy()
    nearest = np.linalg.norm(h[:, None] - weight[0], axis=-1).argmin(1)
    assert set(q.sum(1)) == {1.0} and (q.argmax(1) == nearest).all()
    flat = shares(*(torch.from_numpy(x) for x in (h, weight, offset)), None)[:, 1]
    near(flat, np.full((len(h), 3), 1 / 3))


def test_true_subclasses_where_they_are_known():
    """One of four alike has the deviation sqrt(3) / 4: e^2.309401 is 10.068389, of 13.068389."""
    q = true_shares(torch.tensor([1, 0, -1]), torch.tensor([2, -1, 0]), 2, 4, beta=1.0)
    near(q[0], [[0.25] * 4, [0.076521, 0.076521, 0.770438, 0.076521]])
    near(q[1:], np.full((2, 2, 4), 0.25))
    half = true_shares(torch.tensor([0]), torch.tensor([1]), 1, 4, beta=2.0)  # e^1.154701 is 3.173075
    near(half, [[[0.161996, 0.514013, 0.161996, 0.161996]]], abs=2e-5)
    near(true_shares(torch.tensor([0]), torch.tensor([0]), 1, 1, beta=1.0), [[[1.0]]])


# -- before training, from a run of the test's own ------------------------------------------------------------


def fitting(monkeypatch, many=60, **options):
    """A method that has not seen its rows yet, which are read 25 at once, and its run."""
    monkeypatch.setattr(lelp, "READ", 25)
    h, z, group, _ = made(n=many)
    rows = [{"label": int((c + n % 7 // 6) % 2), "content": f"row {n}".encode(), "subclass": n % 3}
            for n, c in enumerate(group)]  # fmt: skip
    run = Told(SimpleNamespace(classes=["a", "b"]), {"train": rows}, {"features": h, "logits": z}, seed=5)
    method = Lelp(Lelp.Options(**{"subclasses": 3} | options))
    method._rows = run.rows("train")
    return method, run


def parts(run, by="teacher"):
    h, z = run.given["features"], run.given["logits"]
    return [(h, z, z.argmax(1) if by == "teacher" else np.array([row["label"] for row in run.rows().examples]))]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"null_space": False}, {"group_by": "label", "center": False}, {"rotate": False}, {"direction": "random"},
        {"direction": "kmeans"}, {"null_space": True, "subclasses": 4},
    ],
)  # fmt: skip
def test_classes_are_split_by_the_moments_of_all_rows(monkeypatch, options):
    method, run = fitting(monkeypatch, **options)
    method._fit(run)
    given, o = parts(run, options.get("group_by", "teacher")), method.options
    found, p, rng = Moments.of(given, 2), np.eye(6), np.random.default_rng([5, 0])
    if o.null_space is not False:
        p = null_space(found.map_to_logits())
    if o.direction == "kmeans":
        by_hand = clusters(given, p, 2, 3, 5)
    else:
        how = {"direction": o.direction, "rotate": o.rotate, "center": o.center}
        by_hand = found.subspaces(p, o.subclasses, rng, **how)
    assert method._number == o.subclasses and method._others is None
    for mine, theirs in zip(method._split, by_hand):
        near(mine, theirs, abs=1e-6)
    weight, offset = (torch.from_numpy(x).float() for x in by_hand)
    kept = method.extras(None, None)["subspaces"]
    assert sorted(name for name, _ in kept.named_buffers()) == ["offset", "weight"]
    assert method.state() == {"subclasses": o.subclasses} and method.needs(None) == ("logits", "features")
    method.modules, features = {"subspaces": kept}, torch.tensor(run.given["features"])
    q = shares(features.float(), weight, offset, None if o.direction == "kmeans" else 1.0)
    near(method._shares(Signals(features=features), {}), q.numpy(), abs=1e-5)


def test_splits_that_embeddings_do_not_allow(monkeypatch, caplog):
    """Two of six directions are in the logits: four are left. With as many logits as directions none is, and `auto`
    splits along what the logits say."""
    method, run = fitting(monkeypatch, subclasses=9)
    method._fit(run)
    assert method._number == 4 == method._split[0].shape[1]
    assert "vary in 4 directions: 4 pseudo-subclasses instead of 9; rows that" in caplog.text
    for width in (2, 1):
        caplog.clear()
        method, run = fitting(monkeypatch, subclasses=9)
        run.given["features"] = run.given["logits"][:, :width]
        method._fit(run)
        assert method._number == width == method._split[0].shape[-1] and method._split[0].any()
        assert ("plain soft targets" in caplog.text) == (width == 1)
    run.given["features"] = run.given["logits"]
    method.options.null_space = True
    with pytest.raises(CompatibilityError, match="the logits carry all 2 dimensions"):
        method._fit(run)
    run.given["features"] = np.ones((60, 2))  # embeddings that say nothing
    method.options.null_space = False
    method._fit(run)
    assert method._number == 1 and not method._split[0].any()
    for row in run.rows().examples:
        row["label"] = -1
    method.options.group_by = "label"
    with pytest.raises(UsageError, match="no training row has one"):
        method._fit(run)


def test_controls_find_the_rows_of_a_batch_by_their_content(monkeypatch):
    method, run = fitting(monkeypatch, control="random")
    method._fit(run)
    assert method.needs(None) == ("logits",)
    rng = np.random.default_rng([5, 0])
    weight, offset = Moments.of(parts(run), 2).subspaces(null_space(Moments.of(parts(run), 2).map_to_logits()), 3, rng)
    features = torch.from_numpy(run.given["features"]).float()
    own = shares(features, *(torch.from_numpy(x).float() for x in (weight, offset)), 1.0)
    for c in range(2):
        own[:, c] = own[torch.from_numpy(rng.permutation(60)), c]
    some = [41, 7, 0, 59]
    batch = {"keys": torch.tensor([zlib.crc32(run.rows().examples[n]["content"]) for n in some])}
    near(method._shares(Signals(), batch), own[some].numpy(), abs=1e-5)
    method, run = fitting(monkeypatch, control="oracle")
    run.fit = lambda fits, student: (fits, student, fits.rows(run))
    assert method.distill(run) == (method, run.student, run.rows())
    assert method._number == 3 and method.extras(None, None) == {} and method.needs(None) == ("logits",)
    given, labels, parts_ = Signals(logits=torch.zeros(3, 2)), torch.tensor([1, 0, 0]), torch.tensor([2, 0, 1])
    batch, student = {"labels": labels, "subclasses": parts_}, Signals(subclass_logits=torch.randn(3, 6))
    q = true_shares(labels, parts_, 2, 3, 1.0)
    near(method._shares(given, batch), q.numpy())
    apart = -(q.flatten(1) / 2 * (student["subclass_logits"] / 4).log_softmax(-1)).sum() / 3
    near(method.objective(student, given, batch, None)["teacher"], 16 * apart, abs=1e-5)
    for wrong in ({"subclass": -1}, {}):
        run.of_use["train"].examples = [{"label": 0, **wrong}] * 3
        with pytest.raises(UsageError, match="a column 'subclass'"):
            method.distill(run)


def test_a_student_is_widened_as_the_options_say():
    asked, method = [], Lelp(Lelp.Options(aggregate="sum", temperature=3.0))
    method._number = 4
    method.adapt(SimpleNamespace(wrap=lambda name, **how: asked.append((name, how))), None)
    assert asked == [("subclasses", {"number": 4, "temperature": 3.0, "aggregate": "sum"})]
    whole = {"positions": 8.0, "labels": 4.0}
    split = torch.zeros(2, 3, 3), torch.zeros(2, 3)
    method = Lelp(Lelp.Options(temperature=2.0, alpha=0.25, beta=3.0))
    method._number, method.modules = 3, {"subspaces": Signals(weight=split[0], offset=split[1])}
    given = Signals(subclass_logits=STUDENT), Signals(logits=P.log(), features=torch.ones(1, 3))
    one, step = (
        method.objective(*given, {"labels": torch.tensor([1]), "attention_mask": torch.ones(1, 1), **more}, None)
        for more in ({}, {"mean_counts": whole})
    )
    p = (P.log() / 2).softmax(-1).repeat_interleave(3, -1) / 3
    near(one["teacher"], 0.75 * 4 * -(p * (STUDENT / 2).log_softmax(-1)).sum(), abs=1e-5)
    near(one["labels"], 0.25 * -np.log(0.509212), abs=1e-5)
    near(step["teacher"], one["teacher"].item() / 8, abs=1e-6)
    near(step["labels"], one["labels"].item() / 4, abs=1e-6)


# -- students -------------------------------------------------------------------------------------------------


def test_a_widened_student_is_saved_with_all_its_outputs(tmp_path):
    config = {"network": "mlp", "shape": [4], "classes": ["a", "b", "c"], "hidden": [8]}
    student = NetworkClassifier("tabular-classification", config)
    examples = [{"x": np.arange(4, dtype=np.float32)}]
    student.wrap("subclasses", number=5, temperature=4.0)
    assert student.width("subclass_logits") == (15,) and student.width("logits") == (3,)
    outputs = student.signals(examples, "subclass_logits")["subclass_logits"].reshape(3, 5)
    near(student.signals(examples, "logits")["logits"][0], 4 * np.log(np.exp(outputs / 4).sum(1)), abs=1e-5)
    student.save(tmp_path)
    near(load(tmp_path).signals(examples, "logits")["logits"], student.signals(examples, "logits")["logits"])
    with pytest.raises(CompatibilityError, match="Subclasses already"):
        student.wrap("subclasses", number=2, aggregate="sum")


def test_a_widened_student_knows_what_it_knew():
    config = {"network": "mlp", "shape": [4], "classes": ["a", "b", "c"], "hidden": [64]}
    x = [{"x": row} for row in np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)]
    for number, apart in ((1, 0.0), (50, 0.3)):
        student = NetworkClassifier("tabular-classification", config)
        before = student.signals(x, "logits")["logits"]
        student.wrap("subclasses", number=number, temperature=4.0)
        after = student.signals(x, "logits")["logits"]
        before, after = (z - z.mean(1, keepdims=True) for z in (before, after))
        assert np.abs(after - before).max() <= apart * np.abs(before).max()
        outputs = student.signals(x, "subclass_logits")["subclass_logits"].reshape(50, 3, number)
        assert number == 1 or outputs.std(-1).min() > 0


def test_a_text_student_is_a_plain_folder_of_the_library_with_named_parts(tmp_path):
    from transformers import pipeline

    student = TextClassifier.load(tiny.text_classifier(tmp_path / "start"))
    student.wrap("subclasses", number=3, temperature=4.0)
    with torch.no_grad():
        student.module.model.classifier.weight.normal_()
    (tmp_path / "saved").mkdir()
    student.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.classes == ["bad", "good"] and again.width("logits") == (2,)
    example = {"text": "a great film", "length": 5}
    logits = again.signals([example], "logits")["logits"]
    near(logits, student.signals([example], "logits")["logits"])
    plain = pipeline("text-classification", model=str(tmp_path / "saved"), top_k=None)
    scores = {p["label"]: p["score"] for p in plain([example["text"]])[0]}
    assert set(scores) == {f"{name}/{part}" for name in ("bad", "good") for part in range(3)}
    tempered = [sum(v**0.25 for n, v in scores.items() if n.startswith(name)) for name in ("bad", "good")]
    near(4 * np.diff(np.log(tempered)), np.diff(logits[0]), abs=1e-4)
    said = {}
    usage = again.usage().replace("{path}", str(tmp_path / "saved")).replace("a text to classify", example["text"])
    exec(usage, said)
    assert max(said["scores"], key=said["scores"].get) == ["bad", "good"][logits.argmax()]
    # As a start for other classes it is an encoder like any other.
    fresh = TextClassifier.with_head(tmp_path / "saved", ["x", "y"], 0, {})
    assert fresh.classes == ["x", "y"] and fresh.module.model.classifier.out_features == 2


# -- runs -----------------------------------------------------------------------------------------------------


def run(tmp_path, name, train=None, **options):
    changes = {"options.epochs": 25, "evaluation.cost": False, "options.subclasses": 3}
    changes |= {f"options.{key}": value for key, value in options.items()}
    data = [{"source": "labels:digits", "split": "train", "options": PARITY | (train or {"per_class": 40})}]
    return kdhub.distill({"method": "lelp", "data": {"train": data}}, out=tmp_path / name, set=changes)


def accuracy(run):
    return {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "accuracy"}["student"]


def test_rows_without_a_label_teach_and_controls_find_their_rows(tmp_path):
    """The parity of digits: no label is needed. A random split and the true one are of the same rows."""
    few = run(tmp_path, "few", {"labelled": 0, "unlabelled": 80})
    assert accuracy(few) > 0.8
    assert json.loads((few.student_folder / "config.json").read_text())["classes"] == ["even", "odd"]
    found = {control: accuracy(run(tmp_path, control, control=control)) for control in ("random", "oracle")}
    assert min(found.values()) > 0.7
    assert accuracy(run(tmp_path, "labels", group_by="label", alpha=0.5, null_space=True, direction="kmeans")) > 0.75


def test_a_random_split_is_of_the_same_parts_but_of_other_rows(tmp_path):
    """Over rows each part of a class has the mean it had; a row finds its own entry by its content."""
    from kdhub.training.session import Session

    made = {}
    for control in ("none", "random"):
        done = run(tmp_path, control, control=control, max_steps=1)
        session = Session(done, kdhub.recipes.resolve.Resolver())
        session.recipe = done.recipe = kdhub.training.execute.unchained(done.recipe, session.resolver)[0]
        method = session.method
        method._rows = session.rows("train")
        method._fit(session)
        made[control] = method, session
    method, session = made["random"]
    batch = session.task.collate(method._rows[np.arange(80)], session.student)
    permuted = method._shares(Signals(), batch)
    weight, offset = (torch.from_numpy(x).float() for x in method._split)
    features = session.signals(method._rows, "features")[np.arange(80)]["features"]
    own = shares(torch.from_numpy(features).float(), weight, offset, 1.0)
    near(permuted.mean(0), own.mean(0), abs=1e-6)
    for c in range(2):
        near(permuted[:, c].sort(0).values, own[:, c].sort(0).values)
        assert (permuted[:, c] - own[:, c]).abs().max(-1).values.gt(1e-3).float().mean() > 0.8


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(UsageError, match="a column 'subclass'"):
        kdhub.distill({"method": "lelp"} | _teacher(tmp_path), out=tmp_path / "a", set={"options.control": "oracle"})
    with pytest.raises(UsageError, match="no training row has one"):
        run(tmp_path, "b", {"labelled": 0, "unlabelled": 80}, group_by="label")


def _teacher(folder):
    config = {"network": "mlp", "shape": [64], "hidden": [8], "classes": [str(i) for i in range(10)]}
    (folder / "teacher").mkdir()
    NetworkClassifier("tabular-classification", config).save(folder / "teacher")
    data = [{"source": "digits", "options": {"form": "features"}}]
    return {"teacher": f"path:{folder / 'teacher'}", "data": {"train": data}, "evaluation": {"data": []}}


def test_too_few_directions_are_clamped_and_told(tmp_path, caplog):
    """Eight dimensions, of which ten logits carry all: null_space auto leaves them; true is refused."""
    recipe = {"method": "lelp"} | _teacher(tmp_path)
    with pytest.raises(CompatibilityError, match="the logits carry all 8 dimensions"):
        kdhub.distill(recipe, out=tmp_path / "a", set={"options.null_space": True, "options.max_steps": 1})
    done = kdhub.distill(recipe, out=tmp_path / "b", set={"options.subclasses": 20, "options.max_steps": 1})
    (wrapper,) = json.loads((done.student_folder / "config.json").read_text())["wrappers"]
    assert wrapper["wrapper"] == "subclasses"
    number = wrapper["number"]
    assert 1 <= number <= 8 and f"{number} pseudo-subclasses instead of 20" in caplog.text
