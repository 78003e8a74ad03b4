"""Tasks, networks, students and metrics: what a user of classification meets, and bad input."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from kdhub_logits.teachers import Prototypes
from kdhub_tasks.classes import label_index
from kdhub_tasks.classification import metrics, networks, students, tiny
from kdhub_tasks.classification.data import digits
from kdhub_tasks.classification.folders import load
from kdhub_tasks.classification.model import NetworkClassifier
from kdhub_tasks.classification.task import Predictions
from kdhub_tasks.transformer import TextClassifier
from safetensors.torch import load_file, save_file

import kdhub
from kdhub.data.dataset import DataOptions
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.recipes.recipe import Ref
from kdhub.recipes.resolve import Resolver
from kdhub.rows import plain_rows
from kdhub.student import BuildContext

# -- metrics --------------------------------------------------------------------------------------------------

LOG = np.log
OUT = Predictions(
    LOG(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])), np.array([0, 2, 0, 2])
)


def test_metrics_by_hand():
    assert metrics.accuracy(OUT) == 0.75
    assert metrics.nll(OUT) == pytest.approx(-(LOG(0.7) + LOG(0.3) + LOG(0.5) + LOG(0.6)) / 4)
    by_row = [0.09 + 0.04 + 0.01, 0.01 + 0.36 + 0.49, 0.25 + 0.09 + 0.04, 0.04 + 0.04 + 0.16]
    assert metrics.brier(OUT) == pytest.approx(sum(by_row) / 4)
    # confidences .7, .6, .5, .6 lie in the bins 10, 9, 7, 9 of 15; in bin 9 one of two is right
    assert metrics.calibration_error(OUT) == pytest.approx((0.3 + 2 * abs(0.5 - 0.6) + 0.5) / 4)
    assert metrics.macro_f1(OUT) == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert metrics.top_5(OUT) is None and metrics.auroc(OUT) is None


def test_metrics_of_many_classes_and_of_hopeless_models():
    """Five of six are the most probable five; models that are sure and wrong, or right; one class."""
    out = Predictions(np.tile(np.arange(6.0), (4, 1)), np.array([0, 1, 5, 0]))
    assert metrics.top_5(out) == 0.5 and metrics.top_5(Predictions(np.eye(5), np.arange(5))) is None
    sure = Predictions(np.array([[200.0, 0.0, 0.0]] * 2), np.array([0, 1]))
    assert metrics.nll(sure) == 100 and metrics.brier(sure) == 1 and metrics.calibration_error(sure) == 0.5
    right = Predictions(sure.logits, np.array([0, 0]))
    assert [f(right) for f in (metrics.nll, metrics.brier, metrics.calibration_error)] == pytest.approx([0] * 3)
    one = Predictions(np.ones((2, 1)), np.array([0, 0]))
    assert metrics.accuracy(one) == 1 and metrics.brier(one) is None and metrics.calibration_error(one) == 0


def test_metrics_of_two_classes():
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    out = Predictions(np.stack([np.zeros(4), scores], 1), np.array([0, 0, 1, 1]))
    assert metrics.auroc(out) == 0.75 and metrics.auprc(out) == pytest.approx(0.8333333)
    assert metrics.auroc(Predictions(out.logits, np.zeros(4, int))) is None
    assert metrics.auprc(OUT) is metrics.auroc(OUT) is None, "three classes, two of them among the rows"
    # one of 15 bins holds both, one of 16 does not: sure by .605 and right, by .64 and wrong
    two = Predictions(LOG(np.array([[0.605, 0.395], [0.64, 0.36]])), np.array([0, 1]))
    assert metrics.calibration_error(two) == pytest.approx(abs(0.605 + 0.64 - 1) / 2)


def test_fidelity_by_hand():
    same = {f: f(OUT, OUT) for f in (metrics.agreement, metrics.divergence, metrics.probability_loyalty)}
    assert list(same.values()) == pytest.approx([1, 0, 1], abs=1e-9)
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    one, two = Predictions(LOG(q), np.array([0])), Predictions(LOG(p), np.array([0]))
    assert metrics.divergence(one, two) == pytest.approx(0.5 * LOG(0.5 / 0.9) + 0.5 * LOG(0.5 / 0.1))
    m = (p + q) / 2
    js = 0.5 * (p * np.log2(p / m)).sum() + 0.5 * (q * np.log2(q / m)).sum()
    assert metrics.probability_loyalty(one, two) == pytest.approx(1 - js**0.5), "the root once"


def test_loyalties_of_the_specification():
    """Numbers of section 7 of the specification of arXiv:2112.12650; probability loyalty to base 2."""

    def given(rows, of=LOG):
        with np.errstate(divide="ignore"):
            return Predictions(of(np.array(rows, np.float64)), np.zeros(len(rows), int))

    p, q = given([[0.75, 0.2, 0.05]]), given([[0.8, 0.1, 0.1]])
    assert metrics.probability_loyalty(q, p) == pytest.approx(0.862286, abs=2e-6)
    opposite = given([[1, 0]]), given([[0, 1]])
    assert metrics.probability_loyalty(*opposite) == pytest.approx(0, abs=1e-6)
    assert metrics.natural_loyalty(*opposite) == pytest.approx(1 - LOG(2) ** 0.5, abs=1e-6)
    z = 8 * np.random.default_rng(0).normal(size=(2000, 2))
    close = [metrics.Predictions(x, np.zeros(len(z), int)) for x in (z, z + 1e-9)]
    assert metrics.probability_loyalty(*close) == pytest.approx(1), "all but equal, and rounded below that"
    labels = [given(np.eye(4)[chosen], of=np.array) for chosen in ([0, 2, 1, 3], [0, 1, 2, 3])]
    assert metrics.agreement(*labels) == 0.5
    scores = [[1, 2, 3, 5], [1.1, 1.9, 3.2, 4.0]]
    one, two = (given([[0, s] for s in row], of=np.array) for row in scores)
    assert metrics.regression_loyalty(one, two) == pytest.approx(0.970309, abs=2e-6)
    moved = given([[7 - 2 * s, 7 + s] for s in scores[0]], of=np.array)
    assert metrics.regression_loyalty(moved, two) == pytest.approx(0.970309, abs=2e-6)
    assert metrics.regression_loyalty(one, one) == pytest.approx(1)
    same = given([[0, 1]] * 4, of=np.array)
    assert metrics.regression_loyalty(same, two) is metrics.regression_loyalty(two, same) is None


# -- networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "settings", "shape", "positions"),
    [
        ("mlp", {"hidden": [5]}, [8, 8], None),
        ("mlp", {"hidden": []}, [7], None),
        ("resnet", {"depth": 8}, [3, 16, 16], 16),
        ("resnet", {"depth": 14}, [8, 8], 4),
        ("vit", {"patch": 4, "width": 8, "layers": 1, "heads": 2}, [3, 8, 12], 6),
    ],
)
def test_networks_give_their_signals_and_survive_saving(tmp_path, network, settings, shape, positions):
    config = {"network": network, "shape": shape, "classes": list("abc"), "mean": 0.4, "std": 0.2, **settings}
    student = NetworkClassifier("image-classification", config)
    x = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    examples = [{"x": row} for row in x]
    given = student.module.eval()(student.collate(examples))
    assert given["logits"].shape == (5, 3)
    if positions:
        assert given["tokens"].shape[:2] == (5, positions)
        torch.testing.assert_close(given["tokens"].mean(1), given["features"])
    student.save(tmp_path)
    again = load(tmp_path)
    assert again.classes == list("abc")
    np.testing.assert_allclose(again.signals(examples, "logits")["logits"], given["logits"].detach(), atol=1e-6)


def test_the_resnet_has_the_parameters_of_the_paper():
    made = networks.CifarResNet([3, 32, 32], 10, depth=20)
    assert sum(p.numel() for p in made.parameters()) == 269_722  # 0.27 M, table 6 of arXiv:1512.03385
    assert (
        len([m for m in networks.CifarResNet([3, 32, 32], 10, depth=56).modules() if type(m).__name__ == "_Block"])
        == 27
    )


# -- data and labels ------------------------------------------------------------------------------------------


def test_digits_are_all_there_once():
    data = digits()
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 1200, "validation": 200, "test": 397}
    seen = {json.dumps(row["image"]) for s in data.splits for row in data.split(s)}
    assert len(seen) == 1797
    first = data.split("train")[0]
    assert np.shape(first["image"]) == (8, 8) and max(map(max, first["image"])) <= 255
    assert np.shape(digits("features").split("test")[0]["features"]) == (64,)
    with pytest.raises(UsageError, match="not 'sound'"):
        digits("sound")


def test_labels_are_positions_or_names():
    assert [label_index(v, ["no", "yes"]) for v in (1, "no", None, -1, "1")] == [1, 0, -1, -1, 1]
    for wrong in (2, "maybe", "2"):
        with pytest.raises(DataError, match="is not one of the 2 classes 'no', 'yes'"):
            label_index(wrong, ["no", "yes"])


@pytest.fixture
def texts(tmp_path):
    """A recipe of texts with named labels; `texts(train_rows=...)` with other rows."""

    def make(method="kd", train=None, test=None, **changes):
        folder = tmp_path / "world"
        folder.mkdir(exist_ok=True)
        recipe = tiny.text_recipe(folder)
        for name, rows in (("train", train), ("test", test)):
            if rows is not None:
                (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        options = {"max_steps": 4, "batch_size": 8, "precision": "float32"}
        return {**recipe, "task": "text-classification", "method": method, "options": options, **changes}

    return make


def test_a_text_student_is_a_transformers_folder(texts, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = kdhub.distill(texts(student="layers:1"), out=tmp_path / "run")
    student = kdhub.load(run.folder)
    model = AutoModelForSequenceClassification.from_pretrained(run.student_folder)
    tokens = AutoTokenizer.from_pretrained(run.student_folder)(["a very great plot"], return_tensors="pt")
    ours = student.signals([{"text": "a very great plot"}], "logits")["logits"]
    np.testing.assert_allclose(model(**tokens).logits.detach().numpy(), ours, atol=1e-5)
    assert model.config.id2label == {0: "bad", 1: "good"} and model.config.num_hidden_layers == 1
    named = {m["metric"] for m in run.report["measures"]}
    assert {"accuracy", "auroc", "auprc", "ece", "loyalty"} <= named and "accuracy@5" not in named


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "fine plot", "label": "neutral"}], "label 'neutral' is not one of the 2 classes 'bad', 'good'"),
        ([{"sentence": "fine plot", "label": "good"}], "has no column 'text'"),
    ],
)
def test_rows_of_other_classes_or_columns(texts, tmp_path, rows, says):
    with pytest.raises(DataError, match=says):
        kdhub.distill(texts(train=rows * 8), out=tmp_path / "run")
    assert not (tmp_path / "run" / "student").exists()


def test_an_evaluation_row_without_a_label(texts, tmp_path):
    with pytest.raises(DataError, match="row 2 has no label"):
        rows = [{"text": "fine", "label": "good"}, {"text": "dull", "label": None}]
        kdhub.distill(texts(test=rows), out=tmp_path / "run")


def test_rows_without_labels_train_by_the_teacher_alone(texts, tmp_path):
    rows = [{"text": row["text"]} for row in tiny.rows(32)]
    run = kdhub.distill(texts(train=rows), out=tmp_path / "run")
    assert all(line["terms"]["labels"] == 0 < line["terms"]["teacher"] for line in run.metrics())


def test_a_student_with_other_classes_than_the_teacher_is_refused(texts, tmp_path):
    other = tiny.text_classifier(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "good", "1": "bad"}, {"good": 0, "bad": 1}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompatibilityError, match="the student has the classes good, bad, the teacher bad, good"):
        kdhub.distill(texts(student=f"path:{other}"), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ("resnet:21", "depths are 8, 14, 20"),
        ("mlp:8,x", "expected whole numbers"),
        ("vit:patch=3", "do not divide"),
        ("vit:patches=2", "'patches=2' is not one of patch=N"),
        ("vit:width=10", "4 heads do not divide a width of 10"),
    ],
)
def test_wrong_arguments_of_students(tmp_path, student, says):
    recipe = {
        "task": "image-classification",
        "method": "supervised",
        "student": student,
        "data": {"train": "digits"},
        "evaluation": {"cost": False},
    }
    with pytest.raises(UsageError, match=says):
        kdhub.distill(recipe, out=tmp_path / "run")


# -- teachers and students of other makers --------------------------------------------------------------------


def _context(classes=("0", "1", "2")):
    task = Resolver().task("image-classification")
    return BuildContext(task, None, 0, facts={"classes": list(classes), "shape": [3, 32, 32]})


def test_a_checkpoint_of_pytorch_is_read_and_nothing_in_it_is_run(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = networks.CifarResNet([3, 32, 32], 3, 8)
    state = {f"module.{n}": t for n, t in network.state_dict().items() if not n.startswith("scale.")}
    torch.save({"state_dict": state, "best_prec1": 9.0}, tmp_path / "net.th")
    monkeypatch.setenv("KDHUB_DATA", str(tmp_path))
    student = students.resnet_checkpoint("net.th", _context())
    assert student.config["depth"] == 8 and student.width("tokens") == (64, 64)
    assert torch.equal(student.module.linear.weight, network.linear.weight)
    assert student.module.scale.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    wider = students.resnet_checkpoint("net.th", _context("abcd"))
    assert torch.equal(wider.module.conv1.weight, network.conv1.weight) and wider.module.linear.out_features == 4

    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "harm.th").write_bytes(pickle.dumps({"state_dict": Harm()}, protocol=2))
    torch.save({"state_dict": {"other": torch.ones(2)}}, tmp_path / "other.th")
    for name in ("harm.th", "other.th", "absent.th"):
        with pytest.raises(UsageError, match=name):
            students.resnet_checkpoint(name, _context())
    assert not (tmp_path / "touched").exists()


def test_a_zero_shot_teacher_and_prototypes(tmp_path):
    table = Resolver().open_data("digits", DataOptions(), {"form": "features"}).split("test")
    rows = plain_rows(table, range(100))
    assert isinstance(rows[0]["features"], list) and isinstance(rows[0]["label"], int)
    images = plain_rows(Resolver().open_data("digits", DataOptions()).split("test"), [0, 5])
    assert isinstance(images[0]["image"], np.ndarray) and images[1]["image"].shape == (8, 8)
    teacher = Prototypes("digits", Prototypes.Options(data={"form": "features"}))
    logits = teacher.signals([{"x": np.array(row["features"])} for row in rows], "logits")["logits"]
    few = Prototypes("digits", Prototypes.Options(data={"form": "features"}, per_class=1, noise=2.0))
    worse = few.signals([{"x": row["features"]} for row in rows], "logits")["logits"]
    right, wrong = ((z.argmax(1) == [r["label"] for r in rows]).mean() for z in (logits, worse))
    assert right > 0.8 and wrong < right and abs(logits).max() <= 20.0001
    assert few.identity != teacher.identity

    # A text encoder of another family, through the door that is open to all.
    encoder = Resolver().task("text-embedding").tiny_recipe(tmp_path)["teacher"]
    source = encoder["source"] if isinstance(encoder, dict) else encoder
    told = {"day": ["the sun is up", "a bright noon"], "night": "the moon and the stars"}
    text = Resolver().teacher(Ref(source=f"zero-shot:{source}", classes=told), "text-classification")
    given = text.signals([{"text": "the moon and the stars"}, {"text": "a bright noon"}], "logits")["logits"]
    task, plain = Resolver().task("text-embedding"), Resolver().teacher(Ref(source=source), "text-embedding")
    examples = task.preparer(None, plain)([{"text": t} for t in (*told["day"], "a bright noon")])
    first, second, noon = plain.signals(examples, "embedding")["embedding"]
    day = (first + second) / 2
    expected = 20 * noon @ day / np.linalg.norm(noon) / np.linalg.norm(day)
    assert given[0, 1] == pytest.approx(20.0, abs=1e-3) and given[1, 0] == pytest.approx(expected, abs=0.1)
    assert text.classes == ["day", "night"] and text.layout("logits") == {"logits": (2,)}
    with pytest.raises(UsageError, match="description of each class"):
        _ = Resolver().teacher(Ref(source=f"zero-shot:{source}"), "text-classification").encoder


def test_a_bare_student_folder_says_its_task(tmp_path):
    student = NetworkClassifier("tabular-classification", {"network": "mlp", "shape": [4], "classes": ["a", "b"]})
    student.save(tmp_path)
    assert kdhub.load(tmp_path).task == "tabular-classification"
    (tmp_path / "config.json").write_text('{"network": "mlp"}')
    with pytest.raises(UsageError, match="task"):
        kdhub.load(tmp_path)


def test_a_fresh_head_is_no_damage_and_a_missing_body_is_told(tmp_path, caplog, capfd):
    folder = tiny.text_classifier(tmp_path)
    capfd.readouterr()
    TextClassifier.with_head(folder, ["x", "y", "z"], 0, {})
    assert not caplog.records and "REPORT" not in capfd.readouterr().err
    weights = load_file(folder / "model.safetensors")
    left = {n: v for n, v in weights.items() if "layer.0.attention" not in n}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    TextClassifier.with_head(folder, ["x", "y", "z"], 0, {})
    assert f"and {len(weights) - len(left) - 1} more weights: they begin at random" in caplog.text


def test_accuracy_of_each_class(tmp_path):
    recipe = {
        "task": "image-classification", "method": "supervised", "student": "mlp:8", "options": {"epochs": 3},
        "data": {"train": [{"source": "digits", "split": "train", "limit": 200}]},
        "evaluation": {"data": [{"source": "digits", "split": "test"}], "options": {"per_class": True}, "cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    measures = [m for m in run.report["measures"] if m["subject"] == "student"]
    classes = {m["variant"]["class"]: m for m in measures if m["variant"]}
    assert sorted(classes) == [str(i) for i in range(10)] and {m["metric"] for m in classes.values()} == {"accuracy"}
    whole = next(m["value"] for m in measures if m["metric"] == "accuracy" and not m["variant"])
    assert sum(m["value"] * m["examples"] for m in classes.values()) == pytest.approx(whole * 397)
