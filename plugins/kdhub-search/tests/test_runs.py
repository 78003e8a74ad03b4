"""Whole runs of each search and family: what was killed ends with the same bytes, two processes give what one gives,
and every member comes back from a hub bit for bit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kdhub_search.methods.autodistil import AutoDistil
from kdhub_search.methods.diswot import Diswot
from kdhub_search.methods.learngene_pool import LearngenePool
from kdhub_tasks.classification import tiny
from safetensors.torch import load_file

import kdhub
from kdhub.testing._ranks import pair
from kdhub.verbs import publish as publishing

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from fake_hub import talked_to  # noqa: E402

IMAGE = "image-classification"
FACTS = {"shape": [8, 8], "classes": [str(i) for i in range(10)], "mean": [[0.3]], "std": [[0.4]]}
SPACES = {
    "a": {"layers": [1, 2], "hidden": [8, 12], "ratio": [1], "heads": [1, 2]},
    "b": {"layers": [2, 3], "hidden": [16], "ratio": [2], "heads": [2]},
}
KINDS = {"pool": LearngenePool, "slices": AutoDistil, "texts": AutoDistil, "found": Diswot}
"""What is tried -> whose objective trains it last."""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Of each kind a run whose last training has six steps."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "vit").mkdir()
    kdhub.open_student("vit:patch=4,width=16,layers=3,heads=2", IMAGE, seed=5, facts=FACTS).save(folder / "vit")
    tiny.text_classifier(folder / "bert", layers=3, of="BertForMaskedLM", mask=True)
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(24)))
    digits = {"source": "digits", "split": "train", "limit": 24}
    scored = [{"source": "digits", "split": "test", "limit": 8}]  # what is published has a score; slices have a loss
    texts = {"source": f"path:{folder / 'texts.jsonl'}"}
    options = {"max_steps": 6, "epochs": 9, "batch_size": 8, "lr": 3e-3, "checkpoint_steps": 2, "precision": "float32"}

    def recipe(method, student, rows=digits, teacher="vit", **own):
        return {
            "task": IMAGE if rows is digits else "fill-mask", "method": method, "student": student,
            "teacher": f"path:{folder / teacher}", "data": {"train": [rows], "validation": [rows]},
            "options": {**options, **own}, "evaluation": {"data": scored * (method == "learngene-pool"), "cost": False},
        }  # fmt: skip

    nested = {"source": "nested", "spaces": SPACES}
    return {
        "pool": recipe("learngene-pool", {"source": "pool:patch=4,layers=3,heads=2", "widths": [8, 16]}),
        "slices": recipe("autodistil", nested, max_flops=None),
        "texts": recipe("autodistil", nested, texts, "bert", max_flops=None),
        "found": recipe(
            "diswot", {"source": "space:mlp", "choices": {"first": [4, 8], "second": [4]}},
            evaluations=4, population=2, sample=2, n_init=1, score_rows=8, rescored=1,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(recipes, tmp_path_factory):
    """Of each kind, distilled once."""
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = kdhub.distill(recipes[kind], out=tmp_path_factory.mktemp("runs") / kind)
        return made[kind]

    return run


def weights(folder):
    return folder / "student" / "model.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_in_its_last_training_ends_with_the_same_bytes(kind, recipes, runs, tmp_path, monkeypatch):
    own, method = KINDS[kind].objective, KINDS[kind]

    def objective(self, student, teacher, batch, progress):
        if progress.step == 3 and getattr(self, "space", "b") == "b":
            raise KeyboardInterrupt
        return own(self, student, teacher, batch, progress)

    with monkeypatch.context() as patched:
        patched.setattr(method, "objective", objective)
        with pytest.raises(KeyboardInterrupt):
            kdhub.distill(recipes[kind], out=tmp_path / "killed")
    assert not weights(tmp_path / "killed").exists()
    resumed = kdhub.distill(resume=tmp_path / "killed")
    assert weights(resumed.folder).read_bytes() == weights(runs(kind).folder).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives(kind, recipes, runs, tmp_path):
    pair().distil(recipes[kind], tmp_path / "both", timeout=600)  # a pool has three trainings
    one, two = (load_file(weights(folder)) for folder in (runs(kind).folder, tmp_path / "both"))
    assert one.keys() == two.keys()
    for name in one:  # a key's bias is added to all scores of a softmax: its gradient is rounding
        if not name.endswith(("key.bias", "in_proj_bias")):
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-5, msg=name)
    chosen = [folder / "search.json" for folder in (runs(kind).folder, tmp_path / "both")]
    if chosen[0].exists():
        found = [json.loads(path.read_text()) for path in chosen]
        what = "chosen" if "chosen" in found[0] else "found"
        assert found[0][what] == found[1][what]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(publishing, "_usage_problems", lambda *a: [])  # whether usage lines run is tested elsewhere
    with talked_to(monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize("kind", ["pool", "slices", "texts"])
def test_every_member_comes_back_from_a_hub(kind, runs, hub, tmp_path, monkeypatch):
    run = runs(kind)
    here = kdhub.load(run.folder)
    some = [*here.members][1]
    kdhub.publish(run.folder, "me/family", licence="mit")
    kdhub.publish(run.folder, "me/one", member=some, licence="mit")
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
    there, task = kdhub.load("me/family"), kdhub.open_task(here.task)
    rows = [{"x": x} for x in np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)]
    if kind == "texts":
        rows = task.preparer(here, None)([{"text": row["text"]} for row in tiny.rows(3)])

    def given(student):
        return student.signals(rows, "logits")["logits"]

    assert dict(there.members) == dict(here.members) and len(here.members) > 8
    for name in here.members:
        there.choose(name)
        cut, opened = here.cut(name), kdhub.load("me/family", member=name)
        for other in (there, opened):
            assert all(map(np.array_equal, given(cut), given(other))), name
        assert sum(p.numel() for p in opened.module.parameters()) == sum(p.numel() for p in cut.module.parameters())
    assert all(map(np.array_equal, given(kdhub.load("me/one")), given(here.cut(some))))
    for name in ("me/family", "me/one"):  # slices have no figures but those of their training
        assert kdhub.verify(name).status == ("verified" if kind == "pool" else "not-checkable")
