"""`kdhub doctor`: what it finds before a run, with what it may use, and what the engine says of the same."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import kdhub
from kdhub.metric import Measure
from kdhub.recipes.resolve import Resolver
from kdhub.training.session import in_order
from kdhub.verbs.doctor import doctor

NOTHING = {"data": [], "cost": False}
DIGITS = {"source": "digits", "split": "train", "limit": 64}


def found(recipe, **options) -> dict:
    return {one.check: one for one in doctor(recipe, **options)}


@pytest.fixture
def recipe(isolated, tmp_path, monkeypatch):
    """A recipe of a task, with the tiny teacher, start and data that the task has for trials."""
    monkeypatch.chdir(tmp_path)

    def make(task, method, **keys):
        folder = tmp_path / task
        folder.mkdir(exist_ok=True)
        values = {**Resolver().task(task).tiny_recipe(folder), "task": task, "method": method, **keys}
        return {"options": {"epochs": 1, "batch_size": 8}, **values}

    return make


def test_a_good_pair_of_encoders_is_tried_and_leaves_nothing_behind(recipe, tmp_path, isolated):
    plan = recipe("text-embedding", "leaf")
    plan["evaluation"] = {**plan["evaluation"], "cost": False}
    before = set(tmp_path.rglob("*"))
    seen = found(plan)
    assert not {p for p in tmp_path.rglob("*") if isolated not in p.parents} - before - {isolated}
    assert seen["prompts"].status == seen["normalisation"].status == seen["tokens"].status == "ok"
    assert seen["loss terms"].status == "ok" and seen["loss terms"].found.startswith("alignment ")
    assert seen["cut"].values["share"] == 0 or seen["cut"].status in ("note", "warn")
    expected = seen["expected"].values
    parts = sum(expected[name] for name in ("reading", "teacher", "training", "evaluation", "cost", "page"))
    assert expected["seconds"] == pytest.approx(parts) and expected["memory_bytes"] > 1e8
    assert expected["training"] > 0 and expected["evaluation"] > 0 and expected["teacher"] == 0, "all rows were tried"
    assert any(check.startswith("rows in both") for check in seen) and "teacher above start" in seen
    run = kdhub.distill(plan, out=tmp_path / "run")
    signals = run.provenance["signals"]["embedding"]
    assert signals["found"] >= run.provenance["rows"]["train"]["rows"], "what the teacher was asked is kept for the run"


def test_the_teacher_is_asked_for_no_more_than_the_steps_need(recipe, monkeypatch):
    from kdhub_tasks.embedding.teachers import EncoderTeacher

    asked = set()
    signals = EncoderTeacher.signals
    monkeypatch.setattr(
        EncoderTeacher,
        "signals",
        lambda self, rows, kind: asked.update(r["content"] for r in rows) or signals(self, rows, kind),
    )
    monkeypatch.setattr("kdhub.verbs.rehearse.STEPS", 2)
    seen = found(recipe("text-embedding", "leaf", evaluation=NOTHING))
    assert len(asked) <= 16 < 48 and seen["expected"].values["teacher"] > 0


def test_prompts_and_lengths_that_differ_are_warned_of_before_a_run_and_in_it(recipe, tmp_path, caplog):
    options = {"epochs": 1, "batch_size": 8, "prompts": {"query": "find: "}, "normalize": False}
    plan = recipe("text-embedding", "leaf", options=options, evaluation=NOTHING)
    unit = unit_length(plan)
    seen = found(plan)
    assert seen["prompts"].status == "warn" and "find: " in seen["prompts"].found and seen["prompts"].do
    assert seen["normalisation"].status == ("warn" if unit else "ok")
    with caplog.at_level(logging.WARNING, "kdhub"):
        logging.getLogger("kdhub").addHandler(caplog.handler)
        kdhub.distill(plan, out=tmp_path / "run")
    assert any(r.message.startswith("prompts: student") for r in caplog.records)


def unit_length(plan) -> bool:
    """Whether the tiny teacher's vectors have unit length."""
    from kdhub.recipes.recipe import Layer, build

    recipe = build([Layer("test", plan)])
    return Resolver().teacher(recipe.teacher, recipe.task).normalised


def test_rows_that_are_trained_on_and_measured_on(recipe):
    plan = recipe("image-classification", "kd", evaluation={"data": [DIGITS]})
    seen = found(plan)["rows in both: digits train"]
    assert seen.status == "warn" and seen.values == {"exact": 1.0, "near": 0.0} and seen.do
    other = found(recipe("image-classification", "kd"))["rows in both: digits test"]
    assert other.status == "ok" and "none of" in other.found


