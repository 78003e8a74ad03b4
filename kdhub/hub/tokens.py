"""Whose the user's token is: of one hub, and only on a way that nobody else reads."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Literal
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def token_for(endpoint: str | None = None) -> str | Literal[False]:
    """The token (of `HF_TOKEN`, or of `hf auth login`) where the hub at this address is the one it is for; False, which
    the client library takes for "send none", anywhere else.

    It is for the hub that `HF_ENDPOINT` names, without one for the Hugging Face Hub: an address in a catalogue or a
    recipe, or a mistyped `--endpoint`, gets none. Without TLS it goes to this machine alone.
    """
    from huggingface_hub import get_token

    return False if withheld(endpoint) else (get_token() or False)


def withheld(endpoint: str | None = None) -> str:
    """Why the user's token is not sent there, and what to do; "" where it is, or where there is none."""
    from huggingface_hub import constants, get_token

    own = constants.ENDPOINT
    if not get_token():
        return ""
    if _origin(endpoint or own) != _origin(own):
        where = _shown(endpoint)
        return f"your token is for {_shown(own)} and was not sent; HF_ENDPOINT={where} says that it is for this hub"
    if urlsplit(own).scheme != "https" and not is_here(urlsplit(own).hostname or ""):
        return f"your token was not sent: {_shown(own)} is not https, so others could read it on the way"
    return ""


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def _shown(address: str) -> str:
    """Without a user's name or a password."""
    scheme, host, port = _origin(address)
    return f"{scheme}://{host}" + ("" if port == _PORTS.get(scheme) else f":{port}")


def is_here(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
