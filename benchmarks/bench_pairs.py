"""Scores of N texts with M candidates: two towers with the candidates' vectors kept, against a cross-encoder.

Both are made of all-MiniLM-L6-v2 (six layers of 384), so that it is the arrangement which is compared and not the size
of the encoder; weights say nothing about speed, and heads are fresh. Texts are those of the STS Benchmark
(`KDHUB_DATA`), else generated. Heads: `dot`; `concat` on 64 numbers with 64 hidden units; on 4 x 384 numbers with 64,
and with 512, as the paper has it.

The cross-encoder reads a sample of pairs, and its time for N x M is that of the sample times N M over its size. So is
that of a head beyond the pairs of `MOST` (marked ~). All else is measured as a whole. Candidates were embedded before,
queries are when they come. Both are told: the scores alone, and with the queries.

    python benchmarks/bench_pairs.py [--rounds 3] [--sample 512] [--largest 10000]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

from _common import in_turns, record, spread

HEADS = {
    "dot": {"head": "dot", "fc_dims": (), "embed_dim": -1},
    "concat-64": {"head": "concat", "fc_dims": (64,), "embed_dim": 64},
    "concat-wide": {"head": "concat", "fc_dims": (64,), "embed_dim": -1},
    "concat-paper": {"head": "concat", "fc_dims": (512,), "embed_dim": -1},
}
MOST = {"dot": 10**8, "concat-64": 10**6, "concat-wide": 10**6, "concat-paper": 10**4}
"""Pairs that are scored as a whole; of more a sample of so many."""


def texts(n: int) -> list[str]:
    import kdhub

    data = kdhub.open_data("stsb" if os.environ.get("KDHUB_DATA") else "scenes")
    found = [text for split in ("train", "validation", "test") for text in data.texts(split)["text"]]
    return [found[i % len(found)] for i in range(n)]


def built(source: str):
    import kdhub

    return kdhub.open_student(source, "text-pairs", facts={"classes": ["score"]})


def cross(sample: int) -> dict:
    """Pairs per second, tokenising included, rows of like length together."""
    student = built("packaged:all-minilm-l6-v2")
    some = texts(2 * sample)
    rows = [{"sentence1": a, "sentence2": b} for a, b in zip(some[::2], some[1::2])]
    import kdhub

    prepare = kdhub.open_task("text-pairs").preparer(student, None)
    student.signals(prepare(rows[:32]), "logits")
    began = time.perf_counter()
    student.signals(prepare(rows), "logits")
    return {"pairs_per_second": sample / (time.perf_counter() - began)}


def towers(head: str, largest: int) -> dict:
    from kdhub_tasks.pairs.heads import Shape

    student = built("towers:layers:6")
    student.limit(128)
    student.stand(Shape(top_layers=4, **HEADS[head]))
    all_texts = texts(min(largest, 1000))
    student.embed(all_texts[:64])
    began = time.perf_counter()
    vectors = student.embed(all_texts)
    each = (time.perf_counter() - began) / len(all_texts)
    many = vectors[[i % len(vectors) for i in range(largest)]]
    found = {"embed_per_second": 1 / each}
    sizes = [n for n in (10, 100, 1000, 10_000) if n <= largest]
    student.matrix(many[:10], many[:10])
    for n in sizes:
        for m in sizes:
            rows = max(1, min(n, MOST[head] // m))  # of a sample, fewer queries
            began = time.perf_counter()
            student.matrix(many[:rows], many[:m])
            found[f"{n}x{m}"] = (time.perf_counter() - began) * n / rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=512)
    parser.add_argument("--largest", type=int, default=10_000)
    parser.add_argument("--job", choices=("cross", *HEADS))
    o = parser.parse_args()
    if o.job:
        print(json.dumps(cross(o.sample) if o.job == "cross" else towers(o.job, o.largest)))
        return
    given = ["--sample", str(o.sample), "--largest", str(o.largest)]
    found = in_turns(__file__, {job: ["--job", job, *given] for job in ("cross", *HEADS)}, o.rounds)
    speed = [r["pairs_per_second"] for r in found["cross"]]
    print(f"cross-encoder: {spread(speed)} pairs/s, on {o.sample} pairs")
    for head in HEADS:
        print(f"{head}: {spread([r['embed_per_second'] for r in found[head]])} texts/s embedded")
        for size in found[head][0]:
            if "x" not in size:
                continue
            n, m = map(int, size.split("x"))
            seconds = [r[size] for r in found[head]]
            kept = [n * m / s / t for s, t in zip(speed, seconds)]
            queries = [n * m / s / (t + n / r["embed_per_second"]) for s, t, r in zip(speed, seconds, found[head])]
            print(
                f"  {n:>6} x {m:<6} {'~' * (n * m > MOST[head])}{statistics.median(seconds):9.4g} s   cross-encoder "
                f"~{n * m / statistics.median(speed):9.4g} s   {spread(kept)} times, {spread(queries)} with the queries"
            )
    record("pairs", rounds=o.rounds, sample=o.sample, cross=found["cross"], heads={h: found[h] for h in HEADS})


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    main()
