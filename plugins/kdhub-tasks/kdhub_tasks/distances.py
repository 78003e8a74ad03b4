"""Distances between features and attention maps, and which layers of two models are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdhub.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

LOWEST = -1e30
"""Stands for a logit of -inf in differences."""


def feature_distance(student: Tensor, teacher: Tensor, distance: str = "mse") -> Tensor:
    """Of each row: `mse` |s - t|^2 / d, `l1` |s - t|_1 / d, `cosine` 1 - cos. Features are (..., d)."""
    from torch.nn.functional import cosine_similarity

    if distance == "cosine":
        return 1 - cosine_similarity(student, teacher, dim=-1)
    gap = student - teacher
    return (gap.square() if distance == "mse" else gap.abs()).mean(-1)


def attention_distance(
    student: Tensor,
    teacher: Tensor,
    distance: str = "mse",
    queries: float | None = None,
    weights: float | None = None,
) -> Tensor:
    """Of attention maps: `mse`, `l1` of each weight, mean; `kl` KL(teacher || student) of each query, mean.

    Args:
        student, teacher: (weights, layers), the weights of a query one after the other; those of each sum to 1.
        queries, weights: of one layer, that the means are over; those here if None.
    """
    import torch

    if distance != "kl":
        return feature_distance(student, teacher, distance).sum() / (weights or len(student))
    apart = torch.xlogy(teacher, teacher) - torch.xlogy(teacher, student.clamp_min(1e-12))
    return apart.sum() / (queries * teacher.shape[1] if queries else teacher.sum())  # the sum of a query's weights is 1


def layer_pairs(student: int, teacher: int, layer_map: str | Sequence[int] = "uniform") -> list[tuple[int, int]]:
    """Layers that are compared, student's and teacher's, counted from 1: `uniform` l and round(l L_t / L_s), `last` the
    last of both, or the teacher's for each of the student's.

    Raises:
        UsageError: other layers than there are.
    """
    if layer_map == "last":
        return [(student, teacher)]
    if layer_map == "uniform":
        return [(layer, max(1, round(layer * teacher / student))) for layer in range(1, student + 1)]
    if len(layer_map) != student or max(layer_map) > teacher:
        raise UsageError(
            f"layer_map {list(layer_map)}: the student has {student} layers, the teacher {teacher}",
            hint="a list has one of the teacher's layers, counted from 1, for each of the student's",
        )
    return list(enumerate(layer_map, 1))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) of (n, d) and (m, d); the gradient is finite also where two are equal."""
    return (a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * a @ b.transpose(-1, -2)).clamp_min(0)
