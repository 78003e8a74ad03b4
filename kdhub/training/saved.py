"""The student as anybody will open it: its precision, and whether the folder holds what was trained.

Weights are trained in float32, whatever they are saved in, and rounded once, before they are saved. Then the folder is
opened by the task, as a stranger opens it. It must have the same weights, bit for bit, and give the same outputs for a
few rows. What is opened is what is measured.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import TrainingError
from kdhub.files import write_json
from kdhub.recipes.run import Run
from kdhub.rows import plain_rows, prepared
from kdhub.student import ENCLOSED, Student, enclosed_in, precision_of
from kdhub.task import NetworkTask, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger("kdhub")

ROWS, SEEN = 4, 32
"""Rows that outputs are compared on, and those that they are chosen from, as the ones of middle length."""
CLOSE = 1e-5
"""Largest difference of two outputs that are the same, relative to the largest output."""
ROUNDING = {"float32": 1e-4, "bfloat16": 2**-5, "float16": 2**-8}
"""The same where weights were added up and rounded in between."""


@dataclass
class Saved:
    """What a student was like when it was saved.

    Attributes:
        rows: plain rows, and outputs: what it gave for them; none for a student that is not a network.
        weights: name -> digest of the values.
        start: of the student (`Student.start`), which is not in its folder; withheld and limits likewise.
    """

    start: dict[str, Any]
    withheld: str = ""
    limits: Sequence[str] = ()
    precision: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    outputs: np.ndarray | None = None
    weights: dict[str, str] = field(default_factory=dict)


def save(run: Run, session: Any, student: Student) -> Saved:
    """Write a trained student into its place. It is written beside it and moved there, so that a student folder is
    always whole.

    Raises:
        TrainingError: its `finalise` changed what it gives.
    """
    task, saved = session.task, Saved(student.start, student.withheld, student.limits)
    if student.module is not None:
        saved.precision = student.precision
        saved.rows = _rows(session, student)
        finalise(task, student, saved.rows)
        narrow(student.module, saved.precision)
    staging = run.folder / ".student"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    student.save(staging)
    for name, value in student.enclosed.items():
        (staging / ENCLOSED).mkdir(exist_ok=True)
        write_json(staging / ENCLOSED / f"{name}.json", value)
    shutil.rmtree(run.student_folder, ignore_errors=True)
    staging.rename(run.student_folder)
    run.seal_student()
    if student.module is not None:
        with in_float32(student.module):
            saved.weights, saved.outputs = weights(student.module), outputs(task, student, saved.rows)
    return saved


def reopen(run: Run, session: Any, saved: Saved) -> Student:
    """The student that the folder holds; the one in memory should be gone by now.

    Raises:
        TrainingError: it is another one than was saved. Its folder is then `.student`.
    """
    gc.collect()
    student = session.task.load(run.student_folder)
    student.start, student.enclosed = saved.start, enclosed_in(run.student_folder)
    if student.module is None:
        return student
    with in_float32(student.module):
        if why := difference(session.task, student, saved):
            run.student_folder.rename(run.folder / ".student")
            raise TrainingError(
                f"the saved student is not the one that was trained: {why}",
                hint=f"{run.folder / '.student'} holds what was saved; {type(student).__name__}.save and the task's "
                "load must keep all that its outputs depend on",
            )
    return student


def finalise(task: Task, student: Student, rows: Sequence[dict[str, Any]]) -> None:
    """Have a student make its adapters permanent, and see that it gives what it gave."""
    if type(student).finalise is Student.finalise:
        return
    before = outputs(task, student, rows)
    student.finalise()
    if (far := _apart(before, outputs(task, student, rows))) > ROUNDING[precision_of(student.module)]:
        raise TrainingError(
            f"the trained student cannot be saved: with its adapter merged into the weights its outputs differ by "
            f"{far:.2g} of the largest",
            hint="adapt other layers (lora.targets)",
        )


def difference(task: Task, student: Student, saved: Saved) -> str:
    """How a student differs from what was saved; "" if it does not."""
    mine = weights(student.module)
    for names, said in (
        (saved.weights.keys() - mine.keys(), "are not in what is opened"),
        (mine.keys() - saved.weights.keys(), "are in what is opened alone"),
        ({n for n in mine if saved.weights.get(n, mine[n]) != mine[n]}, "have other values when it is opened"),
    ):
        if names:
            return f"{len(names)} of {len(saved.weights)} weights {said} ({', '.join(sorted(names)[:3])})"
    far = _apart(saved.outputs, outputs(task, student, saved.rows))
    return f"its outputs differ by {far:.2g} of the largest" if far > CLOSE else ""


def outputs(task: Task, student: Student, rows: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """What it gives for some plain rows, as one flat array; None without rows, and where the task has no networks."""
    if not isinstance(task, NetworkTask) or not rows:
        return None
    given = student.signals(task.preparer(student, None)(list(rows)), task.primary_signal)
    flat = [np.asarray(v, np.float32).ravel() for n in sorted(given) for v in given[n]]
    return np.concatenate(flat)


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor's values, of any type."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def weights(module: nn.Module) -> dict[str, str]:
    """Name -> digest of the values of a network's weights and of what else is saved with them."""
    digests: dict[tuple[int, Any], str] = {}  # weights that are tied have one

    def digest(tensor: torch.Tensor) -> str:
        key = tensor.data_ptr(), tensor.shape
        if key not in digests:
            digests[key] = hashlib.sha256(raw(tensor)).hexdigest()
        return digests[key]

    return {name: digest(tensor) for name, tensor in module.state_dict().items()}


