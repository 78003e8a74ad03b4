"""A large graph of triples: cleaned, deduplicated, split by event, filtered by stored scores, and published.

`python benchmarks/bench_commonsense.py [--rows 1000000]`

The rows are made up: a tenth of them repeats another with a full stop more. Time and peak memory are those of a process
of its own that reads them from a file, runs the recipe and publishes its student to a hub on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from _common import child, record

ROOT = Path(__file__).parents[1]
RELATIONS = ("xWant", "xAttr", "xIntent", "xEffect", "xReact", "xNeed", "HinderedBy")


def write(path: Path, rows: int) -> None:
    """Distinct triples of 70 to an event, each tenth of them twice; scores of valid ones are higher."""
    draw = random.Random(0)
    with open(path, "w") as file:
        for n in range(rows):
            row = {
                "head": f"PersonX does thing {n // 77}",
                "relation": RELATIONS[n % 7],
                "tail": f"to see thing {n % 997}",
            }
            valid = draw.random() < 0.77
            more = {
                "label": "valid" if valid else "invalid",
                "score": round(draw.gauss(0.7 if valid else 0.4, 0.15), 6),
            }
            file.write(json.dumps(row | more) + "\n")
            if n % 10 == 0:
                file.write(json.dumps({**row, "tail": row["tail"] + "."} | more) + "\n")


def work(folder: Path, endpoint: str, token: str) -> dict[str, float]:
    """In the process that is measured."""
    import kdhub

    marks = [time.perf_counter()]
    source = {"source": f"cleaned:jsonl:{folder / 'triples.jsonl'}"}
    recipe = {
        "task": "commonsense-graph", "method": "critic-filter", "teacher": None, "student": "rows",
        "data": {
            "train": [source], "test": [],
            "validation": [{**source, "where": {"split": ["validation"]}, "limit": 5000}],
        },
        "options": {"scores": "score", "critic_recall": 0.5}, "evaluation": {"cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=folder / "run")
    marks.append(time.perf_counter())
    os.environ["HF_TOKEN"] = token
    kdhub.publish(run.folder, "bench/graph", licence="cc0-1.0", endpoint=endpoint)
    marks.append(time.perf_counter())
    kept = sum(map(len, kdhub.load(run.folder).splits.values()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    took = {"distil_s": marks[1] - marks[0], "publish_s": marks[2] - marks[1], "processor_s": time.process_time()}
    return {**took, "peak_mb": peak, "kept": kept}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", nargs=3, metavar=("FOLDER", "ENDPOINT", "TOKEN"))
    asked = parser.parse_args()
    if asked.work:
        print(json.dumps(work(Path(asked.work[0]), *asked.work[1:])))
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from hub import serve

    with tempfile.TemporaryDirectory() as name, serve(Path(name) / "hub") as hub:
        folder = Path(name)
        write(folder / "triples.jsonl", asked.rows)
        found = child(
            __file__, "--work", name, hub.endpoint, hub.token, KDHUB_HOME=str(folder / "home"), HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_XET="1",
        )  # fmt: skip
    print(json.dumps({"rows": asked.rows, **found}))
    record("commonsense", rows=asked.rows, **found)


if __name__ == "__main__":
    main()
