"""A tiny text classifier and texts, made on the spot: what methods for texts are tried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = {
    "good": "fine lovely great superb warm bright".split(),
    "bad": "poor dull awful weak cold dark".split(),
}
FILLER = "the a film plot room meal very rather quite was is and".split()


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with a word of their class among others; all different."""
    rng, made = np.random.default_rng(seed), {}
    while len(made) < n:
        label = list(WORDS)[len(made) % 2]
        words = [*rng.choice(FILLER, rng.integers(3, 8)), rng.choice(WORDS[label])]
        rng.shuffle(words)
        made[" ".join(words)] = label
    return [{"text": text, "label": label} for text, label in made.items()]


def token_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same texts as words with tags: the word that tells the class is an entity of its kind."""
    made = []
    for row in rows(n, seed):
        words = row["text"].split()
        tags = [next((f"B-{kind}" for kind, of in WORDS.items() if word in of), "O") for word in words]
        made.append({"tokens": words, "tags": tags})
    return made


def text_classifier(
    folder: Path, *, hidden: int = 16, layers: int = 2, seed: int = 0, classes: Sequence[str] = ("bad", "good"),
    of: str = "BertForSequenceClassification", mask: bool = False,
) -> Path:  # fmt: skip
    """A transformers folder with a fresh BERT classifier, or another head; with `mask` it has a token that hides."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *(w for words in WORDS.values() for w in words)]
    vocabulary += ["[MASK]"] * mask
    ids = {token: i for i, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]"} if mask else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        initializer_range=0.3,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    getattr(transformers, of)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text_recipe(folder: Path) -> dict[str, Any]:
    """`TextClassification.tiny_recipe`."""
    return _recipe(folder, rows)


def token_recipe(folder: Path) -> dict[str, Any]:
    """`TokenClassification.tiny_recipe`."""
    tags = sorted({tag for row in token_rows(64) for tag in row["tags"]})
    return _recipe(folder, token_rows, classes=tags, of="BertForTokenClassification")


def masked_recipe(folder: Path) -> dict[str, Any]:
    """The same texts, without a class, for masked language models."""

    def texts(n: int, seed: int) -> list[dict[str, Any]]:
        return [{"text": row["text"]} for row in rows(n, seed)]

    return _recipe(folder, texts, of="BertForMaskedLM", mask=True)


def _recipe(folder: Path, make: Callable[[int, int], list[dict[str, Any]]], **how: Any) -> dict[str, Any]:
    teacher = text_classifier(folder / "teacher", **how)
    # Not from the teacher: not every method has one.
    student = text_classifier(folder / "student", layers=1, seed=1, **how)
    for name, n, seed in (("train", 64, 1), ("test", 32, 2)):
        lines = "".join(json.dumps(row) + "\n" for row in make(n, seed))
        (folder / f"{name}.jsonl").write_text(lines)
    return {
        "teacher": {"source": f"path:{teacher}"},
        "student": {"source": f"path:{student}"},
        "data": {"train": [{"source": f"path:{folder / 'train.jsonl'}"}]},
        "evaluation": {"data": [{"source": f"path:{folder / 'test.jsonl'}"}], "cost": False},
    }
