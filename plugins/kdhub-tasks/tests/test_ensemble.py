"""Several teachers behind one: what they give together, and that each is stored as if it were alone."""

import numpy as np
import pytest
import torch
from kdhub_tasks.classification.model import NetworkClassifier
from kdhub_tasks.ensemble import average_logits, each, shares

import kdhub
from kdhub.errors import CompatibilityError, TeacherError
from kdhub.files import home
from kdhub.rows import Signals

P1, P2 = np.array([[2.0, 1, 0]]) / 2, np.array([[0.0, 1, 2]]) / 2


def test_probabilities_and_logits_are_averaged_as_computed_by_hand():
    """Specification of multi-teacher, invariant 1."""
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)  # noqa: E731
    assert softmax(average_logits([P1, P2], [0.5, 0.5])) == pytest.approx(
        np.array([[0.346402, 0.307196, 0.346402]]), abs=1e-6
    )
    assert softmax(average_logits([P1, P2], [0.5, 0.5], "logits")) == pytest.approx(np.full((1, 3), 1 / 3), abs=1e-6)
    assert softmax(average_logits([P1, P2], [1, 0])) == pytest.approx(softmax(P1), abs=1e-6)
    assert average_logits([np.array([[1.0], [2.0]]), np.array([[3.0], [6.0]])], [0.75, 0.25]).tolist() == [[1.5], [3.0]]


def test_weights_are_shares_of_one():
    assert shares(None, 4) == [0.25] * 4
    assert shares([1, 3], 2) == [0.25, 0.75]
    for wrong in ([1.0], [0.0, 0.0], [2.0, -1.0]):
        with pytest.raises(TeacherError, match="for 2 teachers"):
            shares(wrong, 2)


def test_each_tells_members_apart():
    given = Signals({"0/logits": 1, "1/logits": 2, "0/hidden_states": 3})
    assert each(given) == [{"logits": 1, "hidden_states": 3}, {"logits": 2}]
    assert each(Signals({"logits": 1, "features": 2})) == [{"logits": 1, "features": 2}]


def network(folder, seed, classes=10):
    torch.manual_seed(seed)
    config = {"network": "mlp", "shape": [64], "hidden": [16], "classes": [str(i) for i in range(classes)]}
    folder.mkdir()
    NetworkClassifier("tabular-classification", config).save(folder)
    return {"source": f"path:{folder}"}


def recipe(teacher):
    rows = {"source": "digits", "limit": 64, "options": {"form": "features"}}
    return {
        "task": "tabular-classification",
        "method": "kd",
        "teacher": teacher,
        "student": "mlp:8",
        "data": {"train": [{**rows, "split": "train"}]},
        "options": {"epochs": 1.0},
        "evaluation": {"data": [{**rows, "split": "test"}], "cost": False},
    }


def test_members_are_stored_as_if_alone_and_each_is_measured(tmp_path):
    members = [network(tmp_path / "a", 1), network(tmp_path / "b", 2)]
    stores = lambda: {p.name for p in (home() / "signals").iterdir()}  # noqa: E731
    kdhub.distill(recipe=recipe(members[0]), out=tmp_path / "alone")
    alone = stores()
    run = kdhub.distill(recipe=recipe({"source": "ensemble", "members": members}), out=tmp_path / "both")
    assert len(alone) == 1 and len(stores()) == 2 and alone < stores()
    told = run.provenance["signals"]
    assert told["logits of teacher 1"]["computed"] == 0 and told["logits of teacher 2"]["computed"] > 0
    assert run.provenance["teacher"]["id"] == "a and b"
    report = run.report["measures"]
    of = {(m["subject"], m["variant"].get("teacher")) for m in report if m["metric"] == "accuracy"}
    assert {("teacher", None), ("teacher", 1), ("teacher", 2), ("student", None)} <= of
    loyal = {m["variant"].get("teacher") for m in report if m["metric"] == "loyalty" and m["subject"] == "student"}
    assert loyal == {None, 1, 2}


def test_one_member_is_that_member(tmp_path):
    one = network(tmp_path / "a", 1)
    kdhub.distill(recipe=recipe(one), out=tmp_path / "alone")
    kdhub.distill(recipe=recipe({"source": "ensemble", "members": [one, one]}), out=tmp_path / "twice")
    first, second = ((tmp_path / n / "student" / "model.safetensors").read_bytes() for n in ("alone", "twice"))
    from safetensors.torch import load

    for name, value in load(first).items():
        assert torch.allclose(value, load(second)[name], atol=1e-4), name


def test_members_of_other_classes_are_refused(tmp_path):
    members = [network(tmp_path / "a", 1), network(tmp_path / "b", 2, classes=9)]
    with pytest.raises(CompatibilityError, match="teacher 2"):
        kdhub.distill(recipe=recipe({"source": "ensemble", "members": members}), out=tmp_path / "run")
