"""Models that draw: a network, its process and its conditions behind one adapter.

A *diffusion* is called many times, from noise to the picture. A *one-call* model is read at fixed constants and given
the noise e alone, whatever t is: g(e, 0) is the picture (`Predictor.readout`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdhub import open_network
from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.ranks import device
from kdhub.rows import Example, Signals
from kdhub.signals.settings import own_noise
from kdhub.student import Student
from kdhub_generative.images.process import Process, ddim, guided, process_of
from kdhub_generative.images.settings import LONGEST, Conditions, Drawing

TASK = "image-generation"
STEPS = 25
"""Calls from noise to the picture where nobody says how many."""
BATCH = 256
PLAIN = Drawing()


class Predictor(nn.Module):
    """The picture that a network predicts, whatever it gives itself.

    Args:
        network: (x, time, condition, guidance) -> a tensor like x.
        prediction: what it gives, one of `PREDICTIONS`.

    Attributes:
        readout: t of the constants by which what it gives is read; None: those of the t that it is asked at. A one-call
            model is read at the noise end: at the t that it is asked at it would give g(e, 0) = e whatever its weights.
    """

    def __init__(self, network: nn.Module, process: Process, prediction: str, readout: float | None = None):
        super().__init__()
        self.network, self.process, self.prediction, self.readout = network, process, prediction, readout

    def forward(self, inputs: Mapping[str, Any]) -> Signals:
        """`x` (rows, *shape), `t` (rows,), and where it has such `condition` and `guidance`, a value a row ->
        `output`, of the network, and `x0`, the picture in -1 to 1; also as `image`. `box`, (rows, 4), says where in a
        larger picture x lies, for networks with position codes."""
        x, t = inputs["x"], inputs["t"]
        if getattr(self.network, "grid", None):
            self.network.boxes = inputs.get("box")
        given = self.network(x, self.process.network_time(t), inputs.get("condition"), inputs.get("guidance"))
        at = t if self.readout is None else torch.full_like(t, self.readout)
        picture = self.process.x0(self.prediction, given, x, at)
        return Signals(output=given, x0=picture, image=picture)


class ImageModel(Student):
    """A model that draws pictures of noise.

    Args:
        module: the network; shape: of x; classes: names of its conditions, None where it has none.
        words: of which its conditions consist, in place of names.
        has_null: whether it also knows the condition of nothing, after all classes.
        steps: calls that it is sampled in; ignored by a one-call model.
        guidance: of a one-call model: the guidance that its pictures have, or the range of what it can be asked for.

    Attributes:
        prompts: whether its conditions are texts. Settings: how it can be drawn.
        grid: cells a side of the position codes that its network has; None: it has none.
        stride: a side of its pictures may be any multiple of it; 0: they have one size.
        shape: of x; `pixels` is that of a picture.
    """

    task = TASK
    kinds = ("image", "x0")
    Settings: type[Drawing] = Drawing
    prompts = False
    grid: int | None = None
    stride = 0

    def __init__(
        self, module: Predictor, shape: Sequence[int], classes: Sequence[str] | None = None, has_null: bool = False,
        steps: int = STEPS, guidance: float | Sequence[float] = 1.0, start: Mapping[str, Any] | None = None,
        words: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(start)
        self.words = None if words is None else list(words)
        self.module, self.shape, self.steps = module, tuple(shape), steps
        self.classes, self.has_null = None if classes is None else list(classes), has_null
        self.guidance = guidance if isinstance(guidance, int | float) else tuple(guidance)

    # -- what it is -------------------------------------------------------------------------------------------

    @property
    def process(self) -> Process:
        return self.module.process

    @property
    def one_call(self) -> bool:
        return self.module.readout is not None

    @property
    def knows(self) -> Conditions:
        classes, words = (None if names is None else tuple(names) for names in (self.classes, self.words))
        return Conditions(classes, self.prompts, self.has_null, words)

    @property
    def pixels(self) -> tuple[int, ...]:
        return self.shape

    def describe(self) -> dict[str, Any]:
        known = {"classes": self.classes, "prompts": self.prompts, "has_null": self.has_null, "words": self.words}
        return {"widths": {"x0": list(self.shape)}, "pixels": list(self.pixels), "one_call": self.one_call, **known}

    def conditions(self, names: Sequence[str | None]) -> dict[str, Tensor]:
        """`condition` of some rows, and `null`, that of nothing, where it knows one; empty where it has none."""
        if not self.knows.any:
            return {}
        if self.words is not None:
            no_word = len(self.words)
            ids = [[self.words.index(word) for word in (name or "").split()] for name in names]
            found = torch.tensor([[*some, *[no_word] * (LONGEST - len(some))] for some in ids])
            return {"condition": found, "null": torch.full_like(found, no_word)}
        null = len(self.classes)
        found = [null if name is None else self.classes.index(name) for name in names]
        return {"condition": torch.tensor(found)} | ({"null": torch.full((len(found),), null)} if self.has_null else {})

    # -- drawing ----------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """`x`, the noise of each row's seed, and `t`, where its drawing begins (a one-call model: 0); of rows with a
        picture that, in -1 to 1, also as `picture`, and t = 0. Then `seed` and conditions."""
        if all("picture" in e for e in examples):
            pictures = self.encode(np.stack([self._fitting(e["picture"]) for e in examples]))
            batch = {"x": pictures, "picture": pictures, "t": torch.zeros(len(examples))}
        else:
            batch = {"x": torch.from_numpy(own_noise([e["seed"] for e in examples], self.shape))}
            batch["t"] = torch.full((len(examples),), 0.0 if self.one_call else self.process.start)
        batch["seed"] = torch.tensor([e["seed"] for e in examples])
        batch |= self.conditions([e["condition"] for e in examples])
        if self.one_call and isinstance(self.guidance, tuple):
            batch["guidance"] = torch.full((len(examples),), self.guidance[0])
        return batch

    def _fitting(self, picture: np.ndarray) -> np.ndarray:
        """
        Raises:
            DataError: it has another size, or other channels, than the model's.
        """
        x = picture[None] if picture.ndim == 2 else picture
        if x.shape == (1, *self.pixels[1:]):
            x = np.broadcast_to(x, self.pixels)
        if x.shape != self.pixels:
            size = "x".join(map(str, self.pixels[1:]))
            raise DataError(
                f"a picture of {' x '.join(map(str, x.shape))} for a model of {' x '.join(map(str, self.pixels))}",
                hint=f"bring them to that size: resized:{size}:DATA",
            )
        return x

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Bytes (n, channels, height, width) as the process has them.

        Raises:
            DataError: they are numbers of another kind.
        """
        if pictures.dtype != np.uint8:
            raise DataError(
                f"pictures are bytes of 0 to 255, not {pictures.dtype} of {pictures.min():.3g} to {pictures.max():.3g}"
            )
        return self.coded(torch.from_numpy(pictures.astype(np.float32)) / 127.5 - 1)

    def coded(self, x: Tensor) -> Tensor:
        """Pictures in -1 to 1 as the process has them."""
        return x

    def decode(self, x0: Tensor) -> Tensor:
        """What the process ends at as pictures in -1 to 1."""
        return x0

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        """`x0`: what one call makes of the noise, as it is; `image`, with settings or without: drawn pictures as
        bytes."""
        self.module.to(where := device())
        was, parts = self.module.training, []
        how = self.Settings.parse(kind) if self.Settings.names(kind) else None
        self.module.eval()
        with torch.no_grad():
            for begin in range(0, len(examples), BATCH):
                batch = {k: v.to(where) for k, v in self.collate(examples[begin : begin + BATCH]).items()}
                if how is None:
                    parts.append(self.module(batch)[kind].float().cpu().numpy())
                else:
                    parts.append(in_bytes(self.decode(self.draw(batch, how))))
        self.module.train(was)
        return {kind.partition(":")[0]: np.concatenate(parts)}

    def raw(self, examples: Sequence[Example]) -> Tensor:
        """What some rows end at, before it is cut to the range of pictures."""
        self.module.to(where := device())
        with torch.no_grad():
            return self.decode(self.draw({n: value.to(where) for n, value in self.collate(examples).items()}))

    def draw(self, batch: Mapping[str, Tensor], how: Drawing = PLAIN) -> Tensor:
        """The pictures of a batch's noise and conditions, by this model's own process.

        Raises:
            CompatibilityError: it cannot be drawn so.
        """
        if self.one_call:
            return self.module(self._once(batch, how)).x0
        scale = 1.0 if how.guidance is None else how.guidance
        if scale != 1 and "null" not in batch:
            raise CompatibilityError(
                f"guidance needs a model that knows its conditions and nothing (guidance={scale:g})",
                hint="train it with denoise on rows with labels: student: {source: ..., conditional: true}",
            )

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return picture_of(lambda inputs: self.module(inputs), x, t, batch, scale)

        return ddim(self.process, predict, batch["x"], how.steps or self.steps)

    def _once(self, batch: Mapping[str, Tensor], how: Drawing) -> dict[str, Tensor]:
        if how.steps not in (None, 1):
            raise CompatibilityError(f"a one-call model cannot be drawn in several steps (steps={how.steps})")
        if how.guidance is None or how.guidance == self.guidance:
            return dict(batch)
        if not isinstance(self.guidance, tuple) or not self.guidance[0] <= how.guidance <= self.guidance[1]:
            own = self.guidance
            own = f"{own:g}" if not isinstance(own, tuple) else f"{own[0]:g} to {own[1]:g}"
            raise CompatibilityError(f"guidance of this one-call model is {own} (guidance={how.guidance:g})")
        return {**batch, "guidance": torch.full_like(batch["t"], how.guidance)}

    # -- other models of it -----------------------------------------------------------------------------------

    @property
    def root(self) -> nn.Module:
        """The network alone."""
        return self.module.network

    def copied(self) -> ImageModel:
        """Another one with the same weights, which are its own."""
        raise CompatibilityError(f"a {type(self).__name__} cannot be copied as a guide")

    def train_text(self) -> None:
        """Have what encodes conditions trained with the network, where it is apart from it."""

    def place(self, grid: int) -> None:
        """Have position codes of so many cells a side added to what the first convolution gives.

        Raises:
            CompatibilityError: it has no convolutions.
        """
        raise CompatibilityError(
            "patches need a network that begins with a convolution (patch_training=true)", hint="--student unet:"
        )

    def as_one_call(self, readout: float, fresh: bool = False) -> ImageModel:
        """A copy with weights of its own that is read at the constants of t = `readout`. One that predicts epsilon
        gets a last layer of its own for pictures, as those constants would amplify its errors.

        Args:
            fresh: with random weights.
        """
        raise CompatibilityError(f"a {type(self).__name__} cannot be copied as a one-call model")

    def take_guidance(self, low: float, high: float) -> None:
        """Have the network told the guidance of each row, from `low` to `high`."""
        raise CompatibilityError(
            f"guidance that is drawn needs a network that is told it (guidance_scale={low:g} to {high:g})",
            hint="give one number, or take a teacher with such an input",
        )

    @property
    def library(self) -> str:
        return "kdhub"


