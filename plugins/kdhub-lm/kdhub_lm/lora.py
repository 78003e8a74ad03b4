"""Options that every builder of a language model takes, LoRA among them (arXiv:2106.09685), through `peft`.

    student: {source: "hf:org/name", lora: {r: 8, alpha: 16, targets: [q_proj, v_proj]}}

The adapter trains and nothing else does. The saved student has it folded into its weights: a plain transformers
folder, like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.errors import UsageError
from kdhub.method import MethodOptions
from kdhub.student import BuildContext

if TYPE_CHECKING:
    from kdhub_lm.models import CausalLm

Build = Callable[[str, BuildContext], "CausalLm"]


class Lora(MethodOptions):
    r: int = Field(8, ge=1, description="rank of the adapter")
    alpha: float = Field(16.0, gt=0, description="the adapter is multiplied by this over its rank")
    targets: list[str] | None = Field(
        None, description="names of the layers that get one; if unset those that peft knows for the architecture"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into the adapter, in training")


class StudentOptions(MethodOptions):
    """What every builder takes; those with options of their own inherit from it."""

    lora: Lora | None = Field(None, description="train an adapter of low rank, and leave the weights as they are")
    packing: bool = Field(False, description="several rows in one sequence, none of which sees another")


def builder(options: type[StudentOptions]) -> Callable[[Build], Build]:
    """What a builder takes, for the recipe check; the start that it makes gets the adapter that was asked for."""

    def decorate(build: Build) -> Build:
        @wraps(build)
        def made(argument: str, context: BuildContext) -> CausalLm:
            from kdhub_lm.packing import require_packing

            context.options = options.model_validate(context.options).model_dump()
            student = build(argument, context)
            if context.options["packing"]:
                require_packing(student.module.model)
                student.packing = True
            if (lora := context.options["lora"]) is not None:
                attach(student, Lora(**lora), context.seed)
            return student

        made.Options = options
        return made

    return decorate


def attach(student: CausalLm, lora: Lora, seed: int) -> None:
    """Put an adapter into a student's network; all else stops training. At first it changes nothing.

    Raises:
        UsageError: `peft` is not installed, or the network has no such layers.
    """
    from transformers import set_seed

    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise UsageError("lora: the package peft is not installed", hint="pip install 'kdhub-lm[lora]'") from None
    network = student.module.model
    # layers outside the usual ones are found by their names alone, whatever the architecture
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=lora.dropout)
    set_seed(seed)
    try:
        # it works on the network itself, whose classes and names of blocks stay what they are
        student.adapter = LoraModel(network, {"default": config}, "default")
    except ValueError as error:
        names = {name.rpartition(".")[2] for name, m in network.named_modules() if type(m).__name__ == "Linear"}
        raise UsageError(
            f"lora: {str(error).splitlines()[0]}", hint=f"targets of this network: {', '.join(sorted(names))}"
        ) from error
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    every = sum(p.numel() for p in network.parameters())
    how = student.start.get("how") or "as it is"
    student.start["how"] = f"{how}; LoRA of rank {lora.r}, {trained:,} of {every:,} parameters are trained"


def folded(adapter: Any) -> Any:
    """A copy of an adapter's network with the adapter in its weights."""
    return copy.deepcopy(adapter).merge_and_unload()
