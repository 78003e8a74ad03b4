"""Masked language modelling: what is masked, that it varies by epoch alone, and what is predicted."""

from __future__ import annotations

import copy
import math
import zlib

import numpy as np
import pytest
import torch
import transformers
from kdhub_tasks.classification import tiny
from kdhub_tasks.masked.masking import Tokens, mask_tokens, places
from kdhub_tasks.masked.metrics import MaskedPredictions, accuracy, agreement, perplexity
from kdhub_tasks.masked.model import MaskedLm
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from kdhub.errors import CompatibilityError
from kdhub.recipes.resolve import Resolver

TOKENS = Tokens(mask=4, special=frozenset(range(5)), others=np.arange(5, 50))


@pytest.fixture
def model(home, tmp_path):
    return MaskedLm.load(tiny.text_classifier(tmp_path / "model", of="BertForMaskedLM", mask=True))


@pytest.fixture
def task(home):
    return Resolver().task("fill-mask")


def test_of_the_tokens_to_predict_most_are_masked():
    ids = [2, *[5 + i % 45 for i in range(200)], 3]
    kinds = {"masked": 0, "same": 0, "other": 0}
    for key in range(200):
        made, at, labels = mask_tokens(ids, TOKENS, 0.15, key)
        assert len(at) == 30 and 0 not in at and 201 not in at and labels == [ids[i] for i in at]
        assert all(made[i] == ids[i] for i in range(202) if i not in at)
        for i in at:
            kinds["masked" if made[i] == 4 else "same" if made[i] == ids[i] else "other"] += 1
    shares = [n / 6000 for n in kinds.values()]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)  # an other token is the same one in 45 times


def test_draws_come_from_content_and_epoch():
    ids = [2, *range(5, 45), 3]
    assert mask_tokens(ids, TOKENS, 0.15, 7) == mask_tokens(ids, TOKENS, 0.15, 7)
    assert mask_tokens(ids, TOKENS, 0.15, 7)[1] != mask_tokens(ids, TOKENS, 0.15, 8)[1]
    assert mask_tokens(ids, TOKENS, 0.15, 7)[1] != mask_tokens(ids, TOKENS, 0.15, 7, epoch=1)[1]
    assert mask_tokens([2, 9, 3], TOKENS, 0.15, 0)[1] == [1]  # at least one
    assert mask_tokens([2, 1, 3], TOKENS, 0.15, 0) == ([2, 1, 3], [], [])


def test_batch_varies_by_epoch_and_not_by_its_company(model, task):
    rows = [{"text": row["text"]} for row in tiny.rows(6)]
    examples = task.preparer(model, None)(rows)
    batch = task.collate(examples, model)
    assert task.vary(batch, model, 0)["at"].tolist() == batch["at"].tolist()
    later = task.vary(batch, model, 1)
    assert later["at"].tolist() != batch["at"].tolist()
    assert torch.equal(later["original"], batch["original"])
    assert torch.equal(batch["original"].flatten()[batch["at"]], batch["labels"])
    assert torch.equal(later["original"].flatten()[later["at"]], later["labels"])
    alone = task.vary(task.collate(examples[2:3], model), model, 1)
    n = len(examples[2]["ids"])
    assert torch.equal(alone["input_ids"][0, :n], later["input_ids"][2, :n])
    assert task.counts(batch) == {
        "positions": len(batch["labels"]), "labels": len(batch["labels"]), "tokens": sum(e["length"] for e in examples)
    }  # fmt: skip


def test_signals_are_the_librarys(model, task):
    rows = [{"text": row["text"]} for row in tiny.rows(5)]
    examples = task.preparer(model, None)(rows)
    batch = task.collate(examples, model)
    with torch.no_grad():
        given = model.module.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        )
    ours = model.signals(examples, "logits")["logits"]
    assert [len(x) for x in ours] == [len(e["labels"]) for e in examples]
    assert np.abs(np.concatenate(ours) - given.logits.flatten(0, 1)[batch["at"]].numpy()).max() < 1e-5
    states = model.signals(examples, "hidden_states")["hidden_states"]
    assert [len(x) for x in states] == [e["length"] for e in examples] and states[0].shape[1:] == (2, 16)
    last = given.hidden_states[-1][0, : examples[0]["length"]].numpy()
    assert np.abs(states[0][:, -1] - last).max() < 1e-5


def test_metrics():
    out = MaskedPredictions(np.log([0.5, 0.125]), np.array([3, 4]), np.array([3, 5]))
    assert perplexity(out) == pytest.approx(4.0)
    assert accuracy(out) == 0.5
    assert agreement(out, MaskedPredictions(np.zeros(2), np.array([3, 4]), out.labels)) == 1.0
    assert math.isclose(agreement(out, MaskedPredictions(np.zeros(2), np.array([3, 3]), out.labels)), 0.5)


def test_models_of_another_vocabulary_are_refused(model, task, tmp_path):
    other = MaskedLm.load(tiny.text_classifier(tmp_path / "other", of="BertForMaskedLM", mask=True))
    other.tokenizer.add_tokens(["more"])
    with pytest.raises(CompatibilityError, match="different vocabularies"):
        task.preparer(model, other)
    plain = tiny.text_classifier(tmp_path / "plain", of="BertForMaskedLM")
    with pytest.raises(CompatibilityError, match="mask_token"):
        MaskedLm.load(plain)


