"""Low-rank adapters (LoRA, arXiv:2106.09685) through `peft`, an option of every student.

    student: {source: "hf:org/name", lora: {r: 8, alpha: 16, targets: [q_proj, v_proj]}}

Only the adapter is trained. The saved student has it merged into its weights: a plain transformers folder, like any
other.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic import Field

from kdhub.errors import UsageError
from kdhub.method import MethodOptions


class Lora(MethodOptions):
    r: int = Field(8, ge=1, description="rank of the adapter")
    alpha: float = Field(16.0, gt=0, description="scale of the adapter, divided by its rank")
    targets: list[str] | None = Field(
        None, description="names of the layers that get an adapter; if unset, peft's choice for the architecture"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the adapter's input in training")


class StudentOptions(MethodOptions):
    """What every student of the task takes, whatever builds it."""

    lora: Lora | None = Field(None, description="train a low-rank adapter and keep the weights as they are")
    packing: bool = Field(False, description="several rows in one sequence, none of which sees another")


def attach(student: Any, lora: Lora, seed: int) -> None:
    """Put an adapter into a language model's network; nothing else is trained. At first it changes no output.

    Raises:
        UsageError: `peft` is not installed, or the network has no such layers.
    """
    from transformers import set_seed

    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise UsageError("lora needs the package peft", hint="pip install 'kdhub-tasks[lora]'") from None
    network = student.module.model
    # Layers outside the usual ones are found by name alone, whatever the architecture.
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=lora.dropout)
    set_seed(seed)
    try:
        # It works on the network in place: classes and names of its blocks stay what they are.
        student.adapter = LoraModel(network, {"default": config}, "default")
    except ValueError as error:
        names = {name.rpartition(".")[2] for name, m in network.named_modules() if type(m).__name__ == "Linear"}
        raise UsageError(
            f"lora: {str(error).splitlines()[0]}", hint=f"targets in this network: {', '.join(sorted(names))}"
        ) from error
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    every = sum(p.numel() for p in network.parameters())
    how = student.start.get("how") or "as it is"
    student.start["how"] = f"{how}; LoRA of rank {lora.r}, {trained:,} of {every:,} parameters trained"


def merged(adapter: Any) -> Any:
    """A copy of an adapter's network with the adapter merged into its weights."""
    return copy.deepcopy(adapter).merge_and_unload()
