"""Causal language models: tokens and their places, other vocabularies, and secrets that can be ranked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_lm import canaries, models, task
from kdhub_lm.canaries import Ranks
from kdhub_lm.models import byte_tokenizer, llama
from kdhub_logits.privacy import by_pattern

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.student import BuildContext
from kdhub.verbs.load import guess_task


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3))


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
    (marked,) = prepared(tiny, ["ab 42 cd"], private=by_pattern(r"\d+"))
    # of the tokens a b _ 4 2 _ c d: the digits and what stands beside them
    assert marked["private"] == [0, 0, 1, 1, 1, 1, 0, 0]


def test_other_tokens_are_refused_with_what_is_shared(tiny, tmp_path):
    tiny.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(told))
    other = models.load(tmp_path)
    with pytest.raises(CompatibilityError, match="256 of 258 and 258 are the same"):
        task.CausalLanguage().preparer(tiny, other)


def test_exposure_by_hand():
    assert canaries.exposure(Ranks(np.array([1]), 10**6)) == pytest.approx(19.931569)
    assert canaries.exposure(Ranks(np.array([1000]), 10**6)) == pytest.approx(9.965784)
    assert canaries.exposure(Ranks(np.array([1, 50]), 10**4)) == pytest.approx((13.287712 + 7.643856) / 2)
    assert canaries.extraction(Ranks(np.array([1, 50]), 10**4)) == 0.5


def test_ranks_are_those_of_scoring_every_candidate(tiny):
    """By one text for each ten candidates, against the probability of each whole line."""
    import datasets

    from kdhub.evaluation import encoder_of

    prepare = task.CausalLanguage().preparer(tiny, None)
    table = datasets.Dataset.from_dict({"words": ["code "], "secret": ["042"]})
    found = canaries.measure(encoder_of(tiny, prepare), table)
    scores = []
    for example in prepare([{"text": f"code {n:03d}"} for n in range(1000)]):
        (row,) = tiny.signals([example], "logits")["logits"]
        log_p = torch.log_softmax(torch.from_numpy(row).double(), -1)
        scores.append(log_p[range(len(row)), example["labels"]].sum().item())
    assert found.candidates == 1000 and found.ranks.tolist() == [1 + sum(s > scores[42] for s in scores)]


def test_canaries_are_whole_and_in_training_alone():
    data = canaries.canaries("pydoc", limit=20_000, repeats=7, count=3, digits=5)
    train = [row["text"] for row in data.split("train")]
    whole, test = "".join(train), "".join(row["text"] for row in data.split("test"))
    for row in data.split("secrets"):
        line = f"{row['words']}{row['secret']}\n"
        assert whole.count(line) == 7 and sum(text.count(line) for text in train) == 7, "not torn between blocks"
        assert row["words"] not in test and len(row["secret"]) == 5
    assert max(map(len, train)) < 700
    again = canaries.canaries("pydoc", limit=20_000, repeats=7, count=3, digits=5, seed=1)
    assert [r["secret"] for r in again.split("secrets")] != [r["secret"] for r in data.split("secrets")]
    for wrong in ({"digits": 9}, {"count": 0}, {"block": 3}):
        with pytest.raises(UsageError, match="canaries of 1 to 6 digits"):
            canaries.canaries("pydoc", **wrong)


def test_numbers_that_are_one_token_cannot_be_ranked():
    class Whole:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": text.split(" ")}

    with pytest.raises(DataError, match="single digits"):
        canaries._digit_tokens(Whole(), "the code is", 4)


def test_a_student_is_a_plain_transformers_model(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    teacher = made["teacher"]["source"]
    run = kdhub.distill(
        {"task": "causal-lm", "method": "kd", **made, "student": "layers:1",
         "options": {"epochs": 1, "precision": "float32"}}, out=tmp_path / "run")  # fmt: skip
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run.student_folder)
    ids = AutoTokenizer.from_pretrained(run.student_folder)("a film", return_tensors="pt")["input_ids"]
    loaded = kdhub.load(run.folder)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, loaded.module.model(ids).logits, atol=1e-5)
    assert model.config.num_hidden_layers == 1 and guess_task(run.student_folder) == "causal-lm"
    assert run.provenance["signals"]["logits"]["computed"] and teacher.startswith("path:")
    for wrong in ("width=15", "depth=2", "width=0"):
        with pytest.raises(UsageError, match="student llama"):
            llama(wrong, BuildContext(None, None, 0))


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


@pytest.mark.parametrize("keep", ["top-8", "sampled-12"])
def test_tokens_are_learnt_from_a_part_of_the_teachers_logits(keep, tmp_path):
    """Stored ragged, in few bytes, and used by the loss in chunks."""
    recipe = task.CausalLanguage().tiny_recipe(tmp_path)
    folder = tmp_path / "teacher"
    sure = models.load(folder)
    with torch.no_grad():
        sure.module.model.lm_head.weight.mul_(20)  # or it finds all tokens nearly alike, and there is nothing to learn
    sure.save(folder)
    run = kdhub.distill(
        {"task": "causal-lm", "method": "kd", **recipe, "signals": {"keep": keep},
         "options": {"epochs": 6, "precision": "float32", "temperature": 1.0, "alpha": 1.0, "lr": 0.01}},
        out=tmp_path / "run")  # fmt: skip
    stored = run.provenance["signals"][f"logits:{keep}"]
    assert stored["item_bytes"] == {"top-8": 9 + 8 + 6, "sampled-12": 14}[keep] and stored["computed"]
    kl = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "kl"}
    assert kl["student"] < kl["student-before"]


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
    with pytest.raises(DataError, match="no column 'text', nor 'prompt' and 'response'"):
        kdhub.distill({"task": "causal-lm", "method": "supervised", **made, "teacher": None}, out=tmp_path / "no")
