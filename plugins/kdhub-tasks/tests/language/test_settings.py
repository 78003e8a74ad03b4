"""Stop sequences, penalties, beginnings and log-probabilities of texts: of local models, and of servers."""

from __future__ import annotations

import hashlib

import datasets
import pytest
import torch
from kdhub_tasks.language import chat_template
from kdhub_tasks.language.decoding import penalised
from kdhub_tasks.language.generation import Answer, Generation, answered, answers, layout
from kdhub_tasks.language.openai import OpenAI
from kdhub_tasks.language.task import CausalLanguage

import kdhub
from kdhub.errors import CompatibilityError, TeacherError, UsageError
from kdhub.testing.server import failing, serving

PROMPT = datasets.Dataset.from_dict({"prompt": ["ab", "cde"]})
CHAT = [{"role": "user", "content": "hi"}]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
CLOSED = {
    "drops": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "repeats": CHATML + "{{ messages[-1].content }}",
    "shortens": "{% for m in messages %}{{ m.content[:4] }}{% endfor %}",
    "changes": CHATML.replace("m.content", "m.content | upper"),
    "refuses": "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no answer last') }}{% endif %}" + CHATML,
}


@pytest.fixture
def teacher(tiny, saved, tmp_path):
    """Sharper than a fresh one, so that texts have different tokens."""
    with torch.no_grad():
        tiny.module.model.get_output_embeddings().weight.mul_(5)
    (tmp_path / "teacher").mkdir()
    tiny.save(tmp_path / "teacher")
    return saved(tmp_path / "teacher")


def written(teacher, table=PROMPT, **how) -> list[Answer]:
    return list(answers(teacher, table, Generation(**{"max_new_tokens": 12, "temperature": 1.0, **how})))


# -- names under which texts are stored ---------------------------------------------------------------------------


def test_texts_that_were_stored_before_are_still_found(monkeypatch, tmp_path):
    """Folders and files as they were named, and their bytes, before there were further settings."""
    monkeypatch.setattr(OpenAI, "identity", {
        "kind": "openai", "model": "toy", "base_url": "http://fixed/v1", "revision": None, "api": "chat",
        "system": None, "body": {},
    })  # fmt: skip
    good = {"choices": [{"finish_reason": "stop", "message": {"content": "yes"}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1}}  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path))
    with serving(lambda path, body: good) as server:
        model = OpenAI("toy", OpenAI.Options(base_url=server.url), task=CausalLanguage())
        table = datasets.Dataset.from_dict({"prompt": ["ab", "cd"], "sample": [0, 1]})
        for how in (Generation(), Generation(max_new_tokens=9, temperature=0.5, top_p=0.9, seed=3)):
            list(answers(model, table, how))
    found = {f"{p.parent.name[:8]}/{p.name[:8]}": hashlib.sha256(p.read_bytes()).hexdigest()[:8]
             for p in (tmp_path / "signals").rglob("*.safetensors")}  # fmt: skip
    assert found == {
        "0f98014f/2542c649": "2e64b411", "0f98014f/b9f415a8": "36b350eb",
        "b653bdfe/2542c649": "2e64b411", "b653bdfe/b9f415a8": "36b350eb",
    }  # fmt: skip


