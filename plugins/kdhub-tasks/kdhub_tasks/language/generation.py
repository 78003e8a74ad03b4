"""Texts that models write: how a model is prompted, and how its answers are stored.

A text is a signal like any other, of the kind `text:{...}` with the settings in its name, so it goes through the signal
store: an answer that was computed, or paid for, once is not requested again, and an interrupted job continues row by
row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, model_serializer

from kdhub import fields
from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow, fingerprint_of
from kdhub.errors import TeacherError
from kdhub.files import canonical_json
from kdhub.rows import Rows
from kdhub.signals.settings import SignalSettings
from kdhub_tasks.language.rows import with_answer

if TYPE_CHECKING:
    import datasets

    from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

SIGNAL = "text"
REFUSED = 2
"""`ended` of a prompt that the model refused to answer."""
FIRST = ("max_new_tokens", "temperature", "top_p", "seed")
"""Settings that texts had from the beginning."""
READ = 256
"""Rows whose texts are read at once."""


class Generation(SignalSettings):
    """Settings of generation.

    Two samples for one prompt are two rows (column `sample`, from 0); the seed is the same for all of them.

    Penalties are those of OpenAI's API: `frequency_penalty` times the number of times that the answer has a token, and
    `presence_penalty` if it has it at all, are taken from the token's score. Log-probabilities are those of the model's
    own distribution, before temperature, top_p and penalties.
    """

    signal = SIGNAL
    max_new_tokens: int = Field(128, ge=1, description="most tokens of an answer")
    temperature: float = Field(0.0, ge=0, description="sampling temperature; 0 takes the most probable token")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sample from the most probable tokens with this total probability"
    )
    seed: int = Field(0, ge=0, description="seed of sampling")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="texts that end an answer, and are no part of it"
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="against tokens that the answer has already")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="against tokens by how often the answer has them")
    prefix: str = Field("", description="how the answer begins: the model goes on from there, and gives the rest")
    log_probs: bool = Field(False, description="also keep the log-probability of each token of the answer")
    first_tokens: int = Field(
        0, ge=0, le=20, description="also keep so many of the tokens that the answer most probably begins with"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Any) -> dict[str, Any]:
        """Settings that came later are left out where they are unset: digests of settings stay what they were."""
        return {k: v for k, v in dump(self).items() if k in FIRST or v != type(self).model_fields[k].default}

    @property
    def prompting(self) -> dict[str, Any]:
        """Settings by which the task prepares prompts for it (`CausalLanguage.preparer`)."""
        return {"prompts": self.max_new_tokens} | ({"prefix": self.prefix} if self.prefix else {})

    def cut(self, text: str) -> tuple[str, bool]:
        """A text up to the first of the stop sequences, and whether it has one."""
        at = min((n for one in self.stop if (n := text.find(one)) >= 0), default=None)
        return text[:at], at is not None


class _Pair(NamedTuple):
    text: str
    ended: bool


class Answer(_Pair):
    """What a model wrote, and whether it was ended, by the model or by a stop sequence.

    Attributes:
        log_probs: (tokens,) log-probability of each token that was sampled, nats; None where they were not asked for.
            What ended the text is among them with local models, and with servers that list it.
        fault: why there is no answer: a chat template does not accept the prompt, or the model refused it. The text is
            empty then.
        first: text of a token -> its log-probability as the first of the answer, nats; None where they were not asked
            for.
    """

    log_probs: np.ndarray | None = None
    fault: str | None = None
    first: Mapping[str, float] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a row says of its answer: `ended`; where it is known `log_prob`, the sum over its tokens, nats."""
        known = {} if self.log_probs is None else {"log_prob": float(np.sum(self.log_probs, dtype=np.float64))}
        return {"ended": self.ended, **known}


def is_text(kind: str) -> bool:
    return Generation.names(kind)


def layout(kind: str = SIGNAL) -> dict[str, Any]:
    """Stored fields of one answer: its bytes, whether it was ended, and what else its settings ask for."""
    made = {"text": fields.Field("text", "uint8", ragged=True), "ended": fields.Field("ended", "uint8")}
    if Generation.parse(kind).log_probs:
        made["log_probs"] = fields.Field("log_probs", "float32", ragged=True)
    if Generation.parse(kind).first_tokens:
        made["first"] = fields.Field("first", "uint8", ragged=True)
    return made


