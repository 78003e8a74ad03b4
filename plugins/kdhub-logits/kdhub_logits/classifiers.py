"""Students that give logits over named classes: our small networks, and the transformers library's classifiers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdhub._files import canonical_json
from kdhub._ranks import device
from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.student import Student
from kdhub.task import Example
from kdhub_logits import networks
from kdhub_logits.long import further_inputs, is_efficient
from kdhub_logits.plugin import LAYERED

logger = logging.getLogger("kdhub")

BATCH = 256
TOKENS = 2**16
"""Of the texts that are run together, at most."""


class Classifier(Student):
    """A network that gives `logits`, one a class.

    Attributes:
        classes: their names, in the order of the logits.
        kinds: the signals it gives.
        ragged: whether an example has several of each (words): as many as it has `labels`.
        batch: examples that are run at once.
    """

    classes: list[str]
    kinds: tuple[str, ...] = ("logits", "features")
    ragged = False
    batch = BATCH
    max_length: int | None = None

    def __init__(self, task: str, module: nn.Module, classes: Sequence[str], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.task, self.module, self.classes = task, module, list(classes)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """What `module` takes, for some examples."""
        raise NotImplementedError

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        where = device()
        if self.device != where:  # looking at each weight again would be a part of a small network's latency
            self.module.to(where)
        was, parts, counts = self.module.training, [], []
        self.module.eval()
        with torch.no_grad():
            at_once = self.at_once(examples)
            for start in range(0, len(examples), at_once):
                some = examples[start : start + at_once]
                batch = {k: v.to(where) for k, v in self.collate(some).items()}
                parts.append(self.module(batch)[kind].float().cpu().numpy())
                counts += self.counts(some, batch, kind) or ()
        self.module.train(was)
        values = np.concatenate(parts)
        return {kind: np.split(values, np.cumsum(counts)[:-1]) if counts else values}

    def at_once(self, examples: Sequence[Example]) -> int:
        """How many of these are run together."""
        return self.batch

    def counts(self, examples: Sequence[Example], batch: Mapping[str, torch.Tensor], kind: str) -> list[int] | None:
        """How many of a signal each of some examples has; None where each has one, of one shape."""
        return [len(e["labels"]) for e in examples] if self.ragged else None

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def width(self, kind: str) -> tuple[int, ...]:
        """The shape of one example's signal.

        Raises:
            CompatibilityError: it gives no such signal.
        """
        raise NotImplementedError

    def shape(self, kind: str) -> tuple[int | None, ...]:
        """The same, with None in front where an example has several."""
        return (*((None,) if self.ragged else ()), *self.width(kind))

    def split_classes(self, number: int, temperature: float, aggregate: str) -> None:
        """Give each class so many outputs, from here on and in what is saved; `logits` are one a class as before (see
        `networks.widen` and `networks.Subclasses`).

        Raises:
            CompatibilityError: its logits are no plain linear layer's.
        """
        if isinstance(self.module, networks.Subclasses | networks.Rescaled | networks.TwoHeads):
            raise CompatibilityError(f"the logits of the student are those of a {type(self.module).__name__} already")
        networks.widen(self.module, len(self.classes), number)
        self.module = networks.Subclasses(self.module, number, temperature, aggregate)


class ProbedClassifier(Classifier):
    """A network of which it is seen by running it which signals it gives, and of which shapes."""

    def blank(self) -> dict[str, torch.Tensor]:
        """What `module` takes, for one example without anything on it."""
        raise NotImplementedError

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one example's signals."""
        was = self.module.training
        self.module.eval()
        with torch.no_grad():
            given = self.module({name: value.to(self.device) for name, value in self.blank().items()})
            names = [*given, *getattr(given, "later", ())]
            shapes = {name: tuple(given[name].shape[1:]) for name in names}
        self.module.train(was)
        return shapes

    def width(self, kind: str) -> tuple[int, ...]:
        if kind not in self._shapes:
            raise CompatibilityError(f"a {self.network} gives {', '.join(self._shapes)}, not {kind!r}")
        return self._shapes[kind]

    def split_classes(self, number: int, temperature: float, aggregate: str) -> None:
        super().split_classes(number, temperature, aggregate)
        self.__dict__.pop("_shapes", None)

    @property
    def network(self) -> str:
        """What it is called in messages."""
        return type(getattr(self.module, "model", self.module)).__name__


