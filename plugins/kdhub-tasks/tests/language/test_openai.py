"""The `openai:` teacher of language models against a real HTTP server of our own, with the faults a server can have."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time

import datasets
import numpy as np
import pytest
import torch
from kdhub_tasks.language import model as models
from kdhub_tasks.language import task
from kdhub_tasks.language.generation import Generation, answered, answers
from kdhub_tasks.language.openai import OpenAI
from kdhub_tasks.language.students import llama

import kdhub
from kdhub.errors import CompatibilityError, HubError, TeacherError
from kdhub.rows import Rows
from kdhub.signals.store import row_key
from kdhub.signals.stored import stored_signals
from kdhub.student import BuildContext
from kdhub.testing.server import cut, failing, serving

KEY = "test-51f0c0ffee"


def said(path, body) -> dict:
    """The server's answers: the prompt reversed, with the seed and counts."""
    prompt = body["prompt"] if path.endswith("/completions") and "prompt" in body else body["messages"][-1]["content"]
    text = prompt[::-1] + (f" {body['seed']}" if "seed" in body else "")
    choice = {"index": 0, "finish_reason": "length" if len(text) > body.get("max_tokens", 99) else "stop"}
    choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(text), "total_tokens": len(prompt) + len(text)}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def answering(change):
    """A fault inside an otherwise good answer: `change(answer)`, in place or as a new body."""

    def fault(handler, body):
        answer = said(handler.path, body)
        new = change(answer)
        return handler.answer(200, answer if new is None else new)

    return fault


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(OpenAI, "backoff", 0.01)
    with serving(said) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def teacher(**options) -> OpenAI:
    return OpenAI("toy", OpenAI.Options(**options), task=task.CausalLanguage())


def prompts(*texts) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"prompt": list(texts)})


def ask(model, *texts, how=None) -> list[tuple[str, bool]]:
    return list(answers(model, prompts(*texts), how or Generation(max_new_tokens=9)))


def some(n) -> list[str]:
    return [f"row {i}" for i in range(n)]


# -- what it gives ------------------------------------------------------------------------------------------------


def test_each_row_is_asked_once_and_the_settings_are_sent(server):
    model = teacher(system="Be short.", body={"user": "me"})
    assert ask(model, "abc", "defghijklm", "abc") == [("cba", True), ("mlkjihgfed", False), ("cba", True)]
    assert server.paths == {"/v1/chat/completions"} and server.keys == {f"Bearer {KEY}"} and len(server.bodies) == 2
    assert min(server.bodies, key=str) == {
        "model": "toy", "max_tokens": 9, "temperature": 0.0, "user": "me",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "abc"}],
    }  # fmt: skip
    assert ask(teacher(system="Be short.", body={"user": "me"}), "abc") == [("cba", True)] and len(server.bodies) == 2
    ask(teacher(), "abc")  # without the system's message it is another teacher
    assert len(server.bodies) == 3


def test_base_models_are_asked_for_completions(server):
    model = teacher(api="completions", limit="max_completion_tokens")
    assert ask(model, "abc", how=Generation(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3)) != [("cba", True)]
    (body,) = server.bodies
    assert server.paths == {"/v1/completions"} and body["prompt"] == "abc" and body["max_completion_tokens"] == 7
    assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
    with pytest.raises(CompatibilityError, match="this one has 2"):
        two = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        model.signals([{"messages": two, "content": b""}], Generation().kind)


def test_samples_of_one_prompt_have_seeds_of_their_own(server):
    table = prompts("ab", "ab", "cd").add_column("sample", [0, 1, 0])
    how = Generation(temperature=1.0)
    given = list(answers(teacher(), table, how))
    assert len({text.split()[-1] for text, _ in given}) == 3
    other = list(answers(teacher(), table, how.model_copy(update={"seed": 1})))
    assert not {text for text, _ in given} & {text for text, _ in other} and len(server.bodies) == 6


