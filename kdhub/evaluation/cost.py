"""What a model costs: parameters, bytes, FLOPs, latency, throughput, memory; each subject in a process of its own.

All processes are started and warmed up first, then they work in turns (A B A B ...) on the same examples, so that a
busy machine slows all of them and not only one: the ratio of two subjects within a round holds elsewhere. Times have
their range over the rounds; rounds that disagree are followed by more; and measures say where they still do, or where
processes waited for a core that others had. `python -m kdhub.evaluation.cost` is such a process, JSON lines in and
out:

    -> {"task", "subject", "rows", "threads"}           <- {"facts", "single", "batch"} or {"error"}
    -> {"singles": [row numbers], "batched": [row numbers]}       <- the same, in seconds, and "waited"
    -> {"end": true}                                              <- {"facts"}

Times run from a plain row to its answer, tokenising included. A process that fails, hangs or is killed gives
measures without a value and with a note; it never stops a run.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdhub.errors import KdhubError
from kdhub.evaluation.counting import flops
from kdhub.evaluation.report import COSTS, TEACHER
from kdhub.exporting.exporter import attached, exports
from kdhub.families import MEMBER
from kdhub.metric import Costed, Measure
from kdhub.plugins.registry import Registry
from kdhub.rows import prepared
from kdhub.specs import MetricSpec
from kdhub.task import NetworkTask

BATCH = 32
EXPORT = "export"
"""The key of a subject that answers from one of its exports, by name."""
UNITS = {
    "parameters": "parameters",
    "disk": "bytes",
    "flops": "FLOPs",
    "latency-p50": "ms",
    "latency-p95": "ms",
    "throughput": "examples/s",
    "memory": "bytes",
    "gpu-memory": "bytes",
}
"""What a run of a model costs -> its unit."""
MADE = {"rows": "items", "disk": "bytes", "requests": "items", "tokens": "items", "price": "", "making": "s"}
"""What costs mean where nothing is run: how much there is, and what it took to make it."""
TIMES = ("latency-p50", "latency-p95", "throughput")
AGREE = 0.25
"""Rounds agree where the range of their times is at most this share of the median."""
WAITED = 0.1
"""A machine is busy where a process waits for a core for more than this share of its time."""
COMMAND = [sys.executable, "-m", "kdhub.evaluation.cost"]
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class NotMeasured(Exception):
    """The subject is such that its cost is not measured; the message says why."""


def of_files(student: Any, folder: Path, provenance: Mapping[str, Any]) -> list[Measure]:
    """What a student costs that does not answer (rows, a graph): its own numbers, and what making it took.

    Args:
        folder: where it is saved.
        provenance: of its run, `{}` where there is none: the seconds of `distilled`, and what servers were asked for.
    """
    spent: dict[str, float] = {}
    for of_kind in (provenance.get("spent") or {}).values():
        for name, value in of_kind.items():
            name = "tokens" if name.endswith("_tokens") else {"cost": "price"}.get(name, name)
            spent[name] = spent.get(name, 0) + value
    taken = {"making": (provenance.get("distilled") or {}).get("seconds"), **spent}
    found = {**{name: value for name, value in taken.items() if value is not None}, **student.costs(folder)}
    known = [cost_of("student", name, found[name], MADE[name]) for name in MADE if name in found]
    own, asked = own_costs(student.task), Costed(student, folder)
    return [*known, *_own({"subject": "student"}, own, _measured([spec.name for spec in own], student.task, asked))]


def own_costs(task: str) -> list[MetricSpec]:
    """The metrics of cost that models of a task have beside what all models cost."""
    return [entry.spec for entry in Registry().all("metric", task) if entry.spec.cost]


# -- the parent -----------------------------------------------------------------------------------------------


def measure(
    task: str,
    subjects: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 0.5,
    timeout: float = 600.0,
    against: str = TEACHER,
) -> list[Measure]:
    """Measure the cost of several models side by side.

    Args:
        task: name of the task.
        subjects: `{"subject": "student", "folder": path}` for a saved student, with `"member": name` for a member of
            one that is a family, or `"export": name` for one of its exports; `{"subject": "teacher", "source": text,
            **options}` for a teacher.
        rows: plain rows, JSON values and bytes; a few hundred give a steady throughput.
        threads: CPU threads of each process; the parent's when left out.
        rounds: turns each subject gets; up to three times as many while they disagree.
        seconds: what the slowest subject may take for each half of a turn, as far as one batch allows.
        timeout: seconds a process may take for one answer, loading included.
        against: the subject whose times those of the others are compared with.

    Returns:
        Measures with the metrics of `report.COSTS`, without data set. Where something could not be measured the value
        is None and the note says why. Times are the median round's, with their range, on others than `against` their
        ratio to its own, and a note where they were measured on a busy machine.
    """
    own = own_costs(task)
    request = {"task": task, "threads": threads or _threads(), "own": [spec.name for spec in own]}
    try:
        rows = json.loads(_dumps(list(rows)))
    except (TypeError, ValueError) as error:
        return [m for s in subjects for m in _measures(s, {}, f"rows that are not JSON values: {error}", own)]
    children, said = [_Child(dict(subject), timeout) for subject in subjects], None
    try:
        for child in children:
            child.ask({**request, "subject": child.subject, "rows": rows}, wait=False)
        for child in children:
            child.take()
        ready = [child for child in children if child.alive]
        timed = [child for child in ready if child.answer["single"]]
        if timed and rows:
            plan = {
                "singles": _spread(len(rows), 5, 50, seconds / max(c.answer["single"] for c in timed)),
                "batched": _spread(len(rows), BATCH, 2048, BATCH * seconds / max(c.answer["batch"] for c in timed)),
            }
            for n in range(3 * rounds):
                if n >= rounds and all(child.agrees for child in timed):
                    break
                for child in timed:
                    child.turn(plan)
            said = _said(timed)
        for child in ready:
            if child.alive:
                child.ask({"end": True})
        nothing = None if rows else "there were no rows to run it on"
        found = [(c, m) for c in children for m in _measures(c.subject, c.result(), c.problem or nothing, own)]
        return [
            _of_rounds(m, c, children, said, against) if m.metric in TIMES and m.value is not None else m
            for c, m in found
        ]
    finally:
        for child in children:
            child.close()


class _Child:
    """One process and what it answered; `problem` is why there is nothing (more) from it."""

    def __init__(self, subject: dict[str, Any], timeout: float):
        self.subject, self.timeout = subject, timeout
        self.name: str = subject["subject"]
        self.facts: dict[str, float] = {}
        self.answer: dict[str, Any] = {}
        self.rounds: dict[str, list[float]] = {metric: [] for metric in TIMES}  # of each turn, in their units
        self.waited: list[float] = []  # share of the time of each turn
        self.problem: str | None = None
        self._buffer = b""
        self._errors = tempfile.TemporaryFile()
        # The child sees what the parent sees (plugins too), but is no rank of a distributed job.
        environment = {k: v for k, v in os.environ.items() if k not in _RANKS}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self._process: subprocess.Popen | None = None
        try:
            self._process = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
            )
        except OSError as error:
            self.problem = f"its process did not start: {error.strerror or error}"

    @property
    def called(self) -> str:
        """What messages call it."""
        return " ".join(filter(None, (self.name, self.subject.get(MEMBER))))

    @property
    def alive(self) -> bool:
        return self.problem is None

    def ask(self, request: Mapping[str, Any], wait: bool = True) -> bool:
        """Send one line and, unless told, wait for the answer. False when there is none."""
        if not self.alive:
            return False
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone; reading says how
        return self.take() if wait else True

    def take(self) -> bool:
        """Read one answer; on failure end the process and note why."""
        if not self.alive:
            return False
        deadline = time.monotonic() + self.timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return self._fail(f"no answer within {self.timeout:g} s")
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                return self._fail(self._ending())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            self.answer = json.loads(line)
        except ValueError:
            return self._fail("its process did not answer in JSON")
        if "error" in self.answer:
            return self._fail(self.answer["error"])
        self.facts.update(self.answer.get("facts", {}))
        return True

    def turn(self, plan: Mapping[str, Any]) -> None:
        """One round."""
        if not self.ask(plan):
            return
        ordered = sorted(self.answer["singles"])
        self.rounds["latency-p50"].append(1000 * statistics.median(ordered))
        self.rounds["latency-p95"].append(1000 * ordered[round(0.95 * (len(ordered) - 1))])
        self.rounds["throughput"].append(len(plan["batched"]) / max(self.answer["batched"], 1e-9))
        self.waited.append(self.answer["waited"])

    @property
    def agrees(self) -> bool:
        """Whether its rounds are of one speed; the rarest of its times, p95, is not asked."""
        of = (self.rounds["latency-p50"], self.rounds["throughput"])
        return all(max(each) - min(each) <= AGREE * statistics.median(each) for each in of if each)

    def result(self) -> dict[str, float]:
        return self.facts | {metric: statistics.median(each) for metric, each in self.rounds.items() if each}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                try:
                    pipe.close()
                except OSError:
                    pass
            self._process.wait()
        self._errors.close()

    def _fail(self, problem: str) -> bool:
        self.problem = problem
        if self._process is not None:
            self._process.kill()
        return False

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how}" + (f" ({lines[-1][:200]})" if lines and code > 0 else "")


def _said(timed: Sequence[_Child]) -> str | None:
    """What must be said of times: of processes that waited for a core, and of rounds that disagree."""
    parts = []
    for child in timed:
        waited, times = statistics.median(child.waited or [0.0]), child.rounds["latency-p50"]
        if waited > WAITED:
            parts.append(f"the {child.called}'s process waited for a core {waited:.0%} of the time")
        if not child.agrees:
            parts.append(f"rounds of the {child.called} gave a latency of {min(times):.3g} to {max(times):.3g} ms")
    if not parts:
        return None
    return f"times were measured on a busy machine: {'; '.join(parts)}. Ratios, measured in turns, say more than times"


def _of_rounds(measure: Measure, child: _Child, children: Sequence[_Child], said: str | None, against: str) -> Measure:
    """A child's time with its range, its ratio to that of `against` in the same rounds, and what must be said of it."""
    own = child.rounds[measure.metric]
    other = next((c.rounds[measure.metric] for c in children if c.name == against), None)
    ratio = None
    if other and measure.subject != against:
        ratio = statistics.median(mine / max(theirs, 1e-9) for mine, theirs in zip(own, other))
    return replace(measure, low=min(own), high=max(own), ratio=ratio, note=said)


