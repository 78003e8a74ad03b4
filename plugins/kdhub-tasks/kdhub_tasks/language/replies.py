"""Reading what models reply. Replies that are empty or cannot be read are counted by reason; a data set made of replies
(`made`) reports the counts."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kdhub.data.dataset import Data
from kdhub.errors import TeacherError

logger = logging.getLogger("kdhub")


class Tally(Counter):
    """Why replies were dropped."""

    def report(self, what: str, kept: int) -> None:
        """Raises:
        TeacherError: none was kept.
        """
        if not self and kept:
            return
        reasons = ", ".join(f"{n} {why}" for why, n in self.most_common()) or "there were none"
        message = f"{what}: {kept} rows, {self.total()} replies dropped: {reasons}"
        if not kept:
            raise TeacherError(message, hint="does this model understand the template? Try one prompt by hand")
        logger.warning("%s", message)


def made(
    name: str, splits: Mapping[str, Callable[[Tally], Iterable[dict[str, Any]]]], key: Mapping[str, Any], **about: Any
) -> Data:
    """A data set whose rows count in a tally which replies they drop."""

    def rows(split: str) -> Iterator[dict[str, Any]]:
        tally, kept = Tally(), 0
        for row in splits[split](tally):
            kept += 1
            yield row
        tally.report(f"{name}, split {split!r}", kept)

    return Data.from_rows(name, {s: lambda s=s: rows(s) for s in splits}, key={**key, "version": 1}, **about)


def read_score(text: str, low: float, high: float) -> float | None:
    """The score in a reply: `7`, `7/10`, `7 out of 10`, `Score: 7`; None where it is ambiguous."""
    number = r"(?<![\d.])(-?\d+(?:\.\d+)?)(?!\.?\d)"
    found = re.findall(rf"{number}\s*(?:/|out of)\s*{high:g}\b", text)
    found = found or re.findall(rf"\b(?:score|rating|grade)\b\D{{0,12}}?{number}(?!\s*(?:-|to)\s*\d)", text, re.I)
    values = {float(value) for value in found or re.findall(number, text)}
    return value if len(values) == 1 and low <= (value := values.pop()) <= high else None


def read_order(text: str, count: int) -> list[int] | None:
    """Indices from 0, the best first, of the last line with an order such as `2 > 1 > 3`; None unless it names all.
    With other words it would be unclear whether the better or the worse one comes first."""
    for line in reversed(text.splitlines()):
        for chain in re.findall(r"(?:\[?\d+\]?\s*[>,;]\s*)*\[?\d+\]?", line):
            found = [int(n) - 1 for n in re.findall(r"\d+", chain)]
            if sorted(found) == list(range(count)) and len(re.findall(r"\d+", line)) == count:
                return found
    return None


def read_pairs(text: str) -> list[tuple[str, str]]:
    """Tasks and answers of all `Input: ... Output: ...` in a reply; the first `Input:` may be part of the prompt."""
    begun = text if re.match(r"\s*[*#]*Input\s*:", text, re.I) else f"Input: {text}"
    parts = re.split(r"^[*#]*Input\s*:\**", begun, flags=re.I | re.M)[1:]
    pairs = [re.split(r"^[*#]*Output\s*:\**", part, maxsplit=1, flags=re.I | re.M) for part in parts]
    found = [[side.strip() for side in pair] for pair in pairs if len(pair) == 2]
    return [(prompt, response) for prompt, response in found if prompt and response]


def distinct(replies: Iterable[tuple[str, bool]], tally: Tally) -> Iterator[tuple[int, tuple[str, bool]]]:
    """Replies with their numbers, without empty and repeated ones."""
    seen = set()
    for n, (text, ended) in enumerate(replies):
        if not text.strip() or text in seen:
            tally["repeated" if text in seen else "empty"] += 1
        else:
            seen.add(text)
            yield n, (text, ended)
