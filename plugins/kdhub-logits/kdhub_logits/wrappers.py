"""Wrappers of this family's methods: logits that are scaled, and a head for what a teacher says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from kdhub_tasks.wrappers import Wrapper
from torch import Tensor, nn


def rescaled(logits: Tensor) -> Tensor:
    """Logits over their own deviation across classes (n - 1 in the denominator), at least 1e-6; (..., classes)."""
    return logits / logits.std(-1, keepdim=True).clamp_min(1e-6)


class Rescaled(Wrapper):
    """A network whose logits are divided by their deviation over the classes (arXiv:2211.03946)."""

    def __init__(self, network: nn.Module, *, classes: int):
        super().__init__(network)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = self.network(inputs)
        given["logits"] = rescaled(given["logits"].float())
        return given


class TwoHeads(Wrapper):
    """A network with a second linear head on its features, for what the teacher says (arXiv:2506.00910).

    `logits` are the logarithms of (1 - mix) softmax(labels) + mix softmax(teacher / beta).
    """

    takes_features = True

    def __init__(self, network: nn.Module, *, classes: int, features: int, mix: float = 0.5, beta: float = 1.0):
        super().__init__(network)
        self.head, self.mix, self.beta = nn.Linear(features, classes), mix, beta

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = self.network(inputs)
        of_teacher = self.head(given["features"])
        p, q = torch.softmax(given["logits"].float(), -1), torch.softmax(of_teacher.float() / self.beta, -1)
        mixed = ((1 - self.mix) * p + self.mix * q).clamp_min(1e-30).log()
        given.update(logits=mixed, of_labels=given["logits"], of_teacher=of_teacher)
        return given
