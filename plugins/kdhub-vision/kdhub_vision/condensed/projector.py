"""The label projector: an encoder with low-rank deltas and a linear map that begins as the classes' texts.

    f(x) = s (W_0 + A_W B_W) E'(x) / |E'(x)|,      each adapted weight of E' is  theta_0 + A B  with A (d, r), B (r, k)

A convolution (c_out, c_in, k_h, k_w) is adapted as (c_out, c_in k_h k_w). B begins at 0, so that f begins as zero-shot
classification, bit for bit. Only A and B are this network's weights: the encoder's are known by their digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from kdhub_tasks.classification import networks
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub.errors import CompatibilityError

STARTS = ("text", "random", "probe")


def delta(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """A B in the shape of the weight that it is added to."""
    return (a @ b).reshape(like.shape)


def rank_of(rank: int, shape: Sequence[int]) -> int:
    """The rank of a weight's delta: no more than it can have."""
    return min(rank, shape[0], prod(shape[1:]))


def label_bytes(shapes: Sequence[tuple[Sequence[int], int]]) -> int:
    """2 sum r (d + k): bytes of deltas in float16, whatever the images and the epochs of who learns from them.

    Args:
        shapes: of each adapted weight, and its rank.
    """
    return 2 * sum(rank_of(rank, shape) * (shape[0] + prod(shape[1:])) for shape, rank in shapes)


def stored_label_bytes(epochs: float, images: int, classes: int) -> int:
    """Of labels that are stored in float16, one for each image in each epoch."""
    return round(epochs * images * classes * 2)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Of a network's weights, by name and value."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(
            name.encode() + state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()


class LabelProjector(nn.Module):
    """See above. The encoder is no part of its weights: `open` gives it its own.

    Args:
        encoder: configuration of a registered network that gives `features`.
        prompts: the text of each class.
        rank_encoder, rank_linear: ranks of the deltas of the encoder's weights, and of W.
        init_linear: W_0 is the texts' vectors (the encoder has `vectors_of`), drawn at random, or a linear probe's
            weights, which are saved.
        scale: s.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        encoder: Mapping[str, Any],
        prompts: Sequence[str],
        rank_encoder: int = 8,
        rank_linear: int = 64,
        init_linear: str = STARTS[0],
        scale: float = 10.0,
    ):
        super().__init__()
        self._hidden = [networks.build(encoder).eval().requires_grad_(False)]  # in a list: not among its parameters
        self.prompts, self.scale = list(prompts), scale
        if init_linear == "text" and not hasattr(self.encoder, "vectors_of"):
            raise CompatibilityError(
                f"a {type(self.encoder).__name__} has no text encoder (init_linear=text)",
                hint="take an encoder of images and texts (tiny-clip), or init_linear: random",
            )
        with torch.no_grad():
            width = self.encoder({"x": torch.zeros(1, *shape)})["features"].shape[1]
        drawn = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
        self.init_linear = init_linear
        # Texts and random numbers are made again by anybody; a probe is saved.
        self.register_buffer("first", F.normalize(drawn, dim=-1), persistent=init_linear == "probe")
        self.adapted = {name: tuple(weight.shape) for name, weight in self._adapted(shape)}
        ranks = [(size, rank_encoder) for size in self.adapted.values()] + [((classes, width), rank_linear)]
        self.sizes = [one for one in ranks if one[1]]
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for size, rank in ranks:
            r = rank_of(rank, size)
            self.a.append(nn.Parameter(torch.randn(size[0], r) / max(r, 1) ** 0.5))
            self.b.append(nn.Parameter(torch.zeros(r, prod(size[1:]))))

    @property
    def encoder(self) -> nn.Module:
        return self._hidden[0]

    def _adapted(self, shape: Sequence[int]) -> list[tuple[str, Tensor]]:
        """The encoder's matrices and convolutions that its features depend on."""
        named = [(name, weight) for name, weight in self.encoder.named_parameters() if weight.dim() > 1]
        for _, weight in named:
            weight.requires_grad_(True)
        with torch.enable_grad():
            given = self.encoder({"x": torch.zeros(1, *shape)})["features"].sum()
            reached = torch.autograd.grad(given, [weight for _, weight in named], allow_unused=True)
        for _, weight in named:
            weight.requires_grad_(False)
        return [one for one, gradient in zip(named, reached) if gradient is not None]

    def embed(self, x: Tensor) -> Tensor:
        """(n, width): E'(x)."""
        weights = dict(self.encoder.named_parameters())
        changed = {name: weights[name] + delta(a, b, weights[name]) for name, a, b in zip(self.adapted, self.a, self.b)}
        return torch.func.functional_call(self.encoder, changed, ({"x": x},))["features"]

    def open(self, state: Mapping[str, Tensor]) -> None:
        """Take the encoder's weights."""
        self.encoder.load_state_dict(state)
        if self.init_linear == "text":
            with torch.no_grad():
                self.first.copy_(self.encoder.vectors_of(self.prompts))

    def _apply(self, function: Callable[[Tensor], Tensor], *more: Any) -> LabelProjector:
        """Also the encoder, which moves with it."""
        self.encoder._apply(function, *more)
        return super()._apply(function, *more)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = self.embed(inputs["x"])
        linear = self.first + self.a[-1] @ self.b[-1]
        return {"logits": self.scale * F.normalize(features, dim=-1) @ linear.T, "features": features}


def label_terms(
    given: Tensor, labels: Tensor | None, targets: Tensor, beta: float, weight: float = 1.0
) -> dict[str, Tensor]:
    """`weight` times the MSE of logits, mean over elements, and `beta` times the mean cross-entropy; without labels the
    cross-entropy alone.

    Args:
        given, labels: (rows, classes) logits of who learns, and those that are its labels.
        targets: (rows, classes) probabilities of the classes; a row of zeros has none.
    """
    entropies = -(targets * given.float().log_softmax(-1)).sum(-1).mean()
    if labels is None:
        return {"classes": entropies}
    return {"labels": weight * F.mse_loss(given.float(), labels.float()), "classes": beta * entropies}
