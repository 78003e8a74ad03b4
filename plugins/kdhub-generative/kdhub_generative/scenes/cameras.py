"""Cameras, in one convention: OpenCV's, x to the right, y down, z forward.

A camera has `viewmat`, which takes the world to it, and `K` in pixels; the centre of the first pixel is (0.5, 0.5).
Pictures of a lens with distortion are read as those of the same camera without one (`undistorted`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, radians, sin, tan
from typing import Any

import numpy as np

from kdhub.errors import DataError

CLOSE = 1e-3
"""By how much a rotation may miss being one."""


@dataclass(frozen=True)
class Camera:
    """
    Attributes:
        viewmat: (4, 4) float64, world to camera. K: (3, 3) float64, pixels.
        orthographic: whether rays are parallel: x of K is then pixels a unit of the world.

    Raises:
        DataError: a reflection, or no rotation at all; no focal length; no size.
    """

    viewmat: np.ndarray
    K: np.ndarray
    width: int
    height: int
    orthographic: bool = False

    def __post_init__(self) -> None:
        for name, side in (("viewmat", 4), ("K", 3)):
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape != (side, side) or not np.isfinite(value).all():
                raise DataError(f"a camera's {name} is {side} x {side} finite numbers, not of shape {value.shape}")
            object.__setattr__(self, name, value)
        if self.K[0, 0] <= 0 or self.K[1, 1] <= 0:
            raise DataError(f"a camera without a focal length: {self.K[0, 0]:g} and {self.K[1, 1]:g} pixels")
        if self.width < 1 or self.height < 1:
            raise DataError(f"a camera whose picture has {self.width} x {self.height} pixels")
        W = self.viewmat[:3, :3]
        if np.abs(W @ W.T - np.eye(3)).max() > CLOSE:
            raise DataError("a camera whose axes are not a rotation: they are not of length 1 and at right angles")
        if np.linalg.det(W) < 0:
            raise DataError(
                "a camera with a reflection: its axes are left-handed",
                hint="OpenCV has x to the right, y down, z forward; negate two axes of another convention, never one",
            )

    @property
    def centre(self) -> np.ndarray:
        """Where it stands, (3,)."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    @property
    def forward(self) -> np.ndarray:
        return self.viewmat[2, :3]

    def scaled(self, width: int, height: int) -> Camera:
        """The same view in a picture of another size."""
        by = np.diag([width / self.width, height / self.height, 1])
        return Camera(self.viewmat, by @ self.K, width, height, self.orthographic)

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each pixel's centre, (height x width, 3): where its ray begins, and its direction, whose z is 1 in the
        camera, so that steps along it are depths."""
        rows, columns = np.mgrid[: self.height, : self.width] + 0.5
        x, y = (columns - self.K[0, 2]) / self.K[0, 0], (rows - self.K[1, 2]) / self.K[1, 1]
        one, zero = np.ones(x.size), np.zeros(x.size)
        W = self.viewmat[:3, :3]
        if self.orthographic:
            starts = (np.stack([x.ravel(), y.ravel(), zero], -1) - self.viewmat[:3, 3]) @ W
            return starts, np.broadcast_to(self.forward, starts.shape)
        toward = np.stack([x.ravel(), y.ravel(), one], -1) @ W
        return np.broadcast_to(self.centre, toward.shape), toward


def looking_at(
    azimuth: float, elevation: float, distance: float, width: int, height: int, focal: float | None = None, *,
    fov: float | None = None, scale: float | None = None, target: Sequence[float] = (0, 0, 0),
) -> Camera:  # fmt: skip
    """A camera on a sphere around a target; z of the world is up, azimuth 0 looks along -x from +x.

    Args:
        azimuth, elevation: degrees. focal: pixels, or `fov`, degrees of the height, or `scale`, pixels a unit of the
            world of an orthographic one.
    """
    a, e = radians(azimuth), radians(elevation)
    outward = np.array([cos(e) * cos(a), cos(e) * sin(a), sin(e)])
    right = np.array([-sin(a), cos(a), 0.0])
    W = np.stack([right, np.cross(-outward, right), -outward])  # down = forward x right
    f = scale or focal or height / (2 * tan(radians(fov or 50) / 2))
    viewmat = np.eye(4)
    viewmat[:3, :3] = W
    viewmat[:3, 3] = -W @ (np.asarray(target, np.float64) + distance * outward)
    return Camera(viewmat, np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]]), width, height, bool(scale))


def around(centre: np.ndarray, up: np.ndarray, start: Camera, n: int, width: int, height: int) -> list[Camera]:
    """`n` cameras once around an axis through `centre`, beginning at `start`."""
    found, axis = [], up / np.linalg.norm(up)
    x = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    for angle in np.arange(n) * 2 * np.pi / n:
        turn = np.eye(4)
        turn[:3, :3] = np.eye(3) + np.sin(angle) * x + (1 - np.cos(angle)) * x @ x
        turn[:3, 3] = centre - turn[:3, :3] @ centre
        found.append(Camera(start.viewmat @ np.linalg.inv(turn), start.K, start.width, start.height,
                            start.orthographic).scaled(width, height))  # fmt: skip
    return found


def of_row(row: Mapping[str, Any], width: int, height: int) -> Camera:
    """The camera of a row: its `viewmat`, `K` and, where it is, `orthographic`."""
    return Camera(
        np.asarray(row["viewmat"]), np.asarray(row["K"]), width, height, bool(row.get("orthographic") or False)
    )


# -- distortion -----------------------------------------------------------------------------------------------

LENSES = {
    "radial": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "fisheye": ("k1", "k2", "k3", "k4"),
}
"""Parameters of OpenCV's two models of a lens."""


def distorted(x: np.ndarray, y: np.ndarray, lens: Mapping[str, float], fisheye: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where a lens puts what a pinhole has at (x, y), both for focal length 1."""
    k = lambda name: lens.get(name, 0.0)  # noqa: E731
    r2 = x * x + y * y
    if fisheye:
        r = np.sqrt(r2)
        t = np.arctan(r)
        t2 = t * t
        far = t * (1 + t2 * (k("k1") + t2 * (k("k2") + t2 * (k("k3") + t2 * k("k4")))))
        by = np.where(r > 1e-12, far / np.maximum(r, 1e-12), 1.0)
        return x * by, y * by
    by = 1 + r2 * (k("k1") + r2 * (k("k2") + r2 * k("k3")))
    by = by / (1 + r2 * (k("k4") + r2 * (k("k5") + r2 * k("k6"))))
    p1, p2 = k("p1"), k("p2")
    return x * by + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * by + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y


def undistorted(image: np.ndarray, camera: Camera, lens: Mapping[str, float], fisheye: bool = False) -> np.ndarray:
    """The picture (height, width, channels) that `camera` would have without its lens, of the same size; bytes. What
    lies beyond the edge is that of the edge."""
    from scipy.ndimage import map_coordinates

    if not any(lens.values()) and not fisheye:
        return image
    fx, fy, cx, cy = camera.K[0, 0], camera.K[1, 1], camera.K[0, 2], camera.K[1, 2]
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    x, y = distorted((columns - cx) / fx, (rows - cy) / fy, lens, fisheye)
    at = np.stack([y * fy + cy, x * fx + cx]) - 0.5
    parts = [map_coordinates(c.astype(np.float32), at, order=1, mode="nearest") for c in np.moveaxis(image, -1, 0)]
    return np.stack(parts, -1).round().clip(0, 255).astype(np.uint8)
