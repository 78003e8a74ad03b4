"""How views of a scene compare with photographs, with its teacher's maps, and with true labels.

Maps of a scene are brought to the teacher's size. `miou` compares with true labels, pixel by pixel: a 2D model's maps
are enlarged (bilinear, corner on corner), a scene is rendered at the picture's size. `miou-of-cells` compares both
where the teacher's map has its cells, so that resolution plays no part. `teacher-agreement-miou` compares with what
the teacher says: figures of the literature are often that. Classes include the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

WINDOW, SIGMA = 11, 1.5
FLOOR = 1e-10
"""Mean squared error at which dB end: 100."""


@dataclass
class Views:
    """What a subject gives of some views.

    Attributes:
        true: photographs, (height, width, 3) of 0 to 1 each. labels: (height, width) each, or None.
        images: likewise, of a scene; None of a 2D model. features, logits: (h, w, channels) each, or None.
        fine: logits of a scene at the picture's size. names: of the classes.
    """

    true: Sequence[np.ndarray]
    labels: Sequence[np.ndarray] | None = None
    images: Sequence[np.ndarray] | None = None
    features: Sequence[np.ndarray] | None = None
    logits: Sequence[np.ndarray] | None = None
    fine: Sequence[np.ndarray] | None = None
    names: Sequence[str] | None = None

    @property
    def examples(self) -> int:
        return len(self.true)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of two images (height, width, channels) of 0 to 1: the mean over pixels and channels, with
    a Gaussian window of 11 pixels and sigma 1.5, zeros beyond the edge."""
    at = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    line = torch.exp(-at * at / (2 * SIGMA**2))
    line = line / line.sum()
    window = (line[:, None] * line)[None, None]
    x, y = (v.permute(2, 0, 1)[:, None] for v in (a, b))
    blur = lambda v: conv2d(v, window, padding=WINDOW // 2)  # noqa: E731
    mx, my = blur(x), blur(y)
    xx, yy, xy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mx * my + c1) * (2 * xy + c2)) / ((mx * mx + my * my + c1) * (xx + yy + c2))).mean()


def psnr_of(a: np.ndarray, b: np.ndarray) -> float:
    """dB, of values of 0 to 1."""
    return float(-10 * np.log10(max(np.square(a - b).mean(), FLOOR)))


def labels_of(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) the class of each pixel, of logits (h, w, classes)."""
    given = torch.from_numpy(np.ascontiguousarray(logits)).permute(2, 0, 1)[None]
    return interpolate(given, size, mode="bilinear", align_corners=True)[0].argmax(0).numpy()


def mean_iou(pairs: Sequence[tuple[np.ndarray, np.ndarray]], classes: int) -> float:
    """Over the classes that occur in either: pixels in both as a share of those in either, all views together. Labels
    below 0 are unknown."""
    counts = np.zeros((classes, classes))
    for said, true in pairs:
        known = true >= 0
        np.add.at(counts, (true[known], said[known]), 1)
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean())


def psnr(out: Views) -> float | None:
    """Mean over views."""
    return None if out.images is None else float(np.mean([psnr_of(a, b) for a, b in zip(out.images, out.true)]))


def structure(out: Views) -> float | None:
    if out.images is None:
        return None
    pairs = ((torch.from_numpy(np.asarray(v, np.float64)) for v in pair) for pair in zip(out.images, out.true))
    return float(np.mean([float(ssim(a, b)) for a, b in pairs]))


def miou(out: Views) -> float | None:
    """Against true labels, pixel by pixel."""
    if out.logits is None or out.labels is None:
        return None
    pairs = [(labels_of(given, true.shape), true) for given, true in zip(out.fine or out.logits, out.labels)]
    return mean_iou(pairs, out.logits[0].shape[-1])


def miou_of_cells(out: Views) -> float | None:
    """Against the true labels nearest to the cells of the teacher's map."""
    if out.logits is None or out.labels is None:
        return None
    pairs = [(g.argmax(-1), resized_labels(true, *g.shape[:2])) for g, true in zip(out.logits, out.labels)]
    return mean_iou(pairs, out.logits[0].shape[-1])


def resized_labels(labels: np.ndarray, high: int, wide: int) -> np.ndarray:
    """(high, wide): the labels nearest to where a map of that size has its values, corner on corner."""
    rows, columns = (np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(labels.shape, (high, wide)))
    return labels[rows[:, None], columns]


def teacher_agreement_miou(out: Views, teacher: Views) -> float | None:
    """Against the teacher's own labels of the same views: no truth in it."""
    if out.logits is None or teacher.logits is None:
        return None
    sizes = [v.shape[:2] for v in out.true]
    pairs = [tuple(labels_of(v, size) for v in both) for *both, size in zip(out.logits, teacher.logits, sizes)]
    return mean_iou(pairs, out.logits[0].shape[-1])


def feature_l1(out: Views, teacher: Views) -> float | None:
    """Mean absolute difference from the teacher's map, at its scale."""
    if out.features is None or teacher.features is None:
        return None
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(out.features, teacher.features)]))


def feature_cosine(out: Views, teacher: Views) -> float | None:
    """Mean cosine of the two features of a cell."""
    if out.features is None or teacher.features is None:
        return None
    found = []
    for a, b in zip(out.features, teacher.features):
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        found.append(((a * b).sum(-1) / np.maximum(lengths, 1e-12)).mean())
    return float(np.mean(found))