def test_student_is_the_librarys_own_folder(model, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(folder)
    again = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    mine = dict(model.module.model.named_parameters())
    assert all(torch.equal(p, mine[n]) for n, p in again.named_parameters())


def test_a_model_of_another_vocabulary_sees_the_same_characters_masked(home, tmp_path):
    from kdhub_tasks.masked.students import config

    from kdhub.recipes.recipe import DataRef
    from kdhub.student import BuildContext

    texts = [{"text": row["text"]} for row in tiny.rows(40)]
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{row["text"]}"}}\n' for row in texts))
    task, made = Resolver().task("fill-mask"), []
    for vocabulary in (40, 200):  # pieces of words, and whole words
        options = {"data": DataRef(source=f"{tmp_path / 'texts.jsonl'}"), "vocabulary": vocabulary}
        made.append(config("layers=1,width=8,heads=2", BuildContext(task, None, 0, options)))
    words, pieces = made[1], made[0]
    examples = task.preparer(words, None, whole=True)(texts[:8])
    batch, other = words.collate(examples), pieces.collate(examples)
    assert batch["counts"].tolist() == [e["length"] for e in examples] == batch["attention_mask"].sum(1).tolist()
    assert int((batch["labels"] >= 0).sum()) == sum(len(e["masked"]) for e in examples)
    assert len(other["spans"]) > len(batch["spans"]) == len(batch["labels"])
    for n, e in enumerate(examples):
        here = [b for b, row in zip(batch["spans"].tolist(), rows_of(batch["counts"])) if row == n]
        theirs = [b for b, row in zip(other["spans"].tolist(), rows_of(other["counts"])) if row == n]
        hides = [label >= 0 for label, row in zip(other["labels"].tolist(), rows_of(other["counts"])) if row == n]
        spans = [span for span, hide in zip(theirs, hides) if hide]
        assert {i for _, a, b, _ in spans for i in range(a, b)} == {i for a, b in e["masked"] for i in range(a, b)}
        assert {w for *_, w in here} == {w for *_, w in theirs} == {-1, *range(len(e["text"].split()))}
    kept = pieces.signals(examples, "spans")["spans"]
    assert np.array_equal(np.concatenate(kept), other["spans"].numpy())


def rows_of(counts):
    return [n for n, many in enumerate(counts.tolist()) for _ in range(many)]


def test_space_before_a_token_is_not_among_its_characters(model):
    """Of tokenizers that count it to the token; others stay as they are."""
    text, made = "good  film\nok", []
    for trim in (True, False):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=["<m>"]))
        backend.post_processor = processors.ByteLevel(trim_offsets=trim)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<m>")
        reader = MaskedLm(model.module.model, tokenizer)
        made.append([place for one, _ in reader.read([text]) for place in places(text, one["spans"])])
    without, given = [[place[1:] for place in some] for some in made]
    assert without == [(0, 4, 0), (5, 5, -1), (6, 10, 1), (10, 11, -1), (11, 13, 2)]
    assert given == [(0, 4, 0), (4, 5, -1), *without[2:]]


def test_columns_that_are_not_tokens_are_cut(model, task, tmp_path):
    rows = [{"text": row["text"]} for row in tiny.rows(5)]
    examples = task.preparer(model, None)(rows)
    before, tokens = model.signals(examples, "logits")["logits"], len(model.tokenizer)
    padded = copy.deepcopy(model.module.model)
    padded.resize_token_embeddings(tokens + 5)
    wide = MaskedLm(padded, model.tokenizer)
    assert wide.width("logits") == (tokens,) == model.width("logits")
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(wide.signals(examples, "logits")["logits"], before))
    config = transformers.DistilBertConfig(vocab_size=tokens + 5, dim=8, n_layers=1, n_heads=1, hidden_dim=8)
    other = MaskedLm(transformers.DistilBertForMaskedLM(config), model.tokenizer)  # its head is of several parts
    assert other.signals(examples, "logits")["logits"][0].shape[1:] == other.width("logits") == (tokens,)
    wide.save(tmp_path)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert len(again.get_output_embeddings().weight) == tokens + 5


def test_rows_that_are_cut_are_known_by_their_whole_text(model, task):
    """As clips are by their captions; what is stored of one is not found for another that begins alike."""
    begin = " ".join(row["text"] for row in tiny.rows(2))
    texts = [begin + end for end in ("", *(f" and {n}" for n in range(40)))]
    prepared = task.preparer(model, None, max_length=4)([{"text": text} for text in texts])
    assert all(e["cut"] for e in prepared) and len({e["text"] for e in prepared}) == 1
    assert [e["key"] for e in prepared] == [zlib.crc32(text.encode()) for text in texts]
    batch, seen = model.collate(prepared), {}
    for e, ids in zip(prepared, batch["input_ids"].tolist()):
        assert seen.setdefault(e["content"], ids) == ids
    (whole,) = task.preparer(model, None)([{"text": texts[0]}])
    assert not whole["cut"] and whole["content"] == f"0.15 {whole['masked']}\x1f{texts[0]}".encode()


def test_soft_targets_distil_a_masked_language_model(home, tmp_path):
    import kdhub

    made = {**tiny.masked_recipe(tmp_path), "task": "fill-mask", "method": "kd"}
    options = {"epochs": 8.0, "lr": 3e-3, "alpha": 1.0, "precision": "float32"}
    run = kdhub.distill(recipe={**made, "options": options}, out=tmp_path / "run")
    found = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "masked-agreement"}
    assert found["student"] > found["student-before"]
    losses = [r["loss"] for r in run.metrics() if "terms" in r]
    assert losses[-1] < losses[0]
