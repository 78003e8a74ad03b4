"""Mixtures of experts: a gate chooses some of several feed-forward networks for each token, and a small vision
transformer whose blocks have one each (V-MoE, arXiv:2106.05974; the plain gate of fastmoe, without a capacity).

A network with such layers gives two more signals, both (batch, layers, experts): `experts`, the share of a row's
choices that each expert has, and `gates`, the mean probability that the gate gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from kdhub_tasks.classification.networks import Vit
from torch import Tensor, nn
from torch.nn import functional as F

USAGE, GATES = "experts", "gates"


class Experts(nn.Module):
    """y(t) = sum over the `top` most probable experts e of g_e(t) E_e(t), where g is the softmax over those alone.

    Args:
        width: of a token; hidden: of an expert's hidden layer.
        experts: how many; top: how many of them a token goes to.

    Attributes:
        seen: of the last batch, the shares of choices and the gate's probabilities, (batch, experts) each.
    """

    def __init__(self, width: int, hidden: int, experts: int, top: int):
        super().__init__()
        self.gate, self.top = nn.Linear(width, experts), top
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.gate(tokens)
        best, chosen = logits.topk(self.top, -1)
        weights = best.softmax(-1)
        made = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            at, rank = (chosen == number).nonzero(as_tuple=True)
            given = weights[at, rank, None] * expert(tokens[at])
            made = made.index_add(0, at, given.to(made.dtype))
        rows = len(x)
        used = F.one_hot(chosen, len(self.experts)).float().sum(1) / self.top
        self.seen = (
            used.reshape(rows, -1, used.shape[-1]).mean(1),
            logits.softmax(-1).reshape(rows, -1, used.shape[-1]).mean(1),
        )
        return made.reshape(x.shape)


def expert_signals(network: nn.Module) -> dict[str, Tensor]:
    """`experts` and `gates` of the batch that a network has just seen; nothing of one without experts."""
    layers = [part for part in network.modules() if isinstance(part, Experts) and part.seen is not None]
    seen = [layer.seen for layer in layers]
    for layer in layers:
        layer.seen = None  # a graph that nobody else needs
    return dict(zip((USAGE, GATES), (torch.stack(each, 1) for each in zip(*seen)))) if seen else {}


def balance_loss(usage: Tensor, gates: Tensor) -> Tensor:
    """experts x sum_e f_e P_e, mean over layers: 1 where all are used alike (eq. 4 of arXiv:2101.03961).

    Args:
        usage, gates: (batch, layers, experts), see above; f and P are their means over the batch.
    """
    return usage.shape[-1] * (usage.mean(0) * gates.mean(0)).sum(-1).mean()


class _Block(nn.Module):
    """Attention and experts, each after a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, experts: int, top: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.experts = Experts(width, 2 * width, experts, top)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.experts(self.norm2(x))


class MoeVit(Vit):
    """A small vision transformer all of whose blocks are mixtures of experts.

    Args:
        experts: of each block; top: how many of them a token goes to. For the others see `Vit`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        patch: int = 2,
        width: int = 32,
        layers: int = 4,
        heads: int = 4,
        experts: int = 8,
        top: int = 2,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__(shape, classes, patch, width, 1, heads, mean, std)
        self.layers = nn.ModuleList(_Block(width, heads, experts, top) for _ in range(layers))

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = self.embedded(inputs)
        for block in self.layers:
            state = block(state)
        return {**self.answered(state), **expert_signals(self)}
