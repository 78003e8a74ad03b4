"""The forward KL of 4,096 tokens over a vocabulary of 32,000, forward and backward, from last states and heads.

What a student of width 256 learns from a teacher of width 512 in one step: the loss, and its gradients for states and
head. Plain PyTorch (all logits at once), kdhub (`over_positions`), Liger and TRL (`make bench-peers` installs both),
and the matrix products alone, below which nobody gets. float32, and kdhub once more with bfloat16 products. Each in a
process of its own, in turns; all must have the same loss and the same gradient.

    python benchmarks/bench_token_loss.py [--rounds 3] [--threads 2] [--tokens 4096]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

from _common import PEERS, in_turns, record, spread

VOCABULARY, WIDTH, WIDE = 32_000, 256, 512
JOBS = ("plain", "kdhub", "kdhub-bf16", "products", "liger", "trl")


def tensors(tokens: int):
    import torch

    torch.manual_seed(0)
    states = torch.randn(tokens, WIDTH, requires_grad=True)
    head = (torch.randn(VOCABULARY, WIDTH) * 0.06).requires_grad_()
    return states, head, torch.randn(tokens, WIDE), torch.randn(VOCABULARY, WIDE) * 0.04


def plain(states, head, theirs, their_head):
    import torch
    from torch.nn.functional import kl_div, log_softmax

    with torch.no_grad():
        target = log_softmax(theirs @ their_head.T, -1)
    return kl_div(log_softmax(states @ head.T, -1), target, reduction="batchmean", log_target=True)


def kdhub(states, head, theirs, their_head):
    from kdhub_tasks.divergences import forward_kl
    from kdhub_tasks.positions import Head, TokenSignals, over_positions

    def sums(s, z):
        return {"kl": forward_kl(s, z).sum() / len(states)}

    student, teacher = TokenSignals(head=Head(states, head)), TokenSignals(head=Head(theirs, their_head))
    return over_positions(sums, student, teacher)["kl"]


def liger(states, head, theirs, their_head):
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(beta=0.0, weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False, chunk_size=128)
    return loss(states, head, theirs, their_head, torch.zeros(len(states), dtype=torch.long))


def trl(states, head, theirs, their_head):
    import torch
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    counted = torch.ones(1, len(states), dtype=torch.long)
    return _chunked_divergence_loss(states[None], theirs[None], head, their_head, counted, 0.0)[0]


def job(name: str, tokens: int, threads: int, repeats: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    given = tensors(tokens)
    states, head, theirs, their_head = given

    def step() -> float:
        states.grad = head.grad = None
        if name == "products":
            with torch.no_grad():
                for at in range(0, tokens, 256):
                    s = states[at : at + 256] @ head.T
                    theirs[at : at + 256] @ their_head.T
                    s @ head, s.T @ states[at : at + 256]
            return 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16")):
            loss = {"plain": plain, "liger": liger, "trl": trl}.get(name, kdhub)(*given)
        loss.backward()
        return loss.item()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = step()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    norm = 0.0 if head.grad is None else head.grad.norm().item()
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": statistics.median(seconds), "mb": extra, "loss": loss, "gradient": norm}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    o = parser.parse_args()
    if o.job:
        print(json.dumps(job(o.job, o.tokens, o.threads, o.repeats)))
        return
    common = ["--tokens", str(o.tokens), "--threads", str(o.threads), "--repeats", str(o.repeats)]
    jobs = {name: ["--job", name, *common] for name in JOBS if name not in ("liger", "trl") or PEERS.exists()}
    found = in_turns(__file__, jobs, o.rounds, peers=("liger", "trl"))
    first = found["plain"][0]
    for name, rows in found.items():
        near = 2e-2 if name.endswith("bf16") else 1e-5
        for row in rows if name != "products" else ():
            for key in ("loss", "gradient"):
                if abs(row[key] - first[key]) > near * abs(first[key]):
                    print(f"{name}: {key} {row[key]:.7g}, plain has {first[key]:.7g}", file=sys.stderr)
    print(f"{o.tokens} tokens, vocabulary {VOCABULARY}, {o.threads} threads")
    print(f"{'':12} {'seconds':30} {'over plain':12} extra MB")
    ratios = {}
    for name, rows in found.items():
        pairs = [row["seconds"] / other["seconds"] for row, other in zip(rows, found["plain"])]
        ratios[name] = statistics.median(pairs)
        mb = statistics.median(row["mb"] for row in rows)
        print(f"{name:12} {spread([row['seconds'] for row in rows]):30} {ratios[name]:<12.3g} {mb:.0f}")
    record("token_loss", tokens=o.tokens, threads=o.threads, rounds=found, over_plain=ratios)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