def test_a_teacher_below_the_start(recipe, tmp_path, caplog):
    good = recipe("image-classification", "supervised", teacher=None, options={"epochs": 20, "lr": 1e-2})
    start = kdhub.distill(good, out=tmp_path / "good").student_folder
    plan = recipe("image-classification", "kd", student=f"path:{start}")
    seen = found(plan)["teacher above start"]
    assert seen.status == "warn" and "accuracy on digits test: teacher 0." in seen.found
    with caplog.at_level(logging.WARNING, "kdhub"):
        logging.getLogger("kdhub").addHandler(caplog.handler)
        kdhub.distill(plan, out=tmp_path / "run")
    assert any(r.message.startswith("teacher above start: ") for r in caplog.records)


def test_the_order_of_teacher_and_start_is_that_of_their_metric():
    def measure(metric, value, **keys):
        return Measure(metric=metric, value=value, unit="", subject="x", dataset="d", split="test", examples=9, **keys)

    loss = measure("nll", 1.0, higher_is_better=False)
    assert in_order([loss], [replace(loss, value=2.0)])[0].status == "ok"
    assert in_order([loss], [replace(loss, value=0.5)])[0].status == "warn"
    assert in_order([loss], [replace(loss, value=1.0)])[0].status == "ok", "a tie is no reason to stop"
    assert in_order([loss], [replace(loss, value=None)]) == [] == in_order([], [loss])
    assert in_order([loss], [replace(loss, value=0.5, variant={"dims": 2})]) == []


def test_loss_terms_of_other_sizes():
    from kdhub.training.engine import magnitudes

    assert magnitudes([{"a": 2.0, "b": 1.0}, {"a": 4.0, "b": 1.0}]).found == "a 3, b 1"
    assert magnitudes([{"a": 2.0}, {"a": 4.0}]).status == "ok"
    lost = magnitudes([{"a": 2000.0, "b": 1.0}, {"a": -4000.0, "b": 1.0}])
    assert lost.status == "warn" and "'a' (3e+03) dwarfs 'b' (1)" in lost.found


def test_what_a_recipe_stands_on_is_not_made_for_a_look(isolated):
    seen = doctor("digits")
    assert seen[-1].check == "trial" and "recipe:digits-deep is made before" in seen[-1].found
    assert not (isolated / "recipes").exists()


def test_a_loss_that_is_no_number_is_a_finding(recipe):
    plan = recipe("image-classification", "kd", options={"epochs": 1, "batch_size": 8, "lr": 1e30})
    seen = found(plan)
    assert seen["trial"].status == "fail" and "the loss is" in seen["trial"].found


def test_bad_rows_are_counted_of_the_rows_that_were_tried_and_named_by_their_own_numbers(recipe, tmp_path, monkeypatch):
    from kdhub_tasks.language import chat_template

    strict = "{% if messages[0].role == 'assistant' %}{{ raise_exception('begin with the user') }}{% endif %}"
    monkeypatch.setattr(chat_template, "TEMPLATE", strict + chat_template.TEMPLATE)
    good, bad = ([{"role": role, "content": "hi"} for role in ("user", "assistant")][at:] for at in (0, 1))
    rows = [json.dumps({"messages": good if n % 10 else bad}) for n in range(1, 201)]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows))
    plan = recipe("causal-lm", "supervised", student="llama:width=8,layers=1,heads=2,length=64", teacher=None)
    plan |= {"data": {"train": ["path:chats.jsonl"]}, "options": {"epochs": 1, "batch_size": 4}}
    plan["evaluation"] = NOTHING
    said = found(plan)["trial"].found
    assert "(96 of its 200 rows were tried)" in said and " of 96 rows are bad" in said
    named = re.search(r"\(rows ([\d, ]+)", said)[1].split(", ")
    assert len(named) == 5 and all(int(n) % 10 == 0 for n in named)


def test_on_the_command_line(isolated, tmp_path, recipe):
    import yaml

    from kdhub.cli.app import app

    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(recipe("image-classification", "kd")))
    done = CliRunner().invoke(app, ["doctor", "--recipe", str(file), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {"status", "check", "found", "do", "values"} == set(told[0])
    assert "expected" in {one["check"] for one in told}
    done = CliRunner().invoke(app, ["doctor", "--recipe", "no-such"])
    assert done.exit_code == 1 and "no recipe named 'no-such'" in done.stdout
