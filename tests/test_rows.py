"""Students that are rows: measured by their own files, priced, published, pulled, opened by `datasets`, verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub import serve
from huggingface_hub import constants

import kdhub
from kdhub.dataset_student import DatasetStudent, splits_in
from kdhub.errors import CompatibilityError, DataError, PublishError, UntrustedError
from kdhub.evaluation.card_check import check_card
from kdhub.evaluation.report import OWN_FILES, Report
from kdhub.hub.trust import split_card
from kdhub.recipes import chain as chain_of
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.resolve import Resolver
from kdhub.verbs import publish as verb

RECIPE = {
    "name": "points",
    "task": "toy-vectors",
    "method": "toy-label",
    "teacher": "linear:1",
    "student": "table",
    "data": {"train": "toy-points"},
    "evaluation": {"data": [{"source": "toy-points", "split": "test"}]},
}
FILE = "data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory, distil_toys):
    """A finished run whose student is rows; copy it to change it."""
    return distil_toys(RECIPE, tmp_path_factory.mktemp("rows"))


@pytest.fixture
def run(toys, made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """`load_dataset` as anyone calls it, with a cache of its own and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return lambda folder: datasets.load_dataset(str(folder))


def figures(report: Report) -> dict[tuple, float]:
    return {(m.metric, m.split): m.value for m in report.measures if m.dataset == OWN_FILES}


def edit(path: Path, change) -> None:
    """Change the rows of a Parquet file, its schema kept."""
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


# -- a run and its figures ------------------------------------------------------------------------------------


def test_rows_are_measured_by_their_own_files_by_run_evaluate_and_card_alike(run):
    report = Report.from_dict(kdhub.Run.open(run).report)
    (of_run,) = figures(report).items()
    assert of_run[0] == ("toy-spread", "train") and of_run[1] > 0
    assert [m.subject for m in report.measures if m.dataset == "toy-points"] == ["teacher"] * 1
    assert report.notes == ["the dataset is not run on evaluation data"]
    for what in (run, run / "student"):
        assert figures(kdhub.evaluate(what)) == dict([of_run])
    edit(run / "student" / FILE, lambda rows: [{**row, "y": [0.0] * 3} for row in rows])
    kdhub.Run.open(run).seal_student()
    assert figures(kdhub.evaluate(run)) == {("toy-spread", "train"): 0.0}, "it reads the files, not what was measured"
    card = (run / "README.md").read_text()
    assert f"| {OWN_FILES} train | toy-spread |" in card and "A data set, distilled from" in card


def test_rows_cost_rows_bytes_and_what_making_them_took(run):
    report = Report.from_dict(kdhub.Run.open(run).report)
    found = {m.metric: m.value for m in report.measures if m.dataset is None}
    assert found["rows"] == 40 and found["disk"] >= (run / "student" / FILE).stat().st_size and found["making"] >= 0
    assert set(found) == {"rows", "disk", "making", "toy-calls"} and found["toy-calls"] == 24
    again = kdhub.evaluate(run, cost=True)
    assert {m.metric: m.value for m in again.measures if m.dataset is None} == {
        k: found[k] for k in ("rows", "disk", "toy-calls")
    }


def test_what_servers_were_asked_for_is_a_cost():
    from kdhub.evaluation.cost import of_files

    spent = {"text:1": {"requests": 3, "answers": 3, "prompt_tokens": 10, "completion_tokens": 5, "cost": 0.25},
             "text:2": {"requests": 2, "prompt_tokens": 1, "completion_tokens": 1}}  # fmt: skip
    student = DatasetStudent("x", {"train": datasets.Dataset.from_dict({"a": [1, 2]})})
    found = of_files(student, Path("/nowhere"), {"spent": spent, "distilled": {"seconds": 1.5}})
    assert {m.metric: m.value for m in found} == {
        "rows": 2, "disk": 0, "requests": 5, "tokens": 17, "price": 0.25, "making": 1.5
    }  # fmt: skip


# -- the files ------------------------------------------------------------------------------------------------


def test_splits_are_saved_loaded_and_saved_to_the_same_bytes(isolated, tmp_path, opened):
    features = datasets.Features({"n": datasets.Value("int64"), "kind": datasets.ClassLabel(names=["a", "b"]),
                                  "image": datasets.Value("binary")})  # fmt: skip
    rows = [{"n": n, "kind": n % 2, "image": bytes([n % 256])} for n in range(2500)]
    table = datasets.Dataset.from_list(rows, features=features)
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    splits = {"train": table.shuffle(seed=1), "test": table.select(range(7)), "a.b_2": table.select([3])}
    DatasetStudent("x", splits, {"language": ["en"]}).save(first)
    loaded = DatasetStudent.load(first)
    loaded.save(second)
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file()]
    assert len(files) == 4 and all((first / p).read_bytes() == (second / p).read_bytes() for p in files)
    assert list(loaded.splits) == list(splits) and loaded.about == {"language": ["en"]} and loaded.task == "x"
    assert loaded.front_matter()["size_categories"] == ["1K<n<10K"]
    assert repr(loaded) == "<DatasetStudent of x: train 2,500 rows, test 7 rows, a.b_2 1 rows>"
    theirs = opened(first)
    for name, split in splits.items():
        assert theirs[name].features == features and theirs[name].to_list() == split.to_list()


