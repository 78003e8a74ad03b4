"""Final answers: found where data sets write them, signs kept, numbers compared as numbers."""

import pytest
from kdhub_tasks.language.verify import extract, verified


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5 + 3 = <<5+3=8>>8\n#### 8", "8"),
        ("#### 3\nno, wait\n#### -1,200.50.", "-1200.5"),  # the last mark; public code would say 1200.5
        ("#### $18 a day, of 24", "18"),
        ("it is 7, but\n####", None),  # nothing was said
        (r"so \boxed{4}, or rather \boxed{\frac{a}{b}} of 9", r"\frac{a}{b"),
        ("The answer is: Paris.", "paris"),
        ("the answer is 3 => 12 - 19 = -7", "-7"),
        ("12-7=5", "5"),
        ("from 12-7", "7"),  # no sign, though a minus
        ("a loss of \u22125", "-5"),
        ("a loss of -$5.", "-5"),
        ("12,345,678.", "12345678"),
        ("3.0", "3"),
        ("it's...5", "5"),
        (".50", "0.5"),
        ("-0", "0"),
        ("007", "7"),
        ("3/4 of it", "3/4"),
        ("a1b, x2", None),
        ("", None),
        ("none", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("that makes 3.0.", "3", True),
        ("that makes 0.75", "3/4", True),
        ("1,000 in all", "1000", True),
        ("#### 18", "5 and 13 make <<5+13=18>>18\n#### 18", True),
        ("it falls by 5 to -5", "-5", True),
        ("it falls to 5", "-5", False),
        ("18 then 19", "18", False),
        ("The answer is (B).", "B", True),
        ("Paris!", " paris", True),
        ("c1a", "b1a", False),  # text with a digit is text
        ("b1a", "b1a", True),
        ("nothing", "18", False),
        ("", "", False),
        ("1/0", "1", False),
        ("9" * 5000, "9", False),
    ],
)
def test_verified(text, gold, right):
    assert verified(text, gold) is right