class NetworkModel(ImageModel):
    """A network of ours, by its registered name.

        config.json           network and its settings, what it predicts, conditions
        model.safetensors

    Args:
        config: `network`, its settings, `shape`, `prediction`, and where they are not as by default `process`,
            `classes`, `has_null`, `readout`, `steps`, `guidance`.
    """

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        self.config = dict(config)
        classes, ranged = config.get("classes"), isinstance(config.get("guidance"), list)
        conditions = {"conditions": len(classes) + bool(config.get("has_null"))} if classes is not None else {}
        if "words" in config:
            conditions = {"conditions": len(config["words"]) + 1, "words": True}
        network = open_network(config["network"])(
            config["shape"], **config["settings"], **conditions, **({"guided": True} if ranged else {})
        )
        module = Predictor(network, process_of(config), config["prediction"], config.get("readout"))
        more = {name: config[name] for name in ("has_null", "steps", "guidance", "words") if name in config}
        super().__init__(module, config["shape"], classes, start=start, **more)

    def copied(self) -> NetworkModel:
        made = NetworkModel(self.config)
        made.module.load_state_dict(self.module.state_dict())
        return made

    def as_one_call(self, readout: float, fresh: bool = False) -> NetworkModel:
        prediction = "x0" if self.module.prediction == "epsilon" else self.module.prediction
        made = NetworkModel({**self.config, "readout": readout, "prediction": prediction})
        if not fresh:
            weights = self.module.state_dict()
            if prediction != self.module.prediction:  # a head of its own, that begins at nothing
                weights = {n: w for n, w in weights.items() if not n.startswith("network.write.")}
            made.module.load_state_dict(weights, strict=False)
        return made

    def take_guidance(self, low: float, high: float) -> None:
        network = self.module.network
        if not hasattr(network, "guidance_input"):
            super().take_guidance(low, high)
        network.guidance = network.guidance_input(network.read.out_features).to(next(network.parameters()).device)
        self.guidance, self.config["guidance"] = (low, high), [low, high]

    def save(self, folder: Path) -> None:
        own = {"readout": self.module.readout, "guidance": self.guidance, "steps": self.steps}
        config = {"kdhub": 1, "task": self.task, **self.config, **own}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        weights = {name: value.contiguous() for name, value in self.module.network.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], name: str = "") -> NetworkModel:
        """
        Raises:
            UntrustedError: configuration or weights are not those of such a model.
        """
        try:
            student = cls({k: v for k, v in config.items() if k not in ("kdhub", "task")})
            student.module.network.load_state_dict(load_file(folder / "model.safetensors"))
        except (KeyError, TypeError, RuntimeError, OSError) as error:
            raise UntrustedError(f"{name or folder} is not a model that kdhub saved: {error}") from error
        student.module.eval()
        return student

    def usage(self) -> str:
        names = self.classes or self.words
        example = {"seed": 0} | ({"condition": names[0]} if names else {})
        return (
            'import kdhub\nstudent = kdhub.load("{path}")\n'
            f'picture = kdhub.open_task("{TASK}").pictures(student, [{example}])[0]  # bytes, channels first'
        )


def picture_of(ask: Any, x: Tensor, t: Tensor, batch: Mapping[str, Any], scale: Any = 1.0) -> Tensor:
    """The picture that a diffusion predicts at x and t, guided where `scale` is not 1: one call of `ask`, a function
    like `Predictor.forward`.

    Args:
        batch: with `condition` and `null` of each row, where it has conditions.
    """
    if "condition" not in batch or (not isinstance(scale, Tensor) and scale == 1):
        return ask({"x": x, "t": t, **({"condition": batch["condition"]} if "condition" in batch else {})}).x0
    both = {"x": torch.cat([x, x]), "t": torch.cat([t, t])}
    return guided(lambda c: ask({**both, "condition": c}).x0, batch["condition"], batch["null"], scale)


def in_bytes(pictures: Tensor) -> np.ndarray:
    """-1 to 1 as 0 to 255; what lies outside is cut off."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
