"""Vectors of candidates stored on disk: a query costs one pass of the encoder, whatever the number of candidates.

    EmbeddingIndex.write(student, texts, folder)       `vectors.npy`, memory-mapped when it is read, and `kept.json`
    EmbeddingIndex(student, folder).rank(queries, 10)  positions and scores of the best candidates for each query

With the head `dot` scores are inner products, and any index of those can take `vectors.npy` as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.files import write_json

if TYPE_CHECKING:
    from kdhub_tasks.pairs.towers import TwoTowerStudent

PROBE = "A text that every student reads in its own way."
"""Its vector shows whose vectors are stored."""
BLOCK = 4096
"""Texts that are embedded, or scored, at once."""


class EmbeddingIndex:
    """The vectors of some texts, by one student.

    Raises:
        DataError: the folder has no vectors.
        CompatibilityError: they are another student's.
    """

    def __init__(self, student: TwoTowerStudent, folder: Path):
        try:
            facts = json.loads((Path(folder) / "kept.json").read_text(encoding="utf-8"))
            self.vectors = np.load(Path(folder) / "vectors.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder} has no stored vectors: {error}", hint="EmbeddingIndex.write makes them"
            ) from error
        probe = student.embed([PROBE])[0]
        if len(facts["probe"]) != len(probe) or not np.allclose(facts["probe"], probe, atol=1e-3):
            raise CompatibilityError(
                f"{folder} has the vectors of another student", hint="EmbeddingIndex.write makes new ones"
            )
        self.student = student

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def write(cls, student: TwoTowerStudent, texts: Sequence[str], folder: Path) -> EmbeddingIndex:
        """Embed texts into a folder, some thousand at a time; an incomplete one has no `kept.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kept.json").unlink(missing_ok=True)
        probe, part = student.embed([PROBE])[0], folder / ".vectors.npy"
        made = np.lib.format.open_memmap(part, "w+", np.float32, (len(texts), len(probe)))
        for start in range(0, len(texts), BLOCK):
            made[start : start + BLOCK] = student.embed(list(texts[start : start + BLOCK]))
        made.flush()
        os.replace(part, folder / "vectors.npy")
        write_json(folder / "kept.json", {"schema": 1, "texts": len(texts), "probe": probe.tolist()})
        return cls(student, folder)

    def rank(self, queries: Sequence[str], k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """(queries, k) positions of the candidates with the highest scores, best first, and the scores; of equal ones
        the first. The query is the left text of each pair.

        Raises:
            UsageError: the student has several scores, and candidates cannot be ranked by them.
        """
        if len(self.student.classes) > 2:
            raise UsageError(
                f"ranking needs one score for each pair, and the student has {len(self.student.classes)} classes",
                hint="score pairs with `matrix`",
            )
        left, k = self.student.embed(queries), min(k, len(self))
        positions, best = np.empty((len(left), 0), np.int64), np.empty((len(left), 0), np.float32)
        for start in range(0, len(self), BLOCK):
            block = self.student.matrix(left, self.vectors[start : start + BLOCK])
            here = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
            positions, best = np.concatenate([positions, here], 1), np.concatenate([best, block], 1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            positions, best = np.take_along_axis(positions, order, 1), np.take_along_axis(best, order, 1)
        return positions, best
