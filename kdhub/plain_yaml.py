"""YAML as plain values: texts, numbers, true and false, nothing, lists and mappings, as YAML 1.2 has them.

No dates, no numbers to base 60, no `yes` for true: a name stays the text it is. `<<` takes over
the keys of a mapping. What no file of ours has is refused
before anything is made of it: tags, directives, the same key twice, and where a stranger wrote it also aliases (by
which a few lines become gigabytes), great length and depth.
"""

from __future__ import annotations

import math
import re
from typing import Any

MOST = 2**19
"""Characters of a stranger's YAML."""
DEEPEST = 100
VALUES = 100_000

# What PyYAML writes without quotes for a text (1e5, 0o7) is read as that text.
_INT = re.compile(r"[-+]?[0-9]{1,40}|[-+]?0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,400}\.[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][-+][0-9]{1,5})?")
_BEYOND = {".nan": math.nan} | {sign + ".inf": float(sign + "inf") for sign in ("", "+", "-")}
_WORDS = {"": None, "~": None} | {
    said: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for said in (word, word.capitalize(), word.upper())
}


class NotPlain(ValueError):
    """Attributes:
    line, column: where, from 1; None when that is not known.
    """

    def __init__(self, message: str, mark: Any = None):
        super().__init__(message)
        self.line, self.column = (mark.line + 1, mark.column + 1) if mark else (None, None)


def kind_of(value: Any) -> str:
    """What a plain value is, in words."""
    kinds = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return kinds.get(type(value), "empty")


def plain_yaml(text: str | bytes, *, stranger: bool = False) -> Any:
    """The values of one document.

    Args:
        stranger: somebody else wrote it: no aliases, at most `MOST` characters, `DEEPEST` levels, `VALUES` values.

    Raises:
        NotPlain: it is not YAML, or more than plain values.
    """
    import yaml

    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise NotPlain(f"not UTF-8 at byte {error.start}") from None
    if stranger and len(text) > MOST:
        raise NotPlain(f"{len(text):,} characters of YAML, more than {MOST:,}")
    if re.search(r"^%[A-Z]", text, re.MULTILINE):
        raise NotPlain("YAML with directives (%)")
    loader = _loader(yaml)
    try:
        if stranger:
            _survey(yaml, yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise NotPlain(getattr(error, "problem", None) or " ".join(str(error).split())[:300], mark) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, NotPlain):
            raise
        raise NotPlain(f"not valid YAML ({error})") from error


def _survey(yaml: Any, events: Any) -> None:
    """Look through a document before anything is made of it. The parser keeps no stack; what builds values does."""
    depth = 0
    for count, event in enumerate(events):
        if count > VALUES:
            raise NotPlain(f"more than {VALUES:,} values", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise NotPlain(f"YAML nested more than {DEEPEST} deep", event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise NotPlain("YAML with aliases", event.start_mark)


_loaders: list[Any] = []


def _loader(yaml: Any) -> Any:
    """The loader class; made on first use, for `kdhub --help` reads no YAML."""
    if not _loaders:

        class Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # ten times faster; builds without it exist
            yaml_implicit_resolvers: dict[str, Any] = {}
            yaml_constructors: dict[Any, Any] = {}

        Plain.add_constructor("tag:yaml.org,2002:str", _scalar)
        Plain.add_constructor("tag:yaml.org,2002:seq", lambda loader, node: loader.construct_sequence(node, deep=True))
        Plain.add_constructor("tag:yaml.org,2002:map", _mapping)
        Plain.add_constructor(None, _tagged)
        _loaders.append(Plain)
    return _loaders[0]


def _scalar(loader: Any, node: Any) -> Any:
    text = node.value
    if node.style:  # in quotes, or a block
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 16 if "x" in text else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    return _BEYOND.get(text.lower(), text)


def _tagged(loader: Any, node: Any) -> Any:
    raise NotPlain(f"a value with the tag {node.tag[:60]}", node.start_mark)


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    from yaml.constructor import ConstructorError

    made: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if key_node.value == "<<" and not key_node.style:
            parts = loader.construct_object(value_node, deep=True)
            for part in parts if isinstance(parts, list) else [parts]:
                if not isinstance(part, dict):
                    raise ConstructorError(None, None, "<< takes a mapping", value_node.start_mark)
                merged = {**part, **merged}
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (list, dict)):
            raise ConstructorError(None, None, "a list or a mapping as a key", key_node.start_mark)
        if key in made:
            raise ConstructorError(None, None, f"the key {str(key)[:60]!r} stands twice", key_node.start_mark)
        made[key] = loader.construct_object(value_node, deep=True)
    return {**merged, **made}
