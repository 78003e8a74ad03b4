"""The run folder: made, locked, opened, damaged; its log; its stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from kdhub.errors import ExitCode, RunError
from kdhub.recipes.recipe import Recipe
from kdhub.recipes.run import Run


@pytest.fixture
def recipe():
    return Recipe.model_validate({"task": "t", "method": "m", "student": "s:1", "name": "ä"})


def test_a_run_is_made_and_opened_again(recipe, tmp_path):
    run = Run.create(tmp_path / "a" / "b", recipe)
    assert Run.open(tmp_path / "a" / "b").recipe == recipe
    assert Run.open(str(run.folder)).folder == run.folder
    empty = tmp_path / "empty"
    empty.mkdir()
    Run.create(empty, recipe)


def test_a_folder_with_something_in_it_is_left_alone(recipe, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="is not empty") as error:
        Run.create(tmp_path, recipe)
    assert "--out" in error.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    run = Run.create(tmp_path / "run", recipe)
    run.unlock()
    with pytest.raises(RunError) as error:
        Run.create(tmp_path / "run", recipe)
    assert f"--resume {tmp_path / 'run'}" in error.value.hint


def test_a_folder_that_cannot_be_made(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the run folder .*file/run: Not a directory"):
        Run.create(tmp_path / "file" / "run", recipe)
    with pytest.raises(RunError, match="Not a directory|not a folder|File exists"):
        Run.create(tmp_path / "file", recipe)


def test_nothing_is_left_of_a_run_that_was_refused_before_it_began(recipe, tmp_path):
    run = Run.create(tmp_path / "refused", recipe)
    run.same("data", {"rows": 3})
    run.add_provenance(teacher={"id": "t"})
    run.discard_unbegun()
    assert not run.folder.exists()
    for n, work in enumerate((lambda r: r.stage("a", lambda: 1), lambda r: r.next_fit(), lambda r: r.log(step=1))):
        run = Run.create(tmp_path / f"begun {n}", recipe)
        work(run)
        run.discard_unbegun()
        assert Run.open(run.folder).recipe == recipe


HOLD = """
import sys
from pathlib import Path
from kdhub.recipes.run import Run
run = Run.open(sys.argv[1]); run.lock(); print("held", flush=True); sys.stdin.read()
"""


def test_a_second_job_is_kept_out_until_the_first_is_gone(recipe, tmp_path):
    """Another process, killed and not closed: its lock goes with it."""
    run = Run.create(tmp_path / "run", recipe)
    run.unlock()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="is in use by another kdhub job") as error:
            Run.open(run.folder).lock()
        assert error.value.exit_code == ExitCode.FAILED
        other.kill()
    Run.open(run.folder).lock()


def test_the_ranks_of_one_job_share_the_folder(recipe, tmp_path, monkeypatch):
    first = Run.create(tmp_path / "run", recipe)
    monkeypatch.setenv("RANK", "1")
    second = Run.create(tmp_path / "run", recipe)
    second.write_json("report.json", {"from": "rank 1"})
    second.log(step=1)
    assert second.report is None and not first.metrics_path.exists(), "one rank writes"


@pytest.mark.parametrize(
    "content, expected",
    [
        ("schema: 0\ntask: t\nmethod: m\nstudent: s\n", "has schema 0, this kdhub reads 1"),
        ("schema: 2\nwhatever: yes\n", "has schema 2, this kdhub reads 1"),
        ("task: t\nmethod: m\nstudent: s\n", "has schema None"),
        ("schema: 1\ntask: t\n", "cannot be read"),
        ("schema: 1\ntask: [", "not valid YAML"),
        ("", "mapping"),
    ],
)
def test_a_damaged_or_other_version_is_refused_in_one_sentence(tmp_path, content, expected):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(RunError, match=expected) as error:
        Run.open(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_what_is_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="is not a run: it has no recipe.yaml"):
            Run.open(folder)


@pytest.mark.parametrize("name", ["state.json", "provenance.json", "report.json"])
def test_a_damaged_file_of_a_run_is_named(recipe, tmp_path, name):
    run = Run.create(tmp_path / "run", recipe)
    (run.folder / name).write_text('{"schema": 1, "stages": {')
    read = {"state.json": lambda: run.stage("x", lambda: 1), "provenance.json": lambda: run.provenance}
    with pytest.raises(RunError, match=f"{name} is damaged"):
        read.get(name, lambda: run.report)()


def test_a_half_written_last_line_of_the_log_is_left_out(recipe, tmp_path):
    run = Run.create(tmp_path / "run", recipe)
    for step in (1, 2, 3):
        run.log(step=step, loss=step / 3)
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in run.metrics()] == [1, 2, 3]
    again = Run.open(run.folder)
    again.log(step=4, loss=1.0)
    assert [r["step"] for r in again.metrics()] == [1, 2, 3, 4], "the next line does not grow onto the broken one"


def test_going_back_to_a_checkpoint_drops_the_lines_after_it(recipe, tmp_path):
    run = Run.create(tmp_path / "run", recipe)
    for step in (1, 2, 3):
        run.log(step=step, loss=0.1 + 0.2)
    before = run.metrics_path.read_text().splitlines()
    run.rewind_metrics(2)
    assert run.metrics_path.read_text().splitlines() == before[:2]
    run.rewind_metrics(0)
    assert list(run.metrics()) == []


def test_a_stage_is_done_once_in_the_life_of_the_run(recipe, tmp_path):
    run, done = Run.create(tmp_path / "run", recipe), []

    def work():
        done.append(1)
        return {"rows": [1.5, None, "ä"]}

    with pytest.raises(ZeroDivisionError):
        run.stage("label", lambda: 1 / 0)
    assert not run.finished("label"), "a stage that failed is done again"
    first = run.stage("label", work)
    again = Run.open(run.folder)
    assert again.stage("label", work) == first == {"rows": [1.5, None, "ä"]}
    assert again.finished("label") and len(done) == 1

    # A stage inside a stage is kept too.
    run.stage("outer", lambda: run.stage("inner", lambda: 1))
    assert run.finished("inner") and run.finished("outer")


def test_provenance_is_merged_one_level_deep(recipe, tmp_path):
    run = Run.create(tmp_path / "run", recipe)
    run.add_provenance(student={"a": 1}, seed=1)
    run.add_provenance(student={"b": 2}, seed=2)
    assert run.provenance == {"schema": 1, "student": {"a": 1, "b": 2}, "seed": 2}


def test_a_full_disk_leaves_the_old_file(recipe, tmp_path, monkeypatch):
    import errno

    run = Run.create(tmp_path / "run", recipe)
    run.write_json("report.json", {"old": True})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*report\.json: No space left on device") as error:
        run.write_json("report.json", {"old": False})
    assert "--resume" in error.value.hint
    monkeypatch.undo()
    assert run.report == {"old": True}
    assert not list(run.folder.glob("*.tmp")) and not list(run.folder.glob(".*.tmp"))


def test_a_full_disk_while_logging_is_a_clear_error(recipe, tmp_path):
    run = Run.create(tmp_path / "run", recipe)
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        run.log(step=1)


def test_the_environment_says_no_secret(monkeypatch):
    from kdhub.recipes.run import environment

    secret = "hf_" + "aB3" * 10
    monkeypatch.setattr(sys, "argv", ["/bin/kdhub", "distill", "--set", f"teacher.token={secret}"])
    found = environment()
    assert found["command"][:3] == ["kdhub", "distill", "--set"]
    assert secret not in json.dumps(found)
