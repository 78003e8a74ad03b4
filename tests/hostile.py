"""What means harm, or is broken, made from what is whole; and a look at what kdhub did with it.

`mutated` changes a valid file as an attacker or a bad disk would. `watched` sees what a block does that it must not:
modules that nobody asked for, code and processes out of a folder, other addresses.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

LONG = "x" * 5_000
VALUES: list[Any] = [
    None, True, False, 0, -1, 10**400, -(10**19), 2**63, 1e308, float("nan"), float("inf"), "", " ", "x", LONG,
    "\ud800", "\x1b]0;owned\x07\x1b[2J", "\0", "../../etc/passwd", "/etc/passwd", "os.system", "__class__", "{{x}}",
    "\u202etxt", "\ufeff", "1e5", "!!int ''", [], {}, [None], [[]], [{}], {"": None}, {"a": {"b": []}}, ["a", 1],
    {"source": "openai:gpt"}, {"$ref": "#"}, [[[[[[[[[[]]]]]]]]]], list(range(300)),
]  # fmt: skip
"""What stands in the place of a value."""

TEXTS = [
    "!!int ''", "!!bool foo", "!!timestamp x", "!!python/name:os.system", "&a [*a]", "*a", "<<: 7", "? [a]", "- - -",
    "%YAML 9.9\n---\n", "---\n", "...\n", "\ufeff", "\x00", "\x1b[31m", "\t", "'", '"', "{", "[", "]", "}", "|", ">",
    "#", "1" * 500, "1:" * 60, "\u2028", "\U000e0001", "NaN", "-Infinity", "1e999", "\\ud800", "\\u0000", ",", ":",
]  # fmt: skip
"""What stands between, or in the place of, some characters."""


def mutated(content: bytes, draw: random.Random, *, front: bool = False) -> bytes:
    """Another content, near a valid one of JSON, or YAML (`front`: between the two lines of a card)."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        content = draw.choice((_tree, _tree, _tree, _text, _bytes))(content, draw, front)
    return content


def _bytes(content: bytes, draw: random.Random, front: bool) -> bytes:
    made = bytearray(content)
    match draw.randrange(6):
        case 0:
            return bytes(made[: draw.randrange(len(made) + 1)])
        case 1:
            return draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\xff")) + content
        case 2:
            return content.decode("utf-8", "replace").encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")), "replace")
        case _:
            for _ in range(draw.choice((1, 1, 3, 20))):
                if made:
                    made[draw.randrange(len(made))] = draw.randrange(256)
            return bytes(made)


def _text(content: bytes, draw: random.Random, front: bool) -> bytes:
    text = content.decode("utf-8", "replace")
    at = draw.randrange(len(text) + 1)
    return (text[:at] + draw.choice(TEXTS) + text[at + draw.choice((0, 0, 1, 5)) :]).encode("utf-8", "replace")


def _tree(content: bytes, draw: random.Random, front: bool) -> bytes:
    text = content.decode("utf-8", "replace")
    before, after = "", ""
    if front:
        _, _, rest = text.partition("---\n")
        text, mark, after = rest.partition("\n---\n")
        before, after = "---\n", mark + after
    try:
        value = json.loads(text)
        write = json.dumps
    except (ValueError, RecursionError):
        try:
            value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except Exception:
            return _text(content, draw, front)

        def write(value):
            return yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True)
    places = list(_places(value))
    if not places:
        return write(draw.choice(VALUES)).encode("utf-8", "replace")
    holder, key = draw.choice(places)
    match draw.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(["", "x", LONG[:300], "\x1b[1m", "__proto__", 7, None])] = holder.pop(key)
        case 2:
            holder[key] = [holder[key]]
        case 3:
            other, name = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[name], default=str)) if name in _keys(other) else None
        case 4 if isinstance(holder, dict):
            holder[draw.choice(["trust_remote_code", "auto_map", "source", "x"])] = draw.choice(VALUES)
        case _:
            holder[key] = draw.choice(VALUES)
    try:
        return (before + write(value) + after).encode("utf-8", "replace")
    except Exception:  # what YAML cannot write
        return (before + json.dumps(value, default=str, skipkeys=True) + after).encode("utf-8", "replace")


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value inside, as the mapping or list that holds it, and its key there."""
    if isinstance(value, (dict, list)):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner)
