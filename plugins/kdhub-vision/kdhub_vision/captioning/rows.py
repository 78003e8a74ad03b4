"""Plain rows of clips and captions, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdhub.errors import DataError
from kdhub.rows import Example, Fault
from kdhub_vision.captioning.words import words_in

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue."""


def references(row: Mapping[str, Any]) -> list[str]:
    """The captions of a row; those without a word are none."""
    given = row.get("captions") or ([row["caption"]] if row.get("caption") else [])
    return [text for text in given if isinstance(text, str) and words_in(text)]


def size_of(row: Mapping[str, Any]) -> list[int] | None:
    """Height and width of the frames of a row; None where it cannot be read."""
    try:
        given = row.get("frames") if row.get("frames") is not None else row.get("measurement")
        shape = grey(given).shape if row.get("frames") is not None else np.asarray(given, np.float32).shape
    except (DataError, TypeError, ValueError):
        return None
    return [int(n) for n in shape[-2:]] if len(shape) >= 2 else None


def grey(frames: Any) -> np.ndarray:
    """(T, height, width) in [0, 1], of bytes or numbers in [0, 1]; colours are in the second or the last axis.

    Raises:
        DataError: they are not that; its message begins with what other such rows share.
    """
    try:
        x = np.asarray(frames)
    except ValueError:
        raise DataError("frames of several sizes in one clip") from None
    if x.dtype.kind not in "biuf" or x.ndim not in (3, 4) or (x.ndim == 4 and 3 not in (x.shape[1], x.shape[3])):
        raise DataError(f"frames that are not (frames, height, width) of numbers: {x.dtype} {x.shape}")
    integers = x.dtype.kind in "biu"
    x = x.astype(np.float32) / (255 if integers else 1)
    if x.ndim == 4:
        x = np.tensordot(x, np.float32(GREY), ([1 if x.shape[1] == 3 else 3], [0]))
    if not np.isfinite(x).all() or x.min(initial=0) < 0 or x.max(initial=0) > 1 + 1e-5:
        raise DataError(
            f"frames that are not bytes or numbers in [0, 1]: {x.min():.3g} to {x.max():.3g}"
            + (" times 255" if integers else "")
        )
    return x


class Reader:
    """Plain rows to examples.

    Args:
        shape: B, height and width that the models read; None for any.
        student: whose decoder has to know the words, where rows must have captions.
        settings: `captions`, `frames`: what rows must have.
    """

    def __init__(self, shape: Sequence[int] | None, student: Any, settings: Mapping[str, Any] | None = None):
        settings = settings or {}
        self.shape, self.captions, self.frames = shape, settings.get("captions"), settings.get("frames")
        snapshots = student is None or student.reads_snapshots
        self.measured = student is not None and snapshots
        self.known = set(student.words) if self.captions and self.measured else None
        self.room = student.room if self.captions and self.measured else None

    def __call__(self, row: Mapping[str, Any]) -> Example:
        one: Example = {"frames": None, "measurement": None, "words": [], "length": 0, "cut": False, "content": b""}
        try:
            clip = self._clip(row)
            words = self._words(row)
        except DataError as error:
            cause, _, detail = error.message.partition(": ")
            many, *size = self.shape or (1, 8, 8)
            name = f"{row['video']}: " if row.get("video") else ""
            fault = Fault(cause, name + detail if detail else name.removesuffix(": "))
            return {**one, "many": many, "size": tuple(size), "fault": fault}
        return {**one, **clip, "words": words, "length": max(1, len(words))}

    def _clip(self, row: Mapping[str, Any]) -> Example:
        if row.get("frames") is not None:
            x = grey(row["frames"])
            many, *size = self.shape or x.shape
            if len(x) < many:
                raise DataError(f"a clip with fewer frames than the compression ratio: {len(x)}, expected {many}")
            x = x[:many]
            self._check(x.shape[1:], size, "frames")
            content = str(x.shape).encode() + x.tobytes()
            return {"frames": x, "many": many, "size": x.shape[1:], "content": content}
        if row.get("measurement") is None:
            raise DataError("a row without frames and without a measurement")
        if self.frames or not self.measured:
            raise DataError("a measurement without frames, which a teacher needs")
        many, *size = self.shape
        try:
            y = np.asarray(row["measurement"], np.float32)
        except (TypeError, ValueError):
            raise DataError("a measurement that is not (height, width) of numbers") from None
        if y.ndim != 2 or not np.isfinite(y).all():
            raise DataError(f"a measurement that is not (height, width) of numbers: {y.shape}")
        self._check(y.shape, size, "a measurement")
        return {"measurement": y, "many": many, "size": y.shape, "content": b"Y" + y.tobytes()}

    def _check(self, given: Sequence[int], expected: Sequence[int], what: str) -> None:
        if tuple(given) != tuple(expected):
            said = [" x ".join(map(str, shape)) for shape in (given, expected)]
            by = "the masks have" if self.measured else "the model takes"
            raise DataError(f"{what} of another size than the masks: {said[0]}, and {by} {said[1]}")

    def _words(self, row: Mapping[str, Any]) -> list[str]:
        given = row.get("captions") or ([row["caption"]] if row.get("caption") is not None else [])
        if any(not isinstance(text, str) or not words_in(text) for text in given):
            raise DataError("an empty caption")
        if not given and self.captions:
            raise DataError("a clip without a caption")
        words = words_in(given[0]) if given else []
        if self.room is not None and len(words) > self.room:
            raise DataError(f"a caption longer than the decoder: {len(words)} words, and there is room for {self.room}")
        if self.known is not None and (new := [word for word in words if word not in self.known]):
            raise DataError(f"a caption with a word that the decoder does not know: {new[0]!r}")
        return words
