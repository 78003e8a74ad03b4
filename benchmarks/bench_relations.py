"""Pairs in sentences: the student of `ade` beside spaCy trained on the same rows, and its speed beside a language model
that labels (`make relation-peers`).

Both learn from the same teacher's labels of the ADE corpus (`ade-corpus`: cues, 800 test sentences) and get the same
drugs at test time, by their form. spaCy's own training of named entities is used in two ways: on the rows of `ade`, the
drug between two marker words (drug-centric), and on sentences, every drug with every event found (co-occurrence).

    python benchmarks/bench_relations.py quality [--seeds 1]
    python benchmarks/bench_relations.py speed --student RUN/student [--model path:FOLDER] [--sentences 8]

`speed` asks the language model as the teacher `prompted-relations` does, five demonstrations and a reply of at most 32
tokens, sentence by sentence, and the student likewise. Without a model it is one with the shape of SmolLM-135M and
random weights, whose speed is that of any such: it labels nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import PEERS, child, record

SPACY = PEERS.parents[2] / "relation-peers" / "bin" / "python"
BEFORE, BEHIND = " drugbegin ", " drugend "
"""Markers, as words that no sentence has."""


def export(folder: Path, seed: int) -> None:
    """The rows that `ade` learns from and the test sentences with their drugs, for programs without kdhub."""
    import numpy as np
    from kdhub_knowledge.methods.ade import Ade
    from kdhub_knowledge.relations.profiles import profile
    from kdhub_knowledge.relations.spans import words

    import kdhub
    from kdhub.data.prepare import iterate

    options = {"negatives": "ade-corpus-negatives", "test": 800, "train_negatives": 2000, "seed": seed}
    data = kdhub.open_data({"source": "relation-corpus:ade-corpus-pairs", "options": options})
    teacher, form = kdhub.open_teacher("cues", "relation-extraction"), profile("ade")
    found = [(row["text"], teacher.found(row["text"])) for row in iterate(data.split("train"))]
    rng = np.random.default_rng([seed, 7])
    rows = list(Ade(Ade.Options(drug_source="lexicon")).made(found, None, rng))
    test = [{**row, "heads": form.heads(row["text"])} for row in iterate(data.split("test"))]
    assert not any(BEFORE.strip() in row["text"] for row in (*rows, *test)) and words("x")
    for name, some in (("rows", rows), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")


def read(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def marked(text: str, head: list[int]) -> tuple[str, int]:
    """The text with markers around a head, and how far what stands behind the head has moved."""
    return text[: head[0]] + BEFORE + text[head[0] : head[1]] + BEHIND + text[head[1] :], len(BEFORE + BEHIND)


def spacy_pairs(folder: Path, way: str, seed: int, epochs: int) -> dict:
    """Train spaCy's entity recogniser, and write the pairs that it finds in the test sentences."""
    import spacy
    from spacy.training import Example
    from spacy.util import compounding, fix_random_seed, minibatch

    fix_random_seed(seed)
    rows, began = read(folder, "rows"), time.perf_counter()
    given: list[tuple[str, list[list[int]]]] = []
    if way == "marked":
        for row in rows:
            text, moved = marked(row["text"], row["head"])
            given.append((text, [[n + moved * (n >= row["head"][1]) for n in tail] for tail in row["tails"]]))
    else:
        together: dict[str, list[list[int]]] = {}
        for row in rows:
            together.setdefault(row["text"], []).extend(row["tails"])
        given = list(together.items())
    nlp = spacy.blank("en")
    nlp.add_pipe("ner").add_label("EVENT")
    examples = []
    for text, tails in given:
        doc, kept, end = nlp.make_doc(text), [], -1
        spans = {doc.char_span(a, b, "EVENT", alignment_mode="expand") for a, b in map(tuple, tails)} - {None}
        for span in sorted(spans, key=lambda s: (s.start, -s.end)):
            if span.start >= end:
                kept.append((span.start_char, span.end_char, "EVENT"))
                end = span.end
        examples.append(Example.from_dict(doc, {"entities": kept}))
    optimiser, order = nlp.initialize(lambda: examples), random.Random(seed)
    for _ in range(epochs):
        order.shuffle(examples)
        for batch in minibatch(examples, size=compounding(4.0, 32.0, 1.001)):
            nlp.update(batch, drop=0.3, sgd=optimiser)
    pairs = []
    for row in read(folder, "test"):
        text, here = row["text"], []
        plain = [] if way == "marked" else [str(span) for span in nlp(text).ents]
        for head in row["heads"]:
            tails = plain if way != "marked" else [str(span) for span in nlp(marked(text, head)[0]).ents]
            here += [[text[slice(*head)], tail] for tail in tails if BEFORE.strip() not in tail]
        pairs.append(here)
    (folder / f"spacy-{way}.json").write_text(json.dumps(pairs), encoding="utf-8")
    return {"seconds": time.perf_counter() - began, "version": spacy.__version__}


