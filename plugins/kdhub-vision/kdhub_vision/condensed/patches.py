"""Crops: random ones of a batch, the most telling ones of each class (RDED, arXiv:2312.03526), and tiles of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdhub.errors import DataError


def crops(x: Tensor, boxes: Tensor, side: tuple[int, int] | None = None) -> Tensor:
    """A crop of each image, brought to a size by bilinear interpolation.

    Args:
        x: (n, height, width) or (n, channels, height, width).
        boxes: (n, 4) left, top, width and height, as shares of the image.
        side: (height, width) of the crops; those of the images if None.
    """
    grey = x.dim() == 3
    x = x.unsqueeze(1) if grey else x
    left, top, wide, high = boxes.to(x).unbind(1)
    zero = torch.zeros_like(left)
    theta = torch.stack(
        [torch.stack([wide, zero, 2 * left + wide - 1], 1), torch.stack([zero, high, 2 * top + high - 1], 1)], 1
    )
    grid = F.affine_grid(theta, (len(x), x.shape[1], *(side or x.shape[-2:])), align_corners=False)
    made = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return made[:, 0] if grey else made


def random_boxes(n: int, least: float, rng: np.random.Generator, ratio: float = 4 / 3) -> Tensor:
    """(n, 4) boxes that cover a share of `least` to 1 of the image, of proportions up to `ratio`, anywhere in it."""
    area, proportion = rng.uniform(least, 1, n), np.exp(rng.uniform(-np.log(ratio), np.log(ratio), n))
    wide, high = np.minimum(np.sqrt(area * proportion), 1), np.minimum(np.sqrt(area / proportion), 1)
    left, top = rng.uniform(size=n) * (1 - wide), rng.uniform(size=n) * (1 - high)
    return torch.from_numpy(np.stack([left, top, wide, high], 1)).float()


def cut_mix(x: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A rectangle of each image from another one of the batch, and targets mixed by its share (arXiv:1905.04899)."""
    height, width = x.shape[-2:]
    cut = np.sqrt(1 - rng.uniform())
    y, z = rng.integers(height), rng.integers(width)
    rows = slice(max(0, y - int(height * cut) // 2), min(height, y + int(height * cut) // 2))
    columns = slice(max(0, z - int(width * cut) // 2), min(width, z + int(width * cut) // 2))
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    mixed = x.clone()
    mixed[..., rows, columns] = x[other][..., rows, columns]
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, (1 - share) * targets + share * targets[other]


def padded(x: Tensor, side: tuple[int, int]) -> Tensor:
    """In the middle of images of a size, black around."""
    over = [side[0] - x.shape[-2], side[1] - x.shape[-1]]
    return F.pad(x, (over[1] // 2, over[1] - over[1] // 2, over[0] // 2, over[0] - over[0] // 2))


def best_crops(
    x: Tensor, label: int, per_image: int, keep: int, factor: int, least: float,
    score: Callable[[Tensor, Tensor], Tensor], rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of the images of one class: which crop of each loses least, and of these the `keep` that lose least.

    Args:
        x: all images of the class. per_image: crops of each.
        score: (images, labels) -> the cross-entropy of each, of images padded to the size of `x`.

    Returns:
        (keep,) numbers of images, best first, and (keep, 4) boxes.
    """
    side = tuple(n // factor for n in x.shape[-2:])
    boxes = torch.stack([random_boxes(len(x), least, rng, 1.0) for _ in range(per_image)])
    labels = torch.full((len(x),), label)
    losses = torch.stack([score(padded(crops(x, each, side), x.shape[-2:]), labels) for each in boxes])
    best, which = losses.min(0)
    chosen = best.argsort(stable=True)[:keep]
    return chosen, boxes[which[chosen], chosen]


def tiled(patches: Tensor, factor: int, side: tuple[int, int]) -> Tensor:
    """(n, ..., height, width) images of factor x factor patches each, from (n factor^2, ..., h, w)."""
    grid = patches.reshape(-1, factor, factor, *patches.shape[1:])
    rows = torch.cat([grid[:, :, column] for column in range(factor)], -1)
    made = torch.cat([rows[:, row] for row in range(factor)], -2)
    return made if made.shape[-2:] == side else resized(made, side)


def resized(x: Tensor, side: Sequence[int]) -> Tensor:
    """Bilinear, of the mean of neighbours where it gets smaller."""
    grey = x.dim() == 3
    made = F.interpolate(x.unsqueeze(1) if grey else x, tuple(side), mode="bilinear", antialias=True)
    return made[:, 0] if grey else made


def updated(
    embed: Callable[[Tensor], Tensor], whole: Tensor, side: tuple[int, int], steps: int, lr: float = 0.01,
    down: Callable[[Tensor], Tensor] | None = None, up: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, tuple[float, float]]:  # fmt: skip
    """Small patches whose pixels are moved so that, brought to full size, the encoder sees what it sees in the large
    ones: MSE(E(up(q)), E(p)) by Adam, within 0 to 1.

    Args:
        whole: p, patches in the resolution that they had, at the encoder's size.
        side: of q.

    Returns:
        q, and the error before the first step and after the last.
    """
    up = up or (lambda q: resized(q, whole.shape[-2:]))
    q = (down or (lambda p: resized(p, side)))(whole).clone().requires_grad_(True)
    with torch.no_grad():
        aim = embed(whole)
    optimiser, errors = torch.optim.Adam([q], lr), list[float]()
    with torch.enable_grad():
        for step in range(steps + 1):
            error = F.mse_loss(embed(up(q)), aim)
            errors.append(error.item())
            if step < steps:
                optimiser.zero_grad()
                error.backward()
                optimiser.step()
                with torch.no_grad():
                    q.clamp_(0, 1)
    return q.detach(), (errors[0], errors[-1])


def enough(counts: Sequence[int], classes: Sequence[str], wanted: int, why: str) -> None:
    """
    Raises:
        DataError: a class has fewer images than are wanted of it.
    """
    short = [f"{name} ({many})" for name, many in zip(classes, counts) if many < wanted]
    if short:
        raise DataError(
            f"{len(short)} of {len(classes)} classes have fewer images than the {wanted} that are wanted of each "
            f"({why}): {', '.join(short[:6])}",
            hint="lower ipc or factor, or name more rows",
        )
