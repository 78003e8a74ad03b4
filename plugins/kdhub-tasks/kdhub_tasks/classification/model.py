"""Students that give logits over named classes: our small networks, and the transformers library's classifiers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example
from kdhub_tasks.classes import problem_of
from kdhub_tasks.classification import networks
from kdhub_tasks.layers import blocks
from kdhub_tasks.models import ProbedClassifier
from kdhub_tasks.transformer import TextClassifier
from kdhub_tasks.wrappers import FORMERLY, KEY, wrappers_in

SIZED = ": resized:{}:DATA"
"""How a data set's images are brought to a size, in hints."""


class NetworkClassifier(ProbedClassifier):
    """One of our small networks: `config.json` and `model.safetensors`.

    Args:
        config: `network`, `shape`, `classes`, the network's own settings, and `problem_type` where its outputs are not
            of one class a row (`kdhub_tasks.classes`).
    """

    def __init__(self, task: str, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(task, networks.build(config), config["classes"], start)
        plain = {k: v for k, v in config.items() if k not in (KEY, *FORMERLY)}
        listed = wrappers_in(config)
        self.config = {**plain, "task": task, **({KEY: listed} if listed else {})}
        self.problem = problem_of(config)

    def blank(self) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(1, *self.config["shape"])}

    @property
    def network(self) -> str:
        return self.config["network"]

    def like(self, module: nn.Module, start: Mapping[str, Any]) -> NetworkClassifier:
        """The same with another number of layers; `module` has its weights."""
        made = NetworkClassifier(self.task, {**self.config, "layers": len(blocks(module))}, start)
        made.module.load_state_dict(module.state_dict())
        return made

    @property
    def members(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of its network, where that is a family of sizes: it has `members`, `member` and `cut`."""
        return getattr(self.module, "members", {})

    def choose(self, name: str | None) -> None:
        self.module.member = name

    def cut(self, name: str) -> NetworkClassifier:
        settings, state = self.module.cut(name)
        shared = {k: v for k, v in self.config.items() if k in ("shape", "classes", "mean", "std", "problem_type")}
        made = NetworkClassifier(self.task, shared | settings, self.start)
        made.module.load_state_dict(state)
        made.module.to(self.device).eval()
        return made

    def wrap(self, name: str, **settings: Any) -> None:
        if self.members:
            raise CompatibilityError(
                f"a wrapper ({name}) cannot be put around a family of sizes: its members would be without it",
                hint="take one of its members: student: {source: member:..., name: ...}",
            )
        super().wrap(name, **settings)

    def note_wrapper(self, wrapper: Mapping[str, Any]) -> None:
        self.config[KEY] = [*self.config.get(KEY, ()), dict(wrapper)]

    @property
    def batch(self) -> int:
        return 64 if self.device.type == "cpu" else 1024  # what convolutions give for more leaves a core's cache

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(np.stack(self._fitting([np.asarray(e["x"]) for e in examples])))
        # Colours of a pixel beside each other: convolutions of small images are a fifth faster, forward and backward.
        layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        scaled = x.to(torch.float32, memory_format=layout)
        return {"x": scaled.div_(255) if x.dtype == torch.uint8 else scaled}

    def _fitting(self, given: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Inputs of the network's shape; grey images get, or lose, the axis of equal channels.

        Raises:
            DataError: of another shape, with how many.
        """
        shape = tuple(self.config["shape"])
        if all(x.shape == shape for x in given):
            return list(given)
        grey = [x[0] if x.ndim == 3 and len(x) == 1 else x for x in given]
        made = [np.broadcast_to(x, shape) if x.shape == shape[-2:] else x for x in grey]
        if wrong := Counter(x.shape for x in made if x.shape != shape):
            text = " x ".join(map(str, shape))
            counted = ", ".join(f"{' x '.join(map(str, size))} ({many})" for size, many in wrong.most_common(6))
            raise DataError(
                f"{wrong.total()} of {len(given)} inputs are not {text}, as the network takes them: {counted}",
                hint=f"bring them to that size{SIZED.format('x'.join(map(str, shape[-2:]))) * (1 < len(shape) < 4)}",
            )
        return made

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
        cls, folder: Path, config: Mapping[str, Any], *, classes: Sequence[str] | None = None, problem: str = "",
        name: str | None = None,
    ) -> NetworkClassifier:  # fmt: skip
        """A network with its weights as timm saves it: its `config.json` has `architecture` and `pretrained_cfg`.

        Args:
            classes: those that it shall have, with a fresh last layer unless it was made for just as many; its own
                labels or their numbers if None.

        Raises:
            UsageError: timm is not installed. UntrustedError: pickled weights, or those of another network.
        """
        check_model_folder(folder, name=name)
        own, many = config.get("pretrained_cfg") or {}, int(config.get("num_classes") or 0)
        labels = config.get("label_names") or own.get("label_names") or [str(i) for i in range(many)]
        shape = list(own.get("input_size") or (3, 224, 224))
        known = ("num_classes", "in_chans")
        settings = {k: v for k, v in (config.get("model_args") or {}).items() if k not in known}
        made = {"network": "timm", "name": config.get("architecture"), "settings": settings}
        made |= {"shape": shape, "classes": list(classes or labels), **networks.timm_scale(own, shape)}
        made |= {"problem_type": problem} if problem else {}
        student = cls("image-classification", made, {"how": "as it is"})
        state = load_file(folder / "model.safetensors")
        fits = student.module.model.state_dict()
        fresh = {n for n, t in fits.items() if n not in state or t.shape != state[n].shape}
        if set(state) - set(fits) or (fresh and len(student.classes) == many):
            raise UntrustedError(f"{name or folder} has the weights of another network than {made['name']}")
        student.module.model.load_state_dict({n: t for n, t in state.items() if n not in fresh}, strict=False)
        student.module.eval()
        return student


