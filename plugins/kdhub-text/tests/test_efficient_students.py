"""Conversion to another attention, cut layers, chunks, and what such students give."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from kdhub_tasks.classification import folders, tiny
from kdhub_tasks.layers import blocks
from kdhub_tasks.long import further_inputs
from kdhub_tasks.questions.model import Reader
from kdhub_tasks.tiny import WORDS, tiny_encoder
from kdhub_text.students.conversion import to_efficient
from kdhub_text.students.efficient import cut_layers

import kdhub
from kdhub.errors import CompatibilityError, UsageError

HEADS = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")
SMALL = {"window": 16, "block": 8, "max_length": 200, "random_blocks": 0}


def encoder(head, family="bert", layers=2):
    torch.manual_seed(0)
    offset = {"bert": 0, "roberta": 2}[family]
    config = transformers.AutoConfig.for_model(
        family, vocab_size=60, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32 + offset, initializer_range=0.4, pad_token_id=offset // 2, num_labels=3,
    )  # fmt: skip
    return getattr(transformers, head).from_config(config).eval()


def outputs(model, ids, mask):
    with torch.no_grad():
        given = model(input_ids=ids, attention_mask=mask, **further_inputs(model.config, mask))
    return given.logits if "logits" in given else given.last_hidden_state


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("head", HEADS)
def test_conversion_changes_nothing_where_every_pair_is_allowed(head, family):
    """Up to w/2 + 1 tokens of longformer, two blocks of the others; and longer texts do change."""
    model = encoder(head, family)
    pad = model.config.pad_token_id
    for kind, length in (("full", 30), ("longformer", 9), ("bigbird", 16), ("lsg", 16)):
        made = to_efficient(model, kind, **SMALL)
        for n, same in ((length, True), (30, kind == "full")):
            ids = torch.randint(5, 60, (2, n), generator=torch.Generator().manual_seed(n))
            mask = torch.ones_like(ids)
            mask[1, -3:], ids[1, -3:] = 0, pad
            a, b = outputs(model, ids, mask), outputs(made, ids, mask)
            if a.dim() == 3 and "Sequence" not in head:
                a, b = a[mask.bool()], b[mask.bool()]
            assert ((a - b).abs().max() < 1e-4) == same, (kind, n)


def test_positions_are_tiled_behind_those_that_are_special():
    for family, offset in (("bert", 0), ("roberta", 2)):
        model = encoder("AutoModel", family)
        old = model.embeddings.position_embeddings.weight
        new = to_efficient(model, "lsg", **SMALL).embeddings.position_embeddings.weight
        assert len(new) == 200 + offset
        assert torch.equal(new[:offset], old[:offset])
        for i in (0, 31, 32, 64 + 5, 199):
            assert torch.equal(new[offset + i], old[offset + i % 32])
    long = to_efficient(encoder("AutoModel"), "longformer", **SMALL).embeddings.position_embeddings.weight
    assert len(long) == 201 and torch.equal(long[1 + 40], encoder("AutoModel").embeddings.position_embeddings.weight[8])


def test_nystrom_begins_near_and_its_convolution_at_nothing():
    model = encoder("AutoModel")
    ids = torch.randint(5, 60, (1, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    settings = {**SMALL, "landmarks": 32, "pinv": "exact"}
    plain, with_conv = (to_efficient(model, "nystrom", **settings, conv=c) for c in (0, 3))
    assert (outputs(plain, ids, mask) - outputs(model, ids, mask)).abs().max() < 1e-2  # as many landmarks as tokens
    assert torch.equal(outputs(plain, ids, mask), outputs(with_conv, ids, mask))


def test_other_families_and_settings_that_do_not_fit_are_refused():
    with pytest.raises(CompatibilityError, match="distilbert"):
        config = transformers.DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=1, hidden_dim=8)
        to_efficient(transformers.DistilBertModel(config), "lsg")
    with pytest.raises(UsageError, match="sparsity must divide block"):
        to_efficient(encoder("AutoModel"), "lsg", block=8, sparsity=3)
    with pytest.raises(UsageError, match="conv must be odd"):
        to_efficient(encoder("AutoModel"), "nystrom", conv=4)


def test_half_the_layers():
    """12 to 6 leaves the specification's 0, 2, 4, 7, 9, 11, counted from 0."""
    model = encoder("AutoModel", layers=12)
    half, how = cut_layers(model, "half")
    assert how == "layers 1, 3, 5, 8, 10, 12 of 12" and len(blocks(half)) == 6
    weights = [layer.attention.self.query.weight for layer in blocks(model)]
    kept = [layer.attention.self.query.weight for layer in blocks(half)]
    assert all(torch.equal(weights[i], k) for i, k in zip((0, 2, 4, 7, 9, 11), kept))
    assert cut_layers(model, "half", "first")[1] == "layers 1, 2, 3, 4, 5, 6 of 12"
    fresh, _ = cut_layers(model, "half", "random", seed=3)
    assert not torch.equal(blocks(fresh)[0].attention.self.query.weight, weights[0])
    assert len(blocks(model)) == 12
    for kind in ("longformer", "lsg"):  # also of converted ones
        fresh, _ = cut_layers(to_efficient(model, kind, **SMALL), "half", "random")
        assert len(blocks(fresh)) == 6 and type(fresh) is type(to_efficient(model, kind, **SMALL))
    with pytest.raises(UsageError, match="from 1 to 12"):
        cut_layers(model, (1, 13))


