"""Pictures that a task draws of what teacher, start and student gave on the same rows."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import toy
from PIL import Image

import kdhub
from kdhub import pictures
from kdhub.comparison.comparison import Result, cell_folder
from kdhub.comparison.page import page
from kdhub.evaluation.card_check import check_card
from kdhub.pictures import Picture
from kdhub.recipes.recipe import Layer, build
from kdhub.recipes.run import Run
from kdhub.testing import checks_of
from kdhub.training import pictured
from kdhub.verbs import publish as verb

FILE = "plots/rows-vectors.png"
SENTENCE = "Vectors as colours: teacher, student-before, student."


@pytest.fixture
def recipe(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Vectors, "drawn", 5)
    options = {"batch_size": 8, "max_steps": 4, "checkpoint_steps": 2, "precision": "float32"}
    return {
        "task": "toy-vectors",
        "method": "toy-hint",
        "options": options,
        **toy.Vectors().tiny_recipe(tmp_path),
        "name": "t",
    }


def test_teacher_start_and_student_are_drawn_on_the_first_rows(recipe, tmp_path, monkeypatch):
    run = kdhub.distill(recipe, out=tmp_path / "run")
    drawn = np.asarray(Image.open(run.folder / FILE))
    assert drawn.shape == (5, 3, toy.OUTPUTS)
    assert len({drawn[:, i].tobytes() for i in range(3)}) == 3, "three subjects, three columns"
    test = toy.points().split("test")[:5]["x"]
    theirs = toy.Linear("1", toy.Linear.Options()).signals([{"x": x} for x in test], "vector")["vector"]
    np.testing.assert_allclose(drawn[:, 0], np.clip(theirs, -1, 1) * 127 + 128, atol=1.01)
    noted = {"file": FILE, "sentence": SENTENCE, "of": "the first 5 rows of toy-points test"}
    assert run.provenance["pictures"] == [noted]
    assert not (run.folder / "drawn").exists()

    card = (run.folder / "README.md").read_text()
    said = "Vectors as colours: teacher, student-before, student."
    assert f"![{said}]({FILE})\n\n{said} Shown: the first 5 rows of toy-points test." in card
    assert not [p for p in check_card(card) if "plots" in p]
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])
    assert FILE in kdhub.publish(run.folder, "me/toy", licence="mit", dry_run=True).files


def test_a_run_that_was_broken_off_is_drawn_alike(recipe, tmp_path, monkeypatch):
    whole = kdhub.distill(recipe, out=tmp_path / "whole")
    monkeypatch.setattr(toy.Hint, "fail_at", 3)
    with pytest.raises(KeyboardInterrupt):
        kdhub.distill(recipe, out=tmp_path / "broken")
    assert {p.name for p in (tmp_path / "broken/drawn").iterdir()} == {"teacher.npz", "student-before.npz"}
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    resumed = kdhub.distill(resume=tmp_path / "broken")
    assert (resumed.folder / FILE).read_bytes() == (whole.folder / FILE).read_bytes()


def test_pictures_that_fail_are_left_out_with_a_warning(recipe, tmp_path, monkeypatch, caplog):
    def fails(*given):
        raise ZeroDivisionError("oh")

    run, task = Run.create(tmp_path / "run", build([Layer("test", recipe)])), toy.Vectors()
    outputs, data = toy.Outputs(np.zeros((16, 3)), np.zeros((16, 3))), [(toy.points(), "test")]
    pictured.draw(run, task, data)
    assert not caplog.text, "nothing was kept, as in a run without evaluation data"
    wrong = lambda *given: [Picture("../Vectors.svg", "Black.", b"<svg>")]  # noqa: E731
    for name, does, said in (
        ("to_draw", fails, "ZeroDivisionError: oh"),
        ("to_draw", lambda *given: {"what": [{}]}, "allow_pickle=False"),
        ("draw", fails, "ZeroDivisionError: oh"),
        ("draw", wrong, "'../Vectors.svg' is not a name like answers.png"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(toy.Vectors, name, does)
            pictured.keep(run, task, "student", outputs)
            pictured.draw(run, task, data)
        assert said in caplog.text, name
        caplog.clear()
        pictured.forget(run)
    assert "pictures" not in run.provenance and not (run.folder / "plots").exists()


def test_what_a_picture_must_be():
    png = toy.png(np.zeros((2, 2), np.uint8))
    good = Picture("a-b.png", "Black.", png)
    assert pictures.problems([good, Picture("move.gif", "A loop.", b"GIF89a")]) == []
    for name, sentence, content, said in (
        ("A.png", "Black.", png, "is not a name"),
        ("a.svg", "Black.", png, "is not a name"),
        ("a.gif", "Black.", png, "does not hold what its name says"),
        ("a.png", "Black", png, "needs a sentence"),
        ("a.png", "x" * pictures.LONGEST + ".", png, "needs a sentence"),
        ("a.png", "Black.", png + bytes(pictures.LARGEST), "bytes, more than 4,194,304"),
    ):
        (problem,) = pictures.problems([Picture(name, sentence, content)])
        assert said in problem
    assert pictures.problems([good] * 2) == ["'a-b.png' stands for several pictures"]
    many = [Picture(f"a{i}.png", "Black.", png) for i in range(pictures.MOST + 1)]
    assert pictures.problems(many) == [f"there are {len(many)} pictures, more than {pictures.MOST}"]


def test_the_kit_sees_faults_of_drawing(recipe, monkeypatch):
    (check,) = [c for c in checks_of("kdhub-toy", kind="task") if c.name == "draws_the_first_rows"]
    check()
    made, counter = toy.Vectors.draw, itertools.count()
    for name, does, said in (
        ("to_draw", lambda task, outputs, n: {"vectors": outputs.vectors}, "16 rows of vectors, and drawn is 5"),
        ("to_draw", lambda task, outputs, n: {"vectors": [{}]}, "gives vectors as object"),
        ("draw", lambda task, data, split, given: made(task, data, split, {"teacher": given["teacher"]}), "teacher"),
        ("draw", lambda *given: [], "draws nothing of student"),
        ("draw", lambda *given: [Picture("a.png", "Black.", b"")], "does not hold what its name says"),
        ("draw", lambda *given: [Picture("a.gif", f"{next(counter)}.", b"GIF89a")], "another one when"),
    ):
        with monkeypatch.context() as patch, pytest.raises((AssertionError, KeyError), match=said):
            patch.setattr(toy.Vectors, name, does)
            check()


def test_a_page_has_the_pictures_of_each_arm(tmp_path):
    png = toy.png(np.zeros((2, 2), np.uint8))
    for arm, seed in (("a", 3), ("b", 3), ("b", 4)):
        folder = cell_folder(tmp_path, arm, seed)
        (folder / "plots").mkdir(parents=True)
        (folder / FILE).write_bytes(png)
        (folder / "recipe.yaml").write_text("{schema: 1, task: toy-vectors, method: toy-hint, student: mlp:2}")
        noted = [{"file": FILE, "sentence": f"{arm} <b>.", "of": "the first 2 rows"}]
        (folder / "provenance.json").write_text(json.dumps({"pictures": noted}))
    cell_folder(tmp_path, "b", 3).joinpath(FILE).unlink()
    plan = {"name": "n", "arms": {"a": {}, "b": {}}, "seeds": [3, 4], "recipe": {}}
    made = page(Result(plan, "m", "d", {"m": True}, "a", [], {}, tmp_path), "")
    assert made.count("<figure>") == 1 and 'src="data:image/png;base64,iVBOR' in made
    assert "<figcaption>a, seed 3: a &lt;b&gt;. Shown: the first 2 rows.</figcaption>" in made
