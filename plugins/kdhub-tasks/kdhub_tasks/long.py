"""What a model of long texts takes and has beside others, by its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


NARROW = "kdhub-narrow-"
"""Begins the `model_type` of networks of `kdhub_tasks.narrow`."""


def is_ours(config: Any) -> bool:
    """Whether the library has no such model."""
    return hasattr(config, "efficient_attention") or config.model_type.startswith(NARROW)


def is_efficient(config: Any) -> bool:
    """Whether a model's attention is other than full, so that it has no map of all pairs."""
    return config.model_type == "longformer" or hasattr(config, "efficient_attention")


def further_inputs(config: Any, mask: Tensor) -> Mapping[str, Tensor]:
    """What a model takes beside tokens and their mask: of Longformer which tokens are global. The library makes the
    first one global for classes of texts alone, so it is said for all: `global_tokens` of the configuration, else 1."""
    if config.model_type != "longformer":
        return {}
    first = mask.new_zeros(mask.shape)
    first[:, : getattr(config, "global_tokens", 1)] = 1
    return {"global_attention_mask": first * mask}
