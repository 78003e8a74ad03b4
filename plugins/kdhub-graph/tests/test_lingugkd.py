"""LinguGKD: the numbers of its rule by hand, its loss as a slow loop, and runs from end to end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from kdhub_graph.methods.lingugkd import LinguGkd, contrast
from kdhub_graph.nodes.model import GraphClassifier
from kdhub_graph.nodes.teachers import Hops
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
    masked, bare = contrast(H, G, Y, 0.5), contrast(H, G, None, 0.5)
    np.testing.assert_allclose(masked, [0.442548, 1.111700, 1.028334], atol=1e-6)
    np.testing.assert_allclose(bare, [0.525913, 1.111700, 1.334054], atol=1e-6)
    np.testing.assert_allclose([masked.mean(), bare.mean()], [0.860860, 0.990556], atol=1e-6)
    assert torch.equal(contrast(H[1:], G, Y, 0.5, first=1), masked[1:]), "rows of one rank against those of all"


@pytest.mark.parametrize("masked", [True, False])
def test_loss_and_gradient_are_those_of_a_slow_loop(masked):
    draw = torch.Generator().manual_seed(0)
    h, g = (torch.randn(9, 5, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    labels = torch.tensor([0, 1, 0, 2, -1, 1, 0, -1, 2]) if masked else None
    rows = (labels >= 0).sum() if masked else len(h)
    fast, wanted = contrast(h, g, labels, 0.07).sum() / rows, slow(h, g, labels, 0.07)
    for a, b in zip(torch.autograd.grad(fast, (h, g)), torch.autograd.grad(wanted, (h, g))):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(fast, wanted)
    if masked:
        assert fast <= contrast(h[labels >= 0], g[labels >= 0], None, 0.07).mean(), "a mask can only lower the loss"
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64))
    torch.testing.assert_close(contrast(3 * h @ turn, g @ turn / 7, labels, 0.07).sum() / rows, fast)


def test_nodes_of_one_class_alone_teach_nothing():
    h = H.clone().requires_grad_()
    loss = contrast(h, G, torch.zeros(3, dtype=torch.long), 0.5).sum()
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


def test_a_run_leaves_nothing_in_the_student_and_a_second_method_asks_its_teacher_nothing(tmp_path, home, monkeypatch):
    given = recipe(tmp_path)
    run = kdhub.distill(given, out=tmp_path / "run")
    stored = {
        known["signal"]: known
        for known in (json.loads(p.read_text())["key"] for p in home.glob("signals/*/store.json"))
    }
    assert set(stored) == {"hops"} and sum(1 for _ in keys_of(home, "hops")) == 36 + 18
    known = run.provenance["signals"]
    assert {kind: one["computed"] for kind, one in known.items()} == {"hop_states": 36, "hop_logits": 18}
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

    # A second method asks the teacher nothing, whichever part of the pass it learns from; nor does a second student.
    before = set(home.glob("signals/*/*.safetensors"))
    monkeypatch.setattr(Hops, "_read", lambda *_: pytest.fail("the teacher was asked"))
    for method, kind, student in (
        ("kd", "logits", "gcn"), ("feature", "features", "gcn"), ("lingugkd", "hop_states", "sage"),
    ):  # fmt: skip
        other = {**given, "method": method, "student": f"{student}:width=8", "evaluation": {"data": []}}
        asked = kdhub.distill(other, out=tmp_path / f"second-{method}").provenance["signals"][kind]
        assert (asked["computed"], asked["calls"], asked["found"]) == (0, 0, 36)
    # Without weight of the teacher it is plain training, bit for bit.
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


def test_two_processes_contrast_all_rows_and_give_the_student_of_one(tmp_path):
    from safetensors.torch import load_file

    from kdhub.testing._ranks import pair

    given = recipe(tmp_path, evaluation={"data": []})
    given["options"] |= {"dropout": 0.0}
    kdhub.distill(given, out=tmp_path / "one")
    pair().distil(given, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)
    first, second = (kdhub.Run.open(tmp_path / name).metrics() for name in ("one", "two"))
    for a, b in zip(first, second, strict=True):
        assert a["terms"] == pytest.approx(b["terms"], abs=1e-5), "its terms are of all rows"


def test_a_student_is_published_pulled_and_verified_from_another_cache(tmp_path, monkeypatch):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
    from fake_hub import talked_to

    with talked_to(monkeypatch):
        run = kdhub.distill({k: v for k, v in recipe(tmp_path, method="supervised").items() if k != "teacher"})
        done = kdhub.publish(run.folder, "me/nodes", licence="mit")  # the usage lines are run: torch_geometric alone
        assert "torch_geometric.nn" in done.card and "graph-ml" in done.card
        monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
        found = kdhub.verify("me/nodes")
        assert found.status == "verified" and {f.verdict for f in found.figures} == {"ok"}


def test_layers_and_hops_must_be_as_many(tmp_path):
    with pytest.raises(CompatibilityError, match="3 layers and the teacher reads 2 hops"):
        kdhub.distill(recipe(tmp_path, student="gcn:width=8,layers=3"), out=tmp_path / "run")
