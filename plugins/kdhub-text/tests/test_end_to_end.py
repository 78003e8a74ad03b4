"""`kdhub distill` as people run it: killed and resumed, twice over the same rows, on two ranks, on bad input."""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from kdhub.signals.store import SignalStore

STEPS = 14

# A job spends its first seconds on imports. This process does them once and forks a job for each line it reads: a
# process of its own all the same, killed as any other.
FORKING = """
import json, os, sys
import accelerate, datasets, matplotlib.pyplot, scipy.stats, sentence_transformers, torch, transformers
import kdhub.evaluation.plots, kdhub.evaluation.card, kdhub.training.engine, kdhub.verbs.distill, kdhub.training.session
import kdhub_text.methods.leaf, kdhub_tasks.embedding.metrics, kdhub_tasks.embedding.students
import kdhub_tasks.embedding.teachers
from kdhub.cli import main

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, fd in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        os.environ.update(job["environment"])
        sys.argv = ["kdhub", *job["arguments"]]
        code = 1
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def environment(home: Path) -> dict[str, str]:
    """One thread, so that bits can be compared; no network; a home of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KDHUB_")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "KDHUB_HOME": str(home), "KDHUB_STRICT": "1"}


class Jobs:
    """Starts `kdhub` jobs, one at a time.

    Attributes:
        out, err: what the last one wrote.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment(folder),
        )
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, home: Path, *arguments: str | Path, kill: Callable[[], bool] | None = None) -> int:
        """Run a job to its end, or kill it as soon as `kill` says so; returns its exit code, -9 when killed."""
        job = {
            "arguments": [str(a) for a in arguments],
            "environment": {"KDHUB_HOME": str(home)},
            "stdout": str(self.folder / "out"),
            "stderr": str(self.folder / "err"),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        pid = int(self.process.stdout.readline())
        while kill is not None and not select.select([self.process.stdout], [], [], 0.001)[0]:
            if kill():
                os.kill(pid, signal.SIGKILL)  # not reaped before its exit code is read below: the id is still its own
                break
        code = int(self.process.stdout.readline())
        self.out, self.err = (Path(job[name]).read_text() for name in ("stdout", "stderr"))
        return code

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    yield jobs
    jobs.close()


class Case:
    """The recipe all jobs here run, and a run of it that nobody disturbed, made by a plain `python -m kdhub`."""

    def __init__(self, folder: Path, tiny):
        self.folder, self.tiny = folder, tiny
        self.teacher = tiny.encoder(layers=4, hidden=64, prompts={"query": "kabel: ", "document": ""})
        self.texts = tiny.texts(4200, seed=1)
        train = tiny.jsonl(folder / "train.jsonl", self.texts + self.texts[:100])
        rng = np.random.default_rng(0)
        left, right = tiny.texts(120, seed=2), tiny.texts(120, seed=3)
        self.distinct = len({*self.texts, *left, *right})
        pairs = zip(left, right)
        scored = [{"sentence1": a, "sentence2": b, "score": float(rng.random())} for a, b in pairs]
        sts = tiny.jsonl(folder / "sts.jsonl", scored)
        self.values = tiny.recipe(
            self.teacher,
            "layers:2",
            train,
            [{"source": f"path:{sts}"}],
            max_steps=STEPS,
            batch_size=64,
            checkpoint_steps=2,
            dropout=0.1,  # so that a resumed run must also go on with the same random numbers
        )
        self.recipe = self.write("recipe.yaml")
        self.home, self.run = folder / "home", folder / "run"
        command = [sys.executable, "-m", "kdhub", "distill", "--recipe", self.recipe, "--out", self.run, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(self.home))
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout

    def write(self, name: str, **changes) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(self.values | changes))
        return path


@pytest.fixture(scope="module")
def case(tmp_path_factory, tiny):
    return Case(tmp_path_factory.mktemp("case"), tiny)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored(home: Path) -> list[Path]:
    return sorted(home.glob("signals/*/*.safetensors"))


def stages(run: Path) -> list[str]:
    path = run / "state.json"
    return list(json.loads(path.read_text())["stages"]) if path.exists() else []


def metrics(run: Path) -> list[dict]:
    """Logged steps without what is measured by the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "rows_per_second"} for record in records]


