"""Searches as runs: budgets, files, what stops and goes on, and what is refused."""

import json

import pytest
import torch
from kdhub_search.methods import diswot
from kdhub_search.methods.diswot_dagger import DiswotDagger
from kdhub_search.networks import network_of
from kdhub_search.scores import LastMap

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.files import read_sealed
from kdhub.method import Progress
from kdhub.rows import Signals

SPACE = "space:residual:width={w},stage1={a},stage2=1,stage3=1"
CHOICES = {"w": [2, 3, 4], "a": [1, 2]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    classes = [str(i) for i in range(10)]
    facts = {"shape": [8, 8], "classes": classes, "mean": [[0.3]], "std": [[0.4]]}
    kdhub.open_student("resnet:8", "image-classification", seed=5, facts=facts).save(folder)
    return f"path:{folder}"


def search(out, teacher, *, student=None, limit=24, **options):
    recipe = {
        "task": "image-classification",
        "method": "diswot",
        "teacher": {"source": teacher},
        "student": student or {"source": SPACE, "choices": CHOICES},
        "data": {"train": [{"source": "digits", "split": "train", "limit": limit}]},
        "options": {
            "evaluations": 8, "population": 3, "sample": 2, "n_init": 1, "score_rows": 8, "rescored": 2,
            "distiller": "none", "max_params": None, **options,
        },
        "evaluation": {"data": [], "cost": False},
    }  # fmt: skip
    return kdhub.distill(recipe, out=out)


def files(run):
    return {path.name: path.read_bytes() for path in sorted((run.folder / "candidates").iterdir())}


def test_a_search_keeps_to_its_budget_and_goes_on_where_it_was_stopped(tmp_path, teacher, monkeypatch):
    run = search(tmp_path / "whole", teacher, max_params=3200)
    result, known = run.read_json("search.json"), [*map(read_sealed, sorted((run.folder / "candidates").iterdir()))]
    assert [one["number"] for one in known] == list(range(1, len(known) + 1)) and len(result["history"]) == 8
    assert 2 <= len(known) < 6 and all(one["parameters"] <= 3200 for one in known)
    assert all(one["score"] == -(one["semantic"] + one["relation"]) for one in known)
    assert {"random-search", "parameters", "jacobian"} == set(result["baselines"])
    largest = max(known, key=lambda one: one["parameters"])
    assert result["baselines"]["parameters"]["source"] == largest["source"]
    again = [one for one in known if "rescored" in one]  # the two best of those that were proposed
    proposed = sorted((known[n - 1] for n in set(result["history"])), key=lambda one: -one["score"])
    assert {one["source"] for one in again} == {one["source"] for one in proposed[:2]}
    assert result["found"] == max(again, key=lambda one: one["rescored"])
    student = kdhub.load(run.folder)
    assert sum(p.numel() for p in student.module.parameters()) == result["found"]["parameters"]

    scored, own = [], diswot.Candidates._scored

    def stopping(self, candidate, inits):
        scored.append(candidate)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return own(self, candidate, inits)

    monkeypatch.setattr(diswot.Candidates, "_scored", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "stopped", teacher, max_params=3200)
    resumed = kdhub.distill(resume=tmp_path / "stopped")
    assert len(scored) == len(known) + 2 + 1  # each once, the two best again, and the one that was stopped
    assert files(resumed) == files(run)
    assert (resumed.folder / "search.json").read_bytes() == (run.folder / "search.json").read_bytes()
    weights = [one.student_folder / "model.safetensors" for one in (resumed, run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_ranks_by_other_things_and_searches_at_random(tmp_path, teacher):
    run = search(tmp_path / "a", teacher, search="random", rank_by="parameters", semantic="off", reduction="squared")
    result = run.read_json("search.json")
    assert result["found"]["parameters"] == max(json.loads(text)["parameters"] for text in files(run).values())
    assert result["found"]["semantic"] == 0 and "rescored" not in result["found"]


def test_gradients_need_equal_widths(tmp_path, teacher):
    with pytest.raises(CompatibilityError, match="no candidate .* the teacher has 64 features, the candidate 8"):
        search(tmp_path / "a", teacher, semantic="grad")
    choices = {"w": [16], "a": [1, 2]}
    run = search(tmp_path / "b", teacher, student={"source": SPACE, "choices": choices}, semantic="grad", evaluations=2)
    assert run.read_json("search.json")["found"]["semantic"] > 0


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"student": "resnet:8"}, CompatibilityError, "searches a space of students, and the recipe names one"),
        ({"limit": 1}, DataError, "compares images with each other, and there is 1"),
        ({"max_params": 1000}, UsageError, "the smallest, residual:width=2,stage1=1,stage2=1,stage3=1, has 1,"),
        ({"max_flops": 1000}, UsageError, "within 1,000 FLOPs; the smallest"),
        ({"semantic": "off", "relation": False}, UsageError, "something to compare"),
    ],
)
def test_refused(tmp_path, teacher, changes, error, said):
    with pytest.raises(error, match=said):
        search(tmp_path / "a", teacher, **changes)


def test_a_teacher_of_other_classes(tmp_path):
    facts = {"shape": [8, 8], "classes": [*"0123456"], "mean": [[0.3]], "std": [[0.4]]}
    (tmp_path / "teacher").mkdir()
    kdhub.open_student("mlp:4", "image-classification", facts=facts).save(tmp_path / "teacher")
    with pytest.raises(CompatibilityError, match=" of [0-9]+ are in both"):
        search(tmp_path / "a", f"path:{tmp_path / 'teacher'}")


def test_a_teacher_whose_maps_cannot_be_seen():
    with pytest.raises(CompatibilityError, match="not one saved network"):
        network_of(object())


# -- the loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["norm", "squared"])
def test_both_distances_of_the_specification(reduction):
    """The examples of test_scores as maps of one position, two classes and three images."""
    method = DiswotDagger(DiswotDagger.Options(reduction=reduction, ce_weight=0.5, kd_weight=0.25, temperature=1.0))
    method._of_teacher, method._of_student = LastMap("layer:t:input", "t"), LastMap("layer:s:all", "s")
    method._weights, method._classifier = torch.eye(2), torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.zeros_(method._classifier.weight)
    logits = torch.zeros(3, 2)
    student = Signals({"logits": logits, "layer:s:all": torch.eye(3)[:, None, :].requires_grad_()})
    teacher = Signals({"logits": logits, "layer:t:input": torch.tensor([[1.0, 0], [0, 1], [1, 1]])})
    terms = method.objective(student, teacher, {"labels": torch.tensor([0, 1, -1])}, Progress(0, 1, 0.0))
    relation = {"norm": 1.240395 / 9, "squared": 0.170953}[reduction]
    assert terms["relation"].item() == pytest.approx(relation, abs=1e-6)
    # The teacher's semantic matrices: [[1,0],[0,0]], [[0,0],[0,1]], [[1,1],[1,1]] / sqrt 2; the student's are 0.
    semantic = {"norm": (1 + 1 + 2**0.5) / 3 / 4, "squared": (1 + 1 + 2) / 3 / 4}[reduction]
    assert terms["semantic"].item() == pytest.approx(semantic, abs=1e-6)
    assert terms["labels"].item() == pytest.approx(0.5 * 0.693147, abs=1e-6)
    assert terms["teacher"].item() == pytest.approx(0, abs=1e-6)
