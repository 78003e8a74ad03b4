"""A hub that is broken or means harm: what it says is refused or survived, the target is untouched, nothing is run.

Also the tokens: a test at the end of the session (`conftest.py`) looks for them in all output and in every file.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from email.utils import format_datetime
from pathlib import Path

import pytest
from fake_hub import TOKEN, Answer, git_sha1
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pull import contents, student

import kdhub
from kdhub.errors import HubError, KdhubError, NotFoundError, UnreachableError, UntrustedError
from kdhub.evaluation.card_check import check_card
from kdhub.hub import client, manifest, tokens
from kdhub.hub.files import check_entries, kind_problem, name_problem, parse_commit, parse_tree
from kdhub.hub.trust import split_card
from kdhub.plain_yaml import plain_yaml
from kdhub.verbs.search import parse_row


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


@pytest.fixture
def refused(hub, tmp_path):
    """Pull what the hub offers; the error, after a look at what that left."""

    def pull(*kinds, **options) -> KdhubError:
        before = contents(tmp_path)
        with pytest.raises(kinds or UntrustedError) as error:
            kdhub.pull("me/toy", to=tmp_path / "there" / "student", **options)
        left = contents(tmp_path)
        assert not (tmp_path / "there" / "student").exists()
        strays = {n for n in left.keys() - before.keys() if not n.startswith("there/.student.")}
        assert not strays, "nothing outside the staging folder"
        assert error.value.exit_code == 4 and TOKEN not in str(error.value) + str(error.value.hint)
        return error.value

    return pull


def rows(*changed: dict) -> list[dict]:
    """A tree of one good file and one that is as told."""
    good = {"type": "file", "path": "config.json", "size": 2, "oid": git_sha1(b"{}")}
    return [good, *({**good, "path": f"{i}.json", **row} for i, row in enumerate(changed))]


def answers(hub, part: str, body, status: int = 200, **headers: str) -> None:
    def tamper(request):
        if part in request.path:
            raise Answer(status, body, **headers)

    hub.tamper = tamper


# -- what it claims to have -----------------------------------------------------------------------------------

NAMES = [
    "../x.json", "a/../../x.json", "/etc/x.json", "C:\\x.json", "a\\b.json", "a//b.json", "./x.json", ".git/hooks/x",
    ".GIT/config.json", "sub/.git/x.json", ".cache/huggingface/x.json", ".ssh/x.json", ".hidden.json", "a\x00b.json",
    "a\nb.json", "a\u202eb.json", "a/\u200b.git/x.json", "con: x.json", "a /b.json", "b./c.json", "x" * 300, "",
]  # fmt: skip
TYPES = "model.bin weights.PT a/b.pkl x.joblib model.py modeling_x.PY run.sh lib.so x x.exe".split()


@pytest.mark.parametrize("name", NAMES)
def test_names(hub, refused, name):
    hub.put("me/toy", student())
    answers(hub, "/tree/", rows({"path": name}))
    error = refused()
    assert repr(name)[:100] in error.message and "nothing was fetched" in error.hint and len(error.message) < 500
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize("name", TYPES)
def test_kinds_of_files(hub, refused, name):
    hub.put("me/toy", {**student(), name: b"x"})
    assert any(word in refused().message for word in ("pickle", "is code", "of a type that no student needs"))


@pytest.mark.parametrize(
    "one, other",
    [("A.json", "a.json"), ("\u00e9.json", "e\u0301.json"), ("a.json", "a.json/b.json"), ("x.json", "x.json")],
)
def test_names_that_collide(hub, refused, one, other):
    hub.put("me/toy", student())
    answers(hub, "/tree/", rows({"path": one}, {"path": other}))
    assert "one name to some file systems" in (told := refused().message) or "a file and a folder" in told


@pytest.mark.parametrize("kind", ["symlink", "commit", None, 7])
def test_links_and_other_things(hub, refused, kind):
    hub.put("me/toy", student())
    answers(hub, "/tree/", rows({"type": kind}))
    assert "not a file" in refused().message


def test_sizes(hub, refused):
    hub.put("me/toy", student())
    large = {"path": "model.safetensors", "size": 100 * 10**9, "lfs": {"oid": "0" * 64, "size": 100 * 10**9}}
    answers(hub, "/tree/", rows(large))
    error = refused()
    assert "declares 100,000,000,002 bytes, more than 50,000,000,000" in error.message and "--max-size" in error.hint
    scene = {"path": "scene.ply", "size": 5 * 10**9, "lfs": {"oid": "0" * 64, "size": 5 * 10**9}}
    answers(hub, "/tree/", rows(scene))
    assert "'scene.ply' has 5,000,000,000 bytes, and a .ply file may have 4,294,967,296" in refused().message
    answers(hub, "/tree/", rows({"path": "model.safetensors", "size": 10**6}))
    assert "more than 1,000" in refused(max_size="1kB").message
    answers(hub, "/tree/", rows(*({} for _ in range(10_001))))
    assert "more than 10,000 files" in refused().message


@pytest.mark.parametrize(
    "row", [{"size": -1}, {"size": "2"}, {"size": True}, {"oid": "x"}, {"oid": None}, {"lfs": {"oid": "0" * 40}}]
)
def test_rows_without_size_or_digest(hub, refused, row):
    hub.put("me/toy", student())
    answers(hub, "/tree/", rows(row))
    assert "gives" in refused(HubError).message


# -- what it sends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_right_length_and_wrong_bytes(hub, refused, name):
    hub.put("me/toy", student())

    def tamper(request):
        if request.path.endswith(name):
            request.send_file(b"x" * len(student()[name]), {})

    hub.tamper = tamper
    error = refused()
    assert f"fetching {name}" in error.message and "the bytes do not match the digest" in error.message
    assert "nothing was put in place" in error.hint


def test_files_that_the_manifest_does_not_name(hub, refused):
    files = student()
    hub.put("me/toy", {**files, "config.json": b'{"a": 1}'})
    assert "config.json is not the file that was published" in refused().message
    hub.put("me/toy", {**files, "extra.json": b"{}"})
    assert "extra.json is not in kdhub.json" in refused().message
    hub.put("me/toy", {n: c for n, c in files.items() if n != "config.json"})
    assert "config.json is missing" in refused().message
    for broken in (
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"schema": 2}',
        b'{"schema": 1, "task": "x", "kind": "model"}',
        b"\xff",
    ):
        hub.put("me/toy", {**files, "kdhub.json": broken})
        assert "kdhub.json" in refused().message


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b'{"auto_map": {"AutoModel": "evil.Model"}}'),
        ("1_Pooling/config.json", b'{"auto_map": {"AutoModel": "evil.Model"}}'),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
        ("modules.json", b'[{"type": "os.system", "path": "", "name": "0"}]'),
        ("modules.json", b'[{"type": "sentence_transformers.models.Pooling", "path": "../../x"}]'),
        ("modules.json", b"{}"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"not json"),
    ],
)
def test_configurations_that_ask_for_code(hub, refused, name, content):
    hub.put("me/toy", student(**{name: content}))
    assert Path(name).name in refused().message


def test_more_bytes_than_declared(hub, refused):
    hub.put("me/toy", student())

    def tamper(request):
        if request.path.endswith("config.json"):
            request.answer(200, b"{}" * 1000, {})
            raise Answer

    hub.tamper = tamper
    assert "sends more than the 2 bytes it declared" in refused().message


def test_another_commit_than_was_asked_for(hub, tmp_path):
    commit = hub.put("me/toy", student())
    answers(hub, "/revision/", {"id": "me/toy", "sha": "1" * 40})
    with pytest.raises(UntrustedError, match="gives commit 1111"):
        kdhub.pull(f"me/toy@{commit}", to=tmp_path / "there")


# -- how it behaves -------------------------------------------------------------------------------------------


def sequence(hub, part: str, faults: list) -> list[float]:
    """Answer with each fault in turn, then honestly. Returns the times of these requests."""
    times: list[float] = []

    def tamper(request):
        if part in request.path:
            times.append(time.monotonic())
            if faults:
                fault = faults.pop(0)
                request.cut() if fault == "cut" else None
                raise fault

    hub.tamper = tamper
    return times


@pytest.mark.parametrize("part", ["/api/models/me/toy", "/tree/", "config.json"])
def test_faults_that_pass_are_survived(hub, tmp_path, part):
    hub.put("me/toy", student())
    sequence(hub, part, [Answer(500), "cut", Answer(429, Retry_After="0"), Answer(503)])
    assert contents(kdhub.pull("me/toy", to=tmp_path / "there").folder) == student()


@pytest.mark.parametrize("part", ["/api/models/me/toy", "/tree/", "config.json"])
@pytest.mark.parametrize("fault, said", [(Answer(500), "answered 500"), (Answer(429), "answered 429")])
def test_faults_that_stay_are_told(hub, refused, part, fault, said):
    hub.put("me/toy", student())
    times = sequence(hub, part, [fault] * 99)
    error = refused(HubError)
    assert said in error.message and hub.endpoint in error.message and error.hint == "try again later"
    assert len(times) == client.TRIES


def test_retry_after_is_heeded(hub, tmp_path, monkeypatch):
    from datetime import UTC, datetime, timedelta

    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.put("me/toy", student())
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    sequence(hub, "/tree/", [Answer(429, Retry_After=v) for v in ("7", date, "soon", "-3")])
    kdhub.pull("me/toy", to=tmp_path / "there")
    assert waits[0] == 7 and 25 < waits[1] <= 30 and waits[2:] == [client.FIRST_WAIT * 4, 0]
    sequence(hub, "/tree/", [Answer(429, Retry_After="86400")])
    with pytest.raises(HubError) as error:
        kdhub.pull("me/toy", to=tmp_path / "new")
    assert error.value.hint == "the hub asks to wait 86400 s; try again then"


@pytest.mark.parametrize("where", ["head of the answer", "body"])
def test_slow_loris(monkeypatch, hub, refused, where):
    """A byte now and then keeps every socket's time limit from running out."""
    monkeypatch.setattr(client, "HEADERS_IN", 0.3)
    monkeypatch.setattr(client, "TRIES", 2)
    hub.put("me/toy", student())
    done = threading.Event()

    def tamper(request):
        if request.path.endswith("config.json"):
            size = 2 if where == "head of the answer" else 10**6
            head = b"HTTP/1.1 200 OK\r\nX-Slow: " if where == "head of the answer" else b"HTTP/1.1 200 OK\r\n"
            request.wfile.write(head + (b"" if where == "head of the answer" else b"Content-Length: %d\r\n\r\n" % size))
            try:
                while not done.wait(0.02):
                    request.wfile.write(b"x")
                    request.wfile.flush()
            except OSError:
                pass
            request.cut()
        if "/tree/" in request.path and where == "body":
            raise Answer(body=rows({"path": "config.json", "size": 10**6})[1:])

    hub.tamper = tamper
    error = refused(HubError)
    done.set()
    assert "did not answer within 0 s" in error.message or "bytes in 0 s" in error.message


