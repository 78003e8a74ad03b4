"""How pictures that were drawn compare with real ones, and with those of the teacher from the same noise.

Distributions are compared in a named feature: the pixels, in -1 to 1, or what a classifier of a recipe makes of them.
Both distances are biased with few pictures, the more the wider the feature: compare figures of equally many.
"""

from __future__ import annotations

import numpy as np

from kdhub.errors import CompatibilityError
from kdhub.rows import Example
from kdhub_generative.images.task import MANY, Drawn

NEIGHBOURS = 3
"""Of a point, for the ball around it (arXiv:1904.06991)."""
KERNEL_SIZE, KERNELS = 1000, 10
"""Pictures of a subset, and subsets, of the kernel distance."""
ROWS = 512


def pixels(images: np.ndarray) -> np.ndarray:
    """(n, pixels) in -1 to 1."""
    return images.reshape(len(images), -1) / 127.5 - 1


def features(out: Drawn, images: np.ndarray) -> np.ndarray:
    """(n, width) float64, in the feature in which pictures are compared."""
    if out.feature is None:
        return pixels(images)
    examples: list[Example] = []
    for image in images:
        x = image[0] if len(image) == 1 else image
        examples.append({"x": x, "label": -1, "content": x.tobytes(), "length": 1, "cut": False})
    given = out.feature.signals(examples, "features")["features"]
    return np.asarray(given, np.float64).reshape(len(images), -1)


def _both(out: Drawn) -> tuple[np.ndarray, np.ndarray] | None:
    if out.reference is None:
        return None
    if out.images.shape[1:] != out.reference.shape[1:]:
        mine, theirs = (" x ".join(map(str, of.shape[1:])) for of in (out.images, out.reference))
        raise CompatibilityError(
            f"pictures that are drawn are {mine}, those of the reference {theirs}",
            hint="name a reference of that size: reference: {source: resized:SIZE:DATA}",
        )
    known = out._known
    key = ("reference", id(out.feature))
    if key not in known:
        known[key] = features(out, np.asarray(out.reference))
    return features(out, out.images), known[key]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), of the normal distributions with the means and covariances of
    two sets of points (n, width) (arXiv:1706.08500)."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b))
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(min=0)).sum()
    return float(np.square(ma - mb).sum() + np.trace(ca) + np.trace(cb) - 2 * shared)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / width + 1)^3 (arXiv:1801.01401), the mean over
    subsets where there are many points; may be below 0."""
    draw, size = np.random.default_rng(0), min(KERNEL_SIZE, len(a), len(b))
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    found = []
    for _ in range(1 if size == len(a) == len(b) else KERNELS):
        x, y = (of[draw.choice(len(of), size, replace=False)] for of in (a, b))
        own = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
        found.append(own / (size * (size - 1)) - 2 * kernel(x, y).mean())
    return float(np.mean(found))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b))."""
    return (np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T).clip(min=0)


def covered(points: np.ndarray, by: np.ndarray) -> float:
    """The share of points that lie in a ball around one of others as large as the distance to its third neighbour among
    these."""
    at = min(NEIGHBOURS, len(by) - 1)
    near = [np.partition(squared_distances(by[n : n + ROWS], by), at, axis=1)[:, at] for n in range(0, len(by), ROWS)]
    of = np.concatenate(near)
    parts = [(squared_distances(points[n : n + ROWS], by) <= of).any(1) for n in range(0, len(points), ROWS)]
    return float(np.concatenate(parts).mean())


def frechet(out: Drawn) -> float | None:
    both = _both(out)
    return None if both is None or min(map(len, both)) < 2 else frechet_distance(*both)


def kernel(out: Drawn) -> float | None:
    both = _both(out)
    return None if both is None or min(map(len, both)) < 2 else kernel_distance(*both)


def precision(out: Drawn) -> float | None:
    """The share of drawn pictures among real ones."""
    both = _both(out)
    return None if both is None else covered(*both)


def recall(out: Drawn) -> float | None:
    """The share of real pictures among drawn ones: what falls where they become alike."""
    both = _both(out)
    return None if both is None else covered(*both[::-1])


def nearest(out: Drawn) -> float | None:
    """Mean distance to the nearest real picture, root mean square of a pixel in -1 to 1; 0: they are copies."""
    if out.reference is None:
        return None
    drawn, real = pixels(out.images), pixels(np.asarray(out.reference))
    parts = [squared_distances(drawn[n : n + ROWS], real).min(1) for n in range(0, len(drawn), ROWS)]
    return float(np.sqrt(np.concatenate(parts) / drawn.shape[1]).mean())


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise CompatibilityError(f"pictures of shape {a.shape[1:]} and of {b.shape[1:]} cannot be compared")
    return float(np.square(pixels(a) - pixels(b)).mean())


def paired_error(out: Drawn, teacher: Drawn) -> float:
    """Mean squared difference of a pixel in -1 to 1 from what the teacher draws of the same seed in many steps, with
    the guidance that the student was made for."""
    try:
        return _apart(out.images, teacher.at(steps=MANY, guidance=out.guidance).images)
    except CompatibilityError:  # a one-call teacher
        return _apart(out.images, teacher.images)


def paired_share(out: Drawn, teacher: Drawn) -> float | None:
    """The paired error as a share of that of the teacher in one call; None for a teacher that has no more calls."""
    if teacher.one_call:
        return None
    once = _apart(*(teacher.at(steps=n, guidance=out.guidance).images for n in (1, MANY)))
    return paired_error(out, teacher) / once if once else None


def frechet_share(out: Drawn, teacher: Drawn) -> float | None:
    """The Fréchet distance to real pictures as a share of that of the teacher in one call."""
    once = frechet(teacher.at(steps=1, guidance=out.guidance))
    return frechet(out) / once if once else None


def own_error(out: Drawn) -> float | None:
    """The same from what the model itself draws in many steps; None for one that cannot."""
    if out.one_call:
        return None
    try:
        return _apart(out.images, out.at(steps=MANY).images)
    except CompatibilityError:
        return None
