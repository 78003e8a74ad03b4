"""Masked language modelling, by encoders of the transformers library."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from kdhub.errors import CompatibilityError
from kdhub.fields import Field as StoredField
from kdhub.findings import Finding, shared_tokens
from kdhub.rows import Example, Prepare
from kdhub.task import Encoder, View
from kdhub_tasks.classification.task import Classification
from kdhub_tasks.masked.masking import mask_tokens
from kdhub_tasks.masked.metrics import MaskedPredictions
from kdhub_tasks.teachers import ModelTeacher

if TYPE_CHECKING:
    import torch

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext
    from kdhub_tasks.masked.model import MaskedLm

SHARE = 0.15
"""The share of a text's tokens that is masked (arXiv:1810.04805)."""
PIECE = 64
"""Rows whose logits are held at once during evaluation."""


class MaskedTeacher(ModelTeacher):
    """A saved masked language model. It also gives `spans` of its tokens, (tokens, 4): see `masking.places`."""

    kind = "masked-lm"

    @property
    def vocabulary(self) -> str:
        return self.facts.get("vocabulary") or self.model.vocabulary

    @property
    def max_length(self) -> int:
        return self.facts.get("max_length") or self.model.max_length

    def layout(self, kind: str) -> dict[str, Any]:
        return {kind: StoredField(kind, "int32", (4,), ragged=True)} if kind == "spans" else super().layout(kind)


def _network(folder: Path) -> str | None:
    """The registered network that a folder's configuration names."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("network")
    except (OSError, ValueError, AttributeError):
        return None  # what is wrong with it is said where it is opened


class FillMask(Classification):
    """Rows have `text`, of whose tokens 15 % are to be predicted: 80 % of those are masked, 10 % replaced by another
    token, 10 % left as they are (arXiv:1810.04805). They are drawn from the text's content and the epoch; where the
    teacher's outputs are stored, all epochs are like the first.

    Signals and labels are those of the masked tokens, one row after the other, or of all tokens where a method asks for
    it (`whole`; labels are -1 where nothing is masked); `hidden_states` of all tokens. A batch also has `keys`, numbers
    derived from the rows' content, `counts`, positions of each row, and with `whole` the `spans` of its tokens.

    What is masked is a stretch of the text, by the tokens of one model. A teacher with another vocabulary sees the same
    text with the same characters masked (`bridge`).
    """

    name = "fill-mask"
    column = "text"
    target = ""
    primary = {"rows": "masked-perplexity", "texts": "masked-perplexity"}
    pipeline_tag = "fill-mask"
    Teacher = MaskedTeacher

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
        """Settings: max_length, tokens at most, besides the models' own limits; mlm_prob, the share that is masked;
        whole, whether signals are those of all tokens; bridge, whether the teacher may have another vocabulary.

        Raises:
            CompatibilityError: student and teacher use different vocabularies.
        """
        model = student or teacher.reads
        limit, share = settings.get("max_length"), settings.get("mlm_prob", SHARE)
        whole = bool(settings.get("whole"))
        given = [] if student is None or teacher is None else getattr(teacher, "members", ()) or [teacher]
        for one in given:
            limit = min(filter(None, (limit, one.max_length)), default=None)
            if one.vocabulary != model.vocabulary and not settings.get("bridge"):
                raise CompatibilityError(
                    "student and teacher use different vocabularies, so masked positions do not match",
                    hint="start the student from this teacher, or give it the teacher's tokenizer",
                )

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            made = []
            for row, (one, was_cut) in zip(rows, model.read([row["text"] for row in rows], limit)):
                # From the whole text: clips are found by their captions, however little of one is read.
                one |= {"share": share, "whole": whole, "key": zlib.crc32(row["text"].encode())}
                _, at, labels = mask_tokens(one["ids"], model.tokens, share, one["key"])
                one["masked"] = [one["spans"][i] for i in at]
                what = f"{share}{' whole' * whole} {one['masked']}\x1f{one['text']}"
                if was_cut:  # the rest of the text does not determine the key, which decides how tokens are masked
                    what += f"\x1f{one['key']}"
                # From a text of special tokens alone nothing can be learned.
                length = len(one["ids"]) if at else 0
                made.append({**one, "labels": labels, "content": what.encode(), "length": length, "cut": was_cut})
            return made

        return prepare

    def collate(self, examples: Sequence[Example], student: MaskedLm) -> dict[str, torch.Tensor]:
        return student.collate(examples)

    def vary(self, batch: Mapping[str, torch.Tensor], student: Any, epoch: int) -> dict[str, torch.Tensor]:
        """Other tokens are masked in each epoch; in the first, those of `collate`."""
        if not epoch:
            return dict(batch)
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [ids[:n] for ids, n in zip(batch["original"].tolist(), lengths)]
        drawn = [
            mask_tokens(ids, student.tokens, share, key, epoch)
            for ids, share, key in zip(rows, batch["share"].tolist(), batch["keys"].tolist())
        ]
        device, fresh = batch["input_ids"].device, student.masked(rows, drawn, bool(batch["whole"][0]))
        return {**batch, **{name: value.to(device) for name, value in fresh.items()}}

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> MaskedLm:
        """A masked language model of transformers, or of a registered network that `config.json` names (`network`),
        which opens its own folders by `load(folder, name)`."""
        from kdhub_tasks.masked.model import MaskedLm
        from kdhub_tasks.wrappers import network_class

        if own := _network(Path(folder)):
            return network_class(own).load(Path(folder), name)
        return MaskedLm.load(Path(folder), name=name)

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> MaskedLm:
        """A masked language model, or an encoder with a fresh head."""
        from kdhub.hub.trust import check_model_folder
        from kdhub_tasks.masked.model import MaskedLm

        check_model_folder(folder, name=name)
        if _network(Path(folder)):
            student = self.load(folder, name=name)
            student.start = dict(start)
            return student
        return MaskedLm.with_head(Path(folder), [], context.seed, start)

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> MaskedPredictions:
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
        return MaskedPredictions(*(np.concatenate(column) for column in zip(*parts)))

    def views(self, outputs: MaskedPredictions, options: Any, subject: str) -> Iterator[View]:
        yield View()

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.classification import tiny

        return tiny.masked_recipe(folder)
