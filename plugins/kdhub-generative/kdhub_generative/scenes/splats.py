"""A rasteriser of 3D Gaussians in plain PyTorch, for any number of channels (arXiv:2308.04079, arXiv:2312.03203).

A Gaussian with centre x, rotation R and scales S is projected by a camera with rotation W and translation t:

    (X, Y, Z) = W x + t        mean = (fx X/Z + cx, fy Y/Z + cy)
    Sigma' = J W R S S^T R^T W^T J^T + 0.3 I        J = [[fx/Z, 0, -fx X/Z^2], [0, fy/Z, -fy Y/Z^2]]

and composited nearest first, at the centre d of each pixel (column + 0.5, row + 0.5):

    a_i = min(0.99, o_i exp(-d^T Sigma'^-1 d / 2))        left out below 1/255
    T_i = prod_(j<i) (1 - a_j)        until it would fall below 1e-4        w_i = a_i T_i
    C = sum w_i c_i + T_end background        F = sum w_i f_i

Z at most 0.2 is dropped; within J alone, X/Z and Y/Z stay within 1.3 tan(half the field of view). An orthographic
camera has no division by Z.

Each (pixel, Gaussian) pair that counts is visited once: the exact columns of each ellipse in each row, nearest
Gaussian first, sorted by pixel. Time and memory follow these pairs, not pixels x Gaussians, and the sums over them are
`embedding_bag`s, forward and backward, so that channels without a gradient to geometry cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from kdhub.errors import ShapeError, UnavailableError

NEAR = 0.2
BLUR = 0.3
LEAST, MOST, LAST = 1 / 255, 0.99, 1e-4
"""Of an alpha, and of the light that is left."""
BESIDE = 1.3
"""How far beyond the picture's edge the derivative of the projection follows a Gaussian."""
AT_ONCE = 16
"""Channels whose products with the gradient are held for all pairs."""


@dataclass
class Render:
    """A view of Gaussians.

    Attributes:
        image: (height, width, channels), background included. alpha: (height, width), 0 to 1.
        features: (height, width, channels) of what was asked for without a gradient to geometry; None if nothing.
        means2d: (n, 2) where the Gaussians are, pixels; `visible`: (n,), whether they are in some pixel.
    """

    image: Tensor
    alpha: Tensor
    features: Tensor | None
    means2d: Tensor
    visible: Tensor


