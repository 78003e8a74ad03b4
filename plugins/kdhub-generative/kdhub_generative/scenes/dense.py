"""2D models that turn a picture into a dense map of features: teachers of scenes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdhub.errors import CompatibilityError, TeacherError, UntrustedError, UsageError
from kdhub.fields import Field as Stored
from kdhub.files import canonical_json, sha256_files, write_json
from kdhub.ranks import device
from kdhub.rows import Example
from kdhub.student import BuildContext, Student, sizes
from kdhub.teacher import Teacher
from kdhub.teachers.saved import IDENTIFYING, SavedTeacher
from kdhub_generative.scenes.metrics import resized_labels

TASK = "radiance-field"


def stored(kind: str) -> dict[str, Any]:
    """A map of any size, line by line, and its size."""
    return {kind: Stored(kind, "float32", (), ragged=True), "size": Stored("size", "int32", (3,))}


def pictures(examples: Sequence[Example]) -> Tensor:
    """(n, 3, height, width), 0 to 1, of examples of one size."""
    return torch.from_numpy(np.stack([e["image"] for e in examples]).astype(np.float32) / 255).permute(0, 3, 1, 2)


def by_size(examples: Sequence[Example], run: Any) -> dict[str, Any]:
    """What `run` gives of pictures (n, channels, h, w), for examples of any sizes: flat maps, channels last."""
    made = []
    with torch.no_grad():
        for example in examples:
            made.append(run(pictures([example]).to(device()))[0].permute(1, 2, 0).float().cpu().numpy())
    return {"flat": [one.ravel() for one in made], "size": np.array([m.shape for m in made], np.int32).reshape(-1, 3)}


class SegmenterNetwork(nn.Module):
    """Three convolutions, the second with a stride of 2, and a head that is linear in the features: (n, 3, height,
    width) to `features` (n, channels, h, w) and `logits` (n, classes, h, w).

    Args:
        classes, channels: of the maps; width: of the middle.
    """

    def __init__(self, classes: int, channels: int = 16, width: int = 16):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, padding=1), nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip
        self.head = nn.Linear(channels, classes)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = self.body(inputs["image"] * 2 - 1)
        return {"features": features, "logits": self.head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}


class Segmenter(Student):
    """
    Args:
        config: `settings` of the network, and `names` of its classes.
    """

    task = TASK
    has_features = True

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.config = {"task": TASK, "network": "segmenter", **config}
        self.module = SegmenterNetwork(**self.config["settings"])

    @property
    def names(self) -> list[str]:
        return self.config["names"]

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """
        Raises:
            CompatibilityError: pictures of several sizes in a batch.
        """
        if len({e["image"].shape for e in examples}) > 1:
            raise CompatibilityError("pictures of several sizes in a batch", hint="--set batch_size=1")
        batch = {"image": pictures(examples)}
        if all(e.get("labels") is not None for e in examples):
            high, wide = (-(-n // 2) for n in batch["image"].shape[2:])
            batch["labels"] = torch.from_numpy(np.stack([resized_labels(e["labels"], high, wide) for e in examples]))
        return batch

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if kind not in ("features", "logits"):
            return super().signals(examples, kind)
        self.module.to(device()).eval()
        given = by_size(examples, lambda x: self.module({"image": x})[kind])
        return {kind: given["flat"], "size": given["size"]}

    def describe(self) -> dict[str, Any]:
        return {"widths": {"features": [None], "logits": [None]}, "scene": False, "names": self.names}

    def save(self, folder: Path) -> None:
        write_json(folder / "config.json", {"kdhub": 1, **self.config})
        weights = {name: value.contiguous().cpu() for name, value in self.module.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], name: str = "") -> Segmenter:
        try:
            made = cls({key: config[key] for key in ("settings", "names")})
            made.module.load_state_dict(load_file(folder / "model.safetensors"))
        except (KeyError, TypeError, RuntimeError, OSError) as error:
            raise UntrustedError(f"{name or folder} is not a segmenter that kdhub saved: {error}") from error
        return made


def segmenter(argument: str, context: BuildContext) -> Segmenter:
    """`segmenter:channels=16,width=16`: a fresh one, for the classes of the training rows.

    Raises:
        UsageError: no labels to know the classes from.
    """
    settings = sizes("segmenter", argument, channels=16, width=16)
    if not (names := context.facts.get("names")):
        raise UsageError("student segmenter needs training rows with labels", hint="--data shells")
    torch.manual_seed(context.seed)
    return Segmenter({"settings": {"classes": len(names), **settings}, "names": names}, {"how": "fresh segmenter"})


class SceneTeacher(SavedTeacher):
    """A saved 2D model. Its maps are of any size."""

    group_rows = 16

    @property
    def knows(self) -> list[str] | None:
        return self.facts.get("names")

    def layout(self, kind: str) -> dict[str, Any]:
        if self.facts["scene"] or kind not in ("features", "logits"):
            return super().layout(kind)
        return stored(kind)

    @property
    def head(self) -> nn.Linear | None:
        """What names its features."""
        return getattr(self.module, "head", None)


class DenseOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    layer: int = Field(-1, ge=-1, le=1000, description="which hidden states: -1 the last, 0 the embeddings")
    size: int | None = Field(None, ge=8, description="pixels of the shorter side that it is shown; as it is if unset")


class DenseTeacher(Teacher):
    """`dense:SOURCE`: any vision model of the transformers library whose states have a place in the picture: patches of
    a transformer, cells of a convolutional network. SOURCE is a folder, or `org/name` of a hub.

    Pictures are standardised as its preprocessor says, and, with `size`, enlarged first; nothing is cropped.
    """

    Options = DenseOptions
    group_rows = 8
    knows = head = None

    @cached_property
    def folder(self) -> Path:
        """
        Raises:
            UsageError: there is no such folder.
        """
        if (folder := Path(self.argument).expanduser()).is_dir():
            return folder
        if self.argument.startswith((".", "/", "~")) or "/" not in self.argument:
            raise UsageError(f"teacher dense:{self.argument}: there is no such folder")
        from kdhub.hub.fetch import fetch_model

        return fetch_model(self.argument)[0]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        files = [p.name for p in self.folder.iterdir() if p.suffix in IDENTIFYING]
        digests = sha256_files(self.folder, sorted(files))
        return {"kind": "dense", "files": digests, "layer": self.options.layer, "size": self.options.size}

    @property
    def provenance(self) -> Mapping[str, Any]:
        digest = hashlib.sha256(canonical_json(self.identity)).hexdigest()
        return {"source": f"dense:{self.argument}", "id": self.folder.name, "digest": digest}

    @cached_property
    def module(self) -> nn.Module:
        from transformers import AutoModel

        return AutoModel.from_pretrained(self.folder, use_safetensors=True).eval().requires_grad_(False)

    @cached_property
    def _standard(self) -> tuple[Tensor, Tensor]:
        from kdhub.plain_json import read_json

        file = self.folder / "preprocessor_config.json"
        given = read_json(file) if file.is_file() else {}
        return tuple(torch.tensor(given.get(n, [0.5] * 3)).reshape(1, 3, 1, 1) for n in ("image_mean", "image_std"))

    def layout(self, kind: str) -> dict[str, Any]:
        if kind != "features":
            raise TeacherError(f"dense:{self.argument} gives features, not {kind!r}")
        return stored(kind)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        self.module.to(device())
        given = by_size(examples, self._map)
        return {"features": given["flat"], "size": given["size"]}

    def _map(self, x: Tensor) -> Tensor:
        from torch.nn.functional import interpolate

        mean, std = (value.to(x) for value in self._standard)
        if self.options.size:
            by = self.options.size / min(x.shape[2:])
            x = interpolate(x, scale_factor=by, mode="bilinear", antialias=True)
        patch = getattr(self.module.config, "patch_size", 1)
        patch = patch if isinstance(patch, int) else patch[0]
        high, wide = (max(1, n // patch) for n in x.shape[2:])
        x = interpolate(x, (high * patch, wide * patch), mode="bilinear", antialias=True)
        more = {"interpolate_pos_encoding": True} if _takes(self.module, "interpolate_pos_encoding") else {}
        states = self.module(pixel_values=(x - mean) / std, output_hidden_states=True, **more).hidden_states
        given = states[self.options.layer]
        if given.dim() == 4:
            return given
        before = given.shape[1] - high * wide  # a class, registers
        if before < 0:
            raise TeacherError(f"dense:{self.argument} has {given.shape[1]} states for {high} x {wide} patches")
        return given[:, before:].reshape(len(given), high, wide, -1).permute(0, 3, 1, 2)


def _takes(module: nn.Module, name: str) -> bool:
    import inspect

    return name in inspect.signature(module.forward).parameters
