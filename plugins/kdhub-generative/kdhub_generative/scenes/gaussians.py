"""A scene of 3D Gaussians that carry colour and, beside it, a feature each (arXiv:2308.04079, arXiv:2312.03203)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from kdhub.errors import DataError, UsageError
from kdhub_generative.scenes.cameras import Camera
from kdhub_generative.scenes.splats import Render, rasterize, rasterize_gsplat

OPACITY = 0.1
"""Of a Gaussian that was made of a point."""
SHADOW = -20.0
"""Logit of what an edit removed: less than 1/255, so that it is in no picture."""
C0, C1 = 0.5 / sqrt(np.pi), sqrt(3 / (4 * np.pi))
C2 = (sqrt(15 / np.pi) / 2, sqrt(5 / np.pi) / 4, sqrt(15 / np.pi) / 4)
C3 = (
    sqrt(35 / (2 * np.pi)) / 4, sqrt(105 / np.pi) / 2, sqrt(21 / (2 * np.pi)) / 4, sqrt(7 / np.pi) / 4,
    sqrt(105 / np.pi) / 4,
)  # fmt: skip


@dataclass
class View:
    """What a scene looks like from a camera.

    Attributes:
        image: (height, width, 3), 0 to 1. opacity: (height, width), 0 to 1. depth: (height, width), the sum of w Z.
        features: (height, width, width of a Gaussian's feature), before the decoder; None where there are none.
        weights: (height, width, samples) of a field's samples along each ray; None of Gaussians.
        render: of Gaussians, what the rasteriser says of them.
    """

    image: Tensor
    opacity: Tensor
    depth: Tensor
    features: Tensor | None = None
    weights: Tensor | None = None
    render: Render | None = None


def harmonics(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics of degree 1 up to `degree`, (n, (degree + 1)^2 - 1), with the signs of 3DGS.

    Args:
        directions: (n, 3) of length 1.
    """
    x, y, z = directions.unbind(-1)
    found = [-C1 * y, C1 * z, -C1 * x] if degree else []
    if degree > 1:
        a, b, c = C2
        found += [a * x * y, -a * y * z, b * (2 * z * z - x * x - y * y), -a * x * z, c * (x * x - y * y)]
    if degree > 2:
        a, b, c, d, e = C3
        found += [
            -a * y * (3 * x * x - y * y), b * x * y * z, -c * y * (4 * z * z - x * x - y * y),
            d * z * (2 * z * z - 3 * x * x - 3 * y * y), -c * x * (4 * z * z - x * x - y * y),
            e * z * (x * x - y * y), -a * x * (x * x - 3 * y * y),
        ]  # fmt: skip
    return torch.stack(found, -1) if found else directions.new_zeros(len(directions), 0)


class Gaussians(nn.Module):
    """
    Args:
        count: of Gaussians. sh_degree: 0 to 3. features: width of a Gaussian's feature; 0: none. decoded: width of the
            teacher's, where a 1x1 convolution leads from the one to the other; 0: none. classes: of the teacher's head,
            which is kept beside the features to name them; 0: none.
        feature_background: whether what is behind all has a feature. background: colour behind all, 0 to 1.
        spread: what the teacher's features were divided by.

    Attributes:
        degree: harmonics that are in use, up to `sh_degree`.
        joint: whether the gradient of features reaches geometry.
        backend: torch, or gsplat (CUDA).
    """

    backend = "torch"

    PER = ("means", "quats", "scales", "opacities", "sh0", "shN", "features")
    """Parameters with a row for each Gaussian; scales are logarithms, opacities logits."""

    def __init__(
        self, count: int, sh_degree: int = 0, features: int = 0, decoded: int = 0, classes: int = 0,
        feature_background: bool = False, background: Sequence[float] = (0, 0, 0), spread: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.degree, self.joint, self.spread = sh_degree, False, spread
        self.means, self.quats = nn.Parameter(torch.zeros(count, 3)), nn.Parameter(torch.zeros(count, 4))
        self.scales, self.opacities = nn.Parameter(torch.zeros(count, 3)), nn.Parameter(torch.zeros(count))
        self.sh0 = nn.Parameter(torch.zeros(count, 3))
        self.shN = nn.Parameter(torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3))
        self.features = nn.Parameter(torch.zeros(count, features))
        with torch.no_grad():
            self.quats[:, 0] = 1
        self.register_buffer("background", torch.tensor([float(value) for value in background]))
        self.feature_background = nn.Parameter(torch.zeros(features)) if feature_background else None
        self.decoder = nn.Linear(features, decoded) if decoded else None
        self.head = nn.Linear(decoded or features, classes).requires_grad_(False) if classes else None

    # -- looking ----------------------------------------------------------------------------------------------

    def render(self, camera: Camera, background: Tensor | None = None) -> View:
        """A view: colours, opacity and depth by one call, features beside them by the same weights."""
        like = {"dtype": self.means.dtype, "device": self.means.device}
        viewmat, K = torch.tensor(camera.viewmat, **like), torch.tensor(camera.K, **like)
        depth = self.means @ viewmat[2, :3] + viewmat[2, 3]
        colours, features = self.colours(camera), self.features if self.features.shape[1] else None
        behind = self.background if background is None else background
        channels, behind = torch.cat([colours, depth[:, None]], 1), torch.cat([behind, behind.new_zeros(1)])
        if joined := self.joint and features is not None:
            channels = torch.cat([channels, features], 1)
            beside = features.new_zeros(features.shape[1])
            beside = beside if self.feature_background is None else self.feature_background
            behind = torch.cat([behind, beside])
        draw = rasterize if self.backend == "torch" else rasterize_gsplat
        given = draw(
            self.means, self.quats, self.scales.exp(), self.opacities.sigmoid(), channels, viewmat, K, camera.width,
            camera.height, detached=None if joined else features, background=behind,
            detached_background=None if joined else self.feature_background, orthographic=camera.orthographic,
        )  # fmt: skip
        seen = given.image[..., 4:] if joined else given.features
        return View(given.image[..., :3], given.alpha, given.image[..., 3], seen, None, given)

    def colours(self, camera: Camera) -> Tensor:
        """(n, 3), at least 0, as seen from a camera."""
        given = C0 * self.sh0
        if self.degree:
            if camera.orthographic:
                toward = torch.tensor(camera.forward, dtype=given.dtype, device=given.device).expand(len(given), 3)
            else:
                centre = torch.tensor(camera.centre, dtype=given.dtype, device=given.device)
                toward = normalize(self.means.detach() - centre, dim=-1)
            basis = harmonics(toward, self.degree)
            given = given + (basis[..., None] * self.shN[:, : basis.shape[1]]).sum(1)
        return (given + 0.5).clamp(min=0)

    def maps(self, features: Tensor, height: int, width: int) -> Tensor:
        """(height, width, channels of the teacher): rendered features brought to the teacher's size, then decoded."""
        given = interpolate(features.permute(2, 0, 1)[None], (height, width), mode="bilinear", align_corners=True)
        given = given[0].permute(1, 2, 0)
        return given if self.decoder is None else self.decoder(given)

    # -- as points --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def take_points(self, points: np.ndarray, colours: np.ndarray | None = None) -> None:
        """Stand at points (n, 3), with colours (n, 3) of 0 to 1, each as large as the distance to its three next ones.

        Raises:
            DataError: no point at all, or one that is not finite.
        """
        from scipy.spatial import cKDTree

        if not len(points):
            raise DataError("there is no point at all to put Gaussians at", hint="gaussians:N takes N random ones")
        if not np.isfinite(points).all():
            raise DataError(f"point {int((~np.isfinite(points)).any(1).argmax()) + 1} is not finite")
        near, _ = cKDTree(points).query(points, k=min(4, len(points)))
        near = np.atleast_2d(near.T).T[:, 1:]
        size = np.sqrt((near**2).mean(1)) if near.shape[1] else np.full(len(points), 0.1)
        self.means.copy_(torch.tensor(np.asarray(points, np.float32)))
        self.scales.copy_(torch.from_numpy(np.log(size.clip(1e-4)).astype(np.float32))[:, None].expand(-1, 3))
        self.opacities.fill_(float(np.log(OPACITY / (1 - OPACITY))))
        if colours is not None:
            self.sh0.copy_(torch.from_numpy(((np.asarray(colours) - 0.5) / C0).astype(np.float32)))

    # -- features ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def own_features(self) -> Tensor:
        """(n, channels of the teacher) of each Gaussian, in the teacher's space and at its scale."""
        given = self.features if self.decoder is None else self.decoder(self.features)
        return given * self.spread

    @torch.no_grad()
    def scores(self, prompts: Tensor, temperature: float = 1.0) -> Tensor:
        """(n, prompts): the cosine of each Gaussian's feature with some vectors (prompts, channels), as a softmax over
        them with that temperature; of a single prompt the cosine itself.

        Raises:
            UsageError: vectors of another width than the features.
        """
        own = self.own_features()
        if prompts.dim() != 2 or prompts.shape[1] != own.shape[1] or not own.shape[1]:
            raise UsageError(
                f"prompts have the shape {tuple(prompts.shape)}, and features have {own.shape[1]} channels",
                hint="prompts are (prompts, channels) in the space of the teacher's features",
            )
        cosine = normalize(own, dim=1) @ normalize(prompts.to(own), dim=1).T
        return cosine if len(prompts) == 1 else (cosine / temperature).softmax(1)

    def selected(
        self, scores: Tensor, targets: Sequence[int], threshold: float | None = None, union: bool = False
    ) -> Tensor:
        """(n,), which Gaussians are a target: the sum of the targets' scores is at least the threshold, else, without
        one, a target has the largest score.

        Args:
            threshold: as a multiple of 1 / prompts; of a single prompt the cosine itself.
            union: either of both, as deletion does.
        """
        targets = list(targets)
        best = torch.isin(scores.argmax(1), scores.argmax(1).new_tensor(targets))
        many = scores.shape[1]
        if threshold is None:
            if many == 1:
                raise UsageError("a single prompt needs a threshold, or all is selected (threshold=None)")
            return best
        enough = scores[:, targets].sum(1) >= (threshold if many == 1 else threshold / many)
        return enough | best if union and many > 1 else enough

    @torch.no_grad()
    def edited(self, how: str, chosen: Tensor, colour: Sequence[float] | None = None) -> Gaussians:
        """A copy in which the chosen are the only ones (`extract`), are gone (`delete`), or have a colour (`recolour`).

        Raises:
            UsageError: nothing would be left, or changed.
        """
        import copy

        if how not in ("extract", "delete", "recolour"):
            raise UsageError(f"an edit is extract, delete or recolour, not {how!r}")
        gone = {"extract": ~chosen, "delete": chosen}.get(how)
        if not chosen.any():
            raise UsageError(f"the query leaves nothing to {how}: no Gaussian is selected", hint="lower the threshold")
        if gone is not None and gone.all():
            raise UsageError(f"{how} leaves nothing: all {len(chosen)} Gaussians are selected", hint="set a threshold")
        made = copy.deepcopy(self)
        if gone is not None:
            made.opacities[gone] = SHADOW
        else:
            if colour is None or len(colour) != 3:
                raise UsageError(f"recolour needs a colour of three numbers of 0 to 1 ({colour=})")
            made.sh0[chosen] = ((torch.tensor(colour) - 0.5) / C0).to(made.sh0)
            made.shN[chosen] = 0
        return made

    # -- files ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def write_ply(self, file: str | Path) -> None:
        """The fields of the original 3DGS, as viewers take them: scales are logarithms, opacities logits, colours
        harmonics. Features are in the scene's safetensors."""
        names = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{n}" for n in range(3))]
        names += [f"f_rest_{n}" for n in range(3 * self.shN.shape[1])]
        names += ["opacity", *(f"scale_{n}" for n in range(3)), *(f"rot_{n}" for n in range(4))]
        parts = (
            self.means, torch.zeros_like(self.means), self.sh0, self.shN.mT.flatten(1), self.opacities[:, None],
            self.scales, normalize(self.quats, dim=1),
        )  # fmt: skip
        write_ply(Path(file), names, torch.cat(parts, 1).cpu().numpy())

    def settings(self) -> dict[str, Any]:
        """What `__init__` takes to make one of this shape."""
        classes = 0 if self.head is None else self.head.out_features
        return {
            "count": len(self.means), "sh_degree": round(sqrt(self.shN.shape[1] + 1)) - 1,
            "features": self.features.shape[1], "decoded": 0 if self.decoder is None else self.decoder.out_features,
            "classes": classes, "feature_background": self.feature_background is not None,
            "background": self.background.tolist(), "spread": self.spread,
        }  # fmt: skip


def write_ply(file: Path, names: Sequence[str], rows: np.ndarray, faces: np.ndarray | None = None) -> None:
    """A binary PLY of vertices (n, fields) of float32 and, for a mesh, faces (m, 3)."""
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property float {name}" for name in names]
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    content = "\n".join([*header, "end_header\n"]).encode() + np.ascontiguousarray(rows, "<f4").tobytes()
    if faces is not None:
        listed = np.empty(len(faces), [("n", "u1"), ("at", "<i4", 3)])
        listed["n"], listed["at"] = 3, faces
        content += listed.tobytes()
    file.write_bytes(content)
