"""`openai:MODEL`: any OpenAI-compatible embeddings endpoint as a black-box teacher.

    POST {base_url}/embeddings {"model": ..., "input": [texts], "encoding_format": "float", "dimensions": ...}

Many requests are in flight at once. One request is one group of the signal store and is committed as soon as it is
answered, so what was paid for is not asked again after a kill or a failure: at most the requests in flight are lost.

What is retried, with back-off and jitter: 408, 409, 429 (its Retry-After is kept to, by all threads), 5xx, timeouts,
cut connections, half an answer. What is not: a wrong key, a wrong address, a used-up quota. A request the server
refuses for its content (400, 413, 422) is halved until it passes or the one text at fault is found, so a server that
takes fewer texts at once needs no setting.

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
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from pydantic import Field, field_validator

from kdhub.errors import CompatibilityError, DataError, HubError, TeacherError, UsageError
from kdhub.teacher import Teacher

if TYPE_CHECKING:
    import httpx2

    from kdhub.task import Example

OPENAI = "https://api.openai.com/v1"
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer wait ends the run, which can be resumed."""

_log = logging.getLogger("kdhub")


class OpenAI(Teacher):
    """Vectors of texts from an endpoint.

    Attributes:
        requests: requests sent by this object, repeated ones too.
        texts: texts sent by this object, repeated ones too.
    """

    class Options(Teacher.Options):
        base_url: str | None = Field(
            None, description=f"address up to /embeddings; OPENAI_BASE_URL if unset, else {OPENAI}"
        )
        api_key_env: str | None = Field(
            None,
            description="environment variable with the key, ..._API_KEY; OPENAI_API_KEY unless base_url names a server",
        )
        batch: int = Field(64, ge=1, le=2048, description="texts of one request")
        concurrency: int = Field(8, ge=1, le=256, description="requests in flight at once")
        retries: int = Field(6, ge=0, le=20, description="times a failed request is sent again")
        timeout: float = Field(60.0, gt=0, le=3600, description="seconds to wait for an answer")
        dimensions: int | None = Field(None, ge=1, description="width of the vectors, for models that offer a choice")
        prompts: dict[Literal["query", "document"], str] = Field({}, description="text put in front, by role")
        revision: str | None = Field(None, description="your label for the model's state; a new one labels anew")

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
    tokenizer = cutter = max_length = None  # unknown: texts are cut for the student, and the server refuses longer ones
    backoff = 0.5  # seconds before the second try, doubled for each further one, up to a minute

    def __init__(self, argument: str, options: Any = None):
        super().__init__(argument, options)
        if not argument.strip():
            raise UsageError("openai: lacks the name of a model", hint="write openai:MODEL")
        self.requests = 0
        self.texts = 0
        self._width: int | None = None
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.options.concurrency)
        self._not_before = 0.0  # monotonic seconds: a rate limit holds for all threads
        self._random = random.Random()  # jitter must not touch the seeded global generator

    # -- what the store and the task read -----------------------------------------------------------------------

    @property
    def group_rows(self) -> int:
        """One request is one commit."""
        return self.options.batch

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
        return {
            "kind": "openai",
            "model": self.argument,
            "base_url": self.base_url,
            "dimensions": self.options.dimensions,
            "revision": self.options.revision,
        }

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"source": f"openai:{self.argument}", "id": self.argument, **self.identity}

    def probe(self) -> Mapping[str, Any]:
        from kdhub_text.task import PROBES

        norms = np.linalg.norm(vectors := self._embed(list(PROBES), range(len(PROBES))), axis=1)
        return {"width": int(vectors.shape[1]), "normalised": bool(np.all(np.abs(norms - 1) < 1e-3))}

    @property
    def width(self) -> int:
        return self.facts["width"]

    @property
    def normalised(self) -> bool:
        """Whether its vectors have length 1: eight texts, all norms within 1e-3 of 1."""
        return self.facts["normalised"]

    @property
    def prompts(self) -> dict[str, str]:
        return dict(self.options.prompts)

    # -- signals ------------------------------------------------------------------------------------------------

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        """Vectors of `example["text"]`, float32 (n, width). Equal texts are sent once.

        Raises:
            DataError: an empty text; nothing was sent.
            TeacherError: an answer that is not one finite vector of one width for each text, or a refused text.
            HubError: the server could not be reached, or would not answer.
        """
        self._check_kind(kind)
        first: dict[str, int] = {}  # text -> its first row
        for row, example in enumerate(examples):
            first.setdefault(example["text"], row)
        if empty := [row + 1 for text, row in first.items() if not text.strip()]:
            raise DataError(f"text {empty[0]} of the {len(examples)} to embed is empty", rows=empty)
        if not first:
            return {"embedding": np.zeros((0, self.width), np.float32)}
        vectors = self._embed(list(first), list(first.values()))
        place = {text: i for i, text in enumerate(first)}
        return {"embedding": vectors[[place[example["text"]] for example in examples]]}

    def layout(self, kind: str) -> dict[str, tuple[int | None, ...]]:
        self._check_kind(kind)
        return {"embedding": (self.width,)}

    def _check_kind(self, kind: str) -> None:
        if kind != "embedding":
            raise CompatibilityError(f"openai:{self.argument} gives 'embedding', not {kind!r}")

    def _embed(self, texts: list[str], rows: Sequence[int]) -> np.ndarray:
        """Different texts, in batches, many at once. `rows` says where each stands, for messages."""
        starts = range(0, len(texts), self.options.batch)
        stop = threading.Event()

        def one(start: int) -> np.ndarray:
            part = slice(start, start + self.options.batch)
            return self._answer(texts[part], rows[part], stop)

        if len(starts) == 1:
            return one(0)
        with ThreadPoolExecutor(min(self.options.concurrency, len(starts))) as pool:
            futures = [pool.submit(one, start) for start in starts]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return np.concatenate([future.result() for future in futures])

    def _answer(self, texts: list[str], rows: Sequence[int], stop: threading.Event) -> np.ndarray:
        """One batch; halved when the server refuses its content."""
        try:
            answer = self._send(texts, rows, stop)
        except _Refused as refused:
            if len(texts) == 1:
                raise TeacherError(
                    f"{self._name} refused {_quoted(texts[0], rows[0])}: {refused}",
                    hint="if it is too long for the model, set a smaller max_length in the method's options",
                ) from None
        else:
            return self._vectors(answer, texts, rows)
        half = len(texts) // 2
        return np.concatenate(
            [self._answer(texts[part], rows[part], stop) for part in (slice(None, half), slice(half, None))]
        )

    def _vectors(self, answer: Any, texts: list[str], rows: Sequence[int]) -> np.ndarray:
        """The checked content of an answer, (n, width) float32, in the order of the texts."""

        def wrong(what: str) -> TeacherError:
            return TeacherError(f"{self._name} gave a wrong answer for {_span(rows)}: {what}")

        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list):
            message, _ = _message_in(answer)
            raise wrong(f"no list 'data' in it{f', but: {self._redacted(message)}' if message else ''}")
        if len(data) != len(texts):
            raise wrong(f"{len(data)} vectors for {len(texts)} texts")
        found: list[Any] = [None] * len(texts)
        for item in data:
            index = item.get("index") if isinstance(item, dict) else None
            if type(index) is not int or not 0 <= index < len(texts) or found[index] is not None:
                raise wrong(f"indices are not 0 to {len(texts) - 1}, each once")
            found[index] = item.get("embedding", ())
        with self._lock:
            width = self.options.dimensions or self._width or (len(found[0]) if isinstance(found[0], list) else 0)
        out = np.empty((len(texts), width), np.float32)
        for i, values in enumerate(found):
            which = _quoted(texts[i], rows[i])
            if not isinstance(values, list) or not values or not all(type(v) in (float, int) for v in values):
                raise wrong(f"no list of numbers for {which}")
            if len(values) != width:
                raise wrong(f"{len(values)} dimensions for {which}, expected {width}")
            try:
                with np.errstate(over="ignore"):
                    out[i] = values
            except OverflowError:  # an integer past float64
                out[i] = np.inf
            if not np.isfinite(out[i]).all():
                raise wrong(f"NaN or infinite values for {which}")
        with self._lock:
            self._width = width
        return out

    # -- the wire -----------------------------------------------------------------------------------------------

    def _send(self, texts: list[str], rows: Sequence[int], stop: threading.Event) -> Any:
        """The JSON value the server answers with.

        Raises:
            _Refused: it will not take this content.
        """
        import httpx2

        doing = f"embedding {len(texts)} texts with {self._name}"
        payload: dict[str, Any] = {"model": self.argument, "input": texts, "encoding_format": "float"}
        if self.options.dimensions:
            payload["dimensions"] = self.options.dimensions
        tries = self.options.retries + 1
        for attempt in range(1, tries + 1):
            while (left := self._not_before - time.monotonic()) > 0:
                _sleep(left, stop)
            asked = None
            try:
                with self._slots:
                    with self._lock:
                        self.requests += 1
                        self.texts += len(texts)
                    response = self._client.post("embeddings", json=payload)
            except httpx2.TimeoutException:
                problem = f"no answer within {self.options.timeout:g} s"
            except httpx2.RequestError as error:
                problem = self._redacted(str(error)) or type(error).__name__
            else:
                if response.is_success:
                    try:
                        return response.json()
                    except (ValueError, RecursionError):
                        # Half an answer is worth another try; a page for people is not.
                        problem = f"an answer that is not JSON ({_shown(response)})"
                        if attempt == tries or _is_page(response):
                            raise TeacherError(
                                f"{self._name} gave {problem} for {_span(rows)}", hint=f"is {self.base_url} its API?"
                            ) from None
                else:
                    problem = self._problem(response, doing)
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

    def _problem(self, response: httpx2.Response, doing: str) -> str:
        """What a failed response says, when sending it again may help.

        Raises:
            _Refused: it is the content.
            HubError: sending it again does not help.
        """
        status = response.status_code
        try:
            message, code = _message_in(response.json())
        except ValueError:
            message, code = _shown(response), None
        problem = f"{status} {response.reason_phrase}".rstrip()
        if message:
            problem += f" ({self._redacted(message)})"
        if status in (400, 413, 422):
            raise _Refused(problem)
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
            hint = "check the model's name, and that base_url ends just before /embeddings (often in /v1)"
        else:
            hint = "retrying does not help; check base_url and the model's name"
        raise HubError(f"{doing}: {problem}", hint=hint)

    @cached_property
    def _client(self) -> httpx2.Client:
        try:
            import httpx2
        except ImportError as error:
            raise UsageError("openai: needs the package httpx2", hint="pip install 'kdhub-text[openai]'") from error

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

    @property
    def _name(self) -> str:
        return f"openai:{self.argument} at {urlsplit(self.base_url).netloc}"

    @property
    def _key_name(self) -> str | None:
        if self.options.api_key_env:
            return self.options.api_key_env
        return "OPENAI_API_KEY" if self.options.base_url in (None, OPENAI) else None

    def _key(self) -> str | None:
        """The key, read anew each time; None for servers that want none.

        Raises:
            HubError: it is not set where one is needed, or cannot be a key.
        """
        name = self._key_name
        key = os.environ.get(name, "").strip() if name else ""
        if not key:
            if self.options.api_key_env or self.base_url == OPENAI:
                raise HubError(
                    f"{self._name} wants a key, and the environment variable {name} is not set",
                    hint=f"export {name}=..., or name another variable with the option api_key_env",
                )
            return None
        if not re.fullmatch(r"[!-~]+", key):  # the HTTP library would show it in its error
            raise HubError(f"the environment variable {name} holds characters that no key has (spaces, line ends, ...)")
        return key

    def _redacted(self, text: str) -> str:
        """Somebody else's text, fit to be shown: one line, no control characters, no keys, 300 characters at most."""
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        for name in {self._key_name, self.options.api_key_env, "OPENAI_API_KEY"} - {None}:
            key = os.environ.get(name, "").strip()
            if len(key) > 3:  # shorter ones are placeholders
                text = text.replace(key, "***")
        text = re.sub(r"\bsk-[\w*.-]{6,}|(?<=\bBearer )\S+", "***", text)  # also half hidden, as servers repeat them
        return text if len(text) <= 300 else text[:300] + "..."


