"""Conversations: what of them is learnt, how they are cut, and how a model is prompted with them."""

from __future__ import annotations

import json

import pytest
import torch
from kdhub_tasks.language import chat_template, task
from kdhub_tasks.language import model as models
from kdhub_tasks.language.generation import Generation, answered
from kdhub_tasks.language.students import byte_tokenizer, llama

import kdhub
from kdhub.errors import CompatibilityError, DataError
from kdhub.student import BuildContext

ONE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TWO = [*ONE, {"role": "user", "content": "é?"}, {"role": "assistant", "content": " ok "}]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


def prepared(model, *rows, **settings):
    return task.CausalLanguage().preparer(model, None, **settings)(list(rows))


def tokenizer_of(merges=(), **special):
    """One of bytes that has its own end `</s>`, and merges."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["</s>", *letters, *(a + b for a, b in merges)]
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **special)


# -- one text, and what of it is learnt ----------------------------------------------------------------------


def test_the_format_and_what_is_learnt():
    """Invariant 1 of the specification."""
    tokenizer = tokenizer_of()
    text, spans = chat_template.text_and_targets(tokenizer, ONE)
    assert text == "<|user|>\nhi\n<|assistant|>\nyo</s>" and [text[a:b] for a, b in spans] == ["yo</s>"]
    text, spans = chat_template.text_and_targets(tokenizer, [{"role": "system", "content": "be brief"}, *TWO])
    assert text.startswith("<|system|>\nbe brief\n<|user|>\nhi\n")
    assert [text[a:b] for a, b in spans] == ["yo</s>\n", "ok</s>"], "the line's end too, but for the last"
    assert chat_template.render(tokenizer, ONE[:1], prompt=True) == "<|user|>\nhi\n<|assistant|>\n"


def test_labels_stand_in_several_places(tiny):
    two, everything = prepared(tiny, {"messages": TWO}, {"messages": TWO, "loss_on": "all"})
    read = tiny.tokenizer.decode
    assert read(two["labels"]) == "yo<s>\nok<s>" and read(two["ids"]).startswith("<s><|user|>\nhi\n")
    assert [two["ids"][n + 1] for n in two["at"]] == two["labels"] and two["at"][3] + 1 < two["at"][4]
    assert everything["labels"] == everything["ids"][1:], "the begin is given, not learnt"
    assert two["content"] != everything["content"], "signals of other positions are others"
    batch = task.CausalLanguage().collate([two, everything], tiny)
    with torch.no_grad():
        given = tiny.module(batch).logits
        alone = tiny.module.model(torch.tensor([two["ids"]])).logits[0, two["at"], :258]
    assert torch.allclose(given[: len(two["at"])], alone, atol=1e-5)


@pytest.mark.parametrize(
    "template, learnt",
    [
        (CHATML, ["yo<|im_end|>\n", " ok <|im_end|>"]),
        # thoughts are written in the last turn alone: no model writes the others so
        ("{% for m in messages %}<{{ m.role }}>{{ '<think></think>' if loop.last and m.role == 'assistant' }}"
         "{{ m.content }}</s>{% endfor %}{{ '<assistant>' if add_generation_prompt }}", ["<think></think> ok </s>"]),
        # a header that opens them
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
         "{{ '<assistant><think>\n' if add_generation_prompt }}", ["yo</s>", " ok </s>"]),
        # the header is a part of the user's turn, and the system's words stand in the last of these
        ("{% for m in messages %}{{ ' ' + m.content + '</s>' if m.role == 'assistant' else "
         "'[INST] ' + m.content + ' [/INST]' }}{% endfor %}", [" yo</s>", "  ok </s>"]),
    ],
)  # fmt: skip
def test_other_templates(template, learnt):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    text, spans = chat_template.text_and_targets(tokenizer, TWO)
    assert [text[a:b] for a, b in spans] == learnt


def test_tokens_across_a_border_belong_to_where_they_begin():
    """Prefixes of the tokens would say: three tokens of `\\n` and `y`, where the whole has one of both."""
    tokenizer = tokenizer_of([("Ċ", "y"), ("Ċ", "<")])
    text, spans = chat_template.text_and_targets(tokenizer, TWO)
    given = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learnt = chat_template.tokens_in(given["offset_mapping"], spans)
    tokens = tokenizer.convert_ids_to_tokens([given["input_ids"][n] for n in learnt])
    assert tokens == ["o", "</s>", "Ċ<", "o", "k", "</s>"]


def test_the_end_is_learnt_where_it_is_the_padding_too(tiny):
    tiny.tokenizer.pad_token = tiny.tokenizer.eos_token
    short, long = prepared(tiny, {"messages": ONE}, {"messages": TWO})
    batch = task.CausalLanguage().collate([short, long], tiny)
    end = tiny.tokenizer.eos_token_id
    assert batch["labels"].tolist().count(end) == 3 and len(batch["labels"]) == 3 + 7
    assert batch["attention_mask"].sum(1).tolist() == [short["length"], long["length"]]


def test_conversations_that_are_refused(tiny):
    tiny.tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    )
    with pytest.raises(
        DataError, match="does not accept a conversation of system, user, assistant: roles must alternate"
    ):
        prepared(tiny, {"messages": [{"role": "system", "content": "x"}, *ONE]})
    tiny.tokenizer.chat_template = "{{ 1 / (messages | length - 2) }}"
    with pytest.raises(DataError, match="does not accept a conversation of user, assistant: .*zero"):
        prepared(tiny, {"messages": ONE})
    tiny.tokenizer.chat_template = "{{ messages[0].content }}"
    other = llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3))
    with pytest.raises(CompatibilityError, match="different chat templates"):
        other.tokenizer.chat_template = CHATML
        task.CausalLanguage().preparer(tiny, other)([{"messages": ONE}])
    tiny.tokenizer.chat_template = None
    task.CausalLanguage().preparer(tiny, other)([{"messages": ONE}])
    assert tiny.tokenizer.chat_template == CHATML, "one without gets that of the other"


def test_prompts_of_conversations(tiny):
    one, two = prepared(tiny, {"messages": ONE}, {"messages": TWO[:3], "sample": 1}, prompts=8)
    read = tiny.tokenizer.decode
    assert read(one["ids"]) == "<s><|user|>\nhi\n<|assistant|>\n" and one["messages"] == ONE[:1]
    assert two["messages"] == TWO[:3] and read(two["ids"]).endswith("yo<s>\n<|user|>\né?\n<|assistant|>\n")
    assert two["content"].endswith(b"\x001")


# -- training -------------------------------------------------------------------------------------------------


def test_conversations_train_and_the_student_is_asked_in_the_same_way(tmp_path, caplog):
    from transformers import pipeline

    made = task.CausalLanguage().tiny_recipe(tmp_path)
    rows = [{"messages": [{"role": "user", "content": c}, {"role": "assistant", "content": c * 2}]} for c in "abcdefgh"]
    long = {"messages": [{"role": "user", "content": "x" * 99}, {"role": "assistant", "content": "no"}]}
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows * 8, long]))
    recipe = {
        "task": "causal-lm", "method": "supervised", **made, "teacher": None, "data": {"train": [f"path:{path}"]},
        "student": "llama:width=32,layers=1,heads=2,length=64",
        "options": {"epochs": 30, "batch_size": 16, "lr": 0.02, "precision": "float32"},
        "evaluation": {"data": [{"source": f"path:{path}", "limit": 8}], "cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    assert run.provenance["rows"]["train"]["rows"] == 64
    assert "of 1 of 65 rows nothing is left to learn within what the models take (row 65)" in caplog.text
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "perplexity"}
    assert values["student"] < 1.2
    write = pipeline("text-generation", model=str(run.student_folder))
    written = write([{"role": "user", "content": "c"}], max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert written[-1] == {"role": "assistant", "content": "cc"}

    path.write_text(json.dumps(long) + "\n")
    with pytest.raises(DataError, match=r"of 1 of 1 rows nothing is left to learn .* \(row 1\)"):
        kdhub.distill(recipe, out=tmp_path / "none")
    path.write_text('{"messages": []}\n{"messages": [{"role": "user", "content": ""}]}\n')
    with pytest.raises(
        DataError, match=r"1 without a list of role and content.*1 with empty text in 'content' \(row 2"
    ):
        kdhub.distill(recipe, out=tmp_path / "bad")


def test_a_sampler_knows_which_rows_are_left(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    for name, sizes in (("a", (99, 1, 99)), ("b", (1, 1, 99))):
        rows = [[{"role": "user", "content": "x" * n}, {"role": "assistant", "content": name}] for n in sizes]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in rows))
    parts = [f"path:{tmp_path}/{name}.jsonl" for name in "ab"]
    run = kdhub.distill(
        {"task": "causal-lm", "method": "supervised", **made, "teacher": None, "data": {"train": parts},
         "sampler": {"source": "mixture", "weights": {parts[0]: 0, parts[1]: 1}},
         "options": {"epochs": 4, "batch_size": 2, "precision": "float32"}},
        out=tmp_path / "run")  # fmt: skip
    assert run.provenance["rows"]["train"]["rows"] == 3


def test_a_teacher_answers_conversations(tiny, saved, tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    tiny.save(tmp_path / "t")
    (tmp_path / "two.jsonl").write_text(json.dumps({"messages": TWO, "dataset": "x"}) + "\n")
    letters = tiny.tokenizer("zz", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(models.CausalLm, "generate", lambda self, prompts, *a, **k: [letters] * len(prompts))
    table = kdhub.open_data(f"path:{tmp_path}/two.jsonl").split("train")
    data = answered(saved(tmp_path / "t"), table, Generation(max_new_tokens=2), name="x")
    (row,) = data.split("train")
    assert row["messages"] == [*TWO[:3], {"role": "assistant", "content": "zz"}] and row["dataset"] == "x"


# -- data -----------------------------------------------------------------------------------------------------


def test_a_long_conversation_is_cut_between_questions():
    """Invariant 5: no pair is torn, one over the limit is dropped, and no other is lost."""
    turns = [("a", 3), ("b", 3), ("c", 9), ("d", 3), ("e", 5), ("f", 1)]
    messages = [{"role": "system", "content": "s"}]
    for name, n in turns:
        messages += [{"role": "user", "content": name}, {"role": "assistant", "content": name * (n - 1)}]
    size = lambda piece: sum(len(m["content"]) for m in piece)  # noqa: E731
    found = list(chat_template.pieces(messages, lambda piece: size(piece) <= 8))
    assert ["".join(m["content"][0] for m in piece[1::2]) for piece in found] == ["ab", "d", "ef"]
    assert all(piece[0]["role"] == "system" and len(piece) % 2 == 1 for piece in found)
    assert list(chat_template.pieces(messages, lambda piece: False)) == []


# -- conversations that a template does not accept --------------------------------------------------------------------

STRICT = "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}" \
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}" \
    "{{ '[assistant]' if add_generation_prompt }}"  # fmt: skip
GREETING = [{"role": "assistant", "content": "how can I help?"}, *ONE]


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_conversation_may_begin_with_the_assistant(template):
    tokenizer = tokenizer_of(chat_template=template)
    text, spans = chat_template.text_and_targets(tokenizer, GREETING)
    said = [text[a:b].split("<")[0].strip() for a, b in spans]
    assert said == ["how can I help?", "yo"]
    with pytest.raises(DataError, match="without a prompt"):
        chat_template.render(tokenizer, [])


def test_a_row_that_the_template_refuses_is_a_bad_row(tiny, tmp_path):
    """It is counted and left out, or stops the run with its number: in training and in evaluation."""
    tiny.tokenizer.chat_template = STRICT
    (tmp_path / "model").mkdir()
    tiny.save(tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (ONE, GREETING, TWO, GREETING[:1])))
    recipe = {
        "task": "causal-lm", "method": "supervised", "student": f"path:{tmp_path / 'model'}",
        "options": {"max_steps": 1, "batch_size": 2},
        "data": {"train": [{"source": f"path:{path}"}]},
        "evaluation": {
            "data": [{"source": f"path:{path}"}], "cost": False, "options": {"generate": 4, "max_new_tokens": 2}
        },
    }  # fmt: skip
    with pytest.raises(
        DataError, match=r"rows.jsonl train: 2 of 4 rows are bad.*alternate \(row 2\).*\(row 4\)"
    ) as stopped:
        kdhub.distill(recipe, out=tmp_path / "stopped")
    assert stopped.value.rows == [2, 4] and "on_bad_rows: skip" in stopped.value.hint
    run = kdhub.distill({**recipe, "on_bad_rows": "skip"}, out=tmp_path / "run")
    read = run.provenance["rows"]["train"]
    assert sum(read["skipped"].values()) == 2 and read["rows"] == 2
    assert any("2 of 4 rows of rows.jsonl train were left out for student" in note for note in run.report["notes"])
    exact = next(m for m in run.report["measures"] if m["metric"] == "exact-match" and m["subject"] == "student")
    assert exact["examples"] == 2, "answers are counted for prompts that a model can read"

    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps({"messages": ONE}) + "\n")
    only = {**recipe, "data": {"train": [{"source": f"path:{good}"}]}}
    with pytest.raises(DataError, match=r"rows.jsonl train: 2 of 4 rows are bad"):
        kdhub.distill(only, out=tmp_path / "measured")
