"""How a model of the transformers library sees images: as pixels, and as the tokens in whose place their features go.

In a row an image is one token, the model's image token, whatever sees it. Each model's `Reader` puts as many tokens in
its place as its own image processor asks for, so a teacher and a student with unlike processors read the same rows, and
their labels are the same. Pixels are joined as the model takes them:

| pixels of a row's images | as in |
| --- | --- |
| one after the other | LLaVA, Gemma 3; of other numbers of crops filled up (LLaVA-NeXT) |
| patches one after the other, with `image_grid_thw` | Qwen2-VL and its kin |
| the tiles of a row, filled up with empty ones | Idefics 2 and 3, SmolVLM |
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import CompatibilityError, DataError, UntrustedError

if TYPE_CHECKING:
    import torch

FILES = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json",
)  # fmt: skip
"""What a folder says of how it sees images."""
BY_ROW = "pixel_attention_mask"
"""What processors give that see the tiles of all images of a row together."""
HELD = 2**28
"""Bytes of pixels that a reader keeps: small images are processed once, not in each pass over the rows."""


class Ids(list):
    """Token ids of a row with images, each of which is one token; `images` are what these see, in their order."""

    def __init__(self, ids: Sequence[int], images: Sequence[Seen]):
        super().__init__(ids)
        self.images = tuple(images)

    def __add__(self, more: Sequence[int]) -> Ids:  # what is written after a prompt
        return Ids([*self, *more], self.images)


@dataclass(frozen=True, eq=False)
class Seen:
    """An image of a row: its pixels, (channels, height, width) or (height, width) bytes, or what decodes them, and a
    digest of them."""

    pixels: Any
    digest: bytes


@dataclass(frozen=True, eq=False)
class SeenRows:
    """What any reader may read of a batch: the rows before their images became tokens, `ids` and `at` of each.

    Attributes:
        reader: digest of the one that made the batch; pixels: names of what it gives the network of the images.
    """

    rows: list[tuple[Sequence[int], Sequence[int]]]
    reader: str
    pixels: tuple[str, ...] = ()

    def to(self, *_: Any, **__: Any) -> SeenRows:
        """Itself: it lies where the images lie."""
        return self

    def prompts(self) -> list[Sequence[int]]:
        """What precedes the first label of each row; the whole of a row without labels."""
        return [_cut(ids, at[0] + 1 if len(at) else len(ids)) for ids, at in self.rows]


def _cut(ids: Sequence[int], size: int) -> Sequence[int]:
    return Ids(ids[:size], ids.images) if isinstance(ids, Ids) else ids[:size]


class Reader:
    """The image processor of a model, with its rule for tokens.

    Args:
        files: name -> text of the files that say how it sees images (`FILES`); they are saved as they are.
        tokenizer: whose ids stand for images.
        config: of the model, which says by which token.

    Attributes:
        token: id of the image token.
        text: the image token as it stands in texts; place: with what models of its family put before and after it.

    Raises:
        CompatibilityError: the configuration names no image token.
    """

    def __init__(self, files: Mapping[str, str], tokenizer: Any, config: Any):
        self.files, self.tokenizer, self.token = dict(files), tokenizer, image_token(config)
        self.text, *beside = tokenizer.convert_ids_to_tokens([self.token, *around(config)])
        self.place = self.text.join(beside) if beside else self.text
        self._kept: dict[bytes, tuple[list[int], dict[str, np.ndarray]]] = {}
        self._free = HELD

    def __deepcopy__(self, memo: Any) -> Reader:  # copies of a network see alike
        return self

    @classmethod
    def load(cls, folder: Path, tokenizer: Any, config: Any) -> Reader:
        """
        Raises:
            UntrustedError: the folder does not say how it sees images.
        """
        files = {n: (folder / n).read_text(encoding="utf-8") for n in FILES if (folder / n).exists()}
        if not files.keys() & {*FILES[:2]}:
            raise UntrustedError(
                f"{folder} has no {FILES[0]} or {FILES[1]}, which say how it sees images",
                hint="save its processor beside the model: processor.save_pretrained(FOLDER)",
            )
        return cls(files, tokenizer, config)

    @classmethod
    def of(cls, processor: Any, config: Any) -> Reader:
        """Of a processor of the library."""
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            return cls.load(Path(folder), processor.tokenizer, config)

    def save(self, folder: Path) -> None:
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")

    @cached_property
    def digest(self) -> str:
        """Of what it says of images."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    @cached_property
    def processor(self) -> Any:
        """The library's processor, or its image processor alone, where its part for videos needs packages that are not
        installed."""
        import transformers as library

        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            self.tokenizer.save_pretrained(folder)
            how = {"local_files_only": True, "backend": "pil"}  # the same with torchvision and without
            try:
                made = library.AutoProcessor.from_pretrained(folder, **how)
            except (ImportError, AttributeError, OSError):
                made = None
            if hasattr(made, "image_processor"):
                return made
            images = library.AutoImageProcessor.from_pretrained(folder, **how)
            said = json.loads(self.files.get(FILES[0], "{}"))
            if type(images).__name__.startswith(("SmolVLM", "Idefics3")):  # the processor of one knows no videos
                return library.Idefics3Processor(images, self.tokenizer, image_seq_len=said.get("image_seq_len", 64))
            return images

    @property
    def whole(self) -> bool:
        """Whether the library's own processor of images and texts can be had here."""
        return hasattr(self.processor, "image_processor") and type(self.processor).__name__ in self.files.get(
            FILES[0], ""
        )

    # -- images -----------------------------------------------------------------------------------------------

    def image(self, seen: Seen) -> tuple[list[int], dict[str, np.ndarray]]:
        """The tokens that stand for an image, and what the network is given of it.

        Raises:
            DataError: the processor does not take such an image.
        """
        if (known := self._kept.get(seen.digest)) is not None:
            return known
        x = np.asarray(seen.pixels)
        x = x[None] if x.ndim == 2 else x
        x = np.repeat(x, 3, 0) if len(x) == 1 else x[:3]
        try:
            made = self._read(x)
        except Exception as error:  # whatever a processor says of sizes that it does not take
            raise DataError(f"an image of {x.shape[2]} x {x.shape[1]} pixels is not taken: {error}") from error
        if (size := sum(v.nbytes for v in made[1].values())) <= self._free:
            self._kept[seen.digest], self._free = made, self._free - size
        return made

    def _read(self, x: np.ndarray) -> tuple[list[int], dict[str, np.ndarray]]:
        how = {"input_data_format": "channels_first", "return_tensors": "np"}
        if not hasattr(self.processor, "image_processor"):  # see `processor`
            given = dict(self.processor(images=[x], **how))
            many = int(np.prod(given["image_grid_thw"])) // self.processor.merge_size**2
            return [self.token] * many, given
        given = dict(self.processor(text=self.text, images=[x], add_special_tokens=False, **how))
        (ids,) = given.pop("input_ids").tolist()
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            given.pop(name, None)
        return ids, given

    def length(self, ids: Sequence[int]) -> int:
        """Tokens of a row with those that stand for its images."""
        return len(ids) + sum(len(self.image(seen)[0]) - 1 for seen in getattr(ids, "images", ()))

    def expanded(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """A row with all tokens that stand for its images, and the place of each of its own tokens among them, of an
        image the last."""
        images, made, places = iter(getattr(ids, "images", ())), [], []
        for token in ids:
            seen = next(images, None) if token == self.token else None
            made += [token] if seen is None else self.image(seen)[0]
            places.append(len(made) - 1)
        return made, places

    def pixels(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """What the network is given of all images of some rows; nothing where they have none."""
        import torch

        each = [[self.image(seen)[1] for seen in getattr(ids, "images", ())] for ids in rows]
        if not any(each):
            return {}
        by_row = any(BY_ROW in given for row in each for given in row)
        names = next(given for row in each for given in row)
        made = {}
        for name in names:
            if by_row:
                parts = [np.concatenate([given[name] for given in row], 1) for row in each if row]
                blank = [np.zeros_like(parts[0][:, :0])]
                parts = iter(parts)
                values = filled([next(parts) if row else blank[0] for row in each])
            else:
                values = filled([given[name] for row in each for given in row])
            made[name] = torch.from_numpy(values)
        return made

    def collate(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> dict[str, Any]:
        """A batch of rows (`ids`, `at`): tokens, mask and places of labels as of language, pixels, and `seen`."""
        import torch

        from kdhub_tasks.transformer import padded

        found = [self.expanded(ids) for ids, _ in rows]
        batch = padded([ids for ids, _ in found], pad)
        width = batch["input_ids"].shape[1]
        at = [n * width + places[p] for n, ((_, places), (_, own)) in enumerate(zip(found, rows)) for p in own]
        rows = [(ids, tuple(own)) for ids, own in rows]
        pixels = self.pixels([ids for ids, _ in rows])
        seen = SeenRows(rows, self.digest, tuple(pixels))
        return {**batch, "at": torch.tensor(at, dtype=torch.long), **pixels, "seen": seen}


def filled(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one after the other, whose further axes are filled up to the longest with zeros: with empty crops."""
    most = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts))]
    if all(list(part.shape[1:]) == most for part in parts):
        return np.concatenate(parts)
    room = [[(0, 0), *((0, m - n) for m, n in zip(most, part.shape[1:]))] for part in parts]
    return np.concatenate([np.pad(part, pads) for part, pads in zip(parts, room)])


def image_token(config: Any) -> int:
    """The token that stands for an image, as a configuration names it.

    Raises:
        CompatibilityError: it names none.
    """
    found = next(
        (n for name in ("image_token_id", "image_token_index") if (n := getattr(config, name, None)) is not None), None
    )
    if found is None:
        raise CompatibilityError(f"a {type(config).__name__} names no token that stands for an image (image_token_id)")
    return found


def around(config: Any) -> tuple[int, ...]:
    """The tokens before and after an image in texts, as a configuration names them; of most there are none."""
    pairs = [
        [getattr(config, f"{kind}_{end}_token_id", None) for end in ("start", "end")] for kind in ("vision", "image")
    ]
    return tuple(next((pair for pair in pairs if None not in pair), ()))
