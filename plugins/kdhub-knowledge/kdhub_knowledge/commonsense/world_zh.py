"""A closed world in Chinese, `closed-world-zh`: a teacher that writes typed heads and their tails and errs at known
rates, and the judge and the annotator that are assumed of it. It is prompted as any model is, by the wording of `zh`.

    positive   某人去厨房清洗白菜   by mistake, a deed and thing of another topic
    negative   某人没有去厨房清洗白菜   worth stating where deed and thing belong to the place
    tail       想要切碎土豆   the frame of the relation with a deed and thing of the topic of the place; of a head that
                              is not valid, those of a random other topic

The judge reads its prompt alone and is right with a probability of 0.6 + 0.05 for each right example of the same topic
in it, at most 0.95. This is an assumption: it says nothing of how a real model judges. Questions about whole triples
(`check`), which stand for people, are always answered rightly. Other prompts are refused, as models do.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from kdhub_tasks.language.generation import Generation
from pydantic import BaseModel, ConfigDict, Field

from kdhub.data.dataset import Data
from kdhub.errors import TeacherError
from kdhub.rows import Example
from kdhub_knowledge.commonsense.language import HERE
from kdhub_knowledge.commonsense.near import Novel
from kdhub_knowledge.commonsense.typed import open_typed
from kdhub_knowledge.commonsense.world import ClosedWorld

WRITTEN = 40
"""Negative heads of a topic."""
WRONG = {"positive": 0.08, "negative": 0.35}
"""Share of a topic's heads that are not valid."""
BASE, EACH, BEST = 0.6, 0.05, 0.95
ROUGE = 0.7
ANCHORS = 1000
"""The seed of the judged heads."""