def assert_as_undisturbed(run: Path, home: Path, case: Case) -> None:
    """The student, the store, the steps and the scores of a run that was never killed, and nothing left behind."""
    assert contents(run / "student") == contents(case.run / "student")
    assert contents(home / "signals") == contents(case.home / "signals")
    assert metrics(run) == metrics(case.run)
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run, case.run)]
    assert reports[0]["measures"] == reports[1]["measures"]
    assert {p.name for p in run.iterdir()} == {p.name for p in case.run.iterdir()}


# -- killed -----------------------------------------------------------------------------------------------------------


def moments(run: Path, home: Path, log: Path) -> dict[str, Callable[[], bool]]:
    """When to kill, in the order in which a run comes by; `log` is what the job under way says."""
    lines = lambda: len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0  # noqa: E731
    writing = lambda: any((run / "checkpoints" / ".staging").glob("checkpoint-*"))  # noqa: E731
    return {
        "labelling the first group": lambda: any(home.glob("signals/*/.*.tmp")),
        "labelling": lambda: len(stored(home)) >= 2,
        "measuring the start": lambda: len(stored(home)) >= 5,
        "training, no checkpoint yet": lambda: lines() >= 1,
        "checkpointing": lambda: writing() and lines() >= 4,
        "training": lambda: lines() >= 7,
        "checkpointing again": lambda: writing() and lines() >= 8,
        "saving": lambda: (run / ".student").exists() or (run / "student").exists(),
        "evaluating": lambda: "evaluating student on" in log.read_text(),
        "writing the page": lambda: (run / "report.json").exists(),
    }


def resumes(run: Path) -> list[str]:
    path = run / "provenance.json"
    return json.loads(path.read_text()).get("resumed", []) if path.exists() else []


def test_killed_in_every_phase_it_ends_with_the_bits_of_an_undisturbed_run(case, jobs, tmp_path):
    run, home = tmp_path / "run", tmp_path / "home"
    rng, torn = random.Random(0), 0
    for times, (name, now) in enumerate(moments(run, home, jobs.folder / "err").items()):

        def soon(now=now, times=times):
            if len(resumes(run)) < times or not now():  # what it waits for may be there since the last time
                return False
            time.sleep(rng.choice([0, 0, 0.004, 0.01]))
            return True

        begin = ["--resume", run] if (run / "recipe.yaml").exists() else ["--recipe", case.recipe, "--out", run]
        assert jobs(home, "distill", *begin, kill=soon) == -signal.SIGKILL, f"ended before {name}: {jobs.err}"
        assert not stages(run).count("done"), name
        torn += any((run / "checkpoints" / ".staging").glob("checkpoint-*"))
        for whole in (run / "checkpoints").glob("checkpoint-*"):
            assert (whole / "kdhub_state.json").exists() and (whole / "model.safetensors").exists()
    assert torn, "no checkpoint was killed while it was written: watch closer"
    assert jobs(home, "distill", "--resume", run, "--json") == 0, jobs.err
    assert json.loads(jobs.out)["report"] == json.loads((run / "report.json").read_text())
    assert_as_undisturbed(run, home, case)
    assert len(resumes(run)) == len(moments(run, home, jobs.folder / "err"))


@pytest.mark.slow
def test_killed_thirty_times_at_random_moments(case, jobs, tmp_path):
    began = time.monotonic()
    assert jobs(tmp_path / "timed", "distill", "--recipe", case.recipe, "--out", tmp_path / "timed-run") == 0
    whole, rng, kills, story = time.monotonic() - began, random.Random(1), 0, 0
    while kills < 30:
        story += 1
        run, home = tmp_path / f"run{story}", tmp_path / f"home{story}"
        while not stages(run).count("done"):
            until = time.monotonic() + rng.uniform(0, 0.8 * whole)
            begin = ["--resume", run] if (run / "recipe.yaml").exists() else ["--recipe", case.recipe, "--out", run]
            code = jobs(home, "distill", *begin, kill=lambda until=until: time.monotonic() > until)
            assert code in (0, -signal.SIGKILL), jobs.err
            kills += code != 0
        assert_as_undisturbed(run, home, case)