def _measures(
    subject: Mapping[str, Any], result: Mapping[str, Any], problem: str | None, own: Sequence[MetricSpec]
) -> Iterator[Measure]:
    variant = _variant(subject)
    for metric, unit in UNITS.items():
        value = result.get(metric)
        if value is None and metric == "gpu-memory":
            continue  # most machines have none, which is no gap
        note = None
        if value is None:
            note = problem or result.get(f"{metric}?") or "it has no such number"
        yield cost_of(subject["subject"], metric, value, unit, note, variant=variant)
    yield from _own(subject, own, result, problem)


def _own(
    subject: Mapping[str, Any], own: Sequence[MetricSpec], result: Mapping[str, Any], problem: str | None = None
) -> Iterator[Measure]:
    """Costs of a task's own; one that means nothing for the subject is left out."""
    for spec in own:
        value, note = result.get(spec.name), result.get(f"{spec.name}?")
        if value is not None or note or problem:
            stated = {"unit": spec.unit, "higher_is_better": spec.higher_is_better, "variant": _variant(subject)}
            yield Measure(metric=spec.name, value=value, subject=subject["subject"], note=note or problem, **stated)


def _variant(subject: Mapping[str, Any]) -> dict[str, Any]:
    return {MEMBER: subject[MEMBER]} if MEMBER in subject else {}


