"""How time and memory grow with the length of a text: `python benchmarks/bench_long_attention.py [--rounds 3]`.

One encoder of 2 layers, 128 wide, with 2 heads, with full attention (the library's `eager` and `sdpa`) and with each
efficient kind, on one text of 128 to 8192 tokens; one thread, no gradient. Each kind runs in a process of its own; they
take turns. Time is that of the processor, least of the rounds. Memory is the peak above what the process had before the
text (VmHWM, put back by `/proc/self/clear_refs`, so on Linux alone), in processes of their own that give freed memory
back at once, which is slower. Growth from 1024 to 2048 tokens and from 4096 to 8192 tells the order: 2 is linear, 4
quadratic. At last 4 and 2 layers at 1024 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._common import in_turns, record

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
KINDS = ("eager", "sdpa", "longformer", "bigbird", "lsg", "nystrom")
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
LAYERS = {"4 layers": 4, "2 layers": 2}


def encoder(kind: str, layers: int = 2) -> Any:
    import torch
    import transformers
    from kdhub_text.students.conversion import to_efficient

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=512,
        max_position_embeddings=512,
    )  # fmt: skip
    if kind in ("eager", "sdpa"):
        made = to_efficient(transformers.BertModel(config), "full", max_length=LENGTHS[-1])
        made.set_attn_implementation(kind)
        return made.eval()
    return to_efficient(transformers.BertModel(config), kind, max_length=LENGTHS[-1], window=128, block=64).eval()


def peak() -> int:
    """Bytes, the most this process had since the mark was put back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def put_back() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def measure(kind: str, layers: int, lengths: list[int]) -> dict[str, Any]:
    import torch
    from kdhub_tasks.long import further_inputs

    torch.set_num_threads(1)
    model, found = encoder(kind, layers), {}
    with torch.inference_mode():
        for n in lengths:
            ids = torch.randint(5, 1000, (1, n), generator=torch.Generator().manual_seed(n))
            mask = torch.ones_like(ids)
            inputs = {"input_ids": ids, "attention_mask": mask, **further_inputs(model.config, mask)}
            model(**{name: value[:, :128] for name, value in inputs.items()})
            times, before = [], put_back()
            for _ in range(3):  # the first of them also warms up
                began = time.process_time()
                model(**inputs)
                times.append(time.process_time() - began)
            found[n] = {"seconds": min(times), "bytes": peak() - before}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    asked = parser.parse_args()
    if asked.kind:
        print(json.dumps(measure(asked.kind, asked.layers, [int(n) for n in asked.lengths.split(",")])))
        return
    jobs = {kind: ("--kind", kind, "--lengths", asked.lengths) for kind in KINDS}
    times = in_turns(__file__, jobs, asked.rounds)
    memory = in_turns(__file__, jobs, 1, **GIVES_BACK)
    best = {
        kind: {
            n: {"seconds": min(r[n]["seconds"] for r in times[kind]), "bytes": memory[kind][0][n]["bytes"]}
            for n in times[kind][0]
        }
        for kind in KINDS
    }
    lengths = [str(n) for n in asked.lengths.split(",")]
    for what, scale, unit in (("seconds", 1e3, "ms of the processor"), ("bytes", 2**-20, "MiB above the model")):
        print(
            f"\n{unit}\n{'kind':<12}"
            + "".join(f"{n:>9}" for n in lengths)
            + "   2048/1024  8192/4096  of eager at 8192"
        )
        for kind, row in best.items():
            cells = "".join(f"{row[n][what] * scale:9.1f}" for n in lengths)
            growth = [row[a][what] / max(1e-9, row[b][what]) for a, b in (("2048", "1024"), ("8192", "4096"))]
            share = row["8192"][what] / best["eager"]["8192"][what]
            print(f"{kind:<12}{cells}{growth[0]:12.2f}{growth[1]:11.2f}{share:18.3f}")
            record("long_attention", kind=kind, what=what, **{n: row[n][what] for n in lengths}, of_eager_at_8192=share)
    jobs = {name: ("--kind", "longformer", "--layers", str(n), "--lengths", "1024") for name, n in LAYERS.items()}
    halves = {name: min(r["1024"]["seconds"] for r in rounds) for name, rounds in in_turns(__file__, jobs, 3).items()}
    share = halves["2 layers"] / halves["4 layers"]
    print(f"\n2 layers of longformer take {share:.2f} of the time of 4 at 1024 tokens")
    record("long_attention", what="half the layers at 1024 tokens", share=share)


if __name__ == "__main__":
    main()
