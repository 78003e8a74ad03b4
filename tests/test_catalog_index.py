"""Published students of the catalogue by way of its index: as the files are now, whatever became of the index."""

from __future__ import annotations

import os
import random
import time

import pytest
import yaml

import kdhub
from kdhub.catalogue import index as _catalog_index
from kdhub.catalogue.catalog import Catalog, default_catalog
from kdhub.errors import UnknownNameError, UsageError

COMMIT = "a" * 40


@pytest.fixture
def put(isolated):
    """Write an entry of the user's catalogue, and give its file."""

    def put(name, folder=isolated / "config" / "registry" / "published", **keys):
        folder.mkdir(parents=True, exist_ok=True)
        entry = {"summary": name, "repo": f"me/{name}", "commit": COMMIT, "task": "toy-vectors", "method": "leaf"}
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**entry, **keys}))
        return file

    return put


@pytest.fixture
def unhurried(monkeypatch):
    """Files are trusted by their time at once, so that what is read again can be counted."""
    monkeypatch.setattr(_catalog_index, "YOUNG", -1)


def names(*words, **options):
    return [found.name for found in kdhub.search(*words, local=True, **options)]


def test_filters_and_sorts_are_those_of_a_hub(put, toys):
    put("small", teacher="org/large", results={"toy-error on points test": 0.6}, parameters=5, updated="2026-01-01")
    put("good", method="kd", results={"toy-error on points test": 0.2, "score on points test": 0.8}, parameters=50)
    put("rows", kind="dataset", task="other", results={"toy-error on points test": 0.4}, updated="2026-02-01")
    assert names() == ["rows", "small", "good"], "the newest first, those of unknown age last"
    assert names(method="leaf") == ["rows", "small"] and names(task="other") == ["rows"]
    assert names("LARGE leaf") == ["small"] == names(teacher="org/large") and names("nothing") == []
    assert names(sort="toy-error") == ["good", "rows", "small"], "lower is better"
    assert names(sort="score") == ["good", "rows", "small"] and names(sort="score", limit=1) == ["good"]
    assert names(sort="toy-error on points test", limit=2) == ["good", "rows"]
    assert names(sort="parameters") == ["small", "good", "rows"]
    (found,) = kdhub.search("good", local=True)
    assert (found.repo, found.commit, found.parameters) == ("me/good", COMMIT, 50)
    assert found.results["score"] == found.results["score on points test"] == 0.8
    with pytest.raises(UnknownNameError, match="no metric named 'scor'") as error:
        names(sort="scor")
    assert "score" in error.value.hint
    with pytest.raises(UsageError, match="--endpoint"):
        names(endpoint="http://127.0.0.1:1")


def test_it_follows_the_files_through_anything_done_to_them(put, isolated):
    """Random writes in place and by rename, removals, folders: each time as an index that is made again."""
    rng, made = random.Random(0), {}
    folder = isolated / "config" / "registry" / "published"
    for turn in range(40):
        name, inside = f"s{rng.randrange(8)}", rng.choice([folder, folder / "more"])
        for old in [p for p in folder.rglob(f"{name}.yaml")] if folder.exists() else ():
            if old.parent != inside or rng.random() < 0.3:
                old.unlink()
                made.pop(name)
        if rng.random() < 0.8:
            put(name, folder=inside, method=rng.choice(["leaf", "kd"]), parameters=turn)
            made[name] = turn
        expected = sorted(made, key=made.get)
        assert names(sort="parameters") == expected
        catalog = default_catalog()
        assert catalog.names("published") == sorted(made)
        entries, problems = catalog.entries("published")
        assert {n: e["parameters"] for n, e in entries.items()} == made and not problems
        assert all((("published", n) in catalog) == (n in made) for n in (f"s{i}" for i in range(8)))


def test_a_file_is_read_once_and_again_when_it_changed(put, unhurried, monkeypatch):
    read = []
    real = kdhub.catalogue.catalog.read
    monkeypatch.setattr("kdhub.catalogue.catalog.read", lambda file: read.append(file.stem) or real(file))
    files = [put(f"s{i}") for i in range(5)]
    assert len(names()) == len(read) == 5
    assert len(names()) == 5 and len(read) == 5
    put("s5")
    assert len(names()) == 6 and read[5:] == ["s5"]
    files[2].write_text(files[2].read_text().replace("leaf", "kd"))
    os.utime(files[2], (time.time() - 9000,) * 2)  # as copied with its old time
    assert names(method="kd") == ["s2"] and read[6:] == ["s2"]
    files[0].unlink()
    assert names() == ["s1", "s2", "s3", "s4", "s5"] and len(read) == 7


@pytest.mark.parametrize("harm", ["text", "half", "schema", "empty", "folder"])
def test_a_damaged_index_is_made_again(put, isolated, harm):
    put("one"), put("two", method="kd")
    path = isolated / "catalogue.sqlite"
    assert names() == ["one", "two"] and path.is_file()
    content = path.read_bytes()
    if harm == "folder":  # it cannot be kept at all
        path.unlink()
        path.mkdir()
    elif harm == "schema":
        import sqlite3

        with sqlite3.connect(path) as base:
            base.execute("UPDATE entries SET name = 'wrong'")
            base.execute("PRAGMA user_version = 999")
        base.close()
    else:
        path.write_bytes({"text": b"no database " * 1000, "half": content[:5000] + b"\0" * 9000, "empty": b""}[harm])
    assert names() == ["one", "two"] == default_catalog().names("published") and names(method="kd") == ["two"]
    assert path.is_dir() or path.stat().st_size > 8192


def test_an_earlier_folder_covers_up_a_later_one(put, tmp_path):
    put("a", method="kd"), put("b", method="kd")
    put("a", folder=tmp_path / "mine" / "published", method="leaf")
    catalog = Catalog.default(tmp_path / "mine")
    assert catalog.names("published") == ["a", "b"]
    assert catalog.get("published", "a")["method"] == "leaf" and catalog.get("published", "b")["method"] == "kd"
    assert [e["name"] for e in catalog.index("published").search([], {"method": "kd"}, "updated", True, 9)] == ["b"]


def test_one_broken_file_spoils_nothing_and_names_are_suggested(put):
    put("student-of-many"), put("other", results={"score on x": "much", "fine": True, "nan": float("nan")})
    put("broken").write_text("a: [1")
    put("list").write_text("- 1")
    assert names() == ["other", "student-of-many"] and kdhub.search("other", local=True)[0].results == {}
    entries, problems = default_catalog().entries("published")
    assert list(entries) == ["other", "student-of-many"]
    assert any("broken.yaml" in p for p in problems) and any("list.yaml" in p for p in problems)
    with pytest.raises(UnknownNameError) as error:
        default_catalog().path("published", "student-of-mny")
    assert error.value.matches == ["student-of-many"]


def test_a_search_needs_no_network_and_nothing_heavy(put, run_python):
    put("one")
    code = """
import sys
import kdhub
assert [f.name for f in kdhub.search(local=True)] == ["one"]
print(*({"pydantic", "numpy", "datasets", "torch", "huggingface_hub", "transformers"} & set(sys.modules)))
"""
    done = run_python(code)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr
