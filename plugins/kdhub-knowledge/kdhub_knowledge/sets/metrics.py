"""What models of belief say beside their predictions. Networks have no such output: None."""

from __future__ import annotations

from kdhub_knowledge.sets.task import SetPredictions


def coverage(out: SetPredictions) -> float | None:
    """Share of rows about which something is known: whose mass on neither label is below 1."""
    return None if out.unknown is None else float((out.unknown < 1).mean())


def ignorance(out: SetPredictions) -> float | None:
    """Mean mass on neither label, 0 to 1."""
    return None if out.unknown is None else float(out.unknown.mean())