class NetworkClassifier(ProbedClassifier):
    """One of our small networks: `config.json` and `model.safetensors`.

    Args:
        config: `network`, `shape`, `classes` and the network's own settings.
    """

    def __init__(self, task: str, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(task, networks.build(config), config["classes"], start)
        self.config = {**config, "task": task}

    def blank(self) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(1, *self.config["shape"])}

    @property
    def network(self) -> str:
        return self.config["network"]

    def like(self, module: nn.Module, start: Mapping[str, Any]) -> NetworkClassifier:
        """The same with another number of layers; `module` has its weights."""
        from kdhub_logits.students import blocks

        made = NetworkClassifier(self.task, {**self.config, "layers": len(blocks(module))}, start)
        made.module.load_state_dict(module.state_dict())
        return made

    def rescale(self) -> None:
        """Divide the logits by their deviation over the classes, from here on and in what is saved."""
        if not self.config.get("std_scaled_probs"):
            self.config["std_scaled_probs"] = True
            self.module = networks.Rescaled(self.module)

    def split_classes(self, number: int, temperature: float, aggregate: str) -> None:
        super().split_classes(number, temperature, aggregate)
        self.config["subclasses"] = {"number": number, "temperature": temperature, "aggregate": aggregate}

    def two_heads(self, mix: float, beta: float) -> None:
        """Add a head for what a teacher says; see `networks.TwoHeads`."""
        (width,) = self.width("features")
        self.config["two_heads"] = {"mix": mix, "beta": beta}
        self.module = networks.TwoHeads(self.module, width, len(self.classes), mix, beta).to(self.device)
        del self._shapes

    @property
    def batch(self) -> int:
        return 64 if self.device.type == "cpu" else 1024  # what convolutions give for more leaves a core's cache

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(np.stack([e["x"] for e in examples]))
        # Colours of a pixel beside each other: convolutions of small images are a fifth faster, forward and backward.
        layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        scaled = x.to(torch.float32, memory_format=layout)
        return {"x": scaled.div_(255) if x.dtype == torch.uint8 else scaled}

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"kdhub": 1, **self.config}, indent=2))
        save_file({n: t.contiguous() for n, t in self.module.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> NetworkClassifier:
        student = cls(config["task"], {k: v for k, v in config.items() if k != "kdhub"})
        student.module.load_state_dict(load_file(folder / "model.safetensors"))
        student.module.eval()
        return student

    @classmethod
    def of_timm(
        cls, folder: Path, config: Mapping[str, Any], *, classes: Sequence[str] | None = None, name: str | None = None
    ) -> NetworkClassifier:
        """A network with its weights as timm saves it: its `config.json` has `architecture` and `pretrained_cfg`.

        Args:
            classes: those that it shall have, with a fresh last layer unless it was made for just as many; its own
                labels or their numbers if None.

        Raises:
            UsageError: timm is not installed. UntrustedError: pickled weights, or those of another network.
        """
        from kdhub_logits.students import timm_scale

        check_model_folder(folder, name=name)
        own, many = config.get("pretrained_cfg") or {}, int(config.get("num_classes") or 0)
        labels = config.get("label_names") or own.get("label_names") or [str(i) for i in range(many)]
        shape = list(own.get("input_size") or (3, 224, 224))
        known = ("num_classes", "in_chans")
        settings = {k: v for k, v in (config.get("model_args") or {}).items() if k not in known}
        made = {"network": "timm", "name": config.get("architecture"), "settings": settings}
        made |= {"shape": shape, "classes": list(classes or labels), **timm_scale(own, shape)}
        student = cls("image-classification", made, {"how": "as it is"})
        state = load_file(folder / "model.safetensors")
        fits = student.module.model.state_dict()
        fresh = {n for n, t in fits.items() if n not in state or t.shape != state[n].shape}
        if set(state) - set(fits) or (fresh and len(student.classes) == many):
            raise UntrustedError(f"{name or folder} has the weights of another network than {made['name']}")
        student.module.model.load_state_dict({n: t for n, t in state.items() if n not in fresh}, strict=False)
        student.module.eval()
        return student


class Transformer(nn.Module):
    """A transformers classifier with our names: `logits`, and `features` as the mean of its last states.

    Asked for, also `hidden_states` (positions, layers, width) of all tokens but padding, one row after the other, and
    `attentions` (pairs of positions, layers), mean over heads, query after query; these take a second pass, in which
    attention is computed openly. Of a classifier of tokens all but attentions are those of the positions `at`.
    """

    def __init__(self, model: nn.Module):
        from kdhub_logits.attention import without_square_mask

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
        return networks.Given(
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
        network = with_subclasses(Transformer(model), model.config)
        super().__init__(self.task_name, network, class_names(model.config), start)
        self.tokenizer = tokenizer
        if is_efficient(model.config):
            self.kinds = tuple(kind for kind in self.kinds if kind != "attentions")

    @cached_property
    def max_length(self) -> int:
        """Tokens of a text that it takes, special ones included."""
        limits = (getattr(self.module.model.config, "max_position_embeddings", None), self.tokenizer.model_max_length)
        return min((n for n in limits if n and n < 1_000_000), default=512)

    @cached_property
    def vocabulary(self) -> str:
        """Digest of the tokens and their numbers."""
        return hashlib.sha256(canonical_json(self.tokenizer.get_vocab())).hexdigest()

    def like(self, model: nn.Module, start: Mapping[str, Any]) -> TextClassifier:
        """Another network that reads texts as this one."""
        return type(self)(model, self.tokenizer, start)

    def split_classes(self, number: int, temperature: float, aggregate: str) -> None:
        super().split_classes(number, temperature, aggregate)
        note_subclasses(self.module.model, self.classes, number, temperature, aggregate)

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
        """Token ids, cut to what the model takes, and which texts were cut."""
        given, cut = self.tokenized(texts, max_length=max_length)
        return given["input_ids"], cut

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        ids = [e["ids"] if e.get("by") is self.tokenizer else None for e in examples]
        if None in ids:  # prepared for another model
            ids = self.encode([e["text"] for e in examples])[0]
        return padded(ids, self.tokenizer.pad_token_id or 0)

    def save(self, folder: Path) -> None:
        self.module.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path, *, name: str | None = None, start: Mapping[str, Any] | None = None) -> TextClassifier:
        import transformers

        import kdhub_logits.attention  # noqa: F401  families of models of ours

        check_model_folder(folder, name=name)
        auto = getattr(transformers, cls.auto)
        model = auto.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model.eval(), tokenizer, start)

    @classmethod
    def with_head(cls, folder: Path, classes: Sequence[str], seed: int, start: Mapping[str, Any]) -> TextClassifier:
        """A checked folder's network; its classifier is made anew unless it is one for just these classes."""
        import transformers

        import kdhub_logits.attention  # noqa: F401  families of models of ours

        names = dict(enumerate(classes))
        numbers = {v: k for k, v in names.items()}
        whole = {"id2label": names, "label2id": numbers, "subclasses": None}
        config = transformers.AutoConfig.from_pretrained(folder, **whole)
        model = with_fresh_head(getattr(transformers, cls.auto), folder, config, seed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer, start)

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
        if is_efficient(self.module.model.config):  # the library has no such model, or gives it no global tokens
            return super().usage()
        if isinstance(self.module, networks.Subclasses):
            return (
                "from transformers import pipeline\n\n"
                'classify, scores = pipeline("text-classification", model="{path}", top_k=None), {}\n'
                'for part in classify(["a text to classify"])[0]:  # outputs of one class are NAME/0, NAME/1, ...\n'
                '    name = part["label"].rpartition("/")[0]\n'
                f'    scores[name] = scores.get(name, 0) + part["score"] ** (1 / {self.module.temperature})\n'
                "print(max(scores, key=scores.get))"
            )
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("{self.task_name}", model="{{path}}")\n'
            'print(classify("a text to classify"))'
        )

    @property
    def library(self) -> str:
        return "kdhub" if hasattr(self.module.model.config, "efficient_attention") else "transformers"


