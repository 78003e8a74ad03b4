"""Is a step faster with several rows in one sequence? `python -m benchmarks.bench_packing [--threads 1]`.

Rows of five instruction sets, 30 to 210 bytes, in batches of 32: of like length and padded (the default), of all
lengths and padded, of all lengths and packed into sequences of 512. The three take turns; processor times are sums over
the same rows, relative to the first.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from kdhub_lm.data.synthetic import NOTED, synthetic
from kdhub_tasks.language import chat_template, task
from kdhub_tasks.language.model import CausalLm
from kdhub_tasks.language.students import llama

from kdhub.student import BuildContext

MODELS = {"2 layers of 96": "width=96,layers=2,heads=4", "4 layers of 256": "width=256,layers=4,heads=4"}


def step(student: CausalLm, examples: list[dict]) -> float:
    began = time.process_time()
    batch = task.CausalLanguage().collate(examples, student)
    torch.nn.functional.cross_entropy(student.module(batch).logits, batch["labels"]).backward()
    student.module.zero_grad()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = [
        {"messages": chat_template.as_conversation(r)}
        for name in NOTED
        for r in synthetic(name, rows=400).split("train")
    ]
    random.Random(0).shuffle(rows)
    for title, spec in MODELS.items():
        student = llama(f"{spec},length=512", BuildContext(None, None, 0))
        examples = task.CausalLanguage().preparer(student, None)(rows[: 32 * asked.rounds])
        ordered = sorted(examples, key=lambda e: e["length"])
        ways = {"like lengths": (ordered, False), "all lengths": (examples, False), "packed": (examples, True)}
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for n in range(-1, asked.rounds):  # the first round warms up
            for name, (some, student.packing) in ways.items():
                seconds = step(student, some[32 * max(n, 0) : 32 * (max(n, 0) + 1)])
                if n >= 0:
                    taken[name].append(seconds)
        whole = {name: sum(times) for name, times in taken.items()}
        print(title, {name: f"{whole[name] / whole['like lengths']:.2f}" for name in ways},
              f"like lengths: {1000 * statistics.mean(taken['like lengths']):.0f} ms a step")  # fmt: skip


if __name__ == "__main__":
    main()
