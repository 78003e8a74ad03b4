"""An edit: a diffusion, guides that were tuned on a picture, and how they are mixed.

    config.json    prompts, weights and windows of guides, sampling, from which picture they were made
    source.png     that picture
    base/          the diffusion, as its own task saves it
    guide-1/ ...   whole guides likewise; of adapters adapter_config.json and adapter_model.safetensors (peft)

The base is in the folder, so that it opens by itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.pictures import Picture
from kdhub.plain_json import read_json
from kdhub.rows import Example
from kdhub_generative.editing.guides import (
    SMALL,
    UNTIL,
    UNTIL_OF_SMALL,
    Guide,
    Lora,
    composed,
    load_adapters,
    save_adapters,
    share_of,
    unlike,
)
from kdhub_generative.editing.settings import Editing
from kdhub_generative.images.model import ImageModel, picture_of
from kdhub_generative.images.process import Process, ddim

PLAIN = Editing()


class EditModel(ImageModel):
    """A diffusion and its guides; one without guides is the diffusion alone.

    Args:
        base: the diffusion. guides: the last one is the network that is trained.
        guidance: w; steps: calls from noise to the picture.
        prompt: what is drawn where nobody says what: the edit that it was made for.
        source: bytes (channels, height, width), the picture that the guides were tuned on.
        from_image: `name`, `sha256` and `licence` of it.
        size: of a side of what is drawn, in pixels; the base's if None.

    Raises:
        CompatibilityError: a guide is not like the base. UsageError: weights, or a size that the base cannot have.
    """

    task = "image-editing"
    Settings = Editing

    def __init__(
        self, base: ImageModel, guides: Sequence[Guide] = (), *, guidance: float = 7.5, steps: int = 100,
        prompt: str | None = None, source: np.ndarray | None = None, from_image: Mapping[str, Any] | None = None,
        size: int | None = None, start: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        if base.one_call:
            raise CompatibilityError("an edit needs a base that draws in many steps, and this is a one-call model")
        self.base, self.guides = base, list(guides)
        for n, guide in enumerate(self.guides, 1):
            if guide.lora is None and (why := unlike(base, guide.model)):
                raise CompatibilityError(
                    f"guide {n} cannot guide this base: {why}", hint="guides are tuned copies of it"
                )
            if fault := guide.model.knows.fault(guide.prompt):
                raise UsageError(f"the prompt of guide {n}: {fault}")
        share_of([guide.weight for guide in self.guides])
        module = (self.guides[-1].model if self.guides else base).module
        super().__init__(module, base.shape, base.classes, base.has_null, steps, guidance, start, base.words)
        self.prompts, self.prompt, self.source, self.from_image = base.prompts, prompt, source, dict(from_image or {})
        self.size, self.only = None, None
        self.resize(size)

    # -- what it is -------------------------------------------------------------------------------------------

    @property
    def process(self) -> Process:
        return self.base.process

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.base.pixels[0], self.size, self.size) if self.size else self.base.pixels

    @property
    def limits(self) -> list[str]:
        if not self.from_image:
            return []
        name, digest = self.from_image.get("name", "a picture"), str(self.from_image.get("sha256", ""))[:16]
        return [f"Its guide was made from one image ({name}, sha256 {digest}), which it can draw again."]

    def resize(self, size: int | None) -> None:
        """Draw pictures of so many pixels a side from here on."""
        if size is not None and size != self.base.pixels[1]:
            if not self.base.stride or size % self.base.stride:
                known = f"multiples of {self.base.stride}" if self.base.stride else f"{self.base.pixels[1]} alone"
                raise UsageError(f"size must be one that the base can draw, {known} (size={size})")
            self.size, each = size, self.base.pixels[1] // self.base.shape[1]
            self.shape = (self.base.shape[0], size // each, size // each)
        else:
            self.size, self.shape = None, self.base.shape

    @property
    def until(self) -> float:
        """Where guides end unless somebody says where."""
        return UNTIL_OF_SMALL if max(self.pixels[1:]) <= SMALL else UNTIL

    def set_last(self, **how: Any) -> None:
        """Change prompt, weight or window of the last guide."""
        self.guides[-1] = replace(self.guides[-1], **how)
        share_of([guide.weight for guide in self.guides])

    def conditions(self, names: Sequence[str | None]) -> dict[str, Tensor]:
        return self.base.conditions(names)

    def coded(self, x: Tensor) -> Tensor:
        return self.base.coded(x)

    def decode(self, x0: Tensor) -> Tensor:
        return self.base.decode(x0)

    # -- drawing ----------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """As of any diffusion; of rows with a picture, `picture` has it in -1 to 1 at its own size."""
        if not all("picture" in e for e in examples):
            batch = super().collate(examples)
            if self.guides and self.prompts:  # it has a text encoder of its own
                told = self.guides[-1].model.conditions([e["condition"] for e in examples])
                batch |= {f"guide_{name}": value for name, value in told.items()}
            return batch
        given = [np.asarray(e["picture"]) for e in examples]
        given = np.stack([picture if picture.ndim == 3 else picture[None] for picture in given])
        raw = torch.from_numpy(given.astype(np.float32)) / 127.5 - 1
        batch = {"x": self.coded(brought(raw, self.base.pixels[1:])), "picture": raw, "t": torch.zeros(len(examples))}
        batch["seed"] = torch.tensor([e["seed"] for e in examples])
        return batch | self.conditions([e["condition"] for e in examples])

    def draw(self, batch: Mapping[str, Tensor], how: Editing = PLAIN) -> Tensor:
        for model in (self.base, *(guide.model for guide in self.guides)):
            model.module.to(batch["x"].device).eval()
        steps = how.steps or self.steps
        scale = self.guidance if how.guidance is None else how.guidance
        only = how.only or self.only
        if scale != 1 and "null" not in batch:
            raise CompatibilityError(
                f"an edit with guidance needs a base that knows its conditions and nothing (guidance={scale:g})",
                hint="train it with denoise on rows with labels: student: {source: ..., conditional: words}",
            )
        if only in ("guide", "guide-asked"):
            guide = self._last()
            told = guide.model.conditions([guide.prompt] * len(batch["x"]))
            told = {name: value.to(batch["x"].device) for name, value in told.items()}
            if only == "guide-asked":
                told = {name: batch.get(f"guide_{name}", batch[name]) for name in told}
            alone = lambda x, t: picture_of(guide.model.module, x, t, told, scale)  # noqa: E731
            return ddim(self.process, alone, batch["x"], steps)
        plain = lambda x, t: picture_of(self.base.module, x, t, batch, scale)  # noqa: E731
        guides = [] if only == "base" else self._guides(how)
        predict = composed(plain, self.base.module, guides, dict(batch), scale)
        return ddim(self.process, predict, batch["x"], steps)

    def _last(self) -> Guide:
        if not self.guides:
            raise CompatibilityError("an edit without guides has none that could draw alone (only=guide)")
        return self.guides[-1]

    def _guides(self, how: Editing) -> list[Guide]:
        """With the weight and window that were asked for."""
        guides, total = self.guides, sum(guide.weight for guide in self.guides)
        if how.guide_weight is not None and guides:
            each = [g.weight / total if total else 1 / len(guides) for g in guides]
            guides = [replace(g, weight=how.guide_weight * share) for g, share in zip(guides, each)]
        if how.guide_until is not None:
            guides = [replace(g, until=how.guide_until, since=max(g.since, how.guide_until)) for g in guides]
        return guides

    # -- folders ----------------------------------------------------------------------------------------------

    def finalise(self) -> None:
        for guide in self.guides:
            guide.model.finalise()

    def save(self, folder: Path) -> None:
        said = []
        (folder / "base").mkdir()
        self.base.save(folder / "base")
        for n, guide in enumerate(self.guides, 1):
            (own := folder / f"guide-{n}").mkdir()
            if guide.lora is None:
                guide.model.save(own)
            else:
                save_adapters(guide.model.root, guide.lora, own)
            known = {name: getattr(guide, name) for name in ("prompt", "weight", "until", "since")}
            grid = {"grid": guide.model.grid} if guide.model.grid else {}
            said.append(known | grid | ({"lora": guide.lora.model_dump()} if guide.lora else {}))
        config = {"kdhub": 1, "task": self.task, "guides": said, "from_image": self.from_image, "prompt": self.prompt}
        config |= {"guidance": self.guidance, "steps": self.steps, "size": self.size, "only": self.only}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        if self.source is not None:
            (folder / "source.png").write_bytes(as_png(self.source))

    @classmethod
    def load(cls, folder: Path, opened: Callable[[Path], ImageModel], name: str = "") -> EditModel:
        """
        Args:
            opened: a folder of a diffusion -> the model.

        Raises:
            UntrustedError: its configuration is not that of an edit. CompatibilityError: a guide is not like the base.
        """
        from kdhub_tasks.classification import images

        try:
            config, base = read_json(folder / "config.json"), opened(folder / "base")
            guides = []
            for n, said in enumerate(config["guides"], 1):
                known = {key: said[key] for key in ("prompt", "weight", "until", "since")}
                if (lora := said.get("lora")) is None:
                    guides.append(Guide(opened(folder / f"guide-{n}"), **known))
                    continue
                guides.append(Guide(base.copied(), **known, lora=Lora(**lora)))
                load_adapters(guides[-1].model.root, guides[-1].lora, folder / f"guide-{n}")
                if said.get("grid"):
                    guides[-1].model.place(said["grid"])
            path = folder / "source.png"
            source = images.read(path.read_bytes()) if path.is_file() else None
            source = source[None] if source is not None and source.ndim == 2 else source
            keys = ("guidance", "steps", "prompt", "from_image", "size")
            student = cls(base, guides, source=source, **{key: config[key] for key in keys})
            student.only = config["only"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UntrustedError(f"{name or folder} is not an edit that kdhub saved: {error}") from error
        student.module.eval()
        return student

    # -- for its card -----------------------------------------------------------------------------------------

    def pictures(self) -> Iterator[Picture]:
        if self.source is not None:
            sentence = f"The picture that its guide was made from ({self.from_image.get('name', 'unnamed')[:200]})."
            yield Picture("source.png", sentence, as_png(self.source))

    def front_matter(self) -> dict[str, Any]:
        told = [f"{g.prompt}: weight {g.weight:g} while {g.until:g} < t <= {g.since:g}" for g in self.guides]
        return {"guides": told, "edited_image": self.from_image} if told else {}

    def usage(self) -> str:
        example = {"seed": 0} | ({"condition": self.prompt} if self.prompt else {})
        return (
            'import kdhub\nstudent = kdhub.load("{path}")\n'
            f'picture = kdhub.open_task("{self.task}").pictures(student, [{example}])[0]  # bytes, channels first'
        )

    @property
    def library(self) -> str:
        return "kdhub"


def brought(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures (rows, channels, height, width) to another size, bicubic; each side by itself."""
    if tuple(pictures.shape[2:]) == tuple(size):
        return pictures
    smaller = pictures.shape[2] > size[0] or pictures.shape[3] > size[1]
    return interpolate(pictures, tuple(size), mode="bicubic", align_corners=False, antialias=smaller).clamp(-1, 1)


def as_png(picture: np.ndarray) -> bytes:
    """Bytes (channels, height, width), one channel or three, as a file."""
    from PIL import Image

    file = io.BytesIO()
    lines = picture[0] if len(picture) == 1 else picture[:3].transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(lines)).save(file, "PNG")
    return file.getvalue()