def test_settings_that_are_unset_leave_no_trace():
    assert Generation().kind == "text:{}" and Generation(stop=["\n"], log_probs=True).kind == (
        'text:{"log_probs":true,"stop":["\\n"]}'
    )
    assert Generation().model_dump() == {"max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    for how in (Generation(), Generation(seed=2, stop=["a", "b"], prefix="é", frequency_penalty=-1.5)):
        assert Generation.parse(how.kind) == how
    assert layout(Generation().kind).keys() == layout().keys() == {"text", "ended"}
    for wrong in ({"stop": [""]}, {"presence_penalty": 2.5}, {"frequency_penalty": -3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Generation(**wrong)


# -- local models -------------------------------------------------------------------------------------------------


def test_a_stop_sequence_ends_a_text_and_is_no_part_of_it(teacher):
    before = written(teacher)
    stop = before[0].text[3:5]
    cut = written(teacher, stop=["never there", stop])
    assert cut[0] == (before[0].text.partition(stop)[0], True)
    assert cut[1] == (before[1].text.partition(stop)[0], stop in before[1].text or before[1].ended)
    longer = written(teacher, stop=[stop], max_new_tokens=30)
    assert longer[0] == cut[0], "it is not written on behind it"
    first, second = sorted((before[0].text[4:5], before[0].text[2:3]))
    assert written(teacher, stop=[first, second])[0].text == min(
        (before[0].text.partition(one)[0] for one in (first, second)), key=len
    )


def test_penalties_are_of_what_the_answer_has_already():
    z, so_far = torch.zeros(1, 5), torch.tensor([[3, 3, 1, 2, 1, 4]])
    how = Generation(presence_penalty=0.5, frequency_penalty=0.25)
    assert penalised(how, 2)(so_far, z).tolist() == [[0, -1.0, -0.75, 0, -0.75]], "the prompt's do not count"


def test_a_high_penalty_leaves_no_token_twice(tiny, teacher):
    long = {"max_new_tokens": 40, "temperature": 0.0}
    prompts = [tiny.tokenizer(text)["input_ids"] for text in PROMPT["prompt"]]
    with torch.no_grad():
        tiny.module.model.get_output_embeddings().weight.div_(50)  # so flat that a penalty decides
    plain, other = (tiny.generate(prompts, Generation(**long, **p), 0) for p in ({}, {"presence_penalty": 2.0}))
    assert any(len(set(ids)) < len(ids) for ids in plain) and all(len(set(ids)) == len(ids) for ids in other)
    trained = tiny.generate(prompts, Generation(**long, frequency_penalty=2.0), 0, trained=True)
    assert all(len(set(ids)) == len(ids) for ids in trained), "also of samples to train on, where a method asks for it"


def test_log_probabilities_are_those_of_the_tokens_by_the_plain_distribution(teacher):
    how = {"top_p": 0.9, "temperature": 0.7, "presence_penalty": 0.1, "log_probs": True}
    model = teacher.model
    for answer, prompt in zip(written(teacher, **how), PROMPT["prompt"]):
        (example,) = CausalLanguage().preparer(None, teacher, prompts=12)([{"prompt": prompt}])
        ids = list(example["ids"])
        row = int.from_bytes(hashlib.sha256(example["content"]).digest()[:8], "big")
        (tokens,) = model.generate([ids], Generation(max_new_tokens=12, **how), 0, [row])
        assert len(tokens) == len(answer.log_probs) and model.texts([tokens])[0] == [answer.text]
        for token, value in zip(tokens, answer.log_probs):
            with torch.no_grad():
                log_p = model.module.model(torch.tensor([ids])).logits[0, -1, : model.module.classes].log_softmax(-1)
            assert value == pytest.approx(log_p[token].item(), abs=1e-4)
            ids.append(token)
        assert answer.about["log_prob"] == pytest.approx(float(answer.log_probs.sum()), abs=1e-4)
    how.pop("log_probs")
    assert written(teacher, **how)[0].log_probs is None and written(teacher, **how)[0].about.keys() == {"ended"}


def test_a_beginning_is_the_end_of_the_prompt_and_no_part_of_the_text(tiny, teacher):
    begun = written(teacher, prefix="xyz")
    same = written(teacher, datasets.Dataset.from_dict({"prompt": [p + "xyz" for p in PROMPT["prompt"]]}))
    assert begun == same != written(teacher)
    with pytest.raises(UsageError, match="prefix='xyz'"):
        examples = CausalLanguage().preparer(None, teacher, prompts=12)([{"prompt": "ab"}])
        teacher.signals(examples, Generation(prefix="xyz").kind)


@pytest.mark.parametrize("template", [None, CHATML, TRIMMED])
def test_an_answer_is_left_open_as_by_transformers(tiny, template):
    tiny.tokenizer.chat_template = template
    for prefix in ("Sure, ", "I have an idea:", "{"):
        made = chat_template.as_prompt(tiny.tokenizer, CHAT, prefix)
        said = [*CHAT, {"role": "assistant", "content": prefix}]
        theirs = tiny.tokenizer.apply_chat_template(said, tokenize=False, continue_final_message=True)
        assert made.endswith(prefix) and made.rstrip() == theirs.rstrip()
        assert made.removesuffix(prefix) == chat_template.render(tiny.tokenizer, CHAT, prompt=True)


@pytest.mark.parametrize("template", CLOSED.values(), ids=CLOSED)
def test_a_template_that_leaves_no_answer_open_is_refused(tiny, saved, tmp_path, template):
    tiny.tokenizer.chat_template = template
    tiny.save(tmp_path)
    table = datasets.Dataset.from_dict({"messages": [CHAT]})
    with pytest.raises(CompatibilityError, match="cannot leave an answer open after.*prefix='Sure'"):
        written(saved(tmp_path), table, prefix="Sure")
    assert written(saved(tmp_path), table), "without a beginning it is fine"


def test_conversations_are_begun_too(tiny, saved, tmp_path):
    tiny.tokenizer.chat_template = CHATML
    tiny.save(tmp_path)
    teacher = saved(tmp_path)
    table = datasets.Dataset.from_dict({"messages": [CHAT]})
    prompt = chat_template.render(teacher.tokenizer, CHAT, prompt=True) + "Sure"
    (given,), ids = written(teacher, table, prefix="Sure"), teacher.tokenizer(prompt, add_special_tokens=False)
    (example,) = CausalLanguage().preparer(None, teacher, prompts=12, prefix="Sure")([{"messages": CHAT}])
    assert example["ids"] == ids["input_ids"][-len(example["ids"]) :] and example["cut"]
    assert given != written(teacher, table)[0]


# -- servers ------------------------------------------------------------------------------------------------------


def said(path, body) -> dict:
    """A server that knows everything: it says the prompt in capitals, with what ended it if it was not asked."""
    chat = path.endswith("chat/completions")
    prompt = body["messages"][0]["content"] if chat else body["prompt"]
    text = prompt.upper() + " <end> more"
    choice = {"finish_reason": "length"} | ({"message": {"content": text}} if chat else {"text": text})
    if body.get("logprobs"):
        tokens = [{"token": c, "logprob": -0.5} for c in text[:4]]
        choice["logprobs"] = {"content": tokens} if chat else {"token_logprobs": [-0.25, -1.0]}
    return {"choices": [choice]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with serving(said) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def behind(**options):
    return kdhub.open_teacher({"source": "openai:toy", **options}, "causal-lm")


def test_a_server_is_sent_what_is_set_and_nothing_else(server):
    how = {"temperature": 0.0, "stop": ["<end>"], "frequency_penalty": 0.5, "presence_penalty": -1.0}
    assert written(behind(), **how)[0] == ("AB ", True), "what a server leaves in is cut off"
    (body, _) = server.bodies
    assert {name: body[name] for name in ("stop", "frequency_penalty", "presence_penalty")} == {
        "stop": ["<end>"], "frequency_penalty": 0.5, "presence_penalty": -1.0
    }  # fmt: skip
    written(behind(), temperature=0.0)
    assert server.bodies[-1].keys() == {"model", "messages", "max_tokens", "temperature"}


def test_log_probabilities_of_a_server(server):
    (answer, _) = written(behind(), log_probs=True, max_new_tokens=4)
    assert answer.log_probs.tolist() == [-0.5] * 4 and answer.about == {"ended": False, "log_prob": -2.0}
    (answer, _) = written(behind(api="completions"), log_probs=True)
    assert answer.log_probs.tolist() == [-0.25, -1.0] and server.bodies[-1]["logprobs"] == 1
    rows = answered(behind(), PROMPT, Generation(log_probs=True), name="x").split("train")
    assert rows["log_prob"] == [-2.0, -2.0] and "log_prob" not in answered(
        behind(), PROMPT, Generation(), name="x").split("train").column_names  # fmt: skip


@pytest.mark.parametrize(
    "given", [None, {"content": None}, {"content": [{"token": "a"}]}, {"content": [{"logprob": 1}]}]
)
def test_a_server_without_log_probabilities_is_refused(server, given):
    def without(handler, body):
        choice = {"finish_reason": "stop", "message": {"content": "a"}, "logprobs": given}
        return handler.answer(200, {"choices": [choice]})

    server.always = without
    with pytest.raises(TeacherError, match="text 1 .*no log-probabilities.*leave out log_probs"):
        written(behind(), log_probs=True)


@pytest.mark.parametrize("refused", ["stop", "empty"])
def test_a_setting_that_a_server_refuses_is_named_whatever_becomes_of_refused_prompts(server, refused):
    server.always = failing(400, "Unrecognized request argument: logprobs")
    with pytest.raises(TeacherError, match="logprobs") as caught:
        written(behind(refused=refused), log_probs=True, stop=["a"])
    assert "does not seem to know log_probs:" in caught.value.hint
    server.always = failing(400, "not this one")
    if refused == "empty":
        assert written(behind(refused=refused), log_probs=True)[0] == ("", False)


def test_a_server_goes_on_with_an_answer_only_where_it_is_known_to(server):
    with pytest.raises(CompatibilityError, match=r"prefix='So', prefill=null") as caught:
        written(behind(), prefix="So")
    assert "prefill" in caught.value.hint and not server.bodies
    written(behind(api="completions"), prefix="So")
    assert sorted(body["prompt"] for body in server.bodies) == ["abSo", "cdeSo"]
    written(behind(prefill="continue_final_message"), prefix="So")
    body = server.bodies[-1]
    assert body["messages"][1:] == [{"role": "assistant", "content": "So"}]
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert written(behind(prefill="prefix"), prefix="AB")[0].text == " <end> more", "some servers repeat it"
    assert server.bodies[-1]["messages"][1:] == [{"role": "assistant", "content": "AB", "prefix": True}]
    assert behind(prefill="prefix").identity == behind().identity, "how it is said does not matter to what is said"
