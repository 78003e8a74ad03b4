"""What a look at a pair, a recipe or a machine found, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: ok; note, worth knowing; warn, likely to spoil the result; fail, it cannot run.
        check: what was looked at.
        found: what was found, with numbers.
        do: what to do; empty when there is nothing to be done.
        values: numbers in it, for programs.
    """

    status: Literal["ok", "note", "warn", "fail"]
    check: str
    found: str
    do: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def shared_tokens(student: Any, teacher: Any) -> Finding | None:
    """How much of the teacher's vocabulary the student has.

    Args:
        student, teacher: tokenizers with `get_vocab`; None where there is none, as behind an API.
    """
    if student is None or teacher is None:
        return None
    mine: Mapping[str, int] = student.get_vocab()
    theirs: Mapping[str, int] = teacher.get_vocab()
    if mine == theirs:
        return Finding("ok", "tokens", f"the same {len(mine):,}")
    shared = len(mine.keys() & theirs.keys())
    alike = sum(theirs.get(token) == number for token, number in mine.items())
    return Finding(
        "note",
        "tokens",
        f"{shared:,} of the student's {len(mine):,} and the teacher's {len(theirs):,} are shared, {alike:,} by number",
        "methods that compare token by token need the same; those that compare vectors or texts do not",
    )
