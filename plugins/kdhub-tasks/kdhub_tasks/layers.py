"""The layers of a transformer: found, counted, and cut out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext
from kdhub_tasks import layer_config

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
    configuration says, or of all where it says nothing, the first of those with the most parameters.

    Raises:
        CompatibilityError: it has none, or one that several layers share.
    """
    return model.get_submodule(_where(model))


def _where(model: nn.Module) -> str:
    """The name of `blocks`."""
    lists = {n: m for n, m in model.named_modules() if type(m).__name__ == "ModuleList" and len(m) > 0}
    said = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    fitting = lists if said is None else {n: m for n, m in lists.items() if len(m) == said}
    if lists and not fitting:
        raise CompatibilityError(
            f"a {type(model).__name__} has no list of its {said} layers, only of {max(map(len, lists.values()))}: "
            "layers that share weights, or stand in several lists, cannot be told apart",
        )
    if not lists:
        raise CompatibilityError(f"a {type(model).__name__} has no list of layers")
    return max(fitting, key=lambda n: sum(p.numel() for p in fitting[n].parameters()))


def keep_blocks(model: nn.Module, chosen: Sequence[int]) -> None:
    """Take all other blocks out of a transformer, in place. Those that stay are numbered anew, for what they remember
    of a text is found by number, and the configuration says of them what it said before (see `layer_config`).

    Raises:
        CompatibilityError: the configuration cannot describe these layers alone, so another model would be loaded.
    """
    path = _where(model)
    stack, config = model.get_submodule(path), getattr(_owner(model, path), "config", None)
    have = len(stack)
    if len(chosen) == have:
        return
    before = layer_config.described(model) if config is not None else None
    for i in reversed(range(have)):
        if i not in chosen:
            del stack[i]
    if config is not None:
        layer_config.cut(model, config, list(chosen), have)
        layer_config.compare(model, before, layer_config.described(model), path, list(chosen), have)


def _owner(model: nn.Module, path: str) -> nn.Module:
    """The innermost part around a list that has a configuration."""
    found = model
    for end in (i for i, letter in enumerate(path) if letter == "."):
        part = model.get_submodule(path[:end])
        found = part if hasattr(part, "config") else found
    return found
