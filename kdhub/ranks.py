"""The ranks of one job under `torchrun` or `accelerate launch`, before and after torch is there, and where each
computes."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_gpu() -> bool:
    """Whether the ranks of this machine compute on GPUs, each on one of its own; with fewer than there are ranks all
    compute on the CPU."""
    import torch

    return torch.cuda.is_available() and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()


def device() -> torch.device:
    """Where this rank computes: training, and whatever gives signals for it. Made ready for that."""
    import torch

    _keep_freed_memory()
    if not on_gpu():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else its sums differ from run to run
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep freed blocks of megabytes for the next ones.

    By default glibc hands each back to the system and asks for the next again, whose pages are made when they are first
    written: a quarter of the time of a small convolution network's forward pass on a CPU, a fifteenth of training. Its
    own rule ends that once it has seen one of 32 MB (the most there is) freed, so it hung on what had run before.
    """
    import ctypes

    threshold, trim = (-3, 32 << 20), (-1, 1 << 30)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    for parameter, size in (threshold, trim):
        mallopt(parameter, size)


@contextmanager
def repeatable() -> Iterator[None]:
    """On a GPU, kernels that add up in one order, where torch has such: a seed gives one student there too, and a run
    that is resumed ends as an undisturbed one."""
    import torch

    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if on_gpu():
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def barrier() -> None:
    """Wait for the other ranks; nothing when there are none. Long enough for a rank that labels or evaluates."""
    if world_size() == 1:
        return
    import torch
    from accelerate import PartialState

    first = not torch.distributed.is_initialized()
    # Without `cpu` Accelerate would take each rank on a machine without a GPU for a job of its own, and nobody waits.
    state = PartialState(cpu=not on_gpu(), timeout=timedelta(days=2))
    if first:
        atexit.register(leave)  # for programs that do not
    state.wait_for_everyone()


def leave() -> None:
    """End the process group, when all that the ranks do together is done.

    A group whose threads still run when the interpreter ends aborts the process now and then, and a network that was
    trained in it keeps it alive, so such are collected first.
    """
    if world_size() == 1 or "torch.distributed" not in sys.modules:
        return
    import torch

    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def of_first(value: T) -> T:
    """The first rank's value, on every rank; called by all of them."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    barrier()
    return broadcast_object_list([value])[0]


def gathered(values: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, (ranks x n, ...), those of the first rank first; what each has must be of one shape.

    A loss that contrasts all of them is that of one process: gradients of each rank's rows come from the losses of all.
    """
    if world_size() == 1:
        return values
    import torch

    n = len(values)
    every = values.new_zeros(n * world_size(), *values.shape[1:])
    every = torch.cat([every[: n * rank()], values, every[n * (rank() + 1) :]])
    return _summed().apply(every)


@cache
def _summed() -> type[torch.autograd.Function]:
    import torch

    class Summed(torch.autograd.Function):
        @staticmethod
        def forward(context, values):
            values = values.clone()
            torch.distributed.all_reduce(values)
            return values

        @staticmethod
        def backward(context, gradient):
            return Summed.forward(context, gradient)

    return Summed


def resolve_precision(name: str, device: str | None = None) -> str:
    """`auto` becomes bfloat16 where the hardware computes in it, else float32."""
    if name != "auto":
        return name
    if on_gpu() and device != "cpu":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    # Emulated bfloat16 is several times slower than float32, so only arithmetic units count.
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
