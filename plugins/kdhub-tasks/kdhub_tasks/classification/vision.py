"""Image classifiers of the transformers library, each with the library's own image processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdhub.errors import CompatibilityError, UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example
from kdhub_tasks.classes import problem_of
from kdhub_tasks.classification.networks import last_layer
from kdhub_tasks.models import ProbedClassifier
from kdhub_tasks.transformer import (
    class_names,
    note_wrapper,
    openly,
    pretrained,
    with_fresh_head,
    with_wrappers,
    without_wrappers,
)
from kdhub_tasks.wrappers import LazySignals

PROCESSOR = "preprocessor_config.json"


class ImageNetwork(nn.Module):
    """A transformers image classifier with our names: `logits`, and `features`, what its last linear layer is given.

    Where every layer gives states of one width, as in a vision transformer, also `hidden_states` (batch, positions,
    layers, width) and `attentions` (batch, positions^2, layers), mean over heads; the latter takes a second pass, in
    which attention is computed openly.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.last = last_layer(model, model.config.num_labels)
        self.train(model.training)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> LazySignals:
        before: list[torch.Tensor] = []
        last = self.model.get_submodule(self.last)
        handle = last.register_forward_pre_hook(lambda _, given: before.append(given[0]))
        try:
            given = self.model(pixel_values=inputs["x"], output_hidden_states=True)
        finally:
            handle.remove()
        now = {"logits": given.logits, "features": before[0].flatten(1)}
        states = (given.hidden_states or ())[1:]
        if len({s.shape for s in states}) != 1 or states[0].dim() != 3:
            return LazySignals(now)
        return LazySignals(
            now, hidden_states=lambda: torch.stack(states, 2), attentions=lambda: self._attentions(inputs["x"])
        )

    def _attentions(self, x: torch.Tensor) -> torch.Tensor:
        maps = openly(self.model, pixel_values=x).attentions
        return torch.stack([a.mean(1).flatten(1) for a in maps], -1)


class ImageClassifier(ProbedClassifier):
    """A transformers image classifier in the library's own format. Images of any size are brought to its own by its
    processor; grey ones get as many equal channels as it takes."""

    batch = 64

    def __init__(self, model: nn.Module, processor: Any, start: Mapping[str, Any] | None = None):
        classes = class_names(model.config)
        inside = ImageNetwork(model)
        network = with_wrappers(inside, model.config, classes, model.get_submodule(inside.last).in_features)
        super().__init__("image-classification", network, classes, start)
        self.problem = problem_of(model.config.to_dict())
        self.processor = processor

    def like(self, model: nn.Module, start: Mapping[str, Any]) -> ImageClassifier:
        """Another network that sees images as this one."""
        return type(self)(model, self.processor, start)

    def note_wrapper(self, wrapper: Mapping[str, Any]) -> None:
        note_wrapper(self.module.model, self.classes, wrapper)

    def blank(self) -> dict[str, torch.Tensor]:
        return self.collate([{"x": np.zeros((32, 32), np.uint8)}])

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        many = getattr(self.module.model.config, "num_channels", 3)
        images = []
        for x in (np.asarray(e["x"]) for e in examples):
            x = x[None] if x.ndim == 2 else x
            if len(x) not in (1, many):
                raise CompatibilityError(f"images have {len(x)} channels, the network takes {many}")
            images.append(x if len(x) == many else np.repeat(x, many, 0))
        given = self.processor(images=images, input_data_format="channels_first", return_tensors="pt")
        return {"x": given["pixel_values"]}

    def save(self, folder: Path) -> None:
        self.module.model.save_pretrained(folder, safe_serialization=True)
        self.processor.save_pretrained(folder)

    @classmethod
    def load(
        cls, folder: Path, *, name: str | None = None, classes: Sequence[str] | None = None, problem: str = "",
        seed: int = 0, start: Mapping[str, Any] | None = None,
    ) -> ImageClassifier:  # fmt: skip
        """A folder's network with its processor.

        Args:
            classes: those that it shall have: its last layer is made again unless it has just these; its own if None.

        Raises:
            UntrustedError: pickled weights, code of its own, or no image processor.
        """
        import transformers

        check_model_folder(folder, name=name)
        if not (folder / PROCESSOR).exists():
            raise UntrustedError(
                f"{name or folder} has no {PROCESSOR}, which says how it sees images",
                hint="save its image processor beside the model: processor.save_pretrained(FOLDER)",
            )
        auto = transformers.AutoModelForImageClassification
        if classes is None:
            model = pretrained(auto, folder, name)
        else:
            named = without_wrappers(classes, problem)
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **named)
            model = with_fresh_head(auto, folder, config, seed)
        # PIL's resizing everywhere, so that a student sees the same where torchvision is installed and where it is not.
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        return cls(model.eval(), processor, start)

    def usage(self) -> str:
        return (
            "from transformers import pipeline\n\n"
            'classify = pipeline("image-classification", model="{path}")\n'
            'print(classify("an image.png"))'
        )

    @property
    def library(self) -> str:
        return "transformers"
