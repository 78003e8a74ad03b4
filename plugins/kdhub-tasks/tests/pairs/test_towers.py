"""Two towers: what they see, saving, and serving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoders import pairs_folder, towers  # noqa: F401
from kdhub_tasks.embedding import encoder
from kdhub_tasks.pairs.heads import Shape
from kdhub_tasks.pairs.task import TextPairs
from kdhub_tasks.pairs.towers import TwoTowerStudent, leads
from kdhub_tasks.tiny import random_texts
from tokenizers import processors

import kdhub
from kdhub.errors import UsageError


def test_a_first_word_is_pooled(folder):
    student = towers(folder)
    assert leads(student.encoder)
    student.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", student.tokenizer.sep_token_id)]
    )  # as T5
    student = TwoTowerStudent(student.encoder, student.classes, student.module.shape)
    ids, mask = torch.tensor(student.cutter().ids(["kabel lodan mifos"])), torch.ones(1, 4, dtype=torch.int64)
    network = student.module.cpu().eval()
    states = network.encoder[0].auto_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert torch.allclose(network.embed(ids, mask), torch.cat(states[-network.shape.top_layers :], -1).mean(1))


def test_a_vector_knows_nothing_of_the_other_text(folder):
    student, task = towers(folder), kdhub.open_task("text-pairs")
    prepare = task.preparer(student, None)
    one, other = prepare([{"sentence1": "kabel dan", "sentence2": text} for text in ("ka", "lobel mifos nugir")])
    batch = student.collate([one, other])
    hidden = []
    keep = student.encoder[0].auto_model.embeddings.register_forward_hook(lambda m, i, out: hidden.append(out))
    given = student.module.cpu().eval()(batch)["embeddings"]
    keep.remove()
    assert torch.equal(given[0, 0], given[1, 0])
    left, right = torch.autograd.grad(given[:, 0].pow(3).sum(), hidden)
    assert left.abs().sum() > 1e-3 and not right.any()


def test_ranking_calls_the_encoder_for_the_query_alone(folder):
    student, texts = towers(folder), random_texts(40, seed=3)
    kept, seen = student.embed(texts), []
    student.encoder[0].auto_model.register_forward_hook(lambda m, i, out: seen.append(len(out[0])))
    ranked = student.matrix(student.embed(["kabel lodan"]), kept)
    assert seen == [1] and ranked.shape == (1, 40)
    pairs = [{"sentence1": "kabel lodan", "sentence2": text} for text in texts]
    logits = student.signals(TextPairs().preparer(student, None)(pairs), "logits")["logits"]
    assert np.allclose(ranked[0], logits[:, 1] - logits[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "shape"),
    [
        (("score",), Shape(top_layers=2, embed_dim=6, symmetric=True, fc_dims=(8,))),
        (("a", "b", "c"), Shape("average_top_max", top_layers=2, fc_dims=())),
        (("no", "yes"), Shape("cls", head="dot", fc_dims=())),
    ],
)
def test_saved_and_loaded_without_the_method(folder, tmp_path, monkeypatch, classes, shape):
    student, texts = towers(folder, classes, shape), random_texts(6, seed=4)
    student.limit(9)
    student.save(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "kdhub_text.methods.dse", None)
    loaded = kdhub.load(tmp_path)
    assert loaded.classes == list(classes) and loaded.module.shape == shape
    assert np.array_equal(student.embed(texts), loaded.embed(texts))
    v = student.embed(texts)
    assert np.array_equal(student.matrix(v, v), loaded.matrix(v, v))
    assert loaded.encode_pairs([(" ".join(texts), "ka")])[0]["cut"]


def test_one_tokenizer_is_made_for_each_limit(folder, monkeypatch):
    made, copy = [], encoder.fast_tokenizer
    student = towers(folder)
    monkeypatch.setattr(encoder, "fast_tokenizer", lambda model: made.append(model) or copy(model))
    pair = [("kabel lodan mifos nugir", "ka")]
    for max_length in (None, 500, 64, 5, 5, None):  # its own is 64
        assert len(student.encode_pairs(pair, max_length)[0]["tokens"][0]) == (5 if max_length == 5 else 6)
    assert len(made) == 2
    student.limit(4)
    assert len(student.encode_pairs(pair, 500)[0]["tokens"][0]) == 4 and len(made) == 3


@pytest.mark.parametrize("shape", [Shape("cls"), Shape(top_layers=1, include_cls=True), Shape("cls", embed_dim=5)])
def test_its_half_is_an_ordinary_sentence_encoder(folder, tmp_path, shape):
    from sentence_transformers import SentenceTransformer

    student, texts = towers(folder, shape=shape), random_texts(6, seed=4)
    student.save(tmp_path)
    vectors = SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(texts)
    assert np.allclose(vectors, student.embed(texts), atol=1e-5)
    assert kdhub.open_task("text-embedding").load(tmp_path / "encoder").width == vectors.shape[1]


def test_pooled_vectors_drop_out_before_they_are_projected(folder):
    """As in the authors' code: of a projection that does nothing but add 7, no number is dropped itself."""
    student = towers(folder, shape=Shape(top_layers=1, embed_dim=16))
    network = student.module.train()
    student.encoder.eval()
    with torch.no_grad():
        network.project.weight.copy_(torch.eye(16))
        network.project.bias.fill_(7)
    batch = student.collate(TextPairs().preparer(student, None)(
        [{"sentence1": a, "sentence2": b} for a, b in zip(random_texts(40, seed=1), random_texts(40, seed=2))]
    ))  # fmt: skip
    seen = []
    network.head.register_forward_pre_hook(lambda m, given: seen.append(torch.stack(given)))
    torch.manual_seed(0)
    network(batch)
    assert 0.05 < (seen[0] == 7).float().mean() < 0.15 and not (seen[0] == 0).any()
    network.eval()
    assert not (network(batch)["embeddings"] == 7).any()


def test_what_is_of_this_shape_stays(folder):
    student = towers(folder)
    head = student.module.head
    student.stand(Shape(top_layers=student.module.shape.top_layers))
    assert student.module.head is head
    for shape, words in (
        (Shape(top_layers=3), "at most the encoder's 2 layers .top_layers=3"),
        (Shape("cls", head="dot"), "head must be concat"),
    ):
        student = towers(folder, ("a", "b", "c"))
        with pytest.raises(UsageError, match=words):
            student.stand(shape)
