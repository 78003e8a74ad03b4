"""Attention of long texts: time and memory grow with the length, not with its square.

Where the transformers library has such a model, it is used: Longformer, a window and global tokens with projections of
their own. Three more kinds are attention functions of ours under encoders of the library, by its own registry:

* `bigbird` (arXiv:2007.14062): blocks; each sees itself, its two neighbours, some first blocks, and random ones. The
  library's own draws its random blocks from numpy's global state, leaves them out in evaluation, and turns to full
  attention for good after one short text.
* `lsg` (arXiv:2210.15497): such blocks, and means of some tokens each beyond the neighbours, and global tokens.
* `nystrom` (arXiv:2102.03902): through means of queries and keys. The library's own takes one length only.

A family of the library (BERT, RoBERTa, XLM-R) has a second one here, whose configuration says the kind and its settings
under `efficient_attention` and whose `model_type` nobody else knows: without kdhub such a folder is refused, where it
would else be read as a model with full attention and give other outputs without a word.

No function here makes a tensor of all queries by all keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface

SOURCES = ("bert", "roberta", "xlm-roberta")
"""Families of the library that have a second one with attention of ours."""
AUTO = (
    "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)  # fmt: skip
PREFIX = "kdhub-efficient-"
DEFAULTS: dict[str, dict[str, Any]] = {
    "bigbird": {"block": 64, "globals": 1, "random_blocks": 3, "random_seed": 0},
    "lsg": {"block": 64, "globals": 1, "sparsity": 4},
    "nystrom": {"landmarks": 64, "pinv": "newton", "conv": 0},
}
"""Settings of each kind. `globals` are blocks of bigbird, tokens of lsg. `conv` is the width of a convolution of the
values beside nystrom's attention, 0 for none."""


# ---- blocks


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor | None = None,
    *,
    block: int,
    globals: int = 0,
    chosen: Tensor | None = None,
    sparsity: int = 0,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention in which a block of queries sees few keys.

    Those are its own block and its two neighbours, the first `globals` tokens, all tokens of the `chosen` blocks, and,
    with `sparsity` s, the means of every s tokens in the s blocks beyond the neighbours on each side. The first
    `globals` tokens see everything. No key counts twice. Where the blocks cover the text it is full attention.

    Args:
        query, key, value: (batch, heads, n, width).
        real: (batch, n) bool, False for padding; None where there is none.
        block: tokens of a block; the text is padded to a multiple of it.
        chosen: (batch, blocks, r) numbers of further blocks, -1 for none; neither neighbours nor global ones.
        sparsity: must divide `block`.

    Returns:
        (batch, heads, n, width); zero where a query sees no key.
    """
    batch, heads, n, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    if real is None:
        real = query.new_ones(batch, n, dtype=torch.bool)
    blocks, first = -(-n // block), min(globals, n)
    pad = blocks * block - n
    q, k, v = (nn.functional.pad(x, (0, 0, 0, pad)) for x in (query, key, value))
    keep = nn.functional.pad(real, (0, pad))
    local = keep.clone()
    local[:, :first] = False  # seen as global ones

    # (batch, heads, blocks, keys, width) of each block of queries, and which of the keys count: (batch, blocks, keys)
    parts = [(_around(k, block, blocks), _around(v, block, blocks), _around(local[:, None, :, None], block, blocks))]
    if chosen is not None and chosen.numel():
        row, those = torch.arange(batch, device=q.device)[:, None, None], chosen.clamp_min(0)
        picked = [x.view(batch, heads, blocks, block, -1).transpose(1, 2)[row, those] for x in (k, v)]
        counted = local.view(batch, blocks, block)[row, those] & (chosen >= 0)[..., None]
        # (batch, blocks, r, heads, block, width) -> (batch, heads, blocks, r block, width)
        parts.append(
            (*(x.permute(0, 3, 1, 2, 4, 5).flatten(3, 4) for x in picked), counted.flatten(2)[:, None, ..., None])
        )
    if sparsity:
        parts.append(_sparse(k, v, local, block, blocks, sparsity))
    ours = q.view(batch, heads, blocks, block, width)
    scores = [
        (ours @ keys.transpose(-1, -2) * scaling).masked_fill(~seen.squeeze(-1).unsqueeze(-2), -torch.inf)
        for keys, _, seen in parts
    ]
    if first:
        far = (ours @ k[:, :, None, :first].transpose(-1, -2)) * scaling
        scores.append(far.masked_fill(~keep[:, None, None, None, :first], -torch.inf))
    p = _softmax(torch.cat(scores, -1), dropout)
    out, at = 0, 0
    for (_, values, _), part in zip(parts, scores):
        out = out + p[..., at : at + part.shape[-1]] @ values
        at += part.shape[-1]
    if first:
        out = out + p[..., at:] @ v[:, :, None, :first]
    out = out.flatten(2, 3)[:, :, :n]
    if first:
        wide = (query[:, :, :first] @ key.transpose(-1, -2) * scaling).masked_fill(~real[:, None, None], -torch.inf)
        out = torch.cat([_softmax(wide, dropout) @ value, out[:, :, first:]], 2)
    return out


def _softmax(scores: Tensor, dropout: float) -> Tensor:
    """Over the last axis in float32 at least; rows of -inf alone become zero, and their gradient too."""
    none = (scores == -torch.inf).all(-1, keepdim=True)
    p = torch.softmax(scores.masked_fill(none, 0), -1, dtype=torch.promote_types(scores.dtype, torch.float32))
    p = p.masked_fill(none, 0).to(scores.dtype)
    return nn.functional.dropout(p, dropout) if dropout else p


def _around(x: Tensor, block: int, blocks: int) -> Tensor:
    """(batch, heads, n, width) -> (batch, heads, blocks, 3 block, width): each block with its neighbours; zeros beyond
    the ends. A view of one padded copy."""
    padded = nn.functional.pad(x, (0, 0, block, block))
    return padded.unfold(2, 3 * block, block).transpose(-1, -2)


def _sparse(
    k: Tensor, v: Tensor, local: Tensor, block: int, blocks: int, sparsity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and what counts of the means of `sparsity` tokens each, of the blocks beyond the neighbours."""
    batch, heads, n, _ = k.shape
    groups, each = n // sparsity, block // sparsity
    counts = local.view(batch, 1, groups, sparsity, 1)
    many = counts.sum(3)
    means = [(x.view(batch, heads, groups, sparsity, -1) * counts).sum(3) / many.clamp_min(1) for x in (k, v)]

    def beyond(x: Tensor) -> Tensor:
        """(batch, heads, groups, c) -> (batch, heads, blocks, 2 block, c)."""
        reach = (sparsity + 1) * each
        padded = nn.functional.pad(x, (0, 0, reach, reach))
        wide = padded.unfold(2, 2 * reach + each, each).transpose(-1, -2)
        return torch.cat([wide[..., : sparsity * each, :], wide[..., -sparsity * each :, :]], -2)

    return beyond(means[0]), beyond(means[1]), beyond(many > 0)


