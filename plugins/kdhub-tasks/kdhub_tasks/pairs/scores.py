"""Scores of pairs: logits without the constant that may be added to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "np.ndarray", "torch.Tensor")


def scores(logits: Array) -> Array:
    """Scores of logits (n, classes): for two classes the second minus the first, (n, 1), on which a constant has no
    effect; for one or more than two the logits themselves."""
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits
