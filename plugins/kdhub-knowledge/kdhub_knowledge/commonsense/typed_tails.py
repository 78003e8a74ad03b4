"""Tails of typed heads: one prompt for a head and a relation that fits its type, with verbalised examples, asks for up
to five answers in a list (the prompts are a reconstruction, see `typed`).

`typed-triples:HEADS` has rows `head`, `head_type`, `negative`, `relation`, `tail`, `filter_votes`, `split`, ...
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdhub_tasks.language.prompting import Prompter, filled, fingerprints, require
from kdhub_tasks.language.replies import Tally, made

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.errors import DataError, UsageError
from kdhub_knowledge.commonsense.data import SHARES
from kdhub_knowledge.commonsense.heads import COLUMNS
from kdhub_knowledge.commonsense.near import Novel
from kdhub_knowledge.commonsense.rows import SPLITS, fault_of
from kdhub_knowledge.commonsense.typed import TypedLanguage, lines_of, open_typed

SETTINGS = {"temperature": 0.7, "max_new_tokens": 160}
AT_ONCE = 1000
"""Heads whose tails are asked for in one go."""


def typed_triples(
    argument: str,
    *,
    teacher: Any = None,
    language: str = "zh",
    relations: Sequence[str] | None = None,
    tails_per_prompt: int = 5,
    shots: int = 5,
    rouge_max: float = 0.7,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    splits: Sequence[str] = ("positive", "negative"),
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """Triples of the heads of another data set.

    Args:
        argument: a data set with `head`, `head_type` and `negative`.
        teacher: the model, as a recipe names a teacher. language: see `typed-heads`.
        relations: some of those of the language file, for all types; all if unset.
        tails_per_prompt: answers that a prompt asks for; shots: examples that it shows.
        rouge_max: an answer is new if its ROUGE-L with the others about its head and relation is below this.
        shares: of the heads in train, validation and test, about: the column `split`. seed: of examples and split.
        splits: those of the other data set whose heads are taken, of those that it has: never `rejected`.
        chat: use the model's chat template. answers: settings of `Generation`; options: of the other data set.

    Raises:
        UsageError: a relation that the language file or the types do not have, numbers out of range. DataError: columns
            are missing.
    """
    name, typed = f"typed-triples:{argument}", open_typed(language)
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"{name}: shares must be those of train, validation and test, and 1 in all ({shares=})")
    if min(tails_per_prompt, shots) < 1 or not 0 < rouge_max <= 1:
        raise UsageError(
            f"{name} needs tails_per_prompt and shots of at least 1 and rouge_max above 0, to 1 ({tails_per_prompt=}, "
            f"{shots=}, {rouge_max=})"
        )
    wanted = list(typed.language.chosen(relations))
    prompter = Prompter(name, teacher, answers, chat, **SETTINGS)
    require(name, 1, prompter.how)
    data = open_data({"source": argument, "options": dict(options or {})})
    used = [split for split in splits if split in data.splits] or [data.splits[0]]
    for split in used:
        if missing := [column for column in COLUMNS if column not in (has := data.split(split).column_names)]:
            raise DataError(f"{name}, split {split!r}, has no column {missing[0]!r}; it has {', '.join(has)}")

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        heads = {row["head"]: row for split in used for row in iterate(data.split(split))}
        how = {"relations": wanted, "many": tails_per_prompt, "shots": shots, "rouge_max": rouge_max, "seed": seed}
        found = tails(lambda prompts: [r.text for (r,) in prompter(prompts)], typed, [*heads.values()], tally, **how)
        for row in found:
            yield {**row, "split": split_of(row["head"], shares, seed), "teacher": prompter.name}

    key = {"of": {split: fingerprints(data)[split] for split in used}, "asked": prompter.key, "language": typed.digest}
    key |= {"relations": wanted, "many": tails_per_prompt, "shots": shots, "rouge_max": rouge_max}
    key |= {"shares": list(shares), "seed": seed}
    return made(name, {"train": rows}, key, licence=data.licence)


def split_of(head: str, shares: Sequence[float], seed: int) -> str:
    """The split of a head, by itself and the seed alone: with other heads filtered out it stays where it is, so a
    student of a filtered graph and one of the whole are tested on heads that neither has seen."""
    digest = hashlib.blake2b(f"{seed}\0{head}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return SPLITS[0 if place < shares[0] else 1 if place < shares[0] + shares[1] else 2]


def tails(
    ask: Callable[[Sequence[str]], Sequence[str]],
    typed: TypedLanguage,
    heads: Sequence[Mapping[str, Any]],
    tally: Tally,
    *,
    relations: Sequence[str],
    many: int = 5,
    shots: int = 5,
    rouge_max: float = 0.7,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of heads with `relation` and `tail`; what is dropped is counted: see `readable`."""
    for start in range(0, len(heads), AT_ONCE):
        some = heads[start : start + AT_ONCE]
        asked = [(row, name) for row in some for name in typed.relations_of(row) if name in relations]
        replies = ask([tail_prompt(typed, name, row["head"], many, shots, seed) for row, name in asked])
        said: dict[str, set[str]] = {}
        for (row, name), reply in zip(asked, replies):
            others = said.setdefault(row["head"], set())
            mine = readable(typed, reply, row["head"], name, others, many, rouge_max, tally)
            others.update(mine)
            yield from ({**row, "relation": name, "tail": tail} for tail in mine)


def tail_prompt(typed: TypedLanguage, relation: str, head: str, many: int, shots: int, seed: int) -> str:
    draw, of = random.Random(f"{seed} {relation} {head}"), typed.language.relations[relation]
    examples = draw.sample(of.examples, min(shots, len(of.examples)))
    shown = "\n".join(typed.sentence(relation, one, tail) for one, tail in examples)
    open_ = typed.sentence(relation, head)
    return filled(typed.typed.prompts["tails"], task=of.task, examples=shown, sentence=open_, many=str(many))


def readable(
    typed: TypedLanguage,
    reply: str,
    head: str,
    relation: str,
    others: set[str],
    many: int,
    rouge_max: float,
    tally: Tally,
) -> list[str]:
    """The tails in a reply, without those that say nothing, are the head, repeat what was said of another relation of
    the head or another relation's wording, or are near duplicates of each other."""
    lines = lines_of(reply)[:many]
    if not lines:
        tally["refusals" if typed.refuses(reply) else "without a list"] += 1
    novel, found = Novel(rouge_max, typed.spaces), []
    phrases = tuple(one.phrase for name, one in typed.language.relations.items() if name != relation)
    for line in lines:
        tail = typed.plain(line)
        fault = "refusals" if typed.refuses(line) else fault_of(tail, typed.language)
        if fault is None and len(tail) > typed.typed.longest:
            fault = "too long"
        if fault is None and tail == head:
            fault = "the head itself"
        if fault is None and (tail in others or tail.startswith(phrases)):
            fault = "of another relation"
        if fault is None and not novel.add(tail):
            fault = "near duplicates"
        if fault:
            tally[fault] += 1
        else:
            found.append(tail)
    return found
