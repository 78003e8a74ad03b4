"""GGUF files, read back by a reader that shares nothing with what wrote them: `struct` and NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.gguf import Gguf
from kdhub_tasks.language.students import config, llama

from kdhub.errors import CompatibilityError
from kdhub.student import BuildContext

pytest.importorskip("gguf")
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Reader:
    """A GGUF file of version 3 by its specification: `values`, `tensors` (F32 and Q8_0), and a Llama that runs them."""

    def __init__(self, path):
        self.data, self.at = path.read_bytes(), 4
        assert self.data[:4] == b"GGUF" and self.take("I") == 3
        tensors, values = self.take("Q"), self.take("Q")
        self.values = {}
        for _ in range(values):
            name = self.text()
            self.values[name] = self.value(self.take("I"))
        found = []
        for _ in range(tensors):
            name = self.text()
            shape = [self.take("Q") for _ in range(self.take("I"))]
            found.append((name, shape[::-1], self.take("I"), self.take("Q")))
        begin = -(-self.at // 32) * 32
        self.tensors = {name: self.tensor(shape, kind, begin + offset) for name, shape, kind, offset in found}

    def take(self, code):
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self):
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            of, count = self.take("I"), self.take("Q")
            return [self.value(of) for _ in range(count)]
        return self.take(SCALARS[kind])

    def tensor(self, shape, kind, at):
        count = int(np.prod(shape))
        if kind == 0:
            return np.frombuffer(self.data, "<f4", count, at).reshape(shape).astype(np.float64)
        assert kind == 8
        blocks = np.frombuffer(self.data, np.dtype([("scale", "<f2"), ("q", "i1", 32)]), count // 32, at)
        return (blocks["scale"][:, None].astype(np.float64) * blocks["q"]).reshape(shape)

    def logits(self, ids):
        v, t = self.values, self.tensors
        heads, kv = v["llama.attention.head_count"], v["llama.attention.head_count_kv"]
        size, eps = v["llama.rope.dimension_count"], v["llama.attention.layer_norm_rms_epsilon"]
        norm = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w  # noqa: E731
        angles = np.arange(len(ids))[:, None] * v["llama.rope.freq_base"] ** (-np.arange(0, size, 2) / size)
        turn = np.exp(1j * angles)[:, None]

        def rotated(x):  # neighbouring numbers are one complex one
            z = (x[..., ::2] + 1j * x[..., 1::2]) * turn
            return np.stack([z.real, z.imag], -1).reshape(x.shape)

        x = t["token_embd.weight"][ids]
        for n in range(v["llama.block_count"]):
            w = lambda name: t[f"blk.{n}.{name}.weight"]  # noqa: B023, E731
            h = norm(x, w("attn_norm"))
            q, k = (rotated((h @ w(f"attn_{c}").T).reshape(len(ids), -1, size)) for c in "qk")
            values = (h @ w("attn_v").T).reshape(len(ids), kv, size)
            k, values = (np.repeat(a, heads // kv, 1) for a in (k, values))
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size) + np.triu(np.full((len(ids),) * 2, -np.inf), 1)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            share /= share.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khd->qhd", share, values).reshape(len(ids), -1) @ w("attn_output").T
            h = norm(x, w("ffn_norm"))
            gate = h @ w("ffn_gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
        return norm(x, t["output_norm.weight"]) @ t.get("output.weight", t["token_embd.weight"]).T

    def greedy(self, ids, n):
        ids, begin = list(ids), len(ids)
        while len(ids) < begin + n and (len(ids) == begin or ids[-1] != self.values["tokenizer.ggml.eos_token_id"]):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[begin:]


@pytest.fixture(scope="module")
def student():
    made = llama("width=64,layers=2,heads=4,length=64", BuildContext(None, None, 1))
    made.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return made


def written(student, folder, quantize=None):
    exporter = Gguf(quantize)
    exporter.write(student, [], "logits", folder)
    assert [p.name for p in folder.iterdir()] == [exporter.file(student)]
    return exporter, Reader(folder / exporter.file(student))


def test_another_reader_writes_the_same_twenty_texts(student, tmp_path):
    _, file = written(student, tmp_path)
    tokens, values = file.values["tokenizer.ggml.tokens"], file.values
    assert (values["general.architecture"], values["tokenizer.ggml.model"]) == ("llama", "gpt2")
    assert [student.tokenizer.convert_tokens_to_ids(t) for t in tokens] == list(range(len(tokens)))
    assert values["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    assert values["tokenizer.chat_template"] == student.tokenizer.chat_template
    prompts = [f"{w} {n}" for n, w in enumerate(("a cat", "Zug", "größer", "12 + 7", "\n") * 4)]
    ids = [student.tokenizer(p).input_ids for p in prompts]
    expected = student.generate(ids, Generation(max_new_tokens=8, temperature=0), seed=0)
    assert [file.greedy(prompt, 8) for prompt in ids] == expected and len({*map(tuple, expected)}) > 5


def test_a_second_head_for_fewer_keys_and_a_matrix_of_its_own(tmp_path):
    made = config(
        '{"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, '
        '"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": false}',
        BuildContext(None, None, 2),
    )
    _, file = written(made, tmp_path)
    ids = made.tokenizer("abc def").input_ids
    import torch

    with torch.no_grad():
        own = made.module.model(torch.tensor([ids])).logits[0].double().numpy()
    assert np.abs(file.logits(ids) - own).max() < 1e-4 * np.abs(own).max() and "output.weight" in file.tensors


def test_int8_is_near_and_the_library_reads_it(student, tmp_path):
    exporter, file = written(student, tmp_path, "int8")
    weight = student.module.model.model.layers[0].mlp.gate_proj.weight.detach().numpy()
    off = np.abs(file.tensors["blk.0.ffn_gate.weight"] - weight)
    assert 0 < off.max() <= np.abs(weight).max() / 127 * 0.51
    other = llama("width=64,layers=2,heads=4,length=64", BuildContext(None, None, 1))
    exporter.attach(other, tmp_path / exporter.file(student))
    read = other.module.model.model.layers[0].mlp.gate_proj.weight.detach().numpy()
    assert np.abs(read - file.tensors["blk.0.ffn_gate.weight"]).max() < 1e-6


def test_what_is_no_llama_is_refused_by_name(tmp_path):
    other = config(
        '{"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
        '"intermediate_size": 16}',
        BuildContext(None, None, 0),
    )
    with pytest.raises(CompatibilityError, match="only plain Llamas are written as GGUF, and this is a gpt_neox"):
        Gguf().write(other, [], "logits", tmp_path)
    assert not list(tmp_path.iterdir())
