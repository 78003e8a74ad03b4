"""Whatever a client sends to whichever route of the hub: no failure, nothing private, nothing that a browser runs."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import quote, urlencode

import anyio
import pytest
from hub_openapi import description
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdhub.hub.server.app import Hub
from kdhub.hub.server.store import Change, Store

PRIVATE = "private-marker-8531"
HTML = b"<script>alert(1)</script>"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLACES = {
    "kinds": ["models", "datasets"], "owner": ["me", "you", ".."], "name": ["open", "hidden", "none", "x.git"],
    "revision": ["main", "HEAD", "refs/pr/1", "v1", "0" * 40, "refs/heads/main"], "num": ["1", "0", "x", "9" * 30],
    "path": ["README.md", "a/b.svg", "a", "page.html", "big.bin", "../x", "a%00b"], "oid": ["0" * 64, "x"],
}  # fmt: skip


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy:
    """Mostly what a description says, else anything at all."""
    kinds: dict[str, st.SearchStrategy] = {
        "string": st.sampled_from(
            ["me/open", "me/hidden", "main", "true", "1", "README.md", "upload", "0" * 64, "open"]
        )
        | st.text(max_size=12),
        "boolean": st.booleans(),
        "integer": st.integers(),
    }
    if "enum" in schema:
        return st.sampled_from(schema["enum"]) | anything
    if schema["type"] == "array":
        return st.lists(of_schema(schema["items"]), max_size=3) | anything
    if schema["type"] == "object":
        properties = {name: of_schema(inner) for name, inner in schema.get("properties", {}).items()}
        return st.fixed_dictionaries({}, optional=properties) | anything
    return kinds[schema["type"]] | anything


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes, bytes, bytes, list[tuple[bytes, bytes]], str]:
    """Method, path, query, body, headers, and who asks."""
    path, methods = draw(st.sampled_from(sorted(description()["paths"].items())))
    method, operation = draw(st.sampled_from(sorted(methods.items())))
    query = []
    for one in operation["parameters"]:
        if one["in"] == "path":
            value = draw(st.sampled_from(PLACES[one["name"]]) | st.text(max_size=8))
            path = path.replace("{" + one["name"] + "}", quote(value.encode("utf-8", "replace"), safe=""))
        elif draw(st.booleans()):
            query.append((one["name"], str(draw(of_schema(one["schema"]))).encode("utf-8", "replace")))
    body = b""
    if "requestBody" in operation:
        given = draw(of_schema(operation["requestBody"]["content"]["application/json"]["schema"]))
        body = json.dumps(given).encode() if draw(st.integers(0, 9)) else draw(st.binary(max_size=40))
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if draw(st.integers(0, 4)) == 0:
        ranges = ["bytes=0-3", "bytes=-1", "bytes=9-", "bytes=x", "bytes=3-1", "lines=1-2", "bytes=0-0,2-3"]
        headers.append((b"range", draw(st.sampled_from(ranges)).encode()))
    who = draw(st.sampled_from(["nobody", "nobody", "reader", "owner", "forged"]))
    return method.upper(), path.encode(), urlencode(query).encode(), body, headers, who


def asked(hub: Hub, method: str, path: bytes, query: bytes, body: bytes, headers: list) -> tuple[int, dict, bytes]:
    told: list[dict[str, Any]] = []
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not pending:
            await anyio.sleep_forever()
        return pending.pop()

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    scope = {"type": "http", "method": method, "path": "/", "raw_path": path, "query_string": query, "scheme": "http",
             "headers": headers, "http_version": "1.1"}  # fmt: skip
    anyio.run(hub, scope, receive, send)
    first = next(message for message in told if "status" in message)
    got = {name.decode().lower(): value.decode("latin-1") for name, value in first["headers"]}
    return first["status"], got, b"".join(message.get("body", b"") for message in told)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    store = Store(tmp_path / "hub")
    for name, private in (("me/open", False), ("me/hidden", True)):
        said = PRIVATE if private else "open"
        card = f"---\ntags: [{said}]\n---\n# {said}\n\n<script>alert(1)</script>\n".encode()
        files = {"README.md": card, "a/b.svg": HTML, "page.html": HTML, f"{said}.txt": said.encode()}
        for kind in ("model", "dataset"):
            repo = store.create(kind, name, private=private, author="owner")
            put = {path: store.put(content) for path, content in files.items()}
            store.take(repo, "main", Change(said, put=put), "owner")
            store.open_pull(repo, said, said, "owner")
    return store


@pytest.mark.parametrize("many", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_whatever_is_asked_of_any_route(store, many):
    tokens = {
        "owner": store.add_token("owner", "write"),
        "reader": store.add_token("reader", "read"),
        "forged": "hf_" + "x" * 34,
    }
    hub = Hub(store)

    @settings(max_examples=many, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(requests())
    def run(request):
        method, path, query, body, headers, who = request
        if who == "owner" and (b"/repos/" in path or b"/settings" in path):
            who = "reader"  # what is private stays so
        if who != "nobody":
            headers = [*headers, (b"authorization", f"Bearer {tokens[who]}".encode())]
        status, got, content = asked(hub, method, path, query, body, headers)
        assert 200 <= status < 500, (request, status)
        if who in ("nobody", "forged"):
            assert PRIVATE.encode() not in content and PRIVATE not in str(got), request
            assert status >= 400 or method in ("GET", "HEAD", "POST"), request
        assert who != "forged" or status in (400, 401, 403, 421), (request, status)
        assert got["x-content-type-options"] == "nosniff"
        if got.get("content-type", "").startswith("text/html"):
            assert (
                "script-src" in got["content-security-policy"] or "default-src 'none'" in got["content-security-policy"]
            )
            assert HTML not in content
        if (
            HTML in content
            and status in (200, 206)
            and not got["content-type"].startswith(("application/json", "text/plain"))
        ):
            assert got["content-disposition"].startswith("attachment") and "sandbox" in got["content-security-policy"]

    run()
    assert {repo.name for repo in store.repos("model", private=False)} >= {"me/open"}
