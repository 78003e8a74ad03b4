"""Teachers behind an OpenAI-compatible API: what is sent, what is tried again, and where keys go.

Many requests are in flight at once, under one limit for all threads that share a teacher. What is retried, with
back-off and jitter: 408, 409, 429 (its Retry-After is kept to, by all threads), 5xx, timeouts, cut connections, half an
answer. What is not: a wrong key, a wrong address, a used-up quota. Content that the server refuses (400, 413, 422) is
`Refused`: what to do then, such as sending half of it, is the teacher's business.

The key is read from the environment when a request is sent, and is kept nowhere. It goes to OpenAI and to the server
of OPENAI_BASE_URL; a server that a recipe names gets a key only if the recipe names the variable too, so that running
somebody else's recipe does not send yours to them unseen.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, field_validator

from kdhub.errors import HubError, TeacherError, UsageError
from kdhub.teacher import Teacher

if TYPE_CHECKING:
    import httpx2

OPENAI = "https://api.openai.com/v1"
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer wait ends the run, which can be resumed."""

_log = logging.getLogger("kdhub")


class Endpoint(Teacher):
    """A teacher that is asked over HTTP, in JSON.

    Attributes:
        requests: requests sent by this object, repeated ones too.
    """

    class Options(Teacher.Options):
        base_url: str | None = Field(
            None, description=f"address up to the version, as in /v1; OPENAI_BASE_URL if unset, else {OPENAI}"
        )
        api_key_env: str | None = Field(
            None,
            description="environment variable with the key, ..._API_KEY; OPENAI_API_KEY unless base_url names a server",
        )
        concurrency: int = Field(8, ge=1, le=256, description="requests in flight at once")
        retries: int = Field(6, ge=0, le=20, description="times a failed request is sent again")
        timeout: float = Field(60.0, gt=0, le=3600, description="seconds to wait for an answer")
        revision: str | None = Field(None, description="your label for the model's state; a new one labels again")
        terms: str = Field("", max_length=200, description="what its provider's terms say against publishing a student")

        # These two raise UsageError, not ValueError: recipe errors repeat a wrong value, and it may be a secret.

        @field_validator("base_url")
        @classmethod
        def _check_url(cls, value: str | None) -> str | None:
            return value if value is None else _clean_url(value, "the option base_url")

        @field_validator("api_key_env")
        @classmethod
        def _check_name(cls, value: str | None) -> str | None:
            # Keys of model servers only: no recipe can have a cloud account's secret or a Hub token sent anywhere.
            if value is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*_API_KEY", value):
                raise UsageError(
                    "the option api_key_env is not the name of an environment variable that ends in _API_KEY",
                    hint="export MY_API_KEY=... and write api_key_env: MY_API_KEY; the key itself is never an option",
                )
            return value

    options: Options
    module = None
    tokenizer = max_length = None  # unknown: texts are cut for the student, and the server refuses longer ones
    backoff = 0.5  # seconds before the second try, doubled for each further one, up to a minute

    def __init__(self, argument: str, options: Any = None, *, task: Any = None):
        super().__init__(argument, options, task=task)
        if not argument.strip():
            raise UsageError("openai: lacks the name of a model", hint="write openai:MODEL")
        self.requests = 0
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.options.concurrency)
        self._not_before = 0.0  # monotonic seconds: a rate limit holds for all threads
        self._random = random.Random()  # jitter must not touch the seeded global generator

    @property
    def terms(self) -> str:
        return self.options.terms

    @property
    def concurrent_groups(self) -> int:
        return self.options.concurrency

    @cached_property
    def base_url(self) -> str:
        if self.options.base_url is not None:
            return self.options.base_url
        return _clean_url(os.environ.get("OPENAI_BASE_URL") or OPENAI, "the environment variable OPENAI_BASE_URL")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and server. What else changes its answers, a teacher adds."""
        return {
            "kind": "openai",
            "model": self.argument,
            "base_url": self.base_url,
            "revision": self.options.revision,
        }

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"source": f"openai:{self.argument}", "id": self.argument, **self.identity}

    @property
    def name(self) -> str:
        """As messages show it."""
        return f"openai:{self.argument} at {urlsplit(self.base_url).netloc}"

    # -- the wire -----------------------------------------------------------------------------------------------

    def send(
        self, path: str, payload: Mapping[str, Any], *, doing: str, what: str, stop: threading.Event | None = None
    ) -> Any:
        """The JSON value the server answers with to a POST of `payload` with the model's name.

        Args:
            path: below the address, `embeddings`.
            doing: for messages: "embedding 3 texts"; what: the rows in question: "texts 6 to 10".
            stop: once set, waiting ends with `Stopped`.

        Raises:
            Refused: it will not take this content.
            TeacherError: its answer is no JSON.
            HubError: it could not be reached, or would not answer.
        """
        client = self._client  # says what to install, where the package is missing
        import httpx2

        stop = stop or threading.Event()
        doing = f"{doing} with {self.name}"
        tries = self.options.retries + 1
        for attempt in range(1, tries + 1):
            while (left := self._not_before - time.monotonic()) > 0:
                _sleep(left, stop)
            asked = None
            try:
                with self._slots:
                    with self._lock:
                        self.sent(payload)
                    response = client.post(path, json={"model": self.argument, **payload})
            except httpx2.TimeoutException:
                problem = f"no answer within {self.options.timeout:g} s"
            except httpx2.RequestError as error:
                problem = self.redacted(str(error)) or type(error).__name__
            else:
                if response.is_success:
                    try:
                        return response.json()
                    except (ValueError, RecursionError):
                        # Half an answer is worth another try; a page for people is not.
                        problem = f"an answer that is not JSON ({_shown(response)})"
                        if attempt == tries or _is_page(response):
                            raise TeacherError(
                                f"{self.name} gave {problem} for {what}", hint=f"is {self.base_url} its API?"
                            ) from None
                else:
                    problem = self._problem(response, doing, path)
                    asked = _retry_after(response.headers)
            if attempt == tries:
                raise HubError(
                    f"{doing}: {problem}, after {tries} tries",
                    hint="trying again later may help; what was answered and stored before is kept",
                )
            if asked is not None and asked > LONGEST_WAIT:
                raise HubError(f"{doing}: {problem}", hint=f"it asks to be tried again in {asked:.0f} s; then resume")
            pause = min(60.0, self.backoff * 2 ** (attempt - 1)) * self._random.uniform(0.5, 1)
            if asked is not None:
                self._not_before = max(self._not_before, time.monotonic() + asked)
            _log.info("%s: %s; try %d of %d in %.1f s", doing, problem, attempt + 1, tries, max(pause, asked or 0))
            _sleep(pause, stop)
        raise AssertionError("unreachable")

    def sent(self, payload: Mapping[str, Any]) -> None:
        """Told of each request, one at a time."""
        self.requests += 1

    def _problem(self, response: httpx2.Response, doing: str, path: str) -> str:
        """What a failed response says, when sending it again may help.

        Raises:
            Refused: it is the content.
            HubError: sending it again does not help.
        """
        status = response.status_code
        try:
            message, code = message_in(response.json())
        except ValueError:
            message, code = _shown(response), None
        problem = f"{status} {response.reason_phrase}".rstrip()
        if message:
            problem += f" ({self.redacted(message)})"
        if status in (400, 413, 422):
            raise Refused(problem)
        again = status in (408, 409, 429) or (status >= 500 and status != 501)
        if again and code != "insufficient_quota":
            return problem
        key = self._key_name
        if code == "insufficient_quota" or status == 402:
            hint = "the account has no credit left; retrying does not help before it has"
        elif status in (401, 403) and key:
            hint = f"does the environment variable {key} hold a key that is good for this server and model?"
        elif status in (401, 403):
            hint = "this server wants a key: name the environment variable that holds it with the option api_key_env"
        elif status == 404:
            hint = f"check the model's name, and that base_url ends just before /{path} (often in /v1)"
        else:
            hint = "retrying does not help; check base_url and the model's name"
        raise HubError(f"{doing}: {problem}", hint=hint)

    @cached_property
    def _client(self) -> httpx2.Client:
        try:
            import httpx2
        except ImportError as error:
            raise UsageError("openai: needs the package httpx2", hint="pip install 'kdhub[openai]'") from error

        def sign(request: httpx2.Request) -> httpx2.Request:
            if key := self._key():
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        self._key()  # its errors belong here, not into the middle of a request
        return httpx2.Client(
            base_url=self.base_url,
            auth=sign,
            timeout=self.options.timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self.options.concurrency),
        )

    # -- keys ---------------------------------------------------------------------------------------------------

    @property
    def _key_name(self) -> str | None:
        if self.options.api_key_env:
            return self.options.api_key_env
        return "OPENAI_API_KEY" if self.options.base_url in (None, OPENAI) else None

    def _key(self) -> str | None:
        """The key, read again each time; None for servers that want none.

        Raises:
            HubError: it is not set where one is needed, or cannot be a key.
        """
        name = self._key_name
        key = os.environ.get(name, "").strip() if name else ""
        if not key:
            if self.options.api_key_env or self.base_url == OPENAI:
                raise HubError(
                    f"{self.name} wants a key, and the environment variable {name} is not set",
                    hint=f"export {name}=..., or name another variable with the option api_key_env",
                )
            return None
        if not re.fullmatch(r"[!-~]+", key):  # the HTTP library would show it in its error
            raise HubError(f"the environment variable {name} holds characters that no key has (spaces, line ends, ...)")
        return key

    def redacted(self, text: str) -> str:
        """Somebody else's text, fit to be shown: one line, no control characters, no keys, 300 characters at most."""
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        for name in {self._key_name, self.options.api_key_env, "OPENAI_API_KEY"} - {None}:
            key = os.environ.get(name, "").strip()
            if len(key) > 3:  # shorter ones are placeholders
                text = text.replace(key, "***")
        text = re.sub(r"\bsk-[\w*.-]{6,}|(?<=\bBearer )\S+", "***", text)  # also half hidden, as servers repeat them
        return text if len(text) <= 300 else text[:300] + "..."


