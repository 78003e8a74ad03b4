"""What `kdhub list`, `show` and `cache list` tell people about plugins and the catalogue."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml

from kdhub.errors import CompatibilityError
from kdhub.recipes.chain import resolve_recipe
from kdhub.signals.store import Field, SignalStore
from kdhub.teacher import Teacher
from kdhub.verbs import cache, listing


def run(monkeypatch, capsys, *arguments):
    from kdhub.cli import main

    monkeypatch.setattr(sys, "argv", ["kdhub", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_a_list_has_its_columns_in_either_number(monkeypatch, capsys):
    lists = [run(monkeypatch, capsys, "list", what) for what in ("method", "methods")]
    assert lists[0] == lists[1] and "PAPER" in lists[0]


def test_teachers_of_the_catalogue_give_what_their_kind_gives():
    records = {r["name"]: r for r in listing.rows("teachers")}
    assert records["minilm-l6"]["gives"] == ["embedding"]


@pytest.mark.parametrize(("section", "name"), [("recipes", "leaf-minilm-l3"), ("datasets", "scifact")])
def test_show_prints_the_whole_entry_as_yaml(section, name):
    from kdhub.catalogue.catalog import default_catalog

    (item,) = listing.show(name)
    head, _, body = listing.describe(item).partition("\n")
    entry = {k: v for k, v in default_catalog().get(section, name).items() if k not in ("name", "schema")}
    assert head.endswith(name) and yaml.safe_load(body) == entry


def test_a_student_cut_from_a_black_box_is_refused_before_anything_is_made():
    for student in ("layers:2", "static", "config:layers=1"):
        with pytest.raises(CompatibilityError, match="openai:m has none here") as refused:
            resolve_recipe(method="leaf", teacher="openai:m", student=student)
        assert refused.value.hint == "students that fit: hf, member, packaged, path, space, words"
    assert resolve_recipe(method="leaf", teacher="openai:m", student="path:./x").teacher.source == "openai:m"


def test_cache_list_calls_a_teacher_by_its_name(isolated):
    class Named(Teacher):
        identity = {"kind": "toy", "files": {"model.safetensors": "0" * 64}}
        provenance = {"id": "org/toy"}
        layout = signals = None

    for teacher, name in ((None, "a toy"), (Named("x"), "org/toy")):
        if teacher is not None:
            assert teacher.facts == {}
        key = {"teacher": Named.identity, "signal": "embedding"}
        store = SignalStore.open(isolated / "signals", key, [Field("embedding", "float32", (2,))])
        store.fill(np.zeros((1, 12), np.uint8), [1], lambda rows: {"embedding": np.zeros((len(rows), 2), np.float32)})
        assert [s["teacher"] for s in cache.list_stores()["stores"]] == [name]


def test_defaults_for_some_tasks_are_told():
    item = next(item for item in listing.show("dkd") if item["kind"] == "method")
    told = {option["name"]: option["description"] for option in item["options"]}
    assert told["others_weight"].endswith("; 0.5 for next-token tasks") and "next-token" not in told["target_weight"]
