"""The tiny recipe of text embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdhub_tasks.tiny import overlap, random_texts, tiny_encoder, write_jsonl


def recipe(folder: Path) -> dict[str, Any]:
    """`TextEmbedding.tiny_recipe`: encoders of random weights, 48 texts, and some data of each form.

    A query of the retrieval set is the first words of its one relevant document; the score of a pair is the share of
    words its two texts have in common.
    """
    texts, others = random_texts(48, seed=1), random_texts(24, seed=2, shortest=6)
    teacher = tiny_encoder(folder / "teacher")
    # Not from the teacher: not every method has one.
    student = tiny_encoder(folder / "student", layers=1, seed=1)
    train = write_jsonl(folder / "train.jsonl", texts)

    pairs = [(a, b if i % 3 else f"{a} {b}") for i, (a, b) in enumerate(zip(texts[:24], others))]
    rows = [{"sentence1": a, "sentence2": b, "score": overlap(a, b)} for a, b in pairs]
    sts = write_jsonl(folder / "sts.jsonl", rows)

    beir = folder / "retrieval"
    beir.mkdir()
    write_jsonl(beir / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(others)])
    queries = [{"_id": f"q{i}", "text": " ".join(text.split()[:3])} for i, text in enumerate(others[:12])]
    write_jsonl(beir / "queries.jsonl", queries)
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(12))
    (beir / "qrels_test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)

    return {
        "teacher": {"source": f"path:{teacher}", "precision": "float32"},
        "student": {"source": f"path:{student}"},
        "data": {"train": [{"source": f"path:{train}"}]},
        "evaluation": {"data": [{"source": f"path:{sts}"}, {"source": f"path:{beir}", "split": "test"}], "cost": False},
    }