@pytest.mark.parametrize(
    "status, code, said",
    [
        (404, "RepoNotFound", "no such repository on {}"),
        (404, "RevisionNotFound", "no such revision on {}"),
        (404, "", "not found on {} (404)"),
        (401, "", "not found on {} (401)"),
        (403, "GatedRepo", "is gated on {}"),
        (403, "", "{} refused the token (403)"),
        (418, "", "{} answered 418"),
    ],
)
def test_refusals_with_and_without_a_code(hub, refused, status, code, said):
    answers(hub, "/api/", {}, status, X_Error_Code=code)
    error = refused(HubError)
    assert said.format(hub.endpoint) in error.message and "me/toy" in error.message and error.hint
    assert isinstance(error, NotFoundError) == (status == 404 or (status, code) == (401, ""))


def test_a_bad_token_is_told_apart_from_a_missing_repository(hub, refused):
    answers(hub, "/api/", {}, 401, X_Error_Message="Invalid credentials in Authorization header")
    assert "refused the token" in refused(HubError).message


def test_a_token_goes_to_the_hub_that_it_is_for(hub, refused, monkeypatch):
    sent = []

    def tamper(request):
        sent.append(request.headers.get("Authorization"))
        raise Answer(401, {})

    hub.tamper = tamper
    refused(HubError)
    assert sent and all(TOKEN in (told or "") for told in sent)
    monkeypatch.setattr(constants, "ENDPOINT", "https://mine.example")
    sent.clear()
    error = refused(NotFoundError, endpoint=hub.endpoint)
    assert sent and not any(sent) and "your token is for https://mine.example and was not sent" in error.hint


