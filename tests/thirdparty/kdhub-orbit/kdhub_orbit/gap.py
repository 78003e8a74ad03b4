"""A metric of pairs."""

import numpy as np


def cosine_gap(outputs):
    """Mean |cosine - gold| over pairs whose gold score is in [0, 1]."""
    norms = np.linalg.norm(outputs.left, axis=1) * np.linalg.norm(outputs.right, axis=1)
    return float(np.abs((outputs.left * outputs.right).sum(1) / norms - outputs.gold).mean())
