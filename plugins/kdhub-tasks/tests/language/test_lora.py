"""Adapters: what trains, what is saved, and that every student takes one."""

from __future__ import annotations

import pytest
import torch
from kdhub_tasks.language import model as models
from kdhub_tasks.language import task
from kdhub_tasks.language.students import config, llama

import kdhub
from kdhub.errors import RecipeError, TrainingError, UntrustedError, UsageError
from kdhub.recipes.resolve import Resolver
from kdhub.student import BuildContext

SMALL = "width=16,layers=2,heads=2,length=64"


def with_lora(**lora):
    return kdhub.open_student({"source": f"llama:{SMALL}", "lora": lora}, "causal-lm", seed=3)


def test_every_student_takes_it():
    resolver = Resolver()
    for entry in resolver.registry.all("student", "causal-lm"):
        assert resolver.options_model(entry, "causal-lm").model_fields.keys() >= {"lora", "packing"}, entry.name


def test_at_first_it_changes_nothing_and_only_it_trains():
    plain, student = llama(SMALL, BuildContext(None, None, 3)), with_lora(r=4, targets=["q_proj", "down_proj"])
    examples = task.CausalLanguage().preparer(plain, None)([{"text": "abc"}, {"text": "a longer text"}])
    for a, b in zip(plain.signals(examples, "logits")["logits"], student.signals(examples, "logits")["logits"]):
        assert (a == b).all()
    trained = {n: p for n, p in student.module.named_parameters() if p.requires_grad}
    assert all(".lora_" in name and ("q_proj" in name or "down_proj" in name) for name in trained)
    # two matrices a layer: 4 x 16 and 16 x 4 for q; 4 x 48 and 16 x 4 for down
    hidden = plain.module.model.config.intermediate_size
    count = 2 * (4 * 16 + 16 * 4 + 4 * hidden + 16 * 4)
    assert sum(p.numel() for p in trained.values()) == count
    every = count + sum(p.numel() for p in plain.module.parameters())
    assert f"LoRA of rank 4, {count:,} of {every:,} parameters trained" in student.start["how"]
    student.module(student.collate(examples)).logits.sum().backward()
    assert {n for n, p in student.module.named_parameters() if p.grad is not None} == set(trained)


@pytest.fixture
def recipe(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    made["student"] = {"source": f"{made['teacher']['source']}", "lora": {"r": 2, "targets": ["v_proj"]}}
    options = {"max_steps": 12, "batch_size": 8, "lr": 0.05, "precision": "float32", "checkpoint_steps": 3}
    return {"task": "causal-lm", "method": "supervised", **made, "teacher": None, "options": options}


def test_the_saved_student_has_it_in_its_weights(recipe, tmp_path):
    from transformers import AutoModelForCausalLM

    run = kdhub.distill(recipe, out=tmp_path / "run")
    assert not [p.name for p in run.student_folder.iterdir() if "adapter" in p.name]
    start, student = models.load(tmp_path / "teacher"), AutoModelForCausalLM.from_pretrained(run.student_folder)
    before, after = start.module.model.state_dict(), student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {f"model.layers.{i}.self_attn.v_proj.weight" for i in (0, 1)}
    moved = after["model.layers.0.self_attn.v_proj.weight"] - before["model.layers.0.self_attn.v_proj.weight"]
    assert torch.linalg.matrix_rank(moved, atol=1e-5) == 2
    # what was measured of the trained network is found again in the saved one
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "perplexity"}
    again = kdhub.evaluate(run.folder)
    (found,) = [m.value for m in again.measures if m.metric == "perplexity" and m.subject == "student"]
    assert found == pytest.approx(values["student"], rel=1e-4) and values["student"] < values["student-before"]


def test_an_interrupted_run_ends_with_the_same_student(recipe, tmp_path, monkeypatch):
    from kdhub.training.engine import Engine

    whole = kdhub.distill(recipe, out=tmp_path / "whole")
    observe = Engine.observe

    def stop(self, step, *rest):
        if step == 8:
            raise KeyboardInterrupt
        return observe(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "observe", stop)
        with pytest.raises(KeyboardInterrupt):
            kdhub.distill(recipe, out=tmp_path / "cut")
    again = kdhub.distill(resume=tmp_path / "cut")
    weights = [(run.student_folder / "model.safetensors").read_bytes() for run in (whole, again)]
    assert weights[0] == weights[1]


def test_layers_that_are_not_there_are_named():
    with pytest.raises(UsageError, match="lora") as error:
        with_lora(targets=["query"])
    assert "down_proj, gate_proj" in error.value.hint
    with pytest.raises(RecipeError, match="student.lora.r"):
        with_lora(r=0)


# -- fresh students of a configuration ------------------------------------------------------------------------


def test_a_configuration_is_any_architecture_with_the_known_tokens(tmp_path):
    text = '{"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, ' \
        '"num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 300}'  # fmt: skip
    one = config(text, BuildContext(None, None, 1))
    assert one.module.model.config.model_type == "qwen2" and one.width("logits") == (258,), "what is beyond is padding"
    assert one.module.model.config.vocab_size == 300 and one.module.model.config.eos_token_id == 1
    (tmp_path / "config.json").write_text(text)
    two = config(str(tmp_path), BuildContext(None, None, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), two.module.parameters()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{oops", "not valid JSON"),
        ("[1]", "cannot be read"),
        ('{"hidden_size": 8}', "needs a model_type"),
        ('{"model_type": "no-such"}', "is not a language model"),
        ('{"model_type": "llama", "hidden_size": 7, "num_attention_heads": 3}', "is not a language model"),
    ],
)
def test_what_is_not_a_configuration_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        config(text, BuildContext(None, None, 0))


def test_a_configuration_with_code_is_refused():
    with pytest.raises(UntrustedError, match="code of its own"):
        config('{"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "x.Y"}}', BuildContext(None, None, 0))


@pytest.mark.parametrize("targets", (["lm_head"], ["embed_tokens"], ["lm_head", "v_proj"]))
def test_an_adapter_on_tied_embeddings_is_what_is_saved(recipe, tmp_path, targets):
    """The output head is the input embedding; merged into one matrix the adapter would change both."""
    recipe["student"]["lora"]["targets"] = targets
    run = kdhub.distill(recipe, out=tmp_path / "run")
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "perplexity"}
    assert values["student"] < values["student-before"]
    network = models.load(run.student_folder).module.model
    same = network.get_input_embeddings().weight is network.get_output_embeddings().weight
    assert not same and not network.config.tie_word_embeddings
    assert "embeddings of their own" in run.provenance["student"]["start"]["how"]


def test_a_merge_that_loses_the_adapter_is_an_error(recipe, tmp_path, monkeypatch):
    def lose(student):
        student.module.model, student.adapter = student.adapter.unload(), None

    monkeypatch.setattr(models.CausalLm, "finalise", lose)
    with pytest.raises(TrainingError, match="adapter merged into the weights"):
        kdhub.distill(recipe, out=tmp_path / "run")
