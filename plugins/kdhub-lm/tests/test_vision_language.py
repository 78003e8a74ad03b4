"""Methods of language models on images and texts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kdhub_lm.data.triage import Rules, triaged
from kdhub_tasks.language.generation import Answer
from kdhub_tasks.vision_language import tiny
from kdhub_tasks.vision_language.teachers import VlmTeacher

import kdhub

TASK = "image-text-to-text"


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    made = kdhub.open_task(TASK).tiny_recipe(folder)
    options = {"max_steps": 2, "batch_size": 8, "precision": "float32"}
    return made | {"task": TASK, "evaluation": {"data": []}, "options": options}


def asked_for(monkeypatch):
    """How many rows teachers were asked for."""
    asked, own = [], VlmTeacher.signals

    def signals(self, examples, kind):
        asked.extend(example["content"] for example in examples)
        return own(self, examples, kind)

    monkeypatch.setattr(VlmTeacher, "signals", signals)
    return asked


def test_a_teacher_is_asked_for_each_picture_once(recipe, tmp_path, monkeypatch):
    """A second method asks for nothing; a changed pixel is one row more."""
    rows = kdhub.open_data("digit-questions:which,sum", options={"rows": 16, "held_out": 2}).split("train").to_list()
    kept = [{name: row[name] for name in ("image", "prompt", "response")} for row in rows]
    file = tmp_path / "rows.jsonl"

    def distil(method, name):
        file.write_text("".join(json.dumps(row) + "\n" for row in [*kept, kept[0]]))
        data = {"train": [{"source": f"path:{file}"}]}
        kdhub.distill(recipe | {"method": method, "data": data}, out=tmp_path / name, page=False)

    asked = asked_for(monkeypatch)
    distil("taid", "first")
    assert len(asked) == len({*asked}) == 16
    distil("kd", "second")
    assert len(asked) == 16
    kept[3]["image"][5][5] ^= 1
    distil("taid", "third")
    assert len(asked) == len({*asked}) == 17


def test_a_live_teacher_with_another_processor(recipe, tmp_path):
    """The student writes, and a teacher of other patches judges what it wrote by pixels of its own."""
    student = f"config:{json.dumps(tiny.configuration(1, patch=4))}"
    options = recipe["options"] | {"lmbda": 1.0, "max_new_tokens": 3}
    run = kdhub.distill(
        recipe | {"method": "gkd", "student": student, "options": options}, out=tmp_path / "run", page=False
    )
    terms = [json.loads(line).get("terms") for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert any(given and given["teacher"] > 0 for given in terms)


def test_triage_keeps_the_pictures():
    pictures = [np.full((2, 2), n, np.uint8) for n in range(3)]
    rows = [{"image": picture, "prompt": "sum?", "response": str(n)} for n, picture in enumerate(pictures)]
    said = {0: ["0", "0"], 1: ["1", "7"], 2: ["7", "7"]}
    model = lambda numbers, k: [[Answer(text, True) for text in said[n]] for n in numbers]  # noqa: E731
    expert = lambda numbers, _: [(str(n), True) for n in numbers]  # noqa: E731
    fates = list(triaged(rows, model, expert, Rules(k=2)))
    assert [fate["origin"] for fate in fates] == ["none", "self", "expert"]
    assert [fate["traces"] for fate in fates] == [[], ["1"], ["2"]]
    assert all(fate["image"] is picture for fate, picture in zip(fates, pictures))


def published(run, monkeypatch, home):
    """A run published, pulled with another cache, verified, and opened by plain transformers: the same logits."""
    sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
    from fake_hub import talked_to
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with talked_to(monkeypatch):
        done = kdhub.publish(run.folder, "me/vlm", licence="mit")  # the usage lines are run: transformers alone
        assert "pipeline_tag: image-text-to-text" in done.card and "AutoModelForImageTextToText" in done.card
        monkeypatch.setenv("KDHUB_HOME", str(home))
        found = kdhub.verify("me/vlm")
        assert found.status == "verified", found
        folder = kdhub.pull("me/vlm", to=home / "pulled").folder
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    student = kdhub.load(folder)
    (example,) = kdhub.open_task(TASK).preparer(student, None)([{"image": picture, "prompt": "sum?", "response": "7"}])
    (own,) = student.signals([example], "logits")["logits"]
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    given = processor(text="<s><image>sum?7<s>", images=[picture], add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        plain = model(**given).logits[0, -3:-1]
    assert np.allclose(own, plain.numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_student_is_one_of_the_library(recipe, tmp_path, monkeypatch):
    tiny = recipe | {"method": "supervised", "evaluation": {"data": ["digit-sum"], "cost": False}}
    del tiny["teacher"]
    published(kdhub.distill(tiny, out=tmp_path / "run"), monkeypatch, tmp_path / "home")


@pytest.mark.slow
def test_from_nothing_to_a_distilled_student(tmp_path, monkeypatch):
    run = kdhub.distill("taid-vlm", out=tmp_path / "run")
    assert np.mean(rates(run)) > 0.5
    published(run, monkeypatch, tmp_path / "home")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_three_stages_on_pictures(seed, tmp_path):
    """Reinforcement raises the share of right sums, tuning does not lower the mean, and triage counts each prompt."""
    run = kdhub.distill("metis-rise-vlm", seed=seed, out=tmp_path / "run")
    before, after = rates(run, "student-before"), rates(run)  # the start is the student of the second stage
    assert np.mean(after) > np.mean(before) - 0.02
    reinforced = kdhub.distill("metis-rise-vlm-rl", seed=seed, out=tmp_path / "rl")
    assert rates(reinforced)[1] > rates(reinforced, "student-before")[1]


def rates(run, subject="student"):
    """Shares of right answers, of each kind of question."""
    report = json.loads((run.folder / "report.json").read_text())
    return [m["value"] for m in report["measures"] if m["metric"] == "exact-match" and m["subject"] == subject]