@pytest.mark.parametrize(
    "own, asked, kept",
    [
        ("https://huggingface.co", None, ""),
        ("https://huggingface.co", "https://HuggingFace.co:443/", ""),
        ("https://huggingface.co", "http://huggingface.co", "HF_ENDPOINT=http://huggingface.co"),
        ("https://huggingface.co", "https://huggingface.co.evil.example", "was not sent"),
        ("http://127.0.0.1:8787", "http://127.0.0.1:8787/", ""),
        ("http://127.0.0.1:8787", "http://127.0.0.1:8788", "was not sent"),
        ("http://[::1]:8787", None, ""),
        ("http://hub.example", None, "is not https"),
        ("http://127.0.0.1.evil.example", None, "is not https"),
        ("https://me:secret@hub.example", "https://other.example", "is for https://hub.example and"),
    ],
)
def test_whose_token_it_is(hub, monkeypatch, own, asked, kept):
    monkeypatch.setattr(constants, "ENDPOINT", own)
    assert kept in tokens.withheld(asked) and bool(tokens.withheld(asked)) == bool(kept)
    assert tokens.token_for(asked) == (False if kept else TOKEN)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[" * 100_000, b'{"sha": 1}', b'{"sha": "main"}', b"[1]", b"null", b"7"]
)
def test_answers_that_are_none(hub, refused, body):
    answers(hub, "/api/models/me/toy", body)
    assert "--endpoint" in refused(HubError).hint


