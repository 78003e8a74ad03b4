"""Scenes as students: Gaussians or a field, with a camera to look at them from.

config.json          `network` and its settings, `camera` and `up`, `cells`, names of classes
model.safetensors    all parameters, features and decoder included
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from kdhub import open_network
from kdhub.errors import CompatibilityError, UntrustedError
from kdhub.files import write_json
from kdhub.pictures import Picture
from kdhub.ranks import device
from kdhub.rows import Example
from kdhub.student import Student
from kdhub_generative.scenes.cameras import Camera, around
from kdhub_generative.scenes.gaussians import Gaussians, View


class Scene(Student):
    """
    Args:
        config: `task`, `network`, its `settings`, `camera` (columns of a row, `width` and `height`) and `up` (3,),
            which pictures turn around; where there are features `cells`, their rows and columns as shares of a
            picture's, and `names` of the classes of the teacher's head.
    """

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.config = dict(config)
        self.task = self.config["task"]
        self.module = open_network(self.config["network"])(**self.config["settings"])

    # -- looking ----------------------------------------------------------------------------------------------

    @property
    def camera(self) -> Camera:
        of = self.config["camera"]
        return Camera(np.array(of["viewmat"]), np.array(of["K"]), of["width"], of["height"], of["orthographic"])

    @property
    def centre(self) -> np.ndarray:
        """What pictures turn around."""
        return np.array(self.config.get("centre", [0.0, 0, 0]))

    def cameras(self, n: int, width: int, height: int) -> list[Camera]:
        """`n` cameras once around the scene, from the first that it was learnt from."""
        return around(self.centre, np.array(self.config["up"]), self.camera, n, width, height)

    @torch.no_grad()
    def render(self, camera: Camera) -> View:
        """What it looks like, without gradient."""
        self.module.to(device()).eval()
        return self.module.render(camera)

    @property
    def has_features(self) -> bool:
        return "cells" in self.config

    @property
    def names(self) -> list[str] | None:
        """Of the classes that its features stand for."""
        return self.config.get("names")

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        cameras = [e["camera"] for e in examples]
        return {
            "viewmat": torch.tensor(np.stack([c.viewmat for c in cameras])),
            "K": torch.tensor(np.stack([c.K for c in cameras])),
            "size": torch.tensor([[c.height, c.width] for c in cameras]),
            "orthographic": torch.tensor([c.orthographic for c in cameras]),
        }

    @torch.no_grad()
    def maps(self, camera: Camera, fine: bool = False) -> torch.Tensor:
        """(h, w, channels) of features in the teacher's space, at its scale and of its size; `fine`: of the picture's.

        Raises:
            CompatibilityError: it has none.
        """
        if not self.has_features:
            raise CompatibilityError("this scene carries no features", hint="distil some: --method feature-3dgs")
        shares = (1, 1) if fine else self.config["cells"]
        size = (max(1, round(n * share)) for n, share in zip((camera.height, camera.width), shares))
        return self.module.maps(self.render(camera).features, *size) * self.module.spread

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        """`image` (height x width x 3, line by line) of each camera; `features` and `logits` likewise, with their
        `size`; `fine-logits` are of the picture's size."""
        found, sizes = [], []
        for example in examples:
            if kind == "image":
                given = self.render(example["camera"]).image.clamp(0, 1)
            else:
                camera = example["camera"]
                if self.has_features or kind != "features":
                    given = self.maps(camera, fine=kind == "fine-logits")
                else:
                    given = self.render(camera).image  # its colours are all that it carries
                if kind.endswith("logits"):
                    if self.module.head is None:
                        raise CompatibilityError("this scene has no head that names its features")
                    with torch.no_grad():
                        given = self.module.head(given)
                elif kind != "features":
                    return super().signals(examples, kind)
            found.append(given.float().cpu().numpy().ravel())
            sizes.append(given.shape)
        return {kind: found, "size": np.array(sizes, np.int32).reshape(-1, 3)}

    # -- queries and edits ------------------------------------------------------------------------------------

    def query(
        self, target: str | Sequence[str] | None = None, prompts: Any = None, temperature: float = 1.0,
        threshold: float | None = None, union: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """Which Gaussians are of some classes (`target`, by the teacher's head), or are like vectors in its space.

        Args:
            prompts: (prompts, channels); `target` then names none: the first one is meant.
            temperature, threshold, union: see `Gaussians.scores` and `Gaussians.selected`.

        Raises:
            CompatibilityError: no such class, or no features.
        """
        if not self.has_features or not isinstance(self.module, Gaussians):
            raise CompatibilityError("only a scene of Gaussians with features can be queried")
        if prompts is not None:
            vectors = torch.as_tensor(np.asarray(prompts, np.float32))
            scores = self.module.scores(vectors, temperature)
            return self.module.selected(scores, [0], threshold, union)
        wanted = [target] if isinstance(target, str) else list(target or ())
        if not wanted or (unknown := [name for name in wanted if name not in (self.names or ())]):
            known = ", ".join(self.names or ()) or "none"
            raise CompatibilityError(f"this scene does not know the class {unknown[0] if wanted else None!r} ({known})")
        with torch.no_grad():
            scores = (self.module.head(self.module.own_features()) / temperature).softmax(1)
        return self.module.selected(scores, [self.names.index(name) for name in wanted], threshold, union)

    def edited(self, how: str, chosen: torch.Tensor, colour: Sequence[float] | None = None) -> Scene:
        """A copy: see `Gaussians.edited`."""
        made = type(self)(self.config, {**self.start, "how": f"{how} of {int(chosen.sum())} Gaussians"})
        made.module = self.module.edited(how, chosen, colour)
        return made

    # -- files ------------------------------------------------------------------------------------------------

    def export(self, file: str | Path) -> None:
        """A PLY: Gaussians as splat viewers take them, a field as a mesh."""
        if isinstance(self.module, Gaussians):
            self.module.write_ply(file)
        else:
            self.module.write_mesh(file)

    def save(self, folder: Path) -> None:
        if isinstance(self.module, Gaussians):
            self.config["settings"] = self.module.settings()
        write_json(folder / "config.json", {"kdhub": 1, **self.config})
        weights = {name: value.contiguous().cpu() for name, value in self.module.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], name: str = "") -> Scene:
        """
        Raises:
            UntrustedError: configuration or weights are not those of a scene.
        """
        try:
            scene = cls({k: v for k, v in config.items() if k != "kdhub"})
            scene.module.load_state_dict(load_file(folder / "model.safetensors"))
        except (KeyError, TypeError, RuntimeError, OSError) as error:
            raise UntrustedError(f"{name or folder} is not a scene that kdhub saved: {error}") from error
        return scene

    def describe(self) -> dict[str, Any]:
        return {"widths": {}, "scene": True}

    def pictures(self) -> Iterator[Picture]:
        """A sheet and a turntable."""
        from kdhub_generative.scenes.drawing import sheet, turntable

        yield sheet(self)
        yield turntable(self)

    def usage(self) -> str:
        return (
            'import kdhub\nscene = kdhub.load("{path}")\n'
            'scene.export("scene.ply")  # for splat viewers, or a mesh\n'
            "view = scene.render(scene.camera)  # image, opacity, depth"
        )
