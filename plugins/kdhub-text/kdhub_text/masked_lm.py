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
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from kdhub.errors import CompatibilityError, UsageError
from kdhub.recipe import DataRef
from kdhub.signals import Field as StoredField
from kdhub.student import BuildContext, sizes
from kdhub.task import Example
from kdhub_text.fill_mask import Tokens, hidden, how, inked, places
from kdhub_text.fresh import bert


class Network(nn.Module):
    """A masked language model with our names: `logits` and `features`, the last states, of the tokens `at`; asked for,
    `hidden_states` (tokens, layers, width) of all tokens but padding, one row after the other.

    Args:
        classes: columns of the head that are tokens. Others are padding; they are cut, for a logit of theirs would get
            a share of the probability.
    """

    def __init__(self, model: nn.Module, classes: int):
        from kdhub_logits.attention import without_square_mask

        super().__init__()
        self.model, self.classes = without_square_mask(model), classes
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
            raise CompatibilityError("the tokenizer has no token that hides another", hint="its mask_token")
        numbers = tokenizer.get_vocab().values()  # not how many there are: one may be left out
        network = Network(model, min(max(numbers) + 1, model.config.vocab_size))
        Classifier.__init__(self, self.task_name, network, [], start)
        self.tokenizer = tokenizer

    def read(self, texts: Sequence[str], max_length: int | None = None) -> list[tuple[Example, bool]]:
        """Of each text what fits in: `text`, its token `ids` and their `spans` of characters, (0, 0) for special ones,
        without the white space before them; and whether it was cut."""
        given, cuts = self.tokenized(texts, max_length=max_length, return_offsets_mapping=True)
        made = []
        for text, ids, spans, cut in zip(texts, given["input_ids"], given["offset_mapping"], cuts):
            kept = text[: max(end for _, end in spans)] if cut else text
            inner = [inked(text, *span) for span in spans]
            one = {"text": kept, "ids": ids, "spans": inner, "vocabulary": self.vocabulary}
            made.append((one, cut))
        return made

    @cached_property
    def tokens(self) -> Tokens:
        special = frozenset(self.tokenizer.all_special_ids)
        others = np.array([i for i in sorted(self.tokenizer.get_vocab().values()) if i not in special])
        return Tokens(self.tokenizer.mask_token_id, special, others)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """As they were prepared; those prepared by other tokens with the same characters hidden."""
        mine = [e if e["vocabulary"] == self.vocabulary else self._reread(e) for e in examples]
        rows, keys = [e["ids"] for e in mine], [e["key"] for e in mine]
        drawn = [e["drawn"] if "drawn" in e else hidden(e["ids"], self.tokens, e["share"], e["key"]) for e in mine]
        batch = {
            **padded(rows, self.tokenizer.pad_token_id or 0),
            "original": padded(rows, self.tokenizer.pad_token_id or 0)["input_ids"],
            "keys": torch.tensor(keys),
            "share": torch.tensor([e["share"] for e in mine], dtype=torch.float64),
            "whole": torch.tensor([e["whole"] for e in mine]),
            **self.asked(rows, drawn, examples[0]["whole"]),
        }
        if examples[0]["whole"]:
            batch["spans"] = torch.tensor([place for e in mine for place in places(e["text"], e["spans"])])
        return batch

    def asked(
        self, rows: Sequence[Sequence[int]], drawn: Sequence[tuple[list[int], list[int], list[int]]], whole: bool
    ) -> dict[str, torch.Tensor]:
        """`input_ids` with tokens hidden; `at`, where in the flat batch the positions are, `labels`, what stood there,
        and `counts`, how many each row has.

        Args:
            drawn: of each row what `hidden` gave.
            whole: whether all tokens are positions, or the hidden ones alone.
        """
        batch = padded([ids for ids, _, _ in drawn], self.tokenizer.pad_token_id or 0)
        width, at, labels, counts = batch["input_ids"].shape[1], [], [], []
        for n, (ids, (_, hides, truth)) in enumerate(zip(rows, drawn)):
            told = dict(zip(hides, truth))
            mine = range(len(ids)) if whole else hides
            at += [n * width + i for i in mine]
            labels += [told.get(i, -1) for i in mine]
            counts.append(len(mine))
        as_numbers = {"at": at, "labels": labels, "counts": counts}
        numbers = {name: torch.tensor(values, dtype=torch.long) for name, values in as_numbers.items()}
        return {"input_ids": batch["input_ids"], **numbers}

    def _reread(self, example: Example) -> Example:
        """A text that was prepared by other tokens, by its own: a token is hidden where it shares characters with one
        that was, and in the same way (by the mask, by another, or seen)."""
        one, _ = self.read([example["text"]])[0]
        ways = dict(zip(example["hidden"], how(example["key"], len(example["hidden"]))))
        rng = np.random.default_rng([example["key"], 1])
        made, at, labels = list(one["ids"]), [], []
        for i, (start, end) in enumerate(one["spans"]):
            way = next((w for (first, last), w in ways.items() if start < last and first < end), None)
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

    def probe(self) -> Mapping[str, Any]:
        return {**super().probe(), "vocabulary": self.model.vocabulary, "max_length": self.model.max_length}

    @property
    def vocabulary(self) -> str:
        return self.facts.get("vocabulary") or self.model.vocabulary

    @property
    def max_length(self) -> int:
        return self.facts.get("max_length") or self.model.max_length

    def layout(self, kind: str) -> dict[str, Any]:
        """Also `spans` of its tokens, (tokens, 4): see `fill_mask.places`."""
        return {"spans": StoredField("spans", "int32", (4,), ragged=True)} if kind == "spans" else super().layout(kind)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        return self.model.signals(examples, kind) if kind == "spans" else super().signals(examples, kind)


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


class ConfigOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: DataRef | None = Field(None, description="texts that a tokenizer is made from; the teacher's own if unset")
    vocabulary: int = Field(5000, ge=16, description="tokens of it, at most")
    lowercase: bool = Field(True, description="it lowers the case, and takes accents away")
    max_length: int = Field(128, ge=4, description="tokens of a text, special ones included")


def config(argument: str, context: BuildContext) -> MaskedLm:
    """`config:layers=2,width=64,heads=2`: a fresh BERT with the teacher's tokenizer, or with one made from texts.

    Raises:
        UsageError: an unknown setting, heads that do not divide the width, or nothing that gives a tokenizer.
    """
    import transformers

    from kdhub.resolve import Resolver

    settings = sizes("config", argument, layers=2, width=64, heads=2)
    if settings["width"] % settings["heads"]:
        raise UsageError(f"student config:{argument}: {settings['heads']} heads do not divide {settings['width']}")
    options = ConfigOptions.model_validate(context.options)
    if options.data is not None:
        data = Resolver().data(options.data)
        rows = data.split(data.pick("train"))
        tokenizer = wordpiece(rows["text"], options.vocabulary, options.lowercase, options.max_length)
    elif context.teacher is not None:
        tokenizer = copy.deepcopy(context.teacher.tokenizer)
    else:
        raise UsageError(
            f"student config:{argument} needs a tokenizer", hint="a teacher's, or one from its option `data`"
        )
    transformers.set_seed(context.seed)
    made = bert(tokenizer, **settings, length=options.max_length)
    return MaskedLm(transformers.BertForMaskedLM(made), tokenizer, {"how": f"fresh config:{argument}"})


config.Options = ConfigOptions


def wordpiece(texts: Sequence[str], vocabulary: int, lowercase: bool, max_length: int) -> Any:
    """A WordPiece tokenizer made from texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **names)
