"""Kernel machines: what self-distillation fits in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from kdhub_tasks.classification.students import network
from torch import Tensor, nn

if TYPE_CHECKING:
    from kdhub_tasks.classification.model import NetworkClassifier

    from kdhub.student import BuildContext


class KernelRidge(nn.Module):
    """Scores that are linear in a kernel against stored inputs: offset + k(x) coefficients.

    Args:
        rows: stored inputs.
        kernel: `rbf`, exp(-gamma |x - x'|^2), or `linear`, x . x'.
        gamma: of the RBF kernel.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        rows: int = 1,
        kernel: str = "rbf",
        gamma: float = 1.0,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        self.kernel, self.gamma = kernel, gamma
        self.register_buffer("support", torch.zeros(rows, prod(shape), dtype=torch.float64))
        self.coefficients = nn.Parameter(torch.zeros(rows, classes, dtype=torch.float64))
        self.register_buffer("offset", torch.full((classes,), 1 / classes, dtype=torch.float64))

    def similarity(self, x: Tensor) -> Tensor:
        """(batch, rows) of inputs of any shape."""
        x = x.flatten(1).double()
        products = x @ self.support.T
        if self.kernel == "linear":
            return products
        d2 = x.square().sum(1, keepdim=True) + self.support.square().sum(1) - 2 * products
        return (-self.gamma * d2.clamp_min(0)).exp()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Under a mixed precision the sums over thousands of rows would be worth nothing.
        with torch.autocast(inputs["x"].device.type, enabled=False):
            scores = self.offset + self.similarity(inputs["x"]) @ self.coefficients
        return {"logits": scores.float(), "features": inputs["x"].flatten(1)}


def kernel(argument: str, context: BuildContext) -> NetworkClassifier:
    """A kernel machine without rows; the method that fits it gives it some."""
    return network(context, {"network": "kernel"}, "kernel machine")
