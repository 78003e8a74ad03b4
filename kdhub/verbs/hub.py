"""`kdhub hub`: run a hub of one's own, and look after it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import HubError, UsageError
from kdhub.files import data_home

if TYPE_CHECKING:
    from kdhub.hub.server.store import Store

FIRST = "owner"
"""Name of the token that a new hub begins with."""


def serve(
    folder: Path | None,
    *,
    host: str,
    port: int,
    anonymous: bool,
    tell: Callable[[str], None],
    address: str | None = None,
) -> None:
    """Answer until interrupted.

    Args:
        folder: where the hub keeps everything; None: `hub/` in the user's data folder.
        port: 0 for any free one.
        tell: is given each line for the user, with the settings that clients need.
        address: what clients call it, where a server with TLS stands in front (`https://hub.example`).

    Raises:
        HubError: the server's packages are missing, or the address cannot be had.
    """
    with _store(folder) as store:
        import uvicorn

        from kdhub.hub.server.app import Hub
        from kdhub.hub.server.connections import timed_protocol
        from kdhub.hub.tokens import is_here

        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            hint = "choose another one with --port; 0 takes any that is free"
            raise HubError(f"cannot listen on {host}:{port}: {error.strerror or error}", hint=hint) from error
        # Connections inherit it. asyncio sets it on its own sockets alone; without it each answer waits for 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        known = address.rstrip("/") if address else None
        address = known or f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        _many_files()
        token, note = "<a token of this hub>", "to make one: kdhub hub token create NAME --role write"
        if not store.tokens():
            token, note = store.add_token(FIRST, "write"), "a write token; shown only once"
        for line in (
            f"Serving {store.folder} at {address}",
            "",
            "What clients need to know:",
            f"  export HF_ENDPOINT={address}",
            f"  export HF_TOKEN={token}   # {note}",
            "  export HF_HUB_DISABLE_XET=1",
            "",
            "In a browser: log in with any name, and the token as the password. Ctrl-C ends it.",
        ):
            tell(line)
        sys.stdout.flush()
        config = uvicorn.Config(
            Hub(store, anonymous=anonymous, address=known, local=is_here(host)),
            http=timed_protocol(),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass


def _many_files() -> None:
    """Each connection is an open file, and a process may have 1,024 of them unless it asks for more."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))


def collect(folder: Path | None, *, hours: float) -> tuple[int, int]:
    """Remove content no commit names and nothing received for so many hours. Returns files and bytes."""
    with _store(folder) as store:
        return store.collect(hours * 3600)


def add_token(folder: Path | None, name: str, role: str) -> str:
    """Make a token of a role, `read` or `write`. The only time it is told."""
    with _store(folder) as store:
        return store.add_token(name, role)


def tokens(folder: Path | None) -> list[dict[str, Any]]:
    with _store(folder) as store:
        return store.tokens()


def remove_token(folder: Path | None, name: str) -> None:
    with _store(folder) as store:
        if not store.remove_token(name):
            known = ", ".join(token["name"] for token in store.tokens()) or "none"
            raise UsageError(f"there is no token {name!r}", hint=f"tokens of this hub: {known}")


@contextmanager
def _store(folder: Path | None) -> Iterator[Store]:
    try:
        import markdown_it  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        hint = "pip install 'kdhub[hub]'"
        raise HubError(f"running a hub needs the package {error.name}", hint=hint) from error
    import sqlite3

    from kdhub.hub.server.rules import Refused
    from kdhub.hub.server.store import Store

    folder = folder or data_home() / "hub"
    try:
        yield Store(folder)
    except Refused as refused:
        raise UsageError(refused.message) from refused
    except (OSError, sqlite3.Error) as error:
        raise HubError(f"the hub's folder {folder}: {error}", hint="give another one with --folder") from error
