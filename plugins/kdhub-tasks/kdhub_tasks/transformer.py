"""Text models of the transformers library with their tokenizers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdhub.errors import UntrustedError
from kdhub.files import canonical_json, once
from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example
from kdhub_tasks import wrappers
from kdhub_tasks.classes import MULTI_LABEL, problem_of
from kdhub_tasks.long import further_inputs, is_efficient, is_ours
from kdhub_tasks.models import TOKENS, Classifier
from kdhub_tasks.reading import longest, marked, settle_pad
from kdhub_tasks.signals import LAYERED

logger = logging.getLogger("kdhub")


class Transformer(nn.Module):
    """A transformers classifier with our names: `logits`, and `features` as the mean of its last states.

    Asked for, also `hidden_states` (positions, layers, width) of all tokens but padding, one row after the other, and
    `attentions` (pairs of positions, layers), mean over heads, query after query; these take a second pass, in which
    attention is computed openly. Of a classifier of tokens all but attentions are those of the positions `at`.
    """

    def __init__(self, model: nn.Module):
        from kdhub_tasks.attention import without_square_mask

        super().__init__()
        self.model = without_square_mask(model)
        self.train(model.training)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask, at = inputs["attention_mask"], inputs.get("at")
        further = {**further_inputs(self.model.config, mask), **segments(inputs)}
        given = self.model(input_ids=inputs["input_ids"], attention_mask=mask, output_hidden_states=True, **further)
        chosen = mask.flatten().bool() if at is None else at
        logits, states = given.logits, given.hidden_states[-1]
        if at is None:
            real = mask.unsqueeze(-1).to(logits.dtype)
            now = {"logits": logits, "features": (states * real).sum(1) / real.sum(1)}
        else:
            now = {"logits": logits.flatten(0, 1)[at], "features": states.flatten(0, 1)[at]}
        return wrappers.LazySignals(
            now,
            hidden_states=lambda: torch.stack(given.hidden_states[1:], 2).flatten(0, 1)[chosen],
            attentions=lambda: self._attentions(inputs),
        )

    def _attentions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mask = inputs["attention_mask"]
        given = openly(self.model, input_ids=inputs["input_ids"], attention_mask=mask, **segments(inputs))
        real = mask.bool()
        return torch.stack([a.mean(1) for a in given.attentions], -1)[real[:, :, None] & real[:, None, :]]


def openly(model: nn.Module, **inputs: torch.Tensor) -> Any:
    """What a transformers model gives with its attention maps, which its usual kernels do not make."""
    was = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model(output_attentions=True, **inputs)
    finally:
        model.set_attn_implementation(was)


class TextClassifier(Classifier):
    """A transformers sequence classifier with its tokenizer, in the library's own format."""

    task_name = "text-classification"
    auto = "AutoModelForSequenceClassification"
    kinds = ("logits", "features", *LAYERED)

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        classes = class_names(model.config)
        network = with_wrappers(Transformer(model), model.config, classes, model.config.hidden_size)
        super().__init__(self.task_name, network, classes, start)
        if not self.ragged:
            self.problem = problem_of(model.config.to_dict())
        self.tokenizer, self.pad = tokenizer, settle_pad(model, tokenizer)
        if is_efficient(model.config):
            self.kinds = tuple(kind for kind in self.kinds if kind != "attentions")

    @cached_property
    def max_length(self) -> int:
        """Tokens of a text that it takes, special ones included."""
        return longest(self.module.model, self.tokenizer, default=512)

    @cached_property
    def marked(self) -> dict[int, int]:
        return marked(self.tokenizer)

    @cached_property
    def vocabulary(self) -> str:
        """Digest of the tokens and their numbers."""
        return hashlib.sha256(canonical_json(self.tokenizer.get_vocab())).hexdigest()

    def like(self, model: nn.Module, start: Mapping[str, Any]) -> TextClassifier:
        """Another network that reads texts as this one."""
        return type(self)(model, self.tokenizer, start)

    def note_wrapper(self, wrapper: Mapping[str, Any]) -> None:
        note_wrapper(self.module.model, self.classes, wrapper)

    def tokenized(
        self, *sides: Sequence[str], max_length: int | None = None, truncation: bool | str = True, **how: Any
    ) -> tuple[Any, list[bool]]:
        """What the tokenizer gives for texts, or for both sides of pairs, cut to what the model takes and at most
        `max_length`; and which were cut."""
        limit, sides = min(max_length or self.max_length, self.max_length), [list(side) for side in sides]
        given = self.tokenizer(*sides, verbose=False, **how)
        cut = [len(ids) > limit for ids in given["input_ids"]]
        if any(cut):
            given = self.shortened(sides, limit, truncation=truncation, **how)
        return given, cut

    def shortened(self, sides: Sequence[list[str]], limit: int, **how: Any) -> Any:
        """What the tokenizer gives for texts of which some are longer than the limit."""
        return self.tokenizer(*sides, max_length=limit, **how)

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> tuple[list[list[int]], list[bool]]:
        """Token ids, cut to what the model takes, and which texts were cut; of a text without tokens one of padding."""
        given, cut = self.tokenized(texts, max_length=max_length)
        return [ids or [self.pad] for ids in given["input_ids"]], cut

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        ids = [e["ids"] if e.get("by") is self.tokenizer else None for e in examples]
        if None in ids:  # prepared for another model
            ids = self.encode([e["text"] for e in examples])[0]
        return self.batch_of(ids)

    def batch_of(self, ids: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Token ids of texts as one batch, with the segments that the tokenizer gives their special tokens."""
        batch = padded(ids, self.pad)
        if self.marked:
            kinds = [[self.marked.get(token, 0) for token in row] for row in ids]
            batch["token_type_ids"] = padded(kinds, 0)["input_ids"]
        return batch

    def save(self, folder: Path) -> None:
        self.module.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        wrappers.save_weights(self.module, folder)

    @classmethod
    def load(cls, folder: Path, *, name: str | None = None, start: Mapping[str, Any] | None = None) -> TextClassifier:
        import transformers

        import kdhub_tasks.narrow  # noqa: F401  families of models of ours, with those of `attention`

        check_model_folder(folder, name=name)
        model = pretrained(getattr(transformers, cls.auto), folder, name=name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        student = cls(model.eval(), tokenizer, start)
        wrappers.load_weights(student.module, folder, name)
        return student

    @classmethod
    def with_head(
        cls, folder: Path, classes: Sequence[str], seed: int, start: Mapping[str, Any], problem: str = ""
    ) -> TextClassifier:
        """A checked folder's network; its classifier is made again unless it is one for just these classes."""
        import transformers

        import kdhub_tasks.narrow  # noqa: F401  families of models of ours, with those of `attention`

        config = transformers.AutoConfig.from_pretrained(folder, **without_wrappers(classes, problem))
        model = with_fresh_head(getattr(transformers, cls.auto), folder, config, seed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer, start)

    def begin_at(self, value: float) -> None:
        """Have a fresh head of values give this for all rows."""
        last = [m for m in self.module.model.modules() if isinstance(m, nn.Linear)][-1]
        if len(self.classes) == 1 and last.out_features == 1 and last.bias is not None and not last.bias.any():
            nn.init.constant_(last.bias, value)

    def at_once(self, examples: Sequence[Example]) -> int:
        return max(1, min(self.batch, TOKENS // max(1, *(e.get("length", 1) for e in examples))))

    def width(self, kind: str) -> tuple[int, ...]:
        config = self.module.model.config
        wide = {"logits": (len(self.classes),), "features": (config.hidden_size,)}
        wide |= {
            "hidden_states": (config.num_hidden_layers, config.hidden_size),
            "attentions": (config.num_hidden_layers,),
        }
        return wide[kind]

    def shape(self, kind: str) -> tuple[int | None, ...]:
        return (*((None,) if self.ragged or kind in LAYERED else ()), *self.width(kind))

    def counts(self, examples: Sequence[Example], batch: Mapping[str, torch.Tensor], kind: str) -> list[int] | None:
        tokens = batch["attention_mask"].sum(1)
        if kind == "attentions":
            return tokens.square().tolist()
        return (
            tokens.tolist() if kind == "hidden_states" and "at" not in batch else super().counts(examples, batch, kind)
        )

    def usage(self) -> str:
        config = self.module.model.config
        if is_efficient(config) or is_ours(config):  # the library has no such model, or gives it no global tokens
            return super().usage()
        if isinstance(self.module, wrappers.Wrapper) and (lines := self.module.usage()):
            return lines
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("{self.task_name}", model="{{path}}")\n'
            f'print(classify("a text to classify"{", top_k=None" if self.problem == MULTI_LABEL else ""}))'
        )

    @property
    def library(self) -> str:
        return "kdhub" if is_ours(self.module.model.config) else "transformers"


def class_names(config: Any) -> list[str]:
    """The classes of a transformers configuration, which may have other outputs inside its wrappers."""
    labels = [str(config.id2label[i]) for i in range(len(config.id2label))]
    return wrappers.classes_of(labels, wrappers.wrappers_in(vars(config)))


def with_wrappers(network: nn.Module, config: Any, classes: Sequence[str], features: int | None) -> nn.Module:
    """The network of a model with the wrappers that its configuration lists."""
    return wrappers.wrapped(network, len(classes), wrappers.wrappers_in(vars(config)), features)


def note_wrapper(model: nn.Module, classes: Sequence[str], wrapper: Mapping[str, Any]) -> None:
    """Keep a wrapper in a transformers configuration, whose labels name the outputs inside."""
    config = model.config
    setattr(config, wrappers.KEY, [*wrappers.wrappers_in(vars(config)), dict(wrapper)])
    names = dict(enumerate(wrappers.outputs_of(classes, getattr(config, wrappers.KEY))))
    config.id2label, config.label2id = names, {name: i for i, name in names.items()}
    model.num_labels = len(names)


def without_wrappers(classes: Sequence[str], problem: str = "") -> dict[str, Any]:
    """Entries of a transformers configuration for a plain classifier of these classes (`problem`: see `classes`)."""
    names = dict(enumerate(classes))
    known = {
        "problem_type": problem or None,
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
        wrappers.KEY: None,
    }
    return known | dict.fromkeys(wrappers.FORMERLY)


def pretrained(auto: Any, folder: Path, name: str | None = None, **how: Any) -> nn.Module:
    """A checked folder's model as `auto` makes it, with all of its weights.

    Raises:
        UntrustedError: the folder lacks some: they would be random, and others each time.
    """
    model, found = auto.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **how
    )
    _refuse_lost((*found["missing_keys"], *found["mismatched_keys"]), model, name or folder)
    return model


def check_weights(network: Any, folder: Path, name: str | None = None) -> None:
    """Whether a network that another library loaded from a folder has its weights from there, all but a pooler's, which
    many save without. Only names and shapes are read.

    Raises:
        UntrustedError: the folder lacks some.
    """
    _check_weights(Path(folder), name or str(folder), type(network))


@once
def _check_weights(folder: Path, name: str, kind: Any) -> None:
    network, found = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, device_map="meta"
    )
    lost = (*found["missing_keys"], *found["mismatched_keys"])
    _refuse_lost([n for n in map(str, lost) if not n.startswith("pooler.")], network, name)


