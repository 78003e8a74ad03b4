"""LinguGKD: the numbers of its rule by hand, its loss as a slow loop, and runs from end to end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from kdhub_graph.methods.lingugkd import LinguGkd, contrast
from kdhub_graph.nodes.model import GraphClassifier
from pydantic import ValidationError

import kdhub
from kdhub.errors import CompatibilityError

H = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
G = torch.tensor([[1.0, 0], [1, 1], [0, 1]], dtype=torch.float64)
Y = torch.tensor([0, 1, 0])


def slow(h, g, labels, temperature):
    """The rule as it is written, row by row; a row of (student, teacher, label)."""
    total, known = 0.0, 0
    for i in range(len(h)):
        if labels is not None and labels[i] < 0:
            continue
        known += 1
        score = [(h[i] / h[i].norm()) @ (g[j] / g[j].norm()) / temperature for j in range(len(g))]
        kept = [
            j for j in range(len(g)) if j == i or labels is None or (labels[j] >= 0 and labels[j] != labels[i])
        ]  # fmt: skip
        total = total - torch.log(score[i].exp() / sum(score[j].exp() for j in kept))
    return total / known


def test_the_loss_by_hand():
    rows = [contrast_of_row(i, Y) for i in range(3)]
    np.testing.assert_allclose(rows, [0.442548, 1.111700, 1.028334], atol=1e-6)
    assert contrast(H, G, Y, 0.5).item() == pytest.approx(0.860860, abs=1e-6)
    np.testing.assert_allclose([contrast_of_row(i, None) for i in range(3)], [0.525913, 1.1117, 1.334054], atol=1e-6)
    assert contrast(H, G, None, 0.5).item() == pytest.approx(0.990556, abs=1e-6)


def contrast_of_row(i, labels):
    """Row i's part of the loss: what the loss is when the others have no label, or are left out of the mean."""
    if labels is not None:
        return contrast(H, G, labels, 0.5).item() * 3 - sum(
            slow(H[[j]], G[[j, *(k for k in range(3) if k != j and labels[k] != labels[j])]], None, 0.5).item()
            for j in range(3) if j != i
        )  # fmt: skip
    return slow(H[[i]], G[[i, *(k for k in range(3) if k != i)]], None, 0.5).item()


@pytest.mark.parametrize("masked", [True, False])
def test_loss_and_gradient_are_those_of_a_slow_loop(masked):
    draw = torch.Generator().manual_seed(0)
    h, g = (torch.randn(9, 5, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    labels = torch.tensor([0, 1, 0, 2, -1, 1, 0, -1, 2]) if masked else None
    fast, wanted = contrast(h, g, labels, 0.07), slow(h, g, labels, 0.07)
    for a, b in zip(torch.autograd.grad(fast, (h, g)), torch.autograd.grad(wanted, (h, g))):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(fast, wanted)
    if masked:
        assert fast <= contrast(h[labels >= 0], g[labels >= 0], None, 0.07), "a mask can only lower the loss"
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64))
    torch.testing.assert_close(contrast(3 * h @ turn, g @ turn / 7, labels, 0.07), fast)


def test_nodes_of_one_class_alone_teach_nothing():
    h = H.clone().requires_grad_()
    loss = contrast(h, G, torch.zeros(3, dtype=torch.long), 0.5)
    loss.backward()
    assert loss.item() == 0 and not h.grad.any()


def test_weights_begin_alike_and_a_constant_changes_nothing():
    method = LinguGkd(LinguGkd.Options())
    method.modules = {"weights": torch.nn.ParameterDict({"layers": torch.ones(3), "losses": torch.ones(2)})}
    for _ in range(2):
        np.testing.assert_allclose(method.layer_weights(3).tolist(), [1 / 3] * 3, rtol=1e-6)
        np.testing.assert_allclose(method.loss_weights().tolist(), [0.5] * 2)
        method.modules["weights"]["layers"].data += 5
        method.modules["weights"]["losses"].data -= 3


