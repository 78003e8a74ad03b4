"""Models of images and texts of the transformers library (`AutoModelForImageTextToText`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdhub.errors import CompatibilityError
from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example
from kdhub.student import Student
from kdhub_tasks.language.model import CausalLm, LanguageModel, quoted
from kdhub_tasks.transformer import pretrained
from kdhub_tasks.vision_language.reader import Reader

PARTS = {
    "vision": ("vision_tower", "vision_model", "visual", "vision_encoder", "embed_vision"),
    "projector": ("multi_modal_projector", "connector", "modality_projection", "merger", "aligner"),
    "language": ("language_model", "text_model"),
}
"""What can be frozen -> what networks call it. A network may hold its projector in its vision part."""


class VisionLanguageModel(LanguageModel):
    """A network of images and texts with the outputs of a language model.

    Args:
        reader: how it sees images. A batch that another reader made is made again by this one.
    """

    alone = True  # positions of images and padding are counted by each family in its own way

    def __init__(self, model: nn.Module, classes: int, reader: Reader, pad: int):
        super().__init__(model, classes)
        self.reader, self.pad = reader, pad
        self.barred = (reader.token,) if reader.token < classes else ()
        self._kinds = "mm_token_type_ids" in inspect.signature(model.base_model.forward).parameters

    def own(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        seen = inputs.get("seen")
        if seen is None or seen.reader == self.reader.digest:
            return inputs
        made = {
            name: value.to(inputs["input_ids"].device)
            for name, value in self.reader.collate(seen.rows, self.pad).items()
        }
        return {**made, **{name: inputs[name] for name in ("labels", "counts", "keys") if name in inputs}}

    def more(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given = {name: inputs[name] for name in (inputs["seen"].pixels if "seen" in inputs else ())}
        return given | self._kinds_of(inputs["input_ids"]) if given else {}

    def opened(self, prompts: Sequence[Sequence[int]]) -> tuple[Sequence[Sequence[int]], dict[str, torch.Tensor]]:
        rows = [self.reader.expanded(ids)[0] for ids in prompts]
        if len({len(ids) for ids in rows}) > 1:  # only their lengths are asked for
            return rows, {}
        where = self.model.device
        given = {name: value.to(where) for name, value in self.reader.pixels(prompts).items()}
        return rows, given | self._kinds_of(torch.tensor(rows, device=where)) if given else {}

    def _kinds_of(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Which tokens are images, for networks with positions in two dimensions."""
        return {"mm_token_type_ids": (ids == self.reader.token).int()} if self._kinds else {}


class VisionLanguage(CausalLm):
    """A model of images and texts with its tokenizer and its processor, in the library's own format."""

    task_name = "image-text-to-text"
    unadapted = r".*(vision|visual|projector|connector).*"
    """Layers that get no low-rank adapter."""

    def __init__(self, model: nn.Module, tokenizer: Any, reader: Reader, start: Mapping[str, Any] | None = None):
        self.reader = reader
        super().__init__(model, tokenizer, start)
        self.module.pad = self.pad

    def network(self, model: nn.Module, classes: int) -> VisionLanguageModel:
        return VisionLanguageModel(model, classes, self.reader, 0)

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        return self.reader.collate([(e["ids"], e["at"]) for e in examples], self.pad)

    def like(self, network: nn.Module, start: Mapping[str, Any]) -> VisionLanguage:
        network.generation_config = self.module.model.generation_config
        return VisionLanguage(network, self.tokenizer, self.reader, start)

    def freeze(self, parts: Sequence[str]) -> None:
        """Keep some parts as they are: those of `PARTS`.

        Raises:
            CompatibilityError: the network has no such part.
        """
        for part in parts:
            found = [m for name, m in self.module.model.named_modules() if name.rpartition(".")[2] in PARTS[part]]
            if not found:
                raise CompatibilityError(
                    f"a {type(self.module.model).__name__} has no part that could be frozen as its {part} (freeze)",
                    hint=f"its parts are {', '.join(dict(self.module.model.base_model.named_children()))}",
                )
            for module in found:
                module.requires_grad_(False)

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.reader.save(folder)

    def usage(self) -> str:
        if not self.reader.whole:
            return Student.usage(self)
        prompt = str(getattr(self.module.model.config, "example_prompt", "")) or "What is seen?"
        begin = self.tokenizer.bos_token or ""
        return (
            "import numpy as np\n"
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            'processor = AutoProcessor.from_pretrained("{path}")\n'
            'model = AutoModelForImageTextToText.from_pretrained("{path}")\n'
            "picture = np.zeros((64, 64, 3), np.uint8)  # or an image of Pillow's\n"
            f"text = {quoted(begin + self.reader.text + prompt)}\n"
            'given = processor(text=text, images=[picture], add_special_tokens=False, return_tensors="pt")\n'
            "written = model.generate(**given, max_new_tokens=8)\n"
            'print(processor.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True))'
        )


def load(folder: Path, *, name: str | None = None) -> VisionLanguage:
    """A model of images and texts from its folder; safetensors only, no code from the folder.

    Raises:
        UntrustedError: pickled weights, code, or no processor.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    check_model_folder(Path(folder), name=name)
    model = pretrained(AutoModelForImageTextToText, folder, name=name)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return VisionLanguage(model.eval(), tokenizer, Reader.load(Path(folder), tokenizer, model.config))
