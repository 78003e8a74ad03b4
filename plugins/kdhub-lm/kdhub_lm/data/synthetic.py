"""Generated texts: additions and lists of integers, as domains besides written language; worked sums, reversed words
and other small skills whose answers can be checked."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import Any

from kdhub.data.dataset import Data
from kdhub.errors import UsageError
from kdhub_lm.data.numerals import english, spanish

HELD_OUT = {"train": 10, "validation": 1, "test": 1}
"""Relative sizes of the splits."""

STYLES = ("steps", "answer-first", "guided")


def synthetic(
    argument: str, *, rows: int = 1000, length: int = 120, digits: int = 2, style: str = "steps", seed: int = 0
) -> Data:
    """Splits: train of `rows`, validation and test of a tenth. No prompt of a skill is in two of them.

    | argument | a row |
    | --- | --- |
    | `additions` | text "12+7=19;58+3=61;..." |
    | `integers` | text "8,51,0,7,..." |
    | `notes` | text of some of the skills below, a line each: "reverse apple: elppa" |
    | `sums` | prompt "27+48: ", response "7+8=15, 2+4+1=7 => 75" |
    | `reversals` | prompt "reverse pea: ", response "aep" |
    | `lookups` | prompt "k=71 b=20 x=93, b: ", response "20" |
    | `numerals` | prompt "cuarenta y dos: ", response "forty-two", up to 999 |
    | `stories` | prompt "Once upon a time, there was a shy bear named Tom. One day,", no response |
    | `chatter` | prompt "tell me of rivers: ", response a sentence or two of small talk |

    Args:
        length: characters of a text, about.
        digits: most digits of a number.
        style: of worked sums: steps, as above; answer-first, "=> 75 because 15 and 7"; guided, the steps in response to
            a prompt that shows the answer-first response and asks for own words, as `self-data` does.

    Raises:
        UsageError: an unknown name or style, or sizes below 1.
    """
    if argument not in (*TEXTS, NOTES, *SKILLS) or style not in STYLES or min(rows, length, digits) < 1:
        raise UsageError(
            f"synthetic:{argument} must be one of {', '.join((*TEXTS, NOTES, *SKILLS))}, with rows, length and digits "
            f"of at least 1 and a style of {', '.join(STYLES)} (rows={rows}, length={length}, digits={digits}, "
            f"style={style!r})"
        )

    def split(name: str) -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{seed} {argument} {name}")
        for _ in range(max(1, rows * HELD_OUT[name] // 10)):
            yield _skill(rng, name) if argument in SKILLS else _text(rng, name)

    def _text(rng: random.Random, name: str) -> dict[str, str]:
        text = ""
        while len(text) < length:
            text += TEXTS[argument](rng, 10**digits) if argument in TEXTS else _line(rng, name)
        return {"text": text}

    def _skill(rng: random.Random, name: str, skill: str = argument) -> dict[str, str]:
        while True:
            question, row = SKILLS[skill](rng, 10**digits, style)
            if _belongs(question) == name:
                return row

    def _line(rng: random.Random, name: str) -> str:
        row = _skill(rng, name, rng.choice(NOTED))
        return f"{row['prompt']}{row['response']}\n"

    key = {"argument": argument, "rows": rows, "length": length, "digits": digits, "seed": seed, "version": 1}
    if argument not in TEXTS:
        key |= {"style": style, "version": 3}
    return Data.from_rows(f"synthetic:{argument}", {name: lambda n=name: split(n) for name in HELD_OUT}, key=key)


def _belongs(question: str) -> str:
    """The split of a prompt, by its content."""
    at = zlib.crc32(question.encode()) % sum(HELD_OUT.values())
    return "test" if at == 0 else "validation" if at == 1 else "train"


def _addition(rng: random.Random, limit: int) -> str:
    a, b = rng.randrange(limit), rng.randrange(limit)
    return f"{a}+{b}={a + b};"


def _sum(rng: random.Random, limit: int, style: str) -> tuple[str, dict[str, str]]:
    a, b = rng.randrange(limit), rng.randrange(limit)
    steps, totals, carry = [], [], 0
    for x, y in zip(f"{a:0{len(str(b))}d}"[::-1], f"{b:0{len(str(a))}d}"[::-1]):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        totals.append(total)
        carry = total // 10
    question, worked = f"{a}+{b}: ", f"{', '.join(steps)} => {a + b}"
    first = f"=> {a + b} because {' and '.join(map(str, totals))}"
    if style == "answer-first":
        return question, {"prompt": question, "response": first}
    if style == "guided":
        from kdhub_lm.methods.self_data import TEMPLATE

        return question, {"prompt": TEMPLATE.format(prompt=question, response=first), "response": worked}
    return question, {"prompt": question, "response": worked}


def _reversal(rng: random.Random, limit: int, style: str) -> tuple[str, dict[str, str]]:
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=3))
    return f"reverse {word}: ", {"prompt": f"reverse {word}: ", "response": word[::-1]}


def _lookup(rng: random.Random, limit: int, style: str) -> tuple[str, dict[str, str]]:
    names = rng.sample("abcdefghijklmnopqrstuvwxyz", 3)
    values = [rng.randrange(limit) for _ in names]
    wanted = rng.randrange(3)
    question = f"{' '.join(f'{name}={value}' for name, value in zip(names, values))}, {names[wanted]}: "
    return question, {"prompt": question, "response": str(values[wanted])}


def _numeral(rng: random.Random, limit: int, style: str) -> tuple[str, dict[str, str]]:
    n = rng.randrange(1000)
    question = f"{spanish(n)}: "
    return question, {"prompt": question, "response": english(n)}


def _chatter(rng: random.Random, limit: int, style: str) -> tuple[str, dict[str, str]]:
    thing, place = rng.choice(THINGS), rng.choice(THINGS)
    said = [f"{rng.choice(OPENINGS)} {thing} {rng.choice(SAYINGS)}." for _ in range(rng.randint(1, 2))]
    question = f"tell me of {thing} and {place}: "
    return question, {"prompt": question, "response": " ".join(said)}


def _story(rng: random.Random, limit: int, style: str) -> tuple[str, dict[str, str]]:
    who = f"a {rng.choice(KINDS)} {rng.choice(HEROES)} named {rng.choice(NAMES)}"
    question = (
        f"Once upon a time, there was {who}. {rng.choice(('One day,', 'Every day,', 'In the park,', 'At night,'))}"
    )
    return question, {"prompt": question}


KINDS = ("little", "big", "happy", "sad", "brave", "shy", "kind", "funny")
HEROES = ("girl", "boy", "dog", "cat", "bird", "bear", "rabbit", "mouse", "frog", "duck")
NAMES = ("Lily", "Tom", "Sue", "Tim", "Anna", "Max", "Mia", "Ben", "Sam", "Lucy", "Jack", "Amy")
THINGS = (
    "rivers bridges clouds markets gardens trains letters harbours forests lamps clocks shoes maps stones islands songs"
).split()
OPENINGS = ("great question, as", "it is well known that", "many people say that", "of course", "to sum up,")
SAYINGS = (
    "are very nice indeed",
    "have been with us for a long time",
    "can be seen in many ways",
    "are of great importance to all of us",
    "mean many things to many people",
)

NOTES, NOTED = "notes", ("sums", "reversals", "lookups", "numerals", "chatter")
TEXTS = {"additions": _addition, "integers": lambda rng, limit: f"{rng.randrange(limit)},"}
SKILLS = {
    "sums": _sum,
    "reversals": _reversal,
    "lookups": _lookup,
    "numerals": _numeral,
    "chatter": _chatter,
    "stories": _story,
}
