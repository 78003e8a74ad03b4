"""Tiny encoders and texts, made on the spot: what methods for text embedding are tried on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [a + b for a in ("ka", "lo", "mi", "nu", "ra", "se", "ti", "vo") for b in ("bel", "dan", "fos", "gir", "pum")]
"""The words of the tiny vocabulary; any other word falls into letters."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?#'()-"


def random_texts(n: int, seed: int = 0, shortest: int = 2, longest: int = 12) -> list[str]:
    """Texts of words of the tiny vocabulary, all different."""
    rng = np.random.default_rng(seed)
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[" ".join(rng.choice(WORDS, rng.integers(shortest, longest + 1)))] = None
    return list(texts)


def write_jsonl(path: Path, rows: list) -> Path:
    """Rows as JSON lines; a plain text is a row with that text."""
    path.write_text("".join(json.dumps({"text": r} if isinstance(r, str) else r) + "\n" for r in rows))
    return path


def tiny_encoder(
    folder: Path,
    *,
    layers: int = 3,
    hidden: int = 32,
    pooling: str = "mean",
    include_prompt: bool = True,
    normalise: bool = True,
    prompts: dict[str, str] | None = None,
    max_length: int = 64,
    words: list[str] = WORDS,
    seed: int = 0,
    plain: bool = False,
    nan: bool = False,
) -> Path:
    """A SentenceTransformer folder with a fresh BERT of random weights, large enough that texts differ clearly.

    Args:
        words: whole words of its WordPiece vocabulary.
        plain: only the transformers folder, without pooling.
        nan: with weights that are not numbers.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *words]
    ids = {token: i for i, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **names)
    torch.manual_seed(seed)
    network = BertModel(
        BertConfig(
            vocab_size=len(ids),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=128,
            initializer_range=0.2,
        )
    )
    if nan:
        with torch.no_grad():
            network.embeddings.word_embeddings.weight[ids[words[0]]] = float("nan")
    with tempfile.TemporaryDirectory() as inner:
        target = folder if plain else Path(inner)
        network.save_pretrained(target)
        tokenizer.save_pretrained(target)
        if plain:
            return folder
        body = Transformer(str(target), max_seq_length=max_length)
        parts = [body, Pooling(hidden, pooling_mode=pooling, include_prompt=include_prompt)]
        model = SentenceTransformer(modules=parts + [Normalize()] * normalise, prompts=prompts, device="cpu")
        model.save(str(folder), create_model_card=False)
    return folder


def recipe(folder: Path) -> dict[str, Any]:
    """`TextEmbedding.tiny_recipe`: a three-layer encoder of random weights, 48 texts, and some data of each form.

    A query of the retrieval set is the first words of its one relevant document; the score of a pair is the share of
    words its two texts have in common.
    """
    texts, others = random_texts(48, seed=1), random_texts(24, seed=2, shortest=6)
    teacher = tiny_encoder(folder / "teacher")
    train = write_jsonl(folder / "train.jsonl", texts)

    pairs = [(a, b if i % 3 else f"{a} {b}") for i, (a, b) in enumerate(zip(texts[:24], others))]
    rows = [{"sentence1": a, "sentence2": b, "score": _overlap(a, b)} for a, b in pairs]
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
        "student": "layers:1",
        "data": {"train": [{"source": f"path:{train}"}]},
        "evaluation": {"data": [{"source": f"path:{sts}"}, {"source": f"path:{beir}", "split": "test"}], "cost": False},
    }


def pair_recipe(folder: Path) -> dict[str, Any]:
    """`TextPairs.tiny_recipe`: pairs with the share of words in common; cross-encoder and encoder of random weights."""
    from kdhub_text.cross_encoder import PairClassifier

    encoder = tiny_encoder(folder / "encoder", layers=2, hidden=16, plain=True)
    teacher = PairClassifier.with_head(encoder, ["score"], 1, {})
    (folder / "teacher").mkdir()
    teacher.save(folder / "teacher")
    return {
        "teacher": {"source": f"path:{folder / 'teacher'}"},
        "student": f"towers:path:{encoder}",
        "data": {"train": [{"source": f"path:{write_jsonl(folder / 'train.jsonl', pairs(64, seed=1))}"}]},
        "evaluation": {
            "data": [{"source": f"path:{write_jsonl(folder / 'test.jsonl', pairs(24, seed=2))}"}],
            "cost": False,
        },
    }


def pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of texts of the tiny vocabulary with the share of words they have in common; every third has many."""
    texts, others = random_texts(n, seed=seed), random_texts(n, seed=seed + 100)
    made = [(a, b if i % 3 else f"{a} {b}") for i, (a, b) in enumerate(zip(texts, others))]
    return [{"sentence1": a, "sentence2": b, "score": _overlap(a, b)} for a, b in made]


def _overlap(a: str, b: str) -> float:
    one, two = set(a.split()), set(b.split())
    return len(one & two) / len(one | two)


def question_recipe(folder: Path) -> dict[str, Any]:
    """`QuestionAnswering.tiny_recipe`: which word follows the one that is asked for; readers of random weights."""
    from kdhub_text.reader import Reader

    for name, layers, seed in (("teacher", 2, 1), ("student", 1, 2)):
        encoder = tiny_encoder(folder / f"encoder-{name}", layers=layers, hidden=16, plain=True)
        (folder / name).mkdir()
        Reader.with_head(encoder, [], seed, {}).save(folder / name)
    train, test = (
        write_jsonl(folder / f"{split}.jsonl", questions(n, seed=n)) for split, n in (("train", 64), ("test", 24))
    )
    return {
        "teacher": {"source": f"path:{folder / 'teacher'}"},
        "student": {"source": f"path:{folder / 'student'}"},
        "data": {"train": [{"source": f"path:{train}"}]},
        "evaluation": {"data": [{"source": f"path:{test}"}], "cost": False},
    }


def questions(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of the tiny vocabulary, one of their words, and the word behind it."""
    rng, made = np.random.default_rng(seed), []
    for text in random_texts(n, seed=seed, shortest=4):
        words = list(dict.fromkeys(text.split()))
        at = int(rng.integers(len(words)))
        before, answer = " ".join(words[: at + 1]), words[at + 1 : at + 2]  # the last has no word behind it
        answers = {"text": answer, "answer_start": [len(before) + 1] * len(answer)}
        made.append({"question": words[at], "context": " ".join(words), "answers": answers})
    return made
