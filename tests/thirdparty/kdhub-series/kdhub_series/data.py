"""Waves of three forms with noise."""

import numpy as np

from kdhub import Data

FORMS = {
    "sine": np.sin,
    "square": lambda t: np.sign(np.sin(t)),
    "saw": lambda t: (t / np.pi) % 2 - 1,
}


def waves(n: int = 192, noise: float = 0.2) -> Data:
    """`n` series to train on and half as many to test on, of 16 steps and random phase."""

    def rows(seed, n):
        rng = np.random.default_rng(seed)
        for i in range(n):
            name = list(FORMS)[i % 3]
            x = FORMS[name](np.linspace(0, 4 * np.pi, 16) + rng.uniform(0, 6)) + rng.normal(0, noise, 16)
            yield {"series": x[:, None].tolist(), "label": name}

    splits = {"train": lambda: rows(0, n), "test": lambda: rows(1, n // 2)}
    return Data.from_rows("waves", splits, key={"n": n, "noise": noise, "version": 1}, licence="cc0-1.0")
