"""Graphs: an epoch beside a bare loop of torch_geometric, time and memory by size, and inference beside a reader.

OMP_NUM_THREADS=1 python benchmarks/bench_graph.py speed      # Cora, one epoch, all training nodes in a batch
OMP_NUM_THREADS=1 python benchmarks/bench_graph.py scale      # 2,000, 20,000 and 200,000 nodes, sampled batches
OMP_NUM_THREADS=1 python benchmarks/bench_graph.py reader     # all nodes of a graph: student, and its teacher
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASK = "node-classification"
CORA = {"source": "graph:planetoid_cora/cora.npz", "options": {"split": "random", "sizes": [0.6, 500]}}


def recipe(data: dict, student: str | dict, **options) -> dict:
    base = {"precision": "float32", "dropout": None, "lr": 5e-3}
    return {
        "task": TASK, "method": "supervised", "student": student, "data": {"train": [{**data, "split": "train"}]},
        "options": {**base, **options}, "evaluation": {"data": [], "cost": False},
    }  # fmt: skip


def speed(epochs: int = 60) -> None:
    """Milliseconds of an epoch, in turns, the smaller half of three rounds."""
    import torch
    from kdhub_graph.nodes.graphs import open_graph

    import kdhub

    data = kdhub.open_data(CORA)
    table = data.split("train")[:]
    task = kdhub.open_task(TASK)
    facts = task.survey([(data, "train")])
    graph = open_graph(facts["graph"])
    at, labels = torch.tensor(table["node"]), torch.tensor([facts["classes"].index(y) for y in table["label"]])

    def bare() -> float:
        from torch_geometric.nn import GCNConv, Sequential
        from torch_geometric.utils import contains_self_loops

        net = Sequential("x, edge_index", [
            (torch.nn.Linear(graph.width, 64), "x -> x"), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            (GCNConv(64, 64, cached=True), "x, edge_index -> x"), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            (GCNConv(64, 64, cached=True), "x, edge_index -> x"), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, len(facts["classes"])),
        ])  # fmt: skip
        x, edges = graph.whole["x"], graph.whole["edge_index"]
        assert not contains_self_loops(edges)
        optimiser = torch.optim.AdamW(net.parameters(), 5e-3, fused=True)
        began = time.perf_counter()
        for _ in range(epochs):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x, edges)[at], labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        return (time.perf_counter() - began) / epochs

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            given = recipe(CORA, "gcn:width=64,layers=2", epochs=epochs, batch_size=len(at))
            run = kdhub.distill(given, out=Path(folder) / "run")
            return run.provenance["training"]["seconds"] / epochs

    rounds = [(bare(), ours()) for _ in range(3)]
    one, two = (min(r[n] for r in rounds) * 1e3 for n in (0, 1))
    print(f"bare loop {one:.1f} ms, engine {two:.1f} ms: {two / one:.2f} times")


def scale() -> None:
    """Each size in a process of its own: seconds to make and open it, rows a second, peak memory."""
    for nodes in (2_000, 20_000, 200_000):
        done = subprocess.run([sys.executable, __file__, "one", str(nodes)], capture_output=True, text=True, check=True)
        print(done.stdout.strip().splitlines()[-1], flush=True)


def one(nodes: int) -> None:
    import kdhub

    data = {"source": "papers", "options": {"nodes": nodes, "degree": 20.0, "features": 32, "texts": False}}
    began = time.perf_counter()
    opened = kdhub.open_data(data)
    rows = len(opened.split("train"))
    made = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        student = {"source": "sage:width=64,layers=2", "neighbours": [10, 5]}
        run = kdhub.distill(recipe(data, student, max_steps=30, batch_size=512), out=Path(folder) / "run")
        speed = run.provenance["training"]["rows_per_second"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"nodes": nodes, "edges": 10 * nodes, "train": rows, "made": round(made, 1),
                      "rows_per_second": round(speed), "peak_GB": round(peak, 2)}))  # fmt: skip


def reader(nodes: int = 240) -> None:
    """Seconds for all nodes of a generated graph: the student's, and those of a reader of its prompts."""
    import kdhub

    task, data = kdhub.open_task(TASK), kdhub.open_data("papers", options={"nodes": nodes})
    rows, facts = [dict(row) for row in data.split("nodes")], task.survey([(data, "train")])
    student = kdhub.open_student("gcn:", TASK, facts=facts)
    with tempfile.TemporaryDirectory() as folder:
        encoder = kdhub.open_student("packaged:all-minilm-l6-v2", "text-classification", facts=facts)
        encoder.save(Path(folder))
        hops = {"source": "hops", "reader": {"source": f"path:{folder}"}, "budget": 192}
        teacher = kdhub.open_teacher(hops, TASK)
        times = []
        for model, kind in ((student, "logits"), (teacher, "logits")):
            examples = task.preparer(*((model, None) if model is student else (None, model)))(rows)
            model.signals(examples[:4], kind)
            began = time.perf_counter()
            model.signals(examples, kind)
            times.append(time.perf_counter() - began)
    print(f"{nodes} nodes: student {times[0] * 1e3:.1f} ms, reader {times[1]:.1f} s: {times[1] / times[0]:.0f} times")


if __name__ == "__main__":
    if sys.argv[1] == "one":
        one(int(sys.argv[2]))
    else:
        {"speed": speed, "scale": scale, "reader": reader}[sys.argv[1]]()