def rotations(quats: Tensor) -> Tensor:
    """(n, 3, 3) of quaternions (w, x, y, z) of any length."""
    w, x, y, z = normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
    orthographic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where Gaussians are in a picture.

    Args:
        means: (n, 3); quats: (n, 4); scales: (n, 3) standard deviations; viewmat: (4, 4) world to camera, OpenCV axes;
        K: (3, 3) pixels.

    Returns:
        means (n, 2) in pixels, conics (n, 3), the entries xx, xy and yy of the inverse covariance, and depths (n,).
    """
    W = viewmat[:3, :3]
    X, Y, Z = (at := means @ W.T + viewmat[:3, 3]).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    zero = torch.zeros_like(Z)
    if orthographic:
        where = torch.stack([fx * X + cx, fy * Y + cy], -1)
        J = torch.stack([fx + zero, zero, zero, zero, fy + zero, zero], -1).reshape(-1, 2, 3)
    else:
        Z = torch.where(Z > NEAR, Z, 1.0)  # what is not seen must not divide by zero
        x, y = X / Z, Y / Z
        where = torch.stack([fx * x + cx, fy * y + cy], -1)
        wide, high = BESIDE * width / (2 * fx), BESIDE * height / (2 * fy)
        x, y = torch.minimum(torch.maximum(x, -wide), wide), torch.minimum(torch.maximum(y, -high), high)
        J = torch.stack([fx / Z, zero, -fx * x / Z, zero, fy / Z, -fy * y / Z], -1).reshape(-1, 2, 3)
    half = J @ W @ (rotations(quats) * scales[:, None])
    cov = half @ half.mT
    xx, xy, yy = cov[:, 0, 0] + BLUR, cov[:, 0, 1], cov[:, 1, 1] + BLUR
    conics = torch.stack([yy, -xy, xx], -1) / (xx * yy - xy * xy)[:, None]
    return where, conics, at[:, 2]


@dataclass
class Pairs:
    """The (pixel, Gaussian) pairs of a view, by pixel, nearest first. Gaussians are numbered by their distance.

    Attributes:
        of, pixel: Gaussian and pixel of each. starts: (pixels,) the first of each pixel.
        order: where each stands in that order, one Gaussian after the other; firsts: (n,) the first there of each.
    """

    of: Tensor
    pixel: Tensor
    starts: Tensor
    order: Tensor
    firsts: Tensor
    width: int

    def before(self, sums: Tensor) -> Tensor:
        """Of cumulative sums over all pairs what came before each pixel, for each pair."""
        return torch.cat([sums.new_zeros(1), sums])[self.starts[self.pixel]]

    def by_gaussian(self, values: Tensor) -> Tensor:
        """(n, k) sums over the pairs of each Gaussian, of values (pairs, k)."""
        return embedding_bag(self.order, values, self.firsts, mode="sum")


def pairs_of(means2d: Tensor, conics: Tensor, opacities: Tensor, width: int, height: int) -> Pairs:
    """The pairs of Gaussians, nearest first, with an alpha of at least 1/255."""
    a, b, c = conics.double().unbind(-1)
    x, y = means2d.double().unbind(-1)
    reach = 2 * torch.log(opacities.double() / LEAST)  # of the quadratic form
    # The rows of each ellipse, then the columns of each row.
    half = (reach * a / (a * c - b * b)).sqrt()
    g, row, _ = _spans(y - half, y + half, height)
    dy = row + 0.5 - y[g]
    half = ((b[g] * dy).square() - a[g] * (c[g] * dy * dy - reach[g])).clamp(min=0).sqrt() / a[g]
    middle = x[g] - b[g] * dy / a[g]
    span, column, many = _spans(middle - half, middle + half, width)
    of, pixel = g[span], row[span] * width + column
    if width * height <= 2**16:  # sorted in linear time, on CPUs
        _, by_pixel = torch.sort((pixel - 2**15).short(), stable=True)
    else:
        _, by_pixel = torch.sort(pixel, stable=True)
    order = torch.empty_like(by_pixel)
    order[by_pixel] = torch.arange(len(by_pixel), device=by_pixel.device)
    starts, firsts = (n.cumsum(0) - n for n in (_count(pixel, width * height), _count(of, len(a))))
    return Pairs(of[by_pixel], pixel[by_pixel], starts, order, firsts, width)


def _spans(low: Tensor, high: Tensor, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """The whole numbers n from 0 below `end` with low <= n + 0.5 <= high: of which span each is, itself, and how many
    there are of each span."""
    first = (low - 0.5).ceil().clamp(0, end).long()
    many = ((high - 0.5).floor().clamp(-1, end - 1).long() - first + 1).clamp(min=0)
    of = torch.repeat_interleave(torch.arange(len(many), device=many.device), many)
    return of, torch.arange(len(of), device=many.device) - (many.cumsum(0) - many - first)[of], many


def _count(numbers: Tensor, end: int) -> Tensor:
    return torch.bincount(numbers, minlength=end)


class _Weights(torch.autograd.Function):
    """w of each pair, and T_end of each pixel. Sums over pixels are in float64."""

    @staticmethod
    def forward(ctx: Any, means2d: Tensor, conics: Tensor, opacities: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        of, pixel = pairs.of, pairs.pixel
        dx = (pixel % pairs.width + 0.5).to(means2d.dtype) - means2d[:, 0][of]
        dy = (pixel // pairs.width + 0.5).to(means2d.dtype) - means2d[:, 1][of]
        a, b, c = (conics[:, n][of] for n in range(3))
        falloff = torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        raw = opacities[of] * falloff
        alpha = raw.clamp(max=MOST)
        logs = torch.log1p(-alpha.double())
        sums = logs.cumsum(0)
        left = torch.exp(sums - pairs.before(sums))  # after each pair
        lit = left >= LAST
        T = torch.where(lit, left / (1 - alpha.double()), 0.0)
        sums = torch.where(lit, logs, 0.0).cumsum(0)
        end = torch.exp(torch.diff(torch.cat([sums.new_zeros(1), sums])[_edges(pairs)]))
        weights = alpha * T.to(alpha.dtype)
        ctx.save_for_backward(dx, dy, a, b, c, falloff, alpha, T, weights, end, raw < MOST)
        ctx.pairs = pairs
        return weights, end.to(alpha.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_end: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy, a, b, c, falloff, alpha, T, weights, end, free = ctx.saved_tensors
        pairs = ctx.pairs
        # dL/da_i = T_i g_i - (sum_(j>i) w_j g_j + T_end g_end) / (1 - a_i), for the pairs that are lit.
        sums = (weights.double() * grad).cumsum(0)
        totals = torch.cat([sums.new_zeros(1), sums])[_edges(pairs)[1:]]
        behind = (totals + end * grad_end)[pairs.pixel] - sums
        of_alpha = torch.where(T > 0, T * grad - behind / (1 - alpha.double()), 0.0).to(grad.dtype)
        of_falloff = torch.where(free, of_alpha * falloff, 0.0)
        of_form = -0.5 * of_falloff * (alpha / falloff)  # q: alpha = o exp(-q / 2)
        values = torch.stack([
            -2 * of_form * (a * dx + b * dy), -2 * of_form * (b * dx + c * dy),
            of_form * dx * dx, 2 * of_form * dx * dy, of_form * dy * dy, of_falloff,
        ], -1)  # fmt: skip
        given = pairs.by_gaussian(values)
        return given[:, :2], given[:, 2:5], given[:, 5], None


def _edges(pairs: Pairs) -> Tensor:
    return torch.cat([pairs.starts, pairs.starts.new_tensor([len(pairs.of)])])


class _Composite(torch.autograd.Function):
    """(pixels, channels) sums of the channels of Gaussians by the weights of their pairs."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, channels: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(weights, channels)
        ctx.pairs = pairs
        return embedding_bag(pairs.of, channels, pairs.starts, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weights, channels), pairs, of_weights, of_channels = ctx.saved_tensors, ctx.pairs, None, None
        if ctx.needs_input_grad[0]:
            of_weights = torch.zeros_like(weights)
            for some in range(0, channels.shape[1], AT_ONCE):
                part = slice(some, some + AT_ONCE)
                of_weights += (grad[:, part][pairs.pixel] * channels[:, part][pairs.of]).sum(1)
        if ctx.needs_input_grad[1]:
            pixel, order = pairs.pixel[pairs.order], pairs.order
            of_channels = embedding_bag(
                pixel, grad.contiguous(), pairs.firsts, mode="sum", per_sample_weights=weights[order]
            )
        return of_weights, of_channels, None


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, channels: Tensor, viewmat: Tensor, K: Tensor,
    width: int, height: int, *, detached: Tensor | None = None, background: Tensor | None = None,
    detached_background: Tensor | None = None, orthographic: bool = False,
) -> Render:  # fmt: skip
    """A view of Gaussians (module docstring).

    Args:
        means: (n, 3); quats: (n, 4), w first; scales: (n, 3) standard deviations; opacities: (n,), 0 to 1;
        channels: (n, C), whose gradient reaches geometry. viewmat: (4, 4) world to camera, OpenCV axes; K: (3, 3).
        detached: (n, F) further channels, whose gradient stops at the weights: only they learn from it.
        background: (C,), behind all; `detached_background`: (F,) likewise.

    Raises:
        ShapeError: tensors of other shapes.
    """
    _fitting(means=(means, 3), quats=(quats, 4), scales=(scales, 3), channels=(channels, None))
    where, conics, depths = project(means, quats, scales, viewmat, K, width, height, orthographic)
    with torch.no_grad():
        seen = (depths > NEAR) & (opacities > LEAST) & torch.isfinite(where).all(-1) & torch.isfinite(conics).all(-1)
        nearest = torch.argsort(depths, stable=True)
        nearest = nearest[seen[nearest]]
    if where.requires_grad:
        where.retain_grad()
    near = where[nearest], conics[nearest], opacities[nearest]
    with torch.no_grad():
        pairs = pairs_of(*near, width, height)
    weights, end = _Weights.apply(*near, pairs)

    def composed(weights: Tensor, end: Tensor, values: Tensor, behind: Tensor | None) -> Tensor:
        image = _Composite.apply(weights, values[nearest], pairs)
        image = image if behind is None else image + end[:, None] * behind
        return image.reshape(height, width, -1)

    features = None
    if detached is not None:
        _fitting(means=(means, 3), detached=(detached, None))
        features = composed(weights.detach(), end.detach(), detached, detached_background)
    visible = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    visible[nearest[pairs.of]] = True
    return Render(
        composed(weights, end, channels, background), 1 - end.reshape(height, width), features, where, visible
    )