def test_an_answer_without_end(hub, refused, monkeypatch):
    monkeypatch.setattr(client, "LARGEST_ANSWER", 10_000)
    hub.put("me/toy", student())
    answers(hub, "/tree/", b"[" + b" " * 20_000 + b"]")
    assert "is larger than" in refused(HubError).message
    answers(hub, "/tree/", rows(), Link=f'<{hub.endpoint}/api/models/me/toy/tree/x?page=2>; rel="next"')
    assert "one name" in refused().message, "the same page for ever: a page is asked for once"
    answers(hub, "/tree/", rows(), Link='<https://elsewhere.example/next>; rel="next"')
    assert "next page is on another host" in refused().message


def test_nobody_answers(refused, monkeypatch, hub):
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        error = refused(UnreachableError, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert "no connection to" in error.message and error.hint == "try again later"


def test_the_staging_folder_is_not_trusted_either(hub, tmp_path):
    """What somebody left in its place: a link, foreign files, a half of another file."""
    commit = hub.put("me/toy", student())
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "config.json").write_text("precious")
    staging = tmp_path / f".there.{commit[:12]}.pull"
    staging.mkdir()
    (staging / "config.json").symlink_to(tmp_path / "victim" / "config.json")
    (staging / "evil.py").write_text("import os")
    (staging / "model.safetensors").write_bytes(b"y" * 100)
    (tmp_path / "victim" / "linked").write_text("precious")
    os.link(tmp_path / "victim" / "linked", staging / "kdhub.json")
    with pytest.raises(UntrustedError, match="the bytes do not match"):
        kdhub.pull("me/toy", to=tmp_path / "there")
    kdhub.pull("me/toy", to=tmp_path / "there")
    assert contents(tmp_path / "there") == student()
    assert all((tmp_path / "victim" / name).read_text() == "precious" for name in ("config.json", "linked"))
    staging.symlink_to(tmp_path / "victim")
    kdhub.pull("me/toy", to=tmp_path / "there2")
    assert {p.name for p in (tmp_path / "victim").iterdir()} == {"config.json", "linked"}


# -- cards ----------------------------------------------------------------------------------------------------