class _Refused(Exception):
    """The server will not take the content of a request."""


class _Stopped(Exception):
    """Another request of the same call failed; never leaves this module."""


def _sleep(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise _Stopped


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


def _message_in(answer: Any) -> tuple[str, str | None]:
    """Message and code of an error in one of the forms servers use."""
    if not isinstance(answer, dict):
        return "", None
    error = answer.get("error") or answer.get("detail") or answer.get("message") or ""
    if isinstance(error, dict):
        return str(error.get("message") or ""), error.get("code")
    return error if isinstance(error, str) else str(error), None


def _is_page(response: httpx2.Response) -> bool:
    return response.content.lstrip()[:1] == b"<"


def _shown(response: httpx2.Response) -> str:
    """What a body that is not JSON is, in a few words; its text could hold anything, so it is not repeated."""
    return "an HTML page" if _is_page(response) else f"{len(response.content)} bytes"


def _span(rows: Sequence[int]) -> str:
    """A batch, counted from 1 within the call: the texts of a call are a group of the store, not lines of a file."""
    return f"text {rows[0] + 1}" if len(rows) == 1 else f"the batch of texts {rows[0] + 1} to {rows[-1] + 1}"


def _quoted(text: str, row: int) -> str:
    start = text if len(text) <= 40 else text[:40] + "..."
    return f"text {row + 1} ({start!r}, {len(text)} characters)"
