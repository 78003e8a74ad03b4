"""What people and programs see: tables and JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kdhub.errors import KdhubError, UsageError
from kdhub.ranks import rank
from kdhub.secrets import Formatter, redact

_traceback = False


def set_up(*, quiet: bool, verbose: bool, traceback: bool) -> None:
    """Send kdhub's messages to stderr, and keep the libraries below quiet."""
    global _traceback
    _traceback = traceback or bool(os.environ.get("KDHUB_TRACEBACK"))
    handler = _Handler()
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("kdhub")
    logger.handlers[:] = [handler]
    logger.propagate = False
    level = logging.WARNING if quiet or rank() != 0 else logging.INFO
    logger.setLevel(logging.DEBUG if verbose else level)
    if not verbose:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what fails in the end, we say
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class _Handler(logging.StreamHandler):
    """Writes to what stderr is at the time: above a live bar while there is one."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, given: Any) -> None: ...


class _Formatter(Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = harmless(super().format(record))
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


_DRIVES = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Characters by which a name could move the cursor, set the window's title, or turn a line round."""


def harmless(text: str) -> str:
    """The text with what would drive a terminal written out, as it may also stand in JSON."""
    return _DRIVES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Shown:
    """A stream without secrets, and without what drives a terminal: tables, JSON, messages, tracebacks and what
    libraries print all go through here."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        bar = re.match(r"\r|(?:\x1b\[A)+\Z", text) if self.stream is sys.__stderr__ else None  # of progress
        begins = bar[0] if bar else ""
        self.stream.write(begins + harmless(redact(text[len(begins) :])))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def redacted() -> Iterator[None]:
    """Nothing that is written to stdout or stderr tells a secret, but what `tell_once` writes, or drives a terminal."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Shown, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def tell_once(text: str) -> None:
    """A line on stdout as it is: a new token is shown this one time."""
    print(text, file=getattr(sys.stdout, "stream", sys.stdout))


def emit(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "nothing to show") -> None:
    """Aligned columns; the last one may be long."""
    if not rows:
        print(empty)
        return
    cells = [[one_line("" if c is None else str(c)) for c in row] for row in rows]
    widths = [max(len(h), *(len(row[i]) for row in cells)) for i, h in enumerate(headers)]
    for row in [list(headers), *cells]:
        print("  ".join(c.ljust(w) for c, w in zip(row[:-1], widths)) + "  " + row[-1] if len(row) > 1 else row[0])


def one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def error(err: KdhubError, *, as_json: bool) -> None:
    """Message and hint on stderr; with `--json` also the one document on stdout."""
    if as_json:
        emit(err.to_dict())
    print(f"error: {err.message}", file=sys.stderr)
    if err.hint:
        print(f"  {err.hint}", file=sys.stderr)
    if _traceback:
        import traceback

        traceback.print_exception(err)
    elif err.__cause__ is not None and not isinstance(err, UsageError):
        print("  (kdhub --traceback ... shows where it came from)", file=sys.stderr)
