"""The network of a thought space: histories, items and rationales as vectors of length 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

IDS = 0.3
"""Share of an item's own embedding beside its text's."""


class ThoughtSpaceNetwork(nn.Module):
    """u = norm(f_u(items of the history)), v = norm(0.3 id + f_i(text)), r = norm(f_r(text of a rationale)).

    Args:
        items: how many; width: of the frozen text encoder, 0 for items by their ids alone.
        dim: of the space; ids: whether items have embeddings of their own.
        encoder: of histories, `gru` or `mean` (then linear).
        feature: whether rationales are a plain feature of the user instead of points of the space: the ablation.

    Attributes:
        tau: temperature of the logits; mix: share of the rationale in what ranks; nearest: whether that is the one
            nearest to the user, or else the first.
    """

    def __init__(
        self,
        items: int,
        width: int,
        *,
        dim: int,
        ids: bool,
        encoder: str,
        feature: bool,
        tau: float,
        mix: float,
        nearest: bool,
    ):
        super().__init__()
        self.ids = nn.Embedding(items, dim) if ids else None
        self.item = nn.Linear(width, dim) if width else None
        self.thought = nn.Linear(width, dim) if width else None
        self.user = nn.GRU(dim, dim, batch_first=True) if encoder == "gru" else nn.Linear(dim, dim)
        self.register_buffer("texts", torch.zeros(items, width))
        self.feature, self.tau, self.mix, self.nearest = feature, tau, mix, nearest

    def items(self) -> Tensor:
        """(items, dim)"""
        parts = [IDS * self.ids.weight] if self.ids is not None else []
        return normalize(sum(parts + ([self.item(self.texts)] if self.item is not None else [])), dim=-1)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """
        Args:
            batch: `history` (rows, length), numbers of items, -1 behind the last; with rationales `rationales` (rows,
                n, width) and `written` (rows, n), which there are.

        Returns:
            `user` (rows, dim), `item` (items, dim), `rationale` (rows, n, dim) or None, `chosen` (rows,) the rationale
            that ranks, -1 where there is none, and `logits` (rows, items).
        """
        v, history = self.items(), batch["history"]
        real = history >= 0
        u = self._users(v[history.clamp_min(0)] * real[..., None], real)
        given, r, chosen = batch.get("rationales"), None, torch.full_like(history[:, 0], -1)
        if given is None or self.thought is None:
            u = normalize(u, dim=-1)
            mixed = u
        elif self.feature:
            written = batch["written"][..., None]
            mean = (given * written).sum(1) / written.sum(1).clamp_min(1)
            mixed = u = normalize(u + self.thought(mean) * written.any(1), dim=-1)
        else:
            u, r = normalize(u, dim=-1), normalize(self.thought(given), dim=-1)
            some = batch["written"].any(1)
            near = selection({"user": u, "rationale": r}, batch["written"])
            best = near.argmax(1) if self.nearest else torch.zeros_like(history[:, 0])
            chosen = torch.where(some, best, chosen)
            mix = self.mix * some[:, None]
            mixed = (1 - mix) * u + mix * r[torch.arange(len(r), device=r.device), best]
        return {"user": u, "item": v, "rationale": r, "chosen": chosen, "logits": mixed @ v.T / self.tau}

    def _users(self, taken: Tensor, real: Tensor) -> Tensor:
        """(rows, dim) of (rows, length, dim), before they have length 1."""
        many = real.sum(1)
        if isinstance(self.user, nn.Linear):
            return self.user(taken.sum(1) / many.clamp_min(1)[:, None])
        states, _ = self.user(taken)
        return states[torch.arange(len(many), device=many.device), (many - 1).clamp_min(0)]


def selection(given: Mapping[str, Tensor], written: Tensor, labels: Tensor | None = None) -> Tensor:
    """g(user, rationale) = u r + r v of the next item, or u r alone where it is unknown: (rows, n), -inf where there is
    none.

    Args:
        given: `user`, `item` and `rationale` of a forward pass.
        labels: (rows,) the next items.
    """
    aim = given["user"] if labels is None else given["user"] + given["item"][labels]
    return (given["rationale"] @ aim[..., None])[..., 0].masked_fill(~written, -torch.inf)


class PopularityNetwork(nn.Module):
    """One logit an item, the same for all users."""

    def __init__(self, items: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(items))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"logits": self.bias + torch.zeros_like(batch["history"][:, :1], dtype=self.bias.dtype)}
