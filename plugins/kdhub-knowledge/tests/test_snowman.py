"""Typed and negated heads, near duplicates, the self-instruct filter: numbers worked out by hand, a closed world."""

from __future__ import annotations

import csv
import random
from itertools import combinations, product

import numpy as np
import pytest
from kdhub_knowledge.commonsense import world_zh
from kdhub_knowledge.commonsense.heads import typed_heads
from kdhub_knowledge.commonsense.near import Novel, Units
from kdhub_knowledge.commonsense.pool import Example, Filter, Pool, accepted
from kdhub_knowledge.commonsense.typed import lines_of, open_typed
from kdhub_knowledge.commonsense.typed_tails import readable, split_of
from kdhub_knowledge.commonsense.world_zh import ClosedWorldZh, world, written
from kdhub_knowledge.methods.snowman import RECONSTRUCTED
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.replies import Tally
from pydantic import ValidationError

import kdhub
from kdhub.errors import AwaitingError, DataError, KdhubError, TeacherError, UsageError

ZH = open_typed("zh")
TOPICS = ["饮食", "学校"]
DATA = {"source": "typed-heads:zh", "options": {"teacher": "closed-world-zh", "types": ["event"], "categories": TOPICS}}
RECIPE = {
    "task": "data-set",
    "method": "snowman",
    "teacher": {"source": "roles", "judge": "closed-world-zh", "annotator": "closed-world-zh"},
    "student": {"source": "rows", "about": {"origin": "closed"}, "limits": ["Written for a test."]},
    "data": {
        **{polarity: {**DATA, "split": polarity} for polarity in ("positive", "negative")},
        "anchors": "closed-world-zh",
    },
    "options": {"pilot_triples": 30, "pool_max": 30, "together": 5},
    "evaluation": {"data": [], "cost": False},
}


# -- near duplicates ----------------------------------------------------------------------------------------------


def test_rouge_by_hand():
    characters, words = Units(spaces=False), Units(spaces=True)
    assert characters.rouge_l("某人不吃早饭", "某人不吃晚饭") == pytest.approx(5 / 6)
    assert characters.rouge_l("某人不吃早饭", "某人没去上班") == pytest.approx(2 / 6)
    assert words.rouge_l("PersonX eats no breakfast", "PersonX eats no lunch") == pytest.approx(3 / 4)
    assert characters.rouge_l("", "某人") == words.rouge_l("!", "a") == 0
    heads = Novel(0.7)
    assert heads.add("某人不吃早饭") and not heads.add("某人不吃晚饭") and heads.add("某人没去上班")


@pytest.mark.parametrize("limit", [0.3, 0.7, 0.75, 1.0])
@pytest.mark.parametrize("spaces", [False, True])
def test_what_is_kept_is_what_all_pairs_would_keep(limit, spaces):
    draw, units, texts = random.Random(f"{limit}"), Units(spaces), []
    for _ in range(250):
        text = [draw.choice("某人不没去吃早晚饭上班") for _ in range(draw.randint(1, 9))]
        texts.append((" " if spaces else "").join(text))
    kept: list[str] = []
    for text in texts:
        if all(units.rouge_l(text, other) < limit - 1e-9 for other in kept):
            kept.append(text)
    novel = Novel(limit, spaces)
    assert [text for text in texts if novel.add(text)] == kept and 1 < len(kept) < len(texts)


# -- negation and form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    "某人不吃早饭 某人没去上班 某人沒去上班 某人没有钱 某人沒有錢 某人未能到达 某人无法入睡 某人無法入睡 "
    "某人不能喝酒 某人别说话 某人別說話 某人从来不喝酒 "
    "某人昨天不吃妈妈做的饭 某人吃不下饭 冰箱不能加热食物 不锈钢不生锈".split(),
)  # fmt: skip
def test_negated(head):
    assert ZH.negation.holds(head)


@pytest.mark.parametrize(
    "head",
    "某人买了不锈钢锅 某人買了不鏽鋼鍋 警察没收手机 警察沒收手機 某人非常高兴 某人特别开心 "
    "某人特別開心 某人跟别人吵架 某人去不去上班 某人有没有钱 某人不得不加班 "
    "某人后悔没去上班 某人後悔沒去上班 某人买了不新鲜的菜 某人想念未来".split(),
)  # fmt: skip
def test_not_negated(head):
    assert not ZH.negation.holds(head)


def test_heads_are_brought_to_one_form():
    assert (
        ZH.plain(" ＰｅｒｓｏｎＸ 不吃　早饭！ ")
        == ZH.plain("他不吃早饭。")
        == ZH.plain("某人甲不吃早饭")
        == "某人不吃早饭"
    )
    assert ZH.plain("某人甲骂某人乙") == "某人甲骂某人乙"
    assert lines_of("好的：\n1. 甲乙\n２、丙丁\n- 戊己\n完") == ["甲乙", "丙丁", "戊己"]
    faults = {text: ZH.head(text, negative).fault for text, negative in (
        ("某人不吃早饭", True), ("某人不吃早饭", False), ("某人吃早饭", True), ("某", False), ("某" * 21, False),
        ("作为语言模型，我没有早饭", True), ("。！", False),
    )}  # fmt: skip
    assert faults["某人吃早饭"] == "not negated against their type" and faults["。！"] == "empty"
    assert faults["某人不吃早饭"] == "negated against their type" and ZH.head("某人不吃早饭", True).fault is None
    assert faults["某"] == faults["某" * 21] == "too short or too long" and "refusals" in faults.values()
    replies = ("是。常见", "回答：否", "**不是**", "Yes", "作为语言模型，我不能判断", "")
    assert [ZH.verdict(reply) for reply in replies] == [True, False, False, True, None, None]


