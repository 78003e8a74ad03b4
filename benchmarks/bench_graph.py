"""Graphs: an epoch beside a bare loop of torch_geometric, time and memory by size, and inference beside a reader.

OMP_NUM_THREADS=1 python benchmarks/bench_graph.py speed      # Cora, one epoch, all training nodes in a batch
OMP_NUM_THREADS=1 python benchmarks/bench_graph.py scale      # 2,000, 20,000 and 200,000 nodes, sampled batches
OMP_NUM_THREADS=1 python benchmarks/bench_graph.py reader     # all nodes of a graph: student, and its teacher
OMP_NUM_THREADS=1 python benchmarks/bench_graph.py picking    # Cora: last step, and steps that a split would pick
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _common import child, record, spread

TASK = "node-classification"
CORA = {"source": "graph:planetoid_cora/cora.npz", "options": {"split": "random", "sizes": [0.6, 500]}}


def recipe(data: dict, student: str | dict, **options) -> dict:
    base = {"precision": "float32", "dropout": None, "lr": 5e-3}
    return {
        "task": TASK, "method": "supervised", "student": student, "data": {"train": [{**data, "split": "train"}]},
        "options": {**base, **options}, "evaluation": {"data": [], "cost": False},
    }  # fmt: skip


def speed(rounds: int = 5) -> None:
    """Milliseconds of the processor for an epoch, in turns: the difference of 90 epochs and 10, over 80."""
    import torch
    from kdhub_graph.nodes.graphs import open_graph

    import kdhub

    data = kdhub.open_data(CORA)
    table = data.split("train")[:]
    task = kdhub.open_task(TASK)
    facts = task.survey([(data, "train")])
    graph = open_graph(facts["graph"])
    at, labels = torch.tensor(table["node"]), torch.tensor([facts["classes"].index(y) for y in table["label"]])

    def bare(epochs: int) -> float:
        from torch_geometric.nn import GCNConv, Sequential

        net = Sequential("x, edge_index", [
            (torch.nn.Linear(graph.width, 64), "x -> x"), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            (GCNConv(64, 64, cached=True), "x, edge_index -> x"), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            (GCNConv(64, 64, cached=True), "x, edge_index -> x"), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, len(facts["classes"])),
        ])  # fmt: skip
        x, edges = graph.whole["x"], graph.whole["edge_index"]
        optimiser = torch.optim.AdamW(net.parameters(), 5e-3, fused=True)
        began = time.process_time()
        for _ in range(epochs):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x, edges)[at], labels)
            if not loss.isfinite():
                raise FloatingPointError
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        return time.process_time() - began

    def ours(epochs: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            given = recipe(CORA, "gcn:width=64,layers=2", epochs=epochs, batch_size=len(at))
            began = time.process_time()
            kdhub.distill(given, out=Path(folder) / "run")
            return time.process_time() - began

    def epoch(train: Callable[[int], float]) -> float:
        return (train(90) - train(10)) / 80 * 1e3

    ours(1), bare(1)
    found = {"bare loop": [], "engine": []}
    for _ in range(rounds):
        found["bare loop"].append(epoch(bare)), found["engine"].append(epoch(ours))
    ratios = [two / one for one, two in zip(found["bare loop"], found["engine"])]
    print("; ".join(f"{name} {spread(each)} ms" for name, each in found.items()), f"; ratio {spread(ratios)}")
    record("graph_speed", ms=found, ratio=ratios)


def scale() -> None:
    """Each size in a process of its own: see `one`."""
    for nodes in (2_000, 20_000, 200_000):
        found = child(__file__, "one", str(nodes))
        print(found, flush=True)
        record("graph_scale", **found)


def one(nodes: int, steps: int = 30) -> None:
    """Seconds of the processor to make the data set and to open it again, and for a step of 512 nodes; peak memory, all
    of Python included."""
    import torch_geometric  # noqa: F401
    from kdhub_graph.nodes.graphs import open_graph

    import kdhub
    from kdhub.training.engine import Engine  # noqa: F401

    data = {"source": "papers", "options": {"nodes": nodes, "degree": 20.0, "features": 32, "texts": False}}
    began, times = time.process_time(), []
    for _ in range(2):
        table = kdhub.open_data(data).split("train")
        graph = open_graph(table[0]["graph"])
        times.append(time.process_time() - began)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    def trained(steps: int) -> float:
        student = {"source": "sage:width=64,layers=2", "neighbours": [10, 5]}
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            kdhub.distill(recipe(data, student, max_steps=steps, batch_size=512), out=Path(folder) / "run")
        return time.process_time() - began

    trained(1)
    step = (trained(steps + 2) - trained(2)) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({
        "nodes": nodes, "edges": int(graph.indptr[-1]) // 2, "train": len(table), "made": round(times[0], 1),
        "opened": round(times[1] - times[0], 2), "ms_a_step": round(step * 1e3, 1), "rows_a_second": round(512 / step),
        "data_GB": round(before, 2), "peak_GB": round(peak, 2),
    }))  # fmt: skip


def reader(nodes: int = 240) -> None:
    """Seconds of the processor for all nodes of a generated graph: a GCN's, and those of all-MiniLM-L6-v2 for their
    prompts of two hops."""
    import kdhub

    task, data = kdhub.open_task(TASK), kdhub.open_data("papers", options={"nodes": nodes})
    rows, facts = [dict(row) for row in data.split("nodes")], task.survey([(data, "train")])
    student = kdhub.open_student("gcn:", TASK, facts=facts)
    with tempfile.TemporaryDirectory() as folder:
        kdhub.open_student("packaged:all-minilm-l6-v2", "text-classification", facts=facts).save(Path(folder))
        hops = {"source": "hops", "reader": {"source": f"path:{folder}"}, "budget": 192}
        teacher = kdhub.open_teacher(hops, TASK)
        times = []
        for model, given in ((student, (student, None)), (teacher, (None, teacher))):
            prepare = task.preparer(*given)
            model.signals(prepare(rows[:4]), "logits")
            began = time.process_time()
            model.signals(prepare(rows), "logits")
            times.append(time.process_time() - began)
    print(f"{nodes} nodes: student {times[0] * 1e3:.1f} ms, reader {times[1]:.1f} s: {times[1] / times[0]:.0f} times")
    record("graph_reader", nodes=nodes, seconds={"student": times[0], "reader": times[1]})


def picking(arms: Sequence[str] = ("supervised", "lingugkd")) -> None:
    """Test accuracy of arms of `cora-hops`: of the last step's student, of the step that is best on validation nodes,
    and of the one that is best on test nodes, which nobody may pick."""
    import kdhub
    from kdhub.verbs.compare import cell_recipes, resolve_comparison

    found: dict[str, dict[str, list[float]]] = {}
    for (arm, seed), given in cell_recipes(resolve_comparison("cora-hops")).items():
        if arm not in arms:
            continue
        curves = {}
        for split in ("validation", "test"):
            of = {"evaluation.curve": 90, "evaluation.data.0.split": split}
            with tempfile.TemporaryDirectory() as folder:
                run = kdhub.distill(given.to_dict(), set=of, out=Path(folder) / "run", page=False)
                curves[split] = [line["measured"] for line in run.metrics() if "measured" in line]
        validation, test = curves.values()
        picked = {"last": test[-1], "validation": test[validation.index(max(validation))], "test": max(test)}
        print(arm, seed, len(test), picked, flush=True)
        for how, value in picked.items():
            found.setdefault(arm, {}).setdefault(how, []).append(value)
    record("graph_picking", accuracy=found)


if __name__ == "__main__":
    if sys.argv[1] == "one":
        one(int(sys.argv[2]))
    else:
        {"speed": speed, "scale": scale, "reader": reader, "picking": picking}[sys.argv[1]]()
