"""`reports`: short generated texts about household things, a quarter of them of a mishap. Harmless, with the shape of a
guard's data: what makes the rare class is said in many words, of which a few labelled rows show few."""

from __future__ import annotations

import random
from collections.abc import Iterator

from kdhub.data.dataset import Data
from kdhub.errors import UsageError

THINGS = (
    "kettle lamp radio clock chair blanket pan jug rug mirror vase basket ladder bucket heater fan stool shelf curtain "
    "pillow candle drawer torch whistle umbrella"
).split()
PARTS = "handle lid seam hinge cable edge wheel strap cover base spring button hook corner rim".split()
MISHAPS = (
    "cracked melted snapped buckled scorched splintered rusted burst shattered warped frayed jammed smouldered "
    "crumbled dented leaked peeled shrank tore faded sagged rattled overheated sparked tipped collapsed bulged "
    "chipped stained corroded loosened mildewed twisted seized fizzled blistered"
).split()
PRAISE = (
    "shines works fits lasts pleases matters stands hangs sits turns opens closes glows moves stays holds runs sells "
    "helps looks feels folds rolls slides swings"
).split()
WHEN = "yesterday today overnight indoors outdoors again twice suddenly slowly at once in spring in winter".split(" ")
TAILS = (
    "and my neighbour saw it", "as the shop had said", "which nobody expected", "while we had dinner",
    "before the guests came", "and I wrote to the maker", "so we bought another", "just like the old one",
)  # fmt: skip
LABELS = ("fine", "mishap")


def reports(rows: int = 6000, share: float = 0.25, seed: int = 0) -> Data:
    """Split `train`: `text`, an empty `text_pair`, and `label`, fine or mishap.

    Args:
        share: of mishaps.
    """
    if rows < 8 or not 0 < share < 1:
        raise UsageError(f"reports: rows must be at least 8, and share between 0 and 1 ({rows=}, {share=})")

    def made() -> Iterator[dict[str, str]]:
        draw = random.Random(seed)
        for _ in range(rows):
            bad = draw.random() < share
            thing, part, when, tail = (draw.choice(some) for some in (THINGS, PARTS, WHEN, TAILS))
            verb = draw.choice(MISHAPS if bad else PRAISE)
            text = draw.choice(
                (f"the {part} of the {thing} {verb} {when} {tail}", f"{when} our {thing} {verb} by its {part} {tail}")
            )
            yield {"text": text, "text_pair": "", "label": LABELS[bad]}

    key = {"rows": rows, "share": share, "seed": seed, "version": 1}
    return Data.from_rows("reports", {"train": made}, key=key, licence="cc0-1.0")
