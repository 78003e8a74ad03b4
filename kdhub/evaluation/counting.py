"""What a model costs by counting, in this process: parameters, and the operations of a forward pass.

Exact, and as quick as the pass itself: what a search asks of each of its candidates. What takes a clock is measured in
processes of their own (`kdhub.evaluation.cost`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdhub.rows import Example
    from kdhub.student import Student
    from kdhub.task import NetworkTask, Task


def count_costs(
    student: Student, row: Mapping[str, Any] | None = None, *, task: Task | str | None = None
) -> dict[str, int]:
    """Count what a student costs, trained or not, saved or not.

    Args:
        row: a plain row of its task's data; without one there is no pass to count.
        task: of the student; opened by its name if None.

    Returns:
        `parameters`, weights that are tied once; and `flops` of the pass for that row, a multiplication and an addition
        being two. What there is none of is left out: a student without a network has neither.

    Raises:
        DataError: the row cannot be read.
    """
    from kdhub.recipes.doors import open_task
    from kdhub.task import NetworkTask

    if student.module is None:
        return {}
    found = {"parameters": sum(p.numel() for p in student.module.parameters())}
    task = open_task(student.task if task is None else task) if not hasattr(task, "load") else task
    if row is not None and isinstance(task, NetworkTask):
        (example,) = task.preparer(student, None)([dict(row)])
        if count := flops(task, student, example):
            found["flops"] = count
    return found


def flops(task: NetworkTask, model: Any, example: Example) -> int | None:
    """Operations of a student's or teacher's pass for one example: the task's own count, else PyTorch's; None where
    there are none to be counted."""
    count = task.flops(model, example)
    if count is None and getattr(model, "module", None) is not None:
        with counting() as total:
            model.signals([example], task.primary_signal)
        count = total()
    return int(count) if count else None


def middle_row(task: Task, student: Student, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of plain rows, one of median length that can be read; None where there is none."""
    from kdhub.rows import prepared
    from kdhub.task import NetworkTask

    if not isinstance(task, NetworkTask) or not rows:
        return None
    examples = prepared(task.preparer(student, None), list(rows))
    read = [i for i, example in enumerate(examples) if "fault" not in example]
    return rows[sorted(read, key=lambda i: examples[i]["length"])[len(read) // 2]] if read else None


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count the floating-point operations of PyTorch inside; call what it gives for the total.

    Attention and transformer layers are computed in plain arithmetic meanwhile: the counter does not know every fused
    kernel, and of a layer that is one whole it would see nothing.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield lambda: int(counter.get_total_flops())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
