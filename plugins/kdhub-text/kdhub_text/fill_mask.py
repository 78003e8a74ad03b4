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

    Signals and labels are those of the tokens to be told, one row after the other, or of all tokens where a method asks
    for it (`whole`; labels are -1 where nothing is to be told); `hidden_states` of all tokens. A batch also has `keys`,
    a number that a row's content gives, `counts`, positions of each row, and with `whole` the `spans` of its tokens.

    What is hidden is a stretch of the text, by the tokens of one model, so a teacher with other tokens sees the same
    text with the same characters hidden (`bridge`).
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
        """Settings: max_length, tokens at most, beside the models' own limits; mlm_prob, the share to be told; whole,
        whether signals are those of all tokens; bridge, whether the teacher may have other tokens.

        Raises:
            CompatibilityError: student and teacher have other tokens.
        """
        model = student if student is not None else teacher.model
        limit, share = settings.get("max_length"), settings.get("mlm_prob", SHARE)
        whole = bool(settings.get("whole"))
        given = [] if student is None or teacher is None else getattr(teacher, "members", ()) or [teacher]
        for one in given:
            limit = min(filter(None, (limit, one.max_length)), default=None)
            if one.vocabulary != model.vocabulary and not settings.get("bridge"):
                raise CompatibilityError(
                    "student and teacher have other tokens: what one hides means nothing to the other",
                    hint="start the student from this teacher, or give it the teacher's tokenizer",
                )

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            made = []
            for row, (one, was_cut) in zip(rows, model.read([row["text"] for row in rows], limit)):
                # Of the text as given: clips are found by their captions, however little of one is read.
                one |= {"share": share, "whole": whole, "key": zlib.crc32(row["text"].encode())}
                _, at, labels = hidden(one["ids"], model.tokens, share, one["key"])
                one["hidden"] = [one["spans"][i] for i in at]
                what = f"{share}{' whole' * whole} {one['hidden']}\x1f{one['text']}"
                if was_cut:  # what is left does not say the key, and so in which way a token is hidden
                    what += f"\x1f{one['key']}"
                # Of a text with nothing to tell (no tokens of its own) nothing is left to learn.
                length = len(one["ids"]) if at else 0
                made.append({**one, "labels": labels, "content": what.encode(), "length": length, "cut": was_cut})
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
        drawn = [
            hidden(ids, student.tokens, share, key, epoch)
            for ids, share, key in zip(rows, batch["share"].tolist(), batch["keys"].tolist())
        ]
        device, fresh = batch["input_ids"].device, student.asked(rows, drawn, bool(batch["whole"][0]))
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
    for i, way, other in zip(at, how(key, many, epoch), rng.choice(tokens.others, many)):
        made[i] = tokens.mask if way < 0.8 else int(other) if way < 0.9 else made[i]
    return made, at, labels


def how(key: int, many: int, epoch: int = 0) -> list[float]:
    """In which way each of the tokens to be told is hidden, from the first on, 0 to 1: by the mask below .8, by another
    token below .9, else not at all."""
    return np.random.default_rng([key, epoch, 1]).random(many).tolist()


def places(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Of each token its number in the text, where it starts and ends in characters, and the number of its word, which
    white space parts from others; -1 for special tokens and for white space."""
    words, inside = [], False
    number = -1
    for letter in text:
        number += not letter.isspace() and not inside
        inside = not letter.isspace()
        words.append(number)
    return [(n, start, end, words[start] if text[start:end].strip() else -1) for n, (start, end) in enumerate(spans)]


def inked(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters without the white space before them, which some tokenizers count to it; of white space alone
    all of it."""
    return end - len(text[start:end].lstrip() or text[start:end]), end


def perplexity(out: Told) -> float:
    """exp of the mean -log p of hidden tokens."""
    return float(np.exp(-out.log_probability.mean()))


def accuracy(out: Told) -> float:
    """Share of hidden tokens that were told."""
    return float((out.chosen == out.labels).mean())


def agreement(out: Told, teacher: Told) -> float:
    """Share of hidden tokens for which both tell the same.

    Raises:
        CompatibilityError: they have other tokens, so other ones were hidden.
    """
    if out.labels.shape != teacher.labels.shape or (out.labels != teacher.labels).any():
        raise CompatibilityError("student and teacher have other tokens: what they tell cannot be compared")
    return float((out.chosen == teacher.chosen).mean())
