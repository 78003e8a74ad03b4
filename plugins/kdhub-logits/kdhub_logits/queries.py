"""Rules of active learning (`kdhub.sampler.Select`): which rows of a pool to have labelled next.

Ties go to the lowest position.
"""

from __future__ import annotations

import numpy as np

from kdhub.sampler import Seen


def farthest(pool: np.ndarray, anchors: np.ndarray, n: int) -> np.ndarray:
    """Greedy k-centre: n times the point that is farthest from its nearest anchor, which then is an anchor too.

    Args:
        pool, anchors: (rows, d), compared by Euclidean distance.
    """

    nearest = gaps(pool, anchors)
    chosen: list[int] = []
    for _ in range(min(n, len(pool))):
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, gaps(pool, pool[chosen[-1:]]))
    return np.array(chosen, int)


def gaps(pool: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(rows of the pool,): how far each is from its nearest anchor."""
    nearest = np.full(len(pool), np.inf)
    for anchor in anchors:
        nearest = np.minimum(nearest, np.sqrt(np.square(pool - anchor).sum(1)))
    return nearest


def pcoreset(pool: Seen, labelled: Seen, n: int, rng: np.random.Generator) -> np.ndarray:
    """k-centre on probabilities (arXiv:2506.00910); anchors are predictions for the labelled rows, not their labels."""
    return farthest(pool.probabilities, labelled.probabilities, n)


def coreset(pool: Seen, labelled: Seen, n: int, rng: np.random.Generator) -> np.ndarray:
    """k-centre on features by cosine (arXiv:1708.00489)."""
    return farthest(_unit(pool.features), _unit(labelled.features), n)


def entropy(pool: Seen, labelled: Seen, n: int, rng: np.random.Generator) -> np.ndarray:
    """The least sure rows first."""
    p = pool.probabilities
    return np.argsort((p * np.log(np.maximum(p, 1e-30))).sum(1), kind="stable")[:n]


def badge(pool: Seen, labelled: Seen, n: int, rng: np.random.Generator) -> np.ndarray:
    """k-centre on the gradients of the last layer for the predicted class, normalised, from the longest one (after
    arXiv:1906.03671, which draws by k-means++ where this takes the farthest, as the code of arXiv:2506.00910 does)."""
    gap = pool.probabilities.copy()
    gap[np.arange(len(gap)), gap.argmax(1)] -= 1
    gradients = (gap[:, :, None] * pool.features[:, None]).reshape(len(gap), -1)
    first = int(np.linalg.norm(gradients, axis=1).argmax())
    directions, others = _unit(gradients), np.delete(np.arange(len(gap)), first)
    return np.append(first, others[farthest(directions[others], directions[[first]], n - 1)])


def class_balanced(pool: Seen, labelled: Seen, n: int, rng: np.random.Generator) -> np.ndarray:
    """More of the predicted classes that few labelled rows are of: each gets a share of n by 1 / (1 + its labelled
    rows), rounded down, and the rarest one row more until there are n. At random inside a class; of all where a class
    has fewer rows than its share."""
    predicted = pool.probabilities.argmax(1)
    classes = np.unique(predicted)
    weights = 1 / (1 + np.bincount(labelled.labels, minlength=pool.probabilities.shape[1])[classes])
    shares = np.floor(n * weights / weights.sum() + 1e-9).astype(int)
    shares[np.argsort(-weights, kind="stable")[: n - shares.sum()]] += 1
    order = rng.permutation(len(predicted))
    chosen = np.concatenate([order[predicted[order] == c][:share] for c, share in zip(classes, shares)])
    return np.append(chosen, order[~np.isin(order, chosen)])[:n]


def random(pool: Seen, labelled: Seen, n: int, rng: np.random.Generator) -> np.ndarray:
    """Any rows."""
    return rng.permutation(len(pool.probabilities))[:n]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
