"""Connections on which nothing is asked: closed, so that they cannot fill the hub."""

from __future__ import annotations

from typing import Any

HEAD_IN = 30.0
"""Seconds in which the head of a request must have come."""


def timed_protocol(seconds: float = HEAD_IN) -> type:
    """The server's protocol of HTTP, with a time limit for the head of each request. The library limits only the time
    between requests, so a head that comes byte by byte, or never, would hold its connection for ever."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Timed(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering:
                self._late.cancel()
            elif self._late.cancelled():  # a head has begun, after an answer
                self._late = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, error: Exception | None) -> None:
            self._late.cancel()
            super().connection_lost(error)

    return Timed
