"""Embedding distillation: kdhub's LEAF against sentence-transformers doing the same job.

Same texts (4,000 documentation texts), teacher (all-MiniLM-L6-v2), start (its layers 1 and 6), batch 32, one pass, peak
learning rate and linear decay, loss (squared distance of the vectors). sentence-transformers labels with its `encode`
and trains with `EmbedDistillLoss`, both at their defaults, and once more with `bf16=True`. Each job runs in a process
of its own, in turns. Quality of the students on pydoc's validation pairs.

    python benchmarks/bench_embedding.py [--rounds 3] [--texts 4000]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from _common import in_turns, record, spread

LR, BATCH = 3e-4, 32


def texts(count: int) -> list[str]:
    from kdhub.data.dataset import DataOptions
    from kdhub.data.pydoc import pydoc

    return list(pydoc().with_options(DataOptions(sample=count)).texts("train")["text"])


def student_start():
    import kdhub

    teacher = kdhub.open_teacher("packaged:all-minilm-l6-v2", "text-embedding")
    start = kdhub.open_student("layers:2", "text-embedding", teacher=teacher)
    start.set_normalised(True)
    return teacher, start


def score(model) -> float:
    """nDCG@10 on pydoc's validation pairs."""
    from kdhub_tasks.embedding import metrics, outputs

    from kdhub.data.pydoc import pydoc

    part = pydoc().retrieval("validation")
    return metrics.ndcg_at_10(
        outputs.RetrievalOutputs(
            query_ids=list(part.queries["id"]),
            corpus_ids=list(part.corpus["id"]),
            queries=model.encode(list(part.queries["text"]), batch_size=32),
            corpus=model.encode(list(part.corpus["text"]), batch_size=32),
            qrels={q: {d: int(s) for d, s in g.items()} for q, g in part.judgements.items()},
        )
    )


def peer(count: int, bf16: bool) -> dict:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    rows = texts(count)
    teacher, start = student_start()
    teacher.module.encode(rows[:64])
    began = time.perf_counter()
    vectors = teacher.module.encode(rows)
    label = time.perf_counter() - began
    model = start.module
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=LR, bf16=bf16,
            use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_dict({"sentence": rows, "label": vectors.tolist()})
        loss = losses.EmbedDistillLoss(model, distance_metric="mse")
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
        began = time.perf_counter()
        trainer.train()
        train = time.perf_counter() - began
    return {"label": count / label, "train": count / train, "ndcg": score(model.eval())}


def ours(count: int) -> dict:
    import os

    import kdhub

    with tempfile.TemporaryDirectory() as home:
        for name in ("data", "teachers"):  # the texts are prepared beforehand, the signals are not
            source = Path(os.environ["KDHUB_HOME"]) / name
            if source.exists():
                (Path(home) / name).symlink_to(source)
        os.environ["KDHUB_HOME"] = home
        run = kdhub.distill(
            method="leaf", out=Path(home) / "run",
            set=[f"data.train.0.sample={count}", f"options.lr={LR}", "evaluation.data=[]", "options.warmup=0"],
        )  # fmt: skip
        from sentence_transformers import SentenceTransformer

        facts = run.provenance
        model = SentenceTransformer(str(run.student_folder), device="cpu")
        return {
            "label": count / facts["signals"]["embedding"]["seconds"],
            "train": facts["training"]["rows_per_second"],
            "ndcg": score(model),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--job", choices=("kdhub", "peer", "peer-bf16"))
    options = parser.parse_args()
    if options.job:
        job = ours(options.texts) if options.job == "kdhub" else peer(options.texts, options.job == "peer-bf16")
        print(json.dumps({k: round(v, 4) for k, v in job.items()}))
        return
    with tempfile.TemporaryDirectory() as home:
        jobs = {name: ["--job", name, "--texts", str(options.texts)] for name in ("kdhub", "peer", "peer-bf16")}
        found = in_turns(__file__, jobs, options.rounds, KDHUB_HOME=home)
    print(f"\n{'':24}{'teacher, texts/s':>28}{'training, texts/s':>28}{'nDCG@10':>28}")
    for name, title in (("kdhub", "kdhub"), ("peer", "sentence-transformers"), ("peer-bf16", "the same, bf16=True")):
        cells = [spread([r[key] for r in found[name]]) for key in ("label", "train", "ndcg")]
        print(f"{title:24}" + "".join(f"{c:>28}" for c in cells))
    ratios = {
        f"{key} over {name}": [a[key] / b[key] for a, b in zip(found["kdhub"], found[name])]
        for name in ("peer", "peer-bf16")
        for key in ("label", "train")
    }
    for name, values in ratios.items():
        print(f"{name:24} {spread(values)}")
    record("embedding", texts=options.texts, rounds=found, ratios={k: sorted(v) for k, v in ratios.items()})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
