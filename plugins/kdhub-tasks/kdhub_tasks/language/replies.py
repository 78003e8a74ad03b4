"""Reading what models reply. Replies that are empty or cannot be read are counted by reason; a data set made of replies
(`made`) reports the counts."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow
from kdhub.errors import TeacherError

if TYPE_CHECKING:
    from kdhub_tasks.language.generation import Answer

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


Rows = Callable[[Tally], Iterable[dict[str, Any] | BadRow]]
"""Rows that count in a tally which replies they drop."""


def made(
    name: str, splits: Mapping[str, Rows], key: Mapping[str, Any], *, drop_unlikely: float = 0.0, **about: Any
) -> Data:
    """A data set of such rows.

    Args:
        drop_unlikely: the share of each split's rows that is dropped, those with the lowest `log_prob`.
    """
    key = {**key, "version": 1} | ({"drop_unlikely": drop_unlikely} if drop_unlikely else {})

    def rows(split: str) -> Iterator[dict[str, Any] | BadRow]:
        tally, kept, bad = Tally(), 0, 0
        for row in likelier(splits[split], drop_unlikely, tally) if drop_unlikely else splits[split](tally):
            bad += isinstance(row, BadRow)
            kept += not isinstance(row, BadRow)
            yield row
        if kept or tally or not bad:  # where all rows are bad, that is what is reported
            tally.report(f"{name}, split {split!r}", kept)

    return Data.from_rows(name, {s: lambda s=s: rows(s) for s in splits}, key=key, **about)


def likelier(rows: Rows, share: float, tally: Tally) -> Iterator[dict[str, Any] | BadRow]:
    """The rows without the share that has the lowest `log_prob`; of equal ones at the border none is dropped. They are
    made twice, but replies are stored: nothing is asked twice."""
    values = sorted(row["log_prob"] for row in rows(Tally()) if not isinstance(row, BadRow))
    for row in rows(tally):
        if not isinstance(row, BadRow) and row["log_prob"] < values[int(share * len(values))]:
            tally["improbable"] += 1
        else:
            yield row


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


def distinct(replies: Iterable[Answer], tally: Tally) -> Iterator[tuple[int, Answer]]:
    """Replies with their numbers, without empty and repeated ones."""
    seen = set()
    for n, reply in enumerate(replies):
        if not reply.text.strip() or reply.text in seen:
            tally["repeated" if reply.text in seen else "refused" if reply.fault else "empty"] += 1
        else:
            seen.add(reply.text)
            yield n, reply