def test_a_split_that_cannot_be_published_is_refused(isolated, tmp_path):
    table = datasets.Dataset.from_dict({"a": [1]})
    for name, rows, says in (("test-texts", table, "a split 'test-texts'"), ("train", table.select([]), "has no rows")):
        with pytest.raises(DataError, match=says):
            DatasetStudent("x", {name: rows}).save(tmp_path)
    DatasetStudent("x", {"train": table, "test": table}).save(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(DataError, match="has the splits 'test', its config.json names 'train', 'test'"):
        DatasetStudent.load(tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_that_lie_elsewhere_are_not_opened(isolated, tmp_path, nested):
    """The library would read them from this machine, or any address, when the rows are saved or looked at."""
    image = datasets.List(datasets.Image()) if nested else datasets.Image()
    for one, named in (({"bytes": b"x", "path": "a.png"}, False), ({"bytes": None, "path": "http://x/a.png"}, True)):
        table = datasets.Dataset.from_dict({"i": [[one] if nested else one]}, datasets.Features({"i": image}))
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table.data.table, tmp_path / FILE)
        (tmp_path / "config.json").write_text(json.dumps({"task": "x", "splits": ["train"], "about": {}}))
        if named:
            with pytest.raises(UntrustedError, match="split 'train' names files in 'i' instead of holding them"):
                DatasetStudent.load(tmp_path)
        else:
            assert DatasetStudent.load(tmp_path).splits["train"].num_rows == 1


# -- published ------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """`kdhub hub serve`, and a user who may write there."""
    with serve(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


def test_a_data_set_is_distilled_published_pulled_opened_and_verified(run, served, opened, monkeypatch, tmp_path):
    done = kdhub.publish(run, "me/points", licence="mit")  # the usage lines are run: plain `datasets`, no network
    assert done.kind == "dataset" and done.endpoint == served.endpoint
    assert [(one.repo, one.kind) for one in kdhub.search("points")] == [("me/points", "dataset")]
    front, body = split_card(done.card)
    assert check_card(done.card, Report.from_dict(kdhub.Run.open(run).report)) == []
    files = [{"split": "train", "path": FILE}]
    assert front["configs"] == [{"config_name": "default", "data_files": files}]
    assert front["size_categories"] == ["n<1K"] and front["annotations_creators"] == ["machine-generated"]
    assert front["kdhub"]["kind"] == "dataset" and front["kdhub"]["cost"]["rows"] == 40
    assert not front.keys() & {"library_name", "pipeline_tag", "base_model", "datasets"}
    assert 'load_dataset("me/points")' in body
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "other"))
    folder = kdhub.pull("me/points").folder
    theirs = opened(folder)["train"]
    assert theirs.to_list() == kdhub.load("me/points").splits["train"].to_list() == splits_in(run / "student")[
        "train"].to_list()  # fmt: skip
    found = kdhub.verify(folder)
    assert found.status == "verified" and [f.verdict for f in found.figures] == ["ok"]
    assert figures(kdhub.evaluate(folder)) == {("toy-spread", "train"): pytest.approx(found.figures[0].card, abs=1e-6)}
    assert kdhub.open_data(f"path:{folder}").split("train").num_rows == 40, "a pulled data set is data"


def pulled(run: Path, hub, monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])
    kdhub.publish(run, "me/points", licence="mit")
    return kdhub.pull("me/points", to=tmp_path / "pulled").folder


def test_one_edited_row_or_figure_fails_and_verify_says_where(run, hub, monkeypatch, tmp_path):
    folder = pulled(run, hub, monkeypatch, tmp_path)
    whole = {name: (folder / name).read_bytes() for name in ("README.md", "report.json", "kdhub.json", FILE)}

    edit(folder / FILE, lambda rows: [{**rows[0], "y": [9.0] * 3}, *rows[1:]])
    found = kdhub.verify(folder)
    assert found.status == "differs" and found.problems == [f"{FILE} is not the file that was published"]
    # With the digest set right as well, the figures that rows give of themselves are others.
    from kdhub.hub.files import digests

    manifest = json.loads(whole["kdhub.json"])
    now = digests(folder / FILE)
    manifest["files"][FILE] = {"size": now.size, "sha256": now.sha256}
    (folder / "kdhub.json").write_text(json.dumps(manifest))
    found = kdhub.verify(folder)
    (figure,) = found.figures
    assert found.status == "differs" and found.problems == []
    assert (figure.metric, figure.split, figure.verdict) == ("toy-spread", "train", "differs")
    assert figure.now > figure.card

    for name, content in whole.items():
        (folder / name).write_bytes(content)
    value = Report.from_dict(json.loads(whole["report.json"])).get("toy-spread", "student").value
    card = whole["README.md"].decode()
    assert f"value: {round(value, 6)}" in card
    (folder / "README.md").write_text(card.replace(f"value: {round(value, 6)}", "value: 0.999"))
    (figure,) = kdhub.verify(folder).figures
    assert figure.verdict == "differs" and figure.note == f"the report has {value:.6g}"

    (folder / "README.md").write_text(card.replace(f"path: {FILE}", "path: plots/other.parquet"))
    found = kdhub.verify(folder)
    assert found.status == "differs" and "README.md: its configs are" in found.problems[0]