@cache
def random_blocks(blocks: int, r: int, globals: int, layer: int, seed: int) -> np.ndarray:
    """(blocks, r): other blocks that each sees, -1 where there are no more; not itself, its neighbours or the first
    `globals`. Drawn from seed and layer by a generator whose numbers will not change (`RandomState`), so that the
    seed in the configuration is all that must be kept. Ascending, for a gather that is in order."""
    rng, made = np.random.RandomState([seed, layer, blocks]), np.full((blocks, r), -1)
    for i in range(blocks):
        others = [j for j in range(globals, blocks) if abs(i - j) > 1]
        some = np.sort(rng.permutation(others)[:r]) if others else []
        made[i, : len(some)] = some
    return made


def _chosen(query: Tensor, real: Tensor | None, block: int, *how: int) -> Tensor:
    """(batch, blocks, r): the random blocks of each text by its own length, so that padding changes nothing."""
    batch, _, n, _ = query.shape
    ends = [n] * batch if real is None else (real * torch.arange(1, n + 1, device=real.device)).amax(1).tolist()
    made = np.full((batch, -(-n // block), how[0]), -1)
    for row, end in enumerate(ends):
        own = -(-end // block)
        made[row, :own] = random_blocks(own, *how)
    return torch.as_tensor(made, device=query.device)


# ---- Nystrom


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor | None = None,
    *,
    landmarks: int,
    pinv: str = "newton",
    iterations: int = 6,
    scaling: float | None = None,
) -> Tensor:
    """softmax(Q K_l^T) pinv(softmax(Q_l K_l^T)) softmax(Q_l K^T) V, each product scaled (arXiv:2102.03902).

    Q_l and K_l are means over `landmarks` runs of consecutive real tokens; a text has no more runs than tokens.

    Args:
        query, key, value: (batch, heads, n, width).
        real: (batch, n) bool, False for padding.
        pinv: `newton`, `iterations` steps of the third-order iteration of the paper, or `exact`; in float32 at least,
            since the iteration diverges in float16. With `exact` so is everything else: the inverse of a matrix that is
            nearly singular multiplies what rounding did on either side of it.
    """
    if pinv == "exact" and (query.dtype.itemsize < 4 or torch.is_autocast_enabled(query.device.type)):
        with torch.autocast(query.device.type, enabled=False):
            wider = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
            return nystrom_attention(*wider, real, landmarks=landmarks, pinv=pinv, scaling=scaling).to(value.dtype)
    batch, _, n, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    if real is None:
        real = query.new_ones(batch, n, dtype=torch.bool)
    many = real.sum(1, keepdim=True)
    runs = many.clamp(1, landmarks)
    at = ((real.cumsum(1) - 1).clamp_min(0) * runs // many.clamp_min(1)).clamp_max(landmarks - 1)
    member = nn.functional.one_hot(at, landmarks).to(query.dtype) * real[..., None]  # (batch, n, landmarks), thin
    size = member.sum(1)
    there = (size > 0)[:, None, None]
    average = (member / size.clamp_min(1)[:, None]).transpose(1, 2)[:, None]
    few_q, few_k = average @ query, average @ key
    there_k, real_k = ~there, ~real[:, None, None]

    def softmax(a: Tensor, b: Tensor, gone: Tensor) -> Tensor:
        return _softmax((a @ b.transpose(-1, -2) * scaling).masked_fill(gone, -torch.inf), 0.0)

    left, right = softmax(query, few_k, there_k), softmax(few_q, key, real_k)
    middle = softmax(few_q, few_k, there_k) * there.transpose(-1, -2)
    with torch.autocast(query.device.type, enabled=False):
        wide = middle if middle.dtype == torch.float64 else middle.float()
        inverse = torch.linalg.pinv(wide) if pinv == "exact" else newton_inverse(wide, iterations)
    return left @ (inverse.to(value.dtype) @ (right @ value))


def newton_inverse(a: Tensor, iterations: int = 6) -> Tensor:
    """The pseudo-inverse of (..., m, m): Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4, from A^T over its norms."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    norms = a.abs().sum(-1).amax(-1) * a.abs().sum(-2).amax(-1)
    z = a.transpose(-1, -2) / norms.clamp_min(1e-12)[..., None, None]
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


# ---- as attention functions of the library


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What the library calls in each layer; `attention_mask` is (batch, n), True for real tokens."""
    given = dict(module.config.efficient_attention)
    kind = given.pop("kind")
    if kind == "nystrom":
        width = given.pop("conv")
        out = nystrom_attention(query, key, value, attention_mask, scaling=scaling, **given)
        if width:
            real = value if attention_mask is None else value * attention_mask[:, None, :, None]
            out = out + module.conv(real)
    else:
        if kind == "bigbird":
            how = given.pop("random_blocks"), given["globals"], module.layer_idx, given.pop("random_seed")
            given["chosen"] = _chosen(query, attention_mask, given["block"], *how)
            given["globals"] *= given["block"]
        out = block_attention(query, key, value, attention_mask, scaling=scaling, dropout=dropout, **given)
    return out.transpose(1, 2).contiguous(), None


def _padding_only(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    return attention_mask


def _one_row(*, attention_mask: Tensor, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor:
    """(batch, 1, 1, n): 0 for real tokens, the least number for padding."""
    return (~attention_mask.bool())[:, None, None].to(dtype) * torch.finfo(dtype).min


NAME, LINEAR_MASK = "kdhub-efficient", "kdhub-linear-mask"
transformers.AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _padding_only)
AttentionMaskInterface.register(LINEAR_MASK, _one_row)


def without_square_mask(model: nn.Module) -> nn.Module:
    """The library's Longformer (of version 5) makes a mask of all pairs and keeps one row of it; so it makes that row
    alone. The same model otherwise: it has no attention function of the registry."""
    if model.config.model_type == "longformer":
        model.config._attn_implementation = LINEAR_MASK
    return model


def _config_class(source: str) -> type:
    base = transformers.models.auto.configuration_auto.CONFIG_MAPPING[source]

    def implementation(self: Any) -> str:
        return NAME

    # Whatever the library asks for: this is not a way to compute full attention, but another attention.
    fixed = property(implementation, lambda self, value: None)
    names = {"model_type": PREFIX + source, "_attn_implementation": fixed}
    return type(f"Efficient{base.__name__}", (base,), names)


def _model_class(base: type, config: type) -> type:
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        given = config.efficient_attention
        if given["kind"] == "nystrom" and given["conv"]:
            heads, width = config.num_attention_heads, given["conv"]
            for module in self.modules():
                if hasattr(module, "query") and hasattr(module, "value"):
                    module.conv = nn.Conv2d(heads, heads, (width, 1), padding=(width // 2, 0), groups=heads, bias=False)
                    nn.init.zeros_(module.conv.weight)  # a converted model begins as if it had none

    return type(
        f"Efficient{base.__name__}", (base,), {"__init__": init, "config_class": config, "__module__": __name__}
    )


def registered(config_class: Callable[[str], type], model_class: Callable[[type, type], type]) -> dict[str, type]:
    """A second family for each of `SOURCES`, known to the library's auto classes.

    Args:
        config_class: the configuration for a source; model_class: the model for one of the library's, and that.
    """
    made = {}
    for source in SOURCES:
        config = made[source] = config_class(source)
        transformers.AutoConfig.register(config.model_type, config)
        base = transformers.models.auto.configuration_auto.CONFIG_MAPPING[source]
        for auto in (getattr(transformers, name) for name in AUTO):
            auto.register(config, model_class(auto._model_mapping[base], config))
    return made


CONFIGS = registered(_config_class, _model_class)
