"""Any number of labels a row, and values: forms of classification, for teachers, students, rows, losses and metrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from kdhub_tasks import divergences
from kdhub_tasks.classes import MULTI_LABEL, REGRESSION, Targets, problem_of
from kdhub_tasks.classification import metrics, tiny
from kdhub_tasks.classification.task import Predictions
from kdhub_tasks.ensemble import average_logits
from kdhub_tasks.losses import has_label, label_losses
from kdhub_tasks.models import Classifier
from torch.nn.functional import binary_cross_entropy_with_logits

import kdhub
from kdhub.data.dataset import Data
from kdhub.errors import CompatibilityError, DataError
from kdhub.student import BuildContext

pytestmark = pytest.mark.usefixtures("home")

S, Z = (torch.randn(5, 3, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
YES = torch.tensor([[1, 0, 1], [0, 0, 0], [-1, -1, -1], [1, 1, 1], [0, 1, 0]])


# -- losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation", "skew_kl", "adaptive_kl"]
)
def test_divergences_of_labels_are_sums_over_yes_and_no(name):
    function = getattr(divergences, name)
    found = divergences.suited(function, YES)(S, Z)
    by_hand = [
        sum(float(function(*(torch.tensor([0.0, float(x[i, c])]) for x in (S, Z)))) for c in range(3)) for i in range(5)
    ]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-6)
    p, q = torch.sigmoid(Z), torch.sigmoid(S)
    if name == "forward_kl":
        kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1)
        assert found.tolist() == pytest.approx(kl.tolist(), abs=1e-6)
    assert float(divergences.suited(function, YES)(Z, Z).abs().max()) < 1e-6
    # A constant on all logits says nothing about one class of many, and much about each of any number of labels.
    assert float(divergences.suited(function, YES)(Z + 3, Z).min()) > 0.1
    assert float(function(Z + 3, Z).abs().max()) < 1e-6


def test_divergences_of_values():
    values = torch.zeros(5, 3)
    student = S.clone().requires_grad_()
    found = divergences.suited(divergences.forward_kl, values)(student, Z)
    assert found.tolist() == pytest.approx((S - Z).square().mean(-1).tolist())
    found.sum().backward()
    assert torch.allclose(student.grad, 2 * (S - Z) / 3)
    with pytest.raises(CompatibilityError, match="reverse_kl is a divergence of distributions"):
        divergences.suited(divergences.reverse_kl, values)


def test_losses_of_labels():
    aim = YES.clamp_min(0).float()
    by_hand = binary_cross_entropy_with_logits(S, aim, reduction="none").sum(-1)
    by_hand[2] = 0
    assert label_losses(S, YES).tolist() == pytest.approx(by_hand.tolist())
    assert has_label(YES).tolist() == [True, True, False, True, True]
    values = torch.tensor([[1.0, 2.0, 3.0]] * 4 + [[math.nan] * 3])
    by_hand = (S - values).square().mean(-1).nan_to_num()
    assert label_losses(S, values).tolist() == pytest.approx(by_hand.tolist())


# -- rows and models ------------------------------------------------------------------------------------------


def test_what_a_configuration_says():
    assert problem_of({"problem_type": MULTI_LABEL, "id2label": {0: "a", 1: "b"}}) == MULTI_LABEL
    assert problem_of({"problem_type": None, "id2label": {0: "LABEL_0"}}) == REGRESSION, "as the library has it"
    assert problem_of({"id2label": {0: "a", 1: "b"}}) == problem_of({"classes": ["a"], "network": "mlp"}) == ""
    assert problem_of({"problem_type": "single_label_classification", "id2label": {0: "a"}}) == ""


def given(rows) -> Data:
    return Data.from_rows("given", {"train": lambda: iter(rows)}, key={"rows": json.dumps(rows)})


@pytest.mark.parametrize(
    ("labels", "facts"),
    [
        ([["b", "a"], [], ["b"]], {"classes": ["a", "b"], "problem": MULTI_LABEL}),
        (['["b", "a"]', "[]", "['b']"], {"classes": ["a", "b"], "problem": MULTI_LABEL}),
        ([[10, 2], [2], None], {"classes": ["2", "10"], "problem": MULTI_LABEL}),
        ([[0, 1, 1], [0, 0, 0]], {"classes": ["0", "1", "2"], "problem": MULTI_LABEL}),
        ([[0.0, 1.0], [1.0, 1.0]], {"classes": ["0", "1"], "problem": MULTI_LABEL}),
        ([0.5, 2.0, None], {"classes": ["score"], "problem": REGRESSION, "mean": 1.25}),
        (["0.5", "2", ""], {"classes": ["score"], "problem": REGRESSION, "mean": 1.25}),
        ([[0.5, 2.0], [1.0, 3.0]], {"classes": ["score-0", "score-1"], "problem": REGRESSION}),
        ([1.0, 2.0], {"classes": ["1", "2"]}),
    ],
)
def test_rows_say_what_is_asked(labels, facts):
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    task = kdhub.open_task("text-classification")
    assert task.survey([(given(rows), "train")]) == facts


def test_scores_are_values():
    rows = [{"text": f"row {i}", "score": score} for i, score in enumerate([1, 4, None])]
    facts = kdhub.open_task("text-classification").survey([(given(rows), "train")])
    assert facts == {"classes": ["score"], "problem": REGRESSION, "mean": 2.5}


def test_what_a_model_should_give():
    labels = Targets(["b", "a", "c"], MULTI_LABEL)
    rows = [["a", "c"], [], None, "b", "['c']", [0, 1, 1], [True, False, False]]
    assert [row.tolist() for row in labels([{"label": row} for row in rows])] == [
        [0, 1, 1], [0, 0, 0], [-1, -1, -1], [1, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0],
    ]  # fmt: skip
    two = Targets(["b", "a"], MULTI_LABEL)
    assert [row.tolist() for row in two([{"label": row} for row in ([True, False], [0.0, 1.0], [1], ["a", "b"])])] == [
        [1, 0], [0, 1], [0, 1], [1, 1],
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"label \[1, 0\] may say yes or no of each class, or number two classes"):
        two([{"label": [1, 0]}])
    with pytest.raises(DataError, match="label 'x' is not one of the 3 classes 'b', 'a', 'c'"):
        labels([{"label": ["a", "x"]}])
    values = Targets(["score-0", "score-1"], REGRESSION)([{"score": [1, 2.5]}, {"score": "[3, 4]"}, {"label": None}])
    assert np.array_equal(values, [[1, 2.5], [3, 4], [math.nan, math.nan]], equal_nan=True)
    with pytest.raises(DataError, match="score must be 2 numbers"):
        Targets(["score-0", "score-1"], REGRESSION)([{"score": 1.0}])


# -- runs -----------------------------------------------------------------------------------------------------


def teacher(folder, problem, classes):
    """A tiny text classifier of another kind of problem."""
    path = tiny.text_classifier(folder, classes=classes, seed=2)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    return path


def rows_of(problem, n, seed):
    rows = []
    for row in tiny.rows(n, seed):
        words = row["text"].split()
        if problem == MULTI_LABEL:
            found = [name for name, word in (("bad", "poor"), ("good", "fine"), ("article", "the")) if word in words]
            rows.append({"text": row["text"], "label": found + ["dull"] * (len(words) % 2)})
        else:
            rows.append({"text": row["text"], "score": len(words) + 0.5 * (row["label"] == "good")})
    return rows


CLASSES = {MULTI_LABEL: ["good", "bad", "dull", "article"], REGRESSION: ["score"]}


def recipe(folder, problem, **changes):
    for name, n, seed in (("train", 32, 1), ("test", 24, 2)):
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(problem, n, seed))
        (folder / f"{name}.jsonl").write_text(lines)
    return {
        "task": "text-classification",
        "method": "kd",
        "teacher": f"path:{teacher(folder / 'teacher', problem, CLASSES[problem])}",
        "student": "layers:1",
        "options": {"max_steps": 2, "batch_size": 8, "precision": "float32"},
        "data": {"train": f"path:{folder / 'train.jsonl'}"},
        "evaluation": {"data": [f"path:{folder / 'test.jsonl'}"], "cost": False, "options": {"per_class": True}},
        **changes,
    }


MEASURED = {
    MULTI_LABEL: {
        "micro-f1",
        "macro-f1",
        "subset-accuracy",
        "average-precision",
        "agreement",
        "kl",
        "regression-loyalty",
    },
    REGRESSION: {"pearson", "spearman", "rmse", "score-rmse", "regression-loyalty"},
}


@pytest.mark.parametrize("problem", [MULTI_LABEL, REGRESSION])
def test_a_student_of_another_problem(tmp_path, problem):
    from transformers import AutoModelForSequenceClassification

    run = kdhub.distill(recipe(tmp_path, problem), out=tmp_path / "run")
    assert all(line["terms"]["teacher"] > 1e-4 and line["terms"]["labels"] > 1e-4 for line in run.metrics())
    measured = [m for m in run.report["measures"] if m["subject"] == "student"]
    assert {m["metric"] for m in measured} == MEASURED[problem]
    named = {m["variant"]["class"] for m in measured if m.get("variant")}
    assert named == (set(CLASSES[problem]) if problem == MULTI_LABEL else set())
    primary = run.report["facts"]["primary"]["texts"]
    assert primary == ("micro-f1" if problem == MULTI_LABEL else "pearson")
    model = AutoModelForSequenceClassification.from_pretrained(run.student_folder)
    assert model.config.problem_type == problem and model.config.id2label == dict(enumerate(CLASSES[problem]))
    scored = kdhub.evaluate(run.student_folder, data=f"path:{tmp_path / 'test.jsonl'}", task="text-classification")
    values = {m.metric: m.value for m in scored.measures if not m.variant}
    assert all(values[m["metric"]] == m["value"] for m in measured if m["metric"] in values and not m.get("variant"))


@pytest.mark.parametrize(
    ("problem", "changes", "says"),
    [
        (MULTI_LABEL, {"method": "dkd"}, "method dkd is not for multi_label_classification"),
        (MULTI_LABEL, {"method": "pld"}, "method pld is not for multi_label"),
        (REGRESSION, {"method": "reverse-kl"}, "method reverse-kl is not for regression"),
        (MULTI_LABEL, {"signals": {"keep": "top-2"}}, "keeps a part of a distribution over classes .keep=top-2."),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, problem, changes, says):
    with pytest.raises(CompatibilityError, match=says):
        kdhub.distill(recipe(tmp_path, problem, **changes), out=tmp_path / "run")


def test_rows_of_another_problem_than_the_teacher(tmp_path):
    """Lists of labels with a teacher of one class a row: the student is one of rows, and kd has no teacher for it."""
    made = recipe(tmp_path, MULTI_LABEL, student=None)
    path = tiny.text_classifier(tmp_path / "one", classes=CLASSES[MULTI_LABEL], seed=2)
    start = teacher(tmp_path / "start", MULTI_LABEL, CLASSES[MULTI_LABEL])
    made |= {"teacher": f"path:{path}", "student": f"path:{start}"}
    with pytest.raises(
        CompatibilityError, match="the student are any number of labels, those of the teacher one class"
    ):
        kdhub.distill(made, out=tmp_path / "run")


@pytest.mark.parametrize("problem", [MULTI_LABEL, REGRESSION])
def test_one_result_whatever_the_format(tmp_path, problem):
    path, found = teacher(tmp_path / "m", problem, CLASSES[problem]), {}
    rows = rows_of(problem, 24, 3)
    column = next(c for c in rows[0] if c != "text")
    (files := {})["jsonl"] = tmp_path / "a.jsonl"
    files["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    for how in ("csv", "tsv"):
        files[how] = tmp_path / f"a.{how}"
        cell = [json.dumps(row[column]) for row in rows]
        cell = ['"' + c.replace('"', '""') + '"' for c in cell] if how == "csv" else cell
        lines = [f"text\t{column}"] + [f"{row['text']}\t{c}" for row, c in zip(rows, cell)]
        files[how].write_text("\n".join(lines).replace("\t", "," if how == "csv" else "\t") + "\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    files["parquet"] = tmp_path / "a.parquet"
    if problem == MULTI_LABEL:
        hot = [{**row, "label": [int(name in row["label"]) for name in CLASSES[problem]]} for row in rows]
        files["0 and 1"] = tmp_path / "hot.jsonl"
        files["0 and 1"].write_text("".join(json.dumps(row) + "\n" for row in hot))
    for how, file in files.items():
        report = kdhub.evaluate(path, data=f"path:{file}", task="text-classification")
        found[how] = {m.metric: m.value for m in report.measures}
    assert all(one == found["jsonl"] and one for one in found.values()), found


def test_a_network_of_ours_keeps_its_problem(tmp_path):
    from kdhub_tasks.classification.students import mlp

    rows = [{"features": [i, i % 3], "label": ["odd"] * (i % 2) + ["three"] * (i % 3 == 0)} for i in range(12)]
    task = kdhub.open_task("tabular-classification")
    student = mlp("4", BuildContext(task, None, 0, facts=task.survey([(given(rows), "train")])))
    student.save(tmp_path)
    loaded = task.load(tmp_path)
    assert isinstance(loaded, Classifier) and loaded.problem == MULTI_LABEL and loaded.classes == ["odd", "three"]
    batch = task.collate(task.preparer(loaded, None)(rows[:4]), loaded)
    assert batch["labels"].tolist() == [[0, 1], [1, 0], [0, 0], [1, 1]]
    assert task.counts(batch) == {"positions": 4, "labels": 4}


def test_pairs_refuse_what_they_are_not_for(tmp_path):
    path = teacher(tmp_path / "m", MULTI_LABEL, ["a", "b"])
    with pytest.raises(CompatibilityError, match="one class or one score"):
        kdhub.open_task("text-pairs").load(path)
    rows = [{"sentence1": "a", "sentence2": "b", "label": ["x", "y"]}]
    with pytest.raises(DataError, match="one label or one score"):
        kdhub.open_task("text-pairs").survey([(given(rows), "train")])


@pytest.mark.parametrize("problem, many", [(MULTI_LABEL, 2), (REGRESSION, 2), (None, 1)])
def test_words_have_one_class_each(tmp_path, problem, many):
    """As models say it and as rows do."""
    tiny.text_classifier(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_labels=many, problem_type=problem)
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(CompatibilityError, match=f"one class a word .problem_type={problem or REGRESSION}, {many} out"):
        kdhub.open_task("token-classification").load(tmp_path)


@pytest.mark.parametrize("tags, says", [([[0.5, 1.0]], "fractions"), ([[["a"], ["a", "b"]]], "lists of them")])
def test_tags_are_one_class_each(tags, says):
    rows = [{"tokens": ["a", "b"], "tags": each} for each in tags]
    with pytest.raises(DataError, match=says):
        kdhub.open_task("token-classification").survey([(given(rows), "train")])


# -- metrics and ensembles ------------------------------------------------------------------------------------


def test_metrics_of_labels_by_hand():
    truth = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    logits = np.array([[2.0, -1, -1], [-1, -2, -3], [1, 1, -2], [1, 2, -1]])
    out = Predictions(logits, truth, list("abc"), problem=MULTI_LABEL)
    assert metrics.micro_f1(out) == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))  # 4 right, 1 too many, 1 missed
    assert metrics.macro_f1(out) == pytest.approx((2 * 2 / 5 + 1 + 0) / 3)
    assert metrics.subset_accuracy(out) == 0.5
    assert metrics.accuracy(out) is metrics.nll(out) is metrics.pearson(out) is metrics.auroc(out) is None
    p, q = (1 / (1 + np.exp(-x)) for x in (logits, logits - 0.5))
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean()
    student = Predictions(logits - 0.5, truth, list("abc"), problem=MULTI_LABEL)
    assert metrics.divergence(student, out) == pytest.approx(kl)
    assert metrics.agreement(student, out) == 1


def test_metrics_of_values_by_hand():
    out = Predictions(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 3.5]), ["score"], problem=REGRESSION)
    assert metrics.rmse(out) == pytest.approx(math.sqrt((0 + 1 + 0.25) / 3))
    assert metrics.pearson(out) == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 3.5])[0, 1])
    assert metrics.spearman(out) == pytest.approx(1) and metrics.accuracy(out) is metrics.macro_f1(out) is None


def test_ensembles_of_labels_average_each_ones_probability():
    a, b = np.array([[2.0, -1.0]]), np.array([[0.0, 1.0]])
    p = (1 / (1 + np.exp(-a)) + 1 / (1 + np.exp(-b))) / 2
    found = average_logits([a, b], [0.5, 0.5], problem=MULTI_LABEL)
    assert 1 / (1 + np.exp(-found)) == pytest.approx(p)
    assert average_logits([a, b], [0.5, 0.5], problem=REGRESSION).tolist() == [[1.0, 0.0]]
