"""Two processes, or batches in parts, give what one process gives with the whole batch, though their tokens differ in
number: each token counts the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kdhub_tasks.language.task import CausalLanguage
from safetensors.torch import load_file

import kdhub
from kdhub.testing._ranks import pair

LENGTHS = (40, 2, 30, 5, 3, 25, 50, 4)


def jobs(folder: Path) -> dict[str, dict]:
    """One method each that learns from stored logits, from labels, and from what student and live teacher say now."""
    made = CausalLanguage().tiny_recipe(folder)
    texts = [chr(97 + n) * (n % 5 + 1) + " word" * (size // 5) for n, size in enumerate(LENGTHS * 4)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    common = {
        **made, "task": "causal-lm", "data": {"train": [f"path:{folder / 'texts.jsonl'}"]}, "evaluation": {"data": []},
    }  # fmt: skip
    training = {"max_steps": 4, "batch_size": 8, "lr": 0.01, "precision": "float32", "group_by_length": False}
    options = {
        "kd": {"alpha": 0.5, "temperature": 1.0},
        "taid": {"distil_ratio": 0.5},
        "gkd": {"max_new_tokens": 12, "sampling_temperature": 1.0},
        "minillm": {"max_new_tokens": 12},
    }
    return {name: {**common, "method": name, "options": {**training, **own}} for name, own in options.items()}


def same(one: kdhub.Run, folder: Path) -> None:
    a, b = (load_file(path / "student" / "model.safetensors") for path in (one.folder, folder))
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=2e-5, msg=name)
    lines = [[json.loads(x) for x in (p / "metrics.jsonl").read_text().splitlines()] for p in (one.folder, folder)]
    assert [x["loss"] for x in lines[1]] == pytest.approx([x["loss"] for x in lines[0]], abs=1e-5)


def test_two_processes_are_one(tmp_path):
    recipes = jobs(tmp_path)
    for name, recipe in recipes.items():
        pair().distil(recipe, tmp_path / f"both-{name}")
        same(kdhub.distill(recipe, out=tmp_path / name), tmp_path / f"both-{name}")


def test_a_batch_in_parts_is_one(tmp_path):
    recipe = jobs(tmp_path)["kd"]
    whole = kdhub.distill(recipe, out=tmp_path / "whole")
    same(whole, kdhub.distill(recipe, out=tmp_path / "parts", set=["options.accumulate=4"]).folder)
