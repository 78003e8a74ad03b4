"""The run folder: what one execution of a recipe leaves on disk, whole at every moment.

recipe.yaml       the resolved recipe
provenance.json   teacher and student revisions and digests, data fingerprints, versions, hardware, seeds
metrics.jsonl     one line for each logged step
state.json        finished stages and what they gave
checkpoints/      training state, each whole or not there
drawn/            what the models gave on the rows that are drawn; like checkpoints, until the run has ended
student/          the student, in its ecosystem's own format
report.json, plots/, README.md
seals.json        size and digest of the files, by which a change is noticed when they are used
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdhub import notebook
from kdhub.errors import InUseError, RecipeError, RunError
from kdhub.files import atomic_write, changed, is_leftover, read_sealed, sealed, write_json, write_sealed
from kdhub.plain_json import fit, plain_json
from kdhub.ranks import rank, world_size
from kdhub.recipes.recipe import Layer, Recipe, build, read_yaml
from kdhub.recipes.run_shapes import SHAPES, Logged
from kdhub.secrets import redact

SCHEMA = 1
_SEALS = "seals.json"
_SEALED = ("state.json", _SEALS)
_NOTES = ("recipe.yaml", "provenance.json", "state.json")  # what a run has before it does anything


class Run:
    """A run folder. `Run.create` makes one, `Run.open` reads one.

    Attributes:
        folder: its path.
        recipe: the resolved recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.recipe = recipe
        # looking at a run (`cache verify --run`) leaves it as it is; so does what is done with one after it was sealed:
        # whoever holds its session may go on reading rows and building starts
        self.read_only = False
        self._lock: Any = None
        self._log_is_whole = False  # until this process has looked
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []  # of what is logged
        self._stages: list[str] = []  # under way, each inside the one before
        self._fits: Counter[tuple[str, str]] = Counter()  # trainings begun by this process: stage and name

    def _repr_html_(self) -> str:
        known = {"method": self.recipe.method, "task": self.recipe.task, "seed": self.recipe.seed}
        rows = [("folder", self.folder), *known.items(), ("finished", "yes" if self.finished("done") else "no")]
        plain = [m for m in (self.report or {}).get("measures", ()) if m.get("dataset") and not m.get("variant")]
        scores = [(m["metric"], m["dataset"], m["subject"], m["value"]) for m in plain if m.get("value") is not None]
        blocks = [notebook.table("Run", (), rows, left=2)]
        if scores:
            shown = [(*names, f"{value:.4g}") for *names, value in scores]
            blocks.append(notebook.table("Measured", ("metric", "data", "of", "value"), shown, left=3))
        return "".join(blocks) + notebook.pictures(self.folder / "plots")

    # -- making and opening -----------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> Run:
        """A new folder, locked for this job, with its recipe written.

        Raises:
            RunError: the folder exists and is not empty, or cannot be made.
        """
        folder = Path(folder)
        if rank() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # A job killed before its recipe was written leaves a lock and perhaps half a file: nothing to keep.
                taken = any(p.name != ".lock" and not is_leftover(p) for p in folder.iterdir())
            except OSError as error:
                raise RunError(f"cannot make the run folder {folder}: {error.strerror}") from error
            if taken:
                hint = (
                    f"continue it with: kdhub distill --resume {folder}" if (folder / "recipe.yaml").exists() else None
                )
                raise RunError(f"{folder} is not empty", hint=hint or "choose another folder with --out")
        run = cls(folder, recipe)
        run.lock()
        if rank() == 0:
            run._write("recipe.yaml", recipe.to_yaml())
        return run

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """An existing run.

        Raises:
            RunError: the folder is not a run, or was written by a newer kdhub.
        """
        folder = Path(folder)
        path = folder / "recipe.yaml"
        if not path.is_file():
            raise RunError(f"{folder} is not a run: it has no recipe.yaml")
        try:
            values = read_yaml(path)
            if values.get("schema") != SCHEMA:
                raise RunError(f"{path} has schema {values.get('schema')!r}, this kdhub reads {SCHEMA}")
            return cls(folder, build([Layer(str(path), values)]))
        except RecipeError as error:
            raise RunError(f"{folder} cannot be read: {error.message}") from error

    def lock(self) -> None:
        """Keep other jobs out until this process ends; the ranks of one job share the folder.

        Raises:
            InUseError: another job has it. RunError: it cannot be written.
        """
        if rank() != 0:
            return
        from filelock import FileLock, Timeout

        self._lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise InUseError(
                f"{self.folder} is in use by another kdhub job", hint="wait for it to end, or choose another --out"
            ) from None
        except OSError as error:
            raise RunError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        for path in filter(is_leftover, self.folder.iterdir()):  # of a killed job: nobody else writes here now
            path.unlink(missing_ok=True)

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard_unbegun(self) -> None:
        """Remove the folder, if nothing in it cost anything yet: no stage is finished and no training has begun."""
        if rank() != 0 or {p.name for p in self.folder.iterdir()} - {".lock", *_NOTES}:
            return
        begun = self.read_json("state.json", {"stages": {}})
        if not begun["stages"] and not begun.get("fits"):
            self.unlock()
            for name in (*_NOTES, ".lock"):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    # -- files ------------------------------------------------------------------------------------------------

    @property
    def student_folder(self) -> Path:
        return self.folder / "student"

    def seal_student(self) -> None:
        """Note what the student's files are, now that they are whole."""
        self.write_json(_SEALS, {"schema": SCHEMA, "files": sealed(self.folder, self.student_folder.rglob("*"))})

    def seal(self) -> None:
        """Note also what is told of the student, now that nothing more is to come."""
        told = [self.folder / name for name in ("recipe.yaml", "provenance.json", "report.json", "metrics.jsonl")]
        known = self.read_json(_SEALS, {"schema": SCHEMA, "files": {}})
        self.write_json(_SEALS, {**known, "files": {**known["files"], **sealed(self.folder, told)}})

    def seal_exports(self, paths: Iterable[Path]) -> None:
        """Note also what was exported of the student."""
        known = self.read_json(_SEALS, {"schema": SCHEMA, "files": {}})
        self.write_json(_SEALS, {**known, "files": {**known["files"], **sealed(self.folder, paths)}})

    def damage(self, below: str = "") -> list[str]:
        """The files that are no longer what the run saved, all or those below a name. Runs from before seals have no
        such list."""
        try:
            known = self.read_json(_SEALS, {"files": {}})["files"]
            return changed(self.folder, {name: seal for name, seal in known.items() if name.startswith(below)})
        except RunError:
            return [_SEALS]

    def whole_student(self, told: bool = False) -> Path:
        """The folder of the student.

        Args:
            told: what is told of it, report and provenance, must be what was saved too.

        Raises:
            RunError: there is none yet, or it is no longer what the run saved.
        """
        if not self.student_folder.is_dir():
            raise RunError(f"{self.folder} has no student yet", hint=f"kdhub distill --resume {self.folder}")
        if damage := self.damage("" if told else "student/"):
            raise RunError(
                f"{self.folder} is not what was saved: {', '.join(damage[:3])} changed since",
                hint="distil it again, or copy it elsewhere and open that folder if the change is meant",
            )
        return self.student_folder

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def read_json(self, name: str, default: Any = None) -> Any:
        path = self.folder / name
        try:
            value = read_sealed(path) if path.exists() else default
            return fit(SHAPES[name], value) if name in SHAPES else value
        except ValueError as error:
            raise self._damaged(path, error) from error
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from error

    @staticmethod
    def _damaged(path: Path, why: Any) -> RunError:
        return RunError(f"{path} is damaged: {why}", hint="every file is written whole; was it edited?")

    def write_json(self, name: str, value: Any) -> None:
        if rank() == 0 and not self.read_only:
            write = write_sealed if name in _SEALED else write_json
            self._guard(lambda: write(self.folder / name, value), name)

    def _write(self, name: str, text: str) -> None:
        self._guard(lambda: atomic_write(self.folder / name, text), name)

    def _guard(self, work: Callable[[], None], name: str) -> None:
        try:
            work()
        except OSError as error:
            raise RunError(
                f"cannot write {self.folder / name}: {error.strerror or error}",
                hint="what was written before is whole; free space or permission, then use --resume",
            ) from error

    @property
    def report(self) -> dict[str, Any] | None:
        """The report as written, or None before evaluation."""
        return self.read_json("report.json")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Logged steps, oldest first. A half-written last line (after a kill) is left out."""
        if not self.metrics_path.exists():
            return
        with open(self.metrics_path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    try:
                        yield plain_json(line, Logged)
                    except ValueError as error:
                        raise self._damaged(self.metrics_path, f"line {number}, {error}") from error

    def log(self, **record: Any) -> None:
        """Add one line to `metrics.jsonl`."""
        if rank() != 0 or self.read_only:
            return
        line = json.dumps(record, default=float) + "\n"

        def append() -> None:
            if not self._log_is_whole:
                self._drop_half_line()
            with open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(line)

        self._guard(append, self.metrics_path.name)
        self._log_is_whole = True
        for heard in self.listeners:
            heard(record)

    def _drop_half_line(self) -> None:
        """Cut off what a killed process left of its last line; ours would grow onto it."""
        if self.metrics_path.is_file():
            with open(self.metrics_path, "r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def rewind_metrics(self, step: int, fit: int = 1) -> None:
        """Drop lines past a checkpoint that training goes on from, so that no step stands twice; of the run's `fit`-th
        training, the first of which does not say so. Lines of several stand in their order."""
        if rank() == 0 and self.metrics_path.exists():
            kept = [r for r in self.metrics() if r.get("fit", 1) != fit or r.get("step", 0) <= step]
            kept.sort(key=lambda r: r.get("fit", 1))
            self._write("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))

    # -- stages -----------------------------------------------------------------------------------------------

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Do `work` once in the life of the run and keep its result (JSON values); a resumed run finds it.

        For methods with their own `distill`: whatever else a stage makes must be whole on disk before it returns.
        """
        done = self.read_json("state.json", {"schema": SCHEMA, "stages": {}})
        if name in done["stages"]:
            return done["stages"][name]
        self._stages.append(name)
        try:
            result = work()
        finally:
            self._stages.pop()
        done = self.read_json("state.json", {"schema": SCHEMA, "stages": {}})
        done["stages"][name] = result
        self.write_json("state.json", done)
        return result

    def finished(self, name: str) -> bool:
        return name in self.read_json("state.json", {"stages": {}})["stages"]

    # -- what it stands on ------------------------------------------------------------------------------------

    def same(self, what: str, now: Mapping[str, Any]) -> None:
        """Keep something that the run stands on (its recipe, data, teacher), and refuse to go on with anything else:
        half of the steps would be of the one and half of the other.

        Args:
            what: its name in messages ("teacher"); now: facts that change with it, JSON values.

        Raises:
            RunError: it is not what it was when the run began; with what changed.
        """
        if rank() != 0 or self.read_only:
            return
        done = self.read_json("state.json", {"schema": SCHEMA, "stages": {}})
        before, now = done.setdefault("inputs", {}).get(what), json.loads(json.dumps(now))
        if before is None:
            done["inputs"][what] = now
            self.write_json("state.json", done)
        elif before != now:
            old, new = dict(_leaves(before)), dict(_leaves(now))
            changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            each = [f"{key} was {old.get(key, 'not set')!s}, now {new.get(key, 'not set')!s}" for key in changed[:5]]
            raise RunError(
                f"{self.folder} began with another {what}: {'; '.join(each)}",
                hint="put back what it began with, or start a new run with another --out",
            )

    def next_fit(self, name: str | None = None) -> int:
        """Which training of the run begins now, from 1; the same number when it is reached again after a kill.

        It is found again by its name, else by its order in its stage: a resumed run does not come through a stage that
        is finished.

        Raises:
            RunError: another training of the run has this name.
        """
        self._fits[of := ("/".join(self._stages), name or "")] += 1
        key = f"{of[0]}:{name}" if name else f"{of[0]}#{self._fits[of]}"
        done = self.read_json("state.json", {"schema": SCHEMA, "stages": {}})
        fits = done.setdefault("fits", [])
        if name and (self._fits[of] > 1 or any(k.endswith(f":{name}") and k != key for k in fits)):
            raise RunError(
                f"two trainings of {self.folder} have the name {name!r}: the second would go on from the first one's "
                "checkpoints", hint="give each call of run.fit a name of its own, or none",
            )  # fmt: skip
        if key not in fits:
            fits.append(key)
            self.write_json("state.json", done)
        return 1 + fits.index(key)

    # -- provenance -------------------------------------------------------------------------------------------

    @property
    def provenance(self) -> dict[str, Any]:
        return self.read_json("provenance.json", {"schema": SCHEMA})

    def add_provenance(self, **facts: Any) -> None:
        """Merge facts into `provenance.json`, one level deep."""
        value = self.provenance
        for key, fact in facts.items():
            old = value.get(key)
            value[key] = {**old, **fact} if isinstance(old, dict) and isinstance(fact, Mapping) else fact
        self.write_json("provenance.json", value)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in mappings and lists, with where each stands ("options.batch_size")."""
    if not isinstance(value, (Mapping, list)) or not value:
        yield name, value
        return
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


def environment() -> dict[str, Any]:
    """Versions, hardware and time of this process, for `provenance.json`."""
    from importlib.metadata import PackageNotFoundError, version

    import psutil
    import torch

    names = ("kdhub", "torch", "transformers", "sentence-transformers", "accelerate", "datasets", "numpy", "tokenizers")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": platform.system(),
        "hardware": hardware,
        "ranks": world_size(),
        "git": _git_state(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["kdhub", *map(redact, sys.argv[1:])] if Path(sys.argv[0]).stem in ("kdhub", "__main__") else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the working folder, when it is a git checkout."""
    try:
        ask = lambda *a: subprocess.run(("git", *a), capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: E731
        return {"commit": ask("rev-parse", "HEAD").strip(), "dirty": bool(ask("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return None
