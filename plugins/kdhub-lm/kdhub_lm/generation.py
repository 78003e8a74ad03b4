"""Texts that a model writes: how it is asked, and how answers are kept.

A text is a signal like any other, of the kind `text:{...}` with the settings in its name, so that it goes through the
store: what a teacher wrote, or was paid for, is not asked for again, and an interrupted job continues row by row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub._rows import fingerprint_of
from kdhub.data import Data
from kdhub.errors import TeacherError
from kdhub.task import Rows
from kdhub_lm.rows import with_answer

if TYPE_CHECKING:
    import datasets

    from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

SIGNAL = "text"
READ = 256
"""Rows whose texts are read at once."""


class Generation(BaseModel):
    """How a model is asked for a text.

    Two samples of one prompt are two rows (column `sample`, from 0); the seed is the same for all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_new_tokens: int = Field(128, ge=1, description="tokens of an answer, at most")
    temperature: float = Field(0.0, ge=0, description="of sampling; 0 takes the most probable token")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the most probable tokens with this mass")
    seed: int = Field(0, ge=0, description="of sampling")

    @property
    def kind(self) -> str:
        """The signal's name."""
        return f"{SIGNAL}:{json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True, separators=(',', ':'))}"

    @classmethod
    def parse(cls, kind: str) -> Generation:
        """The settings in a signal's name."""
        return cls(**json.loads(kind.partition(":")[2] or "{}"))


def is_text(kind: str) -> bool:
    return kind.partition(":")[0] == SIGNAL


def layout() -> dict[str, Any]:
    """Fields of one answer: its bytes, and whether the model ended it itself."""
    from kdhub.signals import Field as Stored

    return {"text": Stored("text", "uint8", ragged=True), "ended": Stored("ended", "uint8")}


def encoded(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, Any]:
    """Answers as the store keeps them."""
    rows = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    return {"text": rows, "ended": np.asarray(ended, np.uint8)}


def decoded(values: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """(text, whether it was ended) of some rows of a signal."""
    # a model of bytes may stop in the middle of a letter
    texts = [np.asarray(row, np.uint8).tobytes().decode(errors="replace") for row in values["text"]]
    return list(zip(texts, map(bool, values["ended"])))


def opened(ref: str | Mapping[str, Any]) -> Teacher:
    """A teacher of language, as `teacher` in a recipe names it."""
    from kdhub.recipe import Ref
    from kdhub.resolve import Resolver

    return Resolver().teacher(Ref(**({"source": ref} if isinstance(ref, str) else ref)), "causal-lm")


def answers(
    teacher: Teacher, table: datasets.Dataset, how: Generation, signals: Callable[[Rows, str], Any] | None = None
) -> Iterator[tuple[str, bool]]:
    """What a teacher answers to the prompts of a table, row by row, through the store: (text, whether it was ended).

    Args:
        table: rows that the task `causal-lm` knows (`prompt`, `text`, `messages`, ...); `sample` numbers several
            answers to one prompt.
        signals: what gives stored signals of rows; the store itself by default, `run.signals` inside a run.
    """
    from kdhub.signals import distinct, row_key
    from kdhub.stored import stored_signals
    from kdhub_lm.task import CausalLanguage

    prepare = CausalLanguage().preparer(None, teacher, prompts=how.max_new_tokens)
    rows = Rows.build(table, prepare, row_key)
    stored = (signals or partial(stored_signals, teacher))(rows, how.kind)
    once = distinct(rows.keys)
    counts = np.zeros((len(rows), 2), np.int64)
    for start in range(0, len(rows), READ):
        some = np.arange(start, min(start + READ, len(rows)))
        values = stored[some]
        if "tokens" in values:
            counts[some] = np.maximum(values["tokens"], 0)  # below 0 where the server did not count
        yield from decoded(values)
    if counts.any():
        asked, written = counts[once].sum(0).tolist()
        cost = "".join(f", {name} {value:g}" for name, value in teacher.priced(asked, written).items())
        logger.info(
            "%d answers of %s: %d tokens of prompts, %d of answers%s", len(once), teacher.argument, asked, written, cost
        )


def several(teacher: Teacher, table: datasets.Dataset, how: Generation, samples: int) -> list[list[tuple[str, bool]]]:
    """So many answers to each prompt of a table."""
    given = list(answers(teacher, numbered(table, samples), how))
    return [given[n :: len(table)] for n in range(len(table))]


def numbered(table: datasets.Dataset, samples: int) -> datasets.Dataset:
    """The rows of a table, so often one after the other, by the number of their `sample`."""
    import datasets

    return datasets.concatenate_datasets([table.add_column("sample", [n] * len(table)) for n in range(samples)])


def digest_of(table: datasets.Dataset) -> str:
    """By which a table's rows are known again, in the key of rows that are made of them."""
    return fingerprint_of(table, {"kind": "dataset", "id": table._fingerprint})


def answered(
    teacher: Teacher,
    table: datasets.Dataset,
    how: Generation,
    *,
    name: str,
    samples: int = 1,
    signals: Callable[[Rows, str], Any] | None = None,
) -> Data:
    """The rows of a table with a teacher's answers as `response`, or as the last of `messages`; `ended` says whether
    one came to an end, `sample` which answer to its prompt it is. Empty answers are left out, and counted.

    Args:
        table, signals: see `answers`.
        samples: answers to each prompt.

    Raises:
        TeacherError: all answers are empty.
    """
    key = {"of": digest_of(table), "teacher": dict(teacher.identity), "how": how.kind, "samples": samples}

    def rows() -> Iterator[dict[str, Any]]:
        empty = 0
        for n, (text, ended) in enumerate(answers(teacher, numbered(table, samples), how, signals)):
            if not text.strip():
                empty += 1
                continue
            yield {**with_answer(table[n % len(table)], text), "ended": ended, "sample": n // len(table)}
        if empty:
            what = f"{empty} of {samples * len(table)} answers of {teacher.argument} to {name} are empty"
            if empty == samples * len(table):
                raise TeacherError(what, hint="is it a model that answers, and are the prompts what it knows?")
            logger.warning("%s, and left out", what)

    made = f"answers to {name}"
    return Data.from_rows(made, {"train": rows}, key={**key, "version": 1}, ref=f"made:{made}")