def encoded(
    texts: Sequence[str],
    ended: Sequence[int],
    log_probs: Sequence[np.ndarray] | None = None,
    first: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Answers as the store keeps them."""
    rows = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    more = {} if log_probs is None else {"log_probs": list(log_probs)}
    if first is not None:
        more["first"] = [np.frombuffer(canonical_json(dict(one)), np.uint8) for one in first]
    return {"text": rows, "ended": np.asarray(ended, np.uint8), **more}


def decoded(values: Mapping[str, Any]) -> list[Answer]:
    """The answers in some rows of a signal."""
    # a model of bytes may stop in the middle of a character
    texts = [np.asarray(row, np.uint8).tobytes().decode(errors="replace") for row in values["text"]]
    made = [Answer(text, bool(ended)) for text, ended in zip(texts, values["ended"])]
    for answer, log_probs in zip(made, values.get("log_probs", ())):
        answer.log_probs = log_probs
    for answer, first in zip(made, values.get("first", ())):
        answer.first = json.loads(np.asarray(first, np.uint8).tobytes())
    for n in np.flatnonzero(np.asarray(values["ended"]) == REFUSED):
        made[n] = unanswered("that the model refused to answer")
    return made


def unanswered(fault: str) -> Answer:
    """What stands for the answer to a prompt that has none."""
    made = Answer("", False)
    made.fault = fault
    return made


def fault_in(replies: Sequence[Answer]) -> str | None:
    """Why a prompt has none of its answers; None where it has one."""
    return replies[0].fault if replies and all(reply.fault for reply in replies) else None


def answers(
    teacher: Teacher,
    table: datasets.Dataset,
    how: Generation,
    signals: Callable[[Rows, str], Any] | None = None,
    *,
    faults: bool = False,
) -> Iterator[Answer]:
    """A teacher's answers to the prompts of a table, row by row, through the store.

    Args:
        table: rows that the task `causal-lm` reads (`prompt`, `text`, `messages`, ...); `sample` numbers several
            answers to one prompt.
        signals: gives stored signals of rows; the store itself by default, `run.signals` inside a run.
        faults: prompts that the chat template does not accept get an answer with a `fault`.

    Raises:
        DataError: the chat template does not accept some prompts.
    """
    from kdhub.signals.store import distinct, row_key
    from kdhub.signals.stored import stored_signals

    prepare = teacher.task.preparer(None, teacher, **how.prompting)
    rows = Rows.build(table, prepare, row_key)
    if faults and (bad := rows.bad.numbers):
        able = [n for n in range(len(table)) if n + 1 not in bad]
        given = answers(teacher, table.select(able), how, signals) if able else iter(())
        yield from (unanswered(bad[n]) if n in bad else next(given) for n in range(1, len(table) + 1))
        return
    rows = rows.readable("prompts")
    stored = (signals or partial(stored_signals, teacher))(rows, how.kind)
    once = distinct(rows.keys)
    counts = np.zeros((len(rows), 2), np.int64)
    for start in range(0, len(rows), READ):
        some = np.arange(start, min(start + READ, len(rows)))
        values = stored[some]
        if "tokens" in values:
            counts[some] = np.maximum(values["tokens"], 0)  # negative where the server did not count
        yield from decoded(values)
    if counts.any():
        of_prompts, of_answers = counts[once].sum(0).tolist()
        cost = "".join(f", {name} {value:g}" for name, value in teacher.priced(of_prompts, of_answers).items())
        logger.info(
            "%d answers of %s: %d prompt tokens, %d completion tokens%s",
            len(once), teacher.argument, of_prompts, of_answers, cost,
        )  # fmt: skip


def sampled(
    teacher: Teacher,
    table: datasets.Dataset,
    how: Generation,
    samples: int,
    signals: Callable[[Rows, str], Any] | None = None,
    *,
    faults: bool = False,
) -> list[list[Answer]]:
    """`samples` answers to each prompt of a table; `signals` and `faults` as in `answers`."""
    found = list(answers(teacher, repeated(table, samples), how, signals, faults=faults))
    return [found[n :: len(table)] for n in range(len(table))]


def repeated(table: datasets.Dataset, samples: int) -> datasets.Dataset:
    """A table `samples` times over, with the number of each repetition as `sample`."""
    import datasets

    return datasets.concatenate_datasets([table.add_column("sample", [n] * len(table)) for n in range(samples)])


def digest_of(table: datasets.Dataset) -> str:
    """A digest of a table's rows, for the key of rows that are made of them."""
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
    an answer was ended, `sample` which answer to its prompt it is, `log_prob` how probable, where `how` asks for it.
    Empty answers are dropped, and counted.

    Args:
        table, signals: see `answers`.
        samples: answers to each prompt.

    Raises:
        TeacherError: all answers are empty.
    """
    key = {"of": digest_of(table), "teacher": dict(teacher.identity_of(how.kind)), "how": how.kind, "samples": samples}

    def rows() -> Iterator[dict[str, Any] | BadRow]:
        empty = 0
        for n, answer in enumerate(answers(teacher, repeated(table, samples), how, signals, faults=True)):
            if answer.fault:
                yield BadRow(answer.fault, n % len(table) + 1)
            elif not answer.text.strip():
                empty += 1
            else:
                yield {**with_answer(table[n % len(table)], answer.text), **answer.about, "sample": n // len(table)}
        if empty:
            what = f"{empty} of {samples * len(table)} answers of {teacher.argument} to {name} are empty"
            if empty == samples * len(table):
                raise TeacherError(what, hint="does this model understand these prompts?")
            logger.warning("%s and were dropped", what)

    made = f"answers to {name}"
    data = Data.from_rows(made, {"train": rows}, key={**key, "version": 1}, ref=f"made:{made}")
    return data.with_options(on_bad_rows=teacher.on_bad_rows)
