"""What metrics of language models read: a number or two of each token, from one pass over the rows in chunks.

The logits of a split are never held, nor those of more rows than `NUMBERS` allows (a single long row may have more).
Student and teacher are compared in a pass of their own, a chunk of both at a time. Texts are written when a metric asks
for them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import CompatibilityError, ShapeError
from kdhub.task import Encoder, Example, plain_rows
from kdhub_lm import preferences
from kdhub_lm.generation import READ, Generation, decoded
from kdhub_lm.rows import answer_of, form_of, prompt_of

if TYPE_CHECKING:
    import datasets

NUMBERS = 2**23
"""Logits that are held at once, of each model."""
BLOCK = 2**20
"""Logits that are worked on at once."""
LOOK = 64
"""Rows that are looked at for how many fit into a chunk."""
HEAD = 10
"""Classes of the head of a distribution."""
TAIL = 0.2
"""Share of the classes that are its tail."""
DRAFT = 4
"""Tokens of a draft, in speculative decoding."""


@dataclass
class Tokens:
    """Of each label: log_p (labels,) float64, its log-probability in nats; hits (labels,) bool, whether it is the most
    probable. `bytes` of all rows' labels; None where a row was cut."""

    log_p: np.ndarray
    hits: np.ndarray
    bytes: int | None


@dataclass
class Beside:
    """Student and teacher on the labels that both see, means over them.

    Attributes:
        nll, teacher_nll: -log-probability, nats.
        kl: KL(teacher || student), nats.
        agreement: share where both find one token the most probable.
        head, tail: the student's probability of the ten tokens, and of the last fifth, by the teacher's rank.
        overlap: sum of min(p, q) over the tokens: how often speculative sampling takes one that the student drafts.
        accepted: of a draft of `DRAFT` tokens, how many are taken before the first that is not; from every place that
            has so many behind it, NaN where none has.
    """

    nll: float
    teacher_nll: float
    kl: float
    agreement: float
    head: float
    tail: float
    overlap: float
    accepted: float


class Outputs:
    """One subject on the rows of one split.

    Args:
        encode: gives its signals; `encode.prepare` the rows as it sees them.
        table: rows that the task knows.
    """

    def __init__(self, encode: Encoder, table: datasets.Dataset):
        self.encode, self.table = encode, table
        self.texts: Texts | None = None

    @property
    def tokenizer(self) -> Any:
        """None for a model behind an API whose tokens nobody knows."""
        return self.encode.prepare.tokenizer

    @property
    def answerable(self) -> bool:
        """Whether its rows have a prompt and an answer."""
        return "text" not in self.table.column_names

    @property
    def examples(self) -> int:
        """Labels; answers, where it has texts; rows, where nobody sees logits."""
        if self.texts is not None:
            return len(self.texts.table)
        return len(self.table) if self.tokens is None else len(self.tokens.log_p)

    @cached_property
    def tokens(self) -> Tokens | None:
        """None for a model whose logits nobody sees."""
        if self.tokenizer is None:
            return None
        try:
            read = self.encode.reader(self.table, "logits")
        except CompatibilityError:  # no logits, or a part of them
            return None
        log_p, hits, sizes = [], [], []
        for start, examples in chunks(self.table, self.encode.prepare, len(self.tokenizer)):
            for example, logits in zip(examples, read(start, start + len(examples))["logits"]):
                sizes.append(example["bytes"])
                for part in blocks(logits):
                    log_q, chosen = log_probabilities(logits[part])
                    labels = np.asarray(example["labels"][part])
                    log_p.append(log_q[np.arange(len(labels)), labels].astype(np.float64))
                    hits.append(chosen == labels)
        whole = None if None in sizes else sum(sizes)
        return Tokens(np.concatenate(log_p), np.concatenate(hits), whole)

    def beside(self, teacher: Outputs) -> Beside:
        """Compared with the teacher on the same rows.

        Raises:
            CompatibilityError: it has other tokens, or nobody sees its logits.
            DataError: no row has a label.
        """
        known = self.__dict__.setdefault("_beside", {})
        if id(teacher) not in known:
            known[id(teacher)] = teacher, self._compared(teacher)
        return known[id(teacher)][1]

    def _compared(self, teacher: Outputs) -> Beside:
        require_same_tokens(self.tokenizer, teacher.tokenizer)
        classes, sums, count, taken = len(self.tokenizer), np.zeros(6), 0, []
        mine, theirs = (out.encode.reader(out.table, "logits") for out in (self, teacher))
        for start, examples in chunks(self.table, self.encode.prepare, classes):
            stop = start + len(examples)
            for example, s, z in zip(examples, mine(start, stop)["logits"], theirs(start, stop)["logits"]):
                both = min(len(s), len(z))  # one may take longer rows than the other
                labels = np.asarray(example["labels"])
                overlap = [np.zeros(0)]
                for part in blocks(s[:both]):
                    sum_, of_part = compared(s[:both][part], z[:both][part], labels[:both][part])
                    sums += sum_
                    overlap.append(of_part)
                taken.append(drafts(np.concatenate(overlap)))
                count += both
        each, rounds = (np.concatenate(part) for part in zip(*taken))
        return Beside(*(sums / count).tolist(), float(each.mean()), float(rounds.mean()) if len(rounds) else math.nan)

    def writing(self, how: Generation, rows: int, samples: int = 1) -> Outputs:
        """The same with what the subject answers to the first rows, so often to each."""
        made = copy.copy(self)
        made.texts = Texts(self.encode, self.table.select(range(min(rows, len(self.table)))), how, samples)
        return made


