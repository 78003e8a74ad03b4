"""What the evaluation measures: the rows of the split that is named, and the student against its teacher."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import kdhub
from kdhub.evaluation.evaluator import Evaluator, encoder_of, student_encoder, teacher_encoder
from kdhub.recipes.recipe import Evaluation, Ref
from kdhub.recipes.resolve import Resolver
from kdhub.rows import Rows
from kdhub.signals.store import row_key
from kdhub.signals.stored import stored_signals
from kdhub.student import BuildContext


def outputs(model, rows) -> np.ndarray:
    with torch.no_grad():
        return model.module.eval()(torch.tensor(rows["x"]))["vector"].numpy()


def by_hand(student, teacher, rows) -> dict[str, float]:
    """The toys' two metrics, written out."""
    mine, theirs = outputs(student, rows), outputs(teacher, rows)
    return {
        "toy-error": float(np.square(mine - np.asarray(rows["y"])).mean()),
        "toy-distance": float(np.square(mine - theirs).mean()),
    }


@pytest.fixture
def subjects(toys):
    resolver = Resolver()
    task = resolver.task("toy-vectors")
    student = resolver.student(Ref(source="mlp:6"), BuildContext(task, None, 0))
    return resolver, task, student, resolver.teacher(Ref(source="linear:1"), "toy-vectors")


@pytest.mark.parametrize(("named", "split"), [(None, "test"), ("test", "test"), ("train", "train")])
def test_rows_are_those_of_the_split_that_is_named(subjects, named, split):
    """Or of the test split, where none is; of all rows, and no others."""
    resolver, task, student, teacher = subjects
    plan = Evaluation(data=[{"source": "toy-points", **({"split": named} if named else {})}])
    evaluator = Evaluator(task, resolver, plan, task.EvaluationOptions())
    rows = kdhub.open_data("toy-points").split(split)
    encoders = student_encoder(task, student), encoder_of(teacher, task.preparer(None, teacher))
    found = evaluator.measure("student", *encoders)
    assert {m.metric: m.value for m in found} == pytest.approx(by_hand(student, teacher, rows), rel=1e-5)
    assert {(m.split, m.dataset, m.examples) for m in found} == {(split, "toy-points", len(rows))}
    assert [(used["split"], used["rows"]) for used in evaluator.used] == [(split, len(rows))]
    assert evaluator.glance(encoders[0]) == ("toy-error", pytest.approx(by_hand(student, teacher, rows)["toy-error"]))
    alone = {m.metric: m.value for m in evaluator.measure("teacher", encoders[1])}
    assert alone == {"toy-error": pytest.approx(by_hand(teacher, teacher, rows)["toy-error"])}


def test_a_report_compares_the_saved_student_and_its_start_with_the_teacher(subjects, tmp_path):
    """From the recipe to the report: not with themselves, nor on the rows they were trained on."""
    resolver, task, start, teacher = subjects
    options = {"max_steps": 3, "batch_size": 8, "lr": 0.1, "precision": "float32"}
    recipe = {"task": "toy-vectors", "method": "toy-hint", **task.tiny_recipe(tmp_path), "options": options}
    run = kdhub.distill({**recipe, "signals": {"dtype": "float32"}}, out=tmp_path / "run")
    rows, found = kdhub.open_data("toy-points").split("test"), {}
    for m in json.loads((run.folder / "report.json").read_text())["measures"]:
        found.setdefault(m["subject"], {})[m["metric"]] = m["value"]
        assert m["split"] == "test" and m["examples"] == len(rows)
    for subject, model in (("student", task.load(run.student_folder)), ("student-before", start)):
        expected = by_hand(model, teacher, rows)
        assert expected["toy-distance"] > 0.01
        assert {name: found[subject][name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert found["teacher"]["toy-error"] == pytest.approx(by_hand(teacher, teacher, rows)["toy-error"], rel=1e-3)


def test_signals_of_one_field_are_told_apart_by_their_names(subjects, monkeypatch):
    """As texts of a model under two settings are."""
    _, task, _, teacher = subjects
    rows = Rows.build(kdhub.open_data("toy-points").split("test"), task.preparer(None, None), row_key)
    monkeypatch.setattr(type(teacher), "layout", lambda self, kind: {"value": (1,)})
    monkeypatch.setattr(type(teacher), "signals", lambda self, rows, kind: {"value": [[len(kind)]] * len(rows)})
    for kind in ("text:{}", 'text:{"seed":1}'):
        given = stored_signals(teacher, rows, kind)[np.arange(len(rows))]["value"]
        assert (given == len(kind)).all()


def test_teachers_that_differ_in_anything_have_outputs_of_their_own(subjects):
    """Each option, each signal and each storage type: nothing is read that another one left in the store."""
    resolver, task, *_ = subjects
    table = kdhub.open_data("toy-points").split("test")
    rows = Rows.build(table, task.preparer(None, None), row_key)
    seen = set()
    for source, kind, dtype in (
        ({"source": "linear:1"}, "vector", "float32"),
        ({"source": "linear:2"}, "vector", "float32"),
        ({"source": "linear:1", "gain": 2.0}, "vector", "float32"),
        ({"source": "linear:1"}, "vector", "float16"),
        ({"source": "linear:1"}, "other", "float32"),
    ):
        teacher = resolver.teacher(Ref(**source), "toy-vectors")
        given = stored_signals(teacher, rows, kind, dtype=dtype)
        assert given.report.computed == len(rows)
        expected = outputs(teacher, table) * source.get("gain", 1.0)
        assert given[np.arange(len(rows))][kind] == pytest.approx(expected, rel=2e-3, abs=2e-3)
        seen.add(given.store.folder)
        assert stored_signals(teacher, rows, kind, dtype=dtype).report.computed == 0
    assert len(seen) == 5
    through = teacher_encoder(task, teacher, lambda rows, kind: stored_signals(teacher, rows, kind, dtype="float32"))
    assert through(table, "vector")["vector"] == pytest.approx(outputs(teacher, table), rel=1e-5)