class Refused(Exception):
    """The server will not take the content of a request; the text says why."""


class Stopped(Exception):
    """Another request of the same call failed; for the teacher that set `stop` alone."""


def message_in(answer: Any) -> tuple[str, str | None]:
    """Message and code of an error in one of the forms servers use; ("", None) where there is none."""
    if not isinstance(answer, dict):
        return "", None
    error = answer.get("error") or answer.get("detail") or answer.get("message") or ""
    if isinstance(error, dict):
        return str(error.get("message") or ""), error.get("code")
    return error if isinstance(error, str) else str(error), None


def quoted(text: str, row: int) -> str:
    """A text of a request, counted from 1, by its beginning."""
    start = text if len(text) <= 40 else text[:40] + "..."
    return f"text {row + 1} ({start!r}, {len(text)} characters)"


def _sleep(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise Stopped


def _clean_url(url: str, what: str) -> str:
    """An address without its last slash.

    Raises:
        UsageError: it is none, or holds more than an address; it is not repeated, as it may hold a password.
    """
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"{what} is not an address", hint="it starts with http:// or https:// and often ends in /v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"{what} must hold no user, password or query", hint="name a variable that holds the key with api_key_env"
        )
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: a number or a date (RFC 9110, section 10.2.3)."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else max(0.0, seconds)


def _is_page(response: httpx2.Response) -> bool:
    return response.content.lstrip()[:1] == b"<"


def _shown(response: httpx2.Response) -> str:
    """What a body that is not JSON is, in a few words; its text could hold anything, so it is not repeated."""
    return "an HTML page" if _is_page(response) else f"{len(response.content)} bytes"
