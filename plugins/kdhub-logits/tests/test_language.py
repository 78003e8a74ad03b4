"""Soft targets of language models."""

from __future__ import annotations

import pytest
import torch
from kdhub_tasks.language import model as models
from kdhub_tasks.language import task
from kdhub_tasks.language.students import llama

import kdhub
from kdhub.errors import UsageError
from kdhub.student import BuildContext


def test_a_student_is_a_plain_transformers_model(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    teacher = made["teacher"]["source"]
    run = kdhub.distill(
        {"task": "causal-lm", "method": "kd", **made, "student": "layers:1",
         "options": {"epochs": 1, "precision": "float32"}}, out=tmp_path / "run")  # fmt: skip
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run.student_folder)
    ids = AutoTokenizer.from_pretrained(run.student_folder)("a film", return_tensors="pt")["input_ids"]
    loaded = kdhub.load(run.folder)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, loaded.module.model(ids).logits, atol=1e-5)
    assert model.config.num_hidden_layers == 1 and kdhub.load(run.student_folder).task == "causal-lm"
    assert run.provenance["signals"]["logits"]["computed"] and teacher.startswith("path:")
    for wrong in ("width=15", "depth=2", "width=0"):
        with pytest.raises(UsageError, match="student llama"):
            llama(wrong, BuildContext(None, None, 0))


@pytest.mark.parametrize("keep", ["top-8", "sampled-12"])
def test_tokens_are_learnt_from_a_part_of_the_teachers_logits(keep, tmp_path):
    """Stored ragged, in few bytes, and used by the loss in chunks."""
    recipe = task.CausalLanguage().tiny_recipe(tmp_path)
    folder = tmp_path / "teacher"
    sure = models.load(folder)
    with torch.no_grad():
        sure.module.model.lm_head.weight.mul_(20)  # or it finds all tokens nearly alike, and there is nothing to learn
    sure.save(folder)
    run = kdhub.distill(
        {"task": "causal-lm", "method": "kd", **recipe, "signals": {"keep": keep},
         "options": {"epochs": 6, "precision": "float32", "temperature": 1.0, "alpha": 1.0, "lr": 0.01}},
        out=tmp_path / "run")  # fmt: skip
    stored = run.provenance["signals"][f"logits:{keep}"]
    assert stored["item_bytes"] == {"top-8": 9 + 8 + 6, "sampled-12": 14}[keep] and stored["computed"]
    kl = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "kl"}
    assert kl["student"] < kl["student-before"]


def test_vocabularies_with_padding_of_other_widths_are_one(tmp_path):
    """What is beyond the tokens is cut on both sides, whatever stands there: a copy has nothing to learn."""
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    for name, wide in (("padded", 264), ("wider", 300)):
        model = models.load(tmp_path / "teacher")
        network = model.module.model
        network.resize_token_embeddings(wide, mean_resizing=False)
        with torch.no_grad():
            network.get_output_embeddings().weight[258:] = 30.0  # would take all of the probability
        (tmp_path / name).mkdir()
        model.save(tmp_path / name)
    recipe = {
        **made, "task": "causal-lm", "method": "reverse-kl", "teacher": f"path:{tmp_path / 'padded'}",
        "student": f"path:{tmp_path / 'wider'}", "signals": {"dtype": "float32"},
        "options": {"alpha": 1.0, "max_steps": 1, "batch_size": 8, "lr": 1e-9, "precision": "float32"},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    values = {(m["subject"], m["metric"]): m["value"] for m in run.report["measures"]}
    assert values["student", "kl"] == pytest.approx(0, abs=1e-6) and values["student", "agreement"] == 1.0
    assert values["student", "perplexity"] == pytest.approx(values["teacher", "perplexity"], rel=1e-5)
    assert [line["loss"] for line in run.metrics() if "loss" in line] == pytest.approx([0], abs=1e-6)
    assert models.load(run.student_folder).module.model.config.vocab_size == 300, "its own width is kept"