def _refuse_lost(lost: Iterable[Any], model: Any, name: Any) -> None:
    if lost := sorted(map(str, lost)):
        raise UntrustedError(
            f"{name} has no weights for {len(lost)} parts of a {type(model).__name__} ({', '.join(lost[:3])})"
            ": they would be random",
            hint="a model that was saved whole; a student may start from it with a fresh head",
        )


def with_fresh_head(auto: Any, folder: Path, config: Any, seed: int) -> nn.Module:
    """A folder's model as `auto` makes it, with a head drawn from the seed where it has none or another.

    The library reports that at length, as damage. What is missing of the body, a pooler apart, is told.
    """
    import transformers
    from transformers.utils import logging as library

    transformers.set_seed(seed)
    was = library.get_verbosity()
    library.set_verbosity_error()
    try:
        model, found = auto.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, ignore_mismatched_sizes=True,
            output_loading_info=True,
        )  # fmt: skip
    finally:
        library.set_verbosity(was)
    body = f"{model.base_model_prefix}."
    lost = sorted(n for n in found["missing_keys"] if n.startswith(body) and not n.startswith(f"{body}pooler."))
    if lost:
        logger.warning("%s has no %s and %d more weights: they begin at random", folder.name, lost[0], len(lost) - 1)
    return model


def segments(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Which of two texts each token is of, as the tokenizer says, where a model was told."""
    return {name: inputs[name] for name in ("token_type_ids",) if name in inputs}


def padded(ids: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Token ids of some rows as one batch with its mask; of a row without tokens one of padding is read."""
    ids = [row or [pad] for row in ids]
    longest = max(map(len, ids))
    rows = [list(i) + [pad] * (longest - len(i)) for i in ids]
    mask = [[1] * len(i) + [0] * (longest - len(i)) for i in ids]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
