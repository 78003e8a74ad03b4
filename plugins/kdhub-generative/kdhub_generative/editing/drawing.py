"""The sheets of an edit: source, base, guide and edits of the same seeds; one seed over window and weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from kdhub.evaluation.report import WHO
from kdhub.pictures import Picture
from kdhub_generative.editing.task import UNTIL, WEIGHTS
from kdhub_generative.images.drawing import grid

ROWS = {"source": "source", "guide": "guide alone", "edit": "edit"}


def sheets(given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
    """
    Args:
        given: subject -> what the task's `to_draw` took of it.
    """
    rows = []
    for subject, of in sorted(given.items(), key=lambda one: list(WHO).index(one[0])):
        if "guide" in of:
            rows += [(ROWS[name], of[name]) for name in ROWS if name in of]
        else:
            rows.append((f"{WHO[subject]}, alone", of["edit"]))
    sentence = f"The same seeds in each row, not chosen: {'; '.join(name for name, _ in rows)}."
    yield Picture("edits.png", sentence, grid(rows))
    for of in given.values():
        if "varied" in of:
            across = np.split(of["varied"], len(UNTIL))
            rows = [(f"until t = {until:g}", pictures) for until, pictures in zip(UNTIL, across)]
            sentence = (
                "One seed: from top to bottom the guide ends earlier on the way from noise; from left to right it "
                f"weighs {', '.join(f'{w:g}' for w in WEIGHTS)}."
            )
            yield Picture("window-and-weight.png", sentence, grid(rows))
            return