class Topic(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    place: str
    deeds: tuple[str, ...]
    things: tuple[str, ...]


class Parsed(NamedTuple):
    """A head: the topics of its place and of its event, and whether it is negated."""

    topic: str
    event: str
    negative: bool

    @property
    def valid(self) -> bool:
        return self.topic == self.event


class World(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    language: str
    frames: dict[str, str]
    negators: tuple[str, ...]
    topics: dict[str, Topic]

    def event(self, topic: str, deed: int, thing: int) -> str:
        return self.topics[topic].deeds[deed] + self.topics[topic].things[thing]

    @cached_property
    def _events(self) -> dict[str, str]:
        """Deed and thing -> topic."""
        return {a + b: name for name, topic in self.topics.items() for a in topic.deeds for b in topic.things}

    @cached_property
    def _heads(self) -> re.Pattern[str]:
        places = "|".join(topic.place for topic in self.topics.values())
        return re.compile(rf"某人({'|'.join(self.negators)})?去({places})(.+)")

    def parsed(self, head: str) -> Parsed | None:
        """What a head says; None where the world does not know it."""
        found = self._heads.fullmatch(head)
        if found is None or found[3] not in self._events:
            return None
        topic = next(name for name, one in self.topics.items() if one.place == found[2])
        return Parsed(topic, self._events[found[3]], bool(found[1]))

    def tails(self, topic: str, relation: str) -> list[str]:
        """The valid ones: of each deed one, with the thing of the same number."""
        return [
            self.frames[relation].format(event=self.event(topic, n, n)) for n in range(len(self.topics[topic].deeds))
        ]


@lru_cache
def world() -> World:
    import yaml

    return World.model_validate(yaml.safe_load((HERE / "world-zh.yaml").read_text(encoding="utf-8")))


@lru_cache
def written(polarity: str, seed: int) -> dict[str, list[str]]:
    """Topic -> the heads that the teacher writes about it, pairwise below 0.7 of ROUGE-L."""
    draw, novel, known = random.Random(f"{seed} {polarity}"), Novel(ROUGE), world()
    negators = known.negators if polarity == "negative" else ("",)
    found: dict[str, list[str]] = {}
    for name, topic in known.topics.items():
        many = WRITTEN if polarity == "negative" else len(topic.deeds)
        wrong = (
            sum(draw.random() < WRONG[polarity] for _ in range(many))
            if many < WRITTEN
            else round(WRONG[polarity] * many)
        )
        found[name] = []
        others = [other for other in known.topics if other != name]
        for topics, enough in ((others, wrong), ([name], many)):  # foreign events first: they fit in with fewer heads
            events = [known.event(one, n, m) for one in topics for n in range(8) for m in range(8)]
            tried = [(event, negator) for event in events for negator in negators]
            for event, negator in draw.sample(tried, len(tried)):
                head = f"某人{negator}去{topic.place}{event}"
                if len(found[name]) < enough and novel.add(head):
                    found[name].append(head)
        draw.shuffle(found[name])
    return found


def valid_tails(head: str, relation: str) -> frozenset[str] | None:
    """The oracle: the valid tails of a head, none of one that is not valid itself; None where the world does not know
    the head, or the relation."""
    found = world().parsed(head)
    if found is None or relation not in world().frames:
        return None
    return frozenset(world().tails(found.topic, relation) if found.valid else ())


def anchors(polarity: str, many: int = 20) -> list[tuple[str, bool]]:
    """Heads that people judged: half of them valid, each of another topic."""
    found: list[tuple[str, bool]] = []
    for heads in written(polarity, ANCHORS).values():
        for valid in (True, False):
            mine = [head for head in heads if world().parsed(head).valid == valid]
            if mine and sum(one[1] == valid for one in found) < many // 2:
                found.append((mine[0], valid))
    return found


def closed_world_zh() -> Data:
    """`closed-world-zh`: judged heads of the closed world, `head`, `negative`, `valid`, in the split `anchors`."""
    rows = [{"head": head, "negative": True, "valid": valid} for head, valid in anchors("negative")]
    return Data.from_rows("closed-world-zh", {"anchors": lambda: iter(rows)}, key={"version": 1}, licence="cc0-1.0")


class ClosedWorldZh(ClosedWorld):
    """`closed-world-zh`: the teacher, judge and annotator."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        seed: int = Field(0, ge=0, description="of the heads that it writes, and of its errors")

    options: Options

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "closed-world-zh", "version": 1, "seed": self.options.seed}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.identity, "id": "closed-world-zh", "source": "closed-world-zh", "licence": "cc0-1.0"}

    def _answer(self, example: Example, how: Generation) -> tuple[str, float]:
        prompt, typed = example["messages"][-1]["content"] if "messages" in example else "", open_typed("zh")
        digest = hashlib.blake2b(example["content"] + f"\0{how.seed} {self.options.seed}".encode(), digest_size=8)
        draw = random.Random(digest.digest())
        answers = {"heads": self._heads, "judge": self._judge, "tails": self._tails, "check": self._check}
        for name, answer in answers.items():
            if (asked := _fields(typed.typed.prompts[name], prompt)) is not None:
                return answer(asked, draw), 0.0
        return "作为语言模型，我无法回答。", 0.0

    def _heads(self, asked: Mapping[str, str], draw: random.Random) -> str:
        events = open_typed("zh").typed.types["event"]
        polarity = next((name for name, kind in events.items() if kind.task == asked["task"]), None)
        if polarity is None or asked["category"] not in world().topics:
            raise TeacherError(
                f"the closed world writes no heads about {asked['category']}: {asked['task']}",
                hint=f"types: [event], categories: [{', '.join(world().topics)}]",
            )
        heads = written(polarity, self.options.seed)[asked["category"]]
        return _listed(draw.sample(heads, min(len(heads), int(asked["many"]))))

    def _judge(self, asked: Mapping[str, str], draw: random.Random) -> str:
        typed = open_typed("zh").typed
        head, right = _known(asked["head"]), 0
        for one in _all(typed.prompts["example"], asked["examples"]):
            example = world().parsed(one["head"])
            said = one["answer"] == typed.affirms[0]
            right += example is not None and example.topic == head.topic and said == example.valid
        correct = draw.random() < min(BEST, BASE + EACH * right)
        return typed.affirms[0] if head.valid == correct else typed.denies[0]

    def _tails(self, asked: Mapping[str, str], draw: random.Random) -> str:
        head, relation, _ = _triple(asked["sentence"])
        topic = _known(head).topic
        if not _known(head).valid:
            topic = draw.choice([name for name in world().topics if name != topic])
        tails = world().tails(topic, relation)
        return _listed(draw.sample(tails, min(len(tails), int(asked["many"]))))

    def _check(self, asked: Mapping[str, str], draw: random.Random) -> str:
        head, relation, tail = _triple(asked["sentence"])
        typed = open_typed("zh").typed
        return (typed.affirms if tail in (valid_tails(head, relation) or ()) else typed.denies)[0]


def _known(head: str) -> Parsed:
    found = world().parsed(head)
    if found is None:
        raise TeacherError(f"the closed world does not know {head!r}", hint="it knows the heads that it wrote itself")
    return found


def _triple(sentence: str) -> tuple[str, str, str]:
    """Head, relation and tail of a sentence; the tail of an open one is empty."""
    typed = open_typed("zh")
    for name in world().frames:
        template = typed.sentence(name, "{head}")
        if (found := _fields(template + "{tail}", sentence)) is not None and world().parsed(found["head"]):
            return found["head"], name, found["tail"].removesuffix(typed.language.stop)
    raise TeacherError(
        f"the closed world knows nothing of {sentence[:80]!r}", hint=f"relations: [{', '.join(world().frames)}]"
    )


def _listed(items: Sequence[str]) -> str:
    return "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))


@lru_cache
def _pattern(template: str) -> re.Pattern[str]:
    """Finds what stands in the places of a template: lines for examples and seeds, else a part of one line."""
    parts = re.split(r"\{(\w+)\}", template.strip())
    groups = {p: f"(?P<{p}>{'(?s:.*)' if p in ('examples', 'seeds') else '.*?'})" for p in parts[1::2]}
    return re.compile("".join(groups[p] if n % 2 else re.escape(p) for n, p in enumerate(parts)))


def _fields(template: str, text: str) -> dict[str, str] | None:
    """What stands in the places of a template; None where a text is not made by it."""
    found = _pattern(template).fullmatch(text.strip())
    return found.groupdict() if found else None


def _all(template: str, text: str) -> list[dict[str, str]]:
    return [found for part in text.split("\n\n") if (found := _fields(template, part)) is not None]
