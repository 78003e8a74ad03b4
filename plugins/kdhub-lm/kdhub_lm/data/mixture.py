"""Instruction sets of several sources as one (arXiv:2306.04751); each row says where it is from and who wrote it."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from kdhub_tasks.language import chat_template
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.errors import DataError, RecipeError, UsageError
from kdhub.recipes.recipe import DataRef, explain
from kdhub.rows import plain_rows

logger = logging.getLogger("kdhub")

KEPT = {
    "conversations": ("messages", "loss_on"),
    "responses": ("prompt", "response"),
    "texts": ("text",),
}
"""Form of a mixture -> the columns that it takes from its sources."""


class Part(DataRef):
    """One source of a mixture; `sample` limits its rows."""

    weight: float = Field(1.0, gt=0, description="weight of its rows, relative to the others")
    by: str | None = Field(
        None,
        pattern="^(human|teacher:.+)$",
        description="who wrote it: human, or teacher:NAME; if unset, what its rows say",
    )


class Mixture(BaseModel):
    """Options of `mixture`."""

    model_config = ConfigDict(extra="forbid")
    sources: list[Annotated[Part, BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v)]] = Field(
        min_length=1, description="data sets, as `data.train` has them, with weight and by"
    )
    strategy: Literal["concat", "equal", "temperature"] = Field(
        "concat", description="rows of each source: all (concat), equal numbers (equal), or in between (temperature)"
    )
    tau: float = Field(2.0, ge=1, description="for strategy temperature: shares are proportional to size^(1/tau)")
    block: str | list[str] = Field(
        default_factory=list,
        description="drop rows with one of these words; a file with one a line, or a list",
    )
    seed: int = Field(0, ge=0, description="seed of the choice among a source's rows")


def mixture(argument: str, **options: Any) -> Data:
    """`mixture:NAME`, with any name. Split `train`: the rows of each source, one source after the other (training
    shuffles them), with the columns `dataset`, `id` and `source` (human, or teacher:NAME).

    Sources of one form keep it; prompts and responses mixed with conversations become conversations. Rows without an
    answer are dropped, and counted.

    Raises:
        RecipeError: a wrong option. DataError: the sources have no form in common.
    """
    try:
        plan = Mixture.model_validate(options)
    except ValidationError as error:
        raise RecipeError(explain(error, Mixture, (), ("options",))) from error
    name, words = f"mixture:{argument}", _blocked(plan.block)
    opened = [(data := open_data(p, on_bad_rows="skip"), data.pick(p.split or "train")) for p in plan.sources]
    form = _common_form(opened)

    def rows() -> Iterator[dict[str, Any]]:
        kept = [_allowed(data, split, words) for data, split in opened]
        for part, numbers in zip(plan.sources, kept):
            if not numbers:
                raise DataError(f"{name}: every row of {part.source} has a blocked word")
        counts = shares([len(k) for k in kept], [p.weight for p in plan.sources], plan.strategy, plan.tau)
        for part, (data, split), numbers, count in zip(plan.sources, opened, kept, counts):
            skipped = sum(data.skipped.get(split, {}).values())
            bad = f", {skipped} bad rows dropped" if skipped else ""
            logger.info("%s: %d rows of %s (%.3f)%s", name, count, part.source, count / sum(counts), bad)
            table = data.split(split)
            for start in range(0, len(taken := drawn(numbers, count, f"{plan.seed} {part.source}")), 1000):
                some = taken[start : start + 1000]
                for number, row in zip(some, plain_rows(table, some)):
                    yield _row(row, form, part, number)

    key = {
        "of": [data.fingerprint(split) for data, split in opened],
        "plan": plan.model_dump(mode="json", exclude={"block"}),
        "block": words,
        "version": 1,
    }
    licences = dict.fromkeys(data.licence for data, _ in opened if data.licence)
    return Data.from_rows(name, {"train": rows}, key=key, licence="; ".join(licences))


def shares(sizes: Sequence[int], weights: Sequence[float], strategy: str, tau: float = 2.0) -> list[int]:
    """Rows of each source: proportional to `weight size^(1/tau)`, with tau = 1 for concat and infinite tau for equal.
    Their total is that of all rows; the largest remainders are rounded up.

    Concat with equal weights takes each row once. Otherwise a source may give fewer rows than it has, or repeat some.
    """
    power = {"concat": 1.0, "equal": 0.0, "temperature": 1 / tau}[strategy]
    parts = [weight * size**power for size, weight in zip(sizes, weights)]
    exact = [part / sum(parts) * sum(sizes) for part in parts]
    counts = [int(value + 1e-9) for value in exact]
    last = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    for i in last[: sum(sizes) - sum(counts)]:
        counts[i] += 1
    return counts


def drawn(numbers: Sequence[int], count: int, seed: str) -> list[int]:
    """`count` of some rows, in order: each `count // len` times, and the rest drawn at random."""
    times, rest = divmod(count, len(numbers))
    return [*numbers] * times + sorted(random.Random(seed).sample(list(numbers), rest))


def _row(row: Mapping[str, Any], form: str, part: Part, number: int) -> dict[str, Any]:
    made = {name: row[name] for name in KEPT[form] if row.get(name) is not None}
    if form == "conversations" and "messages" not in made:
        made["messages"] = chat_template.as_conversation(row)
    given = row.get("id")
    about = {"dataset": part.source, "id": str(number if given is None else given)}
    by = f"teacher:{row['teacher']}" if row.get("teacher") else row.get("source")
    return {**made, **about, "source": part.by or by or "unknown"}


def _common_form(opened: Sequence[tuple[Data, str]]) -> str:
    forms = {data.name: data.form(split) for data, split in opened}
    found = set(forms.values())
    if found <= {"conversations", "responses"}:
        return "responses" if found == {"responses"} else "conversations"
    if found == {"texts"}:
        return "texts"
    raise DataError(
        f"mixture: the sources have no form in common: {', '.join(f'{name} {form}' for name, form in forms.items())}",
        hint="use texts only, or prompts and responses or messages only; map columns with other names",
    )


def _allowed(data: Data, split: str, words: Sequence[str]) -> list[int]:
    """The numbers of the rows without a blocked word."""
    table = data.split(split)
    if not words:
        return list(range(len(table)))
    kept = []
    for start in range(0, len(table), 1000):
        numbers = range(start, min(start + 1000, len(table)))
        kept += [
            n for n, row in zip(numbers, plain_rows(table, numbers)) if not chat_template.mentions(_turns(row), words)
        ]
    return kept


def _turns(row: Mapping[str, Any]) -> list[Mapping[str, str]]:
    if row.get("messages") is not None:
        return row["messages"]
    return [{"content": row[name]} for name in ("text", "prompt", "response") if row.get(name) is not None]


def _blocked(block: str | list[str]) -> list[str]:
    if isinstance(block, list):
        return block
    try:
        lines = Path(block).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"mixture: the file of blocked words (block={block}) cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]
