"""Sub-pseudo labels: the numbers of the specification, what a map is a function of, and what training leaves."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kdhub_vision.methods.spl import HEAD, MAP, Spl
from kdhub_vision.subconcepts.drawing import matrix
from kdhub_vision.subconcepts.labels import DROPPED, Labelling, LabelMap, counted, label_map, labelled, raw_labels
from safetensors.torch import load_file

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import Progress
from kdhub.pictures import problems
from kdhub.rows import Signals

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from fake_hub import talked_to  # noqa: E402

W, T = np.array([(0, 0), (0, 1), (0, 1), (1, 1), (2, 0), (0, 1), (2, 2), (1, 1), (2, 0), (1, 2)]).T
N = np.array([[1, 3, 0], [0, 2, 1], [2, 0, 1]])
CLASSES = ("a", "b", "c")
TASK = "image-classification"


def how(**options):
    return Labelling(**{"min_count": 1, **options})


def same_up_to_names(one, other):
    """Whether two labellings put the same items together."""
    return len({*zip(one.tolist(), other.tolist())}) == len({*one.tolist()}) == len({*other.tolist()})


def test_the_numbers_of_the_specification():
    assert raw_labels(W, T, 3).tolist() == [0, 1, 1, 4, 6, 1, 8, 4, 6, 5]
    assert counted(W, T, 3).tolist() == N.tolist()
    kept = label_map(N, CLASSES, how(num_classes=5))
    assert kept.names == ("a", "b", "c", "a, like b", "c, like a", "b, rest")
    assert kept.sizes.tolist() == [1, 2, 1, 3, 2, 1]
    fewer = label_map(N, CLASSES, how(num_classes=5, residual="drop"))
    assert len(fewer.names) == 5 and fewer.sizes.sum() == 9 and fewer(W, T)[-1] == DROPPED
    merged = label_map(N, CLASSES, how(reduction="merge"))
    assert merged.sizes.tolist() == [1, 2, 1, 2, 3, 1]
    assert merged.names == ("a", "b", "c", "a, off query", "b, off query", "c, off query")
    assert label_map(N, CLASSES, how(reduction="merge", merge_axis="weak")).sizes.tolist() == [1, 2, 1, 3, 1, 2]
    assert label_map(N, CLASSES, how(reduction="none")).sizes.tolist() == [1, 2, 1, 3, 1, 2]
    assert label_map(N, CLASSES, how(labels="weak")).sizes.tolist() == [4, 3, 3]
    assert label_map(N, CLASSES, how(labels="pseudo")).sizes.tolist() == [3, 5, 2]
    assert label_map(N, CLASSES, how(labels="agree-only"))(W, T).tolist() == [0, -1, -1, 1, -1, -1, 2, 1, -1, -1]


def test_ties_rare_pairs_and_empty_agreement():
    tied = np.array([[0, 2, 2], [2, 5, 0], [0, 0, 5]])
    made = label_map(tied, CLASSES, how(num_classes=4))
    # (0, 0) has no items and makes no class, though M counts it; of three pairs of two items the smallest s is kept.
    assert made.names == ("b", "c", "a, like b", "a, rest", "b, rest")
    rare = label_map(tied, CLASSES, how(min_count=3))
    assert rare.names == ("b", "c", "a, rest", "b, rest")
    assert label_map(tied, CLASSES, how(min_count=3, reduction="none")).sizes.tolist() == [5, 5, 2, 2, 2]


def test_a_teacher_that_says_the_query_or_one_query_alone():
    rng = np.random.default_rng(0)
    w, t = rng.integers(0, 4, (2, 300))
    for reduction in ("none", "merge", "density", "semantic"):
        made = label_map(counted(w, w, 4), "wxyz", how(reduction=reduction))
        assert same_up_to_names(made(w, w), w) and len(made.names) == 4
    one = np.zeros_like(t)
    for options in ({"reduction": "none"}, {"reduction": "merge"}, {"num_classes": 7}):
        assert same_up_to_names(label_map(counted(one, t, 4), "wxyz", how(**options))(one, t), t)


@pytest.mark.parametrize("reduction", ["none", "merge", "density", "semantic"])
@pytest.mark.parametrize("residual", ["merge_weak", "drop"])
def test_a_map_does_not_depend_on_the_order_and_loses_no_item(reduction, residual):
    rng = np.random.default_rng(1)
    weak, logits = rng.integers(-1, 6, 500), rng.normal(0, 2, (500, 6)).astype(np.float32)
    options = Labelling(reduction=reduction, residual=residual, num_classes=9, teacher_conf_threshold=0.4)
    made, labels = labelled(weak, logits, "abcdef", options)
    order = rng.permutation(500)
    shuffled, again = labelled(weak[order], logits[order], "abcdef", options)
    assert shuffled.to_dict() == made.to_dict() and (again == labels[order]).all()
    assert made.sizes.sum() == (labels >= 0).sum() and (made.sizes > 0).all()
    assert (np.bincount(labels[labels >= 0]) == made.sizes).all() and (labels[weak < 0] == DROPPED).all()
    assert made.counts.sum() + made.unsure_counts.sum() == (weak >= 0).sum() and made.unsure_counts.sum() > 0
    assert LabelMap.from_dict(json.loads(json.dumps(made.to_dict()))).to_dict() == made.to_dict()


def test_the_matrix_is_a_picture():
    assert not problems([matrix(label_map(N, CLASSES, how(num_classes=5, residual="drop")))])


def test_options_out_of_range():
    with pytest.raises(UsageError, match=r"num_classes must be 4 to 9 for 3 classes \(num_classes=10\)"):
        label_map(N, CLASSES, how(num_classes=10))
    with pytest.raises(UsageError, match="no item has a label"):
        label_map(np.array([[0, 2], [1, 0]]), "ab", how(labels="agree-only"))


def test_the_loss_is_of_the_pair_and_of_the_teacher():
    method = Spl(Spl.Options(distill_weight=0.5, min_count=1))
    method.map = label_map(N, CLASSES, how(num_classes=5))
    student = kdhub.open_student("mlp:4", TASK, facts={"shape": [2, 2], "classes": list(CLASSES), "mean": 0, "std": 1})
    method.modules = method.extras(student, None)
    assert method.modules[HEAD].out_features == 6
    torch.nn.init.zeros_(method.modules[HEAD].weight)
    method.modules[HEAD].bias.data = torch.tensor([0.0, 0, 0, 3, 0, 0])
    given = Signals({"logits": torch.zeros(2, 3), "features": torch.zeros(2, 4)})
    said = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])  # b and c
    batch = {"labels": torch.tensor([0, 1])}  # the pairs (a, b), label 3, and (b, c), the rest of b, label 5
    terms = method.objective(given, Signals({"logits": said}), batch, Progress(0, 1, 0.0))
    total = np.log(np.exp(3) + 5)
    assert terms["labels"].item() == pytest.approx((total - 3 + total) / 2, abs=1e-6)
    p = np.exp(said[0].numpy()) / np.exp(said[0].numpy()).sum()
    assert terms["teacher"].item() == pytest.approx(0.5 * (p * np.log(3 * p)).sum(), abs=1e-6)


# -- runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path):
    """A network that knows digits well: a nearest-mean classifier of clean rows."""
    rows = kdhub.open_data("query-videos").split("clean").to_list()
    x = np.stack([np.asarray(row["image"], float).ravel() / 255 for row in rows])
    means = np.stack([x[[row["label"] == c for row in rows]].mean(0) for c in range(10)])
    facts = {"shape": [8, 8], "classes": [str(c) for c in range(10)], "mean": 0.0, "std": 1.0}
    model = kdhub.open_student("mlp:64", TASK, facts=facts)
    with torch.no_grad():
        model.module.hidden[0].weight.copy_(torch.eye(64)), model.module.hidden[0].bias.zero_()
        model.module.head.weight.copy_(torch.from_numpy(6 * means))
        model.module.head.bias.copy_(torch.from_numpy(-3 * (means**2).sum(1)))
    (tmp_path / "teacher").mkdir()
    model.save(tmp_path / "teacher")
    return f"path:{tmp_path / 'teacher'}"


def recipe(teacher, **more):
    return {
        "task": TASK, "method": "spl", "teacher": teacher, "student": "mlp:32",
        "data": {"train": [{"source": "query-videos", "split": "train", "options": {"videos": 100}}]},
        "options": {"epochs": 6, "lr": 1e-2, "precision": "float32", "min_count": 5, **more.pop("options", {})},
        "evaluation": {"data": []}, **more,
    }  # fmt: skip


def probed(run, out):
    return kdhub.distill(
        {
            "task": TASK, "method": "supervised", "student": f"path:{run.student_folder}",
            "data": {"train": [{"source": "query-videos", "split": "clean"}]},
            "options": {"epochs": 40, "lr": 3e-2, "precision": "float32", "rates": {"student": 0, "head": 1}},
            "evaluation": {"data": [{"source": "query-videos", "split": "test"}], "cost": False},
        },
        out=out,
    )  # fmt: skip


def accuracy(run, subject="student"):
    (found,) = [m for m in run.report["measures"] if m["metric"] == "accuracy" and m["subject"] == subject]
    return found["value"]


def test_pre_training_then_a_probe(home, teacher, tmp_path, monkeypatch):
    """The map goes with the student from link to link and through a hub, the disposable head nowhere; the second run
    asks the teacher nothing."""
    run = kdhub.distill(recipe(teacher), out=tmp_path / "spl")
    saved = json.loads((run.student_folder / "enclosed" / f"{MAP}.json").read_text())
    assert len(saved["labels"]) > 20 and saved["classes"] == [str(c) for c in range(10)]
    assert sum(map(sum, saved["counts"])) == 600
    shapes = {name: tuple(t.shape) for name, t in load_file(run.student_folder / "model.safetensors").items()}
    assert shapes["head.weight"] == (10, 32) and not any(HEAD in name for name in shapes)
    assert (run.folder / "plots" / "student-queries-and-teacher.png").exists()
    assert "its classifier is not trained" in (run.folder / "README.md").read_text()
    probe = probed(run, tmp_path / "probe")
    assert json.loads((probe.student_folder / "enclosed" / f"{MAP}.json").read_text()) == saved
    before = load_file(run.student_folder / "model.safetensors")
    after = load_file(probe.student_folder / "model.safetensors")
    assert torch.equal(before["hidden.0.weight"], after["hidden.0.weight"])
    assert accuracy(probe) > accuracy(probe, "student-before") + 0.4
    fewer = kdhub.distill(recipe(teacher, options={"labels": "agree-only"}), out=tmp_path / "agree")
    of_fewer = json.loads((fewer.student_folder / "enclosed" / f"{MAP}.json").read_text())
    assert fewer.provenance["signals"]["logits"]["computed"] == 0
    assert len(of_fewer["labels"]) == 10 and of_fewer["counts"] == saved["counts"]
    with talked_to(monkeypatch):
        kdhub.publish(probe.folder, "me/probe", licence="mit")
        monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
        assert kdhub.verify("me/probe").status == "verified"
        pulled = kdhub.pull("me/probe").folder
    assert kdhub.open_student(f"path:{pulled}", TASK).enclosed == {MAP: saved}


def test_rows_with_sub_pseudo_labels(home, teacher):
    def opened(**options):
        given = {"teacher": teacher, "options": {"videos": 30}, "min_count": 2, **options}
        data = kdhub.open_data({"source": "sub-pseudo:query-videos", "options": given})
        return data.split("train").to_list()

    rows, weak, pseudo = opened(group="video"), opened(labels="weak"), opened(labels="pseudo")
    agreed = opened(labels="agree-only")
    assert len(rows) == len(weak) == 180 and len(agreed) == sum(r["weak"] == r["predicted"] for r in rows)
    assert all(row["label"] == row["weak"] for row in weak) and all(r["label"] == r["predicted"] for r in pseudo)
    for row in rows:
        agreement = row["weak"] == row["predicted"]
        assert row["label"] in (
            [row["weak"]] if agreement else [f"{row['weak']}, like {row['predicted']}", f"{row['weak']}, rest"]
        )
    shown = [row["digit"] == int(row["weak"]) for row in rows]
    assert 0.3 < np.mean(shown) < 0.7


def test_texts_get_labels_by_the_same_code(home, tmp_path):
    from kdhub_tasks.classification import tiny

    tiny.text_classifier(tmp_path / "teacher")
    rows = "".join(json.dumps({**row, "page": n // 4}) + "\n" for n, row in enumerate(tiny.rows(24)))
    (tmp_path / "pages.jsonl").write_text(rows)
    options = {"teacher": f"path:{tmp_path / 'teacher'}", "reduction": "none"}
    data = kdhub.open_data({"source": f"sub-pseudo:path:{tmp_path / 'pages.jsonl'}", "options": options})
    labels = set(data.split("train")["label"])
    assert labels <= {"bad", "good", "bad, like good", "good, like bad"} and len(labels) > 2


def test_bad_input(home, teacher, tmp_path, caplog):
    with pytest.raises(UsageError, match="sub-pseudo:digits needs a model"):
        kdhub.open_data("sub-pseudo:digits")
    image = [[0] * 8] * 8

    def rows(*labelled):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps({"image": image, "label": q, "page": p}) + "\n" for q, p in labelled))
        options = {"teacher": teacher, "group": "page"}
        return {"source": f"sub-pseudo:path:{file}", "options": options}

    with pytest.raises(DataError, match=r"row 3: page 'x' has the weak labels 1 and 2"):
        kdhub.open_data(rows((1, "x"), (1, "x"), (2, "x"))).split("train")
    with pytest.raises(DataError, match=r"read by the teacher: label 'surfing' is not one of the 10 classes"):
        kdhub.open_data(rows(("surfing", "x"))).split("train")
    kdhub.open_data(rows((1, "x"), (1, "x"), (2, "y"))).split("train")
    assert "1 of 2 groups have one item" in caplog.text
    groups = {"odd": [1], "even": [2]}
    other = recipe(teacher, data={"train": [{"source": "labels:digits", "options": {"groups": groups}}]})
    with pytest.raises(CompatibilityError, match=r"the student has the classes .*the teacher"):
        kdhub.distill(other, out=tmp_path / "other")
