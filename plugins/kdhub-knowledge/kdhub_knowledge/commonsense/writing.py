"""What a teacher is asked for a commonsense graph, and how its replies are read (arXiv:2110.07178, sections 3.1, 3.2).

    events   ten of the seeds as a numbered list and an open item; a reply that reached the end of its item and begins
             as events do is one
    tails    a line on the relation, some verbalised triples with names, and the open sentence of the event

The wording is that of the language file; what is here knows no language.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdhub_tasks.language.prompting import Prompter, filled
from kdhub_tasks.language.replies import Tally, likelier

from kdhub_knowledge.commonsense.rows import fault_of, plain_tail

if TYPE_CHECKING:
    from kdhub_knowledge.commonsense.language import Language

ITEM_END = "\n\n"
EVENTS = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5}
"""Settings of events; `stop` is `ITEM_END`."""
TAILS = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.5}
"""Settings of tails; `stop` is the end of the line."""
AT_ONCE = 1000
"""Events whose tails are asked for in one go; tails of no more are held."""


def event_prompt(language: Language, seeds: Sequence[str], shown: int, draw: random.Random) -> str:
    """A numbered list of some seeds in random order, and an open item."""
    chosen = draw.sample(list(seeds), min(shown, len(seeds)))
    item = language.events.item
    lines = [f"{n}. {filled(item, head=head)}" for n, head in enumerate(chosen, 1)]
    return ITEM_END.join([*lines, f"{len(chosen) + 1}. {item[: item.find('{head}')].rstrip()}"])


def events(
    prompter: Prompter,
    language: Language,
    tally: Tally,
    *,
    seeds: Sequence[str],
    prompts: int,
    samples: int,
    shown: int = 10,
    drop_unlikely: float = 0.0,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """New events, `{"head", "log_prob"}`, without repetitions, the least probable share and odd characters."""
    draw = random.Random(f"{seed} events")
    asked = [event_prompt(language, seeds, shown, draw) for _ in range(prompts)]

    def read(tally: Tally) -> Iterator[dict[str, Any]]:
        seen = set(seeds)
        for replies in prompter(asked, samples):
            for reply in replies:
                head, fault = reply.text.strip(), None
                if not reply.ended:
                    fault = "unfinished"
                elif not head.startswith(language.events.starts):
                    fault = "not an event" if head else "empty"
                elif head in seen:
                    fault = "repeated"
                if fault:
                    tally[fault] += 1
                    continue
                seen.add(head)
                known = {} if reply.log_probs is None else {"log_prob": reply.about["log_prob"]}
                yield {"head": head, **known}

    allowed = language.events.characters
    plain = re.compile(f"[{allowed}]*") if allowed else None
    for row in likelier(read, drop_unlikely, tally) if drop_unlikely else read(tally):
        if plain is not None and not plain.fullmatch(row["head"]):
            tally["odd characters"] += 1
        else:
            yield row


def tail_prompt(language: Language, relation: str, head: str, shown: int, seed: int = 0) -> tuple[str, tuple[str, ...]]:
    """What a teacher is asked for tails, and the names that stand for the persons of the event."""
    draw, one = random.Random(f"{seed} {relation} {head}"), language.relations[relation]
    lines = [one.task]
    for example, tail in draw.sample(one.examples, min(shown, len(one.examples))):
        lines.append(language.sentence(relation, example, language.drawn_names(draw, example + tail), tail))
    names = language.free_names(head)
    return "\n".join([*lines, language.sentence(relation, head, names)]), names


def tails(
    prompter: Prompter,
    language: Language,
    rows: Sequence[Mapping[str, Any]],
    tally: Tally,
    *,
    relations: Sequence[str],
    samples: int,
    shown: int = 5,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Triples of some events: their rows with `relation`, `tail` and, where it is known, `log_prob`, cleaned, without
    repeated tails of an event and relation.

    Args:
        rows: with `head`; further columns stay.
        samples: tails of an event and relation; shown: examples in a prompt.
    """
    for start in range(0, len(rows), AT_ONCE):
        asked = [(row, name) for row in rows[start : start + AT_ONCE] for name in relations]
        made = [tail_prompt(language, name, row["head"], shown, seed) for row, name in asked]
        for (row, name), (_, names), replies in zip(asked, made, prompter([prompt for prompt, _ in made], samples)):
            seen: set[str] = set()
            for reply in replies:
                tail = plain_tail(reply.text, language, names)
                fault = fault_of(tail, language) or ("repeated" if tail in seen else None)
                if fault:
                    tally[fault] += 1
                    continue
                seen.add(tail)
                known = {} if reply.log_probs is None else {"log_prob": reply.about["log_prob"]}
                yield {**row, "relation": name, "tail": tail, **known}
