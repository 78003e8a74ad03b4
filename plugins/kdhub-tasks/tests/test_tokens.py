"""Classes of words: tokenizers that split words, models that differ in them, entities, and bad rows."""

from __future__ import annotations

import json
from string import ascii_lowercase
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_tasks.classification import tiny
from kdhub_tasks.classification.metrics import accuracy, entity_f1
from kdhub_tasks.classification.model import TokenClassifier
from kdhub_tasks.classification.task import Predictions
from kdhub_tasks.classification.tokens import TokenClassification
from transformers import BertForTokenClassification

import kdhub
from kdhub.errors import DataError
from kdhub.evaluation.evaluator import student_encoder
from kdhub.plugins.registry import Registry
from kdhub.recipes.folders import guess_task

TAGS = ["B-bad", "B-good", "O"]


@pytest.fixture
def models(tmp_path):
    """`models(name, pieces=True)`: a token classifier; with pieces its tokenizer splits every word into letters."""

    def make(name: str, *, pieces: bool = False, seed: int = 0, limit: int = 64) -> TokenClassifier:
        folder = tiny.text_classifier(tmp_path / name, classes=TAGS, of="BertForTokenClassification", seed=seed)
        if pieces:
            vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
            vocabulary |= {t: 4 + i for i, t in enumerate([*ascii_lowercase, *(f"##{c}" for c in ascii_lowercase)])}
            network = BertForTokenClassification.from_pretrained(folder)
            network.resize_token_embeddings(len(vocabulary))
            network.save_pretrained(folder)
            file = folder / "tokenizer.json"
            told = json.loads(file.read_text())
            told["model"] = {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary,
            }  # fmt: skip
            told["normalizer"] = {"type": "Replace", "pattern": {"String": NOTHING}, "content": ""}
            file.write_text(json.dumps(told))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": limit}))
        return TokenClassifier.load(folder)

    return make


def test_a_word_has_the_logits_of_its_first_token(models):
    whole, split = models("whole"), models("split", pieces=True)
    words = [["a", "film"], ["bad", "feel", "a"]]
    ids, firsts = split.encode_words(words)
    assert firsts == [[1, 2], [1, 4, 8]], "[CLS] f i l m, and b a d, f e e l"
    batch = split.collate([{"words": row} for row in words])
    width = batch["input_ids"].shape[1]
    assert batch["at"].tolist() == [1, 2, width + 1, width + 4, width + 8]
    with torch.no_grad():
        given = split.module(batch)["logits"]
        plain = split.module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(given, torch.cat([plain[0, [1, 2]], plain[1, [1, 4, 8]]]))
    rows = split.signals([{"words": row, "labels": [-1] * len(row)} for row in words], "logits")["logits"]
    assert [row.shape for row in rows] == [(2, 3), (3, 3)]
    assert np.allclose(np.concatenate(rows), given.numpy(), atol=1e-5)
    assert whole.encode_words(words)[1] == [[1, 2], [1, 2, 3]]


def test_a_row_ends_with_the_last_word_that_both_models_see(models):
    whole, split = models("whole"), models("split", pieces=True, limit=8)
    task = TokenClassification()
    rows = [{"tokens": ["bad", "feel", "a"], "tags": ["B-bad", "O", "O"]}]
    teacher = SimpleNamespace(members=(), reads=split)
    (example,) = task.preparer(whole, teacher)(rows)  # [CLS] b a d f e e [SEP]: the second word is there in part
    assert example["words"] == ["bad", "feel"] and example["labels"] == [0, 2] and example["cut"]
    (alone,) = task.preparer(whole, None)(rows)
    assert len(alone["words"]) == 3 and not alone["cut"] and alone["content"] != example["content"]


NOTHING = "\ufe0f"  # a variation selector, as it stands behind a sign in texts: the tokenizer strips it


