"""YAML is plain values; what would be more is refused before anything is made of it."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdhub.plain_yaml import DEEPEST, MOST, VALUES, NotPlain, plain_yaml

TEXT = """\
number: 1
numbers: [-1.5, 1.0e-4, 010, 0x1f, .inf, -.INF]
words: [true, False, null, ~, yes, No, on]
texts: [1:30, 2024-01-01, 1e5, 1_000, "1", 'true', <<, =]
block: |
  two
  lines
nothing:
2: key
"""


@pytest.mark.parametrize("stranger", [False, True])
def test_what_is_what(stranger):
    assert plain_yaml(TEXT, stranger=stranger) == {
        "number": 1,
        "numbers": [-1.5, 1e-4, 10, 31, math.inf, -math.inf],
        "words": [True, False, None, None, "yes", "No", "on"],
        "texts": ["1:30", "2024-01-01", "1e5", "1_000", "1", "true", "<<", "="],
        "block": "two\nlines\n",
        "nothing": None,
        2: "key",
    }
    assert plain_yaml(b"\xef\xbb\xbfa: 1") == {"a": 1} and plain_yaml("") is None


texts = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" \n"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**39), 10**39) | st.floats(allow_nan=False) | texts
    | st.sampled_from(["yes", "1e5", "0o7", "1:30", "2024-01-01", "<<", "~", "0b1", "1_0", "-", ".inf", "1.", "+1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)  # fmt: skip


@given(values)
def test_what_is_written_is_read(value):
    assert plain_yaml(yaml.safe_dump(value, allow_unicode=True), stranger=True) == value


@pytest.mark.parametrize(
    "text, said, line",
    [
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' stands twice", 2),
        ("a: 1\n? [b]\n: c", "as a key", 2),
        ("a: !!int '1'", "tag", 1),
        ("a: !!python/object:os.system x", "tag", 1),
        ("%TAG ! tag:x,2000:\n---\na: 1", "directives", None),
        ('a: "\\ud800"', "Unicode", 1),
        ("a: b: c", "not allowed", 1),
        (b"a: \xff", "not UTF-8 at byte 3", None),
        ("a: 1\n---\nb: 2", "document", None),
    ],
)
@pytest.mark.parametrize("stranger", [False, True])
def test_more_than_values_is_refused(text, said, line, stranger):
    with pytest.raises(NotPlain, match=said) as error:
        plain_yaml(text, stranger=stranger)
    assert line is None or error.value.line == line


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("[" * (DEEPEST + 1), f"more than {DEEPEST} deep"),
        ("- " * (DEEPEST + 1) + "x", f"more than {DEEPEST} deep"),
        ("[" + "1," * VALUES + "]", "more than"),
        ("#" * (MOST + 1), "characters"),
    ],
)
def test_of_a_stranger_also_what_is_large(text, said):
    with pytest.raises(NotPlain, match=said):
        plain_yaml(text, stranger=True)


def test_own_files_may_say_a_thing_once():
    assert plain_yaml("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}
    assert plain_yaml("a: &x {p: 1, q: 1}\nb: {<<: *x, q: 2}")["b"] == {"p": 1, "q": 2}
    with pytest.raises(NotPlain, match="<< takes a mapping"):
        plain_yaml("<<: 1")
    assert plain_yaml("x: " + "9" * 500) == {"x": "9" * 500}, "no number is longer than any that a file of ours has"
    assert json.dumps(plain_yaml("x: 1" + "0" * 39))
