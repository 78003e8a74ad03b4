"""A teacher behind a server that is asked inside training: rows a second with one request in flight, and with 32.

The server (`kdhub.testing.language_server`) is a process of its own, on loopback, with a small Llama; it runs requests
that wait at the same moment in one batch. `--delay` is added to each answer, as a network adds it: without any, on the
processor that also trains, what is gained is what a batch saves, and a machine of few cores saves little. Rows are of
24 tokens, with the 20 most probable tokens of each position, as many as vLLM gives unless told otherwise.

    python benchmarks/bench_server_teacher.py [--rounds 3] [--rows 64] [--delays 0,0.02]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import record, spread

TOKENS, TOP, IN_FLIGHT = 24, 20, (1, 32)


def saved(folder: Path) -> Path:
    from kdhub_tasks.language.students import llama

    from kdhub.student import BuildContext

    llama("width=128,layers=4,heads=4,length=64", BuildContext(None, None, 0)).save(folder / "model")
    return folder / "model"


def asked(folder: Path, url: str, concurrency: int, rows: int) -> float:
    """Rows a second."""
    import torch
    from kdhub_tasks.language.openai import OpenAI

    options = OpenAI.Options(base_url=url, tokenizer=str(folder), concurrency=concurrency)
    teacher = OpenAI("bench", options)
    ids = torch.randint(3, 258, (rows, TOKENS), generator=torch.Generator().manual_seed(0))
    at = (torch.arange(rows)[:, None] * TOKENS + torch.arange(TOKENS - 1)).flatten()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "at": at}
    few = {"input_ids": ids[:2], "attention_mask": torch.ones_like(ids[:2]), "at": at[: 2 * (TOKENS - 1)]}
    teacher.batch_signals(few, f"logits:top-{TOP}")
    began = time.perf_counter()
    teacher.batch_signals(batch, f"logits:top-{TOP}")
    return rows / (time.perf_counter() - began)


def served(folder: Path, delay: float, rounds: int, rows: int) -> dict[int, list[float]]:
    command = [sys.executable, "-m", "kdhub.testing.language_server", str(folder), "--delay", str(delay)]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            url = server.stdout.readline().strip()
            found: dict[int, list[float]] = {n: [] for n in IN_FLIGHT}
            for turn in range(rounds):
                for n in IN_FLIGHT if turn % 2 == 0 else IN_FLIGHT[::-1]:
                    found[n].append(asked(folder, url, n, rows))
            return found
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--delays", default="0,0.02")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder, results = saved(Path(home)), {}
        print("| delay of the network | 1 in flight, rows/s | 32 in flight, rows/s | ratio |")
        print("| ---: | ---: | ---: | ---: |")
        for delay in map(float, given.delays.split(",")):
            found = served(folder, delay, given.rounds, given.rows)
            one, many = (found[n] for n in IN_FLIGHT)
            ratios = [b / a for a, b in zip(one, many)]
            print(f"| {1000 * delay:g} ms | {spread(one)} | {spread(many)} | {spread(ratios)} |", flush=True)
            results[f"{1000 * delay:g} ms"] = {"one": one, "many": many, "ratio": statistics.median(ratios)}
    record("server_teacher", in_flight=IN_FLIGHT[1], tokens=TOKENS, top=TOP, rows=given.rows, results=results)


if __name__ == "__main__":
    main()
