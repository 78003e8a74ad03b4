"""Networks that read a snapshot and write a caption.

`snapshot-captioner` (arXiv:2401.04903): concat(Ybar, Xe_1 .. Xe_B) -> convolutions, with a residual block after each of
two halvings -> M_S (channels, h, w) -> tokens V_S, by a transformer layer -> v_S, a linear map of their mean; a decoder
that attends to V_S writes the words. `after-reconstruction`: the same input -> convolutions -> B frames -> a CLIP's
vector of each -> the same decoder.

Layer tables are ours: the paper's could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub_vision.captioning.clip import FrameClip
from kdhub_vision.captioning.snapshot import estimates, normalised
from kdhub_vision.captioning.words import END, FIRST, PAD, START


class Residual(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Sequential(*_convolved(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


def _convolved(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(gcd(4, after), after), nn.ReLU()


class SnapshotEncoder(nn.Module):
    """A normalised measurement and estimates of its frames, (rows, B + 1, height, width), to M_S, V_S and v_S."""

    def __init__(self, frames: int, height: int, width: int, channels: int, dim: int, heads: int):
        super().__init__()
        self.stem = nn.Sequential(
            *_convolved(frames + 1, channels, 2), Residual(channels), *_convolved(channels, channels, 2),
            Residual(channels),
        )  # fmt: skip
        places = -(-height // 4) * -(-width // 4)
        self.into = nn.Conv2d(channels, dim, 1)
        self.place = nn.Parameter(torch.randn(places, dim) * 0.02)
        self.mixing = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.pooled = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """M_S (rows, channels, h, w), V_S (rows, h w, dim), v_S (rows, dim)."""
        maps = self.stem(x)
        tokens = self.norm(self.mixing(self.into(maps).flatten(2).mT + self.place))
        return maps, tokens, self.pooled(tokens.mean(1))


class Decoder(nn.Module):
    """Words from those before them and from tokens of a clip.

    Args:
        words: how many there are. length: words of a caption at most.
    """

    def __init__(self, words: int, length: int, dim: int, layers: int, heads: int):
        super().__init__()
        self.length = length
        self.word, self.place = nn.Embedding(words + FIRST, dim), nn.Parameter(torch.randn(length + 1, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, words + FIRST)

    def forward(self, words: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the word after each, (rows, n, numbers), of words (rows, n) that begin with `START`."""
        x = self.word(words) + self.place[: words.shape[1]]
        later = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).triu(1)
        for layer in self.layers:
            x = layer(x, tokens, tgt_mask=later)
        return self.out(self.norm(x))

    def next(self, words: Tensor, tokens: Tensor) -> Tensor:
        """log-probabilities of the next number, (rows, numbers); never `PAD` or `START`, and `END` once there is no
        room."""
        logits = self(words, tokens)[:, -1].float()
        logits[:, [PAD, START]] = -torch.inf
        if words.shape[1] > self.length:
            logits[:, [n for n in range(logits.shape[1]) if n != END]] = -torch.inf
        return F.log_softmax(logits, -1)

    @torch.no_grad()
    def generate(self, tokens: Tensor, beam: int = 1) -> Tensor:
        """The likeliest captions that a search of width `beam` finds, (rows, n), `END` and `PAD` behind each; width 1
        takes the likeliest word each time."""
        rows, where = len(tokens), tokens.device
        tokens = tokens.repeat_interleave(beam, 0)
        words = torch.full((rows * beam, 1), START, device=where)
        scores = torch.full((rows, beam), -torch.inf, device=where)
        scores[:, 0] = 0.0  # all beginnings are alike
        first = torch.arange(rows, device=where)[:, None] * beam
        ended = torch.zeros(rows * beam, dtype=torch.bool, device=where)
        while not ended.all():
            each = self.next(words, tokens)
            each[ended] = -torch.inf
            each[ended, PAD] = 0.0
            whole = (scores[:, :, None] + each.view(rows, beam, -1)).flatten(1)
            scores, best = whole.topk(beam, 1)
            chosen = (first + best // each.shape[1]).flatten()
            number = (best % each.shape[1]).flatten()
            words = torch.cat([words[chosen], number[:, None]], 1)
            ended = ended[chosen] | (number == END)
        return words.view(rows, beam, -1)[:, 0, 1:]


class Captioner(nn.Module):
    """What models that read snapshots have alike: masks, and a decoder.

    Args:
        shape: B, height and width of the clips. words: that captions are made of. length: words of a caption at most.
        dim: of tokens and decoder. beam: width of the search.
    """

    kinds: tuple[str, ...] = ("text",)

    def __init__(
        self, shape: Sequence[int], words: Sequence[str], length: int, dim: int, layers: int, heads: int, beam: int = 1
    ):
        super().__init__()
        self.words, self.beam = list(words), beam
        self.register_buffer("masks", torch.zeros(*shape))
        self.decoder = Decoder(len(self.words), length, dim, layers, heads)

    def seen(self, measurement: Tensor) -> Tensor:
        """What an encoder gets of Y (rows, height, width): (rows, B + 1, height, width)."""
        mean = normalised(measurement, self.masks)
        return torch.cat([mean[:, None], estimates(mean, self.masks)], 1)

    def read(self, measurement: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens of each clip for the decoder, and signals."""
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Signals of a batch; in training `logits` (rows, n, numbers) of each word of its captions after those before
        it, else the numbers of the captions that it writes as `text`."""
        tokens, found = self.read(inputs["measurement"])
        if self.training:
            found |= {"text": None, "logits": self.decoder(inputs["words"][:, :-1].clamp(min=PAD), tokens)}
        else:
            found["text"] = self._padded(self.decoder.generate(tokens, self.beam))
        return found

    def _padded(self, numbers: Tensor) -> Tensor:
        return F.pad(numbers, (0, self.decoder.length + 1 - numbers.shape[1]), value=PAD)

    def texts(self, given: Mapping[str, Tensor]) -> list[str]:
        """The captions that `forward` gave."""
        return [" ".join(self.words[n - FIRST] for n in row if n >= FIRST) for row in given["text"].tolist()]

    def signals(self, inputs: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
        """One kind of signal of a batch, without what it does not need."""
        return self(inputs) if kind == "text" else self.read(inputs["measurement"])[1]


class SnapshotCaptioner(Captioner):
    kinds = ("text", "embedding", "maps")

    def __init__(
        self, shape: Sequence[int], words: Sequence[str], length: int, width: int = 64, channels: int = 32,
        layers: int = 2, heads: int = 4, beam: int = 1,
    ):  # fmt: skip
        super().__init__(shape, words, length, width, layers, heads, beam)
        self.encoder = SnapshotEncoder(*shape, channels, width, heads)

    def read(self, measurement: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        maps, tokens, pooled = self.encoder(self.seen(measurement))
        return tokens, {"embedding": pooled, "maps": maps}


class ReconstructedCaptioner(Captioner):
    """
    Args:
        clip: settings of a `frame-clip`.
    """

    kinds = ("text", "frames")

    def __init__(
        self, shape: Sequence[int], words: Sequence[str], length: int, clip: Mapping[str, Any], width: int = 64,
        channels: int = 32, layers: int = 2, heads: int = 4, beam: int = 1,
    ):  # fmt: skip
        super().__init__(shape, words, length, width, layers, heads, beam)
        self.reconstructor = nn.Sequential(
            *_convolved(shape[0] + 1, channels), Residual(channels), Residual(channels), Residual(channels),
            nn.Conv2d(channels, shape[0], 3, 1, 1),
        )  # fmt: skip
        self.clip = FrameClip(**clip)
        self.into = nn.Linear(self.clip.width, width)

    def frames(self, measurement: Tensor) -> Tensor:
        """(rows, B, height, width), a residual on the estimate Ybar of each frame."""
        seen = self.seen(measurement)
        return seen[:, :1] + self.reconstructor(seen)

    def read(self, measurement: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        frames = self.frames(measurement)
        each, _ = self.clip.of_frames(frames.clamp(0, 1))
        return self.into(each), {"frames": frames}

    def signals(self, inputs: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
        return {"frames": self.frames(inputs["measurement"])} if kind == "frames" else self(inputs)
