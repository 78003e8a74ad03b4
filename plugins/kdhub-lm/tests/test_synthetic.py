"""Generated texts and skills whose answers can be checked."""

from __future__ import annotations

from kdhub_lm.data import numerals
from kdhub_lm.data.synthetic import NOTED, synthetic
from kdhub_tasks.language.verify import verified


def test_numbers_in_words():
    for n, spanish, english in (
        (0, "cero", "zero"), (16, "dieciséis", "sixteen"), (23, "veintitrés", "twenty-three"),
        (31, "treinta y uno", "thirty-one"), (80, "ochenta", "eighty"), (100, "cien", "one hundred"),
        (101, "ciento uno", "one hundred one"), (555, "quinientos cincuenta y cinco", "five hundred fifty-five"),
        (742, "setecientos cuarenta y dos", "seven hundred forty-two"), (900, "novecientos", "nine hundred"),
    ):  # fmt: skip
        assert (numerals.spanish(n), numerals.english(n)) == (spanish, english)
    assert len({numerals.spanish(n) for n in range(1000)}) == len({numerals.english(n) for n in range(1000)}) == 1000


def test_skills_can_be_checked_and_what_is_held_out_stands_nowhere_else():
    prompts = {}
    for name in NOTED:
        data = synthetic(name, rows=300)
        prompts[name] = {split: set(data.split(split)["prompt"]) for split in ("train", "test")}
        assert not prompts[name]["train"] & prompts[name]["test"]
        if name != "chatter":
            assert all(verified(row["response"], row["response"]) for row in data.split("test"))
    lines = [
        line for row in synthetic("notes", rows=300, length=140).split("train") for line in row["text"].splitlines()
    ]
    held_out = {prompt for each in prompts.values() for prompt in each["test"]}
    assert len(lines) > 600 and not any(line.startswith(tuple(held_out)) for line in lines)
    assert synthetic("lookups", rows=10).split("train")[0]["response"].isdigit()
