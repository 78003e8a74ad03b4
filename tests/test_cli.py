"""The command line: exit codes, one JSON document, and where each kind of output goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN

RECIPE = """
task: toy-vectors
method: toy-hint
teacher: linear:1
student: mlp:6
data: {train: toy-points}
options: {batch_size: 8, epochs: 1, precision: float32}
evaluation: {data: toy-points, cost: false}
"""


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the program in this process: `cli("list", "methods")` -> (exit code, stdout, stderr)."""
    from kdhub.cli import _output, app

    commands = list(app.app.registered_commands)
    environment = dict(os.environ)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdhub", *map(str, arguments)])
        capsys.readouterr()
        try:
            app.run()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return code, out, err

    yield run
    app.app.registered_commands[:] = commands
    _output._traceback = False
    for name in set(os.environ) - set(environment):
        del os.environ[name]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def finished(toys, cli, recipe, tmp_path):
    folder = tmp_path / "finished"
    code, _, err = cli("--quiet", "distill", "--recipe", recipe, "--out", folder)
    assert code == 0, err
    return folder


# -- what works -----------------------------------------------------------------------------------------------


def test_distill_and_what_follows(toys, cli, recipe, tmp_path):
    run = tmp_path / "run"
    code, out, err = cli("distill", "--recipe", recipe, "--out", run, "--seed", 3, "--set", "options.lr=0.02")
    assert code == 0, err
    assert "toy-error" in out and str(run / "student") in out and f"kdhub evaluate {run}" in out
    assert "step 5/5" in err and "step 5/5" not in out, "progress goes to stderr"

    code, out, err = cli("evaluate", run, "--data", "toy-points:train", "--json")
    assert code == 0, err
    assert {m["split"] for m in json.loads(out)["measures"]} == {"train"}
    code, out, err = cli("evaluate", run / "student", "--data", "toy-points")
    assert code == 0 and "toy-error" in out, err

    code, out, err = cli("distill", "--resume", run)
    assert code == 0 and "finished already" in err
    assert cli("--quiet", "distill", "--recipe", run / "recipe.yaml", "--out", tmp_path / "again")[0] == 0
    same = [(f / "student" / "model.safetensors").read_bytes() for f in (run, tmp_path / "again")]
    assert same[0] == same[1], "the recipe in the run makes the same student"


def test_evaluate_changes_nothing_in_the_run(cli, finished):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert cli("evaluate", finished)[0] == 0
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_dry_run_prints_a_recipe_that_can_be_read_back(toys, cli, recipe, tmp_path):
    code, out, _ = cli("distill", "-r", recipe, "--dry-run", "--set", "lr=0.5")
    assert code == 0
    (tmp_path / "resolved.yaml").write_text(out)
    again = cli("distill", "-r", tmp_path / "resolved.yaml", "--dry-run")
    assert again == (0, out, "") and "lr: 0.5" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.yaml", "resolved.yaml"], "nothing is made"


# -- one JSON document ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "teachers"),
        ("list", "datasets"),
        ("list", "recipes"),
        ("list", "published"),
        ("show", "toy-hint"),
        ("show", "toy-points"),
        ("plugins",),
        ("plugins", "list"),
        ("doctor",),
        ("cache", "list"),
        ("cache", "verify"),
        ("cache", "prune", "--all"),
        ("distill", "-m", "toy-hint", "--dry-run"),
    ],
)
def test_json_is_one_document(toys, cli, arguments):
    code, out, err = cli(*arguments, "--json")
    assert code == 0, err
    json.loads(out)
    assert "error" not in err