def test_a_secret_in_a_row_is_found_though_parquet_is_compressed(run, hub):
    edit(run / "student" / FILE, lambda rows: [*rows[:2], {**rows[2], "x": rows[2]["x"]}, *rows[3:]])
    kdhub.Run.open(run).seal_student()
    table = pq.read_table(run / "student" / FILE)
    kdhub.Run.open(run).seal_student()
    notes = ["plain"] * 7 + ["key hf_" + "a" * 30] + ["plain"] * (len(table) - 8)
    pq.write_table(table.replace_schema_metadata(None).append_column("note", [notes]), run / "student" / FILE)
    kdhub.Run.open(run).seal_student()
    with pytest.raises(PublishError, match=rf"{FILE}, row 8: this looks like a secret"):
        kdhub.publish(run, "me/points", licence="mit", dry_run=True)


def test_rows_inherit_the_licences_of_their_sources(run, hub, monkeypatch):
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])
    facts = json.loads((run / "provenance.json").read_text())
    facts["teacher"]["licence"] = "cc0-1.0"
    (run / "provenance.json").write_text(json.dumps(facts))
    kdhub.Run.open(run).seal()
    front = split_card(kdhub.publish(run, "me/points", dry_run=True).card)[0]
    assert front["license"] == "cc0-1.0", "teacher and rows agree"
    facts["data"]["use"][0]["licence"] = None
    (run / "provenance.json").write_text(json.dumps(facts))
    kdhub.Run.open(run).seal()
    with pytest.raises(PublishError, match="no licence can be stated"):
        kdhub.publish(run, "me/points", dry_run=True)


# -- as data of other recipes -----------------------------------------------------------------------------------


@pytest.fixture
def chain(toys, tmp_path, monkeypatch):
    """A user's catalogue; `chain("first", **keys)` writes a recipe into it."""
    monkeypatch.setenv("KDHUB_CATALOG", str(tmp_path / "registry"))
    (tmp_path / "registry" / "recipes").mkdir(parents=True)

    def write(name, **keys):
        base = {"task": "toy-vectors", "data": {"train": "toy-points"}, "evaluation": {"cost": False}}
        (tmp_path / "registry" / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump({**base, **keys}))

    write("labelled", method="toy-label", teacher="linear:1", student="table", options={"keep": 0.5})
    return write


def test_a_recipe_trains_on_the_rows_that_another_one_leaves(isolated, chain):
    chain("student", method="toy-plain", student="mlp:4", data={"train": "recipe:labelled"}, options={"max_steps": 2})
    run = kdhub.distill("student", out=isolated / "run")
    (used,) = [d for d in run.provenance["data"]["use"] if d["use"] == "train"]
    assert used["source"] == "recipe:labelled" and used["rows"] == 20
    assert chain_of.unmade(resolve_recipe("student"), Resolver()) == [], "made once"


def test_rows_of_a_recipe_are_named_after_it_and_not_after_their_folder(isolated, chain):
    data = {"train": "recipe:labelled", "test": {"source": "toy-first:recipe:labelled", "split": "train"}}
    evaluation = {"cost": False, "data": [data.pop("test")]}
    chain("student", method="toy-plain", student="mlp:4", data=data, evaluation=evaluation, options={"max_steps": 2})
    run = kdhub.distill("student", out=isolated / "run")
    assert [d["name"] for d in run.provenance["data"]["use"]] == ["recipe:labelled", "toy-first:recipe:labelled"]
    assert {m["dataset"] for m in run.report["measures"]} == {"toy-first:recipe:labelled"}
    for told in ((run.folder / "report.json").read_text(), json.dumps(run.provenance["data"])):
        assert str(isolated) not in told, "where it was made says nothing to anybody else"


def test_a_recipe_whose_student_is_a_model_is_no_data(isolated, chain):
    chain("model", method="toy-plain", student="mlp:4")
    chain("student", method="toy-plain", student="mlp:4", data={"train": "recipe:model"})
    with pytest.raises(CompatibilityError, match="recipe:model as data: its student mlp:4 is a model"):
        kdhub.distill("student", out=isolated / "run")
    assert not (isolated / "recipes").exists(), "refused before anything is made"


def test_a_recipe_may_be_the_argument_of_a_kind_of_data():
    link = chain_of.link
    assert link("recipe:a@3") == link("chat:recipe:a@3") == "recipe:a@3"
    assert link("path:./recipe:a") is link("a-recipe:b") is link("stsb") is None