def test_many_are_in_flight_and_all_is_counted_and_priced(server, caplog):
    caplog.set_level(logging.INFO)
    server.delay = 0.03
    model = teacher(concurrency=6, input_price=2.0, output_price=10.0)
    began = time.monotonic()
    ask(model, *some(40))
    assert 1 < server.most <= 6 and time.monotonic() - began < 40 * 0.03
    tokens = sum(map(len, some(40)))
    assert dict(model.spent) == {
        "requests": 40, "answers": 40, "prompt_tokens": tokens, "completion_tokens": tokens,
        "cost": round(tokens * 12 / 1e6, 6),
    }  # fmt: skip
    assert (
        f"40 answers of toy: {tokens} prompt tokens, {tokens} completion tokens, cost {tokens * 12e-6:g}" in caplog.text
    )
    again = teacher(input_price=2.0, output_price=10.0)
    ask(again, *some(40))
    assert again.spent["requests"] == 0 and caplog.text.count("prompt tokens") == 2, "what rows cost is stored too"


def test_a_run_learns_from_what_it_says_and_notes_what_was_spent(server, tmp_path):
    pytest.importorskip("kdhub_lm")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {c}"}) + "\n" for c in "abcdefgh"))
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{c} yas"}) + "\n" for c in "abcdefgh"))
    recipe = {
        "task": "causal-lm", "method": "seqkd", "teacher": {"source": "openai:toy", "output_price": 1.0},
        "student": "llama:width=16,layers=1,heads=2,length=64", "data": {"train": [f"path:{rows}"]},
        "options": {"epochs": 40, "batch_size": 8, "lr": 0.02, "precision": "float32", "answers": {"temperature": 0}},
        "evaluation": {"data": [f"path:{texts}"], "metrics": ["perplexity", "kl"], "cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "perplexity"}
    assert values["student"] < values["student-before"] / 10 and "teacher" not in values
    (kl,) = [m for m in run.report["measures"] if m["metric"] == "kl" and m["subject"] == "student"]
    assert kl["value"] is None and kl["note"], "the teacher gives no logits, which the note says"
    (spent,) = run.provenance["spent"].values()
    tokens = sum(len(f"say {c}") for c in "abcdefgh")
    assert spent == {
        "requests": 8, "answers": 8, "prompt_tokens": tokens, "completion_tokens": tokens, "cost": tokens / 1e6,
    }  # fmt: skip
    assert run.provenance["teacher"]["model"] == "toy" and KEY not in json.dumps(run.provenance)


# -- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [failing(500), failing(429, Retry_After="0.01"), cut, lambda h, b: h.answer(200, b'{"choices": [{"ind')],
    ids=["500", "429", "cut", "half JSON"],
)
def test_passing_faults_are_survived(server, fault):
    server.faults = [fault, fault]
    model = teacher(concurrency=2)
    assert ask(model, *some(6)) == [(text[::-1], True) for text in some(6)]
    assert model.spent["requests"] == 8 and model.spent["answers"] == 6


def content(value):
    return answering(lambda answer: answer["choices"][0]["message"].update(content=value))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answering(lambda answer: {"error": {"message": f"no such model {KEY}"}}), "no list 'choices'.*no such model"),
        (answering(lambda answer: [1, 2]), "no list 'choices'"),
        (answering(lambda answer: answer.update(choices=[])), "no list 'choices'"),
        (answering(lambda answer: answer.update(choices=["abc"])), "no list 'choices'"),
        (answering(lambda answer: answer["choices"][0].pop("message") and None), "no 'message'"),
        (content(5), "its text is not a string"),
        (content([{"type": "image"}]), "its text is not a string"),
        (lambda h, b: h.answer(200, b"<html>Log in</html>"), r"not JSON \(an HTML page\)"),
        (lambda h, b: h.answer(200, b"[" * 100_000), "not JSON"),
        (lambda h, b: h.answer(200, b'{"choices": [{"ind'), "not JSON"),
    ],
)
def test_nonsense_names_the_prompt(server, fault, message):
    server.always = fault
    with pytest.raises(TeacherError, match=message) as error:
        ask(teacher(retries=1), "what is this?")
    assert "text 1 ('what is this?', 13 characters)" in str(error.value) and KEY not in str(error.value)


