"""Causal language models: tokens and their positions, vocabularies, and what is stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_tasks.language import model as models
from kdhub_tasks.language import task
from kdhub_tasks.language.students import byte_tokenizer

import kdhub
from kdhub.errors import CompatibilityError, DataError


def prepared(model, texts, **settings):
    return task.CausalLanguage().preparer(model, None, **settings)([{"text": text} for text in texts])


def test_bytes_are_tokens():
    tokenizer = byte_tokenizer()
    for text in ("code 42\n", "naïve 漢 🙂", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert len(tokenizer) == 258 and tokenizer.pad_token_id == 0 and tokenizer.bos_token_id == 1


def test_signals_stand_where_a_token_is_predicted(tiny):
    examples = prepared(tiny, ["abc", "defgh"])
    assert [e["labels"] for e in examples] == [e["ids"][1:] for e in examples] and len(examples[0]["labels"]) == 3
    rows = tiny.signals(examples, "logits")["logits"]
    assert [row.shape for row in rows] == [(3, 258), (5, 258)]
    with torch.no_grad():
        alone = tiny.module.model(torch.tensor([examples[0]["ids"]])).logits[0, :-1]
    assert np.allclose(rows[0], alone.numpy(), atol=1e-5), "padding changes nothing"
    batch = task.CausalLanguage().collate(examples, tiny)
    assert batch["labels"].tolist() == [*examples[0]["labels"], *examples[1]["labels"]]
    assert batch["counts"].tolist() == [3, 5]
    (long,) = prepared(tiny, ["x" * 100])
    assert long["cut"] and len(long["ids"]) == 64
    (marked,) = prepared(tiny, ["ab 42 cd"], private=lambda texts, offsets: [[0, 0, 0, 1, 1, 0, 0, 0]])
    assert marked["private"] == [0, 0, 0, 1, 1, 0, 0, 0], "of the tokens that are predicted: all but the begin"


def test_a_different_vocabulary_is_refused_with_what_is_shared(tiny, tmp_path):
    tiny.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(saved))
    other = models.load(tmp_path)
    with pytest.raises(CompatibilityError, match="256 tokens are the same, of 258 and 258"):
        task.CausalLanguage().preparer(tiny, other)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "gpt2"])
def test_states_and_head_make_the_models_own_logits(kind):
    """Soft-caps and scales too; what comes behind the vocabulary is padding and cut."""
    import transformers

    sizes = {"vocab_size": 264, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    torch.manual_seed(0)
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **more))
    elif kind == "gemma2":
        config = transformers.Gemma2Config(**sizes, **more, head_dim=8, final_logit_softcapping=0.05)
        model = transformers.Gemma2ForCausalLM(config)
    elif kind == "granite":
        model = transformers.GraniteForCausalLM(transformers.GraniteConfig(**sizes, **more, logits_scaling=8.0))
    else:
        config = transformers.GPT2Config(vocab_size=264, n_embd=16, n_layer=1, n_head=2, n_positions=64)
        model = transformers.GPT2LMHeadModel(config)
    student = models.CausalLm(model.eval(), byte_tokenizer(64))
    examples = prepared(student, ["abc", "a longer text"])
    batch = task.CausalLanguage().collate(examples, student)
    with torch.no_grad():
        given = student.module(batch)
        own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert "head" in given and given.logits.shape == (sum(len(e["labels"]) for e in examples), 258)
    assert torch.allclose(given.logits, own.flatten(0, 1)[batch["at"], :258], atol=1e-5)
    assert student.width("logits") == (258,) and student.signals(examples, "logits")["logits"][0].shape == (3, 258)


def test_a_model_that_does_more_behind_its_states_gives_its_own_logits(tiny):
    class Louder(type(tiny.module.model)):
        def forward(self, *arguments, **named):
            given = super().forward(*arguments, **named)
            given.logits = given.logits * 3
            return given

    tiny.module.model.__class__ = Louder
    batch = task.CausalLanguage().collate(prepared(tiny, ["abc"]), tiny)
    with torch.no_grad():
        given = tiny.module(batch)
        own = tiny.module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert "head" not in given and torch.allclose(given.logits, own[0, :-1], atol=1e-6)


def test_of_a_response_only_its_tokens_and_the_end_count(tiny):
    """Prompts lose their beginning where both do not fit, never the words nearest to the response."""
    prepare = task.CausalLanguage().preparer(tiny, None)
    (short, long, longer) = prepare(
        [{"prompt": "2+3=", "response": "5"}, {"prompt": "x" * 80 + "?", "response": "yes"},
         {"prompt": "why", "response": "y" * 90}])  # fmt: skip
    one = lambda text: tiny.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    assert short["ids"] == [1, *one("2+3=5"), 1] and short["labels"] == [*one("5"), 1] and not short["cut"]
    assert long["cut"] and len(long["ids"]) == 64 and long["ids"] == [*one("x" * 59 + "?yes"), 1]
    assert long["labels"] == [*one("yes"), 1]
    assert longer["cut"] and longer["ids"] == one("y" * 64), "the prompt's last token is left"
    assert longer["labels"] == one("y" * 63)
    batch = task.CausalLanguage().collate([short, long], tiny)
    with torch.no_grad():
        given = tiny.module(batch).logits
        alone = tiny.module.model(torch.tensor([short["ids"]])).logits[0, 4:6, :258]
    assert batch["labels"].tolist() == [*short["labels"], *long["labels"]] and len(given) == 2 + 4
    assert torch.allclose(given[:2], alone, atol=1e-5), "those of the places from which the response is predicted"


def test_prompts_and_responses_train_and_are_measured(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(6) for b in range(6)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made |= {"data": {"train": [f"path:{path}"]}, "evaluation": {"data": [f"path:{path}"], "cost": False}}
    run = kdhub.distill(
        {"task": "causal-lm", "method": "supervised", **made, "teacher": None,
         "options": {"epochs": 15, "batch_size": 12, "lr": 0.02, "precision": "float32"}},
        out=tmp_path / "run")  # fmt: skip
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "perplexity"}
    assert values["student"] < 6 < values["student-before"]
    assert {m["examples"] for m in run.report["measures"]} == {sum(len(r["response"]) + 1 for r in rows)}

    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": " "}\n')
    with pytest.raises(DataError, match=r"1 with empty text in 'response' \(row 2\)"):
        kdhub.distill({"task": "causal-lm", "method": "supervised", **made, "teacher": None}, out=tmp_path / "bad")
    path.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match="needs the column 'text', or 'prompt' and 'response'"):
        kdhub.distill({"task": "causal-lm", "method": "supervised", **made, "teacher": None}, out=tmp_path / "no")
