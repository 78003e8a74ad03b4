"""COMET's rows: what the student of a graph reads and writes.

    prompt      <head> PersonX misses the bus </head> <relation> xWant </relation> [GEN]
    response     to call a taxi

The marks are plain text to its tokenizer. It writes greedily; `tail_of` cuts what it wrote at the first full stop or
end of line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROMPT = "<head> {head} </head> <relation> {relation} </relation> [GEN]"


def prompt_of(row: Mapping[str, Any]) -> str:
    return PROMPT.format(head=row["head"], relation=row["relation"])


def as_example(row: Mapping[str, Any]) -> dict[str, str]:
    """A triple as a row of the task `causal-lm`."""
    return {"prompt": prompt_of(row), "response": f" {row['tail']}"}


def tail_of(text: str, stop: str = ".") -> str:
    """The tail in what the student wrote."""
    return text.split("\n")[0].split(stop)[0].strip()
