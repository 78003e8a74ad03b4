"""Cost is measured by real processes; whatever happens to one of them, the run goes on. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from kdhub.evaluation import cost
from kdhub.evaluation.report import Report, gain, render
from kdhub.specs import MetricSpec

# Starting PyTorch takes seconds, and what becomes of a process does not depend on it.
NO_TORCH = """
import sys, types
threads = []
torch = types.SimpleNamespace(
    set_num_threads=threads.append, get_num_threads=threads.pop,
    cuda=types.SimpleNamespace(is_available=lambda: False),
)
sys.modules["torch"] = torch
"""
# A process as `python -m kdhub.evaluation.cost` is one, with models that need no plugin.
CHILD = """
import os, signal, sys, time, types
from pathlib import Path
import torch
from kdhub.evaluation import cost
from kdhub.task import NetworkTask

class Task(NetworkTask):
    primary_signal = "embedding"
    def preparer(self, student, teacher):
        return lambda rows: [{"content": r["text"], "length": len(r["text"])} for r in rows]
    def flops(self, model, example):
        return None

Task.__abstractmethods__ = frozenset()

class Model:
    def __init__(self, how):
        self.how, self.calls = how, 0
        self.module = torch.nn.Linear(64, 32) if hasattr(torch, "nn") else None
    def signals(self, examples, kind):
        assert kind == "embedding" and all(isinstance(e["content"], bytes) for e in examples)
        self.calls += 1
        if self.how == "chatty":
            print("noise on stdout", flush=True)
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "dies" and self.calls > 10:
            os._exit(7)
        if self.how == "hangs":
            time.sleep(60)
        if self.how == "raises":
            raise ValueError("bad weights")
        if self.module is None:
            return {"embedding": [0] * len(examples)}
        with torch.inference_mode():
            return {"embedding": self.module(torch.zeros(len(examples), 64)).numpy()}

def open_(task, subject):
    how = Path(subject["folder"]).name
    assert "RANK" not in os.environ and torch.get_num_threads() == 1
    if how == "api":
        raise cost.NotMeasured("it runs behind an API")
    return Task(), Model(how), Path(subject["folder"])

def own(costed):
    how = costed.model.how
    if how == "chatty":
        raise ZeroDivisionError("oh")
    return None if how == "plain" else len(costed.answer(3)["embedding"])

cost._open = open_
cost.Registry = lambda: types.SimpleNamespace(find=lambda *a: a, load=lambda found: own)
cost.main()
"""
ROWS = [{"text": b"x" * (1 + i % 7)} for i in range(40)]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    def measure(*names, rows=ROWS, torch=False, **options):
        script = tmp_path / "child.py"
        script.write_text(CHILD if torch else NO_TORCH + CHILD)
        monkeypatch.setattr(cost, "COMMAND", [sys.executable, str(script)])
        subjects = []
        for name in names:
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "model.safetensors").write_bytes(b"w" * 1000)
            subjects.append({"subject": name, "folder": str(folder)})
        options = {"threads": 1, "rounds": 2, "seconds": 0.01, **options}
        found = cost.measure("any", subjects, rows, **options)
        return {name: {m.metric: m for m in found if m.subject == name} for name in names}

    return measure


def test_two_subjects_side_by_side(measure):
    found = measure("plain", "chatty", torch=True)
    for name in ("plain", "chatty"):
        values = {metric: m.value for metric, m in found[name].items()}
        assert values["parameters"] == 64 * 32 + 32 and values["disk"] == 1000
        assert values["flops"] == 2 * 64 * 32, "a multiplication and an addition are two operations"
        assert values["memory"] > 50e6, "a process with PyTorch in it"
        assert 0 < values["latency-p50"] <= values["latency-p95"] and values["throughput"] > 0
        assert all(m.dataset is None for m in found[name].values())
        assert all(m.note is None for metric, m in found[name].items() if metric not in cost.TIMES)
    assert set(found["plain"]) == set(cost.UNITS) - {"gpu-memory"}


def test_a_task_s_own_costs_come_from_the_same_processes(measure, monkeypatch):
    spec = MetricSpec(name="calls", target="x:y", cost=True, unit="items", higher_is_better=False)
    monkeypatch.setattr(cost, "own_costs", lambda task: [spec])
    found = measure("quick", "plain", "chatty", "killed")
    one = found["quick"]["calls"]
    assert (one.value, one.unit, one.higher_is_better, one.dataset, one.note) == (3, "items", False, None, None)
    assert "calls" not in found["plain"], "it means nothing for that one"
    assert found["chatty"]["calls"].note == "could not be measured: ZeroDivisionError: oh"
    assert found["chatty"]["latency-p50"].value > 0, "the others go on"
    assert "killed by signal 9" in found["killed"]["calls"].note
    own = [replace(m, subject=who) for who in ("teacher", "student") for m in [one]]
    line = next(iter(Report([own[0], replace(own[1], value=1.5)]).costs()))
    assert gain(line) == "2.0x less"


@pytest.fixture
def scripted(measure, monkeypatch):
    """`scripted(teacher=[ms, ...], student=[...], waited=0.0)`: measures as if rounds took these times, over and over;
    and how many rounds there were."""

    def scripted(waited=0.0, **times):
        def turn(child, plan):
            ms = times[child.name][len(child.waited) % len(times[child.name])]
            child.waited.append(waited)
            for metric, value in zip(cost.TIMES, (ms, 2 * ms, 1000 / ms)):
                child.rounds[metric].append(value)
            turns.append(child.name)

        turns = []
        monkeypatch.setattr(cost._Child, "turn", turn)
        return measure("teacher", "student", rounds=4), len(turns) // 2

    return scripted


def test_a_quiet_machine_has_its_times_and_nothing_to_say(scripted):
    found, rounds = scripted(teacher=[30.0], student=[15.0, 15.5, 15.0, 14.5])
    one = found["student"]["latency-p50"]
    assert rounds == 4 and (one.value, one.low, one.high, one.note) == (15.0, 14.5, 15.5, None)
    assert found["student"]["throughput"].ratio == pytest.approx(2.0) and found["teacher"]["throughput"].ratio is None


def test_a_busy_machine_is_told_and_the_ratio_leads(scripted):
    """Every other round takes forty times as long, for both: 658 ms where 15 are right, always half the teacher's."""
    report = Report()
    found, rounds = scripted(teacher=[30.0, 1316.0], student=[15.0, 658.0])
    assert rounds == 12, "rounds that disagree are repeated"
    report.add_costs(m for of in found.values() for m in of.values())
    line = next(line for line in report.costs() if line.metric == "latency-p50")
    assert line.measures["student"].ratio == pytest.approx(0.5) and gain(line) == "2.0x faster"
    (note,) = report.notes
    assert "busy machine" in note and "rounds of the student gave a latency of 15 to 658 ms" in note
    text = render(report)
    assert "(15.0 ms to 658 ms)" in text and note in text
    head = next(row for row in text.splitlines() if row.startswith("cost")).split("  ")
    assert [cell.strip() for cell in head if cell][:2] == ["cost", "the student is"]


