"""A slimmable network is a family of sizes: trained by any method, published, pulled and opened as one or as a member."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

import kdhub
from kdhub.errors import KdhubError
from kdhub.hub.files import digests
from kdhub_tasks.classification import networks

DIGITS = [{"source": "digits", "split": "test", "limit": 200}]


def family(tmp_path, **changes):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    from kdhub_tasks.classification.model import NetworkClassifier

    torch.manual_seed(3)
    config = {"network": "mlp", "shape": [8, 8], "hidden": [32], "classes": [str(i) for i in range(10)]}
    NetworkClassifier("image-classification", config).save(teacher)
    recipe = {
        "task": "image-classification",
        "method": "supervised",
        "teacher": None,
        "student": {"source": "slimmable-mlp:16,8", "shares": [0.5, 0.25, 1.0]},
        "data": {"train": "digits"},
        "options": {"max_steps": 60, "batch_size": 64, "lr": 0.01},
        "evaluation": {"data": DIGITS, "cost": False, "metrics": ["accuracy"]},
        **changes,
    }
    return kdhub.distill({k: v for k, v in recipe.items() if v is not None}, out=tmp_path / "run")


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


def test_shares_that_are_no_family_are_refused(home, tmp_path):
    with pytest.raises(KdhubError, match=r"members must differ in their width \(shares=\[0.5, 0.6, 1.0\]\)"):
        family(tmp_path, student={"source": "slimmable-mlp:2", "shares": [0.5, 0.6, 1.0]})
    with pytest.raises(KdhubError, match="student.shares"):
        kdhub.distill({"task": "image-classification", "method": "supervised", "data": {"train": "digits"},
                       "student": {"source": "slimmable-mlp:8", "shares": [2.0]}})  # fmt: skip


def test_its_members_learn_together(home, tmp_path):
    run = family(tmp_path)
    score = {m["variant"].get("member"): m["value"] for m in run.report["measures"] if m["metric"] == "accuracy"
             and m["subject"] == "student"}  # fmt: skip
    assert score[None] == score["1x"] > 0.8 and score["0.5x"] > 0.6 and score["0.25x"] > 0.25
    student = kdhub.load(run.folder)
    with pytest.raises(KdhubError, match="a wrapper .two-heads. cannot be put around a family"):
        student.wrap("two-heads")
