"""What an edit kept of its source, and how far it went: two numbers that are bought with each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from kdhub.errors import CompatibilityError
from kdhub_generative.editing.data import correlation
from kdhub_generative.editing.settings import UNTIL, WEIGHTS
from kdhub_generative.editing.task import Edited


def shape_kept(out: Edited) -> float | None:
    """Mean correlation of grey levels with those of the source."""
    if out.reference is None:
        return None
    source = np.asarray(out.reference[0], np.float64).mean(0)
    if out.images.shape[2:] != source.shape:
        mine, theirs = (" x ".join(map(str, of)) for of in (out.images.shape[2:], source.shape))
        raise CompatibilityError(
            f"edits are {mine}, their source {theirs}",
            hint="name it at that size: reference: {source: resized:SIZE:DATA}",
        )
    return float(np.mean([correlation(image.mean(0), source) for image in out.images.astype(np.float64)]))


def colour_share(out: Edited) -> float | None:
    """Mean share of a picture's light in one channel; None where none is named, and of grey pictures."""
    if out.channel is None or out.images.shape[1] < 3:
        return None
    light = out.images.astype(np.float64).sum((2, 3))
    return float(np.mean(light[:, out.channel] / light.sum(1).clip(min=1)))


def shape_disorder(out: Edited) -> float | None:
    return _disorder(out, shape_kept, -1)


def colour_disorder(out: Edited) -> float | None:
    return _disorder(out, colour_share, 1)


def _disorder(out: Edited, metric: Callable[[Edited], float | None], sign: int) -> float | None:
    """The largest step in the direction -`sign` while guides count less and less; 0: there is none, nor without
    guides."""
    if metric(out) is None or (out.guided and not out.varied):
        return None
    if not out.guided:
        return 0.0
    values = np.array([[metric(out.at(guide_until=u, guide_weight=w)) for w in WEIGHTS] for u in UNTIL])
    steps = [values[n] - values[m] for m, n in pairwise(range(len(UNTIL)))]
    steps += [values[:, n] - values[:, m] for m, n in pairwise(range(len(WEIGHTS)))]
    return float(max(0.0, (-sign * np.concatenate(steps)).max()))
