"""Students that rank items: a thought space, items by their ids alone or their texts alone, and popularity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from kdhub_tasks.models import Classifier
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.rows import Example
from kdhub.student import BuildContext
from kdhub_knowledge.items.catalogue import Catalogue
from kdhub_knowledge.items.network import PopularityNetwork, ThoughtSpaceNetwork, selection
from kdhub_knowledge.items.spec import NAME
from kdhub_knowledge.items.text import TFIDF, TextEncoder


class Ranker(Classifier):
    """What ranks items: `classes` are their names.

        config.json           items and settings
        model.safetensors     weights, with the vectors of item texts

    Args:
        config: `network`, `items` and settings.
    """

    kinds = ("logits",)
    network: str

    def __init__(self, config: Mapping[str, Any], module: torch.nn.Module, start: Mapping[str, Any] | None = None):
        super().__init__(NAME, module, config["items"], start)
        self.config = {**config, "network": self.network}

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The last items of each history, as far as the student looks back."""
        seen = [example["history"][-self.config.get("history_len", 1) :] for example in examples]
        history = np.full((len(seen), max(map(len, seen), default=1) or 1), -1, np.int64)
        for row, items in zip(history, seen):
            row[: len(items)] = items
        return {
            "history": torch.from_numpy(history),
            "attention_mask": torch.from_numpy((history >= 0).astype(np.int64)),
        }

    def width(self, kind: str) -> tuple[int, ...]:
        if kind not in self.kinds:
            raise CompatibilityError(f"a {self.network} gives {', '.join(self.kinds)}, not {kind!r}")
        return (len(self.classes),) if kind == "logits" else (self.config["dim"],)

    def of(self, catalogue: Catalogue) -> Ranker:
        """The same for the items of a catalogue, in its order. What is known of an item it keeps; of others it knows
        their texts, where it reads any."""
        if catalogue.items == self.classes:
            return self
        made = self.fresh({**self.config, "items": catalogue.items}, catalogue)
        at = {item: n for n, item in enumerate(self.classes)}
        known = [(n, at[item]) for n, item in enumerate(catalogue.items) if item in at]
        here, there = (torch.tensor([pair[side] for pair in known], dtype=torch.long) for side in (0, 1))
        mine, theirs = self.module.state_dict(), made.module.state_dict()
        for name, value in theirs.items():
            if name in self.by_item:
                value.zero_()
                value[here] = mine[name][there].to(value)
            elif name != "texts":
                value.copy_(mine[name])
        made.start = dict(self.start)
        made.module.to(self.device).eval()
        return made

    by_item: tuple[str, ...] = ()
    """Weights that have a row for each item."""

    def fresh(self, config: Mapping[str, Any], catalogue: Catalogue) -> Ranker:
        """The same kind for other items, with fresh weights."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        config = {"kdhub": 1, "task": self.task, **self.config}
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
        weights = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    def usage(self) -> str:
        return (
            'import kdhub\nstudent = kdhub.load("{path}")\n'
            f"print(student.recommend({self.classes[:2]}, 5))  # what comes next, the likeliest first"
        )

    def recommend(self, history: Sequence[str], most: int = 10, rationales: Sequence[str] = ()) -> list[str]:
        """The items that come next after a history, the likeliest first, without those in it.

        Raises:
            UsageError: an item that the student does not know.
        """
        at = {item: n for n, item in enumerate(self.classes)}
        if unknown := [item for item in history if item not in at]:
            raise UsageError(f"{unknown[0]!r} is not one of the student's {len(at)} items")
        seen = [at[item] for item in history]
        scores = self.signals([{"history": seen, "rationales": list(rationales)}], "logits")["logits"][0]
        scores[seen] = -np.inf
        return [self.classes[n] for n in np.argsort(-scores, kind="stable")[: min(most, len(at) - len(set(seen)))]]


class ThoughtSpace(Ranker):
    """Histories, items and rationales in one space."""

    network = "thought-space"
    kinds = ("logits", "user")
    by_item = ("ids.weight",)

    def __init__(self, config: Mapping[str, Any], reads: TextEncoder | None, start: Mapping[str, Any] | None = None):
        settings = {name: config[name] for name in ("dim", "ids", "encoder", "feature", "tau", "mix", "nearest")}
        module = ThoughtSpaceNetwork(len(config["items"]), reads.width if reads else 0, **settings)
        super().__init__({**config, "text": reads and reads.settings()}, module, start)
        self.reads = module.reads = reads

    def set(self, **settings: float) -> None:
        """`tau`, `mix`, `nearest`: from here on and in what is saved."""
        for name, value in settings.items():
            setattr(self.module, name, value)
            self.config[name] = value

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = super().collate(examples)
        most = max((len(example["rationales"]) for example in examples), default=0)
        if self.reads is None or not most:
            return batch
        texts = [[*e["rationales"], *[""] * (most - len(e["rationales"]))] for e in examples]
        vectors = self.reads([text for row in texts for text in row]).reshape(len(texts), most, -1)
        written = torch.tensor([[bool(text) for text in row] for row in texts])
        return {**batch, "rationales": vectors, "written": written}

    def selection(self, examples: Sequence[Example], with_target: bool) -> list[np.ndarray]:
        """g(user, rationale) of each rationale of each row, -inf where there is none (`network.selection`).

        Args:
            with_target: by the next item as well, `label`.
        """
        where, found = self.device, []
        for start in range(0, len(examples), self.batch):
            some = examples[start : start + self.batch]
            batch = {name: value.to(where) for name, value in self.collate(some).items()}
            with torch.no_grad():
                given = self.module(batch)
                if given["rationale"] is None:  # nothing is written for any of these rows
                    found += [np.zeros(0)] * len(some)
                    continue
                labels = torch.tensor([e["label"] for e in some], device=where) if with_target else None
                found += list(selection(given, batch["written"], labels).cpu().numpy())
        return found

    def fresh(self, config: Mapping[str, Any], catalogue: Catalogue) -> ThoughtSpace:
        made = ThoughtSpace(config, self.reads)
        if self.reads:
            made.module.texts.copy_(self.reads(catalogue.texts))
        return made

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.reads:
            self.reads.save(folder)

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> ThoughtSpace:
        return cls(config, TextEncoder.of(config["text"], folder) if config["text"] else None)


class Popularity(Ranker):
    """The logarithms of how often items were taken."""

    network = "popularity"
    by_item = ("bias",)

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(config, PopularityNetwork(len(config["items"])), start)

    def fresh(self, config: Mapping[str, Any], catalogue: Catalogue) -> Popularity:
        return Popularity(config)

    def of(self, catalogue: Catalogue) -> Ranker:
        made = super().of(catalogue)
        if made is not self:  # nobody took an item that the student does not know
            strange = torch.tensor([item not in set(self.classes) for item in catalogue.items])
            with torch.no_grad():
                made.module.bias[strange] = self.module.bias.min() - 1
        return made

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Popularity:
        return cls(config)


def load(folder: Path, name: str) -> Ranker:
    """
    Raises:
        UntrustedError: it is none that kdhub saved.
    """
    kinds = {kind.network: kind for kind in (ThoughtSpace, Popularity)}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        student = kinds[config.pop("network")].load(
            folder, {k: v for k, v in config.items() if k not in ("kdhub", "task")}
        )
        student.module.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UntrustedError(f"{name} is not a student for {NAME} that kdhub saved ({error})") from error
    student.module.eval()
    return student


def _catalogue(context: BuildContext, kind: str) -> Catalogue:
    if not context.facts.get("items"):
        raise UsageError(f"{kind} needs training rows to know the items", hint="give --data")
    items, texts = context.facts["items"], context.facts["texts"]
    return Catalogue(items, texts, texts, [[] for _ in items])


class Builder(ThoughtSpace):
    """`thought-space`: fresh encoders."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        items: Literal["both", "id", "text"] = Field(
            "both", description="what stands for an item: its own embedding and its text, or one of them"
        )
        encoder: Literal["gru", "mean"] = Field(
            "gru", description="what reads a history: a GRU, or the mean of its items"
        )
        dim: int = Field(64, ge=2, description="width of the space")
        history_len: int = Field(20, ge=1, description="items of a history that are looked at, the last ones")
        text_encoder: str = Field(
            TFIDF,
            description="frozen: tfidf-svd, made of the item texts, or an embedding model (hf:, path:, packaged:)",
        )
        text_width: int = Field(64, ge=1, description="singular vectors of tfidf-svd, at most")
        rationales: Literal["space", "feature"] = Field(
            "space", description="rationales are points of the space, or a plain feature of the user (the ablation)"
        )

    def __init__(self, argument: str, context: BuildContext):
        o, known = self.Options(**context.options), _catalogue(context, "thought-space")
        if o.items == "text" and not all(known.texts):
            empty = [item for item, text in zip(known.items, known.texts) if not text]
            raise UsageError(
                f"items=text needs a text of each item, and {len(empty)} of {len(known.items)} have none, such as "
                f"{empty[0]!r}",
                hint="give them a title or a description in the split `items`, or set items=both",
            )
        if o.items != "id" and not any(known.texts):
            raise UsageError(
                f"no item has a text (items={o.items})", hint="student: {source: thought-space, items: id}"
            )
        torch.manual_seed(context.seed)
        config = {"items": known.items, "ids": o.items != "text", "encoder": o.encoder, "dim": o.dim}
        config |= {"history_len": o.history_len, "feature": o.rationales == "feature"}
        config |= {"tau": 0.1, "mix": 0.0, "nearest": True}
        reads = None if o.items == "id" else TextEncoder.fresh(o.text_encoder, known.texts, o.text_width)
        super().__init__(config, reads, {"how": f"fresh thought space, items by {o.items}"})
        if reads:
            self.module.texts.copy_(reads(known.texts))


class PopularityBuilder(Popularity):
    """`popularity`: how often each item was taken in the training rows, each of a user's items once."""

    def __init__(self, argument: str, context: BuildContext):
        known = _catalogue(context, "popularity")
        super().__init__({"items": known.items}, {"how": "counts of the training rows"})
        with torch.no_grad():
            self.module.bias.copy_((torch.tensor(context.facts["counts"], dtype=torch.float64) + 0.5).log())
