"""autodistil from end to end, on tiny networks."""

import json

import numpy as np
import pytest
import torch
from kdhub_search.families.relations import last_attention, relations
from kdhub_search.methods.autodistil import AutoDistil
from kdhub_tasks.classification import tiny

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.named_layers import Taps
from kdhub.rows import plain_rows

SPACES = {
    "a": {"layers": [1, 2], "hidden": [8, 12], "ratio": [1, 2], "heads": [1, 2]},
    "b": {"layers": [2, 3], "hidden": [16], "ratio": [2], "heads": [2]},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tiny.text_classifier(folder / "teacher", layers=3, of="BertForMaskedLM", mask=True)
    for name, seed in (("train", 1), ("validation", 2)):
        rows = [json.dumps(row) + "\n" for row in tiny.rows(48, seed)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


def distil(out, texts, spaces=SPACES, **options):
    return kdhub.distill(
        {
            "task": "fill-mask", "method": "autodistil", "teacher": {"source": f"path:{texts / 'teacher'}"},
            "student": {"source": "nested", "spaces": spaces},
            "data": {use: [{"source": f"path:{texts / use}.jsonl"}] for use in ("train", "validation")},
            "options": {"epochs": 6, "batch_size": 16, "lr": 3e-3, "max_flops": None, **options},
            "evaluation": {"data": [], "cost": False},
        },
        out=out,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, texts):
    return distil(tmp_path_factory.mktemp("runs") / "whole", texts, max_params=3500)


def losses(run, subject="student"):
    measures = [m for m in run.report["measures"] if m["metric"] == "relation-loss" and m["subject"] == subject]
    found = [m for m in measures if m.get("variant")]
    return {m["variant"]["member"]: m["value"] for m in found}


def test_every_member_comes_closer_and_the_best_within_budget_is_chosen(run):
    before, after = losses(run, "student-before"), losses(run)
    assert before.pop("b-3x16-r2-h2") == pytest.approx(0, abs=1e-6)  # the teacher itself
    assert len(after) == 18 and all(after[name] < before[name] for name in before)
    found = json.loads((run.folder / "search.json").read_text())
    within = {n: c["loss"] for n, c in found["members"].items() if c["parameters"] <= 3500}
    assert set(within) == set(found["within_budget"]) and 0 < len(within) < 18
    assert (
        found["chosen"] == min(within, key=within.get)
        and found["members"][found["chosen"]]["loss"] == within[found["chosen"]]
    )
    family = kdhub.load(run.student_folder)
    assert family.module.chosen == found["chosen"]
    for space, names in family.module.spaces.items():
        assert found["best_of_each_sub_space"][space] == min(
            (n for n in names if n in within), key=within.get, default=None
        )
    for name, costs in found["members"].items():
        assert costs["parameters"] == sum(p.numel() for p in family.cut(name).module.parameters())


def test_a_stopped_run_ends_with_the_same_bytes(run, texts, tmp_path, monkeypatch):
    """Stopped after the first sub-space was trained."""
    own = AutoDistil.members

    def stop(self, *given):
        if self.space == "b":
            raise KeyboardInterrupt
        return own(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(AutoDistil, "members", stop)
        with pytest.raises(KeyboardInterrupt):
            distil(tmp_path / "stopped", texts, max_params=3500)
    resumed = kdhub.distill(resume=tmp_path / "stopped")
    files = [one.student_folder / "model.safetensors" for one in (run, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes() and losses(run) == losses(resumed)


def test_a_member_starts_a_student_of_another_task(run, texts, tmp_path):
    """The best within a budget by its held-out loss, with a fresh head on the very slice; or with random weights."""
    budget = {"parameters": 3500}
    for source, beside in (("member", budget), ("untrained:member", {"settings": budget})):
        made = kdhub.distill(
            {
                "task": "text-classification", "method": "supervised",
                "student": {"source": f"{source}:path:{run.student_folder}", **beside},
                "data": {"train": [{"source": f"path:{texts / 'train'}.jsonl"}]},
                "options": {"max_steps": 1, "lr": 1e-9, "batch_size": 8}, "evaluation": {"data": [], "cost": False},
            },
            out=tmp_path / source.partition(":")[0],
        )  # fmt: skip
        student = kdhub.load(made.student_folder)
        config = student.module.model.config
        family = kdhub.load(run.student_folder)
        part = family.cut(family.module.chosen).module.model
        assert (config.head_dim, config.hidden_size) == (8, part.config.hidden_size)
        weights = [one.bert.encoder.layer[0].attention.self.query.weight for one in (student.module.model, part)]
        assert torch.allclose(*weights, atol=1e-6) == (source == "member")
        assert "kdhub.load" in student.usage() and student.library == "kdhub"


def test_members_of_a_step():
    method = AutoDistil(AutoDistil.Options(n_random=3))
    method.space = "a"

    class Module:
        spaces = {"a": list("abcdefgh")}
        others = staticmethod(lambda names: [])

    student = type("Student", (), {"module": Module})
    drawn = [method.members(student, np.random.default_rng([0, step])) for step in range(50)]
    assert all(one[0] == "a" and one[-1] == "h" and len(set(one)) == 5 for one in drawn)
    assert set("".join(map("".join, drawn))) == set("abcdefgh")
    assert drawn[7] == method.members(student, np.random.default_rng([0, 7]))


def test_a_vision_transformer_and_a_search_by_proxy(tmp_path):
    digits = {"source": "digits", "split": "train", "limit": 32}
    facts = {"shape": [8, 8], "classes": [str(i) for i in range(10)], "mean": [[0.3]], "std": [[0.4]]}
    vit = kdhub.open_student("vit:patch=4,width=16,layers=3,heads=2", "image-classification", facts=facts)
    (tmp_path / "teacher").mkdir()
    vit.save(tmp_path / "teacher")
    proxy = {
        "task": "image-classification", "method": "supervised", "student": "mlp:4", "data": {"train": [digits]},
        "options": {"max_steps": 2, "batch_size": 16}, "evaluation": {"data": [digits], "cost": False},
    }  # fmt: skip
    run = kdhub.distill(
        {
            "task": "image-classification", "method": "autodistil", "teacher": f"path:{tmp_path / 'teacher'}",
            "student": {"source": "nested", "spaces": SPACES},
            "data": {"train": [digits], "validation": [digits]},
            "options": {
                "max_steps": 4, "batch_size": 16, "lr": 3e-3, "search": "proxy", "proxy": proxy, "candidates": 2,
                "max_flops": 0.5,
            },
            "evaluation": {"data": [], "cost": False},
        },
        out=tmp_path / "run",
    )  # fmt: skip
    found = json.loads((run.folder / "search.json").read_text())
    assert set(found["scores"]) == set(found["within_budget"][:2])
    assert found["scores"][found["chosen"]] == max(found["scores"].values())
    before, after = losses(run, "student-before"), losses(run)
    assert before.pop("b-3x16-r2-h2") == pytest.approx(0, abs=1e-6)
    assert all(after[name] < before[name] for name in before)
    # To whom all four patches are alike has a quarter everywhere.
    task, of = kdhub.open_task("image-classification"), last_attention(vit.module)
    table = task.training_table([(kdhub.open_data("digits", limit=32), "train")])
    batch = vit.collate(list(task.preparer(vit, None)(plain_rows(table, range(32)))))
    taps = Taps(vit.module, of.kinds)
    with torch.no_grad(), taps.reading():
        vit.module(batch)
    given = [relations(x, 2, None) for x in of.of(taps.signals(batch))]
    assert found["loss_all_alike"] == pytest.approx(sum((x - 0.25).square().mean().item() for x in given), rel=1e-4)
    assert any("all tokens of a row are alike" in note for note in run.report["notes"])


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"max_params": 10}, UsageError, "the least is [0-9,]+, of a-1x8-r1-h1"),
        ({"relation_heads": 3}, UsageError, r"must divide .* \(relation_heads=3, width=16\)"),
        ({"relation_heads": 16}, UsageError, r"width of every member's attention \(relation_heads=16, width=8\)"),
        ({"search": "proxy"}, UsageError, "needs a recipe"),
        ({"spaces": {"a": {**SPACES["a"], "hidden": [20]}}}, UsageError, "hidden=20, there 16"),
    ],
)
def test_refused(tmp_path, texts, changes, error, said):
    with pytest.raises(error, match=said):
        distil(tmp_path / "a", texts, **changes)


def test_other_students_are_refused(tmp_path, texts):
    teacher = f"path:{texts / 'teacher'}"
    train = {"source": f"path:{texts / 'train'}.jsonl"}
    recipe = {"task": "fill-mask", "method": "autodistil", "teacher": teacher, "student": teacher}
    with pytest.raises(CompatibilityError, match="trains nested slices"):
        kdhub.distill({**recipe, "data": {"train": [train]}}, out=tmp_path / "a")
