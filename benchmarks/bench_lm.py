"""Distilling a language model: kdhub's `gkd` beside the GKDTrainer of TRL, on conversations and on the student's texts.

Llama-shaped models over a vocabulary of 32,000: a teacher of width 256 and 4 layers, a student of width 128 and 2,
both fresh, in float32. Conversations of about 170 words, in the same order, batches of 8. `data` is forward KL on the
data (lmbda 0, beta 0), `samples` the generalised JSD on what the student writes (lmbda 1, beta 0.5, temperature 0.9).
Each in a process of its own, in turns; both must have the same loss on the first batch of conversations. Timed is
training alone, from the first batch to the last optimiser step; the processor's time too, for busy machines.
`make bench-peers` installs TRL.

    python benchmarks/bench_lm.py [--rounds 3] [--threads 2] [--rows 96] [--sampled 24] [--new-tokens 64]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import PEERS, in_turns, record, spread

VOCABULARY, LENGTH, BATCH, LR = 32_000, 256, 8, 1e-4
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ ' </s>' if m['role'] == 'assistant' }} {% endfor %}"
    "{{ 'assistant:' if add_generation_prompt }}"
)
SHAPES = {"teacher": (256, 4), "student": (128, 2)}
PARTS = ("data", "samples")


def prepare(folder: Path, rows: int) -> None:
    """Both models with their tokenizer, and the conversations."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [f"w{i}" for i in range(VOCABULARY - 5)]
    names = ["<pad>", "<unk>", "</s>", "user:", "assistant:", *words]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=LENGTH
    )
    tokenizer.chat_template = TEMPLATE
    for n, (name, (width, layers)) in enumerate(SHAPES.items()):
        torch.manual_seed(n)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=True,
            pad_token_id=0, bos_token_id=None, eos_token_id=2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    say = lambda: " ".join(rng.choices(words, k=rng.randint(50, 115)))  # noqa: E731
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for _ in range(rows):
            turns = [{"role": "user", "content": say()}, {"role": "assistant", "content": say()}]
            file.write(json.dumps({"messages": turns}) + "\n")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def kdhub(folder: Path, part: str, rows: int, new_tokens: int) -> dict[str, float]:
    import kdhub.training.engine
    from kdhub.sampler import ShuffledSampler

    os.environ["KDHUB_HOME"] = str(folder / "home")
    ShuffledSampler.epoch = lambda self, number: iter(range(rows))  # the order of the rows, as the other has it
    losses, before = [], []
    observe, train = kdhub.training.engine.Engine.observe, kdhub.training.engine.Engine.train

    def observed(engine, step, loss, terms):
        losses.append(loss.item())
        return observe(engine, step, loss, terms)

    def trained(engine):
        before.append((peak(), time.process_time()))
        facts = train(engine)
        before.append(time.process_time() - before[0][1])
        return facts

    kdhub.training.engine.Engine.observe, kdhub.training.engine.Engine.train = observed, trained
    on_data = part == "data"
    run = kdhub.distill(
        {
            "task": "causal-lm", "method": "gkd", "teacher": f"path:{folder / 'teacher'}",
            "student": f"path:{folder / 'student'}",
            "data": {"train": [{"source": f"path:{folder / 'rows.jsonl'}", "limit": rows}]},
            "options": {
                "lmbda": 0.0 if on_data else 1.0, "beta": 0.0 if on_data else 0.5, "max_new_tokens": new_tokens,
                "lr": LR, "schedule": "linear", "warmup": 0.0, "precision": "float32", "batch_size": BATCH,
                "max_steps": rows // BATCH, "group_by_length": False,
            },
            "evaluation": {"data": [], "cost": False},
        },
        out=Path(tempfile.mkdtemp(dir=folder)) / "run",
    )  # fmt: skip
    seconds, ((start, _), busy) = run.provenance["training"]["seconds"], before
    return {"seconds": seconds, "busy": busy, "loss": losses[0], "mb": peak(), "before_mb": start}


