"""Small networks of our own that predict in a diffusion: (x, t, condition, guidance) -> what `Process.x0` reads."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod

import torch
from torch import Tensor, nn

SCALE = 1000.0
"""Of t before its sines are taken, as diffusion networks have it."""
WAVES = 64


def waves(t: Tensor, width: int = WAVES) -> Tensor:
    """Sines and cosines of t, (rows, width)."""
    half = width // 2
    angles = SCALE * t.float()[:, None] * torch.exp(-log(10000.0) * torch.arange(half, device=t.device) / half)
    return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        return h + self.outer(nn.functional.silu(self.inner(self.norm(h) + known)))


class DenoiserMlp(nn.Module):
    """Residual blocks over all pixels at once, for pictures of a few hundred.

    Args:
        shape: of a picture; width: of the blocks.
        conditions: classes that it knows, the null condition counted; 0: none.
        words: whether a condition is several of them, whose vectors are added; the last one stands for no word.
        guided: whether it is told the guidance that its picture shall have.
    """

    def __init__(
        self, shape: Sequence[int], width: int = 256, blocks: int = 4, conditions: int = 0, guided: bool = False,
        words: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.read = nn.Linear(prod(shape), width)
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        no_word = conditions - 1 if words else None
        self.condition = nn.Embedding(conditions, width, padding_idx=no_word) if conditions else None
        self.guidance = self.guidance_input(width) if guided else None
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.write = nn.LayerNorm(width), nn.Linear(width, prod(shape))
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    @staticmethod
    def guidance_input(width: int) -> nn.Module:
        """What adds nothing before it is trained."""
        made = nn.Linear(WAVES, width)
        nn.init.zeros_(made.weight)
        nn.init.zeros_(made.bias)
        return made

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        known = self.time(waves(t))
        if self.condition is not None:
            vectors = self.condition(condition)
            known = known + (vectors if condition.dim() == 1 else vectors.sum(1))
        if self.guidance is not None:
            known = known + self.guidance(waves(guidance / SCALE))
        h = self.read(x.flatten(1))
        for block in self.blocks:
            h = block(h, known)
        return self.write(self.norm(h)).reshape(x.shape)
