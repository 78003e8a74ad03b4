"""Triage: whose trace of a prompt is learnt, and that it is right."""

from __future__ import annotations

import pytest
import torch
from kdhub_lm.data.triage import Rules, counted, triaged
from kdhub_tasks.language.generation import Answer
from kdhub_tasks.language.model import CausalLm
from kdhub_tasks.language.students import llama

import kdhub
from kdhub.errors import DataError, RecipeError
from kdhub.recipes import chain
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.resolve import Resolver
from kdhub.student import BuildContext


def fates_of(rows, answers, expert, **rules):
    """With what a model answers to each row, and what the expert does, try by try."""
    model = lambda asked, k: [[Answer(text, True) for text in answers[n]] for n in asked]  # noqa: E731
    master = None if expert is None else lambda asked, number: [expert[n][number] for n in asked]
    return list(triaged(rows, model, master, Rules(**rules)))


def test_absent_unsure_and_mastered():
    """acc 0, 0.125 and 1: expert, self, skipped."""
    rows = [{"prompt": p, "response": r} for p, r in (("1+1=", "2"), ("1+2=", "3"), ("2+2=", "4"))]
    answers = [["7"] * 8, ["9"] * 7 + ["so 3"], ["4"] * 8]
    none, unsure, mastered = fates_of(rows, answers, {0: [("5", True), ("=> 2", True)]})
    assert (none["acc"], none["origin"], none["traces"], none["tries"]) == (0, "expert", ["=> 2"], 2)
    assert (unsure["acc"], unsure["origin"], unsure["traces"], unsure["tries"]) == (0.125, "self", ["so 3"], 0)
    assert (mastered["acc"], mastered["origin"], mastered["traces"]) == (1, "none", [])
    (*_, again) = fates_of(rows, answers, None, mastered_keep=1.0)
    assert again["origin"] == "replay" and again["traces"] == ["4"]


def test_no_wrong_or_torn_trace_is_kept():
    rows = [{"prompt": "1+1=", "response": "2"}] * 2
    wrong = {0: [("3", True), ("2", False)], 1: [("3", True), ("4", True)]}
    fates = fates_of(rows, [["3"] * 4, ["x"] * 4], wrong, k=4, tries=2)
    assert [f["traces"] for f in fates] == [[], []] and [f["tries"] for f in fates] == [2, 2]
    model = lambda asked, k: [[Answer(*t) for t in (("2", False), ("2 2", True), ("=> 2", True), ("5", True))]]  # noqa: E731
    (fate,) = triaged(rows[:1], model, None, Rules(k=4, per_prompt=3, format=r"=> \d"))
    assert fate["traces"] == ["=> 2"] and fate["acc"] == 0.25


def test_thresholds_and_picks():
    rows = [{"prompt": "1+1=", "response": "2"}]
    answers = [["so it is 2", "2", "2", "is 2", "3", "3", "3", "3"]]
    pick = lambda **rules: fates_of(rows, answers, None, **rules)[0]["traces"]  # noqa: E731
    assert pick() == ["2"] and pick(per_prompt=9) == ["2", "is 2", "so it is 2"], "equal ones once"
    assert sorted(pick(per_prompt=9, pick="random")) == sorted(pick(per_prompt=9))
    assert pick(self_lo=0.5) == [] and pick(self_hi=0.5) == [] and pick(self_lo=0.4, self_hi=0.6) == ["2"]


def test_counts_add_up():
    fates = [("expert", 1, 2), ("expert", 0, 4), ("self", 3, 0), ("none", 0, 0), ("replay", 1, 0)]
    counts = counted(fates)
    assert counts["prompts"] == 5 == sum(counts[f"prompts_{o}"] for o in ("self", "expert", "replay", "none"))
    assert (counts["traces_self"], counts["traces_expert"], counts["traces_replay"]) == (3, 1, 1)
    assert (counts["expert_calls"], counts["expert_failed"]) == (6, 1)


@pytest.mark.parametrize("rules, said", [
    ({"k": 1}, "k must be at least 2"),
    ({"self_lo": 0.5, "self_hi": 0.5}, "self_lo must be from 0 and below self_hi"),
    ({"tries": 0, "pick": "any"}, "pick must be shortest or random"),
    ({"rounds": 2}, "unexpected keyword argument 'rounds'"),
])  # fmt: skip
def test_wrong_rules_are_refused(rules, said):
    with pytest.raises(RecipeError, match=said):
        kdhub.open_data("triage:arithmetic:add", options={"model": "path:x", **rules})


def test_as_a_data_set(tmp_path, monkeypatch):
    """A model that adds rightly where the sum is below 10, of two times sometimes, and an expert in a column."""
    torch.manual_seed(0)
    llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3)).save(tmp_path)
    calls = []

    def generate(self, prompts, how, seed, rows):
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
        calls.append(len(texts))
        written = []
        for row, text in zip(rows, texts):
            total = sum(map(int, text[:-1].split("+")))
            right = total < 10 and (total % 2 or row % 2)
            written.append([*self.tokenizer(str(total if right else 99))["input_ids"], self.tokenizer.eos_token_id])
        return written

    monkeypatch.setattr(CausalLm, "generate", generate)
    options = {"model": f"path:{tmp_path}", "expert": {"column": "response"}, "max_new_tokens": 4}
    data = kdhub.open_data("triage:arithmetic:add", options=options)
    rows, prompts = data.split("train"), data.split("prompts")
    counts = data.source("train")["counts"]
    assert counts["prompts"] == len(prompts) == 91 and sum(counts[f"traces_{o}"] for o in ("self", "expert")) == len(
        rows
    )
    assert {r["origin"] for r in rows} == {"self", "expert"}
    assert all(eval(r["prompt"][:-1]) == int(r["response"]) for r in rows)
    assert all((r["origin"] == "expert") == (r["acc"] == 0) for r in rows)
    assert {p["acc"] for p in prompts if eval(p["prompt"][:-1]) >= 10} == {0}
    before = len(calls)
    again = kdhub.open_data("triage:arithmetic:add", options={**options, "mastered_keep": 1.0})
    assert again.source("train")["counts"]["prompts_replay"] and len(calls) == before, "answers are requested once"
    monkeypatch.setattr(CausalLm, "generate", lambda self, prompts, *rest: [[40]] * len(prompts))
    del options["expert"]
    with pytest.raises(DataError, match="no trace is left"):
        kdhub.open_data("triage:arithmetic:add", options={**options, "k": 3, "max_new_tokens": 3}).split("train")


def test_reinforcement_comes_first():
    """What the recipe stands on, in order: no stage is trained on traces before `grpo`, and `grpo` has seen none."""
    resolver, stages, recipe = Resolver(), [], resolve_recipe("metis-rise")
    chain.check(recipe, resolver)
    while True:
        stages.append((recipe.method, [ref.source.partition(":")[0] for ref in recipe.data["train"]]))
        if not recipe.student.source.startswith("recipe:"):
            break
        recipe = resolve_recipe(recipe.student.source.removeprefix("recipe:"))
    assert stages[::-1] == [
        ("supervised", ["arithmetic"]), ("grpo", ["arithmetic"]), ("metis-rise", ["triage"])
    ]  # fmt: skip
