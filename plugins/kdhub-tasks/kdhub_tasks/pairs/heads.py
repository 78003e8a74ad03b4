"""What stands on the encoder of two towers: pooling, and heads that score two vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Pooling and head on the encoder. The options of the method `dse` describe each."""

    pooler: str = "concat_top_mean"
    include_cls: bool = False
    top_layers: int = 4
    embed_dim: int = -1
    head: str = "concat"
    fc_dims: tuple[int, ...] = (512,)
    symmetric: bool = False


def pool(states: Sequence[Tensor], mask: Tensor, pooler: str = "concat_top_mean", include_cls: bool = False) -> Tensor:
    """One vector a text, from its real tokens.

    Args:
        states: the last layers, each (texts, tokens, d).
        mask: (texts, tokens), 0 for padding.
        pooler: `cls`, the first token of the last layer; else `concat_top_MODE`, layers side by side, (texts, k d), or
            `average_top_MODE`, their mean, (texts, d). Modes: mean, sqrt_mean (sum / sqrt(n)), max.
        include_cls: whether the first token counts; [SEP] always does, and so does a first token without others. The
            vector of a text without tokens is 0.
    """
    if pooler == "cls":
        return states[-1][:, 0]
    how, _, mode = pooler.partition("_top_")
    x = torch.cat(list(states), -1) if how == "concat" else torch.stack(list(states)).mean(0)
    alone = x[:, 0] * mask[:, :1].to(x.dtype)
    if not include_cls and x.shape[1] > 1:
        x, mask = x[:, 1:], mask[:, 1:]
    real = mask.unsqueeze(-1).to(x.dtype)
    if mode == "max":
        pooled = x.masked_fill(real == 0, torch.finfo(x.dtype).min).amax(1)
    else:
        many = real.sum(1).clamp_min(1)
        pooled = (x * real).sum(1) / (many if mode == "mean" else many.sqrt())
    return torch.where(mask.any(1, keepdim=True), pooled, alone)


class ConcatHead(nn.Module):
    """Scores of [u ; v ; u*v ; |u-v|] by a small network.

    Args:
        width: of u and of v; scores: how many come out; hidden: widths between.
        symmetric: the mean over both orders of the texts, which the score then does not depend on.
    """

    def __init__(self, width: int, scores: int, hidden: Sequence[int] = (512,), symmetric: bool = False):
        super().__init__()
        dims = [4 * width, *hidden, scores]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))
        self.symmetric = symmetric

    def lift(self, by: Tensor) -> None:
        """Add this to the scores of all pairs."""
        with torch.no_grad():
            self.layers[-1].bias.add_(by)

    @staticmethod
    def features(u: Tensor, v: Tensor) -> Tensor:
        return torch.cat([u, v, u * v, (u - v).abs()], -1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """(n, scores) of u and v (n, width), row by row."""
        orders = [(u, v), (v, u)] if self.symmetric else [(u, v)]
        return torch.stack([self._further(self.layers[0](self.features(*order))) for order in orders]).mean(0)

    def _further(self, x: Tensor) -> Tensor:
        for layer in self.layers[1:]:
            x = layer(x.relu())
        return x

    def block(self, u: Tensor, v: Tensor) -> Tensor:
        """(a, b, scores) of all u (a, width) with all v (b, width).

        The first layer's products with u and with v alone are made once for each text; u*v times its part of the weight
        is v times that part times u. Only |u-v| has to be made for each pair.
        """
        first = self.layers[0]
        of_u, of_v, of_product, of_distance = first.weight.chunk(4, 1)
        orders = [(u @ of_u.T + first.bias, v @ of_v.T)]
        if self.symmetric:
            orders.append((u @ of_v.T + first.bias, v @ of_u.T))
        rows = []
        for i, one in enumerate(u):
            pairs = v @ (of_product * one).T + (v - one).abs() @ of_distance.T
            given = [self._further(pairs + mine[i] + theirs) for mine, theirs in orders]
            rows.append(torch.stack(given).mean(0))
        return torch.stack(rows)


class DotHead(nn.Module):
    """sum(u*v): symmetric, with nothing to train."""

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1, keepdim=True)

    def block(self, u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T).unsqueeze(-1)
