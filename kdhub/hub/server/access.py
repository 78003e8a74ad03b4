"""Who may do what on the embedded hub: tokens, and links to upload that are their own permission."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from dataclasses import dataclass
from urllib.parse import urlencode

from kdhub.hub.server.rules import Refused
from kdhub.hub.server.store import Store

LASTS = 6 * 3600
"""Seconds for which a link to upload holds."""

_INVALID = "Invalid credentials in Authorization header"  # clients look for these very words


@dataclass(frozen=True)
class Caller:
    """Who asks. Without a name: nobody that we know.

    Attributes:
        role: `write`, `read`, or `none` where even public repositories need a token.
    """

    name: str
    role: str

    @property
    def known(self) -> bool:
        return bool(self.name)


class Access:
    """Args:
    anonymous: whether public repositories may be read without a token.
    """

    def __init__(self, store: Store, *, anonymous: bool = True):
        self.store, self.anonymous = store, anonymous

    def caller(self, method: str, authorization: str | None) -> Caller:
        """The owner of a bearer token; a browser may read with the token as its password.

        Raises:
            Refused: 401, there is a token and it is none of ours.
        """
        if not authorization:
            return Caller("", "read" if self.anonymous else "none")
        scheme, _, given = authorization.partition(" ")
        token = None
        if scheme.lower() == "bearer":
            token = given.strip()
        elif scheme.lower() == "basic" and method in ("GET", "HEAD"):
            # A browser sends these on its own, also when another site asks it to: never enough to write.
            try:
                token = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                token = None
        found = self.store.token(token) if token else None
        if found is None:
            raise Refused(401, _INVALID)
        return Caller(*found)

    def link(self, oid: str, size: int, name: str) -> str:
        """The query by which one content may be uploaded without a token, for a while, and as long as the token of
        that name may write."""
        expires = str(int(time.time()) + LASTS)
        signature = self._signature(oid, str(size), expires, name)
        return urlencode({"size": size, "expires": expires, "name": name, "signature": signature})

    def check_link(self, oid: str, size: str, expires: str, name: str, signature: str) -> int:
        """The size a link was made for.

        Raises:
            Refused: 403, the link is not ours, was made for something else, or is over; its token was revoked.
        """
        own = self._signature(oid, size, expires, name)
        if not hmac.compare_digest(own.encode(), signature.encode("utf-8", "replace")):
            raise Refused(403, "this upload link was not issued by this hub for this content")
        if int(expires) < time.time():
            raise Refused(403, "this upload link has expired; ask for another one")
        if not any(token["name"] == name and token["role"] == "write" for token in self.store.tokens()):
            raise Refused(403, "the token that this upload link was made for was revoked")
        return int(size)

    def _signature(self, *signed: str) -> str:
        told = "\n".join(("upload", *signed)).encode("utf-8", "replace")
        return hmac.new(self.store.key, told, hashlib.sha256).hexdigest()
