"""`tiny-clip`: a small image encoder and a text encoder in one space, for trials without a pretrained CLIP.

    logits of class c = s cos( E_I(x), E_T(text of c) )

E_I is three convolutions, E_T the mean of learned vectors of a text's words, through a linear map. Trained by labels,
each image is drawn to the text of its class and away from those of all others: the image-to-text half of CLIP's loss
(arXiv:2103.00020), with the classes' texts as the batch. Other texts of the same words are other classes without any
training (`vectors_of`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from kdhub_tasks.classification.networks import Standardise
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub.errors import CompatibilityError

SCALE = 10.0
"""s, which is not trained."""


def words_in(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class TinyClip(nn.Module):
    """Image and text encoder, and a text for each class.

    Args:
        shape: of one image; classes: how many.
        texts: one for each class; words: that the text encoder knows, those of the texts if None.
        width: of the common space; channels: of the first convolution.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        texts: Sequence[str],
        words: Sequence[str] | None = None,
        width: int = 32,
        channels: int = 16,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        before = shape[0] if len(shape) == 3 else 1
        self.scale, sizes = Standardise(mean, std), (before, channels, 2 * channels, 2 * channels)
        self.image = nn.Sequential(
            *(
                part
                for n, (a, b) in enumerate(zip(sizes, sizes[1:]))
                for part in (nn.Conv2d(a, b, 3, 1 + (n > 0), 1), nn.GroupNorm(4, b), nn.ReLU())
            )
        )
        sides = [shape[-2:]]
        for _ in range(2):
            sides.append([(side + 1) // 2 for side in sides[-1]])
        self.project = nn.Linear(2 * channels * sides[-1][0] * sides[-1][1], width)
        self.texts = list(texts)
        self.words = list(dict.fromkeys(words or [word for text in texts for word in words_in(text)]))
        self.word_vectors, self.text = nn.EmbeddingBag(len(self.words), width), nn.Linear(width, width)

    def vectors_of(self, texts: Sequence[str]) -> Tensor:
        """(texts, width), of length 1. Words that it does not know are left out.

        Raises:
            CompatibilityError: it knows no word of a text.
        """
        known = {word: n for n, word in enumerate(self.words)}
        found = [[known[word] for word in words_in(text) if word in known] for text in texts]
        for text, numbers in zip(texts, found):
            if not numbers:
                some = ", ".join(self.words[:8])
                raise CompatibilityError(
                    f"the text encoder knows no word of {text!r}, only {len(self.words)} others ({some})",
                    hint="describe the classes by words that it was trained on (prompts)",
                )
        where = self.text.weight.device
        starts = torch.tensor([0, *(len(n) for n in found[:-1])], device=where).cumsum(0)
        bag = self.word_vectors(torch.tensor(sum(found, []), device=where), starts)
        return F.normalize(self.text(bag), dim=-1)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.scale(inputs["x"])
        features = self.project(self.image(x.unsqueeze(1) if x.dim() == 3 else x).flatten(1))
        return {"logits": SCALE * F.normalize(features, dim=-1) @ self.vectors_of(self.texts).T, "features": features}
