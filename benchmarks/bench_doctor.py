"""What `kdhub doctor` expects of a run, and what the run then took: seconds and memory.

For each recipe a look, the run, and another look, each in a process of its own; every look from an empty store, the run
from that of the first. Expected is the mean of the two looks, because other work on the machine comes and goes. Seconds
are those of the run without Python's start; memory is the most its process had.

    python benchmarks/bench_doctor.py [--rounds 3] [--recipes NAME,NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import record, spread

RECIPES = {"digits-teacher": [], "leaf": [], "pydoc-lm": ["options.max_steps=200"]}


def kdhub(*arguments: str, home: str) -> object:
    command = [str(Path(sys.executable).parent / "kdhub"), "-q", *arguments, "--json"]
    environment = {**os.environ, "KDHUB_HOME": home}
    done = subprocess.run(command, env=environment, cwd=home, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def look(name: str, sets: list[str], home: str) -> dict[str, float]:
    """What the doctor expects."""
    found = kdhub("doctor", "--recipe", name, *sets, home=home)
    return next(one["values"] for one in found if one["check"] == "expected")


def once(name: str) -> dict[str, float]:
    """Expected and measured of one recipe."""
    with tempfile.TemporaryDirectory() as home:
        sets = [part for key in RECIPES.get(name, []) for part in ("--set", key)]
        looks = [look(name, sets, home)]
        run = Path(home) / "run"
        kdhub("distill", "--recipe", name, *sets, "--out", str(run), home=home)
        facts = json.loads((run / "provenance.json").read_text())
    with tempfile.TemporaryDirectory() as home:
        looks.append(look(name, sets, home))
    expected = {key: sum(one[key] for one in looks) / 2 for key in looks[0]}
    memory = facts["training"]["peak_memory_bytes"]
    return {
        "expected_seconds": round(expected["seconds"], 1),
        "seconds": facts["wall_seconds"],
        "expected_memory": expected["memory_bytes"],
        "memory": memory,
        "time_ratio": round(facts["wall_seconds"] / expected["seconds"], 3),
        "memory_ratio": round(memory / expected["memory_bytes"], 3),
        "looks": [round(one["seconds"], 1) for one in looks],
        "expected_parts": {k: round(v, 1) for k, v in expected.items() if k not in ("seconds", "memory_bytes")},
        "training_seconds": facts["training"]["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name in options.recipes.split(","):
            found.setdefault(name, []).append(once(name))
            print(f"  {name}: {found[name][-1]}", file=sys.stderr)
    for name, runs in found.items():
        print(f"{name:16} measured over expected: time {spread([r['time_ratio'] for r in runs])}, ", end="")
        print(f"memory {spread([r['memory_ratio'] for r in runs])}")
    record("doctor", rounds=found)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
