"""The head of a critic, as a wrapper around a cross-encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from kdhub_tasks.wrappers import LazySignals, Wrapper
from torch import Tensor, nn

from kdhub_knowledge.commonsense.critic import bias_of


class CriticHead(Wrapper):
    """One score from the features, by a layer of GELU units: `logits` are 0 and the score. The head inside is not used.

    Args:
        hidden: units; prior: probability of the second class at which scores begin.
    """

    takes_features = True

    def __init__(self, network: nn.Module, *, classes: int, features: int, hidden: int = 512, prior: float = 0.77):
        super().__init__(network)
        last = nn.Linear(hidden, 1)
        nn.init.constant_(last.bias, bias_of(prior))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(features, hidden), nn.GELU(), nn.Dropout(0.1), last)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = self.network(inputs)
        score = self.head(given["features"].float())
        now = {**given, "logits": torch.cat([torch.zeros_like(score), score], -1)}
        return LazySignals(now, **getattr(given, "later", {}))
