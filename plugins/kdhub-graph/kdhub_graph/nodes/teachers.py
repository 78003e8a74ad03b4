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
changes. A hop that adds no node has the prompt of the hop before, and so its state. A classifier's states and logits of
all hops are of one pass and stored together, so that a second method, whichever of these signals it learns from, asks
the reader nothing; a language model says how probable classes are in passes of their own, which are stored apart.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from kdhub_tasks.teachers import ModelTeacher
from pydantic import ConfigDict, Field

from kdhub import open_teacher
from kdhub.errors import TeacherError, UsageError
from kdhub.recipes.recipe import TextRef
from kdhub.rows import Example
from kdhub.teacher import Teacher
from kdhub_graph.nodes.graphs import open_graph
from kdhub_graph.nodes.prompts import Prompter, Prompting, tokens_of
from kdhub_graph.nodes.reading import first_of

logger = logging.getLogger("kdhub")

LANGUAGE = "causal-lm"
OF = {"hop_states": "features", "features": "features", "hop_logits": "logits", "logits": "logits"}
"""Signal of a node -> the reader's signal of a prompt."""
EVERY, OF_EVERY = "hops", ("hop_states", "hop_logits")
"""What is stored of a classifier, all that one pass of it gives, and its fields."""


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
        self._told: dict[Prompter, int] = {}  # how many of its crowded nodes

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
        if kind == EVERY:
            return {name: shape for part in OF_EVERY for name, shape in self.layout(part).items()}
        if kind not in OF:
            raise TeacherError(f"teacher hops gives {', '.join(OF)}, whole, not {kind!r}", hint="signals: {keep: all}")
        one = len(self.classes) if OF[kind] == "logits" else self.reader.layout("features")["features"][-1]
        return {kind: (self.options.hops + 1, one) if kind.startswith("hop_") else (one,)}

    def stored_in(self, kind: str) -> str:
        if kind in OF and isinstance(self.reader, ModelTeacher) and self.options.task != LANGUAGE:
            return EVERY
        return "hop_states" if kind == "features" else kind

    def part(self, kind: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        if kind in given:
            return {kind: given[kind]}
        return {kind: given[OF_EVERY[OF[kind] == "logits"]][:, -1]}

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

    def is_cut(self, graph: str, node: int) -> bool:
        """Whether a node's own text was cut to its share of the budget."""
        self.content_of(graph, node)
        return node in self._prompters[graph].cut

    def tell(self) -> None:
        """Say of which nodes, since the last time, neighbours were left out for want of room."""
        for prompter in self._prompters.values():
            if nodes := list(prompter.crowded)[self._told.get(prompter, 0) :]:
                self._told[prompter] = len(prompter.crowded)
                logger.info(
                    "%d nodes have more neighbours than prompts of %d tokens have room for, and the rest is left out "
                    "(nodes %s)", len(nodes), self.options.budget, first_of(nodes, len(nodes)),
                )  # fmt: skip

    # -- signals ----------------------------------------------------------------------------------------------

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        names = OF_EVERY if kind == EVERY else (kind,)
        by_hop = names[0].startswith("hop_")
        prompts = [self.prompts(e["graph"], e["node"]) for e in examples]
        wanted = [hops if by_hop else hops[-1:] for hops in prompts]
        texts = sorted({text for hops in wanted for hop in hops for text in hop}, key=lambda text: (len(text), text))
        given, made = self._read(texts, [OF[name] for name in names]), {}
        for name in names:
            of = dict(zip(texts, given[OF[name]]))
            each = np.asarray([[np.mean([of[t] for t in hop], 0) for hop in hops] for hops in wanted], np.float32)
            made[name] = each if by_hop else each[:, 0]
        return made

    def _read(self, texts: Sequence[str], kinds: Sequence[str]) -> Mapping[str, Sequence[np.ndarray]]:
        """The reader's signals of some prompts, by kind."""
        if self.options.task == LANGUAGE:
            return {kind: self._features(texts) if kind == "features" else self._logits(texts) for kind in kinds}
        examples = self.reader.task.preparer(None, self.reader)([{"text": text} for text in texts])
        if len(kinds) > 1:
            return self.reader.model.signals(examples, *kinds)
        return self.reader.signals(examples, *kinds)

    # -- of a language model ----------------------------------------------------------------------------------

    def _asked(self, rows: list[dict[str, Any]], kind: str) -> tuple[list[Example], list[Any]]:
        examples = self.reader.task.preparer(None, self.reader)(rows)
        return examples, list(self.reader.signals(examples, kind)[kind])

    def _features(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.options.states == "mean":
            return [states.mean(0) for states in self._asked([{"text": text} for text in texts], "features")[1]]
        # A response makes the prompt's last position one that is read: the response's first token is predicted from it.
        return [states[0] for states in self._asked(self._answered(texts, self.classes[:1]), "features")[1]]

    def _logits(self, texts: Sequence[str]) -> list[np.ndarray]:
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
