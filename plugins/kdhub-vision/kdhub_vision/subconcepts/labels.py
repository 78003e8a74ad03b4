"""Sub-pseudo labels: what becomes of each pair of a weak label and a teacher's prediction (arXiv:2101.03713).

An item (a clip of a video, a sentence of a page) has the weak label w of its group, such as the word that the group was
found by, and the class t that a teacher predicts for the item itself. N[w, t] counts the items of each pair, and each
*cell* (w, t) gets a class, or none:

    agreement (w, w)      a class of its own: "swimming"
    a kept cell (w, t)    a sub-concept: "surfing, like swimming"
    the rest of w         one class, "surfing, rest", or dropped

Which cells are kept is the `reduction`. The baselines `weak` (w alone), `pseudo` (t alone) and `agree-only` are other
maps of the same kind. A map depends on N and the options alone, and never on the order of the items.

Reconstructed: the rules of all reductions; the paper's abstract has only that pairs are brought to a set of meaningful
labels. `semantic` clusters by class prototypes, the mean of the teacher's probabilities over the items of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import UsageError
from kdhub.method import MethodOptions

DROPPED = -1
Key = tuple[str, int, int]
"""What a class is made of: its kind, and w and t, or one of them, or the number of a cluster."""
ORDER = ("agree", "weak", "teacher", "cell", "off-teacher", "off-weak", "cluster", "rest")
"""Kinds of classes, in the order of a map."""


class Labelling(MethodOptions):
    """Which pairs of weak label and prediction share a label."""

    labels: Literal["spl", "weak", "pseudo", "agree-only"] = Field(
        "spl", description="of the pair; or, as baselines: of the query, of the teacher, of items where both agree"
    )
    reduction: Literal["none", "merge", "density", "semantic"] = Field(
        "density", description="all pairs; disagreement by one side; the most frequent pairs; clusters of pairs"
    )
    num_classes: int | None = Field(
        None, ge=3, description="classes of density and semantic without residual ones, K + 1 to K^2; 2K if unset"
    )
    merge_axis: Literal["teacher", "weak"] = Field("teacher", description="the side that merge keeps of disagreement")
    residual: Literal["merge_weak", "drop"] = Field(
        "merge_weak", description="what becomes of pairs that are not kept: one class a query, or left out"
    )
    min_count: int = Field(10, ge=1, description="items that a pair of density and semantic must have to be kept")
    teacher_conf_threshold: float = Field(
        0.0, ge=0, le=1, description="least probability of the teacher's class; items below it are residual"
    )


@dataclass(frozen=True)
class LabelMap:
    """Which label each pair has.

    Attributes:
        classes: the K of both sides.
        names: of the labels; none is without items.
        cells: (K, K) the label of a pair (w, t), `DROPPED` for none.
        unsure: (K,) the label of items of a query of which the teacher is not sure enough.
        counts: (K, K) N, without unsure items; unsure_counts: (K,) these.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    cells: np.ndarray
    unsure: np.ndarray
    counts: np.ndarray
    unsure_counts: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(labels,) items of each."""
        labels = np.concatenate([self.cells.ravel(), self.unsure])
        items = np.concatenate([self.counts.ravel(), self.unsure_counts])
        kept = labels != DROPPED
        return np.bincount(labels[kept], items[kept], len(self.names)).astype(int)

    def __call__(self, weak: np.ndarray, predicted: np.ndarray, sure: np.ndarray | bool = True) -> np.ndarray:
        """(items,) labels of items, `DROPPED` for none and for those without a weak label (-1)."""
        found = np.where(sure, self.cells[weak, predicted], self.unsure[weak])
        return np.where(weak < 0, DROPPED, found)

    def to_dict(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes), "labels": list(self.names), "sizes": self.sizes.tolist(),
            "cells": self.cells.tolist(), "unsure": self.unsure.tolist(),
            "counts": self.counts.tolist(), "unsure_counts": self.unsure_counts.tolist(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> LabelMap:
        arrays = (np.asarray(given[name]) for name in ("cells", "unsure", "counts", "unsure_counts"))
        return cls(tuple(given["classes"]), tuple(given["labels"]), *arrays)


def raw_labels(weak: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """s = w K + t."""
    return weak * classes + predicted


def counted(weak: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) N[w, t]."""
    return np.bincount(raw_labels(weak, predicted, classes), minlength=classes**2).reshape(classes, classes)