def test_json_of_a_run_and_its_evaluation_and_cache(cli, toys, recipe, tmp_path):
    code, out, err = cli("distill", "-r", recipe, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["run"] == str(tmp_path / "run") and document["report"]["measures"]
    code, out, _ = cli("evaluate", tmp_path / "run", "--json")
    assert code == 0 and json.loads(out)["schema"] == 1
    code, out, _ = cli("cache", "list", "--json")
    assert [s["rows"] for s in json.loads(out)["stores"]] == [56]
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")}
    code, out, _ = cli("cache", "verify", "--run", tmp_path / "run", "--every", "5", "--json")
    assert code == 0 and json.loads(out)["stores"][0]["replay"]["checked"] >= 8
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")}  # looking is not touching


@pytest.mark.parametrize(
    "arguments, error",
    [
        (("list", "metods"), "UnknownNameError"),
        (("show", "toy-hnt"), "UnknownNameError"),
        (("distill", "-m", "toy-hnt"), "UnknownNameError"),
        (("distill", "-m", "toy-hint", "--set", "lr=-1"), "RecipeError"),
        (("distill",), "UsageError"),
        (("distill", "--resume", "nowhere"), "RunError"),
        (("evaluate", "nowhere/"), "UsageError"),
        (("cache", "verify", "--run", "nowhere"), "RunError"),
        (("cache", "prune", "ffff"), "UnknownNameError"),
        (("distill", "--no-such-flag"), "UsageError"),
        (("distill", "--seed", "x"), "UsageError"),
        (("nonsense",), "UsageError"),
    ],
)
def test_json_is_one_document_for_errors_too(toys, cli, arguments, error):
    code, out, err = cli(*arguments, "--json")
    document = json.loads(out)
    assert document["error"] == error and document["message"]
    assert code == (1 if error == "RunError" else 2)
    assert err.count("Traceback") == 0


# -- exit codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, match",
    [
        (("distill", "-m", "toy-hnt"), "'toy-hint'"),
        (("distill", "-r", "{recipe}", "-t", "linaer:1"), "'linear'"),
        (("distill", "-r", "{recipe}", "-s", "mpl:3"), "'mlp'"),
        (("distill", "-r", "{recipe}", "-d", "toy-piont"), "'toy-points'"),
        (("distill", "-r", "{recipe}", "--set", "task=toy-vector"), "'toy-vectors'"),
        (("distill", "-r", "{recipe}", "--set", "evaluation.metrics=[toy-erorr]"), "'toy-error'"),
        (("distill", "-r", "{recipe}", "--set", "hint_wieght=1"), "'hint_weight'"),
        (("distill", "-r", "{recipe}", "--set", "evalution.cost=false"), "'evaluation'"),
        (("distill", "-r", "toy-hnit"), "'toy-hint'"),
        (("distill", "--resume", "{recipe}", "-m", "toy-hint"), "takes its recipe from the run"),
        (("show", "toy-hnt"), "'toy-hint'"),
        (("list", "metrcs"), "'metrics'"),
        (("list", "methods", "--task", "toy-vector"), "'toy-vectors'"),
        (("list", "methods", "--teacher", "linaer:1"), "'linear'"),
        (("distil",), "distill"),
    ],
)
def test_wrong_usage_is_2_and_makes_nothing(toys, cli, recipe, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*(a.format(recipe=recipe) for a in arguments))
    assert (code, out) == (2, "")
    assert match in err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_bad_recipe_shows_all_its_errors_and_makes_nothing(toys, cli, recipe, tmp_path):
    recipe.write_text(RECIPE + "sede: 3\nseed: -4\non_bad_rows: never\n")
    code, out, err = cli("distill", "-r", recipe, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.startswith("error: 3 errors in the recipe:") and err.count(str(recipe)) == 3
    assert not (tmp_path / "run").exists()


def test_work_that_fails_is_1(toys, cli, recipe, tmp_path):
    for place, content, expected in (
        ("bad.jsonl", b'{"x": [1, 2, 3, 4]}\n\xff\n', "row 2|line 2"),
        ("nan.jsonl", b'{"x": [1, 2, 3, NaN]}\n', ""),
        ("empty.jsonl", b"", "empty"),
        ("other.jsonl", b'{"z": 1}\n', "'x'"),
    ):
        (tmp_path / place).write_bytes(content)
        code, _, err = cli("distill", "-r", recipe, "-d", tmp_path / place, "--out", tmp_path / place[:3])
        assert code == 1, (place, err)
        assert "Traceback" not in err
        assert any(part in err for part in expected.split("|")), err


def test_a_folder_in_use_or_with_something_in_it_is_1(toys, cli, recipe, tmp_path):
    from kdhub.recipes.recipe import Recipe
    from kdhub.recipes.run import Run

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    code, _, err = cli("distill", "-r", recipe, "--out", tmp_path / "full")
    assert code == 1 and "is not empty" in err and os.listdir(tmp_path / "full") == ["thesis.tex"]

    values = {"task": "toy-vectors", "method": "toy-hint", "teacher": "linear:1", "student": "mlp:3"}
    values["data"] = {"train": "toy-points"}
    held = Run.create(tmp_path / "run", Recipe.model_validate(values))
    code, _, err = cli("distill", "--resume", held.folder)
    assert code == 1 and "is in use by another kdhub job" in err
    held.unlock()


def test_a_folder_that_cannot_be_written_is_1(toys, cli, recipe, tmp_path):
    code, _, err = cli("distill", "-r", recipe, "--out", "/proc/kdhub-run")
    assert code == 1 and "cannot make the run folder /proc/kdhub-run" in err and "Traceback" not in err


def test_a_failing_run_says_so_once_and_traceback_on_demand(toys, cli, recipe, tmp_path):
    arguments = ("distill", "-r", recipe, "--set", "lr=1e30", "--set", "options.grad_clip=0", "--set", "epochs=20")
    code, out, err = cli("-q", *arguments, "--out", tmp_path / "a")
    assert (code, out) == (1, "") and err.count("error: the loss is") == 1 and "Traceback" not in err
    code, _, err = cli("-q", "--traceback", *arguments, "--out", tmp_path / "b")
    assert code == 1 and "Traceback" in err and "TrainingError" in err


BROKEN = (
    "from kdhub import MethodSpec, hookimpl\n@hookimpl\ndef kdhub_methods():\n    raise OSError('no licence file')\n"
)
LAZY = """
from kdhub import MethodSpec, hookimpl
@hookimpl
def kdhub_methods():
    yield MethodSpec(name="late", target="kdhub_late.method:Late", tasks=("toy-vectors",))
"""
MAIN = "import runpy, sys\nsys.argv = ['kdhub', *sys.argv[1:]]\nrunpy.run_module('kdhub', run_name='__main__')"


def test_a_broken_plugin_is_3_when_asked_for_and_harmless_otherwise(run_python, make_distribution, tmp_path):
    """The real program, with real distributions."""
    site = tmp_path / "site"
    files = {"kdhub_ill/plugin.py": BROKEN}
    make_distribution(site, "kdhub-ill", plugins={"ill": "kdhub_ill.plugin"}, files=files)
    ok = run_python(MAIN, site, args=("list", "methods", "--json"))
    assert ok.returncode == 0 and json.loads(ok.stdout) is not None
    lines = [line for line in ok.stderr.splitlines() if "kdhub-ill" in line]
    assert len(lines) == 1 and "no licence file" in lines[0] and "kdhub plugins uninstall kdhub-ill" in lines[0]

    asked = run_python(MAIN, site, args=("distill", "--method", "ill", "--json"))
    assert asked.returncode == 3
    document = json.loads(asked.stdout)
    assert document["error"] == "PluginError" and "no licence file" in document["message"]
    traced = run_python(MAIN, site, args=("--traceback", "distill", "--method", "ill"))
    assert traced.returncode == 3 and "OSError: no licence file" in traced.stderr, "with the original cause"


def test_a_method_whose_module_does_not_import_is_3(toys, cli, recipe, tmp_path, monkeypatch):
    (tmp_path / "kdhub_late").mkdir()
    (tmp_path / "kdhub_late" / "plugin.py").write_text(LAZY)
    (tmp_path / "kdhub_late" / "method.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    toys.register(importlib.import_module("kdhub_late.plugin"), "kdhub-late", "2.0")
    code, _, err = cli("distill", "-r", recipe, "-m", "late", "--out", tmp_path / "run")
    assert code == 3 and "kdhub-late 2.0" in err and "No module named 'no_such_module'" in err
    assert not (tmp_path / "run").exists()
    assert cli("list", "methods")[0] == 0


@pytest.mark.parametrize("start", [[sys.executable, "-m", "kdhub"], [str(Path(sys.executable).parent / "kdhub")]])
def test_both_ways_to_start_it_are_the_same_program(start, tmp_path):
    environment = {**os.environ, "KDHUB_PLUGINS": ""}
    for arguments, code in ((("list", "datasets", "--json"), 0), (("show", "jsnol"), 2), (("distill",), 2), ((), 2)):
        ran = subprocess.run([*start, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert ran.returncode == code, ran.stderr
        if code == 0:
            assert "jsonl" in {row["name"].partition(":")[0] for row in json.loads(ran.stdout)}
    assert "Usage: " in ran.stdout + ran.stderr and "python -m" not in ran.stdout


@pytest.mark.parametrize("what", ["datasets", "samplers"])
def test_a_reader_that_went_away_is_no_traceback(tmp_path, what):
    """In the middle of much output, and at the end of little."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "kdhub", "list", what, "--json"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    ran = subprocess.run(command, stdout=write, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(write)
    assert ran.returncode == 1 and ran.stderr == ""
