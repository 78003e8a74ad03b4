"""Data sets of a commonsense graph, each made of the one before.

| kind | rows |
| --- | --- |
| `heads:LANGUAGE` | `head`: events that a teacher makes up like the seeds of a language file |
| `triples:HEADS` | `head`, `relation`, `tail`, `split`: what a teacher writes about events |
| `cleaned:DATA` | the same of triples that there are: cleaned, without repetitions, split by event |
| `critic-pairs:TRIPLES` | `sentence1`, `sentence2`, `label`: labelled triples with names, for a pair classifier |
| `comet:TRIPLES` | `prompt`, `response`: triples as COMET reads and writes them |

All replies go through the signal store; those that are dropped are counted by reason.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdhub_tasks.language.prompting import Prompter, fingerprints, require, source, with_log_probs
from kdhub_tasks.language.replies import Tally, made

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.errors import DataError, UsageError
from kdhub_knowledge.commonsense import comet as student
from kdhub_knowledge.commonsense import writing
from kdhub_knowledge.commonsense.language import open_language
from kdhub_knowledge.commonsense.oracles import valid_tails
from kdhub_knowledge.commonsense.rows import COLUMNS, cleaned, split_by_event
from kdhub_knowledge.commonsense.world import labelled_rows

SHARES = (0.8, 0.1, 0.1)
VALID, INVALID = "valid", "invalid"


def heads(
    argument: str,
    *,
    teacher: Any = None,
    prompts: int = 10,
    samples: int = 100,
    shown: int = 10,
    seeds: Any = None,
    drop_unlikely: float = 0.2,
    seed: int = 0,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
) -> Data:
    """`heads:LANGUAGE`: new events like some seeds.

    Args:
        argument: the language, by name or by the path of its file.
        teacher: the model, as a recipe names a teacher.
        prompts: lists of seeds that it is sent; samples: events from each; shown: seeds in a list.
        seeds: a data set with the column `head`, in place of the language file's own seeds.
        drop_unlikely: the share of events to drop, the least probable ones; 0 for a server without log-probabilities.
        seed: of the lists. chat: use the teacher's chat template.
        answers: settings of its `Generation`, besides those of `writing.EVENTS`.
    """
    name, language = f"heads:{argument}", open_language(argument)
    answers = with_log_probs(name, answers, drop_unlikely)
    prompter = Prompter(name, teacher, answers, chat, **{**writing.EVENTS, "stop": (writing.ITEM_END,)})
    require(name, samples, prompter.how)
    given, at = list(language.events.seeds), {}
    if seeds is not None:
        table = source(name, seeds, None, "head")
        given = [row["head"] for split in table.splits for row in iterate(table.split(split))]
        at = fingerprints(table)
    for what, value in (("prompts", prompts), ("shown", shown)):
        if value < 1:
            raise UsageError(f"{name}: {what} must be at least 1 ({what}={value})")
    strange = [head for head in given if not head.startswith(language.events.starts)]
    if strange:
        raise DataError(
            f"{name}: {len(strange)} of {len(given)} seeds are no events, the first of them {strange[0]!r}",
            hint=f"an event begins with {' or '.join(language.events.starts)} (`events.starts` of the language file)",
        )
    how = {"prompts": prompts, "samples": samples, "shown": shown, "drop_unlikely": drop_unlikely, "seed": seed}

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        return writing.events(prompter, language, tally, seeds=given, **how)

    key = {"language": language.model_dump(mode="json"), "asked": prompter.key, "seeds": at, **how}
    return made(name, {"train": rows}, key)


def triples(
    argument: str,
    *,
    teacher: Any = None,
    language: str = "en",
    relations: Sequence[str] | None = None,
    samples: int = 10,
    shown: int = 5,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    limit: int | None = None,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`triples:HEADS`: what a teacher writes about the events of another data set.

    Args:
        argument: a data set with the column `head`; its other columns stay.
        relations: those asked about; all of the language file when left out.
        samples: tails of each event and relation, repeated ones are dropped; shown: examples in a prompt.
        shares: of the events in train, validation and test: the column `split`, alike for all tails of an event.
        seed: of examples, names and split. limit: the first events only.
        teacher, chat, answers: see `heads`. options: of the other data set.
    """
    name, wording = f"triples:{argument}", open_language(language)
    asked = list(wording.chosen(relations))
    prompter = Prompter(name, teacher, answers, chat, **{**writing.TAILS, "stop": ("\n",)})
    require(name, samples, prompter.how)
    data = source(name, argument, options, "head", limit=limit)

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        found = {row["head"]: row for split in data.splits for row in iterate(data.split(split))}
        where = split_by_event(found, shares, seed)
        plain = [{k: v for k, v in row.items() if k not in ("split", "log_prob")} for row in found.values()]
        how = {"relations": asked, "samples": samples, "shown": shown, "seed": seed}
        for row in writing.tails(prompter, wording, plain, tally, **how):
            yield {**row, "split": where[row["head"]]}

    key = {"of": fingerprints(data), "language": wording.model_dump(mode="json"), "asked": prompter.key}
    key |= {"relations": asked, "samples": samples, "shown": shown, "shares": list(shares), "seed": seed}
    return made(name, {"train": rows}, key)