def label_map(
    counts: np.ndarray,
    classes: Sequence[str],
    how: Labelling | None = None,
    unsure: np.ndarray | None = None,
    prototypes: np.ndarray | None = None,
) -> LabelMap:
    """The labels of all pairs.

    Args:
        counts: (K, K) N. unsure: (K,) items of each query that the teacher is not sure of.
        prototypes: (K, width) of classes, for `semantic`.

    Raises:
        UsageError: `num_classes` is out of its range, or no item has a label.
    """
    k, how = len(classes), how or Labelling()
    unsure = np.zeros(k, int) if unsure is None else np.asarray(unsure)
    rest = how.labels == "spl" and how.residual == "merge_weak"
    keys: dict[tuple[int, int], Key] = {}
    for (w, t), items in np.ndenumerate(np.asarray(counts)):
        if items and (key := _key(w, t, how)):
            keys[w, t] = key
    if how.labels == "spl" and how.reduction in ("density", "semantic"):
        keys |= _kept(counts, how, prototypes)
    if rest:
        keys |= {(w, t): ("rest", w, -1) for w, t in np.argwhere(counts).tolist() if (w, t) not in keys}
    of_unsure = {w: key for w in np.flatnonzero(unsure).tolist() if (key := _of_unsure(w, how, rest))}
    found = sorted({*keys.values(), *of_unsure.values()}, key=lambda key: (ORDER.index(key[0]), *key[1:]))
    if not found:
        raise UsageError(
            f"no item has a label (labels={how.labels}, residual={how.residual}): queries and teacher never agree, or "
            "the teacher is never sure",
            hint="lower teacher_conf_threshold, or keep the residual labels",
        )
    at = {key: n for n, key in enumerate(found)}
    cells, others = np.full((k, k), DROPPED), np.full(k, DROPPED)
    for cell, key in keys.items():
        cells[cell] = at[key]
    for w, key in of_unsure.items():
        others[w] = at[key]
    names = tuple(_name(key, classes) for key in found)
    return LabelMap(tuple(classes), names, cells, others, np.asarray(counts), unsure)


def _key(w: int, t: int, how: Labelling) -> Key | None:
    """The class of a pair, where that does not depend on how many others there are."""
    if how.labels == "weak":
        return ("weak", w, -1)
    if how.labels == "pseudo":
        return ("teacher", -1, t)
    if w == t:
        return ("agree", w, w)
    if how.labels == "agree-only" or how.reduction in ("density", "semantic"):
        return None
    if how.reduction == "none":
        return ("cell", w, t)
    return ("off-teacher", -1, t) if how.merge_axis == "teacher" else ("off-weak", w, -1)


def _of_unsure(w: int, how: Labelling, rest: bool) -> Key | None:
    if how.labels == "weak":
        return ("weak", w, -1)
    return ("rest", w, -1) if rest else None


def _kept(counts: np.ndarray, how: Labelling, prototypes: np.ndarray | None) -> dict[tuple[int, int], Key]:
    """The cells off the diagonal that have classes of their own, or those of clusters."""
    k = len(counts)
    wanted = how.num_classes or 2 * k
    if not k < wanted <= k * k and how.num_classes:
        raise UsageError(f"num_classes must be {k + 1} to {k * k} for {k} classes (num_classes={wanted})")
    cells = [(w, t) for w, t in np.argwhere(counts >= how.min_count).tolist() if w != t]
    if how.reduction == "density":
        # `cells` are in the order of s, by which sorting breaks ties.
        most = sorted(cells, key=lambda cell: -counts[cell])[: wanted - k]
        return {cell: ("cell", *cell) for cell in most}
    if len(cells) <= wanted - k:
        return {cell: ("cell", *cell) for cell in cells}
    from sklearn.cluster import AgglomerativeClustering

    points = np.eye(k) if prototypes is None else prototypes
    both = np.stack([np.concatenate([points[w], points[t]]) for w, t in cells])
    clusters = AgglomerativeClustering(wanted - k).fit_predict(both)
    first = {c: int(np.argmax(clusters == c)) for c in set(clusters.tolist())}  # numbered as their first cells stand
    numbers = {c: n for n, c in enumerate(sorted(first, key=first.__getitem__))}
    return {cell: ("cluster", numbers[c], -1) for cell, c in zip(cells, clusters.tolist())}


def _name(key: Key, classes: Sequence[str]) -> str:
    kind, w, t = key
    if kind == "cluster":
        return f"cluster {w + 1}"
    if kind == "cell":
        return f"{classes[w]}, like {classes[t]}"
    more = {"off-teacher": ", off query", "off-weak": ", unlike", "rest": ", rest"}.get(kind, "")
    return classes[max(w, t)] + more


def labelled(
    weak: np.ndarray, logits: np.ndarray, classes: Sequence[str], how: Labelling
) -> tuple[LabelMap, np.ndarray]:
    """The map of a collection, and the label of each of its items.

    Args:
        weak: (items,) positions of weak labels, -1 for none.
        logits: (items, K) of the teacher.
    """
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    predicted, known = logits.argmax(1), weak >= 0
    sure = shares.max(1) >= how.teacher_conf_threshold
    k, some = len(classes), known & sure
    counts = counted(weak[some], predicted[some], k)
    prototypes = np.eye(k)
    for t in np.unique(predicted[some]):
        prototypes[t] = shares[some & (predicted == t)].mean(0)
    unsure = np.bincount(weak[known & ~sure], minlength=k)
    made = label_map(counts, classes, how, unsure, prototypes)
    return made, made(weak, predicted, sure)
