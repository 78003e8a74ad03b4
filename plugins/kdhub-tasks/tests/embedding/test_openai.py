"""The `openai:` teacher against a real HTTP server of our own, with every fault a server can have."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from kdhub_tasks.embedding.model import PROBES
from kdhub_tasks.embedding.openai import OpenAI

from kdhub.errors import CompatibilityError, DataError, HubError, TeacherError, UsageError
from kdhub.files import home
from kdhub.signals.store import Field, SignalStore, row_keys
from kdhub.testing.server import cut, failing, serving, slow

WIDTH = 8
KEY = "test-51f0c0ffee"


def vector_of(text: str) -> np.ndarray:
    """The unit vector the server gives a text."""
    values = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32).astype(np.float64) - 2**31
    return (values / np.linalg.norm(values)).astype(np.float32)


def good(body) -> list[dict]:
    return [
        {"object": "embedding", "index": i, "embedding": vector_of(text)[: body.get("dimensions")].tolist()}
        for i, text in enumerate(body["input"])
    ]


def answering(change):
    """A fault inside an otherwise good answer: `change(list of items)`, in place or as a new body."""

    def fault(handler, body):
        data = good(body)
        new = change(data)
        return handler.answer(200, {"data": data} if new is None else new)

    return fault


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(OpenAI, "backoff", 0.01)
    with serving(lambda path, body: {"object": "list", "data": good(body)}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        yield server


def teacher(**options) -> OpenAI:
    return OpenAI("toy", OpenAI.Options(**options))


def embed(teacher, texts) -> np.ndarray:
    return teacher.signals([{"text": text} for text in texts], "embedding")["embedding"]


def sent(server) -> list[str]:
    return [text for body in server.bodies for text in body["input"]]


def some(n) -> list[str]:
    return [f"text {i}" for i in range(n)]


def expected(texts) -> np.ndarray:
    return np.stack([vector_of(text) for text in texts])


# -- what it gives ------------------------------------------------------------------------------------------------


def test_vectors_come_back_in_order_with_each_text_sent_once(server):
    texts = [*some(70), "text 3", "text 69", "text 3"]
    model = teacher(batch=16, concurrency=3)
    vectors = embed(model, texts)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected(texts))
    assert sorted(sent(server)) == sorted(some(70))
    assert (model.requests, model.texts) == (5, 70)
    assert server.keys == {f"Bearer {KEY}"} and server.paths == {"/v1/embeddings"}
    assert all(body["model"] == "toy" and body["encoding_format"] == "float" for body in server.bodies)


def test_answers_are_put_in_order_by_index(server):
    server.always = answering(lambda data: data.reverse())
    np.testing.assert_array_equal(embed(teacher(batch=7), some(20)), expected(some(20)))


def test_many_requests_are_in_flight_and_never_more_than_allowed(server):
    server.delay = 0.05
    embed(teacher(batch=1, concurrency=6), some(30))
    assert 1 < server.most <= 6


def test_threads_that_share_a_teacher_share_its_limit(server):
    server.delay = 0.05
    model = teacher(batch=2, concurrency=3)
    threads = [threading.Thread(target=embed, args=(model, some(8))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most == 3 and model.texts == 32


def test_facts_are_measured_once_for_all_processes_to_come(server):
    first = teacher()
    assert (first.width, first.normalised) == (WIDTH, True)
    assert first.layout("embedding") == {"embedding": (WIDTH,)}
    assert sent(server) == list(PROBES)
    again = teacher(prompts={"query": "search: "})
    assert (again.width, again.normalised, again.requests) == (WIDTH, True, 0)
    assert (again.prompts, again.max_length, again.cutter, again.module) == ({"query": "search: "}, None, None, None)


def test_vectors_of_other_lengths_than_one_are_noticed(server):
    server.always = answering(lambda data: data[3].update(embedding=[2.0] + [0.0] * (WIDTH - 1)))
    assert not teacher().normalised


def test_dimensions_are_asked_for_and_checked(server):
    model = teacher(dimensions=4)
    np.testing.assert_array_equal(embed(model, ["a"]), expected(["a"])[:, :4])
    server.always = lambda handler, body: handler.answer(200, {"data": good({"input": body["input"]})})
    with pytest.raises(TeacherError, match="8 dimensions for text 1 .* expected 4"):
        embed(teacher(dimensions=4), ["b"])


def test_no_rows_are_no_request(server):
    model = teacher()
    assert model.width and embed(model, []).shape == (0, WIDTH) and model.requests == 1


def test_identity_is_what_decides_the_vectors(server, monkeypatch):
    plain = teacher().identity
    assert plain == {"kind": "openai", "model": "toy", "base_url": server.url, "dimensions": None, "revision": None}
    assert teacher(batch=3, concurrency=2, retries=1, timeout=9, prompts={"query": "q: "}).identity == plain
    assert teacher(base_url=server.url).identity == plain
    assert teacher(dimensions=4).identity != plain != teacher(revision="may").identity
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert teacher().identity["base_url"] == "https://api.openai.com/v1"


# -- what is tried again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [failing(500), failing(503), failing(429), failing(408), cut, lambda h, b: h.answer(200, b'{"data": [{"ind')],
    ids=["500", "503", "429", "408", "cut", "half JSON"],
)
def test_passing_faults_are_survived(server, fault):
    server.faults = [fault, fault]
    model = teacher(batch=4, concurrency=2)
    np.testing.assert_array_equal(embed(model, some(12)), expected(some(12)))
    assert model.requests == 5 and model.texts == 20


def test_a_timeout_is_tried_again(server):
    server.faults = [slow(0.5)]
    np.testing.assert_array_equal(embed(teacher(timeout=0.15), ["a"]), expected(["a"]))
    assert len(server.bodies) == 2


def test_retry_after_holds_for_all_threads(server):
    times = []

    def timed(handler, body):
        times.append(time.monotonic())
        time.sleep(0.02)

    def limited(handler, body):
        times.append(time.monotonic())
        return failing(429, Retry_After="0.5")(handler, body)

    server.faults, server.always = [timed, timed, timed, limited], timed
    np.testing.assert_array_equal(embed(teacher(batch=1, concurrency=3), some(30)), expected(some(30)))
    after = [t - times[3] for t in times[4:]]
    assert len(after) == 27 and not [t for t in after if 0.1 < t < 0.45]  # but for those in flight then
    assert max(after) > 0.5


def test_retry_after_may_be_a_date_and_an_absurd_one_ends_the_run(server):
    server.always = failing(429, Retry_After=format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True))
    with pytest.raises(HubError, match="429 Too Many Requests") as error:
        embed(teacher(), ["a"])
    assert len(server.bodies) == 1 and "tried again in 7" in error.value.hint
    server.faults, server.always = [failing(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")], None
    embed(teacher(), ["a"])


# -- what is not --------------------------------------------------------------------------------------------------


def test_a_server_that_stays_broken_is_the_hubs_fault(server):
    server.always = failing(500, "internal error")
    with pytest.raises(HubError) as error:
        embed(teacher(retries=2), some(3))
    text = f"{error.value} {error.value.hint}"
    assert len(server.bodies) == 3 and error.value.exit_code == 4
    assert f"embedding 3 texts with openai:toy at 127.0.0.1:{server.server_port}" in text
    assert "500 Internal Server Error (internal error), after 3 tries" in text and "later may help" in text


def test_a_server_that_is_not_there(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        model = teacher(base_url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", retries=1)
        with pytest.raises(HubError, match="refused.*after 2 tries"):
            embed(model, ["a"])


def test_a_server_that_is_too_slow(server):
    server.always = slow(0.3)
    with pytest.raises(HubError, match=r"no answer within 0\.05 s, after 2 tries"):
        embed(teacher(timeout=0.05, retries=1), ["a"])


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (failing(401), "OPENAI_API_KEY"),
        (failing(403), "OPENAI_API_KEY"),
        (failing(404), "base_url"),
        (failing(402), "credit"),
        (failing(429, code="insufficient_quota"), "credit"),
        (failing(301, Location="http://elsewhere.example/"), "does not help"),
    ],
    ids=["401", "403", "404", "402", "quota", "301"],
)
def test_what_retrying_does_not_help_is_tried_once(server, fault, hint):
    server.always = fault
    with pytest.raises(HubError) as error:
        embed(teacher(), ["a"])
    assert len(server.bodies) == 1 and hint in error.value.hint


def test_one_failure_stops_the_others(server):
    server.faults = [failing(401)]
    server.always = failing(429, Retry_After="200")
    began = time.monotonic()
    with pytest.raises(HubError, match="401"):
        embed(teacher(batch=1, concurrency=4), some(100))
    assert time.monotonic() - began < 5 and len(server.bodies) <= 8


def test_a_refused_text_is_found_and_named(server):
    def too_long(handler, body):
        if any(len(text) > 100 for text in body["input"]):
            return handler.answer(400, {"error": {"message": f"maximum context length is 100, key {KEY}"}})

    server.always = too_long
    texts = [*some(10), "word " * 30, *some(3)]
    with pytest.raises(TeacherError) as error:
        embed(teacher(batch=64), texts)
    message = str(error.value)
    assert "text 11 ('word word" in message and "150 characters" in message and "maximum context length" in message
    assert KEY not in message and "max_length" in error.value.hint


def test_a_server_that_takes_fewer_texts_at_once(server):
    server.always = lambda handler, body: (
        failing(413, "batch too large")(handler, body) if len(body["input"]) > 5 else None
    )
    np.testing.assert_array_equal(embed(teacher(batch=16), some(40)), expected(some(40)))


# -- wrong answers ------------------------------------------------------------------------------------------------


WRONG = {
    "fewer": (answering(lambda data: data.pop() and None), "4 vectors for 5 texts"),
    "no index": (answering(lambda data: data[2].pop("index") and None), "indices are not 0 to 4"),
    "index twice": (answering(lambda data: data[2].update(index=1)), "indices are not 0 to 4"),
    "index outside": (answering(lambda data: data[2].update(index=5)), "indices are not 0 to 4"),
    "no vector": (answering(lambda data: data[2].pop("embedding") and None), "no list of numbers for text 8"),
    "empty vector": (answering(lambda data: data[2].update(embedding=[])), "no list of numbers for text 8"),
    "null": (answering(lambda data: data[2]["embedding"].__setitem__(1, None)), "no list of numbers for text 8"),
    "base64": (answering(lambda data: data[2].update(embedding="AACAPw==")), "no list of numbers for text 8"),
    "nan": (answering(lambda data: data[2]["embedding"].__setitem__(1, float("nan"))), "NaN .* for text 8"),
    "overflow": (answering(lambda data: data[2]["embedding"].__setitem__(1, 1e39)), "infinite .* for text 8"),
    "huge": (answering(lambda data: data[2]["embedding"].__setitem__(1, 10**400)), "infinite .* for text 8"),
    "narrow": (answering(lambda data: data[2]["embedding"].pop() and None), "7 dimensions for text 8 .* expected 8"),
    "no data": (
        answering(lambda data: {"error": {"message": f"no such model {KEY}"}}),
        "no list 'data'.*no such model",
    ),
    "a list": (answering(lambda data: [1, 2]), "no list 'data'"),
    "page": (lambda h, b: h.answer(200, b"<html>Log in</html>"), r"not JSON \(an HTML page\)"),
    "nested": (lambda h, b: h.answer(200, b"[" * 100_000), "not JSON"),
    "half": (lambda h, b: h.answer(200, b'{"data": [{"ind'), "not JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_name_batch_and_row(server, name):
    fault, message = WRONG[name]
    # The first batch is good, the second is not: texts are counted over the whole call.
    server.always = lambda handler, body: fault(handler, body) if "text 5" in body["input"] else None
    with pytest.raises(
        TeacherError, match="texts 6 to 10.*" + message if name not in ("page", "half", "nested") else message
    ) as error:
        embed(teacher(batch=5, retries=1), some(10))
    assert "texts 6 to 10" in str(error.value) and KEY not in str(error.value)
    assert len(server.bodies) == (3 if name in ("half", "nested") else 2)  # what may have been cut is tried again


def test_another_width_than_before(server):
    model = teacher()
    embed(model, ["a"])
    server.always = answering(lambda data: data[0].update(embedding=[1.0, 0.0]))
    with pytest.raises(TeacherError, match="2 dimensions .* expected 8"):
        embed(model, ["b"])


def test_empty_texts_are_refused_before_anything_is_sent(server):
    with pytest.raises(DataError, match="text 2 of the 3") as error:
        embed(teacher(), ["a", " \n", ""])
    assert error.value.rows == [2, 3] and not server.bodies


def test_only_embeddings(server):
    with pytest.raises(CompatibilityError, match="not 'logits'"):
        teacher().signals([{"text": "a"}], "logits")
    with pytest.raises(UsageError, match="name of a model"):
        OpenAI(" ")


# -- keys ---------------------------------------------------------------------------------------------------------


def test_the_key_never_shows(server, caplog):
    caplog.set_level(logging.DEBUG)
    echoes = [
        failing(401, f"Incorrect API key provided: {KEY}."),
        failing(401, "Incorrect API key provided: sk-te*********ffee."),
        failing(500, f"\x1b[31mupstream said: Bearer {KEY}\nagain"),
        answering(lambda data: {"error": f"bad key {KEY}"}),
        lambda handler, body: handler.answer(403, f"<html>{KEY}</html>".encode()),
        lambda handler, body: handler.answer(418, f"your key is {KEY}".encode()),
        cut,
    ]
    for echo in echoes:
        server.always = echo
        model = teacher(retries=1)
        with pytest.raises((HubError, TeacherError)) as error:
            embed(model, ["a"])
        shown = json.dumps(error.value.to_dict()) + repr(error.value.__cause__) + str(vars(model))
        assert KEY not in shown and "ffee" not in shown and "\\u001b" not in shown
    assert "try 2 of 2" in caplog.text and KEY not in caplog.text and "ffee" not in caplog.text
    model = teacher()
    assert KEY not in json.dumps([model.identity, model.provenance, model.options.model_dump()])


def test_a_key_is_read_from_the_named_variable_when_it_is_needed(server, monkeypatch):
    model = teacher(base_url=server.url, api_key_env="MY_API_KEY")
    with pytest.raises(HubError, match="MY_API_KEY is not set"):
        embed(model, ["a"])
    monkeypatch.setenv("MY_API_KEY", "another\n")
    embed(model, ["a"])
    assert server.keys == {"Bearer another"}
    monkeypatch.setenv("MY_API_KEY", "two\nlines")
    with pytest.raises(HubError) as error:
        embed(model, ["b"])
    assert "MY_API_KEY" in str(error.value) and "lines" not in str(error.value).replace("line ends", "")


def test_a_server_named_by_a_recipe_gets_no_key_unasked(server):
    embed(teacher(base_url=server.url), ["a"])
    assert server.keys == {None}
    server.always = failing(401)
    with pytest.raises(HubError) as error:
        embed(teacher(base_url=server.url), ["b"])
    assert "api_key_env" in error.value.hint


def test_openai_itself_wants_a_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(HubError, match="OPENAI_API_KEY is not set"):
        embed(teacher(), ["a"])


@pytest.mark.parametrize(
    "options",
    [
        {"api_key_env": KEY},
        {"api_key_env": "HF_TOKEN"},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"base_url": f"{KEY}@host/v1"},
        {"base_url": f"ftp://{KEY}"},
        {"base_url": f"http://host:{KEY}/v1"},
    ],
)
def test_options_that_hold_a_secret_are_refused_without_repeating_it(options):
    with pytest.raises(UsageError) as error:
        OpenAI.Options(**options)
    assert next(iter(options)) in str(error.value)
    assert KEY not in f"{error.value} {error.value.hint} {error.value.__cause__}"


# -- with the store -----------------------------------------------------------------------------------------------


def fill(n, batch, concurrency):
    """Label `some(n)` into the store; gives (store's report, teacher, vectors or None when nothing reads them)."""
    model = teacher(batch=batch, concurrency=concurrency, retries=1)
    key = {"teacher": dict(model.identity), "signal": "embedding"}
    fields = [Field("embedding", "float32", (WIDTH,))]
    store = SignalStore.open(home() / "signals", key, fields, group_rows=model.group_rows)
    texts = some(n)
    keys = row_keys(text.encode() for text in texts)
    report = store.fill(
        keys,
        [len(text) for text in texts],
        lambda rows: model.signals([{"text": texts[i]} for i in rows], "embedding"),
        workers=model.concurrent_groups,
    )
    return report, model, store.read(store.locate(keys))["embedding"]


def test_killed_while_labelling_it_asks_only_for_the_rest(server):
    n, batch, concurrency = 120, 4, 3
    server.delay = 0.04
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['fill'](*map(int, sys.argv[2:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, __file__, *map(str, (n, batch, concurrency))], stderr=subprocess.PIPE, text=True
    )
    while len(server.answered) < 12:
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert len(sent(server)) < n
    server.delay = 0.01
    report, model, vectors = fill(n, batch, concurrency)
    assert server.most == concurrency and 0 < report.computed == model.texts < n
    # Every request that was lost was in flight, or just answered and not yet committed, when the kill came.
    assert n <= len(sent(server)) <= n + concurrency * batch
    np.testing.assert_array_equal(vectors, expected(some(n)))
    report, model, _ = fill(n, batch, concurrency)
    assert (report.computed, report.calls, model.requests) == (0, 0, 0)


def test_what_was_answered_before_a_failure_is_kept(server):
    def fails_on_one(handler, body):
        return failing(500)(handler, body) if "text 17" in body["input"] else None

    server.delay, server.always = 0.01, fails_on_one
    with pytest.raises(HubError, match="500"):
        fill(60, 3, 4)
    paid = sum(len(body["input"]) for body in server.answered)
    server.always, server.bodies[:] = None, []
    report, model, vectors = fill(60, 3, 4)
    assert 0 < paid < 60 and report.computed == model.texts == len(sent(server)) == 60 - paid
    np.testing.assert_array_equal(vectors, expected(some(60)))