def quality(seeds: int) -> None:
    from kdhub_knowledge.relations.metrics import Relations, lenient_f1, strict_f1

    import kdhub

    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as inner:
            folder = Path(inner)
            export(folder, seed)
            found = {"spacy-marked": None, "spacy-cooccurrence": None} if SPACY.exists() else {}
            for name in found:
                way = name.removeprefix("spacy-")
                facts = child(__file__, "spacy", inner, "--way", way, "--seed", str(seed), python=str(SPACY))
                test, pairs = read(folder, "test"), json.loads((folder / f"{name}.json").read_text())
                out = Relations([r["text"] for r in test], [r["pairs"] for r in test], pairs)
                found[name] = {"lenient": lenient_f1(out), "strict": strict_f1(out), **facts}
            began = time.perf_counter()
            keys = {"data.train.0.options.seed": seed, "evaluation.data.0.options.seed": seed, "evaluation.cost": False}
            run = kdhub.distill("ade-corpus", out=folder / "run", set={**keys, "seed": seed})
            scores = {(m["subject"], m["metric"]): m["value"] for m in run.report["measures"]}
            for subject in ("teacher", "student"):
                of = {kind: scores[subject, f"{kind}-f1"] for kind in ("lenient", "strict")}
                found["cues" if subject == "teacher" else "ade"] = of
            found["ade"]["seconds"] = time.perf_counter() - began
            for name, facts in found.items():
                print(
                    f"seed {seed}  {name:20} lenient {facts['lenient']:.3f}  strict {facts['strict']:.3f}", flush=True
                )
                record("relations", seed=seed, subject=name, **facts)


def fresh(folder: Path, texts: list[str]) -> str:
    """A model of 135 million random weights, with a tokenizer of these texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["</s>"], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=None,
        bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"path:{folder}"


def speed(student: str, model: str | None, sentences: int) -> None:
    """Seconds of the processor for a sentence of both, in turns; the median over sentences and their ratio. Each
    sentence has a head by its form: without one the student has nothing to read."""
    from kdhub_knowledge.relations.profiles import profile

    import kdhub
    from kdhub.data.prepare import iterate

    task = kdhub.open_task("relation-extraction")
    options = {"negatives": "ade-corpus-negatives", "test": 800, "train_negatives": 2000}
    data = kdhub.open_data({"source": "relation-corpus:ade-corpus-pairs", "options": options})
    texts = [row["text"] for row in iterate(data.split("test")) if profile("ade").heads(row["text"])][: sentences + 1]
    small, times = task.load(Path(student)), {"student": [], "language model": []}
    shown = Path(model.partition(":")[2]).name if model else "shape of SmolLM-135M, random weights"
    if model is None:
        some = [row["text"] for row in iterate(data.split("train"))]
        model = fresh(Path(tempfile.mkdtemp()), some)
    ref = {"source": "prompted-relations", "model": model, "answers": {"max_new_tokens": 32, "stop": []}}
    teacher = kdhub.open_teacher(ref, "relation-extraction")
    causal = kdhub.open_task("causal-lm").preparer(None, teacher.prompter.model, **teacher.prompter.how.prompting)
    for text in texts:
        (prompt,) = causal([{"prompt": teacher.prompt(text)}])
        for name, ask in (
            ("student", lambda text=text: small.signals([{"text": text, "entities": None}], "pairs")),
            ("language model", lambda p=prompt: teacher.prompter.model.signals([p], teacher.prompter.how.kind)),
        ):
            began = time.process_time()
            ask()
            times[name].append(time.process_time() - began)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first one warms up
    ratio = median["language model"] / median["student"]
    size = sum(p.numel() for p in teacher.prompter.model.module.parameters())
    mine, theirs = (median[name] * 1e3 for name in ("student", "language model"))
    print(f"student {mine:.1f} ms, {shown} ({size:,} parameters) {theirs:.1f} ms a sentence: x{ratio:.1f}")
    record("relations-speed", model=shown, parameters=size, sentences=sentences, ratio=ratio, **median)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("quality", "speed", "spacy"))
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--way", default="marked")
    parser.add_argument("--student")
    parser.add_argument("--model")
    parser.add_argument("--sentences", type=int, default=8)
    asked = parser.parse_args()
    if asked.what == "spacy":
        print(json.dumps(spacy_pairs(Path(asked.folder), asked.way, asked.seed, asked.epochs)))
    elif asked.what == "quality":
        quality(asked.seeds)
    elif asked.student:
        speed(asked.student, asked.model, asked.sentences)
    else:
        sys.exit("speed needs --student FOLDER")
