"""`kdhub label`: the teacher's outputs are stored ahead, and the run asks it nothing."""

from __future__ import annotations

import json

import pytest

import kdhub
from kdhub.errors import UsageError
from kdhub.verbs.label import label


@pytest.fixture
def recipe(toys, tmp_path):
    import toy

    plan = {**toy.Vectors().tiny_recipe(tmp_path), "task": "toy-vectors", "method": "toy-hint"}
    evaluation = {"data": [{"source": "toy-points", "split": "test"}], "cost": False}
    return {**plan, "data": {"train": "toy-points"}, "evaluation": evaluation}


def rows(made):
    return {(one.signal, one.of): (one.rows, one.found) for one in made.labels}


def test_a_run_asks_its_teacher_nothing_afterwards(recipe, tmp_path, monkeypatch):
    import toy

    made = label(recipe)
    assert rows(made) == {("vector", "training"): (40, 0), ("vector", "evaluation"): (16, 0)}
    first = made.labels[0]
    assert first.tokens == 50 and first.bytes > 40 * 3 * 2 and first.seconds >= 0 and first.computed == 40
    assert rows(label(recipe)) == {("vector", "training"): (40, 40), ("vector", "evaluation"): (16, 16)}
    asked = toy.Linear.asked
    assert asked > 0
    plain = kdhub.distill(recipe, out=tmp_path / "run")
    assert toy.Linear.asked == asked and plain.provenance["signals"]["vector"]["computed"] == 0


def test_a_dry_run_counts_what_is_missing_and_asks_for_a_few_rows(recipe, monkeypatch):
    from kdhub.verbs import label as verb

    monkeypatch.setattr(verb, "PROBE", 8)
    made = label(recipe, dry_run=True)
    assert rows(made) == {("vector", "training"): (40, 0), ("vector", "evaluation"): (16, 0)}
    assert made.labels[0].bytes > 40 * 3 * 2, "of all that are missing"
    assert rows(label(recipe, dry_run=True)) == {("vector", "training"): (40, 8), ("vector", "evaluation"): (16, 8)}
    assert rows(label(recipe)) == {("vector", "training"): (40, 16), ("vector", "evaluation"): (16, 16)}
    done = label(recipe, dry_run=True)
    assert [(one.computed, one.seconds, one.bytes) for one in done.labels] == [(0, 0.0, 0)] * 2


def test_one_that_is_killed_goes_on_with_what_is_missing(recipe, monkeypatch):
    import toy

    group, whole = toy.Linear.group_rows, toy.Linear.signals
    monkeypatch.setattr(toy.Linear, "group_rows", 8)
    calls = []

    def broken(self, examples, kind):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, examples, kind)

    monkeypatch.setattr(toy.Linear, "signals", broken)
    with pytest.raises(KeyboardInterrupt):
        label(recipe)
    assert group != 8 and rows(label(recipe))["vector", "training"] == (40, 16)


def test_the_rows_of_a_data_set_for_one_signal(toys):
    made = label(signal="vector", task="toy-vectors", teacher="linear:1", data="toy-points")
    assert rows(made) == {("vector", "toy-points train"): (40, 0)}
    assert rows(label(signal="vector", task="toy-vectors", teacher="linear:1", data="toy-points", dry_run=True)) == {
        ("vector", "toy-points train"): (40, 40)
    }
    with pytest.raises(UsageError, match="--signal vector needs --task, --data as well"):
        label(signal="vector", teacher="linear:1")
    with pytest.raises(UsageError, match="leave out recipe, method and --set"):
        label(signal="vector", method="toy-hint")
    with pytest.raises(UsageError, match="--signal takes no --student"):
        label(signal="vector", task="toy-vectors", teacher="linear:1", data="toy-points", student="mlp:2")


def test_what_cannot_be_labelled(recipe, capsys):
    with pytest.raises(UsageError, match="toy-plain has no teacher"):
        label({**{k: v for k, v in recipe.items() if k != "teacher"}, "method": "toy-plain"})
    with pytest.raises(UsageError, match="asks nothing of a teacher before it trains") as error:
        label({**recipe, "method": "toy-mix", "evaluation": {"data": [], "cost": False}})
    assert "live" in error.value.hint
    live = label({**recipe, "method": "toy-mix"})
    assert rows(live) == {("vector", "evaluation"): (16, 0)}, "it is measured"
    own = label({**recipe, "method": "toy-label"})
    assert rows(own)["vector", "training"] == (40, 0) and "course of its own" in own.notes[0]


def test_on_the_command_line(recipe, tmp_path, monkeypatch, capsys):
    from kdhub.cli import app

    (tmp_path / "r.json").write_text(json.dumps(recipe))
    for words in (["--json"], ["--dry-run"]):
        monkeypatch.setattr("sys.argv", ["kdhub", "label", str(tmp_path / "r.json"), *words])
        with pytest.raises(SystemExit) as end:
            app.run()
        assert not end.value.code
    out = capsys.readouterr().out
    assert json.JSONDecoder().raw_decode(out)[0]["labels"][0]["computed"] == 40
    assert "SIGNAL" in out and "MISSING" in out
