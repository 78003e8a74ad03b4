"""The same 10,000 pictures of 32 x 32 from an archive of arrays, from a table of PNG files, and from a folder.

What a run does before it trains, each kind in a process of its own with an empty home: open and check the rows
(`open`), find what the models see of each, with its key (`prepare`); and one pass over all batches of 64 (`pass`).

    python benchmarks/bench_pictures.py [--rounds 3] [--rows 10000]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import in_turns, record, spread

KINDS = ("npz", "parquet", "images", "resized")


def write(folder: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)
    # As blocky as photographs are: noise is not compressed at all.
    x = np.kron(rng.integers(0, 256, (rows, 8, 8, 3), np.uint8), np.ones((1, 4, 4, 1), np.uint8))
    x += rng.integers(0, 8, x.shape, np.uint8)
    labels = [f"class-{i % 10}" for i in range(rows)]
    np.savez(folder / "rows.npz", image=x, label=labels)
    files = []
    for i, one in enumerate(x):
        Image.fromarray(one).save(file := io.BytesIO(), "png")
        files.append({"bytes": file.getvalue(), "path": f"{i}.png"})
        (place := folder / "files" / labels[i]).mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(file.getvalue())
    pq.write_table(pa.table({"image": files, "label": labels}), folder / "rows.parquet")


def measure(folder: Path, kind: str) -> dict[str, float]:
    import numpy as np

    import kdhub
    from kdhub.rows import Rows
    from kdhub.signals.store import row_key

    source = {"npz": "npz:{}/rows.npz", "parquet": "parquet:{}/rows.parquet", "images": "images:{}/files"}
    source["resized"] = "resized:32:images:{}/files"
    task, data = kdhub.open_task("image-classification"), kdhub.open_data("digits")
    facts = {"shape": [3, 32, 32], "classes": [f"class-{i}" for i in range(10)], "mean": [0.5] * 3, "std": [1.0] * 3}
    student = kdhub.open_student("mlp:4", task.name, facts=facts)
    Rows.build(task.training_table([(data, "test")]), task.preparer(student, None), row_key)  # imports
    times = [time.perf_counter()]
    data = kdhub.open_data(source[kind].format(folder))
    table = task.training_table([(data, "train")])
    data.fingerprint("train")
    times.append(time.perf_counter())
    rows = Rows.build(table, task.preparer(student, None), row_key)
    times.append(time.perf_counter())
    order = np.random.default_rng(1).permutation(len(rows))
    for start in range(0, len(rows), 64):
        task.collate(rows[order[start : start + 64]], student)
    times.append(time.perf_counter())
    return dict(zip(("open", "prepare", "pass"), np.diff(times).round(3).tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        import os

        with tempfile.TemporaryDirectory() as home:
            os.environ["KDHUB_HOME"] = home
            print(json.dumps(measure(Path(options.child[0]), options.child[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.rows)
        found = in_turns(__file__, {kind: ["--child", folder, kind] for kind in KINDS}, options.rounds)
    sums = {kind: [r["open"] + r["prepare"] for r in each] for kind, each in found.items()}
    for kind, each in found.items():
        parts = ", ".join(f"{part} {spread([r[part] for r in each])}" for part in each[0])
        ratio = statistics.median(mine / base for mine, base in zip(sums[kind], sums["npz"]))
        print(f"{kind:8} {ratio:.2f} times the npz; seconds: {parts}")
    record("pictures", rows=options.rows, seconds=found, python=sys.version.split()[0])


if __name__ == "__main__":
    main()
