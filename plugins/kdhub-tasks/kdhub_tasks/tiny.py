"""Tiny encoders and texts, generated: what methods for texts are tried on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from kdhub_tasks.fresh import SPECIAL

WORDS = [a + b for a in ("ka", "lo", "mi", "nu", "ra", "se", "ti", "vo") for b in ("bel", "dan", "fos", "gir", "pum")]
"""The words of the tiny vocabulary; any other word is split into letters."""

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
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        body = Transformer(str(target), max_seq_length=max_length)
        parts = [body, Pooling(hidden, pooling_mode=pooling, include_prompt=include_prompt)]
        model = SentenceTransformer(modules=parts + [Normalize()] * normalise, prompts=prompts, device="cpu")
        model.save(str(folder), create_model_card=False)
    return folder


def overlap(a: str, b: str) -> float:
    """The share of words that two texts have in common."""
    one, two = set(a.split()), set(b.split())
    return len(one & two) / len(one | two)
