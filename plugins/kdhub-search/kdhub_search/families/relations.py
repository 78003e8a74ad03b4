"""Relations among the queries, keys and values of two networks of other widths and heads (MiniLMv2, AutoDistil).

Vectors of all heads are one row, which is cut into as many relation heads as the teacher has; the relation of two
positions is the product of their vectors in a relation head. So no projection is needed between the networks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub.errors import CompatibilityError
from kdhub.named_layers import PREFIX

RELATED = ("queries", "keys", "values")
NAMES = ("query", "key", "value")


@dataclass(frozen=True)
class LastAttention:
    """Where queries, keys and values of a network's last layer are found.

    Attributes:
        kinds: signals of named layers that have to be read.
        heads: of that layer.
        width: of all of its queries.
        split: what was read -> queries, keys and values.
    """

    kinds: tuple[str, ...]
    heads: int
    width: int
    split: Callable[[Sequence[Tensor]], Sequence[Tensor]]

    def of(self, signals: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Three tensors, (rows, positions, width), or (real positions of all rows, width) where there is a mask."""
        return self.split([signals[kind] for kind in self.kinds])


def last_attention(network: nn.Module) -> LastAttention:
    """Of an encoder with projections named query, key and value (BERT, RoBERTa, XLM-R, ViT of transformers, and nested
    slices), or of a built-in vision transformer.

    Raises:
        CompatibilityError: it has none of these.
    """
    modules = dict(network.named_modules())
    projections = [n for n, m in modules.items() if re.search(r"(^|\.)query$", n) and isinstance(m, nn.Linear)]
    if projections:
        where = projections[-1].removesuffix("query")
        own = modules[where.rstrip(".")]
        heads = getattr(own, "num_attention_heads", None) or own.heads
        kinds = tuple(f"{PREFIX}{where}{name}:all" for name in NAMES)
        return LastAttention(kinds, heads, own.query.out_features, lambda seen: seen)
    packed = [n for n, m in modules.items() if isinstance(m, nn.TransformerEncoderLayer) and m.norm_first]
    if packed:
        layer: Any = modules[packed[-1]]
        attention = layer.self_attn

        def split(seen: Sequence[Tensor]) -> Sequence[Tensor]:
            return F.linear(seen[0], attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)

        return LastAttention((f"{PREFIX}{packed[-1]}.norm1:all",), attention.num_heads, attention.embed_dim, split)
    raise CompatibilityError(
        f"a {type(getattr(network, 'model', network)).__name__} has no projections named query, key and value",
        hint="encoders like BERT, RoBERTa and XLM-R, and vision transformers (vit:...) have",
    )


def by_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """(real positions of all rows, width) as (rows, positions, width), zeros at padding; others as they are."""
    if mask is None or x.dim() == 3:
        return x
    return x.new_zeros(*mask.shape, x.shape[-1]).masked_scatter(mask.bool().unsqueeze(-1), x)


def relations(x: Tensor, heads: int, mask: Tensor | None, space: str = "softmax") -> Tensor:
    """(rows, positions, width) -> (rows, heads, positions, positions): products of each relation head's vectors over
    the root of its width. Of a width that heads do not divide the last columns are left out.

    Args:
        x: of any width from `heads`.
        mask: (rows, positions), 0 for padding, which is no key.
        space: `softmax` over keys (the paper), or `raw` products (the code).
    """
    width = x.shape[-1] // heads
    cut = x.float()[..., : heads * width].unflatten(-1, (heads, width)).transpose(1, 2)
    scores = cut @ cut.transpose(-1, -2) / width**0.5
    if space == "raw":
        return scores
    if mask is not None:
        scores = scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def difference(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """The squared difference of two networks' relations, the mean over heads, summed over pairs of real positions."""
    of_pairs = (student - teacher).square().mean(1)
    return of_pairs.sum() if mask is None else (of_pairs * _real(mask)).sum()


def pairs(mask: Tensor) -> int:
    """Pairs of real positions."""
    return int(mask.sum(1).square().sum())


def _real(mask: Tensor) -> Tensor:
    return mask.bool()[:, :, None] & mask.bool()[:, None, :]