def build(source, **options):
    facts = {"classes": ["B-bad", "B-good", "O"]}
    return kdhub.open_student({"source": source, **options}, "token-classification", facts=facts)


@pytest.fixture
def tagger(home, tmp_path):
    folder = tmp_path / "tagger"
    tags = ["B-bad", "B-good", "O"]
    return {"source": f"path:{tiny.text_classifier(folder, classes=tags, of='BertForTokenClassification')}"}


@pytest.mark.parametrize("kind", ["longformer", "bigbird", "lsg", "nystrom", "full"])
def test_student_is_saved_and_reads_long_rows_again(kind, tagger, tmp_path):
    student = build(f"efficient:{kind}", of=tagger, layers="half", max_length=300, window=16, block=8, landmarks=8)
    row = {"tokens": ["film", "good", "the"] * 80, "tags": ["O", "B-good", "O"] * 80}
    task = kdhub.open_task("token-classification")
    examples = task.preparer(student, None)([row])
    assert len(examples[0]["words"]) == 240 and not examples[0]["cut"]
    folder = tmp_path / "made"
    folder.mkdir()
    student.save(folder)
    again = kdhub.load(folder) if (folder / "kdhub.json").exists() else folders.load(folder)
    a, b = (s.signals(examples, "logits")["logits"][0] for s in (student, again))
    assert a.shape == (240, 3) and abs(a - b).max() < 1e-5
    assert again.max_length == 300 and again.library == ("transformers" if kind in ("longformer", "full") else "kdhub")
    named = json.loads((folder / "config.json").read_text())["model_type"]
    assert named == {"longformer": "longformer", "full": "bert"}.get(kind, "kdhub-efficient-bert")


def test_chunks_give_each_word_its_most_central_place(tagger):
    """Room for 62 words a chunk, 20 in common: all words have logits, those of the first chunk as if it were alone."""
    student = build("chunked:20", of=tagger)
    words = [tiny.FILLER[i % 12] for i in range(150)]
    chunks, places = student._chunks([words])
    assert len(places[0]) == 150 and len(chunks) == 4
    inside = [min(at, len(chunks[c][0]) - 1 - at) for c, at in places[0]]
    assert min(inside[30:120]) >= 10  # half of what is in common, away from the row's own ends
    task = kdhub.open_task("token-classification")
    both = task.preparer(student, None)([{"tokens": words}, {"tokens": words[:62]}])
    long, short = student.signals(both, "logits")["logits"]
    assert abs(long[:50] - short[:50]).max() < 1e-5
    with pytest.raises(UsageError, match="0 to 61, as chunks have 64"):
        build("chunked:62", of=tagger)


def test_unfit_models_are_refused(tagger):
    with pytest.raises(UsageError, match="KIND must be one of"):
        build("efficient:performer", of=tagger)
    with pytest.raises(UsageError, match="made from another model"):
        build("efficient:lsg")
    with pytest.raises(UsageError, match="heads"):
        build("words:width=30,heads=4", data={"source": "long-range"})


def test_words_are_the_most_frequent_of_the_rows(home):
    student = build("words:layers=1,width=8,heads=2", data={"source": "long-range"}, vocabulary=9, max_length=40)
    assert len(student.tokenizer) == 9 and student.max_length == 40
    (ids, *_), (firsts, *_) = student.encode_words([["people", "unheard-of", "people"]])
    assert len(firsts) == 3 and ids[2] == student.tokenizer.unk_token_id


# -- question answering -----------------------------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path):
    encoder = tiny_encoder(tmp_path / "encoder", layers=1, hidden=16, plain=True)
    return Reader.with_head(encoder, [], 2, {})


@pytest.mark.parametrize("kind", ["full", "longformer", "bigbird", "lsg"])
def test_a_reader_keeps_its_answers_where_other_attention_sees_everything(reader, kind):
    made = reader.like(to_efficient(reader.trunk, kind, max_length=64, window=128, block=64), {})
    questions = [("kabel", "kadan kafos"), ("lobel mibel", " ".join(WORDS[:9]))]
    a, b = (
        [
            model.signals([{**read, "labels": [0, 0]}], "logits")["logits"][0]
            for read in model.encode_questions(questions)
        ]
        for model in (reader, made)
    )
    for ours, theirs in zip(a, b):
        np.testing.assert_allclose(theirs, ours, atol=2e-5)


def test_the_question_is_global_to_longformer(reader):
    """With a window of one token to each side, the text's last word still sees the question."""
    made = reader.like(to_efficient(reader.trunk, "longformer", max_length=64, window=4), {})
    text = " ".join(WORDS[:12])

    def last(question):
        (read,) = made.encode_questions([(question, text)])
        (given,) = made.signals([{**read, "labels": [0, 0]}], "logits")["logits"]
        return given[0, [i for i, (a, b) in enumerate(read["spans"]) if b > a][-1]]

    assert abs(last("kabel") - last("vopum")) > 1e-3
