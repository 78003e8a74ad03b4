"""CSRNet (arXiv:1802.10062) at any width, as the counters of arXiv:2003.10120 have it.

A front of 3x3 convolutions and three pools, a back of dilated ones, and a 1x1 convolution to the density map, whose
cells are 8 x 8 pixels. Every pool rounds up (`ceil_mode`), so a map has ceil(pixels / 8) cells on each side.

Images of several sizes are run together, each as if it were alone: what lies beyond an image is made zero after every
layer, as the zeros that a convolution pads with. Layers are found by the names `front.N` and `back.N`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from kdhub_tasks.classification.networks import Standardise
from torch import Tensor, nn

from kdhub.errors import UsageError

POOL = "M"
FRONT = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512)
BACK = (512, 512, 512, 256, 128, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, by channel."""


class CSRNet(nn.Module):
    """Takes `image` (rows, 3, height, width) of 0 to 1 and `sizes` (rows, 2), the height and width of each image in it;
    gives `density`, the cells of all rows, one row after the other, each line by line.

    Args:
        front: widths of its convolutions, and `M` where it pools.
        back: widths of the dilated ones.
        scale: of the target: the last layer gives so many times the density.
    """

    def __init__(self, front: Sequence[int | str] = FRONT, back: Sequence[int] = BACK, scale: float = 1.0):
        super().__init__()
        self.target_scale = scale
        self.standardise = Standardise(*(torch.tensor(of)[:, None, None] for of in (MEAN, STD)))
        widths = [3, *(w for w in front if w != POOL)]
        self.front = nn.Sequential(*_layers(front, widths[0], 1))
        self.back = nn.Sequential(*_layers(back, widths[-1], 2))
        self.head = nn.Conv2d(back[-1], 1, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    @property
    def stride(self) -> int:
        """Pixels of a side of a cell."""
        return 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.front)

    @property
    def reach(self) -> int:
        """Pixels around a cell on which its value depends, at most."""
        reach, step = 0, 1
        for layer in (*self.front, *self.back):
            if isinstance(layer, nn.MaxPool2d):
                reach, step = reach + step, 2 * step
            elif isinstance(layer, nn.Conv2d):
                reach += layer.dilation[0] * step
        return reach

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, sizes = inputs["image"], inputs["sizes"]
        several = bool((sizes != torch.tensor(x.shape[2:], device=sizes.device)).any())
        x, step = self.standardise(x).to(self.head.weight.dtype), 1
        for layer in (nn.Identity(), *self.front, *self.back, self.head):
            x = layer(x)
            step *= 2 if isinstance(layer, nn.MaxPool2d) else 1
            if several:
                x = x * inside(x, -(-sizes // step))
        return {"density": flat(x / self.target_scale, -(-sizes // step))}


def _layers(widths: Sequence[Any], before: int, dilation: int) -> list[nn.Module]:
    made: list[nn.Module] = []
    for width in widths:
        if width == POOL:
            made.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        else:
            made += [nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
            before = width
    return made


def inside(maps: Tensor, sizes: Tensor) -> Tensor:
    """Which cells of maps (rows, channels, height, width) are those of their rows, by their `sizes` (rows, 2)."""
    lines, columns = (
        torch.arange(n, device=maps.device)[None] < sizes[:, i, None] for i, n in enumerate(maps.shape[2:])
    )
    return lines[:, None, :, None] & columns[:, None, None, :]


def alike(sizes: Iterable[Sequence[int]]) -> dict[tuple[int, int], list[int]]:
    """Height and width of images -> the rows that have them."""
    found: dict[tuple[int, int], list[int]] = {}
    for n, size in enumerate(sizes):
        found.setdefault(tuple(size), []).append(n)
    return found


def flat(maps: Tensor, sizes: Tensor) -> Tensor:
    """The cells of maps (rows, 1, height, width), one row after the other."""
    return maps[inside(maps, sizes)]


def unflat(cells: Tensor, sizes: Tensor) -> Tensor:
    """The maps of which `flat` gave the cells, with zeros beyond the smaller ones."""
    made = cells.new_zeros(len(sizes), 1, *sizes.amax(0).tolist())
    return made.masked_scatter(inside(made, sizes), cells)


def divided(settings: Mapping[str, Any], by: float) -> dict[str, Any]:
    """Settings of a network with every width divided, rounded to the nearest: 64, 128, 256, 512 by 3 are 21, 43, 85,
    171 (arXiv:2003.10120, its `model_student_vgg.py`).

    Raises:
        UsageError: the settings have no widths.
    """
    if not {"front", "back"} <= settings.keys():
        raise UsageError(
            "a network is divided by the widths in its settings, `front` and `back`, and this one has none"
        )
    less = lambda width: width if width == POOL else max(1, int(width / by + 0.5))  # noqa: E731
    return {**settings, **{part: [less(width) for width in settings[part]] for part in ("front", "back")}}
