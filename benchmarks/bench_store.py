"""The signal store: size, speed, memory. `python benchmarks/bench_store.py [--rows N] [--json]`.

Prints bytes a row (every file of the store counted), random and bulk reads, writes, growth of resident memory while
filling, and the teacher calls of a first and a second fill. The "teacher" hands out slices of one block of random unit
vectors: it costs almost nothing, so what is timed is the store. Under a minute, and 0.8 GB of disk, for 1,000,000 rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kdhub.signals.store import Field, SignalStore

DIMS = 384
GROUP_ROWS = 1024


def open_store(root: Path, dtype: str) -> SignalStore:
    return SignalStore.open(root, {"teacher": "bench", "signal": "embedding"}, [Field("embedding", dtype, (DIMS,))])


def keys_of(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 12), np.uint8)


def fill(root: Path, dtype: str, rows: int) -> dict:
    """In a child process: fill twice, watch the resident memory."""
    import psutil

    vectors = np.random.default_rng(1).standard_normal((2 * GROUP_ROWS, DIMS), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = keys_of(rows)
    lengths = np.full(rows, 32, np.int32)
    store = open_store(root, dtype)

    process, memory = psutil.Process(), []

    def compute(indices: np.ndarray) -> dict:
        memory.append(process.memory_info().rss)
        start = int(indices[0]) % GROUP_ROWS
        return {"embedding": vectors[start : start + len(indices)]}

    start = process.memory_info().rss
    first = store.fill(keys, lengths, compute)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    second = open_store(root, dtype).fill(keys, lengths, compute)  # opens again, checks every digest
    return {
        "first_fill_calls": first.calls,
        "second_fill_calls": second.calls,
        "second_fill_seconds": time.perf_counter() - began,
        "write_rows_per_s": first.computed / first.seconds,
        "rss_start_mb": start / 1e6,
        # The plan before the first group and the index after the last one; between them nothing grows.
        "rss_peak_growth_mb": (peak - start) / 1e6,
        "rss_growth_group_10_to_last_mb": (memory[-1] - memory[min(9, len(memory) - 1)]) / 1e6,
    }


def read(root: Path, dtype: str, rows: int) -> dict:
    began = time.perf_counter()
    store = open_store(root, dtype)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    positions = store.locate(keys_of(rows))
    located = time.perf_counter() - began
    for part in np.array_split(positions, max(1, rows // 50_000)):  # digests checked, pages in memory
        store.read(part)

    def rate(batches: np.ndarray) -> float:
        best = 0.0
        for _ in range(3):
            began = time.perf_counter()
            for batch in batches:
                store.read(batch)
            best = max(best, batches.size / (time.perf_counter() - began))
        return best

    rng = np.random.default_rng(2)
    bulk = min(rows, 50_000)
    total = sum(p.stat().st_size for p in store.folder.iterdir())
    values = DIMS * {"float16": 2, "int8": 1}[dtype] + (2 if dtype == "int8" else 0)
    return {
        "bytes_per_row": total / rows,
        "bytes_per_row_values": values,
        "open_s": opened,
        "locate_rows_per_s": rows / located,
        "random_rows_per_s_batch32": rate(positions[rng.integers(0, rows, (4000, 32))]),
        "random_rows_per_s_bulk": rate(positions[rng.integers(0, rows, (4, bulk))]),
        "stored_order_rows_per_s_bulk": rate(np.sort(positions)[: rows // bulk * bulk].reshape(-1, bulk)),
    }


STEPS = {"fill": fill, "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=None, help="where to put the stores (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of the table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        step, root, dtype = args.child
        print(json.dumps(STEPS[step](Path(root), dtype, args.rows)))
        return
    results = {}
    for dtype in ("float16", "int8"):
        root = Path(tempfile.mkdtemp(dir=args.dir, prefix="kdhub-bench-"))
        try:
            results[dtype] = {}
            for step in STEPS:  # each in a process of its own: memory and maps of one do not help or hurt another
                command = [sys.executable, __file__, "--rows", str(args.rows), "--child", step, str(root), dtype]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                results[dtype].update(json.loads(done.stdout))
        finally:
            shutil.rmtree(root)
    if args.json:
        print(json.dumps({"benchmark": "store", "rows": args.rows, "dims": DIMS, **results}))
        return
    print(f"{args.rows:,} rows of {DIMS} dimensions")
    for name in results["float16"]:
        print(
            f"{name:32}" + "".join(f"{results[d][name]:>16,.{0 if results[d][name] > 1000 else 1}f}" for d in results)
        )


if __name__ == "__main__":
    main()
