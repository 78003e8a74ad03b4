"""What the engine costs on top of a bare PyTorch loop that does the same steps.

Same student (two layers of all-MiniLM-L6-v2), stored teacher vectors, row order, batch 32, objective, float32, fused
AdamW, gradient clipping, learning rate. The bare loop also tokenises and reads the stored vectors of each batch; it
writes no log and no checkpoint. The engine does everything it does in a run. Each in a process of its own, in turns;
both must end with the same weights.

    python benchmarks/bench_overhead.py [--rounds 5] [--texts 3200]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import in_turns, record, spread

PRECISION = "float32"
"""What the engine does for bfloat16 is no overhead: without it the bare loop would be slower."""


def prepared(texts: int, folder: Path, precision: str):
    """A session up to the point where training starts."""
    from kdhub.recipes.chain import resolve_recipe
    from kdhub.recipes.resolve import Resolver
    from kdhub.recipes.run import Run
    from kdhub.training.session import Session

    resolver = Resolver()
    settings = [f"data.train.0.sample={texts}", "evaluation.data=[]", f"options.precision={precision}"]
    session = Session(Run.create(folder, resolve_recipe(method="leaf", set=settings)), resolver)
    rows = session.rows("train", **session.method.settings())
    stored = session.signals(rows, "embedding")
    session.method.adapt(session.student, session.teacher)
    return session, rows, stored


def engine(texts: int, folder: Path):
    from kdhub.training.engine import Engine

    session, rows, stored = prepared(texts, folder, PRECISION)
    work = Engine(
        session.run, session.method, session.task, session.student,
        extras={}, rows=rows, signals={"embedding": stored}, seed=session.seed,
    )  # fmt: skip
    began = time.perf_counter()
    work.train()
    return time.perf_counter() - began, work.steps, session.student.module


def bare(texts: int, folder: Path):
    import torch

    from kdhub.method import Progress
    from kdhub.rows import Signals
    from kdhub.sampler import ShuffledSampler
    from kdhub.training.engine import _without_dropout

    session, rows, stored = prepared(texts, folder, PRECISION)
    method, student, options = session.method, session.student, session.method.options
    order = ShuffledSampler(rows.lengths, options.batch_size, session.seed).epoch(0).reshape(-1, options.batch_size)
    model = student.module
    decayed, rest = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (rest if "bias" in name or "LayerNorm" in name else decayed).append(weight)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, fused=True)
    steps = len(order)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: method.learning_rate(s, steps))
    with _without_dropout(model, options.dropout):
        model.train()
        began = time.perf_counter()
        for step, indices in enumerate(order):
            inputs = session.task.collate(rows[indices], student)
            target = Signals({k: torch.as_tensor(v) for k, v in stored[indices].items()})
            given = session.task.forward(model, inputs)
            loss = sum(method.objective(given, target, inputs, Progress(step, steps, 0.0)).values())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return time.perf_counter() - began, steps, model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=3200)
    parser.add_argument("--job", choices=("engine", "bare"))
    options = parser.parse_args()
    if options.job:
        with tempfile.TemporaryDirectory() as folder:
            seconds, steps, model = {"engine": engine, "bare": bare}[options.job](options.texts, Path(folder) / "run")
        digest = hashlib.sha256()
        for weight in model.state_dict().values():
            digest.update(weight.numpy().tobytes())
        print(json.dumps({"ms_per_step": round(1000 * seconds / steps, 2), "weights": digest.hexdigest()[:16]}))
        return
    with tempfile.TemporaryDirectory() as home:
        jobs = {name: ["--job", name, "--texts", str(options.texts)] for name in ("engine", "bare")}
        found = in_turns(__file__, jobs, options.rounds, KDHUB_HOME=home)
    ratios = [a["ms_per_step"] / b["ms_per_step"] for a, b in zip(found["engine"], found["bare"])]
    for name, runs in found.items():
        print(f"{name:8} {spread([r['ms_per_step'] for r in runs])} ms a step, weights {runs[0]['weights']}")
    print(f"engine over bare loop {spread(ratios)}, overhead {100 * (statistics.median(ratios) - 1):.1f} %")
    record("overhead", texts=options.texts, rounds=found, ratio=sorted(ratios))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
