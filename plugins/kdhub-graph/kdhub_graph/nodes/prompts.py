"""Hop prompts: a node's text and those of its neighbourhood, breadth first, within a budget of tokens.

A prompt of hop k has what was read up to hop k, so that each is the beginning of the next. Neighbours are shown by the
beginning of their texts, never by a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UsageError
from kdhub_graph.nodes.graphs import Graph

INSTRUCTION = "Classify the node that the text describes into one of: {classes}.\n\n"
RESPONSE = "\n\nResponse: "
SPECIAL = 4
"""Tokens of a prompt that are kept free for the special ones of its reader."""


class Prompting(BaseModel):
    """How a neighbourhood is written."""

    model_config = ConfigDict(extra="forbid")
    hops: int = Field(2, ge=1, le=3, description="hops of the longest prompt; a node has one for 0, 1, ... of them")
    prompts: int = Field(1, ge=1, le=16, description="prompts of a node and hop, their neighbours in other orders")
    budget: int = Field(256, ge=16, description="tokens of a prompt at most")
    own_share: float = Field(0.6, gt=0, le=1, description="share of the budget that the node's own text takes at most")
    neighbour_words: int = Field(40, ge=1, description="words of a neighbour's text at most")


Count = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> how many tokens each has."""


def words_in(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def tokens_of(tokenizer: Any) -> Count:
    """What counts with a tokenizer of the transformers library."""

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    return count


class Prompter:
    """Prompts of the nodes of a graph.

    Args:
        count: the tokens that the budget is of.
        classes: of an instruction for a language model; None for readers that need none.

    Attributes:
        cut: nodes asked for whose own text is longer than its share of the budget, and was cut.
        crowded: those with neighbours that the budget has no room for, in the order asked.

    Raises:
        UsageError: the budget leaves no room for a text.
    """

    def __init__(self, graph: Graph, how: Prompting, count: Count = words_in, classes: Sequence[str] | None = None):
        self.graph, self.how, self.count = graph, how, count
        self.before = INSTRUCTION.format(classes=", ".join(classes)) if classes else ""
        self.after = RESPONSE if classes else ""
        taken = sum(count([self.before, self.after])) + max(count(classes), default=0) if classes else 0
        self.room = how.budget - SPECIAL - taken
        if self.room < SPECIAL:
            raise UsageError(
                f"hop prompts: budget must be above {taken + 2 * SPECIAL}, what instruction and answer take "
                f"(budget={how.budget})"
            )
        self._sizes: dict[str, int] = {}
        self.cut: set[int] = set()
        self.crowded: dict[int, None] = {}

    def of(self, node: int) -> list[list[str]]:
        """(hops + 1) lists of as many prompts as there are orders; one of a hop without nodes, or room, is the one of
        the hop before."""
        return [list(hop) for hop in zip(*(self._ordered(node, order) for order in range(self.how.prompts)))]

    def _ordered(self, node: int, order: int) -> list[str]:
        """One prompt a hop. The first order is the graph's; others are drawn."""
        draw = np.random.default_rng([order, node]) if order else None
        text = self._cut(whole := self.graph.text(node), round(self.how.own_share * self.room))
        if text != whole:
            self.cut.add(node)
        left, seen, level, found = self.room - self._size(text), {node}, [node], [text]
        for hop in range(1, self.how.hops + 1):
            fresh: list[int] = []
            for near in level:
                others = self.graph.neighbours(near)
                for other in (draw.permutation(others) if draw is not None else others).tolist():
                    if other in seen:
                        continue
                    seen.add(other)
                    words = self.graph.text(other).split()[: self.how.neighbour_words]
                    line = f"\nneighbour {hop}: {' '.join(words)}"
                    if not words or (size := self._size(line)) > left:
                        if words:
                            self.crowded[node] = None
                        if left < SPECIAL:
                            break
                        continue
                    text, left = text + line, left - size
                    fresh.append(other)
                if left < SPECIAL:
                    if any(other not in seen for one in level for other in self.graph.neighbours(one).tolist()):
                        self.crowded[node] = None
                    break
            level = fresh
            found.append(text)
        return [f"{self.before}{text}{self.after}" for text in found]

    def _size(self, text: str) -> int:
        if text not in self._sizes:
            self._sizes[text] = self.count([text])[0]
        return self._sizes[text]

    def _cut(self, text: str, room: int) -> str:
        """The beginning of a text that has room, by whole words."""
        while (size := self._size(text)) > room and " " in text:
            words = text.split(" ")
            text = " ".join(words[: max(1, min(len(words) - 1, len(words) * room // size))])
        return text
