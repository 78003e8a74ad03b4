"""Who labels sentences with pairs: a language model that is prompted, or cues, which need no model.

    teacher: cues

    teacher:
      source: prompted-relations
      model: openai:MODEL
      shots: 5

Both give the signal `pairs`: of each sentence the characters of head and tail of its pairs, and `readable`, 0 where
there is no answer or none that can be read. Such a sentence has no pairs, and `ade` does not take it for one without.

A language model is asked for a line for each pair, or None (arXiv:2307.06439; the wording is ours, theirs was not at
hand). What it names is searched in the sentence whatever its case; a pair that is not there is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from kdhub_tasks.language.prompting import Prompter, filled
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import DataError, TeacherError, UsageError
from kdhub.fields import Field as Stored
from kdhub.recipes.recipe import TextRef
from kdhub.rows import Example
from kdhub.teacher import Teacher
from kdhub_knowledge.relations.profiles import Demonstration, Profile, profile
from kdhub_knowledge.relations.spans import Span, align, as_array, longest, pairs_of, words

logger = logging.getLogger("kdhub")

KIND = "pairs"
READABLE = "readable"
NONE = re.compile(r"\W*(?:none|no pairs?|n/?a|nothing)\W*\Z", re.IGNORECASE)
REFUSAL = re.compile(r"\b(?:i (?:can(?:no|')t|am unable|won't)|i'm (?:sorry|unable)|as an ai)\b", re.IGNORECASE)
TEMPLATE = (
    "{task}\n\nReply with one line for each pair:\n{head}: ... | {tail}: ...\nCopy both from the sentence. If there is "
    "no pair, reply with None.\n\n{shots}Sentence: {text}\nAnswer:"
)


class Labeller(Teacher):
    """A teacher of pairs."""

    options: BaseModel

    @cached_property
    def profile(self) -> Profile:
        return profile(self.options.profile)

    def layout(self, kind: str) -> dict[str, Any]:
        if kind != KIND:
            raise TeacherError(f"{type(self).__name__} gives {KIND}, not {kind!r}")
        return {KIND: Stored(KIND, "int32", (4,), ragged=True), READABLE: Stored(READABLE, "uint8")}


class Cues(Labeller):
    """`cues`: a head by its form, and a tail by the words between them ("X-induced Y", "Y after X")."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        profile: str = Field("ade", description="what the pairs are: ade, gene-disease, phi, or a YAML file")

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "cues", "version": 1, **self.profile.model_dump(exclude={"demonstrations", "task", "notice"})}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"kind": "cues", "id": f"cues ({self.options.profile})", "licence": "apache-2.0"}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        self.layout(kind)
        made = [as_array(self.found(example["text"])) for example in examples]
        return {KIND: made, READABLE: np.ones(len(made), np.uint8)}

    @cached_property
    def _cues(self) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
        behind = [re.compile(cue, re.IGNORECASE) for cue in self.profile.head_first]
        return behind, [re.compile(rf"(?:{cue})\Z", re.IGNORECASE) for cue in self.profile.tail_first]

    def found(self, text: str) -> list[tuple[Span, Span]]:
        """Heads and tails of a sentence; of overlapping tails of a head the longest."""
        behind, before = self._cues
        made = []
        for head in self.profile.heads(text):
            tails = [self._tail(text, m.end(), 1) for cue in behind if (m := cue.match(text, head[1]))]
            tails += [self._tail(text, m.start(), -1) for cue in before if (m := cue.search(text[: head[0]]))]
            apart = [t for t in tails if t and (t[1] <= head[0] or head[1] <= t[0])]
            made += [(head, tail) for tail in longest(apart)]
        return sorted(made)

    def _tail(self, text: str, at: int, way: int) -> Span | None:
        """The words from a place on, or those before it, up to a word or sign that ends a phrase; None for none."""
        stop, lead = set(self.profile.stop.split()), set(self.profile.lead.split())
        grid = [s for s in words(text) if (s[0] >= at if way > 0 else s[1] <= at)][::way]
        kept: list[Span] = []
        for begin, end in grid:
            word = text[begin:end].lower()
            if way > 0 and not kept and word in lead:
                continue
            if word in stop or not (word.isalnum() or word in "-'/") or len(kept) == self.profile.most_words:
                break
            kept.append((begin, end))
        kept = sorted(kept)
        while kept and (text[slice(*kept[0])].lower() in lead or not text[slice(*kept[0])].isalnum()):
            del kept[0]
        while kept and not text[slice(*kept[-1])].isalnum():
            del kept[-1]
        return (kept[0][0], kept[-1][1]) if kept else None