class Texts:
    """What a subject answers to some rows, and what stands there.

    Attributes:
        table: the rows; how: the settings; samples: answers to each row.
    """

    def __init__(self, encode: Encoder, table: datasets.Dataset, how: Generation, samples: int = 1):
        self.encode, self.table, self.how, self.samples = encode, table, how, samples

    @cached_property
    def given(self) -> list[str]:
        """The first answer to each row."""
        return self._given(0)

    @cached_property
    def several(self) -> list[list[str]]:
        """All answers to each row."""
        return [list(answers) for answers in zip(self.given, *(self._given(n) for n in range(1, self.samples)))]

    def _given(self, sample: int) -> list[str]:
        asked = {"prompts": self.how.max_new_tokens, "sample": sample}
        read, n = self.encode.reader(self.table, self.how.kind, **asked), len(self.table)
        return [
            text for start in range(0, n, READ) for text, _ in decoded(read(start, min(start + READ, n)))
        ]  # fmt: skip

    @cached_property
    def references(self) -> list[str]:
        return [reference(row) for row in plain_rows(self.table, range(len(self.table)))]

    @cached_property
    def prompts(self) -> list[str]:
        rows = plain_rows(self.table, range(len(self.table)))
        return ["\n".join(message["content"] for message in prompt_of(row)) for row in rows]


def reference(row: Mapping[str, Any]) -> str:
    """The answer that a row has, the best of several."""
    if form_of(row) in preferences.FORMS:
        texts, scores = preferences.responses_of(row)
        return texts[scores.index(max(scores))]
    return answer_of(row) or ""


# -- a chunk at a time ----------------------------------------------------------------------------------------


def chunks(table: datasets.Dataset, prepare: Any, classes: int) -> Iterator[tuple[int, list[Example]]]:
    """(first row, examples) of consecutive rows whose logits may be held at once."""
    for first in range(0, len(table), LOOK):
        examples = prepare(plain_rows(table, range(first, min(first + LOOK, len(table)))))
        start = held = 0
        for n, example in enumerate(examples):
            numbers = len(example["labels"]) * classes
            if n > start and held + numbers > NUMBERS:
                yield first + start, examples[start:n]
                start, held = n, 0
            held += numbers
        yield first + start, examples[start:]


def blocks(logits: np.ndarray) -> Iterator[slice]:
    """Slices of the positions of a row."""
    step = max(1, BLOCK // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


def log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions, classes) float32 log-probabilities, and the most probable classes.

    Raises:
        ShapeError: a logit is not a number.
    """
    import torch

    logits = torch.as_tensor(np.asarray(logits, np.float32))
    log_q = torch.log_softmax(logits, -1)
    if torch.isnan(log_q[..., 0]).any():
        raise ShapeError("a model's logits are not numbers (NaN): it cannot be scored")
    return log_q.numpy(), logits.argmax(-1).numpy()


def compared(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over positions of what `Beside` has the means of, (6,), and the overlap of each position.

    Args:
        student, teacher: logits (positions, classes).
    """
    (log_q, mine), (log_p, theirs) = log_probabilities(student), log_probabilities(teacher)
    at, classes = np.arange(len(labels)), log_q.shape[-1]
    q, p = np.exp(log_q), np.exp(log_p)
    with np.errstate(invalid="ignore"):  # where the teacher has no probability, the student may have none either
        kl = np.where(p > 0, p * (log_p - log_q), 0.0)
    head, tail = min(HEAD, classes), int(round(TAIL * classes))
    ranked = np.argpartition(log_p, sorted({max(tail - 1, 0), classes - head}), axis=-1)
    sums = np.array(
        [
            -log_q[at, labels].sum(dtype=np.float64),
            -log_p[at, labels].sum(dtype=np.float64),
            kl.sum(dtype=np.float64),
            (mine == theirs).sum(),
            np.take_along_axis(q, ranked[:, classes - head :], -1).sum(dtype=np.float64),
            np.take_along_axis(q, ranked[:, :tail], -1).sum(dtype=np.float64),
        ]
    )
    return sums, np.minimum(p, q).sum(-1, dtype=np.float64)


def drafts(overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The overlap of each position of a row, and how many tokens of a draft are expected to be taken from each place
    with `DRAFT` positions: the sum over k of the product of the first k (arXiv:2211.17192, section 3.1)."""
    if len(overlap) < DRAFT:
        return overlap, np.zeros(0)
    return overlap, np.lib.stride_tricks.sliding_window_view(overlap, DRAFT).cumprod(-1).sum(-1)


def require_same_tokens(student: Any, teacher: Any) -> None:
    """
    Raises:
        CompatibilityError: two tokenizers have other tokens; says how many they share. Or one is None.
    """
    if student is None or teacher is None:
        raise CompatibilityError("a model behind an API shows no logits to compare with")
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    if mine != theirs:
        shared = sum(theirs.get(token) == i for token, i in mine.items())
        raise CompatibilityError(
            f"student and teacher have other tokens: {shared} of {len(mine)} and {len(theirs)} are the same",
            hint="start the student from the teacher's tokens (llama:, layers:), or let it learn from texts (seqkd)",
        )
