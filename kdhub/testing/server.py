"""A local HTTP server that speaks JSON and can be given every fault that a server can have, for tests of teachers
behind an API.

    server.faults = [failing(429, Retry_After="1"), cut]    # of the next two requests
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler", Any], Any]
"""Gets the request's handler and body. It answers and gives True, or gives None to let the request go on."""


class Server(ThreadingHTTPServer):
    """Answers each POST by `good(path, body)`, a JSON value.

    Attributes:
        faults: taken one a request, from the front.
        always: the fault of every request without one of its own.
        bodies: of the requests that arrived; answered: of those that were answered well.
        keys, paths: what was seen in them.
        delay: seconds before each answer.
        now, most: requests being answered, and the most at once.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, good: Callable[[str, Any], Any]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.good = good
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.bodies: list[Any] = []
        self.answered: list[Any] = []
        self.keys: set[str | None] = set()
        self.paths: set[str] = set()
        self.delay = 0.0
        self.now = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, address: Any) -> None:
        pass  # clients in tests are killed and cut off


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.add(self.headers["Authorization"])
            server.paths.add(self.path)
            fault = server.faults.pop(0) if server.faults else server.always
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            time.sleep(server.delay)
            if fault is None or fault(self, body) is None:
                self.answer(200, server.good(self.path, body))
                with server.lock:
                    server.answered.append(body)
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, status: int, body: Any, **headers: str) -> bool:
        """Send a JSON value, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        return True


@contextmanager
def serving(good: Callable[[str, Any], Any]) -> Iterator[Server]:
    """A server that runs in a thread until the end of the block."""
    server = Server(good)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- faults -----------------------------------------------------------------------------------------------------


def failing(status: int, message: str = "out of order", code: str | None = None, **headers: str) -> Fault:
    return lambda handler, body: handler.answer(status, {"error": {"message": message, "code": code}}, **headers)


def cut(handler: Handler, body: Any) -> bool:
    """Promise more than is sent, and close."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def slow(seconds: float) -> Fault:
    return lambda handler, body: time.sleep(seconds)
