"""Codecs between the states of a model and messages, and distances of both (see `methods.talking_models`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdhub.errors import CompatibilityError

if TYPE_CHECKING:
    from torch import Tensor, nn

PLACES = ("lower", "upper")


def codecs(states: Mapping[str, Tensor], width: int, kind: str, shared: Literal["auto"] | bool) -> nn.ModuleDict:
    """One model's encoders and decoders, for both places.

    Args:
        states: place -> (rows, positions, width of the model there).
        width: of a message.
        kind: `mlp` or `linear`.
        shared: one codec for both places; `auto` where they have the same width.

    Raises:
        CompatibilityError: one codec is asked for places of two widths.
    """
    from torch import nn

    wide = {place: states[place].shape[-1] for place in PLACES}
    one = len(set(wide.values())) == 1 if shared == "auto" else shared
    if one and len(set(wide.values())) > 1:
        raise CompatibilityError(
            f"share_codec_levels=true needs states of one width: they have {wide['lower']} and {wide['upper']} numbers",
            hint="--set share_codec_levels=auto",
        )
    made = {}
    for name, ends in (("encoder", lambda d: (d, width)), ("decoder", lambda d: (width, d))):
        parts = {place: mapping(*ends(wide[place]), kind) for place in PLACES[: 1 if one else 2]}
        made[name] = nn.ModuleDict({place: parts.get(place, parts["lower"]) for place in PLACES})
    return nn.ModuleDict(made)


def mapping(before: int, after: int, kind: str) -> nn.Module:
    from torch import nn

    if kind == "linear":
        return nn.Linear(before, after)
    hidden = max(before, after)
    return nn.Sequential(nn.Linear(before, hidden), nn.ReLU(), nn.Linear(hidden, after))


def say(codec: Any, place: str, state: Tensor) -> Tensor:
    """The message of a state."""
    return codec["encoder"][place](state)


def hear(codec: Any, place: str, message: Tensor) -> Tensor:
    """The standardised state that a message stands for."""
    return codec["decoder"][place](message)


def distance(a: Tensor, b: Tensor, kind: str = "mse", real: Tensor | None = None, many: float | None = None) -> Tensor:
    """Mean squared difference, or 1 - cos of each position, mean; scalar.

    Args:
        a, b: (rows, positions, width).
        real: (rows, positions), 0 for padding, or None; ignored for sequences of other lengths.
        many: real positions that the mean is over; those here if None.
    """
    from torch.nn.functional import cosine_similarity

    each = 1 - cosine_similarity(a, b, dim=-1) if kind == "cosine" else (a - b).square().mean(-1)
    if real is None or real.shape != each.shape:
        return each.mean()
    return (each * real).sum() / (many or real.sum())


def among(state: Tensor, real: Tensor | None) -> Tensor:
    """The real positions of a state (rows, positions, width) as one row, (1, n, width); the state itself if there is no
    mask, or one for other positions."""
    if real is None or real.shape != state.shape[:2]:
        return state
    return state[real.bool()].unsqueeze(0)
