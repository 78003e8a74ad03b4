"""DSE: the specification's numbers, and runs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_tasks.pairs.heads import Shape
from kdhub_tasks.pairs.task import TextPairs
from kdhub_tasks.pairs.tiny import pairs
from kdhub_tasks.pairs.tiny import recipe as recipe_in
from kdhub_tasks.pairs.towers import TwoTowerStudent
from kdhub_tasks.tiny import tiny_encoder, write_jsonl
from kdhub_text.methods.dse import SOME, Dse, score_distances
from pydantic import ValidationError

import kdhub
from kdhub.errors import CompatibilityError, DataError
from kdhub.method import ObjectiveMethod, Progress
from kdhub.rows import Signals


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pairs")
    recipe_in(made)
    return made


def towers(folder, classes=("no", "yes")):
    facts = {"classes": list(classes)}
    return kdhub.open_student(f"towers:path:{folder / 'encoder'}", "text-pairs", facts=facts)


def objective(logits, teacher, labels, **options):
    batch = {"labels": torch.tensor(labels), "mean_counts": {"positions": len(labels), "labels": len(labels)}}
    method = Dse(Dse.Options(**options), SimpleNamespace(needs=("logits",)))
    given = (Signals(logits=torch.tensor(logits)), Signals(logits=torch.tensor(teacher)))
    return {name: float(term) for name, term in method.objective(*given, batch, Progress(0, 1, 0.0)).items()}


@pytest.mark.parametrize(("alpha", "total"), [(0.5, 1.362038), (0.0, 0.474077), (1.0, 2.25)])
def test_loss_of_two_classes(alpha, total):
    terms = objective([[0.0, 0.5]], [[-1.0, 1.0]], [1], alpha=alpha)
    assert sum(terms.values()) == pytest.approx(total, abs=1e-6)
    assert set(terms) == {name for name, weight in (("teacher", alpha), ("labels", 1 - alpha)) if weight}


def test_loss_of_values_and_of_three_classes():
    assert objective([[2.0], [1.0]], [[3.0], [1.0]], [4.0, math.nan], alpha=0.5) == pytest.approx(
        {"teacher": 0.5 * 1 / 2, "labels": 0.5 * 4 / 2}  # the step has two labels, one of them here
    )
    apart = score_distances(torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, 0, 0]]))
    assert apart.tolist() == [13]  # summed over classes, not their mean


def test_schedule_of_the_code_ends_half_way_down():
    rates = {
        units: Dse(Dse.Options(schedule_units=units, accumulate=2)).learning_rate(99, 100)
        for units in ("steps", "batches")
    }
    assert rates["steps"] == pytest.approx(0.01 / 0.9, rel=0.2) and rates["batches"] == pytest.approx(
        0.505 / 0.9, rel=0.02
    )


@pytest.mark.parametrize("step", [0, 3, 19])
def test_what_the_schedule_counts(step):
    steps, batches = (Dse(Dse.Options(schedule_units=units, accumulate=3)) for units in ("steps", "batches"))
    plain = ObjectiveMethod.learning_rate
    assert steps.learning_rate(step, 20) == plain(steps, step, 20) != plain(steps, step, 60)
    assert batches.learning_rate(step, 20) == plain(steps, step, 60)


def test_what_a_student_is_made_into():
    def adapted(**options):
        told, encoder = [], torch.nn.Linear(1, 1)
        student, method = (
            SimpleNamespace(limit=told.append, stand=told.append, encoder=encoder),
            Dse(Dse.Options(**options)),
        )
        method.adapt(student, None)
        assert method.settings() == {"max_length": told[0]}
        return *told, encoder.weight.requires_grad

    shape = {"pooler": "cls", "include_cls": True, "top_layers": 3, "embed_dim": 8}
    more = {"fc_dims": [7, 6], "symmetric": True, "max_length": 50}
    assert adapted(**shape, **more, freeze_encoder=True) == (
        50, Shape("cls", True, 3, 8, "concat", (7, 6), True), False
    )  # fmt: skip
    assert adapted(**shape, **more, head="dot") == (50, Shape("cls", True, 3, 8, "dot", (), False), True)
    assert adapted() == (128, Shape("concat_top_mean", False, 4, -1, "concat", (512,), False), True)
    for classes, head in ((["a", "b"], "concat"), (["score"], "dot")):  # nothing is lifted
        Dse(Dse.Options(head=head)).initialise(SimpleNamespace(classes=classes), {}, Signals())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embed_dim": 0}, "embed_dim must be 1 or more"),
        ({"freeze_encoder": True, "head": "dot"}, "or nothing is trained"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValidationError, match=words):
        Dse.Options(**options)
    assert Dse.Options(**options | {"embed_dim": 8}).embed_dim == 8


@pytest.mark.usefixtures("home")
def test_the_teacher_brings_the_scores_close(tmp_path):
    """With alpha = 1 the towers come closer to the cross-encoder's scores than with alpha = 0, and need no labels."""
    recipe = {"schema": 1, "task": "text-pairs", "method": "dse", **recipe_in(tmp_path)}
    apart = {}
    for name, alpha in (("labels", 0.0), ("teacher", 1.0), ("unlabelled", 1.0)):
        if name == "unlabelled":
            rows = [{side: row[side] for side in ("sentence1", "sentence2")} for row in pairs(64, seed=1)]
            write_jsonl(tmp_path / "train.jsonl", rows)
        options = {"alpha": alpha, "top_layers": 2, "fc_dims": [16], "lr": 3e-3, "epochs": 8, "precision": "float32"}
        run = kdhub.distill({**recipe, "options": options}, out=tmp_path / f"run-{name}")
        measures = {m["metric"]: m.get("value") for m in run.report["measures"] if m["subject"] == "student"}
        apart[name] = measures["score-rmse"]
        assert {"pearson", "spearman", "regression-loyalty", "degradation"} <= set(measures)
    assert apart["teacher"] < 0.7 * apart["labels"]
    assert apart["unlabelled"] == pytest.approx(apart["teacher"], rel=1e-4)


