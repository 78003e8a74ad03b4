"""Rows as students: what the task, the method `as-data` and the metrics of files make of them."""

from __future__ import annotations

import json

import datasets
import pytest
from kdhub_tasks.rows.metrics import distinct_2, distinct_rows

import kdhub
from kdhub import DatasetStudent
from kdhub.errors import DataError, RecipeError, UsageError


@pytest.fixture
def jsonl(tmp_path):
    def write(name: str, rows: list[dict]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"jsonl:{tmp_path / name}"

    return write


def test_what_metrics_of_files_count(home, tmp_path):
    rows = [{"text": "a b c", "by": "one"}, {"text": "a b d", "by": "one"}, {"text": "a b c", "by": "one"}]
    splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_dict({"n": [1, 2]})}
    DatasetStudent("data-set", splits).save(tmp_path)
    assert distinct_rows(tmp_path) == {"test": 1, "train": pytest.approx(2 / 3)}
    assert distinct_2(tmp_path) == {"train": 3 / 6}, "a b, b c, b d; `by` says the same everywhere"


def test_each_key_below_data_is_a_split_and_evaluation_rows_among_them_are_found(home, jsonl, tmp_path):
    train = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(5)]
    held = [{"prompt": "p1", "response": "r1"}, {"prompt": "p1", "response": "r2"}]
    recipe = {
        "task": "data-set",
        "method": "as-data",
        "student": {"source": "rows", "language": ["en"]},
        "data": {
            "train": jsonl("train.jsonl", train),
            "more": jsonl("more.jsonl", [{"prompt": "p9", "response": "r"}]),
        },
        "evaluation": {"data": [jsonl("held.jsonl", held)]},
    }
    run = kdhub.distill(recipe, out=tmp_path / "run")
    student = kdhub.load(run.folder)
    assert {name: rows.to_list() for name, rows in student.splits.items()} == {
        "train": train,
        "more": [{"prompt": "p9", "response": "r"}],
    }
    found = {(m["metric"], m.get("split")): m["value"] for m in run.report["measures"]}
    assert found["shared-rows", "train"] == 0.5 and found["rows", None] == 6
    assert found["distinct-rows", "train"] == found["distinct-rows", "more"] == 1
    used = {d["use"]: d["rows"] for d in run.provenance["data"]["use"]}
    assert used == {"train": 5, "more": 1, "evaluation": 2}
    assert "language:\n- en" in (run.folder / "README.md").read_text()


def test_what_makes_no_data_set(home, jsonl, tmp_path):
    with pytest.raises(UsageError, match="there are no rows to keep"):
        kdhub.distill(method="as-data", out=tmp_path / "none")
    with pytest.raises(RecipeError, match="languages"):
        kdhub.distill(method="as-data", set={"student.languages": ["en"]}, data=jsonl("a", [{"a": 1}]))
    mixed = [jsonl("a.jsonl", [{"a": 1}]), jsonl("b.jsonl", [{"a": "one"}])]
    with pytest.raises(DataError, match="do not make one table"):
        kdhub.distill(method="as-data", data=mixed, out=tmp_path / "mixed")


def test_a_column_names_the_split_of_each_row(home, jsonl, tmp_path):
    rows = [{"n": n, "split": "test" if n % 3 == 1 else "train"} for n in range(6)]
    recipe = {
        "task": "data-set", "method": "as-data", "student": "rows", "data": {"train": jsonl("rows.jsonl", rows)},
        "options": {"split_by": "split"}, "evaluation": {"cost": False},
    }  # fmt: skip
    student = kdhub.load(kdhub.distill(recipe, out=tmp_path / "run").folder)
    assert {name: table["n"][:] for name, table in student.splits.items()} == {"train": [0, 2, 3, 5], "test": [1, 4]}
    with pytest.raises(DataError, match="no column 'kind' to divide them by, only n, split"):
        kdhub.distill({**recipe, "options": {"split_by": "kind"}}, out=tmp_path / "no")
