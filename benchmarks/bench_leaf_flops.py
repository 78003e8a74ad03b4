"""LEAF training against the machine: useful arithmetic over the matrix-product peak, and where the rest of a step goes.

The student (two layers of all-MiniLM-L6-v2) takes the engine's steps on the demo's texts, batch 32, with stored teacher
vectors. Useful are the matrix products of real tokens, forward and twice that backward: padding counts for nothing, and
so do norms, activations, look-ups and the optimiser. The peak is the best of three sizes of square bfloat16 (and
float32) products, measured before and after, in the same process with the same threads. Then a profile of the steps.

    python benchmarks/bench_leaf_flops.py [--rounds 3] [--texts 3200]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _common import in_turns, record, spread

SIZES = (1024, 2048, 3072)
GROUPS = {
    "matrix products": ("linear", "addmm", "::mm", "::bmm", "matmul", "baddbmm"),
    "attention": ("attention",),
    "optimiser, clipping": ("adam", "norm_except", "foreach", "clip", "vector_norm", "linalg"),
    "activation, norm": ("gelu", "layer_norm", "dropout", "softmax", "div", "mul", "add", "sum", "mean", "sub", "pow"),
    "conversion, copies": ("copy", "to", "contiguous", "clone", "cat", "fill", "zero"),
    "look-up": ("embedding", "index"),
}


def peak(dtype: str, now: Callable[[], float]) -> float:
    """FLOP/s of the best size, median of its runs."""
    import torch

    best = 0.0
    for n in SIZES:
        a, b = (torch.randn(n, n).to(getattr(torch, dtype)) for _ in range(2))
        a @ b
        times = []
        for _ in range(8):
            began = now()
            a @ b
            times.append(now() - began)
        best = max(best, 2 * n**3 / statistics.median(times))
    return best


def useful(module, lengths) -> float:
    """FLOPs of the matrix products of one pass forward and backward over texts of so many tokens."""
    config = module[0].auto_model.config
    d, inner = config.hidden_size, config.intermediate_size
    layers = config.num_hidden_layers
    each = [2 * n * (4 * d * d + 2 * d * inner) + 4 * n * n * d for n in lengths]
    return 3.0 * layers * sum(each)


def job(texts: int, profile: bool, threads: int, wall: bool) -> dict:
    import torch
    from bench_overhead import prepared

    from kdhub.ranks import resolve_precision
    from kdhub.training.engine import Engine

    torch.set_num_threads(threads)
    now = time.perf_counter if wall else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        session, rows, stored = prepared(texts, Path(folder) / "run", "auto")
        work = Engine(
            session.run, session.method, session.task, session.student,
            extras={}, rows=rows, signals={"embedding": stored}, seed=session.seed,
        )  # fmt: skip
        count = useful(session.student.module, rows.lengths.astype(float)) * work.steps / work.steps_per_epoch
        before = {t: peak(t, now) for t in ("bfloat16", "float32")}
        began, clock = now(), time.perf_counter()
        if profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
                work.train()
        else:
            work.train()
        seconds, clock = now() - began, time.perf_counter() - clock
        after = {t: peak(t, now) for t in before}
    peaks = {t: statistics.mean((before[t], after[t])) for t in before}
    found = {
        "gflops": count / seconds / 1e9,
        "share": count / seconds / peaks[resolve_precision("auto")],
        "ms_per_step": 1000 * seconds / work.steps,
        "precision": resolve_precision("auto"),
        **{f"peak_{t}": value / 1e9 for t, value in peaks.items()},
    }
    if profile:
        found["profile"] = shares(seen, clock)
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}


def shares(seen, seconds: float) -> dict[str, float]:
    """Self time of the operations by group, over the time of the steps; what no operation took is Python and data."""
    of = dict.fromkeys([*GROUPS, "others"], 0.0)
    for event in seen.key_averages():
        name = event.key.lower()
        if "::" not in name and "adam" not in name:
            continue
        group = next((g for g, parts in GROUPS.items() if any(p in name for p in parts)), "others")
        of[group] += event.self_cpu_time_total / 1e6 / seconds
    of["Python, tokens, reading, log"] = max(0.0, 1 - sum(of.values()))
    return {group: round(share, 3) for group, share in of.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="seconds of the clock")
    parser.add_argument("--job", choices=("train", "profile"))
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(options.texts, options.job == "profile", options.threads, options.wall)))
        return
    with tempfile.TemporaryDirectory() as home:
        names = ("train", "profile")
        given = [
            "--texts",
            str(options.texts),
            "--threads",
            str(options.threads),
            *(["--wall"] if options.wall else []),
        ]
        jobs = {name: ["--job", name, *given] for name in names}
        found = in_turns(__file__, jobs, options.rounds, KDHUB_HOME=home, OMP_NUM_THREADS=str(options.threads))
    for key in ("share", "gflops", "peak_bfloat16", "peak_float32", "ms_per_step"):
        print(f"{key:16} {spread([r[key] for r in found['train']])}")
    for group in found["profile"][0]["profile"]:
        print(f"  {group:30} {spread([r['profile'][group] for r in found['profile']])}")
    record("leaf_flops", texts=options.texts, threads=options.threads, wall=options.wall, rounds=found)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
