"""Reading from a hub that may be slow, broken or hostile.

The answers are read by us and not by the client library, because of what it leaves open: how large an answer may
grow, how slowly it may come, whether a file that broke off is continued by the next call, and what may be in it. The
connection, its proxies and the token are the library's.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from kdhub.errors import HubError, KdhubError, UnreachableError, UntrustedError, UsageError
from kdhub.hub.fetch import is_network_fault, refused
from kdhub.hub.files import MOST_FILES, Entry, parse_commit, parse_tree
from kdhub.hub.tokens import token_for
from kdhub.plain_json import plain_json

T = TypeVar("T")

TRIES = 5
FIRST_WAIT = 1.0
"""Seconds before the second try; each wait is twice the one before."""
LONGEST_WAIT = 60.0
"""Seconds. Longer waits are reported to the user instead."""
HEADERS_IN = 30.0
"""Seconds to wait for the head of an answer."""
ANSWER_IN = 60.0
"""Seconds to wait for a whole answer in JSON."""
SLOWEST = 1024
"""The least bytes a second, over `HEADERS_IN` seconds, at which a file may arrive."""
LARGEST_ANSWER = 32 * 2**20
MOST_PAGES = 1000
PROGRESS = 2**20
"""A try that brings this many bytes does not count as one of the `TRIES`."""


class _Passing(HubError):
    """A fault that may be gone at the next try.

    Attributes:
        wait: seconds the hub asked for, or None.
        final: the error to raise when it is not gone.
    """

    def __init__(self, final: KdhubError, wait: float | None = None):
        super().__init__(final.message, hint=final.hint)
        self.final, self.wait = final, wait


class Hub:
    """One hub, read with the token the user has for it (`kdhub.hub.tokens`).

    Args:
        endpoint: its address; that of the client library (`HF_ENDPOINT`) by default.

    Attributes:
        endpoint: without a slash at its end.

    Raises:
        UsageError: it is no address of the web, or holds a password.
    """

    def __init__(self, endpoint: str | None = None):
        from huggingface_hub import constants

        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            shown = self.endpoint if "@" not in self.endpoint else f"{parts.scheme}://***@{parts.hostname}"
            raise UsageError(
                f"{shown!r} is not the address of a hub",
                hint="expected https://host; a token goes into HF_TOKEN, never into the address",
            )

    # -- repositories -----------------------------------------------------------------------------------------

    def head(self, repo: str, kind: str, revision: str | None = None) -> tuple[str | None, Mapping[str, Any]]:
        """The commit a revision names now (None: nothing was ever committed), and what the hub says about it."""
        doing = f"looking up {repo}" + (f" at {revision}" if revision else "")
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        answer, _ = self.json(f"/api/{kind}s/{repo}{at}", doing)
        return parse_commit(answer, doing), answer

    def tree(self, repo: str, kind: str, commit: str) -> list[Entry]:
        """Every file of a commit, with size and digest; names are not checked yet."""
        doing = f"listing the files of {repo}"
        entries: list[Entry] = []
        for rows in self.pages(f"/api/{kind}s/{repo}/tree/{commit}?recursive=true&expand=false", doing):
            entries += parse_tree(rows, repo)
            if len(entries) > MOST_FILES:
                raise UntrustedError(f"{repo} is refused: it has more than {MOST_FILES:,} files")
        return entries

    def file(self, repo: str, kind: str, commit: str, name: str) -> str:
        """The path that a file of a commit is downloaded from."""
        return f"/{'' if kind == 'model' else f'{kind}s/'}{repo}/resolve/{commit}/{quote(name)}"

    def pages(self, path: str, doing: str) -> Iterator[Any]:
        """The answers of a list that comes in pages. A next page on another host is not followed: the token is not
        that host's business."""
        following, seen = path, set()
        while following and following not in seen:
            if len(seen) == MOST_PAGES:
                raise UntrustedError(f"{doing}: the hub has more than {MOST_PAGES:,} pages of answers")
            seen.add(following)
            answer, following = self.json(following, doing)
            yield answer

    # -- requests ---------------------------------------------------------------------------------------------

    def json(self, path: str, doing: str) -> tuple[Any, str | None]:
        """An answer in JSON, and the path of the next page.

        Raises:
            HubError: refused, too large, too slow, or no JSON.
        """

        def ask() -> tuple[bytes, Mapping[str, Any]]:
            with self._open(path, {}, doing) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > LARGEST_ANSWER:
                        raise HubError(f"{doing}: the answer is larger than {LARGEST_ANSWER // 2**20} MiB")
                return bytes(content), {k: v.get("url", "") for k, v in response.links.items()}

        content, links = _patiently(lambda: _in_time(ask, ANSWER_IN, doing, self.endpoint))
        try:
            return plain_json(content), self._own_path(links.get("next", ""), path, doing)
        except ValueError as error:
            raise HubError(
                f"{doing}: {self.endpoint} did not answer in JSON ({error})",
                hint="is this the address of a hub? see --endpoint",
            ) from error

    def download(self, path: str, target: Path, size: int, doing: str, stopped: threading.Event | None = None) -> None:
        """Bring `target` to `size` bytes, going on where an earlier try or call broke off. Digests are the caller's.

        Raises:
            HubError: refused, broken off again and again, too slow, or more bytes than there should be.
            KdhubError: it cannot be written here.
        """
        stopped = stopped or threading.Event()
        marked, tries = _size(target), 0
        while _size(target) != size or not target.exists():
            try:
                self._continue(path, target, size, doing, stopped)
            except _Passing as fault:
                if _size(target) >= marked + PROGRESS:
                    marked, tries = _size(target), 0
                tries += 1
                _wait(fault, tries)

    def _continue(self, path: str, target: Path, size: int, doing: str, stopped: threading.Event) -> None:
        have = _size(target) if _size(target) < size else 0
        opened = _in_time(lambda: _Opened(self._open(path, _range(have), doing)), HEADERS_IN, doing, self.endpoint)
        with opened.context:
            response = opened.response
            if have and (response.status_code != 206 or not _starts_at(response.headers, have)):
                have = 0  # this hub sends the whole file again
            pace = _Pace(doing)
            with _appending(target, have) as file, self._guarded(doing):
                for chunk in response.iter_raw():
                    have += len(chunk)
                    if have > size:
                        raise UntrustedError(f"{doing}: the hub sends more than the {size:,} bytes it declared")
                    _write(file, chunk)
                    pace.check(len(chunk))
                    if stopped.is_set():
                        raise HubError(f"{doing}: stopped")
        if have < size:
            raise _Passing(HubError(f"{doing}: the connection broke off", hint=_GO_ON))

    @contextmanager
    def _open(self, path: str, headers: Mapping[str, str], doing: str) -> Iterator[Any]:
        """A response being read, already known not to be a refusal."""
        import huggingface_hub
        from huggingface_hub.utils import build_hf_headers

        sent = {
            **build_hf_headers(token=token_for(self.endpoint), library_name="kdhub"),
            "Accept-Encoding": "identity",
            **headers,
        }
        with self._guarded(doing):
            streamed = huggingface_hub.get_session().stream(
                "GET", self.endpoint + path, headers=sent, timeout=HEADERS_IN, follow_redirects=True
            )
            with streamed as response:
                if response.status_code >= 400:
                    raise self._refusal(response, doing)
                yield response

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Faults of the network as ours."""
        try:
            yield
        except KdhubError:
            raise
        except Exception as error:
            if not is_network_fault(error):
                raise
            if type(error).__name__ == "OfflineModeIsEnabled":
                raise UnreachableError(
                    f"{doing}: the hub is switched off (HF_HUB_OFFLINE)", hint="unset HF_HUB_OFFLINE and try again"
                ) from error
            gone = UnreachableError(
                f"{doing}: no connection to {self.endpoint} ({type(error).__name__})", hint="try again later"
            )
            raise _Passing(gone) from error

    def _refusal(self, response: Any, doing: str) -> HubError:
        get = response.headers.get
        error = refused(response.status_code, get("X-Error-Code", ""), get("X-Error-Message", ""), doing, self.endpoint)
        if response.status_code in (408, 429, 500, 502, 503, 504):
            return _Passing(error, _retry_after(get("Retry-After")))
        return error

    def _own_path(self, url: str, path: str, doing: str) -> str | None:
        if not url:
            return None
        url = urljoin(self.endpoint + path, url)
        if not url.startswith(self.endpoint + "/"):
            raise UntrustedError(f"{doing}: the hub's next page is on another host", hint="that host was not contacted")
        return url.removeprefix(self.endpoint)


_GO_ON = "run the same command again: it continues where it stopped"


class _Opened:
    """A context manager that was entered in another thread, and what it gave."""

    def __init__(self, context: Any):
        from contextlib import ExitStack

        self.context = ExitStack()
        self.response = self.context.enter_context(context)


class _Pace:
    """Notices a sender that keeps a connection open with a byte now and then."""

    def __init__(self, doing: str):
        self.doing, self.since, self.bytes = doing, time.monotonic(), 0

    def check(self, count: int) -> None:
        self.bytes += count
        seconds = time.monotonic() - self.since
        if seconds < HEADERS_IN:
            return
        if self.bytes < SLOWEST * seconds:
            raise _Passing(HubError(f"{self.doing}: only {self.bytes} bytes in {seconds:.0f} s", hint=_GO_ON))
        self.since, self.bytes = time.monotonic(), 0


def _in_time(work: Callable[[], T], seconds: float, doing: str, endpoint: str) -> T:
    """`work()`, or an error after so many seconds. A socket's own time limit restarts with each byte, so the work is
    done by a thread that can be left behind."""
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((True, work()))
        except BaseException as error:
            outcome.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        done, value = outcome.get(timeout=seconds)
    except queue.Empty:
        late = UnreachableError(f"{doing}: {endpoint} did not answer within {seconds:.0f} s", hint="try again later")
        raise _Passing(late) from None
    if not done:
        raise value
    return value


def _patiently(work: Callable[[], T]) -> T:
    """`work()`, again after each fault that may pass, at most `TRIES` times."""
    tries = 0
    while True:
        try:
            return work()
        except _Passing as fault:
            tries += 1
            _wait(fault, tries)


def _wait(fault: _Passing, tries: int) -> None:
    """Wait before the next try, or raise for good."""
    seconds = FIRST_WAIT * 2 ** (tries - 1) if fault.wait is None else fault.wait
    if tries >= TRIES:
        raise fault.final from fault.__cause__
    if seconds > LONGEST_WAIT:
        fault.final.hint = f"the hub asks to wait {seconds:.0f} s; try again then"
        raise fault.final from fault.__cause__
    time.sleep(seconds)


@contextmanager
def _appending(path: Path, have: int) -> Iterator[Any]:
    """The file, open behind its first `have` bytes; what is behind them is cut off."""
    with writing(path):
        file = open(path, "r+b" if have else "wb", buffering=0)
    with file:
        file.seek(have)
        file.truncate()
        yield file


def _write(file: Any, chunk: bytes) -> None:
    with writing(file.name):
        while chunk:
            chunk = chunk[file.write(chunk) :]


@contextmanager
def writing(path: Any) -> Iterator[None]:
    """What the system says about a file, as a sentence."""
    try:
        yield
    except OSError as error:
        raise KdhubError(
            f"cannot write {path}: {error.strerror or error}", hint="make room, then run the same command again"
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _range(have: int) -> dict[str, str]:
    return {"Range": f"bytes={have}-"} if have else {}


def _starts_at(headers: Mapping[str, str], have: int) -> bool:
    return headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After`, which is a number or a date; None when it says nothing one can wait for."""
    try:
        return max(0.0, float(value or ""))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