def test_tails_are_read_and_what_says_nothing_is_counted():
    tally = Tally()
    reply = "1. 快点减肥。\n2. 快点减肥\n3. 某人不吃早饭\n4. 无\n5. 作为语言模型，我想\n6. 第六个"
    assert readable(ZH, reply, "某人不吃早饭", "xIntent", {"饿"}, 5, 0.7, tally) == ["快点减肥"]
    assert tally == {"near duplicates": 1, "the head itself": 1, "nothing": 1, "refusals": 1}
    assert readable(ZH, "1. 饿\n2. 结果迟到", "某人不吃早饭", "xIntent", {"饿"}, 5, 0.7, tally) == []
    assert tally["of another relation"] == 2
    assert (
        readable(ZH, "抱歉，我无法回答", "某人不吃早饭", "xIntent", set(), 5, 0.7, tally) == []
        and tally["refusals"] == 2
    )


# -- votes and pool -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("votes, right, wanted", [(3, 0.8, 0.896), (3, 0.7, 0.784), (3, 0.6, 0.648), (5, 0.8, 0.94208)])
def test_majorities_by_hand(votes, right, wanted):
    outcomes = {"".join(marks): 1.0 for marks in product("10", repeat=votes)}
    share = sum(right ** marks.count("1") * (1 - right) ** marks.count("0") for marks in outcomes if accepted(marks))
    assert share == pytest.approx(wanted)
    if (votes, right) == (3, 0.8):  # and the precision of what is kept of heads of which .65 are valid
        assert 0.65 * share / (0.65 * share + 0.35 * (1 - share)) == pytest.approx(0.941, abs=5e-4)


def test_what_cannot_be_read_is_no_vote():
    assert accepted("110") and accepted("11-") and not accepted("1-0") and not accepted("1--") and not accepted("---")


def pool(most=24, **how):
    return Pool([Example(*anchor) for anchor in world_zh.anchors("negative")], most, 0.7, bare=ZH.bare, **how)


def test_the_pool_stays_balanced_and_keeps_its_anchors():
    members, draw = pool(), random.Random(0)
    heads = [head for of in written("negative", 1).values() for head in of]
    for head in heads[:60]:
        members.add(head, draw.random() < 0.9)
        valid = sum(one.valid for one in members.members)
        assert abs(2 * valid - len(members.members)) <= 1 and len(members.members) <= 24
        assert members.members[:20] == list(members.anchors)
    assert members.full and len({one.head for one in members.members}) == 24
    limit = Units(False)
    assert all(limit.rouge_l(a.head, b.head) < 0.7 for a, b in combinations(members.grown, 2))
    shown = members.shown(heads[70], 8, random.Random(0))
    assert sum(one.valid for one in shown) == 4 == len(shown) - 4 and sum(one in members.anchors for one in shown) >= 2
    again = pool()
    again.load(members.state)
    assert again.members == members.members and again.waiting == members.waiting


def test_a_surplus_waits_and_a_near_duplicate_does_not_join():
    members = pool(30)
    members.add("某人没有去厨房切碎土豆", True)
    members.add("某人没有去教室背诵古诗", True)
    assert [one.head for one in members.grown] == ["某人没有去厨房切碎土豆"]
    members.add("某人没有去厨房打印合同", False)
    assert [one.valid for one in members.grown] == [True, False, True]
    members.add("某人没有去厨房切碎土豆丝", False)
    assert len(members.grown) == 3


def test_anchors_that_cannot_teach_are_refused():
    with pytest.raises(DataError, match=r"1 valid, 0 invalid"):
        Pool([Example("某人不吃早饭", True)], 200, 0.7)
    with pytest.raises(DataError, match="pool_max must be at least the 20 anchors"):
        pool(10)


def filtered(grows, heads, seed=0, judge_votes=None, **how):
    teacher = ClosedWorldZh("", ClosedWorldZh.Options(seed=seed))

    def ask(prompts):
        if judge_votes is not None:
            return [judge_votes for _ in prompts]
        return [
            teacher._answer({"messages": [{"content": p}], "content": p.encode()}, Generation())[0] for p in prompts
        ]

    return list(Filter(ZH, ask, pool(200), grows, seed=seed, **how)(heads))