def test_a_machine_that_is_busy_all_the_time_is_told(scripted):
    found, rounds = scripted(waited=0.6, teacher=[1316.0], student=[658.0])
    assert rounds == 4, "its rounds agree"
    assert "the student's process waited for a core 60% of the time" in found["student"]["latency-p50"].note


def test_a_process_that_fails_is_noted_and_the_others_are_measured(measure):
    said = {"killed": "killed by signal 9", "raises": "ValueError: bad weights", "api": "behind an API"}
    found = measure(*said, "plain")
    for how, note in said.items():
        assert all(m.value is None and note in m.note for m in found[how].values())
    assert found["plain"]["latency-p50"].value > 0 and found["plain"]["throughput"].value > 0


def test_a_process_that_hangs_is_given_up(measure):
    found = measure("hangs", timeout=3.0)["hangs"]
    assert all(m.value is None and "no answer within 3 s" in m.note for m in found.values())


def test_what_was_known_before_a_process_died_is_kept(measure):
    found = measure("dies", "plain")
    assert found["dies"]["disk"].value == 1000 and found["dies"]["memory"].value is None
    assert "exit code 7" in found["dies"]["memory"].note
    assert found["plain"]["memory"].value > 0


def test_a_student_that_is_no_network_has_speed_and_bytes(measure):
    found = measure("plain")["plain"]
    assert found["parameters"].value is None and "not a network" in found["parameters"].note
    assert found["disk"].value == 1000 and found["latency-p50"].value > 0


def test_no_rows_or_rows_that_cannot_travel(measure):
    found = measure("plain", rows=[])["plain"]
    assert found["disk"].value and "no rows" in found["latency-p50"].note
    found = measure("plain", rows=[{"text": object()}])["plain"]
    assert all(m.value is None and "not JSON values" in m.note for m in found.values())


def test_the_process_itself_ends_with_its_input_and_answers_an_unknown_task(tmp_path):
    command = [sys.executable, "-m", "kdhub.evaluation.cost"]
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p), "KDHUB_HOME": str(tmp_path), "PATH": ""}
    assert subprocess.run(command, input=b"", capture_output=True, env=environment).returncode == 0
    request = {"task": "no-such", "signal": "x", "subject": {"folder": "f"}, "rows": [], "threads": 1}
    done = subprocess.run(command, input=json.dumps(request).encode() + b"\n", capture_output=True, env=environment)
    assert "no-such" in json.loads(done.stdout)["error"], done.stderr


def test_no_process_is_left_behind(measure, monkeypatch):
    made = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    monkeypatch.setattr(cost._Child, "take", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure("hangs", "plain")
    assert len(made) == 2 and all(process.poll() is not None for process in made)
    assert time.monotonic() - began < 30


def test_weights_of_a_repository_with_several_formats_count_once(tmp_path):
    for name, size in (("model.safetensors", 10), ("pytorch_model.bin", 11), ("onnx/model.onnx", 12), ("a.json", 5)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"w" * size)
    assert cost.weight_bytes(tmp_path, own=False) == 10
    assert cost.weight_bytes(tmp_path, own=True) == 33


@pytest.mark.parametrize(
    "rows, least, wanted, count", [(3, 5, 1, 5), (100, 5, 20, 20), (300, 32, 70, 64), (40, 32, 900, 40)]
)
def test_examples_are_spread_over_all_rows(rows, least, wanted, count):
    picked = cost._spread(rows, least, 2048, wanted)
    assert len(picked) == count and set(picked) <= set(range(rows))
    assert max(picked) >= rows * (1 - 1 / min(count, rows)) - 1