def cost_of(subject: str, metric: str, value: float | None, unit: str, note: str | None = None, **more: Any) -> Measure:
    """A measure of cost."""
    stated = {"unit": unit, "higher_is_better": COSTS[metric][3]}
    return Measure(metric=metric, value=value, subject=subject, note=note, **stated, **more)


def _spread(rows: int, least: int, most: int, wanted: float) -> list[int]:
    """Evenly spaced row numbers, whole batches where there are several, as many as time allows."""
    count = int(min(max(wanted, least), most))
    if count > BATCH:
        count -= count % BATCH
    if count >= rows:
        return [i % rows for i in range(max(least, rows))]
    return [i * rows // count for i in range(count)]


def _threads() -> int:
    import torch

    return torch.get_num_threads()


# -- the child ------------------------------------------------------------------------------------------------


def main() -> None:
    """Load one subject, then answer requests until the input ends."""
    # Libraries print to stdout; answers go to the real one alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    requests = (json.loads(line) for line in sys.stdin.buffer)
    try:
        first = next(requests, None)
        if first is None:
            return
        worker = _Worker(first)
        answer(worker.start())
        for request in requests:
            if request.get("end"):
                answer({"facts": worker.memory()})
                return
            answer(worker.turn(request))
    except NotMeasured as reason:
        answer({"error": str(reason)})
    except Exception as error:
        import traceback

        traceback.print_exc()
        text = error.message if isinstance(error, KdhubError) else f"{type(error).__name__}: {error}"
        answer({"error": text[:300]})


class _Worker:
    def __init__(self, request: Mapping[str, Any]):
        import torch

        torch.set_num_threads(request["threads"])
        self.task, self.model, self.folder = _open(request["task"], request["subject"])
        self.own_folder, self.export = "folder" in request["subject"], request["subject"].get(EXPORT)
        self.rows: list[Any] = []
        self.task_name, self.own = request["task"], request["own"]
        if isinstance(self.task, NetworkTask):  # of others there is a size, and no pass to time
            rows = [_restore(row) for row in request["rows"]]
            pair = (self.model, None) if self.own_folder else (None, self.model)
            self.prepare: Callable = self.task.preparer(*pair)
            self.signal = self.task.primary_signal
            self.rows = [row for row, e in zip(rows, prepared(self.prepare, rows)) if "fault" not in e]
        self.lengths = [example["length"] for example in self.prepare(self.rows)] if self.rows else []

    def start(self) -> dict[str, Any]:
        """Warm up; then what needs no clock, and the two times a plan is made from."""
        facts: dict[str, Any] = {}
        single = batch = 0.0
        if self.rows:
            typical = sorted(range(len(self.rows)), key=self.lengths.__getitem__)
            middle = typical[len(typical) // 2]
            some = [typical[i * len(typical) // BATCH] for i in range(min(BATCH, len(typical)))]
            for _ in range(3):
                single, batch = self.run([middle]), self.run(some)
            facts.update(self.flops(middle))
        facts.update(self.size())
        if self.own:
            facts.update(_measured(self.own, self.task_name, self.asked()))
        return {"facts": facts, "single": single and max(single, 1e-6), "batch": max(batch, 1e-6)}

    def asked(self) -> Costed:
        """What metrics of cost are given."""

        def answer(n: int) -> Mapping[str, Any]:
            return self.model.signals(self.prepare(self.rows[:n]), self.signal)

        return Costed(self.model, self.folder, answer if self.rows else None)

    def run(self, numbers: Sequence[int]) -> float:
        """Seconds from plain rows to their answers, in one batch."""
        began = time.perf_counter()
        self.model.signals(self.prepare([self.rows[i] for i in numbers]), self.signal)
        return time.perf_counter() - began

    def turn(self, request: Mapping[str, Any]) -> dict[str, Any]:
        gc.collect()
        before = _scheduled()
        singles = [self.run([i]) for i in request["singles"]]
        ordered = sorted(request["batched"], key=self.lengths.__getitem__)
        batched = sum(self.run(ordered[i : i + BATCH]) for i in range(0, len(ordered), BATCH))
        ran, waited = (now - then for now, then in zip(_scheduled(), before))
        return {"singles": singles, "batched": batched, "waited": max(0.0, waited / max(ran + waited, 1e-9))}

    def size(self) -> dict[str, Any]:
        module = getattr(self.model, "module", None)
        facts: dict[str, Any] = {}
        if module is None:
            facts["parameters?"] = "it is not a network"
        else:
            facts["parameters"] = sum(p.numel() for p in module.parameters())
        if self.folder is not None:
            facts["disk"] = weight_bytes(self.folder, own=self.own_folder, export=self.export)
        elif module is not None:
            # Not in a folder: what the weights would take as they stand in memory.
            facts["disk"] = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
        return facts

    def flops(self, number: int) -> dict[str, Any]:
        """Operations of one forward pass on a row of median length, a multiplication and an addition being two."""
        try:
            count = flops(self.task, self.model, self.prepare([self.rows[number]])[0])
        except Exception as error:  # counting is a courtesy of the library; the other numbers do not need it
            return {"flops?": f"could not be counted: {type(error).__name__}"}
        return {"flops": count} if count else {"flops?": "could not be counted"}

    def memory(self) -> dict[str, Any]:
        import torch

        facts: dict[str, Any] = {"memory": peak_memory()}
        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            facts["gpu-memory"] = torch.cuda.max_memory_allocated()
        return facts


def _measured(own: Sequence[str], task: str, asked: Costed) -> dict[str, Any]:
    """Costs of a task's own by their names, or under `NAME?` why one could not be measured."""
    found: dict[str, Any] = {}
    registry = Registry()
    for name in own:
        try:
            value = registry.load(registry.find("metric", name, task))(asked)
            found |= {} if value is None else {name: float(value)}
        except Exception as error:  # as with FLOPs: the other numbers do not need it
            found[f"{name}?"] = f"could not be measured: {type(error).__name__}: {error}"
    return found


def _open(task_name: str, subject: Mapping[str, Any]) -> tuple[Any, Any, Path | None]:
    """The task, the model, and the folder its weights lie in, if it has one."""
    from kdhub.recipes.recipe import Ref
    from kdhub.recipes.resolve import Resolver

    resolver = Resolver()
    task = resolver.task(task_name)
    if "folder" in subject:
        folder = Path(subject["folder"])
        student = task.load(folder)
        if EXPORT in subject:
            return task, attached(student, folder, subject[EXPORT], resolver.registry), folder
        return (task, student, folder) if MEMBER not in subject else (task, student.cut(subject[MEMBER]), None)
    ref = Ref.model_validate({k: v for k, v in subject.items() if k != "subject"})
    if not resolver.target("teacher", ref.source, task_name).entry.spec.live:
        raise NotMeasured("it runs behind an API, so what it costs cannot be measured from here")
    teacher = resolver.teacher(ref, task_name)
    folder = getattr(teacher, "folder", None)
    return task, teacher, Path(folder) if folder is not None else None


def _scheduled() -> tuple[float, float]:
    """Nanoseconds that the threads of this process ran, and that they could have run but had no core; 0 where the
    system does not say (it is Linux that does)."""
    ran = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            numbers = path.read_text().split()
        except OSError:  # the thread has ended
            continue
        ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    return ran, waited


def weight_bytes(folder: Path, *, own: bool = True, export: str | None = None) -> int:
    """Bytes of the weights in a folder.

    Args:
        own: the folder holds one student and its exports, so that all other weight files count. A teacher's repository
            may hold the same weights in several formats; only the first of them counts.
        export: the bytes of this export instead.
    """
    exported = {name: {folder / file for file in one["files"]} for name, one in exports(folder).items()} if own else {}
    if export is not None:
        return sum(path.stat().st_size for path in exported[export])
    others = set().union(*exported.values())
    groups = ((".safetensors",), (".bin", ".pt"), (".npz", ".npy"), (".onnx", ".onnx_data"), (".gguf",))
    files = [p for p in folder.rglob("*") if p.is_file() and p not in others]
    sizes = [sum(p.stat().st_size for p in files if p.suffix in group) for group in groups]
    if own:
        return sum(sizes) or sum(p.stat().st_size for p in files if p.suffix != ".md")
    return next((size for size in sizes if size), 0)


def reset_peak_memory() -> None:
    """Reset `peak_memory`, where the system can: in a process that does one thing after the other."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory() -> int:
    """Most bytes this process ever had in memory, libraries included.

    `ru_maxrss` will not do on Linux: a process starts with the value of the one that started it.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _dumps(value: Any) -> str:
    """JSON, with bytes as {"$bytes": base64}."""

    def default(item: Any) -> Any:
        if isinstance(item, bytes):
            return {"$bytes": base64.b64encode(item).decode()}
        if hasattr(item, "tolist"):
            return item.tolist()
        raise TypeError(f"a {type(item).__name__}")

    return json.dumps(value, default=default, allow_nan=False)


def _restore(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"$bytes"}:
            return base64.b64decode(value["$bytes"])
        return {k: _restore(v) for k, v in value.items()}
    return [_restore(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