def test_a_head_of_values_begins_with_the_teachers_mean(folder):
    student, task = towers(folder, ("score",)), TextPairs()
    batch = task.collate(task.preparer(student, None)(pairs(SOME)), student)
    z = torch.linspace(2, 6, 3 * SOME).unsqueeze(1)  # of all rows that are given, more than the student reads
    Dse(Dse.Options()).initialise(student, batch, Signals(logits=z))
    assert float(student.module(batch)["logits"].detach().mean()) == pytest.approx(4, abs=1e-4)


@pytest.mark.usefixtures("home")
def test_two_classes_from_rows_to_report(tmp_path):
    """A cross-encoder by labels alone, under the other names of the columns; its scores into an inner product."""
    encoder = tiny_encoder(tmp_path / "encoder", layers=2, hidden=16, plain=True)
    rows = [
        {"text": r["sentence1"], "text_pair": r["sentence2"], "label": "same" if r["score"] > 0.3 else "other"}
        for r in pairs(48)
    ]
    data = {"source": f"path:{write_jsonl(tmp_path / 'rows.jsonl', rows)}"}
    shared = {
        "schema": 1,
        "task": "text-pairs",
        "data": {"train": [data]},
        "evaluation": {"data": [data], "cost": False},
    }
    options = {"lr": 3e-3, "epochs": 2, "precision": "float32"}
    cross = {"method": "supervised", "student": f"path:{encoder}", "options": {**options, "batch_size": 16}}
    made = kdhub.distill({**shared, **cross}, out=tmp_path / "cross")
    dse = {"method": "dse", "teacher": f"path:{made.student_folder}", "student": "towers:teacher"}
    run = kdhub.distill(
        {**shared, **dse, "options": {**options, "head": "dot", "embed_dim": 8, "top_layers": 2}}, out=tmp_path / "run"
    )
    found = {m["metric"] for m in run.report["measures"] if m["subject"] == "student" and m.get("value") is not None}
    assert {"accuracy", "f1", "agreement", "score-rmse", "degradation", "regression-loyalty"} <= found
    student = kdhub.load(run.folder)
    assert student.classes == ["other", "same"]
    vectors = student.embed([rows[0]["text"], rows[1]["text"]])
    assert np.allclose(student.matrix(vectors, vectors), vectors @ vectors.T, atol=1e-5)
    with pytest.raises(DataError, match="pairs with a label"):
        kdhub.evaluate(run.folder, data=f"path:{write_jsonl(tmp_path / 'sts.jsonl', pairs(4))}")


@pytest.mark.usefixtures("home")
def test_a_student_that_reads_both_together_is_refused(tmp_path):
    recipe = {"schema": 1, "task": "text-pairs", "method": "dse", **recipe_in(tmp_path), "student": "layers:1"}
    with pytest.raises(CompatibilityError, match="embeddings"):
        kdhub.distill(recipe, out=tmp_path / "run")
    assert isinstance(towers(tmp_path), TwoTowerStudent)
