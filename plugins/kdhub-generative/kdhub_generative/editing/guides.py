"""Guides: copies of a diffusion that were tuned on one picture, and the guidance that mixes them into its own
(arXiv:2212.04489, eq. 2 and 3, for any number of guides).

    e = w ((1 - B) e(x, c) + sum_j b_j e_j(x, c_j)) + (1 - w) e(x, 0)        B: the sum of b_j

c is what the picture shall become, c_j the prompt that guide j was tuned with, b_j its weight while t is in its window,
else 0. Only the base is asked without a condition. Where no guide is active this is plain guidance, by the very code,
and no guide is called. The mean is of predicted pictures rather than of predicted noise e: both are the same, as a
picture is linear in e at one x and t, and the weights add up to 1.

Weights here are those of guides, 1 - v of the paper, and windows are diffusion time, 0 for the picture to 1: K / 1000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.method import MethodOptions
from kdhub_generative.editing.settings import not_a_time
from kdhub_generative.images.process import Predict

if TYPE_CHECKING:
    from kdhub_generative.images.model import ImageModel

SMALL, UNTIL, UNTIL_OF_SMALL = 16, 0.4, 0.2
"""Where a guide ends: the paper's K = 400 of 1000, and earlier noise levels for pictures of so few pixels a side, whose
layout is decided there."""
ROUNDING = 1e-6
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ADAPTER = "adapter_model.safetensors"
BEFORE = "base_model.model."
"""Before the names of an adapter's weights in the files of peft."""


@dataclass
class Guide:
    """A tuned copy of a diffusion.

    Attributes:
        prompt: that it was tuned with, and is asked with.
        weight: b, from 0 to 1. until, since: it counts while until < t <= since, in diffusion time.
        lora: of the adapters that it differs by; None where all of its weights are its own.

    Raises:
        UsageError: weight or window are out of range.
    """

    model: ImageModel
    prompt: str | None
    weight: float = 0.3
    until: float = UNTIL
    since: float = 1.0
    lora: Lora | None = None

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise UsageError(f"the weight of a guide must be from 0 to 1 (guide_weight={self.weight:g})")
        for name, value in (("guide_until", self.until), ("guide_since", self.since)):
            if problem := not_a_time(name, value):
                raise UsageError(problem)
        if self.until > self.since:
            raise UsageError(
                f"guide_until must be at most guide_since (guide_until={self.until:g}, guide_since={self.since:g})"
            )

    def active(self, t: float) -> bool:
        return self.weight > 0 and self.until + ROUNDING < t <= self.since + ROUNDING


def share_of(weights: Sequence[float]) -> float:
    """B.

    Raises:
        UsageError: it is above 1.
    """
    total = sum(weights)
    if total > 1 + ROUNDING:
        raise UsageError(
            f"weights of guides must add up to at most 1 (guide_weight={' + '.join(f'{b:g}' for b in weights)} = "
            f"{total:g})"
        )
    return total


def mixed(null: Any, own: Any, guides: Sequence[tuple[float, Any]], scale: float) -> Any:
    """The guided prediction, of noise or of pictures.

    Args:
        null, own: of the base, without and with its condition. guides: weight and prediction of each active one.
    """
    among = (1 - share_of([b for b, _ in guides])) * own + sum(b * given for b, given in guides)
    return null + scale * (among - null)


def composed(plain: Predict, base: Any, guides: Sequence[Guide], batch: dict[str, Tensor], scale: float) -> Predict:
    """What `process.ddim` follows.

    Args:
        plain: the base's own guidance. base: a function like `Predictor.forward`.
        batch: `condition` and `null` of the base's rows.
    """
    told = [guide.model.conditions([guide.prompt] * len(batch["x"])) for guide in guides]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        now = [(guide, of) for guide, of in zip(guides, told) if guide.active(float(t[0]))]
        if not now:
            return plain(x, t)
        if scale == 1:
            own = null = plain(x, t)
        else:
            both = {"x": torch.cat([x, x]), "t": torch.cat([t, t])}
            null, own = base({**both, "condition": torch.cat([batch["null"], batch["condition"]])}).x0.chunk(2)
        given = []
        for guide, of in now:
            condition = {"condition": of["condition"].to(x.device)} if "condition" in of else {}
            given.append((guide.weight, guide.model.module({"x": x, "t": t, **condition}).x0))
        return mixed(null, own, given, scale)

    return predict


