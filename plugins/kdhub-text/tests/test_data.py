"""Data sets that are generated, or made from other ones."""

from __future__ import annotations

import json

from kdhub_text.data.documents import joined
from kdhub_text.data.pydoc_questions import rows as questions_of

import kdhub


def test_long_documents_cross_no_document():
    rows = [{"tokens": [w] * 3, "tags": ["O"] * 3, "of": name} for w, name in zip("abcde", "xxxyy")]
    made = list(joined(rows, ["tokens", "tags"], 5, "of"))
    assert ["".join(row["tokens"]) for row in made] == ["aaabbb", "ccc", "dddeee"]
    assert all(len(row["tokens"]) == len(row["tags"]) for row in made)
    texts = joined([{"text": "a b"}, {"text": "c"}, {"text": "d"}], ["text"], 3)
    assert [row["text"] for row in texts] == ["a b c", "d"]


def test_long_range_says_the_kind_in_the_first_word_alone(home):
    rows = list(kdhub.open_data("long-range").split("test"))
    kinds = {"people": "B-PER", "places": "B-LOC"}
    assert len(rows) == 100 and all(set(r["tags"]) == {"O", kinds[r["tokens"][0]]} for r in rows)
    assert len({r["tokens"][0] for r in rows}) == 2


def test_which_function_does_what():
    held_out = list(questions_of("validation", 4))
    assert len(held_out) > 500
    for row in held_out:
        (name,), (start,) = row["answers"].values()
        assert row["context"][start:].startswith(f"{name}(")
        assert 2 <= row["context"].count("(") <= 4
    assert json.dumps(held_out) == json.dumps(list(questions_of("validation", 4)))