def cleaned_triples(
    argument: str,
    *,
    language: str = "en",
    relations: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`cleaned:DATA`: triples that there are, of all splits, cleaned and without repetitions, with the column `split`.

    Args:
        argument: a data set with the columns `head`, `relation` and `tail`; other columns stay.
        columns: our column name -> the data set's. The rest: see `triples`.
    """
    name, wording = f"cleaned:{argument}", open_language(language)
    wanted = set(wording.chosen(relations)) if relations else None
    data = open_data({"source": argument, "columns": dict(columns or {}), "options": dict(options or {})})
    for split in data.splits:
        if missing := [column for column in COLUMNS if column not in (has := data.split(split).column_names)]:
            raise DataError(
                f"{name}, split {split!r}, has no column {missing[0]!r}; it has {', '.join(has)}",
                hint="map them: columns: {head: THEIRS, relation: THEIRS, tail: THEIRS}",
            )

    def given() -> Iterator[dict[str, Any]]:
        for split in data.splits:
            yield from iterate(data.split(split))

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        where = split_by_event((row["head"] for row in given()), shares, seed)
        chosen = (row for row in given() if wanted is None or row["relation"] in wanted)
        for row in cleaned(chosen, wording, tally):
            yield {**row, "split": where[row["head"]]}

    key = {"of": fingerprints(data), "language": wording.model_dump(mode="json")}
    key |= {"relations": relations and list(relations), "shares": list(shares), "seed": seed}
    return made(name, {"train": rows}, key, licence=data.licence)


def critic_pairs(
    argument: str, *, language: str = "en", seed: int = 0, options: Mapping[str, Any] | None = None
) -> Data:
    """`critic-pairs:TRIPLES`: each triple as two texts, with random names for its persons, drawn by `seed` and the
    triple; `head`, `relation` and `label` stay beside them.

    Args:
        argument: a data set with `head`, `relation` and `tail`; options: of that one.
    """
    name, wording = f"critic-pairs:{argument}", open_language(language)
    data = source(name, argument, options, "tail")

    def rows(split: str) -> Iterator[dict[str, Any]]:
        for row in iterate(data.split(split)):
            kept = {name: row[name] for name in ("head", "relation", "label") if name in row}
            yield {**pair_of(row, wording, seed), **kept}

    key = {"language": wording.model_dump(mode="json"), "seed": seed, "version": 1}
    return data.remade(name, rows, data.splits, key=key)


def closed_world(events: int = 8, pairs: bool = False) -> Data:
    """`closed-world`: a few labelled triples of the closed world, each second of them wrong; as pairs for a critic."""

    def rows() -> Iterator[dict[str, Any]]:
        for row in labelled_rows(events):
            yield {**pair_of(row, open_language("en"), 0), "label": row["label"]} if pairs else row

    key = {"events": events, "pairs": pairs, "version": 1}
    return Data.from_rows("closed-world", {"train": rows}, key=key, licence="cc0-1.0")


def pair_of(row: Mapping[str, Any], language: Any, seed: int) -> dict[str, str]:
    """A triple as `sentence1` and `sentence2`."""
    text = "\x1f".join(str(row[column]) for column in COLUMNS)
    names = language.drawn_names(random.Random(f"{seed} {text}"), text)
    return dict(zip(("sentence1", "sentence2"), language.pair(row, names)))


def comet(
    argument: str,
    *,
    accepted: bool = False,
    where: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`comet:TRIPLES`: triples as the student reads and writes them (see `comet`).

    Args:
        accepted: for evaluation: each event and relation once, `accepted_tails` instead of `response`: those of the
            closed world for its events, else all of the data set.
        where: only these rows: {column: value or values}. options: of the other data set.
    """
    name = f"comet:{argument}"
    data = open_data({"source": argument, "where": dict(where or {}), "options": dict(options or {})})
    for split in data.splits:
        if missing := [column for column in COLUMNS if column not in (has := data.split(split).column_names)]:
            raise DataError(f"{name}, split {split!r}, has no column {missing[0]!r}; it has {', '.join(has)}")

    def rows(split: str) -> Iterator[dict[str, Any]]:
        if not accepted:
            yield from map(student.as_example, iterate(data.split(split)))
            return
        found: dict[tuple[str, str], list[str]] = {}
        for row in iterate(data.split(split)):
            found.setdefault((row["head"], row["relation"]), []).append(row["tail"])
        for (head, relation), tails in found.items():
            known = valid_tails(head, relation)
            prompt = student.prompt_of({"head": head, "relation": relation})
            yield {"prompt": prompt, "accepted_tails": sorted(known if known is not None else set(tails))}

    return data.remade(name, rows, data.splits, key={"accepted": accepted, "version": 1})
