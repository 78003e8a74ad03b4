"""Weights of llama2.c: its own arithmetic, in plain numpy, against the model that was read."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from kdhub_lm.students import llama2c
from kdhub_tasks.language.generation import Generation

import kdhub
from kdhub.errors import UsageError

SIZES = (16, 24, 2, 4, 2, 11, 8)


@pytest.fixture
def real(home):
    data = os.environ.get("KDHUB_DATA")
    folder = Path(data or "") / "weights_stories260k"
    if not data or not folder.is_dir():
        pytest.skip("KDHUB_DATA has no weights_stories260k")
    return folder


def forward(w, of, ids):
    """llama2.c's forward pass of a text: (tokens, vocabulary)."""
    size, group = of.dim // of.heads, of.heads // of.kv_heads
    norm = lambda x, weight: weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)  # noqa: E731
    angles = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    turn = np.exp(1j * angles)[:, None]

    def turned(x):  # neighbours are one complex number
        pairs = x.reshape(len(ids), -1, size // 2, 2)
        return np.stack([(z := (pairs[..., 0] + 1j * pairs[..., 1]) * turn).real, z.imag], -1).reshape(
            len(ids), -1, size
        )

    x = w["tokens"][ids].astype(np.float64)
    for i in range(of.layers):
        h = norm(x, w["attention_norm"][i])
        q, k, v = turned(h @ w["wq"][i].T), turned(h @ w["wk"][i].T), (h @ w["wv"][i].T).reshape(len(ids), -1, size)
        out = np.zeros_like(q)
        for head in range(of.heads):
            scores = q[:, head] @ k[:, head // group].T / np.sqrt(size)
            scores = np.where(np.tri(len(ids)), scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, head // group]
        x = x + out.reshape(len(ids), -1) @ w["wo"][i].T
        h = norm(x, w["ffn_norm"][i])
        gate = h @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["norm"]) @ (w["tokens"] if of.tied else w["head"]).T


def written(path, sizes, seed=0):
    of = llama2c.Header(*sizes)
    numbers = np.random.default_rng(seed).normal(0, 0.3, (of.bytes - 28) // 4).astype("<f4")
    path.write_bytes(struct.pack("<7i", *sizes) + numbers.tobytes())
    return of


@pytest.mark.parametrize("vocabulary", [11, -11])
def test_a_file_gives_what_llama2c_computes(vocabulary, tmp_path):
    """Grouped heads, neighbours rotated together, a head of its own where the vocabulary is below 0."""
    path = tmp_path / "model.bin"
    of = written(path, (*SIZES[:5], vocabulary, SIZES[6]))
    assert llama2c.header(path) == of
    ids = [1, 5, 3, 10, 2]
    with torch.no_grad():
        given = llama2c.network(path, of)(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(given - forward(llama2c.weights(path, of), of, ids)).max() < 1e-4


def test_real_weights(real):
    path, words, of = llama2c.found("weights_stories260k")
    assert of == (64, 172, 5, 8, 4, 512, 512) and of.bytes == 1_056_540
    model = kdhub.open_student("llama2c:weights_stories260k", "causal-lm")
    begin = [1, *model.tokenizer("Once upon a time", add_special_tokens=False)["input_ids"]]
    (more,) = model.generate([begin], Generation(max_new_tokens=60), 0)
    text = model.tokenizer.decode(more)
    assert "there was a little girl named Lily. She loved to play" in text, text
    ids = [*begin, *more]
    with torch.no_grad():
        given = model.module.model(torch.tensor([ids])).logits[0].numpy()
    w = llama2c.weights(path, of)
    assert np.abs(given - forward(w, of, ids)).max() < 1e-4
    angles = np.arange(512)[:, None] * 10000.0 ** (-np.arange(0, 8, 2) / 8)
    assert np.abs(w["cosines"] - np.cos(angles)).max() < 1e-4, "the tables stand where they are expected"


def test_real_tokens(real):
    """Those of llama2.c's own list, in its order; texts come back whole, letters that it has no token for as bytes."""
    raw, at, listed = (real / "tok512.bin").read_bytes(), 4, []
    while at < len(raw):
        score, length = struct.unpack("<fi", raw[at : at + 8])
        listed.append((raw[at + 8 : at + 8 + length].decode(), score))
        at += 8 + length
    found = llama2c.pieces(real / "tok512.model")
    assert [(text.strip(), score) for text, score in listed] == [(p.replace("▁", " ").strip(), s) for p, s in found]
    tokenizer = llama2c.tokenizer(real / "tok512.model", 512)
    for text in ("Once upon a time, Tom had 3 dogs.", "naïve 漢 🙂", "two  spaces\nand a line"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and 0 not in ids


def test_the_catalogue_has_it_as_a_teacher(real):
    teacher = kdhub.open_teacher("stories260k", "causal-lm")
    assert teacher.layout("logits")["logits"] == (None, 512) and not teacher.module.training
    again = kdhub.open_teacher(f"llama2c:{real}", "causal-lm")
    assert again.identity == teacher.identity and again.folder == teacher.folder, "converted once"


def test_what_is_not_a_model_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    written(path, SIZES)
    whole = path.read_bytes()
    wrong = {
        "cut": whole[:-4], "longer": whole + b"\0\0\0\0", "empty": b"", "short": whole[:20],
        "heads": struct.pack("<7i", 16, 24, 2, 3, 2, 11, 8) + whole[28:],
        "huge": struct.pack("<7i", 2**30, 2**30, 2**30, 2, 2, 2**30, 8) + whole[28:],
    }  # fmt: skip
    for name, content in wrong.items():
        path.write_bytes(content)
        assert llama2c.header(path) is None, name
    with pytest.raises(UsageError, match="needs one .bin file whose size matches its header"):
        llama2c.found(str(tmp_path))
    with pytest.raises(UsageError, match="the folder does not exist"):
        llama2c.found(str(tmp_path / "none"))
    path.write_bytes(whole)
    for content in (b"no protocol buffer \xff\xff", b""):
        (tmp_path / "tok.model").write_bytes(content)
        with pytest.raises(UsageError, match="is not a SentencePiece"):
            llama2c.found(str(tmp_path))
