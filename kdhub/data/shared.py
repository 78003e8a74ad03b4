"""What rows have in common (a graph, a table of features): arrays beside the rows, which name them.

    graph = Shared({"name": "cora", "version": 1}, read_graph)              # read_graph() -> {"edges": array, ...}
    rows = lambda: ({"graph": graph.name, "node": n} for n in range(2708))
    Data.from_rows("cora", {"train": rows}, key={"version": 1}, shared=[graph])

    shared(row["graph"])["edges"]                                           # in `collate`, in whatever process

The arrays lie below `$KDHUB_HOME/data/shared`, are memory-mapped and opened once in each process, and are in no row. A
name is a digest of their content: rows of another graph have another fingerprint, and another key in the signal store.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kdhub.errors import DataError
from kdhub.files import canonical_json, changed, home, read_sealed, sealed, write_sealed

NAME = re.compile(r"[0-9a-f]{32}")
_SEALS = "seals.json"
FIELD = re.compile(r"[A-Za-z0-9_-]+")


class Shared:
    """Arrays that rows name.

    Args:
        key: what they depend on (versions, digests of files); equal keys mean equal arrays, which are made once.
        arrays: a function that gives them by name, of any shapes; no objects.
    """

    def __init__(self, key: Mapping[str, Any], arrays: Callable[[], Mapping[str, np.ndarray]]):
        self.key, self.arrays = dict(key), arrays

    @cached_property
    def name(self) -> str:
        """What rows name them by; the arrays are there from then on."""
        from filelock import FileLock

        known = _root() / "keys" / (hashlib.sha256(canonical_json(self.key)).hexdigest()[:32] + ".json")
        known.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(known.with_suffix(".lock")):  # ranks and parallel runs ask for the same: one makes it
            try:
                name = read_sealed(known)["name"]
                if (_root() / name).is_dir():
                    return name
            except (OSError, ValueError, KeyError):
                pass
            name = _keep({field: np.ascontiguousarray(values) for field, values in self.arrays().items()})
            write_sealed(known, {"name": name, "key": self.key})
        return name


def shared(name: str) -> Mapping[str, np.ndarray]:
    """The arrays that rows name so, memory-mapped and not to be written to; opened once in each process.

    Raises:
        DataError: they are not here, or damaged.
    """
    return _opened(_root(), name)


@cache
def _opened(root: Path, name: str) -> Mapping[str, np.ndarray]:
    files = sorted((root / name).glob("*.npy")) if NAME.fullmatch(name) else []
    try:
        if (root / name / _SEALS).is_file() and (damage := changed(root / name, read_sealed(root / name / _SEALS))):
            raise ValueError(f"{damage[0]} was changed since it was written")
        found = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
    except (OSError, ValueError) as error:
        raise DataError(
            f"the shared arrays in {root / name} are damaged: {error}", hint="delete that folder, and run again"
        ) from error
    if not found:
        raise DataError(
            f"rows name the shared arrays {name[:40]!r}, which are not here",
            hint="open the data set that the rows are of: it makes them again",
        )
    return MappingProxyType(found)


def _root() -> Path:
    return home() / "data" / "shared"


def _keep(arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays into the folder of their digest."""
    digest = hashlib.sha256()
    for field, values in sorted(arrays.items()):
        if not FIELD.fullmatch(field) or values.dtype.hasobject:
            raise DataError(f"shared arrays are numbers under plain names, not {field!r} of {values.dtype}")
        digest.update(canonical_json([field, values.dtype.str, list(values.shape)]))
        digest.update(values.reshape(-1).view(np.uint8).data)
    name = digest.hexdigest()[:32]
    if not (folder := _root() / name).is_dir():
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
        try:
            for field, values in arrays.items():
                np.save(staging / f"{field}.npy", values)
            write_sealed(staging / _SEALS, sealed(staging))
            os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return name
