"""Encoders of the frames of a clip: the teachers.

    v_T = mean_k e_k / |e_k|        M_T = mean_k M_k        over the frames of a clip, k = 1 .. B

e_k is the vector of a frame, M_k the maps behind the first layer that makes the image smaller (the mean over frames is
that of CLIP4Clip, arXiv:2104.08860). `frame-clip` is small and trained here. The other one is any CLIP of the
transformers library, whose e_k do not know k: its v_T is the same for a clip and its reverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub_vision.captioning.words import END, FIRST, PAD, words_in


class FrameClip(nn.Module):
    """Three convolutions; e_k = MLP(features of frame k, vector of k), so that the mean over frames still tells a clip
    from its reverse; texts by a recurrent network over their words. It writes the one of its captions that is nearest.

    Args:
        shape: B, height and width of the clips. words: that it knows. captions: that it chooses from.
        width: of the common space; channels: of the first convolution.
    """

    kinds = ("text", "embedding", "maps")

    def __init__(
        self, shape: Sequence[int], words: Sequence[str], captions: Sequence[str], width: int = 64, channels: int = 32
    ):
        super().__init__()
        self.width, self.words, self.captions = width, list(words), list(captions)
        frames, *sides = shape
        self.joined = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.early = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1), nn.GroupNorm(gcd(4, channels), channels), nn.ReLU())
        self.late = nn.Sequential(
            *(
                part
                for a, b in ((channels, 2 * channels), (2 * channels, 4 * channels))
                for part in (nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(gcd(4, b), b), nn.ReLU())
            )
        )
        cells = 4 * channels * -(-sides[0] // 8) * -(-sides[1] // 8)
        self.features, self.index = nn.Linear(cells, 2 * width), nn.Embedding(frames, 2 * width)
        self.word = nn.Embedding(len(self.words) + FIRST, width)
        self.reader, self.text = nn.GRU(width, width, batch_first=True), nn.Linear(width, width)

    def of_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """e (rows, B, width) and M (rows, B, channels, h, w), of frames (rows, B, height, width) in [0, 1]."""
        rows, many = frames.shape[:2]
        maps = self.early(frames.flatten(0, 1)[:, None])
        seen = self.features(self.late(maps).flatten(1)).view(rows, many, -1)
        each = self.joined(torch.cat([seen, self.index.weight[:many].expand(rows, -1, -1)], -1))
        return each, maps.view(rows, many, *maps.shape[1:])

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """(texts, width), of length 1; words that it does not know are left out."""
        known = {word: n for n, word in enumerate(self.words, FIRST)}
        numbers = [[known[word] for word in words_in(text) if word in known] + [END] for text in texts]
        longest = max(map(len, numbers), default=1)
        padded = torch.tensor([own + [-1] * (longest - len(own)) for own in numbers], device=self.text.weight.device)
        return self._read(padded.view(-1, longest))

    def _read(self, numbers: Tensor) -> Tensor:
        """Vectors of captions (rows, n), -1 behind their `END`."""
        states, _ = self.reader(self.word(numbers.clamp(min=PAD)))
        last = (numbers >= 0).sum(1).clamp(min=1) - 1
        return F.normalize(self.text(states[torch.arange(len(numbers), device=numbers.device), last]), dim=-1)

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Tensor | None]:
        """`embedding` and `maps` of clips; in training as well `captions` (rows, width), the vectors of theirs, else
        `text`, the number of the caption that is chosen."""
        if not self.training:
            return self.signals(inputs, "text")
        return self.signals(inputs, "embedding") | {"text": None, "captions": self._read(inputs["words"][:, 1:])}

    def _chosen(self, vectors: Tensor) -> Tensor:
        if not self.captions:
            return torch.zeros(len(vectors), 1, dtype=torch.long, device=vectors.device)
        return (vectors @ self.of_texts(self.captions).T).argmax(1, keepdim=True)

    def texts(self, given: Mapping[str, Tensor]) -> list[str]:
        return [self.captions[n] if self.captions else "" for n in given["text"][:, 0].tolist()]

    def signals(self, inputs: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
        each, maps = self.of_frames(inputs["frames"])
        found = {"embedding": F.normalize(each, dim=-1).mean(1), "maps": maps.mean(1)}
        return found | {"text": self._chosen(found["embedding"])} if kind == "text" else found


class TransformersClip(nn.Module):
    """A CLIP of the transformers library, or its image half, on grey frames of any size. It writes nothing.

    Args:
        model: `CLIPModel` or `CLIPVisionModelWithProjection`.
    """

    kinds = ("embedding", "maps")
    MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    """Of a channel, as CLIP's own images are standardised."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def of_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        rows, many = frames.shape[:2]
        side = getattr(self.model.config, "vision_config", self.model.config).image_size
        images = F.interpolate(frames.flatten(0, 1)[:, None], (side, side), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(x, device=frames.device)[:, None, None] for x in (self.MEAN, self.STD))
        images = (images - mean) / std
        if hasattr(self.model, "visual_projection"):
            pooled = self.model.vision_model(pixel_values=images).pooler_output
            each = self.model.visual_projection(pooled)
        maps = self.model.vision_model.embeddings.patch_embedding(images)
        return each.view(rows, many, -1), maps.view(rows, many, *maps.shape[1:])

    signals = FrameClip.signals

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.signals(inputs, "embedding")
