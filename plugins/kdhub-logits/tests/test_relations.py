"""Features, sets of features, orders of classes, graphs of tokens, and mixed inputs: the specifications' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdhub_logits import networks
from kdhub_logits.mixkd import MixKd, draw, mix, mixed_loss
from kdhub_logits.networks import rescaled
from kdhub_logits.similarity import feature_distance, median_distance, mmd2, rank_loss
from kdhub_logits.trg import global_loss, graph, inner_loss, local_loss, same_grid

import kdhub

Z, S = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.5, 0.0]])
HS, HT = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])


def near(value, expected, abs=2e-6):
    got = value.tolist() if isinstance(value, torch.Tensor) else value
    assert np.asarray(got) == pytest.approx(np.asarray(expected), abs=abs)


# -- features, orders -----------------------------------------------------------------------------------------


def test_feature_distances_of_the_specification():
    near(feature_distance(HS, HT).mean(), 1.25)
    near(feature_distance(HS, HT, "cosine"), [0.552786, 0.292893])
    near(feature_distance(HS, HT, "l1"), [1.0, 0.5])


def test_mmd_of_the_specification_and_zero_only_for_equal_sets():
    near(mmd2(HS, HT, [1.0]), 0.629067)
    near(mmd2(HS, HS.flip(0), [1.0, 2.0]), 0.0)
    far = mmd2(HS, HS + 100, [median_distance(HS, HS + 100)])
    assert 0.5 < far < 2.0, "the median keeps sets that are far apart in reach of the kernel"


def test_mmd_has_a_gradient_where_points_coincide():
    x = HS.clone().requires_grad_(True)
    mmd2(x, HT, [median_distance(x, HT)]).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_rank_losses_of_the_specification():
    near(rank_loss(S, Z), 0.333742)
    near(rank_loss(S, Z, form="logistic"), 0.496251)
    near(rank_loss(Z, Z), 0.0)
    near(rank_loss(S, Z, k=2), 0.420513 + 0.215048)  # only the pair of the teacher's two best: (p0-p1) - (q0-q1)
    near(rank_loss(torch.cat([S, Z]), torch.cat([Z, Z])), 0.333742 / 2)  # all rows' pairs weigh alike


# -- TRG ------------------------------------------------------------------------------------------------------

TT = torch.tensor([[0.0, 0.0], [1, 0], [0, 2], [3, 3]])


def test_the_graph_of_the_specification():
    near(graph(TT, 2, 1.0), [
        [0, 0.606531, 0.135335, 0], [0.606531, 0, 0.082085, 0.001503], [0.135335, 0.082085, 0, 0.006738], [0, 0, 0, 0]
    ])  # fmt: skip
    near(torch.exp(torch.tensor(-5.0 / (2 * 5.375))), graph(TT, 2, "auto")[1, 2])
    ts = torch.tensor([[0.0, 0.0], [2, 0], [0, 1], [3, 3]])
    near(local_loss(ts, TT, 2, 1.0), 0.113688 / 4)
    skewed = torch.tensor([[0.0, 0.0], [2, 0], [0, 1], [3, 1]])
    near(local_loss(skewed, TT, 2, 1.0), 0.156724 / 4)
    near(local_loss(skewed, TT, 2, 1.0, "teacher_student"), 0.155188 / 4)


def test_the_contrast_of_the_specification():
    s, t = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[1.0, 0], [0, 1], [-1, 1]])
    near(global_loss(s, t, 1.0), 2.806978 / 3)
    near(global_loss(s, t, 0.5), 2.903489 / 3)
    near(global_loss(t, t, 0.1), 0.104237 / 3)
    near(global_loss(s * torch.tensor([[2.0], [0.1], [7.0]]), t, 1.0), 2.806978 / 3)


def test_the_context_of_the_specification():
    f, g = torch.tensor([[[1.0, 0], [0, 1]]]), torch.tensor([[[2.0, 0], [0, 1]]])
    near(inner_loss(g, f), 0.037656)
    near(inner_loss(f, f), 0.0)


def test_the_graph_ignores_where_tokens_lie_and_how_they_are_numbered():
    torch.manual_seed(0)
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    value = local_loss(x, y, 4)
    near(local_loss(3 * x @ turn + 1.5, y, 4), value.item(), abs=1e-9)  # auto sigma: scaling too
    order = torch.randperm(20)
    near(local_loss(x[order], y[order], 4), value.item(), abs=1e-9)
    near(local_loss(x, x, 4), 0.0)


def test_tokens_of_different_grids_meet():
    fine, coarse = torch.arange(16.0).reshape(1, 16, 1), torch.zeros(1, 4, 3)
    a, b = same_grid(fine, coarse)
    near(a.flatten(), [2.5, 4.5, 10.5, 12.5])
    assert b.shape == (1, 4, 3)
    a, _ = same_grid(fine, fine, patch=2)
    near(a[0, 0], [0, 1, 4, 5])


# -- mixup ----------------------------------------------------------------------------------------------------

ZT, ZS, TARGET = torch.tensor([[2.0, 0, -2, 4]]), torch.tensor([[1.0, 0, -1, 3]]), torch.tensor([[0.3, 0, 0, 0.7]])


def test_mixed_losses_of_the_specification():
    near(torch.softmax(rescaled(ZT), -1)[0], [0.260212, 0.119929, 0.055274, 0.564586])
    labels, apart = mixed_loss(ZS, ZT, TARGET)
    near(apart, 0.014050)
    near(labels, 0.807976)
    near(0.1 * labels + 0.9 * apart, 0.093442)
    for s, t in ((ZS * 7 + 2, ZT), (ZS, 10 * ZT - 3)):
        assert [x.item() for x in mixed_loss(s, t, TARGET)] == pytest.approx([0.807976, 0.014050], abs=2e-6)
    near(mixed_loss(ZS, ZT, TARGET, 4.0)[1], 0.237014)
    assert all(torch.isfinite(x) for x in mixed_loss(torch.zeros(1, 4), torch.zeros(1, 4), TARGET))
    near(mixed_loss(ZS, ZT, torch.zeros(1, 4))[0], 0.0)  # no label


def test_exactly_the_asked_share_is_mixed():
    rng = np.random.default_rng(0)
    for fraction in (0.0, 0.1, 0.5, 1.0):
        first, second, share = draw(64, 1.0, fraction, rng)
        assert (share < 1).sum() == round(64 * fraction)
        assert sorted(first) == sorted(second) == list(range(64))
    clean = np.mean([(draw(64, 1.0, 0.1, rng, with_replacement=True)[2] == 1).mean() for _ in range(400)])
    assert clean == pytest.approx(1 - (1 - 1 / 64) ** 57, abs=0.01)


def test_mixing_keeps_what_it_must():
    x, y = torch.randn(6, 2, 3), torch.eye(6)
    first, second = torch.randperm(6), torch.randperm(6)
    near(mix(x, first, second, torch.ones(6)), x[first])
    near(mix(x, first, first, torch.rand(6)), x[first])
    near(mix(y, first, second, torch.rand(6)).sum(1), np.ones(6))


def test_a_batch_is_mixed_with_its_labels_and_the_same_under_one_seed():
    method = MixKd(MixKd.Options(mode="fmu"))
    method.classes = 3
    batch = {"x": torch.eye(3).repeat(4, 1), "labels": torch.arange(3).repeat(4)}
    made = [method.prepare_batch(batch, torch.Generator().manual_seed(1)) for _ in range(2)]
    near(made[0]["x"], made[0]["targets"])  # inputs are their own one-hot labels
    near(made[0]["x"], made[1]["x"])
    assert not torch.equal(made[0]["x"], batch["x"])
    method = MixKd(MixKd.Options(mode="none"))
    method.classes = 3
    unlabelled = method.prepare_batch({"x": torch.eye(3), "labels": torch.tensor([0, -1, 2])}, torch.Generator())
    near(unlabelled["targets"], [[1, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_the_published_student_has_the_rescaled_logits(tmp_path):
    from kdhub_logits import classifiers

    torch.manual_seed(0)
    student = classifiers.NetworkClassifier(
        "image-classification", {"network": "mlp", "shape": [4], "classes": list("abc"), "hidden": [5]}
    )
    plain = student.signals([{"x": np.ones(4, np.float32)}], "logits")["logits"]
    student.rescale()
    student.rescale()
    student.save(tmp_path)
    again = classifiers.load(tmp_path).signals([{"x": np.ones(4, np.float32)}], "logits")["logits"]
    assert again.std(ddof=1) == pytest.approx(1.0, abs=1e-5) and (again.argmax() == plain.argmax())


def test_two_heads_mix_as_the_specification_says():
    class Fixed(torch.nn.Module):
        def forward(self, inputs):
            return {"logits": torch.tensor([[2.0, 1.0, 0.0]]), "features": torch.ones(1, 1)}

    for beta, expected in ((1.0, [0.377636, 0.244728, 0.377636]), (0.5, [0.340559, 0.181019, 0.478422])):
        heads = networks.TwoHeads(Fixed(), 1, 3, 0.5, beta)
        with torch.no_grad():
            heads.head.weight.zero_()
            heads.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
        near(heads({})["logits"].exp()[0], expected)
        assert math.isfinite(heads({})["logits"].sum().item())


def test_what_is_trained_along_does_not_depend_on_what_was_stored(tmp_path):
    """A teacher whose outputs are there is not even built, and so draws no random numbers."""
    recipe = {
        "task": "image-classification", "method": "feature", "teacher": "recipe:digits-teacher", "student": "mlp:8",
        "data": {"train": [{"source": "digits", "split": "train", "limit": 64}]}, "options": {"epochs": 1},
    }  # fmt: skip
    kdhub.distill({**recipe, "method": "kd"}, out=tmp_path / "first")  # from here on the teacher's facts are known
    runs = [kdhub.distill(recipe, out=tmp_path / name) for name in "ab"]
    assert [run.provenance["signals"]["features"]["computed"] for run in runs] == [64, 0]
    assert len({(run.student_folder / "model.safetensors").read_bytes() for run in runs}) == 1