class TokenClassifier(TextClassifier):
    """A transformers token classifier. A word has the logits of its first token, so teacher and student may have
    different tokenizers.

    With `chunk_overlap` in its configuration it reads long rows in chunks that have so many tokens in common; a word's
    logits are those of the chunk in which it is farthest from an end. So a short model reads long texts.
    """

    task_name = "token-classification"
    auto = "AutoModelForTokenClassification"
    ragged = True

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        if problem := problem_of(model.config.to_dict()):
            raise CompatibilityError(
                f"a model of words gives one class a word (problem_type={problem}, "
                f"{model.config.num_labels} output{'s' * (model.config.num_labels != 1)})"
            )
        super().__init__(model, tokenizer, start)

    def encode_words(
        self, rows: Sequence[Sequence[str]], max_length: int | None = None
    ) -> tuple[list[list[int]], list[list[int | None]]]:
        """Token ids of rows of words, cut to what the model takes, and where each word begins: None for a word that the
        tokenizer leaves nothing of. A row ends before the first word that is cut off."""
        chunks, places = self._chunks(rows, max_length)
        ids: list[list[int]] = [[] for _ in rows]
        for chunk, of in chunks:
            ids[of] += chunk
        return ids, [[place and place[1] for place in row] for row in places]

    def _chunks(
        self, rows: Sequence[Sequence[str]], max_length: int | None = None
    ) -> tuple[list[tuple[list[int], int]], list[list[tuple[int, int] | None]]]:
        """Token ids of each chunk and its row, and for each word of a row in which chunk it begins, and where, or None.
        A row is one chunk, cut, unless chunks overlap."""
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
        for n, (row, found) in enumerate(zip(rows, begins)):
            # Behind the last word of a row that was cut nobody knows which words are cut off and which have no tokens.
            end = max(found, default=-1) + 1 if overlap is None and given[n].overflowing else len(row)
            places.append([found[w][1:] if w in found else None for w in range(end)])
        return list(zip(ids, of)), places

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        chunks, places = self._chunks([e["words"] for e in examples])
        batch = self.batch_of([ids for ids, _ in chunks])
        width = batch["input_ids"].shape[1]
        # Of what both models can see: a row may have fewer words than this one alone would take.
        seen = [place for e, row in zip(examples, places) for place in row[: len(e["words"])]]
        at = [place[0] * width + place[1] for place in seen if place]
        return {**batch, "at": torch.tensor(at, dtype=torch.long)}
