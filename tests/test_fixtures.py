"""What an older version left behind can still be used: its runs and students open, its stored signals are found, its
interrupted runs end with the same bytes, its published students verify.

`fixtures/<commit>/` holds what that commit made, and how (`make_fixtures.py`). Only what is public is called here.
"""

from __future__ import annotations

import hashlib
import json
import pkgutil
import shutil
import tarfile
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
import pytest

import kdhub

MADE = Path(__file__).parent / "fixtures" / "737b84a"
EXPECTED = json.loads((MADE / "expected.json").read_text(encoding="utf-8"))
RUNS, INTERRUPTED, PUBLISHED = (sorted(EXPECTED[name]) for name in ("runs", "interrupted", "published"))
NAMING = [f"{top}/**/*.{end}" for top in ("runs", "interrupted", "home/recipes") for end in ("yaml", "json", "md")]
"""Files that name the folder they were made in."""
NAMED = ("metric", "dataset", "split", "subject")
REPEATED = ("tabular-kd", "tabular-chained", "text-lelp", "qa-kd", "pairs-multi-teacher", "embedding-leaf", "lm-kd-top")
"""Runs that are made again; the signals of the others are found when they are measured again."""
SINCE = {"lm-kd-top": {"options.alpha": 0.5, "options.temperature": 2.0}}
"""Defaults that are others now: a recipe that leaves them out and is run anew has the new ones. A run that is resumed
has those that it began with."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kdhub") / "fixtures"
    with tarfile.open(MADE / "fixtures.tar.xz") as archive:
        archive.extractall(root, filter="data")
    for path in {path for pattern in NAMING for path in root.glob(pattern)}:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(EXPECTED["placeholder"], str(root)), encoding="utf-8")
    return root


@pytest.fixture
def root(unpacked, monkeypatch) -> Path:
    """The folder of the fixtures, which kdhub takes for its home; one thread, as they were made with."""
    import torch

    for name, folder in (("HOME", "home"), ("CATALOG", "catalogue"), ("DATA", "data")):
        monkeypatch.setenv(f"KDHUB_{name}", str(unpacked / folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield unpacked
    torch.set_num_threads(threads)


def task_of(name: str):
    """A task, as plugins offer it."""
    for entry in entry_points(group="kdhub"):
        for spec in getattr(entry.load(), "kdhub_tasks", tuple)():
            if spec.name == name:
                return pkgutil.resolve_name(spec.target)()
    raise AssertionError(f"no task {name}")


def rows_of(root: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (root / f"rows/{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def outputs(root: Path, student, task: str) -> list[np.ndarray]:
    """Of each row up to 64 numbers, evenly spaced, of what a student gives when it is used."""
    examples = (object_ := task_of(task)).preparer(student, None)(rows_of(root, task))
    given = student.signals(examples, object_.primary_signal)[object_.primary_signal]
    return [(flat := np.asarray(one, np.float64).ravel())[:: -(-len(flat) // 64)] for one in given]


def same(given, expected, atol: float = 1e-5) -> None:
    assert len(given) == len(expected)
    for mine, theirs in zip(given, expected):
        np.testing.assert_allclose(
            mine, theirs, rtol=near(1e-5), atol=atol if bits_are_comparable() else max(atol, 2e-2)
        )


def compare(report: dict, expected: list, subjects: tuple[str, ...], atol: float = 1e-4) -> None:
    """Each recorded number of these subjects is in the report, and the same; of an ensemble those of all together."""
    found = {key(*map(m.get, NAMED), m.get("variant") or {}): m.get("value") for m in report["measures"]}
    wanted = {key(*m[:5]): m[5] for m in expected if m[3] in subjects and not m[4].get("teacher")}
    assert wanted and wanted.keys() <= found.keys(), sorted(wanted.keys() - found.keys())
    for name, value in wanted.items():
        assert found[name] == (
            value
            if value is None
            else pytest.approx(value, rel=near(1e-4), abs=atol if bits_are_comparable() else max(atol, 2e-2))
        ), name


def key(*of) -> str:
    return json.dumps(of, sort_keys=True)


def signals(root: Path) -> dict[str, str]:
    """Every file of the stored signals, with its digest."""
    files = (path for path in (root / "home/signals").rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def near(share: float) -> float:
    """How far numbers may be from those of the machine that made the fixtures, as a share: a processor that adds in
    another order, or without instructions for bfloat16, trains students that differ in the second digit."""
    return share if bits_are_comparable() else max(share, 1e-2)


def bits_are_comparable() -> bool:
    """Whether this machine and its libraries add as those did that the fixtures were made with."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    made = EXPECTED["versions"]
    libraries = ("torch", "transformers", "accelerate", "numpy")
    return (
        (name, torch.backends.cpu.get_cpu_capability()) == (EXPECTED["processor"], EXPECTED["instructions"])
        and all(version(library) == made[library] for library in libraries)
        and not torch.cuda.is_available()
    )  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_opens_and_its_student_gives_what_it_gave(root, name):
    expected, folder, before = EXPECTED["runs"][name], root / "runs" / name, signals(root)
    run = kdhub.Run.open(folder)
    assert (run.recipe.task, run.recipe.method) == (expected["task"], expected["method"])
    assert len(run.report["measures"]) == len(expected["measures"]) and list(run.metrics())
    same(outputs(root, kdhub.load(folder), expected["task"]), expected["outputs"])
    compare(kdhub.evaluate(folder).to_dict(), expected["measures"], ("teacher", "student"))
    assert signals(root) == before, "the teacher was asked again"
    assert kdhub.distill(resume=folder).report == run.report, "it is finished"


