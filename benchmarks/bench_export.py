"""The demo student in ONNX beside torch: `python benchmarks/bench_export.py [RUN] [--data NAME] [--rounds N]`.

RUN is a finished run of text embeddings; by default `kdhub distill --method leaf` makes one below `build/`. Prints
bytes of each file over those of the float32 weights, nDCG@10 of each, and throughput at batch 1 in turns with torch
float32, in one process with two threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from _common import record, spread
from kdhub_tasks.embedding import encoder

import kdhub
from kdhub.evaluation.cost import weight_bytes
from kdhub.exporting.exporter import attached, exports

NAMES = ("onnx", "onnx-int8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", type=Path, default=Path("build/export-demo"))
    parser.add_argument("--data", default="pydoc:test")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--texts", type=int, default=60)
    given = parser.parse_args()
    if not (given.run / "report.json").is_file():
        kdhub.distill(method="leaf", out=given.run)
    folder = given.run / "student"
    for quantize in (None, "int8"):
        kdhub.export(given.run, "onnx", quantize=quantize, data=given.data, cost=False)
    torch.set_num_threads(2)
    models = {"torch": kdhub.load(folder)} | {name: attached(kdhub.load(folder), folder, name) for name in NAMES}
    data, split = kdhub.open_data(given.data.partition(":")[0]), given.data.partition(":")[2] or "test"
    texts = [row["text"] for row in kdhub.open_task("text-embedding").sample(data, split, given.texts)]
    rates: dict[str, list[float]] = {name: [] for name in models}
    for n in range(given.rounds + 1):  # the first warms up
        for name in list(models)[:: 1 if n % 2 else -1]:
            began = time.perf_counter()
            for text in texts:
                encoder.encode(models[name].module, models[name].cutter.ids([text]), precision="float32")
            rates[name].append(len(texts) / (time.perf_counter() - began))
    own = weight_bytes(folder)
    for name in NAMES:
        noted = exports(folder)[name]
        size = sum(file["size"] for file in noted["files"].values()) / own
        scores = {m["subject"]: m["value"] for m in noted["measures"] if m["metric"] == "ndcg@10"}
        times = [mine / torchs for mine, torchs in zip(rates[name][1:], rates["torch"][1:])]
        print(
            f"{name}: {size:.3f} of the weights; nDCG@10 {scores[name]:.4f}, torch {scores['student']:.4f}; batch 1 "
            f"{spread(rates[name][1:])} texts/s, {spread(times)} times torch float32; outputs differ by "
            f"{noted['difference']:.2g}"
        )
        record("export", export=name, size=size, ndcg=scores[name], ndcg_torch=scores["student"], data=given.data,
               times=statistics.median(times), least=min(times), most=max(times), threads=2)  # fmt: skip


if __name__ == "__main__":
    main()
