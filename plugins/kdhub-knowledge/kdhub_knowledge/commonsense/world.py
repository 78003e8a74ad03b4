"""A closed world of which everything is known: `closed-world`, a teacher that writes events and tails and errs at a
known rate, and the oracle that says which triples are valid. So every stage is tried without a language model.

    event   PersonX cooks the stew             its topic is that of its object
    tail    to have more pepper                the frame of the relation, with a thing of the topic; by mistake, a thing
                                               of another topic

It is prompted as any language model is, by the wording of the language file `en`. Temperature and `top_p` change
nothing: each draw is even, and its own by prompt, sample and seed.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from kdhub_tasks.language.generation import Generation, encoded, is_text, layout
from kdhub_tasks.language.rows import vocabulary
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import TeacherError
from kdhub.rows import Example
from kdhub.teacher import Teacher
from kdhub_knowledge.commonsense.language import HERE, open_language
from kdhub_knowledge.commonsense.rows import SPLITS

LANGUAGE = "en"


class World(BaseModel):
    """Attributes:
    frames: relation -> tail with {thing}; topics: name -> its deeds, objects and things.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    frames: dict[str, str]
    topics: dict[str, dict[str, list[str]]]

    @property
    def events(self) -> dict[str, str]:
        """Event -> topic."""
        return {
            f"PersonX {deed} {thing}": name
            for name, topic in self.topics.items()
            for deed in topic["deeds"]
            for thing in topic["objects"]
        }

    def tails(self, topic: str, relation: str) -> list[str]:
        return [self.frames[relation].format(thing=thing) for thing in self.topics[topic]["things"]]


@lru_cache
def world() -> World:
    import yaml

    return World.model_validate(yaml.safe_load((HERE / "world.yaml").read_text(encoding="utf-8")))


@lru_cache
def _events() -> dict[str, str]:
    return world().events


@lru_cache
def valid_tails(head: str, relation: str) -> frozenset[str] | None:
    """The valid tails of an event; None where the world does not know it, or the relation."""
    topic = _events().get(head)
    if topic is None or relation not in world().frames:
        return None
    return frozenset(world().tails(topic, relation))


def is_valid(row: Mapping[str, Any]) -> bool | None:
    """The oracle: whether a triple is valid; None where the world does not know."""
    found = valid_tails(row["head"], row["relation"])
    return None if found is None else row["tail"] in found


def labelled_rows(events: int = 8) -> list[dict[str, Any]]:
    """A few triples with labels and scores: each second is wrong, the scores of valid ones are higher, with some
    overlap."""
    topics, rows = list(world().topics), []
    for n, (head, topic) in enumerate(list(world().events.items())[:events]):
        for m, relation in enumerate(world().frames):
            valid = (n + m) % 2 == 0
            tail = world().tails(topic if valid else topics[-1], relation)[m % 6]
            row = {
                "head": head,
                "relation": relation,
                "tail": tail,
                "split": SPLITS[0 if n < events - 2 else n % 2 + 1],
            }
            score = 0.3 + 0.01 * n + (0.3 if valid else 0.0) + 0.05 * m
            rows.append({**row, "label": "valid" if valid else "invalid", "score": round(score, 4)})
    return rows


class ClosedWorld(Teacher):
    """`closed-world`: the teacher."""

    class Options(Teacher.Options):
        error: float = Field(0.4, ge=0, le=1, description="share of tails that are of another topic")

    options: Options
    group_rows = 512
    max_length = None

    @cached_property
    def tokenizer(self) -> Any:
        from kdhub_tasks.language.students import byte_tokenizer

        return byte_tokenizer()

    @cached_property
    def vocabulary(self) -> str:
        return vocabulary(self.tokenizer)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "closed-world", "version": 1, "error": self.options.error}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.identity, "id": "closed-world", "source": "closed-world", "licence": "cc0-1.0"}

    def layout(self, kind: str) -> dict[str, Any]:
        if not is_text(kind):
            raise TeacherError(f"the closed world gives text, not {kind!r}")
        return layout(kind)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        """An empty text for a prompt that asks for nothing that the world knows."""
        how = Generation.parse(kind)
        found = [self._answer(example, how) for example in examples]
        texts, log_probs = zip(*found) if found else ((), ())
        probs = [np.array([value], np.float32) for value in log_probs] if how.log_probs else None
        return encoded(texts, [True] * len(texts), probs)

    def _answer(self, example: Example, how: Generation) -> tuple[str, float]:
        prompt = example["messages"][-1]["content"] if "messages" in example else ""
        digest = hashlib.blake2b(example["content"] + f"\0{how.seed}".encode(), digest_size=8).digest()
        draw, language = random.Random(digest), open_language(LANGUAGE)
        item = language.events.item
        if prompt.endswith(item[: item.find("{head}")].rstrip()):
            events = list(_events())
            return f" {draw.choice(events)}", -math.log(len(events))
        if (asked := self._asked(prompt.split("\n")[-1])) is None:
            return "", 0.0
        head, relation = asked
        topic = _events()[head]
        wrong = draw.random() < self.options.error
        if wrong:
            topic = draw.choice([name for name in world().topics if name != topic])
        tails = world().tails(topic, relation)
        share = self.options.error / (len(world().topics) - 1) if wrong else 1 - self.options.error
        return f" {draw.choice(tails)}.", math.log(share / len(tails))

    @staticmethod
    def _asked(sentence: str) -> tuple[str, str] | None:
        """Event and relation of an open sentence."""
        language = open_language(LANGUAGE)
        for name in world().frames:
            before, _, after = language.relations[name].sentence.partition("{head}")
            after = re.sub(r"\\\{[xyz]\\\}", r".+?", re.escape(after))
            if found := re.fullmatch(f"{re.escape(before)}(.+?){after}", sentence):
                head = language.without_names(found[1], language.target)
                if head in _events():
                    return head, name
        return None
