"""One pool of stitched transformers (`learngene-pool`) against a student trained by itself for each of its sizes.

The pool is that of the recipe `learngene-pool`: nine members, on 1,000 digits. Each size is also trained alone from
random weights, on the same labels, for as many epochs as the pool (`--epochs` for others). Bytes of weights on disk,
seconds of a core for the training and the scores of it, accuracy on the test digits. The ancestor is counted apart: the
pool needs it, and so would students that are distilled.

    python benchmarks/bench_pool.py [--seeds 0 1 2] [--epochs 30]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import record

import kdhub


def distilled(recipe: Any, out: Path, seed: int, changes: list[str]) -> tuple[kdhub.Run, dict[str, float]]:
    """A run, what it took, and what its weights take."""
    began = time.process_time()
    run = kdhub.distill(recipe, out=out, seed=seed, set=["evaluation.cost=false", *changes])
    size = (run.student_folder / "model.safetensors").stat().st_size
    return run, {"bytes": size, "seconds": time.process_time() - began}


def accuracies(run: kdhub.Run) -> dict[str | None, float]:
    found = [m for m in run.report["measures"] if (m["metric"], m["subject"]) == ("accuracy", "student")]
    return {m["variant"].get("member"): m["value"] for m in found}


def compared(seed: int, epochs: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        ancestor, of_ancestor = distilled("learngene-ancestor", Path(place) / "ancestor", seed, [])
        teacher = f"teacher=path:{ancestor.student_folder}"
        pool, of_pool = distilled("learngene-pool", Path(place) / "pool", seed, [teacher])
        members = accuracies(pool)
        members.pop(None)
        own = {"task": "image-classification", "method": "supervised"}
        own |= {"data": {"train": [{"source": "digits", "split": "train", "limit": 1000}]}}
        own |= {"options": {"lr": 2e-3, "batch_size": 64, "epochs": epochs, "precision": "float32"}}
        own |= {"evaluation": {"data": [{"source": "digits", "split": "test"}]}}
        alone: dict[str, dict[str, float]] = {}
        for name in members:
            source = f"untrained:member:path:{pool.student_folder}"
            student = {"source": source, "settings": {"name": name}}
            run, costs = distilled({**own, "student": student}, Path(place) / name, seed, [])
            alone[name] = {**costs, "accuracy": accuracies(run)[None]}
            print(f"  {name}: pool {members[name]:.3f}, alone {alone[name]['accuracy']:.3f}", flush=True)
    both = {
        "ancestor": {**of_ancestor, "accuracy": accuracies(ancestor)[None]},
        "pool": {**of_pool, "accuracy": statistics.mean(members.values())},
        "alone": {key: sum(one[key] for one in alone.values()) for key in ("bytes", "seconds")}
        | {"accuracy": statistics.mean(one["accuracy"] for one in alone.values())},
    }
    print(f"seed {seed}", *(f"{name}: {one}" for name, one in both.items()), sep="\n  ")
    record("pool", seed=seed, epochs=epochs, **both, members=members, each_alone=alone)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=float, default=30)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        compared(seed, arguments.epochs)
