"""Starts and teachers whose files are in fewer bits than float32, and folders that lack weights."""

from __future__ import annotations

import json

import pytest
import torch
from kdhub_tasks.language.task import CausalLanguage
from safetensors.torch import load_file, save_file

import kdhub
from kdhub.errors import UntrustedError


def stored(source, target, dtype: str, values: str):
    """A copy of a model's folder with its weights rounded to `values`, in the precision `dtype`."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    kinds = getattr(torch, values), getattr(torch, dtype)
    weights = {n: t.to(kinds[0]).to(kinds[1]) for n, t in load_file(source / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    return target


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_a_start_in_fewer_bits_trains_as_one_in_float32(tmp_path, dtype):
    """Small steps in such weights were lost (bfloat16) or ended in NaN (float16)."""
    made = CausalLanguage().tiny_recipe(tmp_path)
    source = tmp_path / "teacher"
    options = {"max_steps": 30, "batch_size": 8, "lr": 3e-4, "precision": "float32", "weight_decay": 0.0}
    runs = []
    for kind in (dtype, "float32"):
        start = stored(source, tmp_path / kind, kind, dtype)
        recipe = {**made, "task": "causal-lm", "method": "supervised", "teacher": None, "student": f"path:{start}"}
        runs.append(kdhub.distill({**recipe, "options": options}, out=tmp_path / f"run-{kind}"))
    losses = [[line["loss"] for line in run.metrics() if "loss" in line] for run in runs]
    assert losses[0] == losses[1]
    half, exact = (load_file(run.student_folder / "model.safetensors") for run in runs)
    assert {t.dtype for t in half.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(half[n], exact[n].to(getattr(torch, dtype))) for n in exact)
    assert f"saved in {dtype}" in (runs[0].folder / "README.md").read_text()


def test_a_teacher_in_fewer_bits_is_told(tmp_path):
    made = CausalLanguage().tiny_recipe(tmp_path)
    teacher = stored(tmp_path / "teacher", tmp_path / "half", "bfloat16", "bfloat16")
    recipe = {**made, "task": "causal-lm", "method": "supervised", "teacher": f"path:{teacher}", "student": "layers:1"}
    options = {"max_steps": 2, "batch_size": 8, "precision": "float32"}
    run = kdhub.distill({**recipe, "options": options}, out=tmp_path / "run")
    assert run.provenance["teacher"]["dtype"] == "bfloat16" == run.provenance["student"]["dtype"]


def test_a_folder_that_lacks_weights_is_not_opened(tmp_path):
    CausalLanguage().tiny_recipe(tmp_path)
    file = tmp_path / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UntrustedError, match="no weights for 1 parts of a LlamaForCausalLM .*up_proj"):
        CausalLanguage().load(tmp_path / "teacher")
