"""Radiance fields: density and colour at each point of a cube, composited along rays.

    alpha_i = 1 - exp(-tau_i delta_i)        w_i = alpha_i prod_(j<i) (1 - alpha_j)
    C = sum w_i c_i + (1 - sum w) background        opacity = sum w_i        depth = sum w_i z_i

tau = softplus(raw), colour = sigmoid(raw). Density begins as a soft blob: 10 (1 - r / 0.5) is added to raw, with r the
distance to the centre as a share of half the cube's side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, softplus

from kdhub_generative.scenes.cameras import Camera
from kdhub_generative.scenes.gaussians import View, write_ply

BLOB, REACH = 10.0, 0.5


def composited(tau: Tensor, delta: Tensor | float) -> Tensor:
    """(rays, samples) weights of densities tau with spacing delta."""
    alpha = 1 - torch.exp(-tau * delta)
    left = torch.cumprod(1 - alpha, -1)
    return alpha * torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], -1)


class Field(nn.Module):
    """A field in the cube of -extent to extent.

    Args:
        extent: half of a side, units of the world. samples: along each ray.
        background: colour behind all, 0 to 1.
    """

    def __init__(self, extent: float = 1.0, samples: int = 32, background: float | list[float] = 0.0):
        super().__init__()
        self.extent, self.samples = extent, samples
        values = background if isinstance(background, list) else [background] * 3
        self.register_buffer("background", torch.tensor([float(value) for value in values]))

    def raw(self, points: Tensor) -> Tensor:
        """(n, 4) density and colour before their ranges, at points (n, 3) of -1 to 1."""
        raise NotImplementedError

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (n,) and colour (n, 3) at points of -1 to 1; there is nothing outside."""
        raw = self.raw(points.clamp(-1, 1))
        blob = BLOB * (1 - points.norm(dim=-1) / REACH)
        tau = softplus(raw[:, 0] + blob)
        return torch.where((points.abs() <= 1).all(-1), tau, 0.0), raw[:, 1:].sigmoid()

    def render(self, camera: Camera, background: Tensor | None = None) -> View:
        like = {"dtype": self.background.dtype, "device": self.background.device}
        starts, toward = (torch.tensor(np.ascontiguousarray(v), **like) for v in camera.rays())
        middle = float(camera.viewmat[2, 3])  # depth of the cube's centre
        reach = self.extent * np.sqrt(3)
        near = max(middle - reach, 1e-3) if not camera.orthographic else middle - reach
        delta = (middle + reach - near) / self.samples
        z = near + delta * (torch.arange(self.samples, **like) + 0.5)
        points = (starts[:, None] + toward[:, None] * z[:, None]) / self.extent
        tau, colours = self.at(points.reshape(-1, 3))
        length = delta * toward.norm(dim=-1, keepdim=True)
        weights = composited(tau.reshape(len(starts), -1), length)
        opacity = weights.sum(-1)
        behind = self.background if background is None else background
        image = (weights[..., None] * colours.reshape(*weights.shape, 3)).sum(1) + (1 - opacity[:, None]) * behind
        size = (camera.height, camera.width)
        return View(
            image.reshape(*size, 3), opacity.reshape(size), (weights * z).sum(-1).reshape(size), None,
            weights.reshape(*size, -1),
        )  # fmt: skip

    def shape_parameters(self) -> list[nn.Parameter]:
        """Those that density has for itself."""
        return []

    @torch.no_grad()
    def write_mesh(self, file: str | Path, resolution: int = 64, level: float | None = None) -> None:
        """The surface at a density, as a PLY with colours, by marching cubes.

        Args:
            level: the density; unset: where a step of a ray becomes half opaque.
        """
        from skimage.measure import marching_cubes

        axis = torch.linspace(-1, 1, resolution, device=self.background.device)
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        tau = self.at(points)[0].reshape([resolution] * 3).cpu().numpy()
        step = 2 * np.sqrt(3) * self.extent / self.samples
        level = np.log(2) / step if level is None else level
        from kdhub.errors import UsageError

        if not tau.min() < level < tau.max():
            raise UsageError(
                f"there is no surface at this density ({level=:g}, densities {tau.min():g} to {tau.max():g})"
            )
        corners, faces, _, _ = marching_cubes(np.pad(tau, 1), level)
        where = (corners - 1) / (resolution - 1) * 2 - 1
        colours = self.at(torch.tensor(where.copy(), dtype=axis.dtype, device=axis.device))[1].cpu().numpy()
        rows = np.concatenate([where * self.extent, colours], 1)
        write_ply(Path(file), ["x", "y", "z", "red", "green", "blue"], rows, faces)


class Voxels(Field):
    """A grid, read by trilinear interpolation.

    Args:
        resolution: grid points along each side.
    """

    def __init__(self, resolution: int = 20, **more: Any):
        super().__init__(**more)
        self.density = nn.Parameter(torch.zeros(1, 1, resolution, resolution, resolution))
        self.colour = nn.Parameter(torch.zeros(1, 3, resolution, resolution, resolution))

    def raw(self, points: Tensor) -> Tensor:
        grid = torch.cat([self.density, self.colour], 1)
        return grid_sample(grid, points.reshape(1, 1, 1, -1, 3), align_corners=True).reshape(4, -1).T

    def shape_parameters(self) -> list[nn.Parameter]:
        return [self.density]


PRIMES = (1, 2654435761, 805459861)


class HashGrid(Field):
    """Hashed grids of several resolutions and a small network (arXiv:2201.05989).

    Args:
        levels: grids; table: entries of each; coarsest, finest: resolutions; width: of the network.
    """

    def __init__(
        self, levels: int = 8, table: int = 4096, coarsest: int = 4, finest: int = 48, width: int = 32, **more: Any
    ):
        super().__init__(**more)
        growth = (finest / coarsest) ** (1 / max(1, levels - 1))
        self.sides, self.entries = [int(coarsest * growth**n) for n in range(levels)], table
        self.tables = nn.Parameter(torch.empty(levels, table, 2).uniform_(-1e-4, 1e-4))
        self.density = nn.Sequential(nn.Linear(2 * levels, width), nn.ReLU(), nn.Linear(width, 1))
        self.colour = nn.Sequential(nn.Linear(2 * levels, width), nn.ReLU(), nn.Linear(width, 3))
        for last in (self.density[-1], self.colour[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        corners = torch.tensor([[n >> 2 & 1, n >> 1 & 1, n & 1] for n in range(8)])
        self.register_buffer("corners", corners, persistent=False)

    def encoded(self, points: Tensor) -> Tensor:
        found = []
        for side, table in zip(self.sides, self.tables):
            at = (points + 1) / 2 * side
            low = at.floor().clamp(max=side - 1)
            share = at - low
            corner = low.long()[:, None] + self.corners
            if (side + 1) ** 3 <= self.entries:
                index = (corner[..., 0] * (side + 1) + corner[..., 1]) * (side + 1) + corner[..., 2]
            else:
                mixed = [corner[..., n] * prime for n, prime in enumerate(PRIMES)]
                index = (mixed[0] ^ mixed[1] ^ mixed[2]) % self.entries
            by = torch.where(self.corners.bool(), share[:, None], 1 - share[:, None]).prod(-1)
            found.append((table[index] * by[..., None]).sum(1))
        return torch.cat(found, -1)

    def raw(self, points: Tensor) -> Tensor:
        given = self.encoded(points)
        return torch.cat([self.density(given), self.colour(given)], -1)

    def shape_parameters(self) -> list[nn.Parameter]:
        return [*self.density.parameters(), self.tables]
