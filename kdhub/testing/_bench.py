"""Where something is tried: a folder of its own, a tiny recipe, and the runs made with it, each once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import numpy as np

from kdhub.errors import KdhubError
from kdhub.plugins.discovery import PluginRecord, canonical
from kdhub.plugins.registry import Entry, Registry
from kdhub.recipes.recipe import ROLES, Layer, combine
from kdhub.recipes.resolve import Resolver
from kdhub.specs import MAIN
from kdhub.teacher import Teacher
from kdhub.testing._ranks import pair
from kdhub.verbs.distill import distill

if TYPE_CHECKING:
    from kdhub.data.dataset import Data
    from kdhub.recipes.run import Run

TINY_OPTIONS = {"batch_size": 8, "max_steps": 6, "precision": "float32", "lr": 0.01, "checkpoint_steps": 2}
"""What a method that is trained by the engine is tried with, where its options have these names."""

KILLED_AT = 5
"""The step at which a run is broken off: after a checkpoint, and before the next."""


class Killed(BaseException):
    """Stands for a kill: no plugin may catch it."""


class Group:
    """What is checked together: entries of one distribution, and the folder they are tried in."""

    def __init__(self, entries: Sequence[Entry], registry: Registry, records: Mapping[str, PluginRecord]):
        self.registry, self.records = registry, records
        self._benches = {id(entry): Bench(entry, self) for entry in entries}
        self._place: tempfile.TemporaryDirectory | None = None

    def bench(self, entry: Entry) -> Bench:
        return self._benches[id(entry)]

    @property
    def folder(self) -> Path:
        if self._place is None:  # made late: collecting tests makes no folders
            self._place = tempfile.TemporaryDirectory(prefix="kdhub-testing-")
        return Path(self._place.name).resolve()

    def child(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
        """A fresh interpreter that finds the same packages."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.folder,
        )