class Prompted(Labeller):
    """`prompted-relations`."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        model: TextRef | None = Field(None, description="the language model, as a recipe names a teacher")
        profile: str = Field("ade", description="what the pairs are: ade, gene-disease, phi, or a YAML file")
        shots: int = Field(5, ge=0, le=100, description="demonstrations in the prompt, the first of those there are")
        demonstrations: list[Demonstration] | None = Field(
            None, description="sentences with their pairs, instead of the profile's; never of a test set"
        )
        template: str = Field(TEMPLATE, description="the prompt, with {text}, {shots}, {task}, {head} and {tail}")
        answers: dict[str, Any] = Field({}, description="settings of the replies: temperature, max_new_tokens, ...")
        chat: bool = Field(False, description="use a local model's chat template; API models always have theirs")

    options: Options

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        from pathlib import Path

        from kdhub import open_task

        train = recipe["data"]["train"]
        folder = Path((train if isinstance(train, str) else train[0]["source"]).partition(":")[2]).parent / "prompted"
        folder.mkdir(exist_ok=True)
        return {"model": open_task("causal-lm").tiny_recipe(folder)["teacher"], "answers": {"max_new_tokens": 8}}

    @cached_property
    def prompter(self) -> Prompter:
        """Raises:
        UsageError: no model, or a template without the sentence.
        """
        o = self.options
        if o.model is None:
            raise UsageError(
                "prompted-relations needs a model (model=None)",
                hint="teacher: {source: prompted-relations, model: openai:MODEL}",
            )
        if "{text}" not in o.template:
            raise UsageError(f"prompted-relations: the template must contain {{text}} (template={o.template[:60]!r})")
        ends = {"max_new_tokens": 256, "stop": ["\nSentence:", "\n\n"]}
        return Prompter("prompted-relations", o.model, o.answers, o.chat, **ends)

    @cached_property
    def shots(self) -> list[Demonstration]:
        """Raises:
        UsageError: there are fewer than are asked for.
        """
        o = self.options
        given = self.profile.demonstrations if o.demonstrations is None else o.demonstrations
        if o.shots > len(given):
            raise UsageError(
                f"prompted-relations: shots must be at most {len(given)}, the demonstrations (shots={o.shots})",
                hint="give more as `demonstrations: [{text: ..., pairs: [[..., ...]]}]`",
            )
        return given[: o.shots]

    @property
    def identity(self) -> Mapping[str, Any]:
        p, shown = self.profile, [one.model_dump() for one in self.shots]
        own = {"template": self.options.template, "task": p.task, "head": p.head, "tail": p.tail, "shots": shown}
        return {"kind": "prompted-relations", "version": 1, **self.prompter.key, **own}

    @property
    def provenance(self) -> Mapping[str, Any]:
        how = {name: value for name, value in self.identity.items() if name not in ("kind", "version", "model")}
        return {**self.prompter.model.provenance, "prompted": how}

    @property
    def terms(self) -> str:
        return self.prompter.model.terms

    @property
    def spent(self) -> Mapping[str, float]:
        return self.prompter.model.spent

    def prompt(self, text: str) -> str:
        p = self.profile
        shots = "".join(f"Sentence: {one.text}\nAnswer:{_lines(one, p)}\n\n" for one in self.shots)
        return filled(self.options.template, task=p.task, head=p.head, tail=p.tail, shots=shots, text=text)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        self.layout(kind)
        replies = self.prompter([self.prompt(example["text"]) for example in examples])
        tally, made, readable = Counter(), [], []
        for example, ((reply, _),) in zip(examples, replies):
            pairs, why = read(reply, self.profile)
            found, lost = align(example["text"], pairs)
            tally.update([why] if why else [])
            tally.update({"pairs that are not in their sentence": len(lost)} if lost else {})
            made.append(as_array(found))
            readable.append(not why)
        if tally:
            said = ", ".join(f"{n} {why}" for why, n in tally.most_common())
            logger.warning("prompted-relations: of %d replies, %s", len(made), said)
        return {KIND: made, READABLE: np.array(readable, np.uint8)}


def _lines(one: Demonstration, p: Profile) -> str:
    if not one.pairs:
        return " None"
    return "".join(f"\n{p.head}: {head} | {p.tail}: {tail}" for head, tail in one.pairs)


def read(reply: str, p: Profile) -> tuple[list[tuple[str, str]], str]:
    """The pairs of a reply: lines `drug: ... | adverse event: ...`, or JSON; and why it cannot be read, "" where it
    can."""
    if not reply.strip():
        return [], "empty"
    found, none = [], False
    for line in reply.splitlines():
        sides = [re.sub(r"^[\s\-*\d.]*(?:[\w ]+:)?\s*", "", side).strip(" \t\"'`*") for side in line.split("|")]
        if len(sides) == 2 and ":" in line:
            empty = [not side or NONE.match(side) is not None for side in sides]
            none |= any(empty)
            found += [] if any(empty) else [(sides[0], sides[1])]
        none |= NONE.match(re.sub(r"^\s*answer:", "", line, flags=re.IGNORECASE)) is not None
    found = found or _json(reply, p)
    if found is None:
        return [], "half a JSON or another one"
    if found or none or reply.strip() == "[]":
        return found, ""
    return [], "refused" if REFUSAL.search(reply) else "without a pair or None"


def _json(reply: str, p: Profile) -> list[tuple[str, str]] | None:
    """Pairs of a reply in JSON; nothing of one that is not in JSON, None of one that cannot be read."""
    begins = re.search(r"[\[{]", reply)
    if not begins or reply[: begins.start()].strip(" \n`json") not in ("", "Answer:"):
        return []
    try:
        value, _ = json.JSONDecoder().raw_decode(reply[begins.start() :])
        value = value if isinstance(value, list) else [value]
        return pairs_of([[v.get(p.head), v.get(p.tail)] if isinstance(v, dict) and p.head in v else v for v in value])
    except (ValueError, TypeError, DataError):
        return None
