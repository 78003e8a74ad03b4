"""A picture is a signal as a text is one: its settings in its name, its rows a seed and a condition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import Field
from safetensors.numpy import load_file

import kdhub
from kdhub.errors import UsageError
from kdhub.files import home
from kdhub.signals.settings import SignalSettings, own_noise
from kdhub.testing import checks_of, run_checks


@pytest.fixture
def painting(toys, monkeypatch):
    import toy_pictures

    monkeypatch.setattr(toy_pictures.Painter, "asked", 0)
    toys.register(toy_pictures, "kdhub-toy-pictures")
    return toy_pictures


def recipe(method="toy-draw", **options):
    return {
        "task": "toy-pictures", "method": method, "teacher": "painter", "student": "one-step",
        "data": {"train": "toy-seeds"}, "evaluation": {"data": [], "cost": False},
        "options": {"batch_size": 8, "epochs": 2, "lr": 0.05, "precision": "float32", "dropout": None, **options},
    }  # fmt: skip


def stores() -> dict[str, int]:
    found = {}
    for folder in (home() / "signals").iterdir():
        key = json.loads((folder / "store.json").read_text())["key"]
        found[key["signal"]] = sum(len(load_file(file)["keys"]) for file in folder.glob("*.safetensors"))
    return found


def test_pictures_are_stored_under_their_settings(painting, tmp_path):
    for name, steps in (("a", 4), ("again", 4), ("b", 1)):
        kdhub.distill(recipe(steps=steps), out=tmp_path / name)
    assert stores() == {'image:{"steps":4}': 24, 'image:{"steps":1}': 24} and painting.Painter.asked == 48
    (folder,) = [f for f in (home() / "signals").iterdir() if '"steps\\":4' in (f / "store.json").read_text()]
    groups = [load_file(file)["image"] for file in folder.glob("*.safetensors")]
    assert {group.dtype for group in groups} == {np.dtype(np.uint8)} and {g.shape[1:] for g in groups} == {(4, 4)}
    rows = list(painting.seeds().split("train"))
    expected = painting.drawn(painting.Brush(), rows, steps=4)
    assert sorted(x.tobytes() for x in np.concatenate(groups)) == sorted(x.tobytes() for x in expected)


def test_a_live_teacher_draws_what_is_stored_otherwise(painting, tmp_path):
    weights = {}
    for method in ("toy-draw", "toy-draw-live"):
        run = kdhub.distill(recipe(method, steps=3, max_steps=4), out=tmp_path / method)
        weights[method] = load_file(run.student_folder / "model.safetensors")
    training = run.provenance["training"]
    assert (training["live_teacher_calls"], training["live_teacher_rows"]) == (4, 32)
    for name, values in weights["toy-draw"].items():
        assert values == pytest.approx(weights["toy-draw-live"][name], abs=0.02), "but for the rounding to bytes"


def test_the_family_of_pictures_keeps_the_contracts(painting):
    """What the kit says of its teacher, student, task and data; pictures beside others are as they are alone."""
    checks = [
        c for kind in ("teacher", "student", "task", "dataset") for c in checks_of("kdhub-toy-pictures", kind=kind)
    ]
    results = list(run_checks(checks))
    assert [r for r in results if r.bad] == []
    passed = {r.check for r in results if r.outcome == "passed"}
    assert {"equal_examples_get_equal_signals", "models_do_not_see_the_batch"} <= passed


def test_settings_are_read_from_the_name(painting):
    drawing = painting.Drawing
    assert drawing().kind == "image:{}" and drawing(steps=4).kind == 'image:{"steps":4}'
    assert drawing.parse("image") == drawing.parse("image:{}") == drawing() == drawing.parse('image:{"steps":8}')
    assert drawing.parse('image:{"steps":8}').kind == "image:{}", "one name for one signal"
    assert drawing.names("image:{}") and not drawing.names("images")
    for kind, says in (
        ('image:{"step":4}', "step: Extra inputs"),
        ('image:{"steps":0}', "steps: "),
        ("image:4", "image:4"),
    ):
        with pytest.raises(UsageError, match=says) as refused:
            painting.Painter().layout(kind)
        assert "steps (steps from noise to the picture)" in refused.value.hint


class Said(SignalSettings):
    signal = "text"
    most: int = Field(8, ge=1, description="the most")
    how: str = Field("plain", description="the way")
    sides: tuple[int, int] = Field((2, 2), description="the sides")


def test_settings_are_named_in_one_way_and_told_where_they_do_not_fit():
    assert Said(how="\u00e9", most=4).kind == 'text:{"how":"\\u00e9","most":4}'
    assert Said.parse(Said(how="a:b").kind) == Said(how="a:b") and Said.names(Said(how="a:b").kind)
    for kind, said in (
        ('text:{"most":0,"more":1}', "most: Input should be greater than or equal to 1; more: Extra inputs are not"),
        ('text:{"sides":[1,"a"]}', "sides.1: Input should be a valid integer"),
        ("text:{", "Expecting property name"),
        ("text:[1]", ""),
    ):
        with pytest.raises(UsageError) as refused:
            Said.parse(kind)
        assert refused.value.message.startswith(f"signal {kind!r}: {said}")
        assert refused.value.hint == "settings of text: most (the most), how (the way), sides (the sides)"


def test_noise_is_of_the_row_alone():
    one, two = own_noise([7, 8], (2, 3)), own_noise([9, 8, 7], (2, 3))
    assert np.array_equal(one[0], np.random.default_rng(7).standard_normal((2, 3), np.float32))
    assert np.array_equal(one[0], two[2]) and np.array_equal(one[1], two[1]) and one.dtype == np.float32
    assert own_noise([], (2,)).shape == (0, 2) and own_noise([], (2,)).dtype == np.float32
