"""What a model gives for a text does not depend on the texts beside it."""

import json
import types

import numpy as np
import pytest
import torch
import transformers
from kdhub_tasks.classification.tiny import text_classifier
from kdhub_tasks.pairs.model import PairClassifier
from kdhub_tasks.reading import longest
from kdhub_tasks.transformer import TextClassifier
from tokenizers import processors

from kdhub.errors import CompatibilityError
from kdhub.recipes.recipe import Ref
from kdhub.recipes.resolve import Resolver
from kdhub.rows import Example

TEXTS = ["the film", "a very dull and cold plot", "good room", "the room was rather warm and quite bright"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5}
"""Of every tiny network here; `attribute_map` has the names of each family."""


def decoder(folder, *, of="gpt2", pad=None, of_tokenizer=None, **more):
    """A fresh decoder with a head for texts. Its tokenizer is BERT's without the end token, as most decoders'."""
    text_classifier(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.pad_token = of_tokenizer
    tokenizer.cls_token = tokenizer.sep_token = tokenizer.mask_token = None
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(of, vocab_size=len(tokenizer), pad_token_id=pad, **SIZES, **more)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(student, texts) -> np.ndarray:
    rows: list[Example] = [{"text": text} for text in texts]
    return student.signals(rows, "logits")["logits"]


@pytest.mark.parametrize(
    "of, pad, of_tokenizer", [("gpt2", 0, None), ("gpt2", 0, "and"), ("gpt2", None, None), ("llama", None, "[PAD]")]
)
def test_a_decoder_reads_each_text_of_a_batch_to_its_end(tmp_path, of, pad, of_tokenizer):
    """Its tokenizer has no pad token or another than the network, which finds the end of a text by its own."""
    student = TextClassifier.load(decoder(tmp_path, of=of, pad=pad, of_tokenizer=of_tokenizer))
    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = [student.tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    with torch.no_grad():
        own = np.concatenate([network(input_ids=one).logits for one in ids])
    np.testing.assert_allclose(logits(student, TEXTS), own, atol=1e-5)

    (tmp_path / "saved").mkdir()
    student.save(tmp_path / "saved")
    classify = transformers.pipeline("text-classification", str(tmp_path / "saved"), batch_size=4, top_k=None)
    scores = [{one["label"]: one["score"] for one in row} for row in classify(TEXTS)]
    theirs = [[row["LABEL_0"], row["LABEL_1"]] for row in scores]
    np.testing.assert_allclose(theirs, torch.softmax(torch.from_numpy(own), -1), atol=1e-5)


def test_pairs_are_read_to_their_end_too(tmp_path):
    student = PairClassifier.load(decoder(tmp_path, pad=0))
    rows = [{"pair": pair, "length": 1} for pair in zip(TEXTS, reversed(TEXTS))]
    alone = [student.signals([row], "logits")["logits"][0] for row in rows]
    np.testing.assert_allclose(student.signals(rows, "logits")["logits"], alone, atol=1e-5)


def test_a_text_without_tokens_is_read_alike_alone_and_in_a_batch(tmp_path):
    student = TextClassifier.load(decoder(tmp_path, pad=0))
    alone = logits(student, [""])
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(logits(student, ["", TEXTS[1]])[:1], alone, atol=1e-5)


def test_a_pair_without_tokens_is_read(tmp_path):
    pairs = PairClassifier.load(decoder(tmp_path, pad=0))
    none, other = {"pair": ("", ""), "length": 0}, {"pair": (TEXTS[0], TEXTS[1]), "length": 9}
    alone = pairs.signals([none], "logits")["logits"]
    np.testing.assert_allclose(pairs.signals([none, other], "logits")["logits"][:1], alone, atol=1e-5)


def test_a_network_that_mixes_in_the_padding_is_refused(tmp_path):
    """FNet has no mask: all positions are mixed."""
    with pytest.raises(CompatibilityError, match="FNet.*padding"):
        TextClassifier.load(decoder(tmp_path, of="fnet", pad=0))


def test_without_any_token_to_pad_with_it_is_refused(tmp_path):
    folder = decoder(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.unk_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(CompatibilityError, match="pad_token"):
        TextClassifier.load(folder)


FAMILIES = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet", "xmod", "roberta-prelayernorm", "esm",
            "xlm-roberta-xl", "bert", "distilbert", "electra", "bart", "opt", "gpt2")  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_is_what_the_network_has_positions_for(family):
    """Also where positions begin after the pad. The tokenizer gives no limit."""
    more = {"languages": ["en"], "default_language": "en"} if family == "xmod" else {}
    config = transformers.AutoConfig.for_model(
        family, vocab_size=40, max_position_embeddings=20, pad_token_id=1, intermediate_size=16, **SIZES, **more
    )
    network = transformers.AutoModel.from_config(config).eval()
    tokenizer = types.SimpleNamespace(model_max_length=int(1e30))
    limit = longest(network, tokenizer, default=512)
    assert limit in (18, 20)
    ids = torch.full((1, limit), 5)
    network(input_ids=ids, attention_mask=torch.ones_like(ids))
    spare = 2 if family in ("bart", "opt") else 0
    with pytest.raises((IndexError, RuntimeError)):
        network(input_ids=torch.full((1, limit + spare + 1), 5))


@pytest.mark.parametrize("family, name", [("led", "max_encoder_position_embeddings"), ("mpt", "max_seq_len")])
def test_positions_of_another_name(family, name):
    network = types.SimpleNamespace(
        config=transformers.AutoConfig.for_model(family, **{name: 20}), named_modules=lambda: []
    )
    assert longest(network, types.SimpleNamespace(model_max_length=int(1e30)), default=512) == 20


def test_without_positions_the_tokenizer_or_the_default_says_it():
    for family in ("xlnet", "mamba", "t5"):
        config = transformers.AutoConfig.for_model(family, vocab_size=40)
        network = types.SimpleNamespace(config=config, named_modules=lambda: [])
        assert longest(network, types.SimpleNamespace(model_max_length=int(1e30)), default=512) == 512
        assert longest(network, types.SimpleNamespace(model_max_length=77), default=512) == 77


TASKS = {
    "text-classification": ("ForSequenceClassification", lambda long: {"text": long, "label": 0}),
    "token-classification": ("ForTokenClassification", lambda long: {"tokens": long.split()}),
    "text-pairs": ("ForSequenceClassification", lambda long: {"sentence1": long, "sentence2": "film", "label": 0}),
    "question-answering": ("ForQuestionAnswering", lambda long: {"question": "film", "context": long, "answers": None}),
    "fill-mask": ("ForMaskedLM", lambda long: {"text": long}),
    "text-embedding": ("", lambda long: {"text": long}),
    "causal-lm": ("ForCausalLM", lambda long: {"text": long}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_long_text_is_cut_to_the_positions_behind_the_pad(tmp_path, task):
    of, row = TASKS[task]
    text_classifier(tmp_path, mask=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, model_max_length=int(1e30))
    more = {"is_decoder": True} if task == "causal-lm" else {}
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=0, intermediate_size=16, **SIZES, **more
    )
    getattr(transformers, f"AutoModel{of}").from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    resolver = Resolver()
    task = resolver.task(task)
    student, teacher = task.load(tmp_path), resolver.teacher(Ref(source=f"path:{tmp_path}"), task.name)
    assert student.max_length == getattr(teacher, "max_length", 19) == 19
    (example,) = task.preparer(student, teacher)([row("film " * 40)])
    assert example["cut"] and example["length"] == 19
    (given,) = student.signals([example], task.primary_signal)[task.primary_signal]
    assert np.isfinite(given).all()


def with_own_segments(folder, of, auto):
    """Funnel, whose first token is of segment 2, or XLNet, whose last one is."""
    text_classifier(folder, mask=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first, last = ("[CLS]:2 ", "") if of == "funnel" else ("", " [CLS]:2")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}$A:0 [SEP]:0{last}", pair=f"{first}$A:0 [SEP]:0 $B:1 [SEP]:1{last}",
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    sizes = {"d_model": 16, "n_head": 2, "d_inner": 32, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    sizes |= {"d_head": 8, "block_sizes": [2]} if of == "funnel" else {"n_layer": 2}
    torch.manual_seed(0)
    network = getattr(transformers, f"AutoModel{auto}").from_config(transformers.AutoConfig.for_model(of, **sizes))
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    network.save_pretrained(folder)
    network = getattr(transformers, f"AutoModel{auto}").from_pretrained(folder).eval()
    return network, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("of, task", [
    ("funnel", "text-classification"), ("funnel", "text-pairs"), ("funnel", "token-classification"),
    ("funnel", "fill-mask"), ("xlnet", "token-classification"), ("xlnet", "text-embedding"),
])  # fmt: skip
def test_the_segments_of_special_tokens_are_the_tokenizers_own(tmp_path, of, task):
    network, tokenizer = with_own_segments(tmp_path, of, TASKS[task][0])
    task = Resolver().task(task)
    student = task.load(tmp_path)
    rows = [TASKS[task.name][1](text) for text in TEXTS[:2]]
    with torch.no_grad():
        batch = task.collate(task.preparer(student, None)(rows), student)
        found = task.forward(student.module.eval(), batch)[task.primary_signal]
        for n, row in enumerate(rows):
            if task.name == "text-embedding":
                np.testing.assert_allclose(found[n], student.module.encode(row["text"]), atol=1e-5)
                continue
            sides = [row[name] for name in ("text", "tokens", "sentence1", "sentence2") if name in row]
            given = tokenizer(*sides, is_split_into_words="tokens" in row, return_tensors="pt")
            if task.name == "fill-mask":  # what was masked in this row
                given["input_ids"] = batch["input_ids"][n : n + 1, : given["input_ids"].shape[1]]
            assert 2 in given["token_type_ids"]
            right, of_row = network(**given).logits[0], found[n] if found.shape[0] == len(rows) else None
            if task.name == "fill-mask":
                at = batch["at"][batch["counts"][:n].sum() :][: batch["counts"][n]] - n * batch["input_ids"].shape[1]
                right, of_row = right[at], found[batch["counts"][:n].sum() :][: batch["counts"][n]]
            elif task.name == "token-classification":
                words = [i for i, word in enumerate(given.word_ids()) if word is not None]
                right, of_row = right[words], found[batch["counts"][:n].sum() :][: len(words)]
            np.testing.assert_allclose(of_row, right, atol=1e-5)


def test_a_network_that_pools_tokens_together_is_refused_for_words_too(tmp_path):
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1], "num_decoder_layers": 1}
    text_classifier(tmp_path)
    config = transformers.FunnelConfig(vocab_size=40, pad_token_id=0, **sizes)
    transformers.FunnelForTokenClassification(config).save_pretrained(tmp_path)
    with pytest.raises(CompatibilityError, match="FunnelForTokenClassification.*padding"):
        Resolver().task("token-classification").load(tmp_path)