def test_stored_signals_stand_where_their_identity_says(root):
    """The name of a store is the digest of all that its signals depend on."""
    for file in root.glob("home/signals/*/store.json"):
        told = json.loads(file.read_text(encoding="utf-8"))
        what = {"fields": told["fields"], "key": told["key"]}
        text = json.dumps(what, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest()[:32] == file.parent.name


@pytest.mark.parametrize("name", REPEATED)
def test_a_run_that_is_made_again_asks_no_teacher(root, name, tmp_path):
    expected, before = EXPECTED["runs"][name], signals(root)
    made = sorted(path.name for path in (root / "home").glob("recipes/*"))
    run = kdhub.distill(root / "runs" / name / "recipe.yaml", set=SINCE.get(name, {}), out=tmp_path / "again")
    known = run.provenance["signals"]
    assert {kind: facts["store"] for kind, facts in known.items()} == expected["signals"]
    assert {kind: (facts["computed"], facts["calls"]) for kind, facts in known.items()} == dict.fromkeys(known, (0, 0))
    assert all(facts["found"] for facts in known.values()) and signals(root) == before
    assert sorted(path.name for path in (root / "home").glob("recipes/*")) == made, "its teacher was made again"
    same(outputs(root, kdhub.load(run.folder), expected["task"]), expected["outputs"], atol=1e-3)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_ends_as_it_would_have(root, name, tmp_path):
    from safetensors.numpy import load_file

    expected, before = EXPECTED["interrupted"][name], signals(root)
    folder = Path(shutil.copytree(root / "interrupted" / name, tmp_path / "run"))
    run = kdhub.distill(resume=folder)
    steps = [line["step"] for line in run.metrics() if "step" in line]
    assert run.provenance["training"]["steps"] == expected["steps"] == steps[-1] and steps == sorted(set(steps))
    assert run.provenance["resumed"] and signals(root) == before
    weights = run.student_folder / "model.safetensors"
    if bits_are_comparable():
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == expected["student"][weights.name]
    mine, theirs = load_file(weights), load_file(root / "resumed" / name / weights.name)
    assert mine.keys() == theirs.keys()
    for tensor, values in theirs.items():
        atol = 1e-4 if bits_are_comparable() else 1e-3
        np.testing.assert_allclose(mine[tensor], values, atol=atol, err_msg=tensor)
    assert {path.name for path in run.student_folder.iterdir()} == set(expected["student"])
    atol = 1e-5 if bits_are_comparable() else 1e-3
    compare(run.report, expected["measures"], ("teacher", "student-before", "student"), 10 * atol)
    same(outputs(root, kdhub.load(folder), expected["task"]), expected["outputs"], atol)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_student_verifies(root, name):
    folder, of_run = root / "published" / name, EXPECTED["runs"][name]
    found = kdhub.verify(folder)
    assert (found.status, found.problems) == (EXPECTED["published"][name]["status"], [])
    figures = [[f.metric, f.dataset, f.split, f.subject, f.card, f.now, f.verdict] for f in found.figures]
    for mine, theirs in zip(figures, EXPECTED["published"][name]["figures"], strict=True):
        assert mine[:5] == theirs[:5] and mine[6] == theirs[6]
        assert mine[5] == (theirs[5] if theirs[5] is None else pytest.approx(theirs[5], rel=near(1e-4), abs=1e-4))
    same(outputs(root, kdhub.load(folder), of_run["task"]), of_run["outputs"])


def test_a_repository_is_pulled(root, hub):
    """What stood in a repository is pulled from a hub and verifies."""
    name = PUBLISHED[0]
    folder = root / "published" / name
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    hub.put(f"me/{name}", files)
    pulled = kdhub.pull(f"me/{name}")
    assert pulled.fetched and kdhub.verify(pulled.folder).status == "verified"


def test_a_student_that_was_pulled_is_found(root):
    """In the store of pulled students, though its hub is gone."""
    repo, of_run = EXPECTED["pulled"]["repo"], EXPECTED["runs"][EXPECTED["pulled"]["repo"].partition("/")[2]]
    student = kdhub.load(repo, endpoint=EXPECTED["pulled"]["endpoint"])
    same(outputs(root, student, of_run["task"]), of_run["outputs"])