def test_the_filter_learns_from_its_own_verdicts():
    found = {False: [], True: []}
    for seed in range(2):
        heads = [head for of in written("negative", seed).values() for head in of]
        random.Random(seed).shuffle(heads)
        valid = [world().parsed(head).valid for head in heads]
        assert sum(valid) / len(heads) == pytest.approx(0.65)
        assert all(ZH.head(head, True).fault is None for head in heads)
        for grows, shares in found.items():
            kept = [v for v, votes in zip(valid, filtered(grows, heads, seed)) if accepted(votes)]
            shares.append((sum(kept) / len(kept), sum(kept) / sum(valid)))
    fixed, grown = (np.array(found[grows]) for grows in (False, True))
    assert (fixed[:, 0] >= 0.8).all() and (grown[:, 0] >= 0.9).all() and grown[:, 1].mean() >= 0.9
    assert (grown > fixed).all(), "acceptance and recall, on each seed"
    assert filtered(True, heads[:40]) == filtered(True, heads[:40])
    assert filtered(True, heads[:5], judge_votes="作为语言模型，我不能判断") == ["---"] * 5


def test_heads_of_the_closed_world_are_no_near_duplicates():
    for polarity in ("positive", "negative"):
        heads, units = [head for of in written(polarity, 0).values() for head in of], Units(False)
        assert all(units.rouge_l(a, b) < 0.7 for a, b in combinations(heads[:120], 2))


# -- a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Filtered and not: the folders of their students, and the card of the first."""
    folder = tmp_path_factory.mktemp("snowman")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDHUB_HOME", str(folder / "home"))
        found = {}
        for which in ("auto", "none"):
            recipe = {**RECIPE, "options": {**RECIPE["options"], "filter_types": which}}
            found[which] = kdhub.distill(recipe, out=folder / which)
        yield {which: folder / which for which in found}


def files(folder):
    return {path.name.partition("-")[0]: path.read_bytes() for path in (folder / "student/data").iterdir()}


def test_only_what_the_pilot_finds_unreliable_is_filtered(runs):
    before, after = files(runs["none"]), files(runs["auto"])
    assert before.keys() == {"positive", "negative"} and after.keys() == {"positive", "negative", "rejected"}
    assert after["positive"] == before["positive"] and after["negative"] != before["negative"]
    whole, kept = (kdhub.load(runs[which] / "student").splits for which in ("none", "auto"))
    assert sorted(whole["negative"]["head"]) == sorted([*kept["negative"]["head"], *kept["rejected"]["head"]])
    assert all(accepted(votes) for votes in kept["negative"]["filter_votes"])
    assert not any(accepted(votes) for votes in kept["rejected"]["filter_votes"])
    card = (runs["auto"] / "README.md").read_text()
    assert "origin: closed" in card and "- Written for a test." in card
    assert "reconstructed: true" in card and "event/negative" in card and all(line in card for line in RECONSTRUCTED)


def test_the_pilot_waits_for_people(tmp_path):
    recipe = {**RECIPE, "teacher": {"source": "roles", "judge": "closed-world-zh"}}
    recipe["options"] = {**RECIPE["options"], "pilot_triples": 5}
    with pytest.raises(AwaitingError):
        kdhub.distill(recipe, out=tmp_path / "run")
    path = tmp_path / "run" / "pilot.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert len(rows) == 10 and "因为" in "".join(row["sentence"] for row in rows)
    for row in rows:
        row["label"] = "valid" if row["polarity"] == "negative" else "invalid"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match="no judged heads are positive"):  # which people found unreliable
        kdhub.distill(resume=tmp_path / "run")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"votes": 2}, "votes must be odd"),
        ({"pool_max": 19}, "pool_max"),
        ({"language": "en"}, "typed"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(KdhubError, match=message):
        kdhub.distill({**RECIPE, "options": {**RECIPE["options"], **options}}, out=tmp_path / "run")


def test_heads_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "heads.csv"
    path.write_text("head,head_type\n某人不吃早饭,event\n", encoding="utf-8")
    recipe = {**RECIPE, "data": {"train": f"csv:{path}"}}
    with pytest.raises(DataError, match="no column 'negative'"):
        kdhub.distill(recipe, out=tmp_path / "run")
    with pytest.raises(UsageError, match="no type 'evnt'"):
        typed_heads(teacher="closed-world-zh", types=["evnt"])
    with pytest.raises(UsageError, match="rouge_max above 0"):
        typed_heads(teacher="closed-world-zh", rouge_max=0)
    with pytest.raises(TeacherError, match="writes no heads about 天气"):
        len(typed_heads(teacher="closed-world-zh", types=["event"], categories=["天气"]).split("positive"))


def test_a_head_keeps_its_split_when_others_are_filtered():
    heads = [head for of in written("negative", 0).values() for head in of]
    splits = [split_of(head, (0.8, 0.1, 0.1), 0) for head in heads]
    assert 0.75 < splits.count("train") / len(splits) < 0.85
    assert [split_of(head, (0.8, 0.1, 0.1), 0) for head in heads[::3]] == splits[::3]


def test_a_language_file_says_what_is_wrong_with_it():
    from kdhub_knowledge.commonsense.typed import Typed

    given = ZH.typed.model_dump(by_alias=True)
    with pytest.raises(ValidationError, match=r"prompts.judge must contain \{head\}"):
        Typed.model_validate({**given, "prompts": {**given["prompts"], "judge": "{examples}"}})
