"""A run with two trainings in it, killed at random moments: real processes, real signals, the same bytes at the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONGEST = 4.0
"""Seconds after which a worker is killed at the latest: a long run is killed many times."""


def kill(worker: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)


class Workers:
    """See `twice.py`."""

    def __init__(self, home: Path, steps: int):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KDHUB_")}
        environment |= {"KDHUB_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
        command = [sys.executable, str(HERE / "twice.py"), str(steps)]
        self.errors = home.parent / "stderr"
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        assert self._line() == "ready"

    def _line(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, self.errors.read_text()[-2000:]
        return line

    def work(self, folder: Path, kill_after: float | None = None) -> bool:
        """Begin the run or go on with it; True when it ended by itself, and well."""
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        worker = int(self._line())
        timer = threading.Timer(kill_after or 0, kill, (worker,))
        if kill_after is not None:
            timer.start()
        code = int(self._line())
        timer.cancel()
        assert code in (0, -signal.SIGKILL), self.errors.read_text()[-2000:]
        return code == 0


@pytest.fixture
def workers(tmp_path, steps):
    (tmp_path / "home").mkdir()
    made = Workers(tmp_path / "home", steps)
    yield made
    made.process.kill()
    made.process.wait()


def left(folder: Path) -> dict[str, object]:
    """What does not depend on the clock: both students, both logs, the measures."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "second": (folder / "student" / "model.safetensors").read_bytes(),
        "first": (folder / "first.json").read_text(),
        "log": [{k: v for k, v in line.items() if k != "rows_per_second"} for line in lines],
        "measures": json.loads((folder / "report.json").read_text())["measures"],
    }


def stage_of(folder: Path, steps: int) -> str:
    """How far a killed run had come."""
    log = folder / "metrics.jsonl"
    lines = [line for line in log.read_text().splitlines(True) if line.endswith("\n")] if log.exists() else []
    last = json.loads(lines[-1]) if lines else {"step": 0}
    return "evaluation" if last["step"] == steps and "fit" in last else f"training {last.get('fit', 1)}"


@pytest.mark.parametrize(("kills", "steps"), [(3, 30), pytest.param(30, 600, marks=pytest.mark.slow)])
def test_two_trainings_killed_at_random_moments_end_as_undisturbed(workers, tmp_path, kills, steps):
    began = time.monotonic()
    assert workers.work(tmp_path / "whole")
    seconds, whole = time.monotonic() - began, left(tmp_path / "whole")
    assert [line["step"] for line in whole["log"] if line["step"] == steps] == [steps] * 2, "both train to the end"

    rng, runs, done = random.Random(kills), 0, True
    killed_in: Counter[str] = Counter()
    while killed_in.total() < kills or not done:
        folder, last = tmp_path / f"run-{runs}", killed_in.total() == kills
        if done := workers.work(folder, None if last else rng.uniform(0, min(seconds, LONGEST))):
            assert left(folder) == whole
            runs += 1
        else:
            killed_in[stage_of(folder, steps)] += 1
    print(f"{dict(killed_in)} kills, {runs} runs, {seconds:.1f} s each")