@pytest.mark.parametrize(
    "options, says",
    [
        ({"temperature": 0}, "temperature"),
        ({"weights": [1, 0]}, "unless loss_weights is fixed"),
        ({"weights": [0, 0], "loss_weights": "fixed"}, "not all be 0"),
        ({"layer_weights": "first"}, "layer_weights"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(ValidationError, match=says):
        LinguGkd.Options(**options)


# -- runs ---------------------------------------------------------------------------------------------------------

WORLD = {"nodes": 60, "classes": 2, "features": 12, "sizes": [0.6, 0.1]}


def recipe(folder, **changes):
    tiny = kdhub.open_task("node-classification").tiny_recipe(folder)
    hops = {"source": "hops", "reader": {"source": f"path:{folder / 'reader'}"}, "budget": 64}
    options = {"epochs": 3, "batch_size": 36, "lr": 0.01, "dropout": None, "precision": "float32"}
    return {**tiny, "task": "node-classification", "method": "lingugkd", "teacher": hops, "options": options, **changes}


def test_a_run_aligns_training_nodes_alone_and_leaves_nothing_in_the_student(tmp_path, home):
    given = recipe(tmp_path)
    run = kdhub.distill(given, out=tmp_path / "run")
    stored = {
        known["signal"]: known
        for known in (json.loads(p.read_text())["key"] for p in home.glob("signals/*/store.json"))
    }
    assert set(stored) == {"hop_states", "hop_logits"}
    rows = {kind: sum(1 for _ in keys_of(home, kind)) for kind in stored}
    assert rows == {"hop_states": 36, "hop_logits": 18}, "states are those of training nodes, logits of test nodes"
    views = {
        m["variant"].get("hop"): m["value"]
        for m in run.report["measures"]
        if m["subject"] == "teacher" and m["metric"] == "accuracy"
    }
    assert {None, 0, 1, 2} <= set(views) and views[None] == views[2], "its accuracy by hop is in the report"
    logged = [line["state"] for line in run.metrics() if "state" in line]
    assert logged and math.isclose(sum(logged[-1][f"weight_layer_{k}"] for k in range(3)), 1, rel_tol=1e-5)
    fresh = kdhub.open_student("gcn:width=8", "node-classification", facts=facts(given))
    saved = GraphClassifier.load(run.student_folder)
    assert {n: p.shape for n, p in saved.module.named_parameters()} == {
        n: p.shape for n, p in fresh.module.named_parameters()
    }
    assert "w1" not in (run.student_folder / "config.json").read_text()

    # The teacher is asked nothing by a second method on its states; without weight it is plain training, bit for bit.
    before = set(home.glob("signals/*/*.safetensors"))
    none = {**given["options"], "loss_weights": "fixed", "weights": [1, 0]}
    bare = {**given, "options": none, "evaluation": {"data": []}}
    off = kdhub.distill(bare, out=tmp_path / "off")
    assert set(home.glob("signals/*/*.safetensors")) == before
    plain = {**bare, "method": "supervised", "options": given["options"]}
    plain = kdhub.distill({k: v for k, v in plain.items() if k != "teacher"}, out=tmp_path / "plain")
    one, other = ((r.student_folder / "model.safetensors").read_bytes() for r in (off, plain))
    assert one == other and one != (run.student_folder / "model.safetensors").read_bytes()


def keys_of(home, kind):
    """Keys of the rows that are stored of a signal."""
    from safetensors.numpy import load_file

    for store in home.glob("signals/*/store.json"):
        if json.loads(store.read_text())["key"]["signal"] == kind:
            for file in store.parent.glob("*.safetensors"):
                yield from next(v for v in load_file(file).values() if v.ndim)


def facts(given):
    data = kdhub.open_data("papers", options=WORLD)
    return kdhub.open_task("node-classification").survey([(data, "train")])


def test_layers_and_hops_must_be_as_many(tmp_path):
    with pytest.raises(CompatibilityError, match="3 layers and the teacher reads 2 hops"):
        kdhub.distill(recipe(tmp_path, student="gcn:width=8,layers=3"), out=tmp_path / "run")
