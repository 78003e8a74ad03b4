"""What the tests of text encoders share: a home of each test's own, and tiny encoders made on the spot."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before anything imports huggingface_hub, which reads these once. No test uses the network or the user's own cache.
_session_home = tempfile.TemporaryDirectory(prefix="kdhub-text-tests-")
os.environ["HF_HOME"] = _session_home.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = [a + b for a in ("ka", "lo", "mi", "nu", "ra", "se", "ti", "vo") for b in ("bel", "dan", "fos", "gir", "pum")]
"""The words of the tiny vocabulary; any other word falls into letters."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?#'()-"


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Iterator[Path]:
    """A kdhub home of the test's own, no switch from outside, and nothing left for the next test."""
    from kdhub import plugins

    folder = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("KDHUB_") and n != "KDHUB_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KDHUB_HOME", str(folder))
    monkeypatch.setenv("KDHUB_STRICT", "1")
    plugins.set_plugins(None)
    yield folder
    plugins.set_plugins(None)


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


class Tiny:
    """Makers of tiny things.

    Attributes:
        words: the whole words of the default vocabulary.
    """

    words = WORDS
    texts = staticmethod(random_texts)
    jsonl = staticmethod(write_jsonl)
    write_encoder = staticmethod(tiny_encoder)

    def __init__(self, folder: Callable[[str], Path]):
        self._folder, self._made = folder, {}

    def encoder(self, **settings: Any) -> Path:
        """`tiny_encoder(**settings)`, made once for each settings; not to be changed."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self._made:
            self._made[key] = tiny_encoder(self._folder("encoder"), **settings)
        return self._made[key]

    @staticmethod
    def recipe(teacher: Path | str, student: str, train: Any, evaluation: Any = (), **options: Any) -> dict[str, Any]:
        """A LEAF recipe for seconds: one short cycle in float32, no costs measured."""
        options = {"cycles": 1, "epochs_per_cycle": 1, "precision": "float32", "max_length": 64, "lr": 1e-3} | options
        teacher = {"source": f"path:{teacher}", "precision": "float32"} if isinstance(teacher, Path) else teacher
        return {
            "schema": 1,
            "task": "text-embedding",
            "method": "leaf",
            "teacher": teacher,
            "student": student,
            "data": {"train": [{"source": f"path:{train}"} if isinstance(train, Path) else train]},
            "options": options,
            "evaluation": {"data": list(evaluation), "cost": False},
        }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp)