# -- again, and elsewhere ---------------------------------------------------------------------------------------------


def test_the_same_recipe_again_gives_the_same_bits_and_calls_no_teacher(case, jobs, tmp_path):
    signals = json.loads((case.run / "provenance.json").read_text())["signals"]["embedding"]
    assert signals["computed"] == case.distinct and signals["calls"] == 7  # five of the rows, two of the pairs
    run = tmp_path / "run"
    assert jobs(case.home, "distill", "--recipe", case.recipe, "--out", run) == 0, jobs.err
    assert_as_undisturbed(run, case.home, case)
    again = json.loads((run / "provenance.json").read_text())["signals"]["embedding"]
    assert (again["computed"], again["calls"]) == (0, 0)
    assert again["found"] >= signals["computed"]


def test_another_seed_gives_another_student_also_where_a_job_was_killed_before_it_began(case, jobs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".recipe.yaml.abc.tmp").write_text("half a rec")
    assert jobs(case.home, "distill", "--recipe", case.recipe, "--seed", 7, "--out", run) == 0, jobs.err
    assert not list(run.glob(".*.tmp"))
    weights = "student/model.safetensors"
    assert (run / weights).read_bytes() != (case.run / weights).read_bytes()


RANKS = """
import time
from pathlib import Path
from kdhub.ranks import barrier, of_first, rank

if rank() == 0:
    time.sleep(1)
    Path("made").touch()
barrier()
assert Path("made").exists(), "nobody waited"
assert of_first({"from": rank()}) == {"from": 0}
"""


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*arguments: str | Path, cwd: Path, home: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, env=environment(home), cwd=cwd)