def unlike(base: ImageModel, model: ImageModel) -> str:
    """Why a model cannot be a guide of a base; "" where it can."""
    if model.one_call:
        return "it is a one-call model, and a guide is asked in each step"
    if base.shape != model.shape:
        return f"it has {_by(model.shape)} numbers, the base {_by(base.shape)}"
    if base.module.prediction != model.module.prediction:
        return f"it says that it predicts {model.module.prediction}, the base {base.module.prediction}"
    mine, theirs = ({name: value.shape for name, value in one.root.state_dict().items()} for one in (base, model))
    if mine != theirs:
        differing = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        return f"it is of another architecture: {len(differing)} weights differ, such as {differing[0]}"
    mine, theirs = base.process.kept, model.process.kept
    if (mine is None) != (theirs is None) or (mine is not None and not torch.equal(mine, theirs)):
        return "it has another schedule of noise"
    return "" if base.knows == model.knows else "it knows other conditions"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# -- adapters ---------------------------------------------------------------------------------------------------


class Lora(MethodOptions):
    r: int = Field(8, ge=1, description="rank of the adapters")
    alpha: float = Field(16.0, gt=0, description="scale of the adapters, divided by their rank")
    targets: list[str] | None = Field(
        None, description="names of the layers that get one; if unset those of attention, else all that are linear"
    )


def attach(network: nn.Module, lora: Lora) -> None:
    """Put low-rank adapters (arXiv:2106.09685) into a network; nothing else of it is trained. At first they change
    nothing.

    Raises:
        UsageError: `peft` is not installed, or there are no such layers.
    """
    peft = _peft()
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    targets = lora.targets or [n for n in names if n.endswith(ATTENTION)] or names
    config = peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets)
    try:
        peft.inject_adapter_in_model(config, network)
    except ValueError as error:
        ends = sorted({name.rpartition(".")[2] for name in names})
        raise UsageError(
            f"lora: {str(error).splitlines()[0][:200]}", hint=f"layers of this network: {', '.join(ends)}"
        ) from error


def save_adapters(network: nn.Module, lora: Lora, folder: Path) -> None:
    """In the files of peft, which that library opens beside the base's network."""
    weights = {
        BEFORE + name.replace(".default.", "."): value.detach().contiguous()
        for name, value in network.state_dict().items()
        if ".lora_" in name
    }
    targets = sorted({name.removeprefix(BEFORE).partition(".lora_")[0] for name in weights})
    _peft().LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets).save_pretrained(folder)
    save_file(weights, folder / ADAPTER, metadata={"format": "pt"})


def load_adapters(network: nn.Module, lora: Lora, folder: Path) -> None:
    """
    Raises:
        CompatibilityError: they are of another architecture. UntrustedError: their file cannot be read.
    """
    try:
        weights = load_file(folder / ADAPTER)
    except Exception as error:
        raise UntrustedError(f"{folder.name}/{ADAPTER} cannot be read: {error}") from error
    given = {name.removeprefix(BEFORE): value for name, value in weights.items()}
    try:
        attach(network, lora.model_copy(update={"targets": sorted({n.partition(".lora_")[0] for n in given})}))
        own = network.state_dict()
        found = {name: given[name.replace(".default.", ".")] for name in own if ".lora_" in name}
        if len(found) < len(given):
            raise KeyError(f"{len(given) - len(found)} of its weights have no layer")
        network.load_state_dict({**own, **found})
    except (UsageError, KeyError, RuntimeError) as error:
        raise CompatibilityError(
            f"{folder.name} is the adapter of another architecture than its base: {error}"
        ) from error


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UsageError("lora needs the package peft", hint="pip install 'kdhub-generative[lora]'") from None
    return peft
