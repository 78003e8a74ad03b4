"""A data set as the student, with what makes its labels: images as rows, and a label projector in the same folder.

    config.json               what `kdhub.DatasetStudent` has, and `network: label-projector` with its settings
    data/train-...parquet     `image` (PNG) and `label`
    projector.safetensors     the low-rank deltas, in float16
    encoder.safetensors       the encoder that they belong to, by its digest

`datasets.load_dataset` opens the rows without kdhub; to kdhub it is rows where a recipe names data, and a classifier
where it names a teacher. There are no labels but the classes: those of an augmented view are made when it is seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdhub_tasks.classes import classes_for
from kdhub_tasks.classification.model import NetworkClassifier
from safetensors.torch import load_file, save_file

from kdhub.dataset_student import DatasetStudent
from kdhub.errors import CompatibilityError, UntrustedError
from kdhub.files import write_json
from kdhub.pictures import Picture
from kdhub.student import BuildContext
from kdhub_vision.condensed import projector
from kdhub_vision.condensed.projector import LabelProjector

NETWORK = "label-projector"
PROJECTOR, ENCODER = "projector.safetensors", "encoder.safetensors"
DIGEST = "encoder_sha256"


def distilled_set(argument: str, context: BuildContext) -> DatasetStudent:
    """`distilled-set`: no images yet, for the classes of the training rows."""
    made = DatasetStudent(context.task.name)
    made.classes, made.shape = classes_for(context), context.facts.get("shape")
    return made


class DistilledSet(NetworkClassifier):
    """Images and their label projector.

    Args:
        config: of the projector, and `encoder_sha256`.
        encoder: its weights.
        splits, about: as of a `DatasetStudent`.
    """

    kind = "dataset"

    def __init__(
        self, task: str, config: Mapping[str, Any], encoder: Mapping[str, Any], splits: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None, start: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        digest = projector.digest_of(encoder)
        if config.get(DIGEST, digest) != digest:
            raise CompatibilityError(
                f"the label projector was made for an encoder with the digest {config[DIGEST][:12]}, and this one has "
                f"{digest[:12]}: its deltas mean nothing to another one",
                hint="take the encoder that was published with the data set",
            )
        super().__init__(task, {name: value for name, value in config.items() if name != DIGEST}, start)
        self.config[DIGEST] = digest
        self.module.open(encoder)
        self.module.eval()
        self.set, self.precision = DatasetStudent(task, splits, about), "float16"

    @property
    def splits(self) -> dict[str, Any]:
        return self.set.splits

    def save(self, folder: Path) -> None:
        self.set.save(folder)
        rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", {**rows, **self.config})
        save_file({n: t.half().contiguous() for n, t in self.module.state_dict().items()}, folder / PROJECTOR)
        state = self.module.encoder.state_dict()
        save_file({name: value.float().contiguous() for name, value in state.items()}, folder / ENCODER)

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> DistilledSet:
        """
        Raises:
            CompatibilityError: the encoder is another one. UntrustedError: weights are missing, or of another network.
        """
        rows = DatasetStudent.load(folder)
        try:
            deltas, encoder = (load_file(folder / name) for name in (PROJECTOR, ENCODER))
        except OSError as error:
            raise UntrustedError(f"{folder} lacks {PROJECTOR} or {ENCODER}") from error
        mine = {name: value for name, value in config.items() if name not in ("kdhub", "splits", "about")}
        made = cls(config["task"], mine, encoder, rows.splits, rows.about)
        made.module.load_state_dict({name: value.float() for name, value in deltas.items()})
        return made

    def bytes_of(self, folder: Path) -> dict[str, int]:
        """Of the images, of the projector (2 sum r (d + k)), and of the encoder."""
        state = self.module.state_dict()
        return {
            "image": sum(path.stat().st_size for path in (folder / "data").iterdir()),
            "projector": 2 * sum(value.numel() for value in state.values()),
            "encoder": (folder / ENCODER).stat().st_size,
        }

    def costs(self, folder: Path) -> dict[str, float]:
        return self.set.costs(folder)

    def pictures(self) -> Iterator[Picture]:
        """Its images, up to ten of each class, a row a class."""
        from kdhub_vision.condensed.drawing import grid

        if "train" in self.splits:
            yield grid(self.splits["train"], self.classes)

    def front_matter(self) -> dict[str, Any]:
        return self.set.front_matter()

    def usage(self) -> str:
        return self.set.usage()

    @property
    def library(self) -> str:
        return "datasets"


LabelProjector.student = DistilledSet
