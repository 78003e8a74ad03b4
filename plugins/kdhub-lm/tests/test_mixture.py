"""Prompts and responses as conversations, and mixtures of instruction sets."""

from __future__ import annotations

import json

import pytest
from kdhub_lm.data import mixture
from kdhub_lm.data.chat import chat

from kdhub.errors import DataError, RecipeError

ONE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TWO = [*ONE, {"role": "user", "content": "é?"}, {"role": "assistant", "content": " ok "}]


def test_prompts_and_responses_become_conversations(tmp_path):
    rows = [{"prompt": "p" * n, "response": "r" * n, "kind": n} for n in (1, 40)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = chat(f"path:{tmp_path}/d.jsonl", system="be brief", loss_on="all", limit=80)
    assert data.form("train") == "conversations"
    (row,) = data.split("train")
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    assert row["kind"] == 1 and row["loss_on"] == "all", "40 and 40 letters are more than 80 tokens with what is around"


def test_shares_of_a_mixture():
    """Invariant 4, with the seven sizes of Tulu: the human part is 249,806 of 490,694."""
    sizes, ones = [100_000, 100_000, 15_011, 34_795, 52_002, 20_022, 168_864], [1.0] * 7
    counts = mixture.shares(sizes, ones, "concat")
    assert counts == sizes and sum(counts) == 490_694 and sum(counts[:4]) == 249_806
    assert [round(n / 490_694, 3) for n in counts] == [0.204, 0.204, 0.031, 0.071, 0.106, 0.041, 0.344]
    assert mixture.shares(sizes, ones, "equal") == [70_100] * 2 + [70_099] * 5 or sum(
        mixture.shares(sizes, ones, "equal")) == 490_694  # fmt: skip
    assert mixture.shares([100, 400], [1, 1], "temperature", 2.0) == [167, 333], "1 : 2"
    assert mixture.shares([100, 400], [1, 1], "temperature", 1.0) == [100, 400]
    assert mixture.shares([100, 400], [4, 1], "concat") == [250, 250]
    assert sorted(mixture.drawn([3, 5, 8], 7, "x")) == sorted([3, 5, 8] * 2 + mixture.drawn([3, 5, 8], 1, "x"))


def test_a_mixture_says_where_each_row_is_from(tmp_path):
    def write(name, rows):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"path:{tmp_path}/{name}.jsonl"

    human = write("h", [{"prompt": f"h{n}", "response": "x"} for n in range(20)] + [{"prompt": "none", "response": ""}])
    named = [*TWO[:1], {"role": "assistant", "content": "As a BIG-model"}]
    said = write("t", [{"messages": [*named, {"role": "user", "content": f"t{n}"}, ONE[1]]} for n in range(10)])
    sources = [{"source": human, "sample": 8, "by": "human"}, {"source": said, "by": "teacher:big"}]
    data = mixture.mixture("m", sources=sources)
    rows = list(data.split("train"))
    assert [(r["dataset"], r["source"]) for r in rows] == [(human, "human")] * 8 + [(said, "teacher:big")] * 10
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "x"}, "of two forms, conversations"
    again = mixture.mixture("m", sources=sources, strategy="equal").split("train")
    assert [r["source"] for r in again].count("human") == 9, "9 of 8: one comes twice"
    first = mixture.mixture("m", sources=[{"source": human, "weight": 1}, {"source": said, "weight": 3}])
    assert [r["source"] for r in first.split("train")].count("unknown") == 30
    chosen = [
        [r["id"] for r in mixture.mixture("m", sources=sources, strategy="equal", seed=s).split("train")]
        for s in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    with pytest.raises(DataError, match="every row of .* has a blocked word"):
        mixture.mixture("m", sources=sources, block=["big-MODEL"]).split("train")
    write("t", [*({"messages": [*TWO, *ONE]},), {"messages": [{"role": "user", "content": "OpenSomething"}, ONE[1]]}])
    (tmp_path / "words.txt").write_text("opensomething\n\n")
    left = mixture.mixture("m", sources=[said], block=str(tmp_path / "words.txt")).split("train")
    assert len(left) == 1 and left[0]["source"] == "unknown", "in whatever case, in any turn"
    with pytest.raises(DataError, match="no form in common"):
        mixture.mixture("m", sources=[said, {"source": "pydoc", "split": "train"}])
    with pytest.raises(RecipeError, match="wieght"):
        mixture.mixture("m", sources=[{"source": said, "wieght": 2}])
