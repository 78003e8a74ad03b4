"""lm-evaluation-harness as data and metric."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from kdhub_lm.data import harness
from kdhub_tasks.language.students import llama

from kdhub.errors import UnavailableError, UsageError
from kdhub.evaluation.evaluator import encoder_of
from kdhub.student import BuildContext


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3))


def test_the_harness_is_asked_for_its_task(tiny, monkeypatch):
    """By a stand-in: what it is given, and which of its numbers counts."""
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UnavailableError, match="needs the package lm-eval"):
            harness.tasks("arc_easy")
    with pytest.raises(UsageError, match="folder /nowhere does not exist"):
        harness.tasks("arc_easy", folder="/nowhere")
    settings = {}
    stand_in, inner = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.models.huggingface")
    stand_in.__spec__ = types.SimpleNamespace()
    inner.HFLM, inner.TaskManager = lambda **how: how, lambda **how: how
    scores = {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.75}
    results = {"results": {"arc_easy": scores}, "n-samples": {"arc_easy": {"original": 9, "effective": 4}}}
    stand_in.simple_evaluate = lambda **how: settings.update(how) or results
    monkeypatch.setitem(sys.modules, "lm_eval", stand_in)
    for name in ("models", "models.huggingface", "tasks"):
        monkeypatch.setitem(sys.modules, f"lm_eval.{name}", inner)
    data = harness.tasks("arc_easy", limit=4)
    out = harness.measure(encoder_of(tiny, None), data.split("test"))
    assert (out.value, out.name, out.examples) == (0.75, "acc_norm", 4) and harness.value(out) == 0.75
    assert settings["tasks"] == ["arc_easy"] and settings["limit"] == 4
    assert settings["model"]["pretrained"] is tiny.module.model
    assert harness.value(harness.measure(types.SimpleNamespace(model=None), data.split("test"))) is None


def test_the_harness_itself_on_a_task_of_ones_own(tiny, tmp_path):
    """Where it is installed; six sums whose answers are one of four digits."""
    pytest.importorskip("lm_eval")
    sums = [{"a": a, "b": b, "y": a + b - 1} for a in range(3) for b in (1, 2)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (tmp_path / "sums.yaml").write_text(
        f"""
task: kdhub_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "sums.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{a}}}}+{{{{b}}}}="
doc_to_choice: ["1", "2", "3", "4"]
doc_to_target: "{{{{y}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
    )
    data = harness.tasks("kdhub_sums", folder=str(tmp_path))
    out = harness.measure(encoder_of(tiny, None), data.split("test"))
    assert out.name == "acc" and out.examples == 6 and out.value in [n / 6 for n in range(7)]