class TokenClassifier(TextClassifier):
    """A transformers token classifier. A word has the logits of its first token, so teacher and student may have
    different tokenizers.

    With `chunk_overlap` in its configuration it reads long rows in chunks that have so many tokens in common; a word's
    logits are those of the chunk in which it is farthest from an end. So a short model reads long texts.
    """

    task_name = "token-classification"
    auto = "AutoModelForTokenClassification"
    ragged = True

    def encode_words(
        self, rows: Sequence[Sequence[str]], max_length: int | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of rows of words, cut to what the model takes, and where each word begins; words that are cut off,
        or that the tokenizer leaves nothing of, end the row."""
        chunks, places = self._chunks(rows, max_length)
        ids: list[list[int]] = [[] for _ in rows]
        for chunk, of in chunks:
            ids[of] += chunk
        return ids, [[at for _, at in row] for row in places]

    def _chunks(
        self, rows: Sequence[Sequence[str]], max_length: int | None = None
    ) -> tuple[list[tuple[list[int], int]], list[list[tuple[int, int]]]]:
        """Token ids of each chunk and its row, and for each word of a row in which chunk it begins, and where. A row is
        one chunk, cut, unless chunks overlap."""
        limit = min(filter(None, (self.max_length, max_length)))
        overlap = getattr(self.module.model.config, "chunk_overlap", None)
        more = {} if overlap is None else {"stride": overlap, "return_overflowing_tokens": True}
        given = self.tokenizer(
            [list(row) for row in rows], is_split_into_words=True, truncation=True, max_length=limit, **more
        )
        ids = given["input_ids"]
        of = range(len(rows)) if overlap is None else given["overflow_to_sample_mapping"]
        begins: list[dict[int, tuple[int, int, int]]] = [{} for _ in rows]
        for chunk, row in enumerate(of):
            before = None
            for at, word in enumerate(given.word_ids(chunk)):
                if word is not None and word != before:
                    inside = min(at, len(ids[chunk]) - 1 - at)
                    if word not in begins[row] or inside > begins[row][word][0]:
                        begins[row][word] = inside, chunk, at
                before = word
        places = []
        for row, found in zip(rows, begins):
            end = next((w for w in range(len(row)) if w not in found), len(row))
            places.append([found[w][1:] for w in range(end)])
        return list(zip(ids, of)), places

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        chunks, places = self._chunks([e["words"] for e in examples])
        batch = padded([ids for ids, _ in chunks], self.tokenizer.pad_token_id or 0)
        width = batch["input_ids"].shape[1]
        # Of what both models can see: a row may have fewer words than this one alone would take.
        at = [c * width + first for e, row in zip(examples, places) for c, first in row[: len(e["words"])]]
        return {**batch, "at": torch.tensor(at, dtype=torch.long)}


def class_names(config: Any) -> list[str]:
    """The classes of a transformers configuration; outputs of one class count as one (`note_subclasses`)."""
    labels = [str(config.id2label[i]) for i in range(len(config.id2label))]
    split = getattr(config, "subclasses", None)
    return [name.rpartition("/")[0] for name in labels[:: split["number"]]] if split else labels


def with_subclasses(network: nn.Module, config: Any) -> nn.Module:
    """The network of a model, with one logit a class where its configuration says that a class has several outputs."""
    split = getattr(config, "subclasses", None)
    return networks.Subclasses(network, **split) if split else network


def note_subclasses(model: nn.Module, classes: Sequence[str], number: int, temperature: float, aggregate: str) -> None:
    """Say in a transformers configuration that a class has several outputs, which the library calls `NAME/0`, ..."""
    names = dict(enumerate(f"{name}/{part}" for name in classes for part in range(number)))
    model.config.id2label, model.config.label2id = names, {name: i for i, name in names.items()}
    model.config.subclasses = {"number": number, "temperature": temperature, "aggregate": aggregate}
    model.num_labels = len(names)


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
    """Which of two texts each token is of, where a model was told."""
    return {name: inputs[name] for name in ("token_type_ids",) if name in inputs}


def padded(ids: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Token ids of some rows as one batch with its mask."""
    longest = max(map(len, ids))
    rows = [list(i) + [pad] * (longest - len(i)) for i in ids]
    mask = [[1] * len(i) + [0] * (longest - len(i)) for i in ids]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def load(folder: Path, *, name: str | None = None) -> Classifier:
    """A classifier from its folder: ours, the transformers library's, or timm's.

    Raises:
        UntrustedError: no readable configuration, pickled weights, or code of its own.
        UsageError: timm is needed and not installed.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UntrustedError(f"{name or folder} has no readable config.json ({error})") from error
    if "architecture" in config:
        return NetworkClassifier.of_timm(folder, config, name=name)
    if "network" not in config:
        kinds = [str(n) for n in config.get("architectures") or ()]
        if any(n.endswith("ForImageClassification") for n in kinds):
            from kdhub_logits.vision import ImageClassifier

            return ImageClassifier.load(folder, name=name)
        of_tokens = any(n.endswith("ForTokenClassification") for n in kinds)
        return (TokenClassifier if of_tokens else TextClassifier).load(folder, name=name)
    if config["network"] not in networks.NETWORKS:
        raise UntrustedError(f"{name or folder}: no network is called {config['network']!r}")
    return NetworkClassifier.load(folder, config)


def label_index(value: Any, classes: Sequence[str]) -> int:
    """The position of a row's label: a number is a position, a text is a name, or a number; -1 for none.

    Raises:
        DataError: no such class.
    """
    if value is None or value == -1:
        return -1
    if isinstance(value, (int, np.integer)):
        if 0 <= value < len(classes):
            return int(value)
    elif value in classes:
        return list(classes).index(value)
    elif isinstance(value, str) and value.isdecimal() and int(value) < len(classes):  # files of texts have no numbers
        return int(value)
    raise DataError(
        f"label {value!r} is none of the {len(classes)} classes {', '.join(map(repr, classes[:8]))}",
        hint="the model was made for other classes; map the column, or start from another model",
    )
