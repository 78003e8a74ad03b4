"""Ask a run's teacher again for some of its stored rows: finds teachers whose outputs change between calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdhub.files import canonical_json, home
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.signals.store import SignalStore
from kdhub.training.execute import unchained
from kdhub.training.session import Session
from kdhub.verbs import cache


def verify_run(
    folder: str | Path, *, every: int = 100, tolerance: float | None = None, remove: bool = False
) -> dict[str, Any]:
    """`cache.verify` of the stores a run used, with its training rows replayed through its live teacher.

    Args:
        folder: the run.
        every, tolerance: one row in so many; the relative difference allowed (see `cache.replay`).

    Raises:
        RunError: it is no run.
    """
    run, resolver = Run.open(folder), Resolver()
    run.recipe, _ = unchained(run.recipe, resolver)
    session = Session(run, resolver)
    session.run.read_only = True
    method, stores = session.method, []
    method.teachers = session.teachers
    settings = method.settings() if hasattr(method, "settings") else {}
    rows = session.rows("train", **settings)

    def live(store: SignalStore) -> Any:
        key, signal = canonical_json(store.key["teacher"]), store.key["signal"]
        asked = [(role, one) for role, each in session.teachers.items() for one in (each, *each.members)]
        role, teacher = next((one for one in asked if canonical_json(one[1].identity_of(signal)) == key), asked[0])
        read = session.read_by(role, rows)

        def compute(indices: np.ndarray) -> Any:
            return teacher.signals(read[indices], signal)

        return read.keys, compute

    for facts in session.run.provenance.get("signals", {}).values():
        found = cache.verify(
            facts["store"], root=home() / "signals", remove=remove, live=live, every=every, tolerance=tolerance
        )
        stores += found["stores"]
    bad = [s for s in stores if s["damaged"] or s["problem"] or (s["replay"] or {}).get("different")]
    return {"ok": not bad, "stores": stores}
