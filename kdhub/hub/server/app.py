"""The embedded hub over HTTP: requests as they come, each answered by `api.answer` in a thread.

Requests are routed on the path as it was sent: a revision arrives percent-encoded, with its slashes inside. Bodies of
any size go through the disk, never through memory.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

import anyio.to_thread
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kdhub.hub.server.access import Access
from kdhub.hub.server.api import answer
from kdhub.hub.server.call import Call
from kdhub.hub.server.rules import Refused
from kdhub.hub.server.store import Store
from kdhub.hub.tokens import is_here

log = logging.getLogger("kdhub.hub.access")

BODY_LIMIT = 8 * 2**20
"""Bytes of a request that is read whole."""
STRANGER_LIMIT = 2**18
"""Bytes of one without a token: it can only ask."""
COMMIT_LIMIT = 2 * 2**30
"""Bytes of a commit, without what goes through LFS."""
FIELDS_LIMIT = 10_000
BLOCK = 2**20
PACE_OVER = 30.0
SLOWEST = 1024
"""A body must bring so many bytes a second, over each of those seconds."""


class Hub:
    """The ASGI application.

    Args:
        anonymous: whether public repositories may be read without a token.
        address: what clients call it (`https://hub.example`); by default what each of them wrote.
        local: only this machine may name it. A page of another site that had its name point here is not answered.
    """

    def __init__(self, store: Store, *, anonymous: bool = True, address: str | None = None, local: bool = False):
        self.store, self.access = store, Access(store, anonymous=anonymous)
        self.address, self.local = address, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        told: dict[str, Any] = {"status": 500}

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        try:
            response = await self._answer(request)
        except Refused as refused:
            response = _refusal(refused)
        except (OSError, sqlite3.OperationalError) as error:
            if not _is_full(error):
                raise
            response = _refusal(Refused(507, "the hub's disk is full; nothing of this request was kept"))
        except ClientDisconnect:
            return
        try:
            await response(scope, receive, watched)
        finally:
            # Without the query: it may hold a signature.
            client = scope.get("client") or ("-",)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            log.info("%s %s %s %s %s", now, client[0], scope["method"], _printable(_raw_path(scope)), told["status"])

    async def _answer(self, request: Request) -> Response:
        method, headers = request.method, request.headers
        parts = _split(_raw_path(request.scope))
        query = request.query_params
        base = self._base(request)
        if parts[:2] == ("api", "lfs") and len(parts) == 3 and method == "PUT":
            return await self._receive(request, parts[2])
        caller = await anyio.to_thread.run_sync(self.access.caller, method, headers.get("authorization"))
        # HEAD is answered as GET; the server below leaves the body out.
        call = partial(Call, "GET" if method == "HEAD" else method, parts, query, headers, caller=caller, base=base)
        if method == "POST" and len(parts) > 4 and parts[4] == "commit":
            call(body=None).write()  # before anything is received
            with tempfile.TemporaryFile(dir=self.store.incoming) as spooled:
                large = "large files go through LFS"
                too_many = Refused(413, f"more than {COMMIT_LIMIT} bytes in one commit; {large}")
                await _write(request, spooled.write, COMMIT_LIMIT, too_many)
                return await anyio.to_thread.run_sync(answer, self.store, self.access, call(body=spooled))
        limit = BODY_LIMIT if caller.known else STRANGER_LIMIT
        body = None if method in ("GET", "HEAD") else await _body(request, limit)
        return await anyio.to_thread.run_sync(answer, self.store, self.access, call(body=body))

    def _base(self, request: Request) -> str:
        host = request.headers.get("host") or "localhost"
        asked = urlsplit(f"//{host}").hostname if _HOST.fullmatch(host) else None
        if self.address:
            return self.address
        if asked is None or (self.local and not is_here(asked)):
            raise Refused(421, f"this hub is not {host[:100]!r}; kdhub hub serve --address says what it is called")
        return f"{request.url.scheme}://{host}"

    async def _receive(self, request: Request, oid: str) -> Response:
        """One content, by a link that is its own permission. What is not what the link says leaves nothing."""
        query = request.query_params
        given = (query.get(name, "") for name in ("size", "expires", "name", "signature"))
        size = await anyio.to_thread.run_sync(self.access.check_link, oid, *given)
        with self.store.receive() as incoming:
            too_many = Refused(400, f"more than the {size} bytes that were announced")
            await _write(request, incoming.write, size, too_many)
            if incoming.size != size:
                raise Refused(400, f"{incoming.size} bytes came of the {size} that were announced")
            if incoming.sha256.hexdigest() != oid:
                raise Refused(400, f"the content has the sha256 {incoming.sha256.hexdigest()}, not {oid}")
            await anyio.to_thread.run_sync(incoming.keep)
        return Response(status_code=200)


_HOST = re.compile(r"[\w.-]{1,253}(:\d{1,5})?|\[[0-9a-fA-F:.]{2,45}\](:\d{1,5})?", re.ASCII)


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error)


def _raw_path(scope: Scope) -> bytes:
    return scope.get("raw_path") or scope["path"].encode()


def _split(raw: bytes) -> tuple[str, ...]:
    try:
        parts = tuple(unquote_to_bytes(part).decode() for part in raw.split(b"/")[1:])
    except UnicodeDecodeError:
        raise Refused(400, "the path is not UTF-8") from None
    if any("\0" in part for part in parts):
        raise Refused(400, "there is a zero byte in the path")
    return parts


def _printable(raw: bytes) -> str:
    return raw.decode("ascii", "backslashreplace")


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """A body as it comes. One that hardly comes would hold its connection, and what was read of it, for ever."""
    stream, since, size = request.stream(), time.monotonic(), 0
    while True:
        chunk: bytes | None = None
        with anyio.move_on_after(PACE_OVER) as waiting:
            chunk = await anext(stream, None)
            if chunk is None:
                return
            size += len(chunk)
        spent = time.monotonic() - since
        if waiting.cancelled_caught or (spent >= PACE_OVER and size < SLOWEST * spent):
            raise Refused(408, f"the body comes at less than {SLOWEST} bytes a second")
        if spent >= PACE_OVER:
            since, size = time.monotonic(), 0
        yield chunk or b""


async def _body(request: Request, limit: int) -> Any:
    """The whole body of a small request: JSON, or the lists of a form; None when there is none."""
    content = bytearray()
    async for chunk in _chunks(request):
        content += chunk
        if len(content) > limit:
            raise Refused(413, f"more than {limit} bytes in a request that is not an upload")
    if not content:
        return None
    try:
        if "x-www-form-urlencoded" in request.headers.get("content-type", ""):
            return parse_qs(content.decode(), max_num_fields=FIELDS_LIMIT)
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is neither JSON nor a form") from None


async def _write(request: Request, write: Callable[[bytes], Any], limit: int, too_many: Refused) -> None:
    """Write a body as it comes, in blocks and in a thread: a chunk of the network is too little for either."""
    size, waiting = 0, bytearray()
    async for chunk in _chunks(request):  # which ends with an empty one
        waiting += chunk
        size += len(chunk)
        if size > limit:
            raise too_many
        if waiting and (len(waiting) >= BLOCK or not chunk):
            await anyio.to_thread.run_sync(write, bytes(waiting))
            waiting.clear()


def _refusal(refused: Refused) -> Response:
    message = refused.message.encode("ascii", "backslashreplace").decode()
    headers = {"X-Error-Message": " ".join(message.split())[:1000]}
    if refused.code:
        headers["X-Error-Code"] = refused.code
    if commit := refused.more.get("commit"):
        headers["X-Repo-Commit"] = commit
    return JSONResponse({"error": refused.message, **refused.more}, refused.status, headers)
