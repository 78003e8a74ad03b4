"""A small network of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdhub_tasks.classification.networks import Standardise
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 4
"""Groups of channels that are normalised together, at most."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(n for n in range(GROUPS, 0, -1) if channels % n == 0), channels)


class _Block(nn.Module):
    """Two 3 x 3 x 3 convolutions; the shortcut is a 1 x 1 x 1 one where shapes differ."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv3d(before, after, 3, stride, 1, bias=False)
        self.norm1 = _norm(after)
        self.conv2 = nn.Conv3d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _norm(after)
        self.shortcut = nn.Conv3d(before, after, 1, stride, bias=False) if stride > 1 or before != after else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Resnet3d(nn.Module):
    """A small ResNet of 3D convolutions, as R3D (arXiv:1711.11248). Stages from the second on halve time, height and
    width, and double the channels. Channels are normalised in groups, so that no statistics of a batch are kept: few
    clips are enough to fine-tune it.

    Args:
        shape: (frames, channels, height, width) of a clip.
        classes: how many.
        width: channels of the first stage.
        depths: blocks of each stage.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        width: int = 16,
        depths: Sequence[int] = (1, 1, 1),
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        self.scale = Standardise(mean, std)
        self.conv1, self.norm1 = nn.Conv3d(shape[1], width, 3, 1, 1, bias=False), _norm(width)
        blocks, before = [], width
        for stage, depth in enumerate(depths):
            for n in range(depth):
                blocks.append(_Block(before, width << stage, 2 if stage and not n else 1))
                before = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.scale(inputs["x"]).transpose(1, 2)
        tokens = self.blocks(F.relu(self.norm1(self.conv1(x)))).flatten(2).transpose(1, 2)
        features = tokens.mean(1)
        return {"logits": self.head(features), "features": features, "tokens": tokens}
