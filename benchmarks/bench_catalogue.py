"""The cost of a growing catalogue: 1,000, 10,000 and 100,000 published entries.

The time of each command as a user types it, in a process of its own: `kdhub search --local` by a metric and by words,
`kdhub show` of an entry, and the same after one more entry was registered. The first index is timed apart.

    python benchmarks/bench_catalogue.py [--rounds 7] [--counts 1000,10000,100000]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import record, spread

METHODS, TASKS = ("leaf", "kd", "pld", "dkd"), ("text-embedding", "text-classification", "causal-lm")


def entry(i: int) -> str:
    """As `kdhub publish --register` writes it."""
    return f"""summary: student-{i}: a student made with {METHODS[i % 4]}
licence: apache-2.0
repo: org{i % 997}/student-{i}
kind: model
commit: {hashlib.sha1(str(i).encode()).hexdigest().replace("e", "f")}
task: {TASKS[i % 3]}
method: {METHODS[i % 4]}
teacher: org/teacher-{i % 50}
results:
  ndcg@10 on scifact test: {(i * 7919 % 100_003) / 100_003:.6f}
  spearman on stsb test: {(i * 104_729 % 100_003) / 100_003:.6f}
parameters: {1_000_000 + i}
size: {4_000_000 + 4 * i}
latency: {1 + i % 90 / 10}
updated: '2026-{1 + i % 12:02d}-{1 + i % 28:02d}T12:00:00+00:00'
""".replace(f"summary: student-{i}:", f"summary: student {i},")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--counts", default="1000,10000,100000")
    options = parser.parse_args()
    executable, results = str(Path(sys.executable).parent / "kdhub"), {}
    for count in map(int, options.counts.split(",")):
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "KDHUB_HOME": home}
            folder = Path(home) / "config" / "registry" / "published"
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"student-{i}.yaml").write_text(entry(i))
            time.sleep(2.5)  # a folder that was changed a moment ago is listed again

            def timed(*arguments: str, environment=environment) -> float:
                began = time.perf_counter()
                subprocess.run([executable, *arguments], env=environment, check=True, capture_output=True)
                return time.perf_counter() - began

            found = {"first index": [timed("search", "--local")]}
            commands = {
                "search --local --sort ndcg@10": ["search", "--local", "--sort", "ndcg@10"],
                "search --local WORD --method": ["search", "--local", "teacher-7", "--method", "kd", "--json"],
                "show NAME": ["show", f"student-{count // 2}"],
                "list methods": ["list", "methods"],
            }
            for _ in range(options.rounds):
                for name, arguments in commands.items():
                    found.setdefault(name, []).append(timed(*arguments))
            for i in range(count, count + 3):
                (folder / f"student-{i}.yaml").write_text(entry(i))
                found.setdefault("search after one more", []).append(timed("search", "--local", "--sort", "ndcg@10"))
            size = (Path(home) / "catalogue.sqlite").stat().st_size
        for name, times in found.items():
            print(f"{count:7}  {name:32} {spread(times)} s")
        print(f"{count:7}  bytes an entry {size / count:.0f}")
        results[count] = {name: statistics.median(times) for name, times in found.items()} | {"bytes": size}
    record("catalogue", seconds=results)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
