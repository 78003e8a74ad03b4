"""Models of the task: captioners of snapshots, and encoders of clips.

config.json          `captioner`: `network` and its settings
model.safetensors    its weights, and the masks of a captioner: with others its input means nothing

A folder of a CLIP of the transformers library is opened as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdhub_tasks.models import take_weights
from safetensors.torch import save_file

from kdhub import open_network
from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.plain_json import read_json
from kdhub.ranks import device
from kdhub.rows import Example
from kdhub.student import Student
from kdhub_vision.captioning.clip import TransformersClip
from kdhub_vision.captioning.networks import Captioner
from kdhub_vision.captioning.rows import Reader
from kdhub_vision.captioning.snapshot import measure
from kdhub_vision.captioning.spec import NAME
from kdhub_vision.captioning.words import END, FIRST, START

ROWS = 128
"""Clips that are run together."""


class VideoModel(Student):
    """A network that reads clips, or snapshots of them.

    Args:
        config: `network` and its settings.
    """

    task = NAME

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.config = dict(config)
        settings = {k: v for k, v in self.config.items() if k != "network"}
        self.module = open_network(self.config["network"])(**settings)

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.module.kinds

    @property
    def reads_snapshots(self) -> bool:
        return isinstance(self.module, Captioner)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """B, height and width of the clips that it reads; None for any."""
        return tuple(self.config["shape"])

    @property
    def words(self) -> list[str]:
        return self.module.words

    @property
    def room(self) -> int | None:
        """Words of a caption at most."""
        return self.config.get("length")

    def with_words(self, words: Sequence[str], length: int, seed: int) -> VideoModel:
        """The same with a fresh decoder of other words."""
        torch.manual_seed(seed)
        made = type(self)({**self.config, "words": list(words), "length": length}, self.start)
        kept = {n: t for n, t in self.module.state_dict().items() if not n.startswith("decoder.")}
        made.module.load_state_dict(kept, strict=False)
        return made

    def set_beam(self, beam: int) -> None:
        self.config["beam"] = self.module.beam = beam

    def take_clip(self, clip: VideoModel) -> None:
        """Put a trained `frame-clip` between reconstruction and decoder.

        Raises:
            CompatibilityError: it is another network, or for clips of another shape.
        """
        settings = {k: v for k, v in clip.config.items() if k != "network"}
        if clip.config.get("network") != "frame-clip" or tuple(settings["shape"]) != self.shape:
            raise CompatibilityError(
                f"captions after reconstruction are written on the features of a frame-clip for clips of {self.shape}",
                hint="teacher: recipe:snapcap-clip",
            )
        if self.config["clip"] == settings:
            return self.module.clip.load_state_dict(clip.module.state_dict()) and None
        self.config["clip"] = settings
        made = type(self)(self.config)
        for name, part in self.module.named_children():
            if name not in ("clip", "into"):
                getattr(made.module, name).load_state_dict(part.state_dict())
        made.module.masks.copy_(self.module.masks)
        made.module.clip.load_state_dict(clip.module.state_dict())
        self.module = made.module

    # -- clips ------------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """`measurement` (rows, height, width) for captioners, simulated where a row has frames; `frames` (rows, B,
        height, width) in [0, 1], zeros where a row has none; `words` (rows, n), -1 behind a caption."""
        high, wide = examples[0]["size"]
        frames = np.zeros((len(examples), examples[0]["many"], high, wide), np.float32)
        for row, example in zip(frames, examples):
            if example["frames"] is not None:
                row[:] = example["frames"]
        batch = {"frames": torch.from_numpy(frames)}
        if self.reads_snapshots:
            seen = measure(batch["frames"], self.module.masks.detach().float().cpu())
            for row, example in zip(seen, examples):
                if example["measurement"] is not None:
                    row[:] = torch.from_numpy(example["measurement"])
            batch["measurement"] = seen
        numbers = {word: n for n, word in enumerate(getattr(self.module, "words", ()), FIRST)}
        given = [[START, *(numbers.get(w, END) for w in e["words"]), END] if e["words"] else [] for e in examples]
        words = torch.full((len(examples), max(2, *map(len, given))), -1)
        for row, own in zip(words, given):
            row[: len(own)] = torch.tensor(own, dtype=torch.long)
        return {**batch, "words": words}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        """`text` as bytes of UTF-8, one array a row, `embedding` (n, width), `maps` (n, channels, h, w), and of models
        that reconstruct `frames` (n, B, height, width)."""
        if kind not in self.kinds:
            return super().signals(examples, kind)
        where, was, found = device(), self.module.training, []
        self.module.to(where).eval()
        with torch.no_grad():
            for start in range(0, len(examples), ROWS):
                batch = {k: v.to(where) for k, v in self.collate(examples[start : start + ROWS]).items()}
                given = self.module.signals(batch, kind)
                if kind == "text":
                    found += [np.frombuffer(text.encode(), np.uint8) for text in self.module.texts(given)]
                else:
                    found += list(given[kind].float().cpu().numpy())
        self.module.train(was)
        return {kind: found if kind == "text" else np.stack(found) if found else np.zeros((0, 0))}

    def caption(self, frames: Any = None, measurement: Any = None) -> str:
        """A caption of one clip.

        Args:
            frames: (B, height, width), bytes or numbers in [0, 1], of which the snapshot is simulated.
            measurement: (height, width), as a camera with these masks gives it: the sum of B frames in [0, 1].

        Raises:
            DataError: neither, or of another size than the model's.
        """
        example = Reader(self.shape, self)({"frames": frames, "measurement": measurement})
        if "fault" in example:
            raise DataError(": ".join(filter(None, (example["fault"], example["fault"].where))))
        return self.signals([example], "text")["text"][0].tobytes().decode()

    def first_word(self) -> int:
        """The number of the first word of a dark snapshot's caption: what there is to do before a word is there."""
        where = device()
        self.module.to(where).eval()
        with torch.no_grad():
            tokens, _ = self.module.read(torch.zeros(1, *self.shape[1:], device=where))
            begun = torch.full((1, 1), START, device=where)
            return int(self.module.decoder.next(begun, tokens).argmax())

    # -- files ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        widths: dict[str, Any] = {"text": [None]}
        frames, high, wide = self.shape
        one = {"frames": np.zeros(self.shape, np.float32), "measurement": None, "words": [], "size": (high, wide)}
        for kind in [kind for kind in self.kinds if kind != "text"]:
            widths[kind] = list(self.signals([{**one, "many": frames}], kind)[kind].shape[1:])
        return {"widths": {k: widths[k] for k in self.kinds}, "shape": list(self.shape)}

    def save(self, folder: Path) -> None:
        config = {"kdhub": 1, "task": NAME, "captioner": self.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_file({n: t.contiguous() for n, t in self.module.state_dict().items()}, folder / "model.safetensors")

    def usage(self) -> str:
        size = ", ".join(map(str, self.shape[1:] if self.reads_snapshots else self.shape))
        name = "measurement" if self.reads_snapshots else "frames"
        return "\n".join(
            (
                "import kdhub",
                "import numpy",
                'model = kdhub.load("{path}")',
                f"print(model.caption({name}=numpy.zeros(({size}))))",
            )
        )


class ClipModel(VideoModel):
    """A CLIP of the transformers library, as a teacher."""

    def __init__(self, model: Any):
        Student.__init__(self)
        self.config, self.module = {}, TransformersClip(model)

    shape = None

    def describe(self) -> dict[str, Any]:
        vision = getattr(self.module.model.config, "vision_config", self.module.model.config)
        cells = vision.image_size // vision.patch_size
        width = self.module.model.config.projection_dim
        return {"widths": {"embedding": [width], "maps": [vision.hidden_size, cells, cells]}, "shape": None}

    def save(self, folder: Path) -> None:
        self.module.model.save_pretrained(folder)


def load(folder: Path, *, name: str | None = None) -> VideoModel:
    """A model from its folder.

    Raises:
        UntrustedError: it is none that kdhub saved, nor a CLIP, or its weights are not those of its configuration.
    """
    check_model_folder(folder, name=name)
    try:
        config = read_json(folder / "config.json")
        if config.get("model_type") in ("clip", "clip_vision_model"):
            return _clip(folder, config)
        student = VideoModel(config["captioner"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UntrustedError(f"{name or folder} is not a model for {NAME} that kdhub saved, nor a CLIP") from error
    take_weights(student.module, folder / "model.safetensors", name or str(folder))
    student.module.float().eval()  # frames are float32, whatever the file has
    return student


def _clip(folder: Path, config: Mapping[str, Any]) -> ClipModel:
    import transformers

    whole = config["model_type"] == "clip" and "vision_config" in config
    kind = transformers.CLIPModel if whole else transformers.CLIPVisionModelWithProjection
    made = ClipModel(kind.from_pretrained(folder, use_safetensors=True))
    made.module.float().eval()
    return made
