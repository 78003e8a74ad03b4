"""Rows of images and texts as tokens. They are rows of language with the images of `image` or `images`; the answer
alone is learnt, and no token that stands for an image.

Where an image stands in a text is said by the model's image token, or by `<image>`; in `messages` also by parts
(`{"type": "image"}`). Where nothing says it, the images of a row stand before its prompt, or before the first message
of the user. A row that does not fit with its images is refused and not cut: what would be cut is the answer, or an
image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from kdhub.errors import DataError
from kdhub.rows import Example, Fault, UnreadableRows, all_readable, prepared
from kdhub_tasks.classification.images import fault_of, is_file, seen
from kdhub_tasks.language import chat_template, groups
from kdhub_tasks.language.rows import NOTHING, Encoding, Row
from kdhub_tasks.vision_language.reader import Ids, Reader, Seen

MARKER = "<image>"
"""What stands for an image in a text, whatever a model's own token for it."""


@dataclass
class ImageEncoding(Encoding):
    """How rows with images become tokens.

    Attributes:
        readers: of all models that see the rows, the one of `tokenizer` first; limits: the most tokens of each, with
            those of images.
    """

    readers: Sequence[Reader] = ()
    limits: Sequence[int | None] = ()

    # -- forms ------------------------------------------------------------------------------------------------

    def unanswered(self, rows: Sequence[Row]) -> list[Example]:
        return self._with_images(rows, super().unanswered, "prompt")

    def responses(self, rows: Sequence[Row]) -> list[Example]:
        return self._with_images(rows, super().responses, "prompt")

    def conversations(self, rows: Sequence[Row]) -> list[Example]:
        return self._with_images(rows, super().conversations, "messages")

    def as_prompts(self, rows: Sequence[Row], answer: int) -> list[Example]:
        column = next(name for name in ("messages", "prompt") if rows[0].get(name))
        return self._with_images(
            rows, lambda given: super(ImageEncoding, self).as_prompts(given, answer), column, answer
        )

    def _with_images(
        self, rows: Sequence[Row], prepare: Callable[[Sequence[Row]], list[Example]], column: str, answer: int = 0
    ) -> list[Example]:
        """
        Args:
            prepare: of language, which sees one token for each image.
            answer: most tokens that will be written after a row.
        """
        faults: dict[int, str] = {}
        images, placed = [], []
        for n, row in enumerate(rows):
            found: list[Seen] = []
            given = dict(row)
            try:
                found = list(images_of(row))
                self._require_none_in_answers(row)
                given[column] = self._placed(row[column], len(found))
            except DataError as error:
                faults[n] = getattr(error, "fault", error.message)
            images.append(found)
            placed.append(given)
        limit, self.limit = self.limit, None
        try:
            made = prepare(
                [{**row, column: _harmless(row[column])} if n in faults else row for n, row in enumerate(placed)]
            )
        except UnreadableRows as error:
            made = error.examples
            faults = {n: e["fault"] for n, e in enumerate(made) if "fault" in e} | faults
        finally:
            self.limit = limit
        for n, (example, found) in enumerate(zip(made, images)):
            if n in faults:
                made[n] = example | NOTHING | {"fault": faults[n]}
                continue
            try:
                made[n] = self._seeing(example, found, answer)
            except DataError as error:
                faults[n] = error.message
                made[n] = example | NOTHING | {"fault": error.message}
        if faults:
            raise UnreadableRows(made)
        return made

    def _seeing(self, example: Example, images: Sequence[Seen], answer: int) -> Example:
        """An example with its images.

        Raises:
            DataError: the chat template left out images, or a model cannot take all of it.
        """
        ids, token = example["ids"], self.readers[0].token
        if (marks := ids.count(token)) != len(images):
            raise DataError(
                f"a text with {marks} of the {len(images)} images of its row: the chat template places no more"
            )
        ids = Ids(ids, images)
        sizes = [reader.length(ids) for reader in self.readers]
        for size, limit in zip(sizes, self.limits):
            if limit is not None and size + answer > limit:
                of_images = size - len(ids) + len(images)
                more = f" and an answer of {answer}" if answer else ""
                raise DataError(
                    f"longer than the model takes with its images, so its answer would be cut: {size} tokens, "
                    f"{of_images} of them of {len(images)} images{more}, where it takes {limit}"
                )
        digest = hashlib.sha256(b"".join(image.digest for image in images)).digest()
        made = {**example, "ids": ids, "length": max(sizes) if example["length"] else 0}
        made["content"] = example["content"] + (b"\0" + digest if images else b"")
        if "at" in example and token in example["labels"]:  # of `loss_on: all`
            kept = [n for n, label in enumerate(example["labels"]) if label != token]
            made |= {name: [example[name][n] for n in kept] for name in ("at", "labels")}
        return made

    def responses_in_groups(self, rows: Sequence[Row]) -> list[Example]:
        made = groups.examples(partial(prepared, self.responses), rows, self.groups)
        for n, example in enumerate(made):
            if fault := next((e["fault"] for e in example.get("sequences", ()) if "fault" in e), None):
                made[n] = example | NOTHING | {"fault": fault}
        return all_readable(made)

    # -- where images stand -----------------------------------------------------------------------------------

    def _placed(self, given: Any, count: int) -> Any:
        """A prompt or messages, with the image token wherever one of `count` images stands.

        Raises:
            DataError: it has other places than images.
        """
        if isinstance(given, str):
            text, marks = self._marked(given)
            self._require(marks, count)
            return text if marks else self.readers[0].place * count + text
        made, marks = [], 0
        for message in given:
            parts = []
            for part in self._parts(message["content"]):
                parts.append(part)
                marks += part["type"] == "image"
            made.append({**message, "content": parts})
        self._require(marks, count)
        if not marks and count:
            first = next((m for m in made if m["role"] == "user"), None)
            if first is None:
                raise DataError(
                    "a conversation with images and without a message of the user before which they could stand"
                )
            first["content"] = [{"type": "image"}] * count + first["content"]
        return [{**m, "content": m["content"] if self._takes_parts else self._flat(m["content"])} for m in made]

    def _require(self, marks: int, count: int) -> None:
        if marks and not count:
            raise DataError(f"with a place for an image ({MARKER}) in its text and no image")
        if marks and marks != count:
            raise DataError(f"with {marks} places for images ({MARKER}) in its text and {count} images")

    def _require_none_in_answers(self, row: Row) -> None:
        answers = [row.get(name) for name in ("response", "chosen", "rejected")] + list(row.get("responses") or ())
        answers += [m["content"] for m in row.get("messages") or () if m["role"] == "assistant"]
        if any(isinstance(text, str) and self._marked(text)[1] for text in answers):
            raise DataError(f"with a place for an image ({MARKER}) in its answer, which no model writes")

    def _marked(self, text: str) -> tuple[str, int]:
        """A text with the model's image token in the places of images, and how many there are."""
        reader = self.readers[0]
        if MARKER not in (reader.text, reader.place):
            text = text.replace(MARKER, reader.place)
        return text, text.count(reader.text)

    def _parts(self, content: Any) -> Iterator[dict[str, str]]:
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "image":
                yield {"type": "image"}
                continue
            pieces = (part.get("text") or "").replace(MARKER, self.readers[0].text).split(self.readers[0].text)
            for n, piece in enumerate(pieces):
                if n:
                    yield {"type": "image"}
                if piece:
                    yield {"type": "text", "text": piece}

    def _flat(self, parts: Sequence[Mapping[str, str]]) -> str:
        return "".join(self.readers[0].place if part["type"] == "image" else part["text"] for part in parts)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the tokenizer's chat template knows messages of parts; others see a text with image tokens."""
        parts = [{"type": "image"}, {"type": "text", "text": "what is seen"}]
        try:
            text = chat_template.render(self.tokenizer, [{"role": "user", "content": parts}])
        except DataError:
            return False
        return text.count(self.readers[0].text) == 1 and "what is seen" in text and "'type'" not in text


def images_of(row: Row) -> Iterator[Seen]:
    """The images of a row.

    Raises:
        DataError: one cannot be read; its number is named where there are several.
    """
    one, several = row.get("image"), row.get("images")
    if one is not None and several is not None and len(several):
        raise DataError("with both `image` and `images`, and nothing says which come first")
    values = [one] if one is not None else [] if several is None else list(several)
    for number, value in enumerate(values, 1):
        try:
            pixels, content = seen(value if is_file(value) else np.asarray(value))
        except DataError as error:
            fault = fault_of(error, value)
            which = f"image {number} of {len(values)}" if len(values) > 1 else ""
            raise _Unreadable(Fault(fault, ": ".join(filter(None, (which, fault.where))))) from error
        except ValueError as error:
            raise _Unreadable(Fault("an image has lines of several lengths", f"image {number}")) from error
        yield Seen(pixels, hashlib.sha256(content + repr(pixels.shape).encode()).digest())


class _Unreadable(DataError):
    def __init__(self, fault: Fault):
        super().__init__(str(fault))
        self.fault = fault


def _harmless(given: Any) -> Any:
    """What stands in for the prompt of a row that cannot be read, of which nothing is kept."""
    return "-" if isinstance(given, str) else [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}]
