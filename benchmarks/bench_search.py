"""What a search without training costs, and whether its score means anything.

`speed`: 200 candidates of CIFAR-10's size proposed and scored by `diswot`, one thread a core, against a ResNet-56.

`ranks`: all 24 residual networks of width 2, 4, 8 and 1 or 3 blocks a stage, on 300 digits: Kendall's tau between what
is known of each before training (the score, its two parts, the number of parameters, a score without a teacher) and its
accuracy on the test digits after 15 epochs of kd from the same teacher; over all, and within each width. Each seed is
one of the random weights, the batch and the training. Also what the search finds under a cap of parameters against all
others under it.

    python benchmarks/bench_search.py speed|ranks [--seeds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from _common import record

import kdhub

CIFAR = {"width": [8, 12, 16, 20], "stage1": [1, 2, 3, 5], "stage2": [1, 2, 3, 5], "stage3": [1, 2, 3, 5]}
DIGITS = {"width": [2, 4, 8], "stage1": [1, 3], "stage2": [1, 3], "stage3": [1, 3]}
KNOWN = ("score", "semantic", "relation", "parameters", "jacobian")
CAP = 6000


def noise(folder: Path, rows: int) -> str:
    """Images of noise in CIFAR-10's shape: a search reads one batch, and how long that takes is the same for any."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (rows, 32, 32, 3), np.uint8), [f"class-{i % 10}" for i in range(rows)]
    np.savez(folder / "rows.npz", image=x, label=y)
    return f"npz:{folder / 'rows.npz'}"


def searched(out: Path, **recipe: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Search without training: all candidates with their scores, and the result."""
    fixed = {"task": "image-classification", "method": "diswot", "evaluation": {"data": [], "cost": False}}
    recipe["options"] = {"distiller": "none", "max_params": None, **recipe["options"]}
    run = kdhub.distill({**fixed, **recipe}, out=out)
    files = sorted((run.folder / "candidates").glob("*.json"))
    return [json.loads(file.read_text()) for file in files], run.read_json("search.json")


def speed() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {"train": [{"source": noise(folder, 200), "split": "train"}]}
        made = kdhub.distill(
            {"task": "image-classification", "method": "as-is", "student": "resnet:56", "data": data,
             "evaluation": {"data": [], "cost": False}}, out=folder / "teacher",
        )  # fmt: skip
        teacher, student = f"path:{made.student_folder}", {"source": "space:residual", "choices": CIFAR}
        for many in (1, 200):
            began = time.perf_counter()
            options = {"max_params": 500_000, "evaluations": many, "baselines": False}
            out = folder / f"search-{many}"
            found, _ = searched(out, teacher=teacher, student=student, data=data, options=options)
            seconds = time.perf_counter() - began
            print(f"{many} evaluations, {len(found)} different candidates: {seconds:.0f} s", flush=True)
        record("search", evaluations=many, candidates=len(found), seconds=round(seconds, 1))


def ranks(seeds: int) -> None:
    from scipy.stats import kendalltau

    names = [dict(zip(DIGITS, values)) for values in product(*DIGITS.values())]
    source = "residual:" + ",".join(f"{name}={{{name}}}" for name in DIGITS)
    train = {"train": [{"source": "digits", "split": "train", "limit": 300}]}
    taus: dict[str, list[float]] = {}
    beaten = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            space = {"source": f"space:{source}", "choices": DIGITS}
            options = {"search": "random", "evaluations": 400, "n_init": 5}
            shared = {"teacher": "recipe:digits-deep", "data": train, "seed": seed}
            known, _ = searched(folder / "all", student=space, options=options, **shared)
            by_source = {one["source"]: one for one in known}
            assert len(by_source) == len(names), f"{len(by_source)} of {len(names)} candidates were drawn"
            for n, choices in enumerate(names):
                recipe = {
                    "task": "image-classification", "method": "kd", "student": source.format(**choices), **shared,
                    "options": {"lr": 5e-3, "epochs": 15, "precision": "float32", "temperature": 4.0, "alpha": 0.9},
                    "evaluation": {"data": [{"source": "digits", "split": "test"}], "cost": False},
                }  # fmt: skip
                report = kdhub.distill(recipe, out=folder / str(n)).report
                by_source[source.format(**choices)]["accuracy"] = next(
                    m["value"] for m in report["measures"] if m["metric"] == "accuracy" and m["subject"] == "student"
                )
            for what in KNOWN:
                sign = -1 if what in ("semantic", "relation") else 1
                groups = {what: known}
                groups |= {f"{what}, width {w}": [o for o in known if o["choices"]["width"] == w] for w in (2, 4, 8)}
                for title, group in groups.items():
                    tau = kendalltau([sign * one[what] for one in group], [one["accuracy"] for one in group]).statistic
                    taus.setdefault(title, []).append(float(tau))
            options = {"max_params": CAP, "evaluations": 60, "n_init": 5, "baselines": False}
            _, result = searched(folder / "capped", student=space, options=options, **shared)
            below = [one["accuracy"] for one in known if one["parameters"] <= CAP]
            found = by_source[result["found"]["source"]]
            beaten.append((found["accuracy"], statistics.median(below), max(below)))
            print(f"seed {seed}: found {found['source']} {found['accuracy']:.3f}, median under the cap "
                  f"{beaten[-1][1]:.3f}, best {beaten[-1][2]:.3f}", flush=True)  # fmt: skip
    print(f"\ntau with accuracy, mean over {seeds} seeds (each)")
    for title, values in taus.items():
        print(f"{title:24} {statistics.mean(values):6.2f}  ({', '.join(f'{v:.2f}' for v in values)})")
    record("search-ranks", seeds=seeds, cap=CAP, taus={t: [round(v, 3) for v in vs] for t, vs in taus.items()},
           found=[[round(v, 4) for v in one] for one in beaten])  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "ranks"), default="speed")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    speed() if arguments.what == "speed" else ranks(arguments.seeds)
