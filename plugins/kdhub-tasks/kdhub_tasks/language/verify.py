"""The final answer in a text, and whether it is correct.

Answers are recognised as data sets of worked answers mark them: `#### 18`, `\\boxed{18}`, `=> 18`, "the answer is 18".
Without a mark the last number counts. Public code for GSM8K loses the sign of a negative number; here it is kept.
"""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])(?P<sign>[-+\u2212]))?[$€£]?"  # the minus of 12-7 is not a sign
    r"(?<!\w)(?<!\d\.)(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)(?P<below>/\d+)?"
)
MARK = re.compile(r"=>|\banswer\s+is\b", re.IGNORECASE)
BOX = "\\boxed{"


def extract(text: str) -> str | None:
    """The final answer: after the last `####`, else in the last `\\boxed{}`, else after the last `=>` or "answer is",
    else the last number.

    Returns:
        A number without thousands separators, currency or trailing zeros (`-1,200.50` is `-1200.5`), or other text as
        `plain` leaves it; None where there is none, or nothing follows the mark.
    """
    if (tail := _marked(text)) is not None:
        # of a short sum its result
        tail = tail.rpartition("=")[2]
        found = NUMBER.search(tail)
        return _number(found) if found else plain(tail) or None
    numbers = list(NUMBER.finditer(text))
    return _number(numbers[-1]) if numbers else None


def verified(text: str, gold: str) -> bool:
    """Whether the final answer of a text is `gold`: numbers are compared as numbers, other answers as `plain` text.

    Args:
        gold: the answer, or a worked one with its mark. Unless it is a number, a text without a mark is compared as a
            whole.
    """
    wanted = extract(gold) if _marked(gold) is not None else _whole(gold) or plain(gold)
    if not wanted:
        return False
    if (value := _value(wanted)) is not None:
        given = extract(text)
        return given is not None and _value(given) == value
    return (extract(text) if _marked(text) is not None else plain(text)) == wanted


def plain(text: str) -> str:
    """Lower case, single spaces, without quotes, brackets, dollar signs and punctuation around it."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`$*()[]{}")


def _marked(text: str) -> str | None:
    """What follows the mark of an answer; None without one."""
    if "####" in text:
        return _line(text.rpartition("####")[2])
    if BOX in text:
        return _inside(text.rpartition(BOX)[2])
    marks = list(MARK.finditer(text))
    return _line(text[marks[-1].end() :]) if marks else None


def _line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


def _inside(text: str) -> str:
    """Up to the closing bracket."""
    depth = 1
    for at, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[:at]
    return text


def _whole(text: str) -> str | None:
    """The number that a text consists of; None if there is anything else."""
    text = text.strip().rstrip(".")
    found = NUMBER.fullmatch(text)
    return _number(found) if found else None


def _number(found: re.Match[str]) -> str:
    whole, _, part = found["digits"].replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    digits = f"{whole}.{part}" if part else whole
    sign = "-" if found["sign"] in ("-", "\u2212") and digits != "0" else ""
    return f"{sign}{digits}{found['below'] or ''}"


def _value(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
