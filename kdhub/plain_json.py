"""JSON that others wrote, or that a disk may have damaged, as plain values of the shape that they must have.

One reader for files of runs and repositories and for answers of hubs. What is none of ours is refused before anything
is made of it: other encodings, halves of characters, numbers of a hundred digits, the same key twice. A shape is any
type that pydantic knows; what does not fit it is named by its key, with what was expected there.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdhub.plain_yaml import NotPlain, kind_of

LARGEST = 64 * 2**20
"""Bytes of a file that is read whole."""
DIGITS = 40
DEEPEST = 100

_HALF = re.compile(r"\\u[dD][89abAB]|[\ud800-\udfff]")


def plain_json(content: bytes | str, shape: Any = None, *, finite: bool = False) -> Any:
    """The values of one document.

    Args:
        shape: a type that they must fit, as `fit` has it.
        finite: also refuse NaN and infinite numbers, which JSON has not and Python writes.

    Raises:
        NotPlain: it is not JSON, more than plain values, or of another shape.
    """
    try:
        text = (content.decode() if isinstance(content, bytes) else content).removeprefix("\ufeff")
        value = json.loads(
            text, parse_int=_whole, parse_constant=_no_number if finite else None, object_pairs_hook=_object
        )
    except UnicodeDecodeError as error:
        raise NotPlain(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise NotPlain(f"not JSON: {error.msg[0].lower() + error.msg[1:]}, line {error.lineno}") from None
    except RecursionError:
        raise NotPlain(f"not JSON that ends: nested more than {DEEPEST} deep") from None
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise NotPlain(f"nested more than {DEEPEST} deep")
    if _HALF.search(text) and (key := _half(value)) is not None:
        raise NotPlain(f"{key or 'it'} holds half of a character, which is no text")
    return value if shape is None else fit(shape, value)


def read_json(path: Path | str, shape: Any = None, *, most: int = LARGEST, finite: bool = False) -> Any:
    """The values of a file, as `plain_json`.

    Raises:
        OSError: it cannot be read. NotPlain: as `plain_json`; it has more than `most` bytes.
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NotPlain(f"more than {most:,} bytes")
    return plain_json(content, shape, finite=finite)


def fit(shape: Any, value: Any) -> Any:
    """The value itself, where it fits a type: a text is no number, a list no mapping. Keys that a model does not know
    are left as they are.

    Raises:
        NotPlain: names up to three keys, what was expected and what stands there.
    """
    from pydantic import ValidationError

    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        wanted: dict[str, list[str]] = {}
        found: dict[str, Any] = {}
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"] if not _KIND.fullmatch(str(part)))[:200] or "it"
            said = _SAID.get(item["type"]) or item["msg"][0].lower() + item["msg"][1:]
            wanted.setdefault(key, []).append(said)
            found[key] = "" if item["type"] == "missing" else f" (found {_short(item['input'])})"
        told = [
            f"{key} {'' if 'is missing' in said else 'must be '}{' or '.join(dict.fromkeys(said))}{found[key]}"
            for key, said in list(wanted.items())[:3]
        ]
        raise NotPlain("; ".join(told)) from None
    return value


_KIND = re.compile(r"(?:str|int|float|bool|none|list|dict|function-\w+)(?:\[.*\])?")
"""What pydantic puts among the keys: of a union, which of its types was tried."""
_SAID = {
    "missing": "is missing",
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


@lru_cache(maxsize=256)
def _adapter(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _short(value: Any) -> str:
    text = kind_of(value) if isinstance(value, (dict, list)) or value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise NotPlain(f"a number of {len(digits):,} digits")
    return int(digits)


def _no_number(name: str) -> float:
    raise NotPlain(f"{name}, which is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise NotPlain(f"the key {twice[:60]!r} twice")
    return made


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return depth


def _half(value: Any, at: str = "") -> str | None:
    """The key of a text with half of a character; None without one."""
    if isinstance(value, str):
        return at if any("\ud800" <= c <= "\udfff" for c in value) else None
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found = _half(str(key), at) if isinstance(value, dict) else None
            found = _half(inner, f"{at}.{key}" if at else str(key)) if found is None else found
            if found is not None:
                return found.encode("ascii", "backslashreplace").decode()[:200]
    return None
