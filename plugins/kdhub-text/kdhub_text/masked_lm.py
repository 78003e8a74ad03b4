"""Masked language models of the transformers library, as students and as teachers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdhub_logits.classifiers import Classifier, TextClassifier, padded
from kdhub_logits.long import further_inputs, is_efficient
from kdhub_logits.networks import Given
from kdhub_logits.students import keep_layers
from kdhub_logits.teachers import LocalClassifier, local
from torch import nn

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext
from kdhub.task import Example
from kdhub_text.fill_mask import Tokens, hidden


class Network(nn.Module):
    """A masked language model with our names: `logits` and `features`, the last states, of the tokens `at`; asked for,
    `hidden_states` (tokens, layers, width) of all tokens but padding, one row after the other."""

    def __init__(self, model: nn.Module):
        from kdhub_logits.attention import without_square_mask

        super().__init__()
        self.model = without_square_mask(model)
        self.train(model.training)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask, at = inputs["attention_mask"], inputs["at"]
        further = further_inputs(self.model.config, mask)
        head = getattr(self.model, "cls", None) or getattr(self.model, "lm_head", None)
        whole = self.model if head is None else self.model.base_model
        given = whole(input_ids=inputs["input_ids"], attention_mask=mask, output_hidden_states=True, **further)
        states = given.hidden_states[-1].flatten(0, 1)[at]
        # Of the tokens to be told alone: logits of all others are most of the work.
        logits = given.logits.flatten(0, 1)[at] if head is None else head(states)
        real = mask.flatten().bool()
        return Given(
            {"logits": logits, "features": states},
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
            raise CompatibilityError("the tokenizer has no token that hides another", hint="its mask_token")
        Classifier.__init__(self, self.task_name, Network(model), [], start)
        self.tokenizer = tokenizer
        limits = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
        self.max_length = min((n for n in limits if n and n < 1_000_000), default=512)

    @cached_property
    def tokens(self) -> Tokens:
        special = frozenset(self.tokenizer.all_special_ids)
        others = np.array([i for i in sorted(self.tokenizer.get_vocab().values()) if i not in special])
        return Tokens(self.tokenizer.mask_token_id, special, others)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        rows, keys = [e["ids"] for e in examples], [e["key"] for e in examples]
        shares = [e["share"] for e in examples]
        pad = self.tokenizer.pad_token_id or 0
        return {
            **padded(rows, pad),
            "original": padded(rows, pad)["input_ids"],
            "keys": torch.tensor(keys),
            "share": torch.tensor(shares, dtype=torch.float64),
            **self.hide(rows, keys, shares),
        }

    def hide(
        self, rows: Sequence[Sequence[int]], keys: Sequence[int], shares: Sequence[float], epoch: int = 0
    ) -> dict[str, torch.Tensor]:
        """`input_ids` with tokens hidden; `at`, where in the flat batch those are, and `labels`, what they were."""
        made = [hidden(ids, self.tokens, share, key, epoch) for ids, share, key in zip(rows, shares, keys)]
        batch = padded([ids for ids, _, _ in made], self.tokenizer.pad_token_id or 0)
        width = batch["input_ids"].shape[1]
        at = [n * width + i for n, (_, places, _) in enumerate(made) for i in places]
        labels = [label for _, _, of in made for label in of]
        as_numbers = {"at": at, "labels": labels}
        numbers = {name: torch.tensor(values, dtype=torch.long) for name, values in as_numbers.items()}
        return {"input_ids": batch["input_ids"], **numbers}

    def width(self, kind: str) -> tuple[int, ...]:
        config = self.module.model.config
        return {
            "logits": (config.vocab_size,),
            "features": (config.hidden_size,),
            "hidden_states": (config.num_hidden_layers, config.hidden_size),
        }[kind]

    def counts(self, examples: Sequence[Example], batch: Mapping[str, torch.Tensor], kind: str) -> list[int]:
        if kind == "hidden_states":
            return batch["attention_mask"].sum(1).tolist()
        return [len(e["labels"]) for e in examples]

    def split_classes(self, *given: Any) -> None:
        raise CompatibilityError("tokens are no classes that could be split")

    def usage(self) -> str:
        if is_efficient(self.module.model.config):
            return 'import kdhub\nstudent = kdhub.load("{path}")'
        hides = self.tokenizer.mask_token
        return (
            "from transformers import pipeline\n\n"
            'tell = pipeline("fill-mask", model="{path}")\n'
            f'print(tell("a text with {hides}"))'
        )

    @classmethod
    def with_head(cls, folder: Path, classes: Sequence[str], seed: int, start: Mapping[str, Any]) -> MaskedLm:
        """A checked folder's network; a fresh head where it has none."""
        import transformers

        transformers.set_seed(seed)
        return cls.load(folder, start=start)


class LocalMaskedLm(LocalClassifier):
    """A folder of a masked language model."""

    kind = "masked-lm"

    @staticmethod
    def read(folder: Path, name: str | None) -> MaskedLm:
        return MaskedLm.load(folder, name=name)

    @property
    def tokens(self) -> Tokens:
        return self.model.tokens


teacher_path, teacher_hub = local(LocalMaskedLm)


def path(argument: str, context: BuildContext) -> MaskedLm:
    """A folder with a masked language model, or an encoder, which gets a fresh head."""
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise UsageError(f"student folder {folder} does not exist")
    return MaskedLm.with_head(folder, [], context.seed, {"how": "a model in a local folder"})


def hub(argument: str, context: BuildContext) -> MaskedLm:
    """A masked language model, or an encoder, on the Hub."""
    from kdhub.hub.fetch import fetch_model

    folder, repo, commit = fetch_model(argument)
    start = {"base_model": repo, "revision": commit, "how": "as it is"}
    return MaskedLm.with_head(folder, [], context.seed, start)


def layers(argument: str, context: BuildContext) -> MaskedLm:
    """N evenly spaced layers of the teacher, first and last among them, with its embeddings and head."""
    model, start = keep_layers(argument, context, MaskedLm)
    return MaskedLm(model, copy.deepcopy(context.teacher.model.tokenizer), start)