def rasterize_gsplat(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, channels: Tensor, viewmat: Tensor, K: Tensor,
    width: int, height: int, *, detached: Tensor | None = None, background: Tensor | None = None,
    detached_background: Tensor | None = None, orthographic: bool = False,
) -> Render:  # fmt: skip
    """The same view by gsplat's rasteriser (Apache-2.0), on CUDA, which clamps X/Z of off-centre cameras otherwise.

    Raises:
        UnavailableError: gsplat is not installed.
    """
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise UnavailableError(
            "backend=gsplat needs the package gsplat and CUDA", hint="--set backend=torch"
        ) from error

    def drawn(geometry: tuple[Tensor, ...], values: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        image, alpha, info = rasterization(
            *geometry, values, viewmat[None], K[None], width, height, near_plane=NEAR, packed=False,
            camera_model="ortho" if orthographic else "pinhole",
            backgrounds=None if behind is None else behind[None],
        )  # fmt: skip
        return image[0], alpha[0, ..., 0], info

    geometry = means, quats, scales, opacities
    image, alpha, info = drawn(geometry, channels, background)
    features = None
    if detached is not None:
        features = drawn(tuple(v.detach() for v in geometry), detached, detached_background)[0]
    where, radii = info["means2d"], info["radii"]
    if where.requires_grad:
        where.retain_grad()
    visible = (radii > 0).reshape(*radii.shape[:2], -1).all(-1)[0]
    return Render(image, alpha, features, where, visible)


def _fitting(**given: tuple[Tensor, int | None]) -> None:
    many = len(next(iter(given.values()))[0])
    for name, (value, width) in given.items():
        if value.dim() != 2 or len(value) != many or (width or value.shape[1]) != value.shape[1]:
            expected = f"({many}, {width or 'channels'})"
            raise ShapeError(f"{name} has the shape {tuple(value.shape)}, and {expected} is expected")
