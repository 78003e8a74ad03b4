"""Pictures of scenes: a sheet with depth and opacity, and a turntable."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdhub.pictures import Picture

SIDE = 128
"""Pixels of a picture's longer side."""
AROUND = 4
FRAMES = 20


def _size(scene: Any, side: int) -> tuple[int, int]:
    camera = scene.camera
    by = side / max(camera.width, camera.height)
    return max(1, round(camera.width * by)), max(1, round(camera.height * by))


def colours(image: np.ndarray) -> np.ndarray:
    """0 to 1 as bytes."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def shades(depth: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Depth from near (bright) to far (dark) where there is something, as bytes (height, width, 3)."""
    there = opacity > 0.05
    z = depth / np.maximum(opacity, 1e-6)
    low, high = (z[there].min(), z[there].max()) if there.any() else (0, 1)
    shade = np.where(there, 1 - 0.85 * (z - low) / max(high - low, 1e-6), 0)
    return colours(np.repeat(shade[..., None], 3, -1))


def sheet(scene: Any, side: int = SIDE, n: int = AROUND) -> Picture:
    """Colour, depth and opacity from `n` sides."""
    from PIL import Image

    columns = []
    for camera in scene.cameras(n, *_size(scene, side)):
        view = scene.render(camera)
        image, opacity, depth = (v.float().cpu().numpy() for v in (view.image, view.opacity, view.depth))
        columns.append(
            np.concatenate([colours(image), shades(depth, opacity), colours(opacity[..., None].repeat(3, -1))])
        )
    content = io.BytesIO()
    Image.fromarray(np.concatenate(columns, 1)).save(content, "PNG", optimize=True)
    said = f"The scene from {n} sides: colour, depth (near is bright) and opacity."
    return Picture("scene.png", said, content.getvalue())


def turntable(scene: Any, side: int = SIDE, frames: int = FRAMES) -> Picture:
    """Once around, as an animation."""
    from PIL import Image

    views = [colours(scene.render(c).image.float().cpu().numpy()) for c in scene.cameras(frames, *_size(scene, side))]
    palette = Image.fromarray(np.concatenate(views)).quantize(128)  # one for all: the background must not flicker
    images = [Image.fromarray(v).quantize(palette=palette, dither=Image.Dither.NONE) for v in views]
    content = io.BytesIO()
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], duration=2400 // frames, loop=0)
    return Picture("turntable.gif", f"Once around the scene, in {frames} steps.", content.getvalue())


def fitted(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays (height, width, channels) as one, smaller ones with zeros beyond."""
    size = np.max([a.shape[:2] for a in arrays], axis=0)
    return np.stack([np.pad(a, [*((0, have - has) for have, has in zip(size, a.shape)), (0, 0)]) for a in arrays])


def views(given: Mapping[str, Mapping[str, np.ndarray]]) -> Picture:
    """The same views: the photograph, what each scene shows, and what each subject names."""
    from kdhub.evaluation.report import WHO
    from kdhub_generative.images.drawing import grid

    palette = (np.array(_palette(32)) * 255).astype(np.uint8)
    first = lambda v: v.transpose(0, 3, 1, 2)  # noqa: E731
    rows = [("photograph", colours(first(next(iter(given.values()))["true"])))]
    for subject, of in given.items():
        if "image" in of:
            rows.append((f"{WHO[subject]}", colours(first(of["image"]))))
        if "labels" in of:
            rows.append((f"{WHO[subject]}, classes", first(palette[of["labels"][..., 0].astype(int) % 32])))
    said = f"The same views, not chosen: {'; '.join(name for name, _ in rows)}."
    return Picture("views.png", said, grid(rows))


def _palette(n: int) -> list[tuple[float, float, float]]:
    from colorsys import hsv_to_rgb

    return [(0.0, 0.0, 0.0), *(hsv_to_rgb((0.02 + 0.382 * k) % 1, 0.7, 0.9) for k in range(n - 1))]
