"""What a search without training costs, and whether its score means anything.

`speed`: 200 candidates of CIFAR-10's size proposed and scored by `diswot` against a ResNet-56; seconds by the clock,
and of all cores together.

`ranks`: all 24 residual networks of width 2, 4, 8 and 1 or 3 blocks a stage, on 300 digits: Kendall's tau between what
is known of each before training (the score, its two parts, the number of parameters, a score without a teacher) and its
accuracy on the test digits after 15 epochs of plain distillation from one teacher; over all, and within each width. A
seed is that of the random weights, the batch and the training. Also what the search finds under a cap of parameters
against all others under it. Trained in one process, by the loss of `diswot` and AdamW with a cosine.

    python benchmarks/bench_search.py speed|ranks [--seeds 0 1 2 3 4]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import record
from kdhub_search.methods.diswot_dagger import soft_targets

import kdhub
from kdhub.rows import Signals, plain_rows

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
        many = 200
        began = time.perf_counter(), time.process_time()
        options = {"max_params": 500_000, "evaluations": many, "baselines": False}
        found, _ = searched(folder / f"search-{many}", teacher=teacher, student=student, data=data, options=options)
        seconds, of_cores = time.perf_counter() - began[0], time.process_time() - began[1]
        print(f"{many} evaluations, {len(found)} candidates: {seconds:.0f} s, {of_cores:.0f} s of a core", flush=True)
        record("search", evaluations=many, candidates=len(found), seconds=round(seconds, 1), core=round(of_cores, 1))


def taught(student: Any, train: list[Any], targets: Any, seed: int) -> None:
    """15 epochs of CE and KL, by the defaults of `diswot`."""
    import torch
    from kdhub_search.methods.diswot import Diswot

    options, inputs = Diswot.Options(), student.collate(train)
    labels = torch.tensor([e["label"] for e in train])
    epochs, size = 15, options.batch_size
    steps = epochs * -(-len(train) // size)
    optimiser = torch.optim.AdamW(student.module.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    student.module.train()
    for _ in range(epochs):
        for some in torch.randperm(len(train), generator=generator).split(size):
            out = student.module({"x": inputs["x"][some]})
            given = Signals({"logits": targets[some]}), {"labels": labels[some]}
            terms = soft_targets(options, Signals(out), given[0], labels[some], given[1])
            optimiser.zero_grad()
            sum(terms.values()).backward()
            optimiser.step()
            schedule.step()
    student.module.eval()


def ranks(seeds: list[int]) -> None:
    import numpy as np
    import torch
    from scipy.stats import kendalltau

    source = "residual:" + ",".join(f"{name}={{{name}}}" for name in DIGITS)
    train = [{"source": "digits", "split": "train", "limit": 300}]
    task = kdhub.open_task("image-classification")
    teacher = kdhub.open_teacher(f"path:{chained('digits-deep')}", task.name)
    rows = {}
    for split, limit in (("train", 300), ("test", None)):
        data = kdhub.open_data("digits", limit=limit)
        read = task.preparer(teacher.model, None)(plain_rows(task.training_table([(data, split)]), range(limit or 397)))
        rows[split] = list(read)
    facts = task.survey([(kdhub.open_data("digits", limit=300), "train")])
    targets = torch.from_numpy(teacher.signals(rows["train"], "logits")["logits"])
    truth = np.array([e["label"] for e in rows["test"]])
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            space = {"source": f"space:{source}", "choices": DIGITS}
            shared = {"student": space, "teacher": "recipe:digits-deep", "data": {"train": train}, "seed": seed}
            options = {"search": "random", "evaluations": 400, "n_init": 5}
            known, _ = searched(Path(name) / "all", options=options, **shared)
            assert len(known) == 24, f"{len(known)} of 24 candidates were drawn"
            for one in known:
                student = kdhub.open_student(one["source"], task.name, seed=seed, facts=facts)
                taught(student, rows["train"], targets, seed)
                one["accuracy"] = float((student.signals(rows["test"], "logits")["logits"].argmax(1) == truth).mean())
            options = {"max_params": CAP, "evaluations": 60, "n_init": 5, "baselines": False}
            _, result = searched(Path(name) / "capped", options=options, **shared)
        taus = {}
        for what in KNOWN:
            sign = -1 if what in ("semantic", "relation") else 1
            groups = {what: known}
            groups |= {f"{what}, width {w}": [o for o in known if o["choices"]["width"] == w] for w in DIGITS["width"]}
            for title, group in groups.items():
                both = [sign * one[what] for one in group], [one["accuracy"] for one in group]
                taus[title] = round(float(kendalltau(*both).statistic), 3)
        below = [one["accuracy"] for one in known if one["parameters"] <= CAP]
        found = next(one["accuracy"] for one in known if one["source"] == result["found"]["source"])
        largest = max((one for one in known if one["parameters"] <= CAP), key=lambda one: one["parameters"])["accuracy"]
        under = {"found": found, "largest": largest, "median": statistics.median(below), "best": max(below)}
        under = {name: round(value, 4) for name, value in under.items()}
        print(f"seed {seed}: tau {taus}\n  under {CAP} parameters {under}", flush=True)
        record("search-ranks", seed=seed, cap=CAP, tau=taus, under=under)


def chained(name: str) -> Path:
    """The student of a recipe, which is made if it never was."""
    from kdhub.recipes.chain import folder_of, resolved
    from kdhub.recipes.resolve import Resolver

    folder = folder_of(resolved(f"recipe:{name}", Resolver()), Resolver())
    if not (folder / "student").exists():
        kdhub.distill(name, out=folder)
    return folder / "student"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "ranks"), default="speed")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    speed() if arguments.what == "speed" else ranks(arguments.seeds)
