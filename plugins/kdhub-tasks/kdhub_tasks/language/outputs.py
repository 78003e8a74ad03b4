"""What metrics of language models read: a number or two of each token, from one pass over the rows in chunks.

No more logits are held at once than `logits.NUMBERS` allows (a single long row may have more). Student and teacher are
compared in a pass of their own, one chunk of both at a time. Texts are generated when a metric needs them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import CompatibilityError
from kdhub.rows import plain_rows, prepared
from kdhub.task import Encoder
from kdhub_tasks.language import groups
from kdhub_tasks.language.generation import READ, Generation, decoded
from kdhub_tasks.language.logits import chunks, compare_logits, drafts, log_probabilities, slices
from kdhub_tasks.language.rows import answer_of, form_of, prompt_of

if TYPE_CHECKING:
    import datasets


@dataclass
class Tokens:
    """Of every label: log_p (labels,) float64, its log-probability in nats; hits (labels,) bool, whether it is the most
    probable token. `bytes` of all rows' labels; None where a row was cut."""

    log_p: np.ndarray
    hits: np.ndarray
    bytes: int | None


@dataclass
class Comparison:
    """Student and teacher on the labels that both see, means over them.

    Attributes:
        nll, teacher_nll: negative log-likelihood, nats.
        kl: KL(teacher || student), nats.
        agreement: share where both have the same most probable token.
        head, tail: the student's probability of the ten tokens, and of the last fifth, by the teacher's rank.
        overlap: sum of min(p, q) over the tokens: how often speculative sampling accepts a token that the student
            drafts.
        accepted: of a draft of `DRAFT` tokens, how many are accepted before the first rejection; over all positions
            with that many after them, NaN where there are none.
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
        encode: gives its signals; `encode.prepare` gives the rows as it sees them.
        table: rows that the task reads.
    """

    def __init__(self, encode: Encoder, table: datasets.Dataset):
        self.encode, self.table = encode, table
        self.texts: Texts | None = None

    @property
    def tokenizer(self) -> Any:
        """None for a model behind an API with an unknown tokenizer."""
        return self.encode.prepare.tokenizer

    @property
    def answerable(self) -> bool:
        """Whether its rows have a prompt and an answer."""
        return "text" not in self.table.column_names

    @property
    def examples(self) -> int:
        """Labels; answers, where there are texts; rows, where there are no logits."""
        if self.texts is not None:
            return len(self.texts.table)
        return len(self.table) if self.tokens is None else len(self.tokens.log_p)

    @cached_property
    def tokens(self) -> Tokens | None:
        """None for a model without logits."""
        if self.tokenizer is None:
            return None
        try:
            read = self.encode.reader(self.table, "logits")
        except CompatibilityError:  # no logits, or only a part of them
            return None
        log_p, hits, sizes = [], [], []
        for start, examples in chunks(self.table, self.encode.prepare, len(self.tokenizer)):
            for example, logits in zip(examples, read(start, start + len(examples))["logits"]):
                sizes.append(example["bytes"])
                for part in slices(logits):
                    log_q, chosen = log_probabilities(logits[part])
                    labels = np.asarray(example["labels"][part])
                    log_p.append(log_q[np.arange(len(labels)), labels].astype(np.float64))
                    hits.append(chosen == labels)
        whole = None if None in sizes else sum(sizes)
        return Tokens(np.concatenate(log_p), np.concatenate(hits), whole)

    def compared_with(self, teacher: Outputs) -> Comparison:
        """Student and teacher on the same rows.

        Raises:
            CompatibilityError: the teacher uses a different vocabulary, or has no logits.
            DataError: no row has a label.
        """
        known = self.__dict__.setdefault("_comparisons", {})
        if id(teacher) not in known:
            known[id(teacher)] = teacher, self._compare(teacher)
        return known[id(teacher)][1]

    def _compare(self, teacher: Outputs) -> Comparison:
        require_same_tokens(self.tokenizer, teacher.tokenizer)
        classes, sums, count, taken = len(self.tokenizer), np.zeros(6), 0, []
        mine, theirs = (out.encode.reader(out.table, "logits") for out in (self, teacher))
        for start, examples in chunks(self.table, self.encode.prepare, classes):
            stop = start + len(examples)
            for example, s, z in zip(examples, mine(start, stop)["logits"], theirs(start, stop)["logits"]):
                both = min(len(s), len(z))  # one may accept longer rows than the other
                labels = np.asarray(example["labels"])
                overlap = [np.zeros(0)]
                for part in slices(s[:both]):
                    of_part, overlap_of_part = compare_logits(s[:both][part], z[:both][part], labels[:both][part])
                    sums += of_part
                    overlap.append(overlap_of_part)
                taken.append(drafts(np.concatenate(overlap)))
                count += both
        each, rounds = (np.concatenate(part) for part in zip(*taken))
        return Comparison(
            *(sums / count).tolist(), float(each.mean()), float(rounds.mean()) if len(rounds) else math.nan
        )

    def writing(self, how: Generation, rows: int, samples: int = 1) -> Outputs:
        """The same with `samples` answers of the subject to each of the first rows."""
        made, first = copy.copy(self), plain_rows(self.table, range(min(rows, len(self.table))))
        prompts = prepared(self.encode.prepare, [{**row, "prompts": how.max_new_tokens} for row in first])
        able = [n for n, example in enumerate(prompts) if "fault" not in example]
        made.texts = Texts(self.encode, self.table.select(able), how, samples)
        return made


class Texts:
    """A subject's answers to some rows, and the reference answers.

    Attributes:
        table: the rows; how: the settings; samples: answers to each row.
    """

    def __init__(self, encode: Encoder, table: datasets.Dataset, how: Generation, samples: int = 1):
        self.encode, self.table, self.how, self.samples = encode, table, how, samples

    @cached_property
    def answers(self) -> list[str]:
        """The first answer to each row."""
        return self._answers(0)

    @cached_property
    def all_answers(self) -> list[list[str]]:
        """All answers to each row."""
        return [list(each) for each in zip(self.answers, *(self._answers(n) for n in range(1, self.samples)))]

    def _answers(self, sample: int) -> list[str]:
        settings = {"prompts": self.how.max_new_tokens, "sample": sample}
        read, n = self.encode.reader(self.table, self.how.kind, **settings), len(self.table)
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
    """The answer in a row, the best of several."""
    if form_of(row) in groups.FORMS:
        texts, scores = groups.responses_of(row)
        return texts[scores.index(max(scores))]
    return answer_of(row) or ""


def require_same_tokens(student: Any, teacher: Any) -> None:
    """
    Raises:
        CompatibilityError: two tokenizers have different vocabularies; says how many tokens they share. Or one is None.
    """
    if student is None or teacher is None:
        raise CompatibilityError("a model behind an API gives no logits to compare")
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    if mine != theirs:
        shared = sum(theirs.get(token) == i for token, i in mine.items())
        raise CompatibilityError(
            f"student and teacher use different vocabularies: {shared} tokens are the same, of {len(mine)} and "
            f"{len(theirs)}",
            hint="start the student with the teacher's vocabulary (llama:, layers:), or learn from its texts (seqkd), "
            "or where both spell the same (uld, gold)",
        )
