"""A few-shot adapter: prototypes of classes, fitted to the labelled rows at hand (CLAP, as arXiv:2506.00910 uses it).

With P0 the prototypes of a teacher that never saw the task, f a row's vector and s the teacher's scale,

    L = mean CE(y, s cos(f, P))  +  mean over classes of a_c |P_c - P0_c|^2        P begins at P0

where a_c is the mean probability that P0 gives to the true class over the labelled rows of class c: a class of which
the teacher was right stays where it was. Prototypes are divided by their mean length, so that neither term depends on
the unit of the vectors; the paper's have the length that its text encoder gives them.
"""

from __future__ import annotations

import numpy as np

STEPS, RATE, MOMENTUM, WARM = 300, 0.01, 0.9, 0.1
"""Of SGD over all labelled rows at once: steps, peak learning rate, momentum, share of the steps in which it rises
before it falls in a line. The number of steps is ours."""


def adapted(
    prototypes: np.ndarray, vectors: np.ndarray, labels: np.ndarray, *, scale: float, steps: int = STEPS
) -> np.ndarray:
    """Prototypes fitted to labelled rows, of mean length 1.

    Args:
        prototypes: (classes, d); vectors: (rows, d), of the labelled rows; labels: (rows,) positions of classes.
        scale: of the cosine.
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    p = torch.from_numpy(np.asarray(prototypes, np.float64))
    start = p / p.norm(dim=1).mean()
    f = normalize(torch.from_numpy(np.asarray(vectors, np.float64)), dim=1)
    y = torch.from_numpy(np.asarray(labels, np.int64))
    right = torch.softmax(scale * f @ normalize(start, dim=1).T, 1).gather(1, y[:, None])[:, 0]
    many = torch.bincount(y, minlength=len(start))
    held = torch.zeros(len(start), dtype=right.dtype).index_add(0, y, right) / many.clamp_min(1)
    held = held.where(many > 0, 1.0)  # nothing speaks against it
    fitted = start.clone().requires_grad_()
    optimiser, warm = torch.optim.SGD([fitted], RATE, MOMENTUM), max(1, round(WARM * steps))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        optimiser.zero_grad()
        apart = (held * (fitted - start).square().sum(1)).mean()
        (cross_entropy(scale * f @ normalize(fitted, dim=1).T, y) + apart).backward()
        optimiser.step()
    return fitted.detach().numpy()
