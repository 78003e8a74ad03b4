"""A graph as models read it: arrays beside the rows (`kdhub.data.shared`), neighbourhoods, and batches of nodes.

indptr (n + 1,), indices    whose messages a node gets: `indices[indptr[v]:indptr[v + 1]]`, sorted
features (n, width)         float32, or uint8 for words that are there or not
columns                     bytes that say which features these are, where widths alone would not
text, text_at (n + 1,)      UTF-8 of all texts, one after the other; not where nodes have none
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch

from kdhub.data.shared import shared
from kdhub.files import home


class Graph:
    """One graph, opened once a process.

    Attributes:
        name: what rows name it by, a digest of its arrays.
    """

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray]):
        self.name, self.arrays = name, arrays
        self.indptr, self.indices, self.features = arrays["indptr"], arrays["indices"], arrays["features"]
        self._local = np.full(len(self), -1, np.int64)  # where a node stands in the batch that is being made

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def width(self) -> int:
        return self.features.shape[1]

    @cached_property
    def columns(self) -> str:
        """Digest of what the features are; "" where nothing is known but how many."""
        return f"{zlib.crc32(self.arrays['columns'].tobytes()):08x}" if "columns" in self.arrays else ""

    @cached_property
    def degrees(self) -> np.ndarray:
        return np.diff(self.indptr)

    def neighbours(self, node: int) -> np.ndarray:
        return np.asarray(self.indices[self.indptr[node] : self.indptr[node + 1]])

    def text(self, node: int) -> str:
        """A node's text; "" where it has none."""
        if "text" not in self.arrays:
            return ""
        start, stop = self.arrays["text_at"][node : node + 2]
        return self.arrays["text"][start:stop].tobytes().decode()

    @cached_property
    def _scale(self) -> np.ndarray:
        """(n,) 1 / sqrt(degree + 1)."""
        return 1 / np.sqrt(self.degrees + 1.0)

    # -- batches ----------------------------------------------------------------------------------------------

    @cached_property
    def whole(self) -> dict[str, torch.Tensor]:
        """All nodes and edges, in memory: see `around`."""
        every = np.arange(len(self))
        return self._batch(every, np.asarray(self.indices), np.repeat(every, self.degrees), None)

    def around(self, nodes: np.ndarray, fanouts: Sequence[int | None]) -> dict[str, torch.Tensor]:
        """Nodes with the neighbourhoods that a network of `len(fanouts)` layers reads for them.

        Args:
            nodes: different ones; they come first in the batch.
            fanouts: of each hop how many neighbours of a node are drawn, None for all. What is drawn follows from the
                nodes alone: a resumed run draws it again.

        Returns:
            x (n, width), edge_index (2, m), and `norm` (m + n,): the weights that graph convolution gives the edges and
            then each node itself, by degrees in the whole graph (those of drawn edges grow as others are left out).
        """
        draw = np.random.default_rng(zlib.crc32(np.ascontiguousarray(nodes, np.int64).tobytes()))
        local, found, count = self._local, [nodes], len(nodes)
        local[nodes] = np.arange(count)
        frontier, sources, targets, shares = nodes, [], [], []
        for fanout in fanouts:
            source, target = self._edges(frontier)
            share = np.ones(len(source))
            if fanout is not None and len(source):
                kept = _at_most(fanout, target, draw)
                share = (np.bincount(target) / np.maximum(np.bincount(target[kept], minlength=target.max() + 1), 1))[
                    target[kept]
                ]
                source, target = source[kept], target[kept]
            fresh = np.unique(source[local[source] < 0])
            local[fresh] = np.arange(count, count + len(fresh))
            sources.append(source), targets.append(local[frontier][target]), shares.append(share)
            found.append(fresh)
            frontier, count = fresh, count + len(fresh)
        every = np.concatenate(found)
        source = np.concatenate(sources) if sources else np.zeros(0, np.int64)
        made = self._batch(
            every, local[source], np.concatenate(targets or [source]), np.concatenate(shares or [source])
        )
        local[every] = -1
        return made

    def _edges(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the messages to some nodes come from, and the position among `nodes` of whom each is for."""
        starts, counts = self.indptr[nodes], self.degrees[nodes]
        target = np.repeat(np.arange(len(nodes)), counts)
        at = np.arange(len(target)) + np.repeat(starts - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return np.asarray(self.indices[at], np.int64), target

    def _batch(
        self, nodes: np.ndarray, source: np.ndarray, target: np.ndarray, share: np.ndarray | None
    ) -> dict[str, torch.Tensor]:
        scale = self._scale[nodes]
        norm = scale[source] * scale[target] * (1 if share is None else share)
        edges = np.stack([source, target]).astype(np.int64)
        x = np.asarray(self.features[nodes], np.float32)
        norm = np.concatenate([norm, scale**2]).astype(np.float32)
        return {"x": torch.from_numpy(x), "edge_index": torch.from_numpy(edges), "norm": torch.from_numpy(norm)}


def _at_most(many: int, target: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Which edges are kept when at most so many of a target are, drawn without replacement."""
    order = np.lexsort((draw.random(len(target)), target))
    counts = np.bincount(target)
    rank = np.arange(len(target)) - np.repeat(np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return np.sort(order[rank < many])


def open_graph(name: str) -> Graph:
    """The graph that a row names.

    Raises:
        DataError: its arrays are not here, or damaged.
    """
    return _opened(str(home()), name)


@lru_cache(8)
def _opened(_: str, name: str) -> Graph:
    return Graph(name, shared(name))