def test_a_word_without_tokens_gets_the_class_o_and_its_row_goes_on(models, tmp_path):
    split, task = models("split", pieces=True, limit=8), TokenClassification()
    words = ["bad", NOTHING, "a", ""]
    assert split.encode_words([words])[1] == [[1, None, 4, None]]
    (example,) = task.preparer(split, None)([{"tokens": words, "tags": ["B-bad", "O", "B-good", "O"]}])
    assert example["words"] == ["bad", "a"] and example["kept"] == [0, 2] and example["labels"] == [0, 1]
    assert not example["cut"], "nothing is longer than the model takes"
    (empty,) = task.preparer(split, None)([{"tokens": [NOTHING], "tags": ["O"]}])
    assert empty["length"] == 0 and split.signals([empty, example], "logits")["logits"][0].shape == (0, 3)
    (long,) = task.preparer(split, None)([{"tokens": ["bad", NOTHING, "feel", "a", NOTHING]}])
    assert long["kept"] == [0, 2] and long["cut"], "both reasons in one row"

    rows = [{"tokens": words, "tags": ["O", "O", "B-bad", "O"]}, {"tokens": ["a"], "tags": ["O"]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with torch.no_grad():  # every token is the beginning of something bad
        split.module.model.classifier.weight.zero_()
        split.module.model.classifier.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    out = task.outputs(student_encoder(task, split), kdhub.open_data(f"path:{path}"), "train")
    assert out.chosen.tolist() == [0, 2, 0, 2, 0]


def test_entities_are_counted_whole():
    classes = ["B-LOC", "B-PER", "I-PER", "O"]

    def predictions(labels, chosen, lengths):
        return Predictions(np.eye(4, dtype=np.float32)[chosen], np.array(labels), classes, np.array(lengths))

    half = predictions([1, 2, 3, 0], [1, 3, 3, 0], [4])  # a person of two words found in part, the place found
    assert entity_f1(half) == pytest.approx(0.5) and accuracy(half) == 0.75
    # An entity does not go on into the next row.
    assert entity_f1(predictions([1, 2, 2, 3], [1, 2, 2, 3], [2, 2])) == 1.0
    assert entity_f1(predictions([1, 2, 1, 2], [1, 2, 2, 2], [4])) == 0.0
    assert entity_f1(predictions([1, 2, 1, 2], [1, 2, 1, 2], [2, 2])) == 1.0
    assert entity_f1(predictions([3, 3], [3, 3], [2])) == 0.0, "there are none to find"
    assert entity_f1(Predictions(np.eye(2), np.array([0, 1]), ["noun", "verb"], np.array([2]))) is None


@pytest.mark.slow
def test_another_tokenizer_can_be_taught(models, tmp_path):
    """From a teacher that knows whole words to a student that reads letters; rows without tags help."""
    models("teacher")
    models("student", pieces=True, seed=1)
    for name, n, seed in (("train", 200, 1), ("test", 100, 2)):
        rows = tiny.token_rows(n, seed)
        for row in rows[20:] if name == "train" else []:
            row["tags"] = None
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.token_rows(400, 3)))
    recipe = {
        "task": "token-classification", "options": {"lr": 3e-3, "batch_size": 16, "precision": "float32"},
        "evaluation": {"data": [f"path:{tmp_path / 'test.jsonl'}"], "cost": False},
    }  # fmt: skip
    teacher = kdhub.distill(
        {**recipe, "method": "supervised", "student": f"path:{tmp_path / 'teacher'}",
         "data": {"train": f"path:{tmp_path / 'all.jsonl'}"}}, out=tmp_path / "taught",
        set={"options.epochs": 6})  # fmt: skip
    scores = {}
    for method in ("supervised", "kd"):
        run = kdhub.distill(
            {**recipe, "method": method, "teacher": f"path:{teacher.student_folder}",
             "student": f"path:{tmp_path / 'student'}", "data": {"train": f"path:{tmp_path / 'train.jsonl'}"}},
            out=tmp_path / method, set={"options.epochs": 25})  # fmt: skip
        measures = {(m["metric"], m["subject"]): m["value"] for m in run.report["measures"]}
        scores[method] = measures["entity-f1", "student"]
        assert measures["entity-f1", "teacher"] > 0.95
    assert scores["kd"] > scores["supervised"] + 0.02, scores
    loaded = kdhub.load(run.folder)
    assert isinstance(loaded, TokenClassifier) and "token-classification" in loaded.usage()
    assert guess_task(run.student_folder, Registry()) == "token-classification"


@pytest.mark.parametrize(
    "row, words",
    [
        ({"tokens": ["a", "film"], "tags": ["O"]}, "2 tokens and 1 tags: a film"),
        ({"tokens": ["a"], "tags": ["NOUN"]}, "label 'NOUN' is not one of the 3 classes"),
    ],
)
def test_bad_rows(models, row, words):
    with pytest.raises(DataError, match=words):
        TokenClassification().preparer(models("m"), None)([row])
