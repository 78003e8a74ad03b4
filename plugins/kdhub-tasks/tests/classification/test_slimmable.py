"""A slimmable network is a family of sizes whose members are the first units of its layers."""

from __future__ import annotations

import pytest
import torch
from kdhub_tasks.classification import networks

import kdhub
from kdhub.errors import KdhubError

RECIPE = {
    "task": "image-classification",
    "method": "supervised",
    "student": {"source": "slimmable-mlp:64,32", "shares": [0.5, 0.25, 1.0]},
    "data": {"train": [{"source": "digits", "split": "train", "limit": 600}]},
    "options": {"max_steps": 60, "batch_size": 64, "lr": 0.005},
    "evaluation": {"data": [{"source": "digits", "split": "test", "limit": 200}], "cost": False,
                   "metrics": ["accuracy"]},
}  # fmt: skip


def test_a_member_is_a_plain_network_of_the_first_units():
    torch.manual_seed(0)
    made = networks.SlimmableMlp([2, 3], 5, [8, 4], shares=[0.25, 0.5, 1])
    assert made.members == {"0.25x": {"hidden": [2, 1]}, "0.5x": {"hidden": [4, 2]}, "1x": {"hidden": [8, 4]}}
    x, weight = torch.randn(7, 2, 3), made.hidden[0].weight
    settings, state = made.cut("0.5x")
    plain = networks.Mlp([2, 3], 5, settings["hidden"])
    plain.load_state_dict(state)
    assert torch.equal(plain.hidden[0].weight, weight[:4]) and plain.hidden[1].weight.shape == (2, 4)
    whole = made({"x": x})["logits"]
    made.member = "0.5x"
    assert torch.equal(plain({"x": x})["logits"], made({"x": x})["logits"])
    made({"x": x})["logits"].sum().backward()
    assert weight.grad[:4].any() and not weight.grad[4:].any(), "only its own units learn"
    made.member = None
    assert torch.equal(whole, made({"x": x})["logits"])
    assert sum(p.numel() for p in plain.parameters()) == 6 * 4 + 4 + 4 * 2 + 2 + 2 * 5 + 5


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (
            {"source": "slimmable-mlp:2", "shares": [0.5, 0.6, 1.0]},
            r"differ in their width .shares=.0.5, 0.6, 1.0",
        ),
        ({"source": "slimmable-mlp:8", "shares": [2.0]}, "student.shares"),
        ("slimmable-mlp:", "must differ in their width"),
    ],
)
def test_shares_that_are_no_family_are_refused(home, tmp_path, student, says):
    with pytest.raises(KdhubError, match=says):
        kdhub.distill({**RECIPE, "student": student}, out=tmp_path / "run")


def test_its_members_learn_together_and_may_be_published_alone(home, tmp_path):
    run = kdhub.distill(RECIPE, out=tmp_path / "run")
    own = [m for m in run.report["measures"] if m["metric"] == "accuracy" and m["subject"] == "student"]
    score = {m["variant"].get("member"): m["value"] for m in own}
    assert score[None] == score["1x"] > 0.75 and score["0.5x"] > 0.6 and score["0.25x"] > 0.3
    student = kdhub.load(run.folder)
    with pytest.raises(KdhubError, match="a wrapper .two-heads. cannot be put around a family"):
        student.wrap("two-heads")
    made = kdhub.publish(run.folder, "me/half", member="0.5x", licence="mit", dry_run=True)  # its usage lines are run
    parameters = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
    assert f"parameters: {parameters}" in made.card and "the member `0.5x` of a family of 3" in made.card
