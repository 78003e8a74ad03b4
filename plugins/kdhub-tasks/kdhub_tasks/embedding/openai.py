"""`openai:MODEL`: any OpenAI-compatible embeddings endpoint as a black-box teacher.

    POST {base_url}/embeddings {"model": ..., "input": [texts], "encoding_format": "float", "dimensions": ...}

Many requests are in flight at once. One request is one group of the signal store and is committed as soon as it is
answered, so nothing is paid for twice after a kill or a failure: at most the requests in flight are lost.

Retries and keys: `kdhub.teachers.endpoint`. A request that the server refuses for its content is halved until it passes
or the one text at fault is found, so a server that takes fewer texts at once needs no setting.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, DataError, TeacherError
from kdhub.teachers.endpoint import Endpoint, Refused, message_in, quoted

if TYPE_CHECKING:
    from kdhub.rows import Example


class OpenAI(Endpoint):
    """Vectors of texts from an endpoint.

    Attributes:
        texts: how many texts this object has sent, including repeated ones.
    """

    class Options(Endpoint.Options):
        batch: int = Field(64, ge=1, le=2048, description="texts of one request")
        dimensions: int | None = Field(None, ge=1, description="width of the vectors, for models that offer a choice")
        prompts: dict[Literal["query", "document"], str] = Field({}, description="text put in front, by role")

    options: Options
    cutter = None  # texts are cut for the student; the server refuses those that are too long

    def __init__(self, argument: str, options: Any = None, *, task: Any = None):
        super().__init__(argument, options, task=task)
        self.texts = 0
        self._width: int | None = None

    # -- what the store and the task read -----------------------------------------------------------------------

    @property
    def group_rows(self) -> int:
        """One request is one commit."""
        return self.options.batch

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**super().identity, "dimensions": self.options.dimensions}

    def probe(self) -> Mapping[str, Any]:
        from kdhub_tasks.embedding.model import PROBES

        norms = np.linalg.norm(vectors := self._embed(list(PROBES), range(len(PROBES))), axis=1)
        return {"width": int(vectors.shape[1]), "normalised": bool(np.all(np.abs(norms - 1) < 1e-3))}

    @property
    def width(self) -> int:
        return self.facts["width"]

    @property
    def normalised(self) -> bool:
        """Whether its vectors have length 1: those of eight texts, within 1e-3."""
        return self.facts["normalised"]

    @property
    def prompts(self) -> dict[str, str]:
        return dict(self.options.prompts)

    # -- signals ------------------------------------------------------------------------------------------------

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        """Vectors of `example["text"]`, float32 (n, width). Equal texts are sent once.

        Raises:
            DataError: an empty text; nothing was sent.
            TeacherError: an answer other than one finite vector of the same width for each text, or a refused text.
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
        """Distinct texts, in batches, many at once. `rows` are their positions, for messages."""
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
        """One batch; halved if the server refuses its content."""
        try:
            answer = self._request(texts, rows, stop)
        except Refused as refused:
            if len(texts) == 1:
                raise TeacherError(
                    f"{self.name} refused {quoted(texts[0], rows[0])}: {refused}",
                    hint="if it is too long for the model, set a smaller max_length in the method's options",
                ) from None
        else:
            return self._vectors(answer, texts, rows)
        half = len(texts) // 2
        return np.concatenate(
            [self._answer(texts[part], rows[part], stop) for part in (slice(None, half), slice(half, None))]
        )

    def _request(self, texts: list[str], rows: Sequence[int], stop: threading.Event) -> Any:
        payload: dict[str, Any] = {"input": texts, "encoding_format": "float"}
        if self.options.dimensions:
            payload["dimensions"] = self.options.dimensions
        return self.send("embeddings", payload, doing=f"embedding {len(texts)} texts", what=_span(rows), stop=stop)

    def sent(self, payload: Mapping[str, Any]) -> None:
        super().sent(payload)
        self.texts += len(payload["input"])

    def _vectors(self, answer: Any, texts: list[str], rows: Sequence[int]) -> np.ndarray:
        """The checked content of an answer, (n, width) float32, in the order of the texts."""

        def wrong(what: str) -> TeacherError:
            return TeacherError(f"{self.name} gave a wrong answer for {_span(rows)}: {what}")

        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list):
            message, _ = message_in(answer)
            raise wrong(f"no list 'data' in it{f', but: {self.redacted(message)}' if message else ''}")
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
            which = quoted(texts[i], rows[i])
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


def _span(rows: Sequence[int]) -> str:
    """A batch, counted from 1 within the call: the texts of a call are a group in the store, not lines of a file."""
    return f"text {rows[0] + 1}" if len(rows) == 1 else f"the batch of texts {rows[0] + 1} to {rows[-1] + 1}"