class Bench:
    """One entry being checked.

    Attributes:
        entry: what is checked; spec, name and distribution.
        folder: its own.
    """

    def __init__(self, entry: Entry, group: Group):
        self.entry, self.group = entry, group
        self.spec, self.registry = entry.spec, group.registry
        self._trials: dict[str, Trial] = {}

    def run_check(self, function: Callable[[Bench], None]) -> None:
        with self.apart():
            function(self)

    @property
    def folder(self) -> Path:
        folder = self.group.folder / f"{self.spec.kind}-{self.entry.name}"
        folder.mkdir(exist_ok=True)
        return folder

    def empty_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A kdhub home and a working folder of the kit's own, and quiet."""
        home, work = self.group.folder / "home", self.folder / "here"
        for place in (home, work):
            place.mkdir(exist_ok=True)
        logger, before, here = logging.getLogger("kdhub"), logging.getLogger("kdhub").level, os.getcwd()
        logger.setLevel(logging.ERROR)
        os.chdir(work)
        try:
            with _variables(KDHUB_HOME=str(home)):
                yield
        finally:
            os.chdir(here)
            logger.setLevel(before)

    @cached_property
    def target(self) -> Any:
        return self.registry.load(self.entry)

    @property
    def record(self) -> PluginRecord:
        return self.group.records[canonical(self.entry.distribution)]

    # -- recipes ----------------------------------------------------------------------------------------------

    @cached_property
    def task_names(self) -> list[str]:
        """The tasks it is for; all that are installed when it is for any."""
        return list(self.spec.tasks) or [entry.name for entry in self.registry.all("task")]

    @cached_property
    def task(self) -> str:
        """The first of its tasks that has a tiny recipe, those of the distribution with most tasks first: what is
        new in another one is tried beside it (`works_for_every_task_it_names`), and does not take its place."""
        by = {entry.name: entry.distribution for entry in self.registry.all("task")}
        for name in sorted(self.task_names, key=lambda task: -list(by.values()).count(by.get(task))):
            if self.tiny(name) is not None:
                return name
        raise SkipTest(f"no tiny recipe: {', '.join(self.task_names)} has no tiny_recipe()")

    def tiny(self, task: str) -> dict[str, Any] | None:
        """The task's tiny recipe, its files made in the group's folder once."""
        folder = self.group.folder / f"tiny-{task}"
        kept = folder / "recipe.json"
        if not kept.exists():
            folder.mkdir(exist_ok=True)
            with self.apart():
                made = Resolver(self.registry).task(task).tiny_recipe(folder)
            kept.write_text(json.dumps(made))
        return json.loads(kept.read_text())

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What a method is tried with: the task's tiny recipe, and what the method's own `tiny_recipe` changes."""
        return self.recipe_for(self.task)

    def recipe_for(self, task: str) -> dict[str, Any]:
        fields = getattr(getattr(self.target, "Options", None), "model_fields", {})
        options = {name: value for name, value in TINY_OPTIONS.items() if name in fields}
        base = {**self.tiny(task), "task": task, "method": self.entry.qualified, "options": options}
        own = getattr(self.target, "tiny_recipe_for", {}).get(task, getattr(self.target, "tiny_recipe", {}))
        asked = [role for role in self.spec.teachers.values() if not role.optional]
        if "teacher" not in own and any(role.name != MAIN for role in asked):
            each = {role.name: self.tiny((role.tasks or (task,))[0])["teacher"] for role in asked}
            base["teacher"] = {"source": ROLES, **each}
        elif "teacher" not in own and not asked:  # a method without a teacher is not given one
            base.pop("teacher", None)
        return combine([Layer("task", base), Layer("method", dict(own))])

    # -- runs -------------------------------------------------------------------------------------------------

    @property
    def plain(self) -> Trial:
        """The recipe as it is, with evaluation and page."""
        return self.trial("base", page=True)

    @property
    def base(self) -> Trial:
        """The plain run, which others follow.

        Raises:
            SkipTest: it failed; the check `distils` says why.
        """
        trial = self.plain
        if trial.error is not None:
            raise SkipTest("it does not distil; see the check distils")
        return trial

    def two_processes(self) -> Path:
        """The plain run under `torchrun` with two processes: its folder.

        Raises:
            AssertionError: it failed there; with the end of what it printed.
        """
        folder = self.folder / "ranks"
        pair().distil(self.recipe, folder)
        return folder

    @property
    def unscored(self) -> Trial:
        """The same without evaluation: what others are compared with."""
        self.base  # noqa: B018 - skips when it failed
        return self.trial("unscored", evaluation={"data": []})

    def trial(self, name: str, *, watch: Watch | None = None, page: bool = False, **changes: Any) -> Trial:
        """Distil the tiny recipe with some keys changed, once under this name; what it raises is kept. Plots and card
        would take half of the time, and are the same in each (`page`)."""
        if name not in self._trials:
            watch = watch or Watch(self.registry)
            recipe = combine([Layer("recipe", self.recipe), Layer("check", changes)])
            self._trials[name] = self._try(
                watch, lambda: distill(recipe, out=self.folder / name, page=page, resolver=watch)
            )
        return self._trials[name]

    def resumed(self, trial: Trial) -> Trial:
        return self.resumed_at(trial.run.folder, Watch(self.registry))

    def resumed_at(self, folder: Path, watch: Watch) -> Trial:
        return self._try(watch, lambda: distill(resume=folder, page=False, resolver=watch))

    def _try(self, watch: Watch, work: Callable[[], Run]) -> Trial:
        error, run = None, None
        _disturb_generators()
        with _Written() as written, _splits_read() as read:
            try:
                run = work()
            except Exception as caught:
                error = caught
            except Killed as caught:
                error = caught
        if run is None and watch.session is not None:
            run = watch.session.run
            run.unlock()
        return Trial(run, watch, error, written.files, read)


@dataclass
class Trial:
    """One run of the tiny recipe.

    Attributes:
        run: its folder; None when it failed before there was one.
        watch: the teacher, student and method it was made with.
        error: what it raised.
        written: files that Python code opened for writing.
        read: name and split of the data whose rows were read; rows that a method makes itself (a teacher's answers)
            are none of anybody's splits.
    """

    run: Run | None
    watch: Watch
    error: BaseException | None
    written: set[Path]
    read: set[tuple[str, str]]

    @property
    def files(self) -> dict[str, bytes]:
        """The student's files."""
        folder = self.run.student_folder
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def difference(self, other: Trial) -> str:
        """Which files of the students differ; "" when none does."""
        mine, theirs = self.files, other.files
        return ", ".join(n for n in sorted(mine.keys() | theirs.keys()) if mine.get(n) != theirs.get(n))


class Watch(Resolver):
    """A resolver that keeps what it makes, and may change it before a method sees it.

    Attributes:
        teachers: each with its network's state when it was made.
        session: what the method was given as `run`.
        result: what its `distill` returned.
        extras: the extra modules it declared.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        teacher: Callable[[Teacher], None] | None = None,
        student: Callable[[Any], None] | None = None,
        method: Callable[[Any, Any], None] | None = None,
    ):
        super().__init__(registry)
        self.changes = {"teacher": teacher, "student": student, "method": method}
        self.teachers: list[tuple[Teacher, Any]] = []
        self.used: Any = None
        self.session: Any = None
        self.result: Any = None
        self.extras: dict[str, Any] = {}
        self.opened: list[Data] = []

    def teacher(self, ref: Any, task: str) -> Teacher:
        made = super().teacher(ref, task)
        if self.changes["teacher"]:
            self.changes["teacher"](made)
        self.teachers.append((made, module_state(made.module)))
        return made

    def student(self, ref: Any, context: Any) -> Any:
        made = super().student(ref, context)
        if self.changes["student"]:
            self.changes["student"](made)
        return made

    def method(self, recipe: Any, layers: Any = ()) -> Any:
        made = super().method(recipe, layers)
        own = made.distill

        def watched(session: Any) -> Any:
            self.session, self.used = session, made
            if self.changes["method"]:
                self.changes["method"](made, session)
            self.result = own(session)
            return self.result

        made.distill = watched
        if hasattr(made, "extras"):
            declared = made.extras

            def extras(*arguments: Any) -> Any:
                self.extras = dict(declared(*arguments))
                return self.extras

            made.extras = extras
        return made


class Mute(Teacher):
    """A teacher that gives nothing. It must never be built."""

    def __init__(self, argument: str, options: Any = None, *, task: Any = None):
        raise AssertionError("a teacher was built before the recipe was checked")

    identity: Any = {}
    signals = layout = None  # never asked


def module_state(module: Any) -> Any:
    """Weights, mode and gradient switches of a network."""
    if module is None:
        return None
    weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
    return weights, module.training, {name: p.requires_grad for name, p in module.named_parameters()}


def reversed_signals(teacher: Teacher, kind: str) -> None:
    """Make a teacher give another output of one kind: reversed along the last axis, which keeps norms and sums.
    Where it runs inside training, its weights change their sign."""
    cls = type(teacher)

    class Reversed(cls):
        @property
        def identity(self) -> Mapping[str, Any]:
            return {**super().identity, "reversed": kind}

        def signals(self, examples: Any, asked: str) -> Any:
            given = super().signals(examples, asked)
            own = asked.partition(":")[0] == kind  # or a part of it: a layer, the largest
            return {n: _reversed(v) for n, v in given.items()} if own else given

    teacher.__class__ = Reversed
    if teacher.module is not None:
        import torch

        with torch.no_grad():
            for parameter in teacher.module.parameters():
                parameter.neg_()


def _reversed(values: Any) -> Any:
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.number):
        return np.ascontiguousarray(values[..., ::-1]) if values.ndim > 1 and values.shape[-1] > 1 else 1 - values
    return [_reversed(v) if isinstance(v, np.ndarray) else v[::-1] for v in values]


def failed(error: BaseException | None) -> str:
    """An error as one line."""
    name = type(error).__name__
    said = error.message if isinstance(error, KdhubError) else str(error)
    return f"{name}: {' '.join(said.split())}"


class _Written:
    """Files that Python code opens for writing, or makes by renaming, while this is entered."""

    _active: list[_Written] = []
    _installed = False

    def __enter__(self) -> _Written:
        self.files: set[Path] = set()
        if not _Written._installed:  # an audit hook cannot be taken away again
            sys.addaudithook(_Written._saw)
            _Written._installed = True
        _Written._active.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _Written._active.remove(self)

    @staticmethod
    def _saw(event: str, arguments: tuple) -> None:
        if not _Written._active or event not in ("open", "os.rename"):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        writes = event == "os.rename" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and isinstance(path, (str, bytes, os.PathLike)):
            for one in _Written._active:
                one.files.add(Path(os.path.abspath(os.fsdecode(path))))


@contextlib.contextmanager
def _splits_read() -> Iterator[set[tuple[str, str]]]:
    """Name and split of data whose rows are read while this is entered."""
    from kdhub.data.dataset import Data

    read: set[tuple[str, str]] = set()
    own = Data.split

    def split(self: Data, name: str, *arguments: Any, **how: Any) -> Any:
        if not self.ref.startswith("made:"):
            read.add((self.name, name))
        return own(self, name, *arguments, **how)

    Data.split = split
    try:
        yield read
    finally:
        Data.split = own


def _disturb_generators() -> None:
    """Other global random states than those of the run before: nobody may depend on them."""
    import random

    import torch

    noise = int.from_bytes(os.urandom(4), "little")
    random.seed(noise)
    np.random.seed(noise)
    torch.manual_seed(noise)


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
