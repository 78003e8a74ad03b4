"""The embedded hub and those who mean it harm: what is private stays so, and nobody takes it from the rest."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import sqlite3
import threading

import anyio
import pytest
from hub import online, served  # noqa: F401
from test_hub_server import CARD, api, ask, commit, file, repo  # noqa: F401

import kdhub
from kdhub.hub.server import app as server
from kdhub.hub.server.access import Access
from kdhub.hub.server.app import Hub
from kdhub.hub.server.connections import timed_protocol
from kdhub.hub.server.rules import PATTERNS_LIMIT, Refused, is_lfs
from kdhub.hub.server.store import Change, Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "hub")


def test_what_was_under_way_for_a_deleted_repository_ends_up_in_no_other(store):
    secret = store.create("model", "me/x", private=True, author="me")
    change = Change("late", put={"secret.txt": store.put(b"secret")})
    store.delete(secret)
    public = store.create("model", "me/x", private=False, author="me")
    for late in (
        lambda: store.take(secret, "main", change, "me"),
        lambda: store.open_pull(secret, "late", "", "me"),
        lambda: store.add_ref(secret, "refs/tags/late", "0" * 40),
    ):
        with pytest.raises(Refused) as error:
            late()
        assert error.value.status == 404
    assert public.id != secret.id and set(store.commit_of(public, "main").files) == {".gitattributes"}


def test_a_commit_is_named_by_nothing_else(store):
    found = store.create("model", "me/x", private=False, author="me")
    first = store.resolve(found, "main")
    second = store.take(found, "main", Change("x", put={"a": store.put(b"a")}), "me")
    with pytest.raises(Refused, match="cannot be the name"):
        store.add_ref(found, f"refs/tags/{first}", second)
    with store.writing() as db:  # as an older hub took it
        db.execute("INSERT INTO refs VALUES (?, ?, ?)", (found.id, f"refs/tags/{first}", second))
    assert store.resolve(found, first) == first


@pytest.mark.parametrize("value", [".nan", ".inf", "1" + "0" * 30, '"\\uD800"'])
def test_no_card_ends_the_search_of_others(hub, api, repo, value):  # noqa: F811
    card = CARD.replace("license: mit", f"license: mit\nx: {value}")
    assert commit(hub, repo, file("README.md", card.encode()))[0] == 200
    for path in ("/api/models?cardData=true&full=true", f"/api/models/{repo}", "/", f"/{repo}"):
        status, _, body = ask(hub, "GET", path)
        assert status == 200, path
        if path.startswith("/api"):
            json.loads(body, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert commit(hub, repo, file("README.md", CARD.encode()))[0] == 200
    assert b'"license":"mit"' in ask(hub, "GET", f"/api/models/{repo}")[2]


def test_a_card_that_came_in_before_ends_nobody_s_search(store):
    store.create("model", "me/x", private=False, author="me")
    with store.writing() as db:
        db.execute("UPDATE repos SET card = ?", (json.dumps({"a": float("nan"), "b": ["\ud800"], "c": 10**400}),))
    (found,) = store.repos("model", private=True)
    assert json.dumps(found.card, allow_nan=False, ensure_ascii=False).encode()


def test_patterns_of_lfs_are_read_once_and_not_without_end():
    many = "\n".join(f"*{n}*a*a*a*b filter=lfs" for n in range(PATTERNS_LIMIT)) + "\n*.txt filter=lfs\n"
    assert not any(is_lfs("a" * 200 + ".txt", 10, b"x", many) for _ in range(50))
    assert is_lfs("a.txt", 10, b"x", many.partition("\n")[2])


def test_a_stranger_may_ask_for_little(hub, repo):  # noqa: F811
    yaml = {"content": "---\na: 1\n---\n"}
    assert ask(hub, "POST", "/api/validate-yaml", yaml, token=None)[0] == 401
    assert ask(hub, "POST", "/api/validate-yaml", yaml)[0] == 200
    path, much = f"/api/models/{repo}/paths-info/main", json.dumps({"paths": ["a" * server.STRANGER_LIMIT]}).encode()
    assert ask(hub, "POST", path, much, token=None)[0] == 413
    assert ask(hub, "POST", path, much)[0] == 200
    for paths, status in ((None, 200), (["a", 7, None], 200), (7, 400), ("README.md", 400), ({"a": 1}, 400)):
        assert ask(hub, "POST", path, {"paths": paths})[0] == status


@pytest.mark.parametrize("host, status", [("evil.example", 421), ("a b", 421), ("localhost:1", 200), ("[::1]:80", 200)])
def test_a_hub_of_this_machine_has_no_other_name(hub, host, status):
    assert ask(hub, "GET", "/api/models", token=None, Host=host)[0] == status


def test_a_name_with_a_zero_byte(hub, repo):  # noqa: F811
    for path in (f"/{repo}/resolve/main/a%00b", "/api/models/me/a%00b", f"/api/models/{repo}/tree/main/a%00"):
        assert ask(hub, "GET", path)[0] == 400
    assert commit(hub, repo, file("a\0b"))[0] == 400


def test_a_link_to_upload_ends_with_its_token(store):
    access, oid = Access(store), "0" * 64
    store.add_token("writer", "write")
    link = dict(part.split("=") for part in access.link(oid, 5, "writer").split("&"))
    given = [link[key] for key in ("size", "expires", "name", "signature")]
    assert access.check_link(oid, *given) == 5
    with pytest.raises(Refused, match="not issued"):
        access.check_link(oid, *given[:2], "other", given[3])
    store.remove_token("writer")
    with pytest.raises(Refused, match="revoked"):
        access.check_link(oid, *given)


def _answered(hub: Hub, body: bytes = b"", **scope) -> int:
    """The status that an application answers one request with."""
    told = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        told.append(message)

    whole = {
        "type": "http", "method": "POST", "path": "/", "query_string": b"", "scheme": "http", "headers": [], **scope,
    }  # fmt: skip
    anyio.run(hub, whole, receive, send)
    return next(message["status"] for message in told if "status" in message)


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left"), sqlite3.OperationalError("database or disk is full")]
)
def test_a_full_disk_is_a_sentence_and_leaves_nothing(store, monkeypatch, fault):
    token = store.add_token("writer", "write")

    def full(*args):
        raise fault

    monkeypatch.setattr("kdhub.hub.server.store.sync_folder", full)
    asked = json.dumps({"name": "me/x"}).encode()
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())]
    assert _answered(Hub(store), asked, path="/api/repos/create", headers=headers) == 507
    assert not store.repos("model", private=True) and not list(store.incoming.iterdir())


def test_a_body_that_hardly_comes(store, monkeypatch):
    monkeypatch.setattr(server, "PACE_OVER", 0.05)

    class Slow:
        async def stream(self):
            while True:
                await anyio.sleep(0.02)
                yield b"x"

    async def read():
        with anyio.fail_after(30), pytest.raises(Refused) as error:
            async for _ in server._chunks(Slow()):
                pass
        assert error.value.status == 408

    anyio.run(read)


def test_a_connection_without_a_request_is_closed(store):
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(Hub(store), lifespan="off", log_config=None, http=timed_protocol(0.3))
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: loc"):
            with socket.create_connection(listener.getsockname(), timeout=30) as half:
                half.sendall(begun)
                assert half.recv(1) == b"", "closed by the hub"
        whole = http.client.HTTPConnection(*listener.getsockname(), timeout=30)
        for _ in range(2):
            whole.request("GET", "/api/models", headers={"Host": "localhost"})
            assert whole.getresponse().read() == b"[]"
        whole.sock.sendall(b"GET / HT")
        assert whole.sock.recv(1) == b""
        whole.close()
    finally:
        running.should_exit = True
        thread.join(30)


def test_collecting_beside_writers(store, monkeypatch):
    """What is received while it looks is a blob by the time it gets there."""
    kept = store.put(b"kept")
    monkeypatch.setattr(type(store.blobs), "iterdir", lambda folder: iter([folder / "gone"]))
    store.collect(older=3600)
    assert store.has(kept.sha256, 4)


def test_a_list_without_end(hub, monkeypatch):
    from kdhub.hub import client

    monkeypatch.setattr(client, "MOST_PAGES", 3)
    reader = client.Hub(hub.endpoint)
    monkeypatch.setattr(reader, "json", lambda path, doing: ([{"type": "directory", "path": "a"}], f"{path}x"))
    with pytest.raises(kdhub.KdhubError, match="more than 3 pages"):
        reader.tree("me/x", "model", "0" * 40)
