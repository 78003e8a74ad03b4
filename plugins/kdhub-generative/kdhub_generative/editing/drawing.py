"""The sheets of an edit: source, base, guide and edits of the same seeds; one seed over window and weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from kdhub.evaluation.report import BEFORE, STUDENT, TEACHER
from kdhub.pictures import Picture
from kdhub_generative.editing.settings import UNTIL, WEIGHTS
from kdhub_generative.images.drawing import grid

ROWS = {"source": "source", "base": "base alone", "guide": "guide alone", "edit": "edit"}


def sheets(given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
    """
    Args:
        given: subject -> what the task's `to_draw` took of it.
    """
    of = next(given[subject] for subject in (STUDENT, BEFORE, TEACHER) if subject in given)
    rows = [(name, of[taken]) for taken, name in ROWS.items() if taken in of]
    sentence = f"The same seeds in each row, not chosen: {'; '.join(name for name, _ in rows)}."
    yield Picture("edits.png", sentence, grid(rows))
    if "varied" in of:
        rows = [(f"until t = {t:g}", pictures) for t, pictures in zip(UNTIL, np.split(of["varied"], len(UNTIL)))]
        sentence = (
            "One seed: from top to bottom the guide ends earlier on the way from noise; from left to right it weighs "
            f"{', '.join(f'{w:g}' for w in WEIGHTS)}."
        )
        yield Picture("window-and-weight.png", sentence, grid(rows))