def without_torchvision():
    """Where the peers' environment has torchvision, built for another torch, transformers can import it all the same
    once two of its operators have a schema. Keep what this gives."""
    import importlib.util

    import torch

    if importlib.util.find_spec("torchvision") is None:
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def trl(folder: Path, part: str, rows: int, new_tokens: int) -> dict[str, float]:
    kept = without_torchvision()  # noqa: F841
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    lines = (folder / "rows.jsonl").read_text().splitlines()[:rows]
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("student", "teacher"))
    on_data = part == "data"
    losses = []

    class Trainer(GKDTrainer):
        def compute_loss(self, *arguments, **more):
            found = super().compute_loss(*arguments, **more)
            losses.append((found[0] if isinstance(found, tuple) else found).item())
            return found

    trainer = Trainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(
            output_dir=str(folder / "trl"), lmbda=0.0 if on_data else 1.0, beta=0.0 if on_data else 0.5,
            temperature=1.0 if on_data else 0.9, max_length=LENGTH, max_new_tokens=new_tokens, use_cpu=True, bf16=False,
            report_to=[], save_strategy="no", logging_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
            num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=LR,
            train_sampling_strategy="sequential",
        ),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
        train_dataset=datasets.Dataset.from_list([json.loads(line) for line in lines]),
    )  # fmt: skip
    before, began, busy = peak(), time.monotonic(), time.process_time()
    trainer.train()
    seconds, busy = time.monotonic() - began, time.process_time() - busy
    return {"seconds": seconds, "busy": busy, "loss": losses[0], "mb": peak(), "before_mb": before}


def job(name: str, o: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(o.threads)
    program, _, part = name.partition("-")
    rows = o.rows if part == "data" else o.sampled
    found = {"kdhub": kdhub, "trl": trl}[program](Path(o.folder), part, rows, o.new_tokens)
    return {**found, "per_second": rows / found["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job")
    parser.add_argument("--folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--sampled", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=64)
    o = parser.parse_args()
    if o.job:
        print(json.dumps(job(o.job, o)))
        return
    programs = ("kdhub", "trl") if PEERS.exists() else ("kdhub",)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), max(o.rows, o.sampled))
        common = ["--folder", folder, "--threads", str(o.threads), "--rows", str(o.rows), "--sampled", str(o.sampled),
                  "--new-tokens", str(o.new_tokens)]  # fmt: skip
        jobs = {f"{p}-{part}": ["--job", f"{p}-{part}", *common] for part in PARTS for p in programs}
        peers = [name for name in jobs if name.startswith("trl")]
        found = in_turns(__file__, jobs, o.rounds, peers=peers, OMP_NUM_THREADS=str(o.threads))
    print(f"{o.threads} threads, batches of {BATCH}; samples of {o.new_tokens} tokens")
    print(f"{'':15} {'sequences/s':30} peak MB (before training)   loss of the first batch")
    ratios = {}
    for name, each in found.items():
        mb, before = (statistics.median(row[key] for row in each) for key in ("mb", "before_mb"))
        print(
            f"{name:15} {spread([row['per_second'] for row in each]):30} {mb:6.0f} ({before:.0f}) {each[0]['loss']:.6f}"
        )
    for part in PARTS if len(programs) == 2 else ():
        ours, theirs = found[f"kdhub-{part}"], found[f"trl-{part}"]
        speed = statistics.median(a["per_second"] / b["per_second"] for a, b in zip(ours, theirs))
        busy = statistics.median(a["busy"] / b["busy"] for a, b in zip(ours, theirs))
        memory = statistics.median(a["mb"] / b["mb"] for a, b in zip(ours, theirs))
        ratios[part] = {"speed": speed, "busy": busy, "memory": memory}
        print(
            f"{part}: {speed:.2f} times the sequences/s, {busy:.2f} of the processor time, {memory:.2f} of the memory"
        )
        if part == "data" and abs(ours[0]["loss"] - theirs[0]["loss"]) > 1e-5 * abs(theirs[0]["loss"]):
            print(f"losses differ: {ours[0]['loss']:.7g} and {theirs[0]['loss']:.7g}", file=sys.stderr)
    record(
        "lm", threads=o.threads, rows=o.rows, sampled=o.sampled, new_tokens=o.new_tokens, rounds=found, over_trl=ratios
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
