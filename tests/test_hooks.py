"""Life-cycle hooks: one add-on that uses each, and that each is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdhub import hookimpl, hookspecs
from kdhub.errors import PluginError
from kdhub.plugins.discovery import Plugins
from kdhub.verbs.distill import distill

DOCS = Path(__file__).parents[1] / "docs" / "plugins.md"
RECIPE = {
    "task": "toy-vectors",
    "method": "toy-plain",
    "student": "mlp:3",
    "data": {"train": "toy-points"},
    "options": {"batch_size": 8, "epochs": 2, "precision": "float32"},
    "evaluation": {"data": "toy-points", "cost": False},
}


class Tracker:
    """An add-on that provides nothing and watches everything."""

    def __init__(self):
        self.seen: list[tuple] = []

    @hookimpl
    def kdhub_run_started(self, run):
        self.seen.append(("started", run.recipe.method, (run.folder / "recipe.yaml").is_file()))

    @hookimpl
    def kdhub_step_logged(self, run, record):
        self.seen.append(("step", record["step"], sorted(record["terms"]), len(list(run.metrics()))))

    @hookimpl
    def kdhub_run_finished(self, run, error):
        self.seen.append(("finished", type(error).__name__, (run.folder / "README.md").exists()))

    @hookimpl
    def kdhub_card(self, sections):
        sections["Energy"] = "0.1 Wh"
        sections.pop("Citation", None)


@pytest.fixture
def tracker(toys):
    tracker = Tracker()
    toys.register(tracker, "kdhub-tracker")
    return tracker


def test_an_add_on_sees_a_run_from_start_to_end(tracker, tmp_path):
    run = distill(RECIPE, out=tmp_path / "run")
    assert tracker.seen[0] == ("started", "toy-plain", True)
    assert tracker.seen[-1] == ("finished", "NoneType", True)
    steps = tracker.seen[1:-1]
    assert steps == [("step", n, ["labels"], n) for n in range(1, 11)], "each line, after it was written"
    card = (run.folder / "README.md").read_text()
    assert "## Energy\n\n0.1 Wh" in card


def test_an_add_on_sees_the_error_of_a_run_and_of_its_resume(tracker, tmp_path):
    recipe = {**RECIPE, "options": {**RECIPE["options"], "poison": 3}}
    for _ in range(2):
        with pytest.raises(Exception, match="the loss is nan"):
            distill(recipe, out=tmp_path / "run") if not tracker.seen else distill(resume=tmp_path / "run")
        assert tracker.seen[-1] == ("finished", "TrainingError", False)
    assert [entry[0] for entry in tracker.seen].count("started") == 2


def test_an_interrupted_run_is_finished_with_its_interrupt(tracker, tmp_path, monkeypatch):
    import toy

    monkeypatch.setattr(toy.Hint, "fail_at", 1)
    with pytest.raises(KeyboardInterrupt):
        distill("toy-hint", out=tmp_path / "run")
    assert tracker.seen[-1] == ("finished", "KeyboardInterrupt", False)


class Faulty:
    @hookimpl
    def kdhub_step_logged(self, record):
        raise ConnectionError("tracker is down")


def test_an_add_on_that_fails_is_reported_once_and_stops_nothing(toys, tmp_path, monkeypatch, capsys):
    toys._strict = False
    toys.register(Faulty(), "kdhub-faulty")
    run = distill(RECIPE, out=tmp_path / "run")
    assert run.report["measures"]
    err = capsys.readouterr().err
    assert err.count("kdhub_step_logged raised ConnectionError: tracker is down") == 1


def test_under_strict_it_stops_the_run(toys, tmp_path):
    toys.register(Faulty(), "kdhub-faulty")
    with pytest.raises(PluginError, match="tracker is down"):
        distill(RECIPE, out=tmp_path / "run")


def test_an_add_on_adds_a_command(monkeypatch, capsys, make_distribution, run_python, tmp_path):
    """In the real program, from a real distribution."""
    code = (
        "from kdhub import hookimpl\n@hookimpl\ndef kdhub_commands(app):\n"
        "    @app.command('greet')\n    def greet(name: str):\n        '''Say hello.'''\n        print('hello', name)\n"
    )
    files = {"kdhub_greet/plugin.py": code}
    make_distribution(tmp_path / "site", "kdhub-greet", plugins={"greet": "kdhub_greet.plugin"}, files=files)
    main = "import sys\nsys.argv = ['kdhub', *sys.argv[1:]]\nfrom kdhub.cli import main\nmain()"
    assert run_python(main, tmp_path / "site", args=("greet", "you")).stdout == "hello you\n"
    assert "Say hello." in run_python(main, tmp_path / "site", args=("--help",)).stdout
    without = run_python(main, tmp_path / "site", args=("--no-plugins", "greet", "you"))
    assert without.returncode == 2


def test_each_hook_is_used_by_a_test_and_has_a_heading_in_the_docs():
    hooks = {name for name in vars(hookspecs) if name.startswith("kdhub_")}
    assert hooks == {name for name in vars(Plugins()._hooks.hook) if name.startswith("kdhub_")}
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("*.py"))
    assert [name for name in sorted(hooks) if f"def {name}(" not in tests] == []
    headings = re.findall(r"^#+ +`?(kdhub_\w+)", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(hooks - set(headings)) == []
