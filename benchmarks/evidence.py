"""Measure what is claimed of some methods again and write the ledger: `make evidence METHOD=pld`.

Every comparison of the catalogue that has a claim about one of them is run; all its claims are written.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import kdhub
from kdhub.catalogue.catalog import default_catalog
from kdhub.errors import UnknownNameError

ROOT = Path(__file__).parents[1]


def comparisons(methods: list[str]) -> list[str]:
    """Those with a claim about one of the methods, or all."""
    catalog = default_catalog()
    about = {
        name: {claim["method"] for claim in catalog.get("comparisons", name).get("claims", ())}
        for name in catalog.names("comparisons")
    }
    known = set().union(*about.values())
    for method in methods:
        if method not in known:
            raise UnknownNameError("method with claims", method, known)
    return [name for name, claimed in about.items() if not methods or claimed & set(methods)]


if __name__ == "__main__":
    catalog = default_catalog()
    for name in comparisons(sys.argv[1:]):
        print(f"{name} ...", flush=True)
        folder = ROOT / "build/evidence" / name
        shutil.rmtree(folder, ignore_errors=True)
        ledger = catalog.path("comparisons", name).parents[1] / "evidence"  # beside the comparison that wrote it
        for claim in kdhub.compare(name, out=folder, record=ledger).claims():
            print(f"  {claim['method']}: {claim['text']}: {claim['outcome']}")