def _apart(one: np.ndarray | None, two: np.ndarray | None) -> float:
    """The largest difference, relative to the largest number."""
    if one is None or two is None:
        return 0.0
    if one.shape != two.shape or not np.array_equal(np.isnan(one), np.isnan(two)):
        return float("inf")
    return float(np.nanmax(np.abs(one - two), initial=0) / max(np.nanmax(np.abs(one), initial=0), 1e-30))


def _rows(session: Any, student: Student) -> list[dict[str, Any]]:
    """Rows of middle length, of the first evaluation data or else the training data."""
    task = session.task
    if not isinstance(task, NetworkTask):
        return []
    if session.evaluator.data:
        rows = task.sample(*session.evaluator.data[0], SEEN)
    elif session.has_rows("train"):
        table = session.table("train")
        rows = plain_rows(table, range(min(SEEN, len(table))))
    else:
        return []
    examples = prepared(task.preparer(student, None), rows)
    lengths = [0 if "fault" in e else e.get("length", 1) for e in examples]
    order = [i for i in np.argsort(lengths, kind="stable").tolist() if lengths[i]]
    middle = max(0, (len(order) - ROWS) // 2)
    return [rows[i] for i in order[middle : middle + ROWS]]


# -- precision ------------------------------------------------------------------------------------------------


def widen(module: nn.Module) -> list[tuple[torch.Tensor, torch.dtype]]:
    """Have all of a network in float32 that is in a narrower precision, in place. Returns what was, and in which."""
    import torch

    changed = []
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            changed.append((tensor, tensor.dtype))
            tensor.data = tensor.data.float()
    return changed


def narrow(module: nn.Module, precision: str) -> None:
    """Round a network's float32 weights to a precision, in place: all that is saved, and nothing else."""
    import torch

    if precision == "float32":
        widen(module)
        return
    saved = {tensor.data_ptr() for tensor in module.state_dict().values()}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32 and tensor.data_ptr() in saved:
            tensor.data = tensor.data.to(getattr(torch, precision))


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """A network that computes in float32 with the weights that it has, and is afterwards as it was."""
    changed = widen(module)
    try:
        yield
    finally:
        for tensor, was in changed:
            tensor.data = tensor.data.to(was)
