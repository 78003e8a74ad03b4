"""Readers: models of the transformers library that find the answer to a question in a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdhub.errors import CompatibilityError
from kdhub.rows import Example
from kdhub_tasks.long import further_inputs, is_efficient, is_ours
from kdhub_tasks.questions.spans import ENDS, answer
from kdhub_tasks.signals import LAYERED
from kdhub_tasks.transformer import TextClassifier, Transformer, padded, segments
from kdhub_tasks.wrappers import LazySignals

NEVER = -1e4
"""The logit of positions that cannot answer: no probability at any temperature, and within the range of float16."""


class Spans(Transformer):
    """A transformers reader with our names: `logits` (2 texts, positions), of first and last token in turn, and on
    request `hidden_states` and `attentions`, as from any `Transformer`."""

    def __init__(self, model: nn.Module, positions: int):
        super().__init__(model)
        self.positions = positions

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = inputs["attention_mask"]
        further = dict(further_inputs(self.model.config, mask))
        if "global_attention_mask" in further:  # Longformer: the question is global, all before the text
            further["global_attention_mask"] = mask * (inputs["of_text"].cumsum(1) == 0)
        given = self.model(
            input_ids=inputs["input_ids"], attention_mask=mask, output_hidden_states=True, **further, **segments(inputs)
        )
        may = inputs["of_text"].bool()
        may = torch.cat([may.new_ones(len(may), 1), may[:, 1:]], 1)[:, None]
        logits = torch.stack([given.start_logits, given.end_logits], 1).float().masked_fill(~may, NEVER)
        room = self.positions - logits.shape[-1]
        real = mask.flatten().bool()
        return LazySignals(
            {"logits": nn.functional.pad(logits, (0, room), value=NEVER).flatten(0, 1)},
            hidden_states=lambda: torch.stack(given.hidden_states[1:], 2).flatten(0, 1)[real],
            attentions=lambda: self._attentions(inputs),
        )


class Reader(TextClassifier):
    """A reader with its tokenizer, in the library's own format. Its classes are the positions of tokens."""

    task_name = "question-answering"
    auto = "AutoModelForQuestionAnswering"
    kinds = ("logits", *LAYERED)
    ragged = True

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        model.config.id2label, model.config.label2id = dict(enumerate(ENDS)), {name: i for i, name in enumerate(ENDS)}
        super().__init__(model, tokenizer, start)
        self.classes = [str(i) for i in range(self.max_length)]
        self.module = Spans(model, self.max_length)

    def encode_questions(self, texts: Sequence[tuple[str, str]], max_length: int | None = None) -> list[dict[str, Any]]:
        """Each question and text as tokens, and the `spans` of these in the text: (0, 0) for those of the question and
        special ones. What does not fit is the end of the text.

        Raises:
            CompatibilityError: a question leaves no room for its text.
        """
        given, cut = self.tokenized(
            *zip(*texts), max_length=max_length, truncation="only_second", return_offsets_mapping=True
        )
        kinds = given.get("token_type_ids")
        made = []
        for n, (ids, offsets) in enumerate(zip(given["input_ids"], given["offset_mapping"])):
            spans = [tuple(s) if of == 1 else (0, 0) for s, of in zip(offsets, given.sequence_ids(n))]
            tokens = ids, kinds[n] if kinds else None, [int(b > a) for a, b in spans]
            made.append({"tokens": tokens, "spans": spans, "by": self.vocabulary, "length": len(ids), "cut": cut[n]})
        return made

    def shortened(self, sides: Sequence[list[str]], limit: int, **how: Any) -> Any:
        """The length of the questions is looked at only here: most texts fit."""
        longest = max(map(len, self.tokenizer(sides[0], add_special_tokens=False, verbose=False)["input_ids"]))
        if longest >= limit - self.tokenizer.num_special_tokens_to_add(pair=True):
            raise CompatibilityError(
                f"max_length must leave room for a text: a question has {longest} tokens (max_length={limit})",
                hint="a larger max_length, or another model",
            )
        return super().shortened(sides, limit, **how)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        if any(e["by"] != self.vocabulary for e in examples):  # prepared for another model
            examples = self.encode_questions([e["texts"] for e in examples])
        ids, kinds, of_text = zip(*(e["tokens"] for e in examples))
        batch = padded(ids, self.pad)
        batch["of_text"] = padded(of_text, 0)["input_ids"]
        if kinds[0] is not None:
            batch["token_type_ids"] = padded(kinds, 0)["input_ids"]
        return batch

    def width(self, kind: str) -> tuple[int, ...]:
        return (self.max_length,) if kind == "logits" else super().width(kind)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "vocabulary": self.vocabulary}

    def wrap(self, name: str, **settings: Any) -> None:
        raise CompatibilityError(f"{name} changes classes, and the outputs of a reader are positions of tokens")

    def usage(self) -> str:
        if is_efficient(self.module.model.config) or is_ours(self.module.model.config):
            return 'import kdhub\nstudent = kdhub.load("{path}")'
        return (
            "import kdhub\n\n"
            'reader = kdhub.load("{path}")\n'
            'print(reader.answer("who was it?", "Nobody knew, but it was Anna."))'
        )

    def answer(self, question: str, context: str) -> str:
        """The part of the text that answers the question, "" for none."""
        (example,) = self.encode_questions([(question, context)])
        (logits,) = self.signals([{**example, "labels": ENDS}], "logits")["logits"]
        return answer(context, logits, example["spans"])

    @classmethod
    def with_head(cls, folder: Path, classes: Sequence[str], seed: int, start: Mapping[str, Any]) -> Reader:
        return super().with_head(folder, ENDS, seed, start)
