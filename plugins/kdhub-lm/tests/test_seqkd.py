"""Sequence-level distillation: what the teacher writes is learnt, whatever its vocabulary."""

from __future__ import annotations

import json

from kdhub_tasks.language import task
from kdhub_tasks.language.students import llama

import kdhub
from kdhub.student import BuildContext


def test_what_the_teacher_writes_is_learnt(tmp_path):
    """A teacher that answers each letter with the next one; its student learns that from what it writes."""
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    rows = [{"prompt": f"{c}{c}>", "response": chr(ord(c) + 1) * 2} for c in "abcdefgh"]
    path = tmp_path / "letters.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    training = {"epochs": 30, "batch_size": 16, "lr": 0.02, "precision": "float32"}
    first = kdhub.distill(
        {"task": "causal-lm", "method": "supervised", "student": "llama:width=32,layers=1,heads=2,length=64",
         "data": {"train": [f"path:{path}"]}, "options": training,
         "evaluation": {"data": [f"path:{path}"], "cost": False}},
        out=tmp_path / "first")  # fmt: skip
    run = kdhub.distill(
        {"task": "causal-lm", "method": "seqkd", **made, "student": "llama:width=32,layers=1,heads=2,length=64",
         "teacher": f"path:{first.student_folder}", "data": {"train": [f"path:{prompts}"]},
         "options": {**training, "epochs": 120, "batch_size": 8, "answers": {"max_new_tokens": 8}},
         "evaluation": {"data": [f"path:{path}"], "metrics": ["accuracy", "perplexity"], "cost": False}},
        out=tmp_path / "run")  # fmt: skip
    values = {(m["metric"], m["subject"]): m["value"] for m in run.report["measures"]}
    assert values["accuracy", "student"] > 0.9 > values["accuracy", "student-before"]
    (kind,) = [k for k in run.provenance["signals"] if k.startswith("text")]
    assert run.provenance["signals"][kind]["rows"] == 8


def test_answers_are_begun_and_stopped_as_the_recipe_says(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {c}"}) + "\n" for c in "abcd"))
    answers = {"max_new_tokens": 6, "temperature": 1.0, "stop": ["q", "z"], "prefix": "so", "log_probs": True}
    run = kdhub.distill(
        {**made, "task": "causal-lm", "method": "seqkd", "data": {"train": [f"path:{prompts}"]},
         "evaluation": {"data": [], "cost": False},
         "options": {"max_steps": 1, "precision": "float32", "batch_size": 2, "answers": answers}},
        out=tmp_path / "run")  # fmt: skip
    (kind,) = [k for k in run.provenance["signals"] if k.startswith("text")]
    assert json.loads(kind.partition(":")[2]) == answers and run.recipe.options["answers"]["stop"] == ["q", "z"]
    assert kdhub.distill(resume=run.folder).folder == run.folder


def test_a_student_with_a_different_vocabulary_is_scored_with_its_own(tmp_path):
    """The teacher with its own too: bits per byte can be compared, fidelity is a note."""
    recipe = task.CausalLanguage().tiny_recipe(tmp_path)
    tiny = llama("width=16,layers=1,heads=2,length=320", BuildContext(None, None, 3))
    folder = tmp_path / "other"
    folder.mkdir()
    tiny.save(folder)
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(saved))
    recipe["evaluation"]["cost"] = False
    made = {**recipe, "student": f"path:{folder}", "method": "seqkd", "task": "causal-lm"}
    made["options"] = {"max_steps": 1, "precision": "float32", "answers": {"max_new_tokens": 4}}
    report = kdhub.distill(made, out=tmp_path / "run").report["measures"]
    found = {(m["metric"], m["subject"]): m for m in report}
    assert (
        found["kl", "student"]["value"] is None and "256 tokens are the same, of 258" in found["kl", "student"]["note"]
    )
    # with the teacher's numbers for letters, or the contrary, both would be far above 8 bits
    assert 7 < found["bits-per-byte", "teacher"]["value"] < 9 and 7 < found["bits-per-byte", "student"]["value"] < 9