def test_odd_answers_are_read(server):
    server.faults = [
        content("half of a pair: \ud83d"),
        content([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]),
        answering(lambda answer: answer.update(usage=None)),
    ]
    model = teacher(concurrency=1, commit=3)
    texts = {text for text, _ in ask(model, "a", "bb", "ccc")}
    assert texts >= {"half of a pair: ?", "in parts"} and len(texts) == 3
    assert model.spent["answers"] == 3 and model.spent["prompt_tokens"] == 5


def test_empty_answers_are_left_out_and_counted(server, caplog):
    server.always = lambda h, b: content(None)(h, b) if b["messages"][-1]["content"] == "row 1" else None
    data = answered(teacher(), prompts(*some(4)), Generation(), name="x")
    assert [row["prompt"] for row in data.split("train")] == ["row 0", "row 2", "row 3"]
    assert "1 of 4 answers of toy to x are empty" in caplog.text


def test_a_refused_prompt_ends_the_run_or_is_left_out(server):
    server.always = lambda h, b: (
        failing(400, "content filter")(h, b) if b["messages"][-1]["content"] == "row 2" else None
    )
    with pytest.raises(TeacherError, match=r"refused text 1 \('row 2', 5 characters\): 400 .*content filter"):
        ask(teacher(), *some(4))
    assert [text for text, _ in ask(teacher(refused="empty"), *some(4))] == ["0 wor", "1 wor", "", "3 wor"]


def test_a_wrong_key_is_tried_once_and_never_shown(server):
    server.always = failing(401, f"Incorrect API key provided: {KEY}.")
    with pytest.raises(HubError, match="401") as error:
        ask(teacher(concurrency=1), *some(5))
    assert len(server.bodies) == 1 and KEY not in json.dumps(error.value.to_dict())


# -- with the store -----------------------------------------------------------------------------------------------


def fill(n, concurrency):
    model = teacher(concurrency=concurrency, retries=1)
    return model, ask(model, *some(n))


def test_killed_while_asking_it_asks_only_for_the_rest(server):
    n, concurrency = 60, 3
    server.delay = 0.04
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['fill'](*map(int, sys.argv[2:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, __file__, str(n), str(concurrency)], stderr=subprocess.PIPE, text=True
    )
    while len(server.answered) < 20:
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert len(server.bodies) < n
    server.delay = 0.0
    model, given = fill(n, concurrency)
    assert given == [(text[::-1], True) for text in some(n)]
    assert 0 < model.spent["requests"] < n
    # Each request that was lost was in flight, or just answered and not yet committed, when the kill came.
    assert n <= len(server.bodies) <= n + concurrency


def test_what_was_answered_before_a_failure_is_kept(server):
    server.delay = 0.01
    server.always = lambda h, b: failing(500)(h, b) if b["messages"][-1]["content"] == "row 17" else None
    with pytest.raises(HubError, match="500"):
        fill(40, 4)
    paid = len(server.answered)
    server.always = None
    assert 0 < paid < 40 and fill(40, 4)[0].spent["requests"] == 40 - paid


# -- logits -------------------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path):
    torch.manual_seed(0)
    model = llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3))
    folder = tmp_path / "local"
    folder.mkdir()
    model.save(folder)
    return folder, model


