"""Masked language models of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdhub.errors import CompatibilityError
from kdhub.rows import Example
from kdhub_tasks.attention import without_square_mask
from kdhub_tasks.long import further_inputs, is_efficient, is_ours
from kdhub_tasks.masked.masking import Tokens, mask_tokens, places, trim_space, ways
from kdhub_tasks.models import Classifier
from kdhub_tasks.reading import settle_pad
from kdhub_tasks.transformer import TextClassifier, padded, segments, with_fresh_head
from kdhub_tasks.wrappers import LazySignals


class Network(nn.Module):
    """A masked language model with our names: `logits` and `features`, the last states, at the positions `at`; on
    request `hidden_states` (tokens, layers, width) of all tokens but padding, one row after the other.

    Args:
        classes: columns of the head that are tokens. The others are padding, and are cut off: their logits would take
            a share of the probability.
    """

    def __init__(self, model: nn.Module, classes: int):
        super().__init__()
        self.model, self.classes = without_square_mask(model), classes
        self.train(model.training)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask, at = inputs["attention_mask"], inputs["at"]
        further = {**further_inputs(self.model.config, mask), **segments(inputs)}
        head = getattr(self.model, "cls", None) or getattr(self.model, "lm_head", None)
        whole = self.model if head is None else self.model.base_model
        given = whole(input_ids=inputs["input_ids"], attention_mask=mask, output_hidden_states=True, **further)
        states = given.hidden_states[-1].flatten(0, 1)[at]
        # Only where they are used: the logits of all other tokens would be most of the work.
        logits = given.logits.flatten(0, 1)[at] if head is None else head(states)
        real = mask.flatten().bool()
        return LazySignals(
            {"logits": logits[:, : self.classes], "features": states},
            hidden_states=lambda: torch.stack(given.hidden_states[1:], 2).flatten(0, 1)[real],
        )


class MaskedLm(TextClassifier):
    """A masked language model with its tokenizer, in the library's own format."""

    task_name = "fill-mask"
    auto = "AutoModelForMaskedLM"
    kinds = ("logits", "features", "hidden_states")
    ragged = True

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        if tokenizer.mask_token_id is None:
            raise CompatibilityError("masked language modelling needs a tokenizer with a mask_token, and it has none")
        numbers = tokenizer.get_vocab().values()  # not how many there are: one may be left out
        network = Network(model, min(max(numbers) + 1, model.config.vocab_size))
        Classifier.__init__(self, self.task_name, network, [], start)
        self.tokenizer, self.pad = tokenizer, settle_pad(model, tokenizer)

    def read(self, texts: Sequence[str], max_length: int | None = None) -> list[tuple[Example, bool]]:
        """What fits of each text: `text`, its token `ids` and their `spans` of characters, without leading white space,
        (0, 0) for special ones; and whether it was cut."""
        given, cuts = self.tokenized(texts, max_length=max_length, return_offsets_mapping=True)
        made = []
        for text, ids, spans, cut in zip(texts, given["input_ids"], given["offset_mapping"], cuts):
            kept = text[: max(end for _, end in spans)] if cut else text
            inner = [trim_space(text, *span) for span in spans]
            one = {"text": kept, "ids": ids, "spans": inner, "vocabulary": self.vocabulary}
            made.append((one, cut))
        return made

    @cached_property
    def tokens(self) -> Tokens:
        special = frozenset(self.tokenizer.all_special_ids)
        others = np.array([i for i in sorted(self.tokenizer.get_vocab().values()) if i not in special])
        return Tokens(self.tokenizer.mask_token_id, special, others)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """As they were prepared; those prepared for another vocabulary have the same characters masked."""
        mine = [e if e["vocabulary"] == self.vocabulary else self._reread(e) for e in examples]
        rows, keys = [e["ids"] for e in mine], [e["key"] for e in mine]
        drawn = [e["drawn"] if "drawn" in e else mask_tokens(e["ids"], self.tokens, e["share"], e["key"]) for e in mine]
        batch = {
            **self.batch_of(rows),
            "original": padded(rows, self.pad)["input_ids"],
            "keys": torch.tensor(keys),
            "share": torch.tensor([e["share"] for e in mine], dtype=torch.float64),
            "whole": torch.tensor([e["whole"] for e in mine]),
            **self.masked(rows, drawn, examples[0]["whole"]),
        }
        if examples[0]["whole"]:
            batch["spans"] = torch.tensor([place for e in mine for place in places(e["text"], e["spans"])])
        return batch

    def masked(
        self, rows: Sequence[Sequence[int]], drawn: Sequence[tuple[list[int], list[int], list[int]]], whole: bool
    ) -> dict[str, torch.Tensor]:
        """`input_ids` with some tokens masked; `at`, the positions in the flat batch, `labels`, the true tokens there,
        and `counts`, how many positions each row has.

        Args:
            drawn: what `mask_tokens` gave for each row.
            whole: whether all tokens are positions, or the masked ones alone.
        """
        batch = padded([ids for ids, _, _ in drawn], self.pad)
        width, at, labels, counts = batch["input_ids"].shape[1], [], [], []
        for n, (ids, (_, where, truth)) in enumerate(zip(rows, drawn)):
            true = dict(zip(where, truth))
            mine = range(len(ids)) if whole else where
            at += [n * width + i for i in mine]
            labels += [true.get(i, -1) for i in mine]
            counts.append(len(mine))
        as_numbers = {"at": at, "labels": labels, "counts": counts}
        numbers = {name: torch.tensor(values, dtype=torch.long) for name, values in as_numbers.items()}
        return {"input_ids": batch["input_ids"], **numbers}

    def _reread(self, example: Example) -> Example:
        """A text that was prepared for another vocabulary: a token is masked where it shares characters with one that
        was, and in the same way."""
        one, _ = self.read([example["text"]])[0]
        chosen = dict(zip(example["masked"], ways(example["key"], len(example["masked"]))))
        rng = np.random.default_rng([example["key"], 1])
        made, at, labels = list(one["ids"]), [], []
        for i, (start, end) in enumerate(one["spans"]):
            way = next((w for (first, last), w in chosen.items() if start < last and first < end), None)
            if way is None:
                continue
            at.append(i)
            labels.append(made[i])
            other = int(rng.choice(self.tokens.others))
            made[i] = self.tokens.mask if way < 0.8 else other if way < 0.9 else made[i]
        return {**example, **one, "drawn": (made, at, labels)}

    def width(self, kind: str) -> tuple[int, ...]:
        config = self.module.model.config
        return {
            "logits": (self.module.classes,),
            "features": (config.hidden_size,),
            "hidden_states": (config.num_hidden_layers, config.hidden_size),
        }[kind]

    def counts(self, examples: Sequence[Example], batch: Mapping[str, torch.Tensor], kind: str) -> list[int]:
        if kind == "hidden_states":
            return batch["attention_mask"].sum(1).tolist()
        return batch["counts"].tolist()

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if kind != "spans":
            return super().signals(examples, kind)
        read = [e if e["vocabulary"] == self.vocabulary else self._reread(e) for e in examples]
        return {"spans": [np.array(places(e["text"], e["spans"]), np.int32).reshape(-1, 4) for e in read]}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "vocabulary": self.vocabulary, "max_length": self.max_length}

    def wrap(self, name: str, **settings: Any) -> None:
        raise CompatibilityError(f"{name} changes classes, and the outputs of a masked language model are tokens")

    def usage(self) -> str:
        if is_efficient(self.module.model.config) or is_ours(self.module.model.config):
            return 'import kdhub\nstudent = kdhub.load("{path}")'
        return (
            "from transformers import pipeline\n\n"
            'fill = pipeline("fill-mask", model="{path}")\n'
            f'print(fill("a text with {self.tokenizer.mask_token}"))'
        )

    @classmethod
    def with_head(cls, folder: Path, classes: Sequence[str], seed: int, start: Mapping[str, Any]) -> MaskedLm:
        """A checked folder's network, with a fresh head where it has none."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        model = with_fresh_head(transformers.AutoModelForMaskedLM, folder, config, seed)
        return cls(model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), start)
