"""Masked language modelling: which tokens stood where some were hidden, by encoders of the transformers library."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_logits.tasks import Classification
from pydantic import BaseModel, ConfigDict

from kdhub.errors import CompatibilityError
from kdhub.findings import Finding, shared_tokens
from kdhub.task import Encoder, Example, Prepare, View

if TYPE_CHECKING:
    import torch

    from kdhub.data import Data
    from kdhub_text.masked_lm import MaskedLm

SHARE = 0.15
"""Of a text's tokens, those that are to be told (arXiv:1810.04805)."""
PIECE = 64
"""Rows whose logits are held at once where they are scored."""


@dataclass
class Told:
    """What metrics read, of each hidden token.

    Attributes:
        log_probability: (n,) of the true token, nats.
        chosen, labels: (n,) the most probable and the true token.
    """

    log_probability: np.ndarray
    chosen: np.ndarray
    labels: np.ndarray

    @property
    def examples(self) -> int:
        return len(self.labels)


class FillMask(Classification):
    """Rows have `text`. Of each 15 % of the tokens are to be told: 80 % of those are hidden, 10 % replaced by another
    token, 10 % left as they are (arXiv:1810.04805). Which ones is drawn from the text's content and the epoch; where
    the teacher's outputs are stored, all epochs are like the first.

    Signals and labels are those of the tokens to be told, one row after the other; `hidden_states` of all tokens. A
    batch also has `keys`, a number that a row's content gives.
    """

    name = "fill-mask"
    column = "text"
    target = ""
    primary = {"rows": "masked-perplexity", "texts": "masked-perplexity"}
    pipeline_tag = "fill-mask"

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")

    def _columns(self, data: Data, split: str) -> Any:
        return super()._columns(data, split).select_columns([self.column])

    def labelled(self, table: Any) -> bool:
        return True

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        return {}

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        given = getattr(teacher, "model", None) if thorough else None
        return list(filter(None, [given and shared_tokens(student.tokenizer, given.tokenizer)]))

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens at most, beside the models' own limits; mlm_prob, the share to be told.

        Raises:
            CompatibilityError: student and teacher have other tokens.
        """
        models = [model for model in (student, teacher) if model is not None]
        if len(models) == 2 and student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            raise CompatibilityError(
                "student and teacher have other tokens: what one hides means nothing to the other",
                hint="start the student from this teacher, or give it the teacher's tokenizer",
            )
        limit, share = settings.get("max_length"), settings.get("mlm_prob", SHARE)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            texts, made = [row["text"] for row in rows], []
            ids, cut = models[0].encode(texts, limit)
            for text, tokens, was_cut in zip(texts, ids, cut):
                one = {"text": text, "ids": tokens, "share": share, "key": zlib.crc32(text.encode())}
                _, at, labels = hidden(tokens, models[0].tokens, share, one["key"])
                # Of a text with nothing to tell (no tokens of its own) nothing is left to learn.
                length = len(tokens) if at else 0
                content = f"{share}\x1f{text}".encode()
                made.append({**one, "labels": labels, "content": content, "length": length, "cut": was_cut})
            return made

        return prepare

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """Also `tokens`, all but padding."""
        return {**super().counts(batch), "tokens": int(batch["attention_mask"].sum())}

    def collate(self, examples: Sequence[Example], student: MaskedLm) -> dict[str, torch.Tensor]:
        return student.collate(examples)

    def vary(self, batch: Mapping[str, torch.Tensor], student: Any, epoch: int) -> dict[str, torch.Tensor]:
        """Other tokens to be told in each epoch; the first has those of `collate`."""
        if not epoch:
            return dict(batch)
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [ids[:n] for ids, n in zip(batch["original"].tolist(), lengths)]
        device = batch["input_ids"].device
        fresh = student.hide(rows, batch["keys"].tolist(), batch["share"].tolist(), epoch)
        return {**batch, **{name: value.to(device) for name, value in fresh.items()}}

    def load(self, folder: Path) -> MaskedLm:
        from kdhub_text.masked_lm import MaskedLm

        return MaskedLm.load(folder)

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Told:
        table = self._columns(data, split)
        read, parts = encode.reader(table, "logits"), []
        for start in range(0, len(table), PIECE):
            stop = min(start + PIECE, len(table))
            given = read(start, stop)["logits"]
            examples = encode.prepare([{"text": text} for text in table[start:stop]["text"]])
            for logits, example in zip(given, examples):
                if not example["labels"]:
                    continue
                x, labels = np.asarray(logits, np.float64), np.asarray(example["labels"])
                x = x - x.max(1, keepdims=True)
                log_p = x[np.arange(len(x)), labels] - np.log(np.exp(x).sum(1))
                parts.append((log_p, x.argmax(1), labels))
        return Told(*(np.concatenate(column) for column in zip(*parts)))

    def views(self, outputs: Told, options: Any, subject: str) -> Iterator[View]:
        yield View()

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_logits import tiny

        return tiny.masked_recipe(folder)


@dataclass(frozen=True)
class Tokens:
    """What may stand for a hidden token.

    Attributes:
        mask: the token that hides; special: those that are never hidden; others: those that replace one.
    """

    mask: int
    special: frozenset[int]
    others: np.ndarray


def hidden(
    ids: Sequence[int], tokens: Tokens, share: float, key: int, epoch: int = 0
) -> tuple[list[int], list[int], list[int]]:
    """A text with some tokens hidden, where those are, and what they were; drawn from `key` and `epoch`.

    At least one is, where there is any that is not special.
    """
    own = [i for i, token in enumerate(ids) if token not in tokens.special]
    if not own:
        return list(ids), [], []
    rng = np.random.default_rng([key, epoch])
    many = max(1, round(share * len(own)))
    at = np.sort(rng.choice(own, many, replace=False)).tolist()
    made, labels = list(ids), [ids[i] for i in at]
    for i, draw, other in zip(at, rng.random(many), rng.choice(tokens.others, many)):
        made[i] = tokens.mask if draw < 0.8 else int(other) if draw < 0.9 else made[i]
    return made, at, labels


def perplexity(out: Told) -> float:
    """exp of the mean -log p of hidden tokens."""
    return float(np.exp(-out.log_probability.mean()))


def accuracy(out: Told) -> float:
    """Share of hidden tokens that were told."""
    return float((out.chosen == out.labels).mean())


def agreement(out: Told, teacher: Told) -> float:
    """Share of hidden tokens for which both tell the same."""
    return float((out.chosen == teacher.chosen).mean())
