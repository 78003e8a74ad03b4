"""Students that give logits over named classes: our small networks, and the transformers library's classifiers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.student import Student
from kdhub.task import Example
from kdhub_logits import networks

BATCH = 256


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
        device = self.device
        was, parts = self.module.training, []
        self.module.eval()
        with torch.no_grad():
            for start in range(0, len(examples), self.batch):
                batch = {k: v.to(device) for k, v in self.collate(examples[start : start + self.batch]).items()}
                parts.append(self.module(batch)[kind].float().cpu().numpy())
        self.module.train(was)
        values = np.concatenate(parts)
        if not self.ragged:
            return {kind: values}
        return {kind: np.split(values, np.cumsum([len(e["labels"]) for e in examples])[:-1])}

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def width(self, kind: str) -> tuple[int, ...]:
        """The shape of one example's signal.

        Raises:
            CompatibilityError: it gives no such signal.
        """
        raise NotImplementedError


class NetworkClassifier(Classifier):
    """One of our small networks: `config.json` and `model.safetensors`.

    Args:
        config: `network`, `shape`, `classes` and the network's own settings.
    """

    def __init__(self, task: str, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(task, networks.build(config), config["classes"], start)
        self.config = {**config, "task": task}

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one example's signals."""
        was = self.module.training
        self.module.eval()
        with torch.no_grad():
            given = self.module({"x": torch.zeros(1, *self.config["shape"], device=self.device)})
        self.module.train(was)
        return {name: tuple(value.shape[1:]) for name, value in given.items()}

    def rescale(self) -> None:
        """Divide the logits by their deviation over the classes, from here on and in what is saved."""
        if not self.config.get("std_scaled_probs"):
            self.config["std_scaled_probs"] = True
            self.module = networks.Rescaled(self.module)

    def two_heads(self, mix: float, beta: float) -> None:
        """Add a head for what a teacher says; see `networks.TwoHeads`."""
        (width,) = self.width("features")
        self.config["two_heads"] = {"mix": mix, "beta": beta}
        self.module = networks.TwoHeads(self.module, width, len(self.classes), mix, beta).to(self.device)
        del self._shapes

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(np.stack([e["x"] for e in examples]))
        return {"x": x.float() / 255 if x.dtype == torch.uint8 else x.float()}

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"kdhub": 1, **self.config}, indent=2))
        save_file({n: t.contiguous() for n, t in self.module.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> NetworkClassifier:
        student = cls(config["task"], {k: v for k, v in config.items() if k != "kdhub"})
        student.module.load_state_dict(load_file(folder / "model.safetensors"))
        student.module.eval()
        return student

    def width(self, kind: str) -> tuple[int, ...]:
        if kind not in self._shapes:
            raise CompatibilityError(f"a {self.config['network']} gives {', '.join(self._shapes)}, not {kind!r}")
        return self._shapes[kind]


class Transformer(nn.Module):
    """A transformers classifier with our names: `logits`, and `features` as the mean of its last states.

    Of a classifier of tokens both are those of the positions `at` of the batch's tokens, one row after the other.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = inputs["attention_mask"]
        given = self.model(input_ids=inputs["input_ids"], attention_mask=mask, output_hidden_states=True)
        states = given.hidden_states[-1]
        if "at" in inputs:
            return {"logits": given.logits.flatten(0, 1)[inputs["at"]], "features": states.flatten(0, 1)[inputs["at"]]}
        mask = mask.unsqueeze(-1).to(given.logits.dtype)
        return {"logits": given.logits, "features": (states * mask).sum(1) / mask.sum(1)}


class TextClassifier(Classifier):
    """A transformers sequence classifier with its tokenizer, in the library's own format."""

    task_name = "text-classification"
    auto = "AutoModelForSequenceClassification"

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        labels = model.config.id2label
        classes = [str(labels[i]) for i in range(len(labels))]
        super().__init__(self.task_name, Transformer(model), classes, start)
        self.tokenizer = tokenizer
        limits = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
        self.max_length = min((n for n in limits if n and n < 1_000_000), default=512)

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> tuple[list[list[int]], list[bool]]:
        """Token ids, cut to what the model takes, and which texts were cut."""
        limit = min(filter(None, (self.max_length, max_length)))
        whole = self.tokenizer(list(texts))["input_ids"]
        cut = [len(ids) > limit for ids in whole]
        if any(cut):
            whole = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        return whole, cut

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

        check_model_folder(folder, name=name)
        auto = getattr(transformers, cls.auto)
        model = auto.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model.eval(), tokenizer, start)

    @classmethod
    def with_head(cls, folder: Path, classes: Sequence[str], seed: int, start: Mapping[str, Any]) -> TextClassifier:
        """A checked folder's network; its classifier is made anew unless it is one for just these classes."""
        import transformers

        names = dict(enumerate(classes))
        numbers = {v: k for k, v in names.items()}
        config = transformers.AutoConfig.from_pretrained(folder, id2label=names, label2id=numbers)
        transformers.set_seed(seed)
        model = getattr(transformers, cls.auto).from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, ignore_mismatched_sizes=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer, start)

    def width(self, kind: str) -> tuple[int, ...]:
        return (len(self.classes) if kind == "logits" else self.module.model.config.hidden_size,)

    def usage(self) -> str:
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("{self.task_name}", model="{{path}}")\n'
            'print(classify("a text to classify"))'
        )

    @property
    def library(self) -> str:
        return "transformers"


class TokenClassifier(TextClassifier):
    """A transformers token classifier. A word has the logits of its first token, so teacher and student may have
    different tokenizers."""

    task_name = "token-classification"
    auto = "AutoModelForTokenClassification"
    ragged = True

    def encode_words(
        self, rows: Sequence[Sequence[str]], max_length: int | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of rows of words, cut to what the model takes, and where each word begins; words that are cut off,
        or that the tokenizer leaves nothing of, end the row."""
        limit = min(filter(None, (self.max_length, max_length)))
        given = self.tokenizer([list(row) for row in rows], is_split_into_words=True, truncation=True, max_length=limit)
        ids, firsts = given["input_ids"], []
        for n, row in enumerate(rows):
            begins: dict[int, int] = {}
            for at, word in enumerate(given.word_ids(n)):
                if word is not None:
                    begins.setdefault(word, at)
            firsts.append([begins[w] for w in range(next((w for w in range(len(row)) if w not in begins), len(row)))])
        return ids, firsts

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        ids, firsts = self.encode_words([e["words"] for e in examples])
        batch = padded(ids, self.tokenizer.pad_token_id or 0)
        width = batch["input_ids"].shape[1]
        # Of what both models can see: a row may have fewer words than this one alone would take.
        at = [n * width + first for n, row in enumerate(firsts) for first in row[: len(examples[n]["words"])]]
        return {**batch, "at": torch.tensor(at, dtype=torch.long)}


def padded(ids: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Token ids of some rows as one batch with its mask."""
    longest = max(map(len, ids))
    rows = [list(i) + [pad] * (longest - len(i)) for i in ids]
    mask = [[1] * len(i) + [0] * (longest - len(i)) for i in ids]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def load(folder: Path, *, name: str | None = None) -> Classifier:
    """A classifier from its folder, ours or the transformers library's.

    Raises:
        UntrustedError: no readable configuration, pickled weights, or code of its own.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UntrustedError(f"{name or folder} has no readable config.json ({error})") from error
    if "network" not in config:
        of_tokens = any(str(n).endswith("ForTokenClassification") for n in config.get("architectures") or ())
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
