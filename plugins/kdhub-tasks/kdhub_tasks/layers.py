"""The layers of a transformer: found, counted, and cut out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext

if TYPE_CHECKING:
    from torch import nn

    from kdhub.student import Student


def layers(argument: str, context: BuildContext) -> Student:
    """N evenly spaced layers of the teacher, first and last among them, with its embeddings and head.

    Raises:
        UsageError: N is no number from 1 to the teacher's layers.
        CompatibilityError: the teacher has no layers, or no weights at hand.
    """
    teacher = getattr(context.teacher, "model", None)
    if not getattr(teacher, "layered", False):
        raise CompatibilityError(
            "student layers: is made from a transformer teacher; this one has no layers of one width",
            hint="use a model of its own: hf:org/name, path:FOLDER",
        )
    network = copy.deepcopy(teacher.trunk)
    have, keep = len(blocks(network)), int(argument) if argument.isdigit() else 0
    if not 1 <= keep <= have:
        raise UsageError(
            f"student layers:{argument}: the teacher has {have} layers", hint=f"use layers:1 to layers:{have}"
        )
    chosen = evenly(have, keep)
    keep_blocks(network, chosen)
    network.requires_grad_(True)
    known = context.teacher.known
    start = {
        "base_model": known.get("id") if known.get("revision") or known.get("package") else None,
        "revision": known.get("revision"),
        "licence": known.get("licence"),
        "how": f"layers {', '.join(str(i + 1) for i in chosen)} of {have}",
    }
    return teacher.like(network, {name: value for name, value in start.items() if value is not None})


def evenly(have: int, keep: int) -> list[int]:
    """So many of some layers, counted from 0: evenly spaced, the first and the last among them; the first of one."""
    return np.linspace(0, have - 1, keep).round().astype(int).tolist() if keep > 1 else [0]


def blocks(model: nn.Module) -> nn.ModuleList:
    """The list of a transformer's blocks, whatever its architecture calls it: of its lists that are as long as the
    configuration says, or of all, the first of those with the most parameters.

    Raises:
        CompatibilityError: it has none.
    """
    lists = [m for m in model.modules() if type(m).__name__ == "ModuleList" and len(m) > 0]
    said = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [m for m in lists if len(m) == said] or lists
    if not lists:
        raise CompatibilityError(f"a {type(model).__name__} has no list of layers")
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def keep_blocks(model: nn.Module, chosen: Sequence[int]) -> None:
    """Take all other blocks out of a transformer, in place. Those that stay are numbered anew, for what they remember
    of a text is found by number, and lists in the configuration that have one entry a block are cut likewise."""
    stack, config = blocks(model), getattr(model, "config", None)
    have = len(stack)
    for i in reversed(range(have)):
        if i not in chosen:
            del stack[i]
    for number, block in enumerate(stack):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    if config is None:
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == have and any(w in name for w in ("layer", "block", "window")):
            setattr(config, name, [value[i] for i in chosen])
    config.num_hidden_layers = len(chosen)