BOMB = "---\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    "card",
    [
        BOMB + "---\n# x\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "---\na: !!python/object/apply:os.system ['true']\n---\n",
        "---\n" + "a: b\n" * 300_000 + "---\n",
        "no front matter",
        "---\n- a\n---\n",
        "---\na: \x00\n---\n",
        "---\na: 1\na: 2\n---\n",
    ],
)
def test_front_matter_that_means_harm(hub, tmp_path, card):
    with pytest.raises(ValueError):
        split_card(card)
    assert len(check_card(card)) == 1
    hub.put("me/toy", {**student(), "README.md": card.encode()})
    kdhub.pull("me/toy", to=tmp_path / "there")  # pulling reads no card


def test_html_in_a_card_is_named():
    card = "---\ntags: [kdhub]\n---\n# x\n\n<script>alert(1)</script> [x](javascript:alert)\n"
    told = " ".join(check_card(card))
    assert "the text holds raw HTML: <script>" in told and "a link leads to 'javascript:alert'" in told


# -- anything at all ------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
digest = st.sampled_from(["0" * 40, "a" * 64, "", "x"]) | json_values
names = st.text(max_size=30) | st.sampled_from([*NAMES, *TYPES, "a.json", "a/b.json", "A.json"])
tree_rows = st.fixed_dictionaries(
    {"path": names | json_values},
    optional={
        "type": st.sampled_from(["file", "directory", "symlink"]) | json_values,
        "size": st.integers() | json_values,
        "oid": digest,
        "lfs": json_values | st.fixed_dictionaries({"oid": digest, "size": st.integers() | json_values}),
    },
)
listed = st.fixed_dictionaries({}, optional={"size": st.integers() | json_values, "sha256": digest})
manifests = st.fixed_dictionaries(
    {"schema": st.just(1) | json_values},
    optional={
        "task": json_values,
        "kind": st.sampled_from(["model", "dataset"]) | json_values,
        "files": json_values
        | st.dictionaries(
            names, st.fixed_dictionaries({}, optional={"size": json_values, "sha256": digest}), max_size=3
        ),
    },
)
search_rows = st.fixed_dictionaries(
    {"id": st.just("a/b") | json_values, "tags": st.just(["kdhub", "kdhub-task:x"]) | json_values},
    optional={
        "cardData": json_values
        | st.fixed_dictionaries(
            {},
            optional={"kdhub": json_values, "tags": json_values, "model-index": json_values, "license": json_values},
        ),
        "sha": json_values,
        "model-index": json_values
        | st.lists(st.fixed_dictionaries({"results": st.lists(st.fixed_dictionaries({"metrics": json_values}))})),
    },
)
front_matter = st.text(alphabet="ab:-[]{}&*!|>'\"#\n \t,?%@`0.", max_size=80) | st.text(max_size=80)


def tree(value) -> None:
    entries = parse_tree(value, "x")
    check_entries(entries, "x", most_bytes=10**9)
    for entry in entries:
        parts = Path("/a/folder", entry.path).parts
        assert ".." not in parts and parts[:3] == ("/", "a", "folder") and entry.size >= 0
        assert name_problem(entry.path) is kind_problem(entry.path) is None


def of_manifest(value) -> None:
    found = manifest.parse(json.dumps(value).encode(), "x")
    assert found.task and found.kind in ("model", "dataset") and found.files
    assert not any(name_problem(name) for name in found.files)
    assert found.problems({}) == [f"{name} is missing" for name in sorted(found.files)]


def of_card(value) -> None:
    check_card(f"---\n{value}\n---\n# x\n\ny\n")
    plain_yaml(value, stranger=True)


def of_search(value) -> None:
    found = parse_row(value, "model", ["kdhub"])
    assert found is None or json.dumps(found.to_dict(), allow_nan=False)


FUZZED = {
    "tree": (tree, st.lists(tree_rows, max_size=4) | json_values),
    "manifest": (of_manifest, manifests | json_values),
    "card": (of_card, front_matter),
    "search": (of_search, search_rows | json_values),
    "commit": (lambda value: parse_commit(value, "x"), json_values | st.fixed_dictionaries({"sha": json_values})),
}


@pytest.mark.parametrize("many", [200, pytest.param(25_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", FUZZED)
def test_anything_a_hub_may_say_is_read_or_refused(what, many):
    read, values = FUZZED[what]

    refusals = ValueError if what == "card" else HubError

    @settings(max_examples=many, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(values)
    def run(value):
        with suppress(refusals):
            read(value)

    run()
