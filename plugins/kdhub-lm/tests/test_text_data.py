"""Catalogue entries of text, and running text in blocks."""

import gzip
import hashlib
import json
import os

import pytest

import kdhub
from kdhub.catalogue.rows import catalog_data, written
from kdhub.errors import DataError, UsageError

TEXTS = {
    "tinyshakespeare": {"train": (3642, "texts"), "validation": (203, "texts"), "test": (202, "texts")},
    "wikitext2": {"validation": (1779, "texts"), "test": (1981, "texts")},
    "wiki-split": {name: (5000, "responses") for name in ("train", "validation", "test")},
    "multidomain-math": {"train": (508, "texts")},
    "multidomain-law": {"train": (636, "texts")},
    "instructions": {
        "seed": (175, "responses"),
        "user-oriented": (252, "responses"),
        "mt-bench": (80, "rows"),
        "vicuna": (80, "rows"),
    },
    "alpaca-eval-outputs": {"gpt4": (805, "responses"), "gpt4-over-alpaca": (805, "preferences")},
}


def opened(name, **options):
    return kdhub.open_data(name, options=options)


def test_blocks_are_the_lines_in_order(tmp_path):
    path = tmp_path / "play.jsonl"
    lines = [f"line {n}" + " word" * (n % 7) if n % 5 else "" for n in range(200)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    with pytest.raises(DataError, match="empty text"):
        opened(f"blocks:path:{path}").split("train")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": line or "-"}) + "\n" for line in lines))
    data = opened(f"blocks:path:{rows}", characters=80, held_out=0.2)
    train, validation, test = (list(data.split(name)["text"]) for name in ("train", "validation", "test"))
    assert "\n".join([*train, *validation, *test]) == "\n".join(line or "-" for line in lines), (
        "nothing is lost or torn"
    )
    assert len(test) == pytest.approx(len(train) / 8, abs=1) == len(validation) and max(map(len, train)) <= 160
    with pytest.raises(UsageError, match="held_out between 0 and 1"):
        opened(f"blocks:path:{rows}", held_out=1.0)


def test_columns_of_an_entry_may_be_templates(tmp_path):
    """Nested columns too; in a sandbox, for a catalogue may be a stranger's."""
    path = tmp_path / "tasks.jsonl.gz"
    rows = [{"q": "2+2", "a": [{"out": "4"}]}, {"q": "3+3", "a": [{"out": "6"}], "hint": "add"}]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    columns = {"prompt": "{{ q }}{% if hint %} ({{ hint }}){% endif %}", "response": "{{ a[0].out }}"}
    source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    entry = {"format": "responses", "splits": {"train": {"columns": columns, "sources": [source]}}}
    table = catalog_data("tasks", entry, data_dir=tmp_path).split("train")
    assert [dict(row) for row in table] == [
        {"prompt": "2+2", "response": "4"}, {"prompt": "3+3 (add)", "response": "6"}
    ]  # fmt: skip
    assert "unsafe" in written("{{ q.__class__.__mro__ }}")({"q": "x"}).cause
    entry["splits"]["train"]["columns"]["response"] = "{{ b[0].out }}"
    with pytest.raises(DataError, match="2 of 2 rows are bad: 2 no text by the template"):
        catalog_data("tasks", entry, data_dir=tmp_path).split("train")


@pytest.mark.skipif(not os.environ.get("KDHUB_DATA"), reason="KDHUB_DATA is not set")
@pytest.mark.parametrize("name", TEXTS)
def test_entries_of_text(name):
    data = opened(name)
    for split, (rows, form) in TEXTS[name].items():
        assert (len(data.split(split)), data.form(split)) == (rows, form)
