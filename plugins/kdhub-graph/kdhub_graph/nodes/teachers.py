"""Models of texts that read nodes with their neighbourhoods, hop by hop.

    teacher:
      source: hops
      reader: {source: recipe:citeseer-reader}     a text classifier, or with `task: causal-lm` a language model

For each node and each number of hops the reader sees a prompt (`kdhub_graph.nodes.prompts`):

    hop_states (hops + 1, width)      its last states: of a classifier the mean over tokens, of a language model those
                                      of the prompt's last token; the mean over several prompts of one hop
    hop_logits (hops + 1, classes)    its logits; of a language model the log-probability of each class's name
    features, logits                  those of the last hop

What is stored is found again by what the prompts say: with another edge only the nodes are read again whose prompts it
changes. A hop that adds no node has the prompt of the hop before, and so its state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from kdhub import open_teacher
from kdhub.errors import UsageError
from kdhub.recipes.recipe import TextRef
from kdhub.rows import Example
from kdhub.teacher import Teacher
from kdhub_graph.nodes.graphs import open_graph
from kdhub_graph.nodes.prompts import Prompter, Prompting, tokens_of

LANGUAGE = "causal-lm"
OF = {"hop_states": "features", "features": "features", "hop_logits": "logits", "logits": "logits"}
"""Signal of a node -> the reader's signal of a prompt."""


class Hops(Teacher):
    class Options(Prompting):
        model_config = ConfigDict(extra="forbid")
        reader: TextRef | None = Field(None, description="the model that reads prompts, as a recipe names a teacher")
        task: Literal["text-classification", "causal-lm"] = Field(
            "text-classification", description="what the reader is: a classifier of texts, or a language model"
        )
        classes: list[str] | None = Field(
            None, description="names of the classes, of which a language model says how probable each is"
        )
        states: Literal["last", "mean"] | None = Field(
            None, description="a language model's state of a prompt: of its last token (if unset), or the mean"
        )

    group_rows = 64

    def __init__(self, argument: str = "", options: Any = None, *, task: Any = None):
        super().__init__(argument or "hops", options, task=task)
        self._known: dict[tuple[str, int], bytes] = {}
        self._prompters: dict[str, Prompter] = {}

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        folder = Path(recipe["teacher"]["source"].partition(":")[2]).parent / "reader"
        return {"reader": {"source": f"path:{folder}"}, "budget": 48}

    @cached_property
    def reader(self) -> Any:
        """Raises:
        UsageError: none is named, or an option does not suit it.
        """
        o = self.options
        if o.reader is None:
            raise UsageError("teacher hops needs the option reader", hint="{source: hops, reader: {source: ...}}")
        if o.task != LANGUAGE and (o.states or o.classes):
            raise UsageError(f"teacher hops: states and classes are options of task {LANGUAGE} (task={o.task})")
        if o.task == LANGUAGE and not o.classes:
            raise UsageError(f"teacher hops: a language model needs the names of the classes (task={LANGUAGE})")
        reader = open_teacher(o.reader, o.task)
        longest = getattr(reader, "max_length", None) or getattr(getattr(reader, "reads", None), "max_length", None)
        if longest and o.budget > longest:
            raise UsageError(
                f"teacher hops: budget must be at most what the reader takes (budget={o.budget}, tokens={longest})"
            )
        return reader

    @property
    def classes(self) -> list[str]:
        return list(self.options.classes or self.reader.classes)

    @property
    def identity(self) -> Mapping[str, Any]:
        o, lm = self.options, self.options.task == LANGUAGE
        how = {"states": o.states or "last", "classes": o.classes} if lm else {}
        return {"kind": "hops", "reader": dict(self.reader.identity), "hops": o.hops, "prompts": o.prompts, **how}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.reader.provenance, "hops": self.options.hops, "prompts": self.options.prompts}

    @property
    def spent(self) -> Mapping[str, float]:
        return self.reader.spent

    def layout(self, kind: str) -> dict[str, Any]:
        one = len(self.classes) if OF[kind] == "logits" else self.reader.layout("features")["features"][-1]
        return {kind: (self.options.hops + 1, one) if kind.startswith("hop_") else (one,)}

    # -- prompts ----------------------------------------------------------------------------------------------

    def prompts(self, graph: str, node: int) -> list[list[str]]:
        """Of one node: for each number of hops its prompts."""
        if graph not in self._prompters:
            classes = self.classes if self.options.task == LANGUAGE else None
            self._prompters[graph] = Prompter(
                open_graph(graph), self.options, tokens_of(self.reader.tokenizer), classes
            )
        return self._prompters[graph].of(node)

    def content_of(self, graph: str, node: int) -> bytes:
        """What the signals of a node are stored under: a digest of all of its prompts."""
        if (graph, node) not in self._known:
            said = json.dumps(self.prompts(graph, node), ensure_ascii=False).encode()
            self._known[graph, node] = hashlib.sha256(said).digest()
        return self._known[graph, node]

    # -- signals ----------------------------------------------------------------------------------------------

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        prompts = [self.prompts(e["graph"], e["node"]) for e in examples]
        wanted = [hops if kind.startswith("hop_") else hops[-1:] for hops in prompts]
        texts = sorted({text for hops in wanted for hop in hops for text in hop}, key=lambda text: (len(text), text))
        read = dict(zip(texts, self._features(texts) if OF[kind] == "features" else self._logits(texts)))
        made = np.asarray([[np.mean([read[t] for t in hop], 0) for hop in hops] for hops in wanted], np.float32)
        return {kind: made if kind.startswith("hop_") else made[:, 0]}

    def _asked(self, rows: list[dict[str, Any]], kind: str) -> tuple[list[Example], list[Any]]:
        examples = self.reader.task.preparer(None, self.reader)(rows)
        return examples, list(self.reader.signals(examples, kind)[kind])

    def _features(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.options.task != LANGUAGE:
            return self._asked([{"text": text} for text in texts], "features")[1]
        if self.options.states == "mean":
            return [states.mean(0) for states in self._asked([{"text": text} for text in texts], "features")[1]]
        # A response makes the prompt's last position one that is read: the response's first token is predicted from it.
        return [states[0] for states in self._asked(self._answered(texts, self.classes[:1]), "features")[1]]

    def _logits(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.options.task != LANGUAGE:
            return self._asked([{"text": text} for text in texts], "logits")[1]
        found = []
        for text in texts:  # logits over a whole vocabulary: not of many prompts at once
            scores = []
            for example, logits in zip(*self._asked(self._answered([text], self.classes), "logits")):
                x = np.asarray(logits, np.float64)
                x -= x.max(1, keepdims=True)
                x -= np.log(np.exp(x).sum(1, keepdims=True))
                scores.append(x[np.arange(len(x)), example["labels"]].sum())
            found.append(np.asarray(scores))
        return found

    @staticmethod
    def _answered(texts: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
        return [{"prompt": text, "response": name} for text in texts for name in classes]