def test_ranks_wait_for_each_other_and_take_the_first_ones_word(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    done = torchrun("ranks.py", cwd=tmp_path, home=tmp_path)
    assert done.returncode == 0, done.stderr


def test_two_ranks_give_what_one_process_gives_and_share_the_labelling(case, jobs, tmp_path):
    alone = tmp_path / "alone"
    homes = tmp_path / "home-alone", tmp_path / "home-both"
    quiet = case.write("no-dropout.yaml", options=case.values["options"] | {"dropout": 0.0})
    assert jobs(homes[0], "distill", "--recipe", quiet, "--out", alone) == 0, jobs.err
    done = torchrun("-m", "kdhub", "distill", "--recipe", quiet, "--json", cwd=tmp_path, home=homes[1])
    assert done.returncode == 0, done.stderr
    (both,) = (tmp_path / "runs").iterdir()  # one folder of one name, though each rank has its own clock
    assert json.loads(done.stdout)["run"] == str(both.relative_to(tmp_path))  # one document, from one of the ranks

    assert contents(homes[0] / "signals") == contents(homes[1] / "signals")
    (folder,) = (homes[1] / "signals").iterdir()
    rows = sum(len(load_file(path)["keys"]) for path in folder.glob("*.safetensors"))
    assert rows == len(SignalStore.load(folder)) == case.distinct
    provenance = json.loads((both / "provenance.json").read_text())
    assert provenance["environment"]["ranks"] == 2
    mine = provenance["signals"]["embedding"]["computed"]
    assert 0 < mine < rows  # what the first rank computed; the rest was the other's

    one, two = (load_file(run / "student" / "model.safetensors") for run in (alone, both))
    assert one.keys() == two.keys()
    for name in one:
        # Softmax does not feel a key's bias: its gradient is rounding alone, and Adam brings that to full size.
        if not name.endswith("key.bias"):
            np.testing.assert_allclose(two[name], one[name], atol=1e-5, err_msg=name)
    for a, b in zip(metrics(alone), metrics(both), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["lr"] == b["lr"]


@pytest.mark.slow
def test_two_ranks_that_are_killed_end_with_the_bits_of_an_undisturbed_job(case, tmp_path):
    """One rank alone while both label, then all of the job at once while both train."""
    import psutil

    whole, run, home = tmp_path / "whole", tmp_path / "run", tmp_path / "home"
    begin = ["-m", "kdhub", "distill", "--recipe", case.recipe, "--out"]
    done = torchrun(*begin, whole, cwd=tmp_path, home=tmp_path / "whole-home")
    assert done.returncode == 0, done.stderr
    again, kills = [*begin, run], moments(run, home, tmp_path / "log")
    for name in ("labelling", "training"):
        with open(tmp_path / "log", "w") as log:
            job = subprocess.Popen(
                [*TORCHRUN, *map(str, again)], stdout=log, stderr=log, env=environment(home), cwd=tmp_path,
                start_new_session=True,
            )  # fmt: skip
        while not kills[name]():
            assert job.poll() is None, f"ended before {name}: {(tmp_path / 'log').read_text()}"
            time.sleep(0.002)
        ranks = [p for p in psutil.Process(job.pid).children() if p.environ().get("RANK")]
        assert len(ranks) == 2
        if name == "labelling":
            next(p for p in ranks if p.environ()["RANK"] == "1").kill()
        else:
            for rank in ranks:
                rank.kill()
            job.kill()
        assert job.wait(timeout=120) != 0
        assert not psutil.wait_procs(ranks, timeout=60)[1] and "done" not in stages(run)
        again = ["-m", "kdhub", "distill", "--resume", run]
    done = torchrun(*again, cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr
    assert len(resumes(run)) == 2
    assert contents(run / "student") == contents(whole / "student")
    assert contents(home / "signals") == contents(tmp_path / "whole-home" / "signals")
    assert metrics(run) == metrics(whole)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_teacher_of_nan_stops_with_batch_and_row_and_leaves_nothing_half_written(case, jobs, tmp_path):
    run, home = tmp_path / "run", tmp_path / "home"
    broken = case.tiny.encoder(layers=4, hidden=64, nan=True)
    recipe = case.write("nan.yaml", teacher={"source": f"path:{broken}", "precision": "float32"})
    assert jobs(home, "distill", "--recipe", recipe, "--out", run, "--json") == 1
    said = json.loads(jobs.out)
    assert said["error"] == "TeacherError" and "NaN" in said["message"]
    number = int(said["message"].split("row ")[1].split()[0])
    assert case.tiny.words[0] in (case.texts + case.texts[:100])[number - 1]
    assert "batch 1" in said["message"]
    assert not stored(home) and not list(home.glob("signals/*/.*"))
    assert {p.name for p in run.iterdir()} <= {"recipe.yaml", "provenance.json", "state.json", ".lock"}
    assert jobs(home, "distill", "--resume", run) == 1  # not repaired by trying again, and no worse for it


def test_bad_rows_stop_with_their_numbers_or_are_left_out_and_counted(case, jobs, tmp_path):
    rows = [{"text": text} for text in case.texts[:100]]
    rows[4], rows[70], rows[71] = {"text": "  "}, {"text": 5}, {"words": "kabel"}
    train = case.tiny.jsonl(tmp_path / "bad.jsonl", rows)
    with open(train, "a") as file:
        file.write("{no json\n")
    recipe = case.write("bad.yaml", data={"train": [{"source": f"path:{train}"}]})
    run = tmp_path / "run"
    assert jobs(tmp_path / "home", "distill", "--recipe", recipe, "--out", run) == 1
    assert {"5", "71", "72", "101"} <= set(re.findall(r"\d+", jobs.err)), jobs.err
    assert "on_bad_rows" in jobs.err
    assert not (run / "student").exists() and not stored(tmp_path / "home")

    skipping = tmp_path / "skipping"
    more = ("--set", "on_bad_rows=skip", "--set", "batch_size=16", "--set", "max_steps=4")
    assert jobs(tmp_path / "home", "distill", "--recipe", recipe, *more, "--out", skipping, "--json") == 0, jobs.err
    report = json.loads((skipping / "report.json").read_text())
    assert list(report["facts"]["skipped"].values()) == [4]
    rows = json.loads((skipping / "provenance.json").read_text())["rows"]["train"]["rows"]
    assert rows == 97
