"""The catalogue: stacking, names, errors, and every file that comes with kdhub."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdhub.catalogue.catalog import Catalog, builtin_folder, default_catalog
from kdhub.errors import RecipeError, UnknownNameError, UsageError

OURS = Catalog([*sorted(Path(__file__).parents[1].glob("plugins/*/*/registry")), builtin_folder()])
WHOLE = {"stsb", "scifact", "nfcorpus", "sentences", "ro-sts", "ro-en", "zh-stsb", "lcqmc", "zh-idioms"}
CHECKED = ("teachers", "students", "datasets", "published")

SHA256 = "ab" * 32
GOOD = f"""
summary: words
format: texts
splits:
  train:
    sources:
      - {{file: a.jsonl, sha256: {SHA256}}}
"""


@pytest.fixture
def folder(tmp_path):
    """Make a catalogue folder: `folder("mine", {"datasets/a": "yaml text"})`."""

    def make(name: str, files: dict[str, str]):
        for path, text in files.items():
            file = tmp_path / name / f"{path}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / name

    return make


def problems(folder, text: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        Catalog([folder("bad", {"datasets/bad": text})]).check("datasets", "bad")
    assert error.value.exit_code == 2
    return error.value.problems


# ---- stacking


def test_order_is_given_environment_user_plugins_builtin(folder, isolated, monkeypatch):
    stack = {
        where: {f"datasets/{n}": f"summary: {where}" for n in names}
        for where, names in {
            "given": ["a"],
            "environment": ["a", "b"],
            "plugin": ["a", "b", "c", "d", "stsb"],
        }.items()
    }
    monkeypatch.setenv("KDHUB_CATALOG", str(folder("environment", stack["environment"])))
    user = isolated / "config" / "registry" / "datasets"
    user.mkdir(parents=True)
    for name in "abc":
        (user / f"{name}.yaml").write_text("summary: user")
    builtin = folder("builtin", {"datasets/e": "summary: builtin", "datasets/stsb": "summary: builtin"})
    monkeypatch.setattr("kdhub.catalogue.catalog.builtin_folder", lambda: builtin)
    catalog = Catalog.default(folder("given", stack["given"]), [folder("plugin", stack["plugin"])])
    won = {name: catalog.get("datasets", name)["summary"] for name in ("a", "b", "c", "d", "e", "stsb")}
    assert won == {"a": "given", "b": "environment", "c": "user", "d": "plugin", "e": "builtin", "stsb": "plugin"}
    covered = [(s.name, s.by.parents[1].name) for s in catalog.shadowed if s.name in ("a", "stsb")]
    assert covered == [("a", "given"), ("a", "given"), ("a", "given"), ("stsb", "plugin")]


def test_the_default_catalogue_has_those_of_plugins():
    assert set(OURS.names("datasets")) <= set(default_catalog().names("datasets"))


def test_recipes_may_stand_in_folders(folder):
    catalog = Catalog([folder("mine", {"recipes/leaf/small": "summary: x", "recipes/top": "summary: y"})])
    assert catalog.names("recipes") == ["small", "top"]
    again = Catalog([folder("twice", {"recipes/a/one": "{}", "recipes/b/one": "{}"})])
    with pytest.raises(RecipeError, match="same name"):
        again.names("recipes")


def test_a_named_folder_must_be_there(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="--catalog"):
        Catalog.default(tmp_path / "nowhere")
    monkeypatch.setenv("KDHUB_CATALOG", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="KDHUB_CATALOG"):
        Catalog.default()


def test_unknown_name_suggests():
    with pytest.raises(UnknownNameError) as error:
        OURS.get("datasets", "sifact")
    assert error.value.matches[0] == "scifact"
    assert "kdhub list datasets" in error.value.hint


# ---- bad files


def test_all_problems_of_a_file_at_once(folder):
    found = problems(
        folder,
        f"""
sumary: words
format: pictures
splits:
  train:
    fingerprnt: 12
    sources:
      - {{file: a.jsonl}}
      - {{file: /etc/passwd, sha256: {SHA256}}}
      - {{hub: org/name, sha256: {SHA256}}}
      - {{revision: main}}
      - {{file: a.jsonl, sha256: abc}}
""",
    )
    assert all("bad.yaml: " in problem for problem in found)
    for part in (
        "unknown key 'sumary'; did you mean 'summary'?",
        "'summary' is missing",
        "'format' is 'pictures'",
        "unknown key 'splits.train.fingerprnt'; did you mean 'fingerprint'?",
        "a file has its sha256",
        "a file is a path below KDHUB_DATA",
        "sha256 says nothing about a hub",
        "one of file, hub and generator",
        "'splits.train.sources.4.sha256' is 'abc'",
    ):
        assert any(part in problem for problem in found), (part, found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "line 2"),
        ("- a\n- b", "is a mapping of keys, this is a list"),
        ("", "this is empty"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("name: other\n" + GOOD, "'name' is 'other', the file is named 'bad'"),
    ],
)
def test_files_that_are_no_entry(folder, text, says):
    (problem,) = problems(folder, text)
    assert says in problem and "bad.yaml" in problem


def test_one_broken_file_spoils_no_list(folder):
    catalog = Catalog([folder("mine", {"datasets/a": GOOD, "datasets/b": "a: [1"})])
    entries, broken = catalog.entries("datasets")
    assert list(entries) == ["a"] and len(broken) == 1
    with pytest.raises(RecipeError, match="b.yaml"):
        catalog.check_all()


def test_names_need_no_heavy_import(run_python):
    code = """
import sys
from kdhub.catalogue.catalog import default_catalog
catalog = default_catalog()
assert catalog.names("datasets") and catalog.get("datasets", "stsb")["summary"]
print(*({"pydantic", "numpy", "datasets", "torch", "huggingface_hub", "pyarrow"} & set(sys.modules)))
"""
    done = run_python(code)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


# ---- what comes with kdhub


@pytest.mark.parametrize(("section", "name"), [(s, n) for s in CHECKED for n in OURS.names(s)])
def test_every_entry(section, name):
    entry = OURS.check(section, name)
    assert entry.summary and len(entry.summary) <= 120
    if name in WHOLE:
        # Every split has a file with a sha256 and a fingerprint; a Hub source has a pinned commit.
        for split in entry.splits.values():
            assert split.fingerprint
            assert any(source.file for source in split.sources)
            assert all(len(source.revision or "") == 40 for source in split.sources if source.hub)


def test_the_text_embedding_sets_are_there():
    assert WHOLE <= set(OURS.names("datasets"))
