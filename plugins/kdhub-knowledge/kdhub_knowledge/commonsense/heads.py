"""`typed-heads:LANGUAGE`: heads of a commonsense graph that a model writes by type, polarity and topic, negated ones
among them (arXiv:2306.10241; the prompts are a reconstruction).

For each type, polarity and topic a prompt has `shots` heads, three quarters of them the language file's own and the
rest accepted before (as in Self-Instruct, arXiv:2212.10560), and asks for more. Rounds follow each other: all prompts
of a round are asked together, and what they bring is shown in the next. A job ends when less than a tenth of a batch is
new twice in a row.

`sentence-heads:DATA` takes heads from plain texts instead.

Rows: `head`, `head_type`, `negative`, `topic`, `filter_votes` (empty: nobody judged it), in the splits `positive` and
`negative`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from kdhub_tasks.language.prompting import Prompter, filled, require
from kdhub_tasks.language.replies import Tally, made

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.errors import UsageError
from kdhub_knowledge.commonsense.near import Novel
from kdhub_knowledge.commonsense.typed import POLARITIES, Kind, TypedLanguage, lines_of, open_typed

COLUMNS = ("head", "head_type", "negative")
STALLED, PATIENCE = 0.1, 2
"""A job ends when a smaller share of a batch is new so many times in a row."""
_CLAUSES = re.compile(r"[，。！？；：、,!?;\n…～~]|(?<=\s)\s")
OWN = 0.75
"""Share of the heads in a prompt that people wrote."""


@dataclass
class _Job:
    """A type, polarity and topic."""

    type: str
    polarity: str
    topic: str
    kind: Kind
    accepted: list[str] = field(default_factory=list)
    stalled: int = 0

    def prompt(self, typed: TypedLanguage, draw: random.Random, shots: int, many: int) -> str:
        seeds, new = list(self.kind.seeds), list(self.accepted)
        some = draw.sample(new, min(len(new), shots - round(OWN * shots)))
        some = draw.sample(seeds, min(len(seeds), shots - len(some))) + some
        shown = "\n".join(f"{n}. {head}" for n, head in enumerate(some, 1))
        return filled(
            typed.typed.prompts["heads"], task=self.kind.task, category=self.topic, seeds=shown, many=str(many)
        )

    def row(self, head: str) -> dict[str, Any]:
        about = {"head_type": self.type, "negative": self.polarity == "negative", "topic": self.topic}
        return {"head": head, **about, "filter_votes": ""}


def typed_heads(
    argument: str = "zh",
    *,
    teacher: Any = None,
    types: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    rounds: int = 5,
    heads_per_prompt: int = 20,
    shots: int = 8,
    rouge_max: float = 0.7,
    seed: int = 0,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
) -> Data:
    """`typed-heads:LANGUAGE`: heads that a model writes.

    Args:
        argument: a language file with typed heads, by name or path.
        teacher: the model, as a recipe names a teacher.
        types: some of the file's types, `event`, or one polarity, `event/negative`; categories: topics; all if unset.
        rounds: prompts for each type, polarity and topic, at most.
        heads_per_prompt: heads that a prompt asks for; shots: that it shows.
        rouge_max: a head is new if its ROUGE-L with each kept one of its type and polarity is below this.
        seed: of what prompts show; chat: use the model's chat template.
        answers: settings of `Generation`; the default temperature is 0.7, and 512 new tokens.

    Raises:
        UsageError: no model, a type that the language does not have, numbers out of range.
    """
    name = f"typed-heads:{argument}"
    if min(rounds, heads_per_prompt, shots) < 1 or not 0 < rouge_max <= 1:
        raise UsageError(
            f"{name} needs rounds, heads_per_prompt and shots of at least 1 and rouge_max above 0, to 1 ({rounds=}, "
            f"{heads_per_prompt=}, {shots=}, {rouge_max=})"
        )
    typed = open_typed(argument)
    kinds = typed.kinds(list(types) if types else None)
    prompter = Prompter(name, teacher, answers, chat, temperature=0.7, max_new_tokens=512)
    require(name, 1, prompter.how)
    topics = list(categories or typed.typed.categories)

    @cache
    def written() -> tuple[list[dict[str, Any]], Tally]:
        tally, found = Tally(), []
        jobs = [_Job(type_, polarity, topic, kind) for (type_, polarity), kind in kinds.items() for topic in topics]
        novel = {pair: Novel(rouge_max, typed.spaces) for pair in kinds}
        for number in range(rounds):
            going = [job for job in jobs if job.stalled < PATIENCE]
            draws = [random.Random(f"{seed} {number} {job.type} {job.polarity} {job.topic}") for job in going]
            prompts = [job.prompt(typed, draw, shots, heads_per_prompt) for job, draw in zip(going, draws)]
            for job, (reply,) in zip(going, prompter(prompts)):
                lines = lines_of(reply.text)
                if not lines:
                    tally["refusals" if typed.refuses(reply.text) else "without a list"] += 1
                new = []
                for line in lines:
                    head, fault = typed.head(line, job.polarity == "negative")
                    if fault is None and not novel[job.type, job.polarity].add(head):
                        fault = "near duplicates"
                    if fault:
                        tally[fault] += 1
                    else:
                        new.append(head)
                job.accepted += new
                found += map(job.row, new)
                job.stalled = job.stalled + 1 if len(new) < STALLED * max(1, len(lines)) else 0
        return found, tally

    def rows(polarity: str, tally: Tally) -> Iterator[dict[str, Any]]:
        found, dropped = written()
        tally.update(dropped if polarity == next(iter(splits)) else {})
        yield from (row for row in found if row["negative"] == (polarity == "negative"))

    splits = [p for p in POLARITIES if p in {polarity for _, polarity in kinds}]
    key = {"asked": prompter.key, "language": typed.digest, "types": sorted(map(list, kinds)), "topics": topics}
    key |= {"rounds": rounds, "many": heads_per_prompt, "shots": shots, "rouge_max": rouge_max, "seed": seed}
    return made(name, {p: lambda t, p=p: rows(p, t) for p in splits}, key)


def sentence_heads(
    argument: str,
    *,
    language: str = "zh",
    head_type: str = "event",
    rouge_max: float = 0.7,
    split: str = "train",
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`sentence-heads:DATA`: the clauses of plain texts as heads, by their polarity, in one form and without near
    duplicates. Nobody wrote them as commonsense: they are to be filtered.

    Args:
        argument: a data set with texts of any form. language: see `typed-heads`.
        head_type: what they are taken for. rouge_max: see `typed-heads`.
        split: of the other data set; limit: its first texts only. options: of that data set.

    Raises:
        UsageError: a type that the language does not have.
    """
    name, typed = f"sentence-heads:{argument}", open_typed(language)
    typed.kinds([head_type])
    data = open_data({"source": argument, "limit": limit, "options": dict(options or {})})
    which = data.pick(split)

    def rows(polarity: str, tally: Tally) -> Iterator[dict[str, Any]]:
        novel, negative = Novel(rouge_max, typed.spaces), polarity == "negative"
        for row in iterate(data.texts(which)):
            for clause in _CLAUSES.split(row["text"]):
                head = typed.plain(clause)
                if typed.negation.holds(head) == negative and head:
                    fault = typed.head(head, negative).fault or ("near duplicates" if not novel.add(head) else None)
                    if fault:
                        tally[fault] += 1
                    else:
                        yield {"head": head, "head_type": head_type, "negative": negative, "filter_votes": ""}

    key = {"of": data.fingerprint(which), "language": typed.digest, "type": head_type, "rouge_max": rouge_max}
    return made(name, {p: lambda t, p=p: rows(p, t) for p in POLARITIES}, key, licence=data.licence)
