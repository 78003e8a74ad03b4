"""Low-rank adapters (LoRA, arXiv:2106.09685) through `peft`, an option of every student.

    student: {source: "hf:org/name", lora: {r: 8, alpha: 16, targets: [q_proj, v_proj]}}

Only the adapter is trained. The saved student has it merged into its weights: a plain transformers folder, like any
other.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import Field

from kdhub.errors import UsageError
from kdhub.method import MethodOptions

logger = logging.getLogger("kdhub")


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

    Where input and output embeddings are one matrix and one of them gets an adapter, they become two: merged into the
    one, the adapter would change the other as well.

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
    beyond = getattr(student, "unadapted", None)
    targets = lora.targets or (["q_proj", "v_proj"] if beyond else None)  # peft knows no choice for parts of a network
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=lora.dropout, exclude_modules=beyond
    )
    set_seed(seed)
    try:
        # It works on the network in place: classes and names of its blocks stay what they are.
        student.adapter = LoraModel(network, {"default": config}, "default")
    except ValueError as error:
        names = {name.rpartition(".")[2] for name, m in network.named_modules() if type(m).__name__ == "Linear"}
        raise UsageError(
            f"lora: {str(error).splitlines()[0]}", hint=f"targets in this network: {', '.join(sorted(names))}"
        ) from error
    untied = _untie(network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    every = sum(p.numel() for p in network.parameters())
    how = student.start.get("how") or "as it is"
    more = "; input and output embeddings of their own" if untied else ""
    student.start["how"] = f"{how}; LoRA of rank {lora.r}, {trained:,} of {every:,} parameters trained{more}"


def _untie(network: Any) -> bool:
    """Give the output head weights of its own if it shares them and either side has an adapter. Returns whether."""
    from torch import nn

    # peft puts the layer that had the weights inside its own
    pair = [getattr(part, "base_layer", part) for part in _embeddings(network)]
    adapted = any(hasattr(part, "base_layer") for part in _embeddings(network))
    if not adapted or len(pair) < 2 or pair[0].weight is not pair[1].weight:
        return False
    pair[1].weight = nn.Parameter(pair[1].weight.detach().clone(), requires_grad=False)
    network.config.tie_word_embeddings = False
    network._tied_weights_keys, network.all_tied_weights_keys = None, {}
    logger.info("an adapter on tied embeddings: the output head has weights of its own from here on")
    return True


def _embeddings(network: Any) -> list[Any]:
    return [part for part in (network.get_input_embeddings(), network.get_output_embeddings()) if part is not None]
