"""Saved language models as teachers."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from kdhub_tasks.language import task
from kdhub_tasks.language.generation import Generation, answers
from kdhub_tasks.language.teachers import LmTeacher

import kdhub
from kdhub.rows import Rows
from kdhub.signals.store import row_key
from kdhub.signals.stored import stored_signals

STUDENT = "llama:width=8,layers=1,heads=2,length=64"


@pytest.fixture
def without_weights(monkeypatch):
    """Forbids a teacher to load its model, once it is called."""

    def forbid():
        monkeypatch.setattr(LmTeacher, "model", property(lambda self: pytest.fail("the teacher's weights were loaded")))

    return forbid


def test_identity_and_facts(tiny, saved, tmp_path):
    tiny.save(tmp_path)
    teacher = saved(tmp_path)
    assert set(teacher.identity) == {"kind", "files"} and teacher.identity["kind"] == "causal-lm"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(teacher.identity["files"])
    widths = {"logits": [None, 258], "features": [None, 16]}
    assert teacher.facts == {"vocabulary": tiny.vocabulary, "widths": widths} and teacher.max_length == tiny.max_length


def test_stored_signals_need_no_weights(tiny, saved, tmp_path, without_weights):
    """Nor do reading rows for it, and a student that takes its vocabulary."""
    tiny.save(tmp_path)
    texts = datasets.Dataset.from_dict({"text": ["a text", "and a longer one"]})
    prompts = datasets.Dataset.from_dict({"prompt": ["ab", "cde"]})

    def everything():
        teacher = saved(tmp_path)
        rows = Rows.build(texts, teacher.task.preparer(None, teacher), row_key)
        found = [stored_signals(teacher, rows, kind)[np.arange(2)] for kind in ("logits", "features", "logits:top-8")]
        values = [value.tolist() for signal in found for rows in signal.values() for value in rows]
        written = list(answers(teacher, prompts, Generation(max_new_tokens=4)))
        student = kdhub.open_student(STUDENT, "causal-lm", teacher=teacher)
        return values, written, student.width("logits"), teacher.max_length

    first = everything()
    without_weights()
    assert everything() == first


def test_a_run_whose_signals_are_stored_loads_no_teacher(tmp_path, without_weights):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    recipe = {"task": "causal-lm", "method": "supervised", **made, "student": STUDENT}
    recipe["options"] = {"max_steps": 2, "precision": "float32"}
    reports = []
    for name in ("first", "second"):
        reports.append(kdhub.distill(recipe, out=tmp_path / name).report["measures"])
        without_weights()
    values = [{(m["metric"], m["subject"]): m["value"] for m in measures} for measures in reports]
    assert values[0] == values[1] and ("kl", "student") in values[0] and ("perplexity", "teacher") in values[0]