def scoring(model):
    """What a server with `prompt_logprobs` says, by a local model: by id, the prompt's own token added."""

    def good(path, body):
        assert path == "/v1/completions" and body["max_tokens"] == 1
        ids, places = body["prompt"], [None]
        with lock, torch.no_grad():
            log_p = model.module.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for at, token in enumerate(ids[1:]):
            kept = {*log_p[at].topk(body["prompt_logprobs"]).indices.tolist(), token}
            places.append({str(t): {"logprob": float(log_p[at, t]), "rank": 1} for t in kept})
        return {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": places}]}

    lock = threading.Lock()
    return good


def test_part_of_the_logits_is_what_a_local_teacher_gives(server, local, saved):
    folder, model = local
    server.good = scoring(model)
    here, there = saved(folder), teacher(tokenizer=str(folder))
    assert there.vocabulary == here.vocabulary
    table = datasets.Dataset.from_dict({"prompt": ["ab", "cdefg"], "response": ["xyz", "u"]})
    for kind in ("logits:top-7", "logits:renormalised-7"):
        given = []
        for one in (here, there):
            rows = Rows.build(table, task.CausalLanguage().preparer(None, one), row_key)
            ((name, values),) = stored_signals(one, rows, kind)[np.arange(2)].items()
            given.append((name, [v.tolist() for v in values]))
        assert given[0] == given[1], "the very same bytes"
    for options, message in (({}, "needs its tokenizer"), ({"tokenizer": str(folder)}, "not samples")):
        with pytest.raises(CompatibilityError, match=message):
            teacher(**options).layout("logits:sampled-4")
    with pytest.raises(CompatibilityError, match="does not give all logits"):
        there.layout("logits")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda choice: choice.pop("prompt_logprobs"), "sent no 'prompt_logprobs'"),
        (lambda choice: choice["prompt_logprobs"].pop(), "sent no 'prompt_logprobs'"),
        (
            lambda choice: choice["prompt_logprobs"][2].popitem(),
            "sent 3 log-probabilities for a position, 4 were requested",
        ),
        (lambda choice: choice["prompt_logprobs"][2].update(zz={"logprob": -1.0}), "unknown form"),
        (lambda choice: choice["prompt_logprobs"][2].update({"999": {"logprob": -1.0}}), "beyond its 258 tokens"),
        (lambda choice: choice["prompt_logprobs"][2].update({"7": {"logprob": float("nan")}}), "not log-prob"),
    ],
)
def test_wrong_log_probabilities_are_refused(server, local, change, message):
    folder, model = local
    good = scoring(model)

    def wrong(path, body):
        answer = good(path, body)
        for place in answer["choices"][0]["prompt_logprobs"][1:]:
            for token in sorted(place, key=lambda t: place[t]["logprob"])[: len(place) - 4]:
                del place[token]
        change(answer["choices"][0])
        return answer

    server.good = wrong
    there = teacher(tokenizer=str(folder))
    examples = task.CausalLanguage().preparer(None, there)([{"text": "abcdef"}])
    with pytest.raises(TeacherError, match=message):
        there.signals(examples, "logits:top-4")


def test_a_student_learns_from_part_of_the_logits_behind_an_api(server, local, tmp_path):
    pytest.importorskip("kdhub_logits")
    folder, model = local
    server.good = scoring(model)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abcdefgh", "hello there", "xyz" * 4)))
    recipe = {
        "task": "causal-lm", "method": "kd", "teacher": {"source": "openai:toy", "tokenizer": str(folder)},
        "student": f"path:{folder}", "data": {"train": [f"path:{texts}"]}, "signals": {"keep": "top-16"},
        "options": {"max_steps": 1, "alpha": 1.0, "temperature": 1.0, "lr": 1e-9, "precision": "float32"},
        "evaluation": {"data": [f"path:{texts}"], "metrics": ["perplexity"], "cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    (loss,) = [record["loss"] for record in run.metrics() if "loss" in record]
    assert abs(loss) < 1e-3, "the student is the teacher, so all that is left is the error of 8 bits"
    assert models.load(run.student_folder).module.classes == 258
