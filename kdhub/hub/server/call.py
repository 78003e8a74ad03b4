"""One request to the embedded hub, as its handlers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse

from kdhub.hub.server.access import Caller
from kdhub.hub.server.rules import Refused


@dataclass(frozen=True)
class Call:
    """One request, as its handler sees it.

    Attributes:
        parts: of the path, decoded one by one.
        body: parsed JSON, or a form's lists; a file for a commit.
        base: address of this hub, as the caller wrote it.
    """

    method: str
    parts: tuple[str, ...]
    query: QueryParams
    headers: Headers
    body: Any
    caller: Caller
    base: str

    def limit(self, default: int, most: int) -> int:
        """Rows on a page."""
        return min(max(number(self.query.get("limit"), default), 1), most)

    def asked(self, key: str) -> bool:
        """Whether the query sets this."""
        return self.query.get(key, "").lower() in ("1", "true", "yes")

    def read(self) -> None:
        if self.caller.role == "none":
            raise Refused(401, "this hub is open to its users only: a token is needed", "RepoNotFound")

    def write(self) -> None:
        if not self.caller.known:
            raise Refused(401, "a token is needed to change anything")
        if self.caller.role != "write":
            raise Refused(403, f"the token {self.caller.name!r} may only read")

    def value(self, key: str, kind: type = str, default: Any = None) -> Any:
        """One entry of a JSON body.

        Raises:
            Refused: 400, it is missing without a default, or of another type.
        """
        found = self.body.get(key) if isinstance(self.body, dict) else None
        if found is None and default is not None:
            return default
        if not isinstance(found, kind):
            raise Refused(400, f"{key!r} must be {_TYPES[kind]}")
        return found

    def page(self, rows: Sequence[Any], next_cursor: str | None) -> JSONResponse:
        """Rows, and where the next ones are, as clients follow it."""
        response = JSONResponse(rows)
        if next_cursor is not None:
            asked = [(key, value) for key, value in self.query.multi_items() if key != "cursor"]
            here = "/".join(quote(part, safe="") for part in self.parts)
            response.headers["Link"] = (
                f'<{self.base}/{here}?{urlencode([*asked, ("cursor", next_cursor)])}>; rel="next"'
            )
        return response


def number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 18 else default


_TYPES = {str: "a text", list: "a list", int: "a number", bool: "true or false"}
