"""`layer:NAME`: what any named module of a network is given or gives, as a signal.

    layer:encoder.layer.3                what the module gives, the mean over positions
    layer:encoder.layer.3:last           of the last position alone
    layer:classifier:input:all           what it is given, at every position

A name is the module's own in the network (`named_modules`), or an end of it that no other has, so that it stays the
same under wrappers. Positions are the second dimension of three (tokens, patches); of more, channels come first and the
rest are positions. Where rows have different numbers of them the batch says which are real under `attention_mask`, and
others never count. What has no positions, (rows, width), is taken as it is. Where modules run over more than the rows
of a batch (the nodes around some nodes), it says under `row_at` which of these are its rows.

    mean, first, last                    (width,) a row
    all                                  (positions, width) a row, ragged where there is a mask
    map                                  (channels, ...) a row: its positions where they are, of what has channels first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from kdhub.rows import Example

PREFIX = "layer:"
SIDES = ("output", "input")
POOLINGS = ("mean", "first", "last", "all", "map")
ROWS = 32
"""Rows that are run together."""


@dataclass(frozen=True)
class Layer:
    """A module, its side, and how its positions are pooled."""

    name: str
    side: str = SIDES[0]
    pooling: str = POOLINGS[0]

    @classmethod
    def parse(cls, kind: str) -> Layer:
        """Raises:
        UsageError: no name, or a word that is neither a side nor a pooling.
        """
        name, *words = kind.removeprefix(PREFIX).split(":")
        sides, poolings = ([w for w in words if w in known] for known in (SIDES, POOLINGS))
        if (
            not is_layer(kind)
            or not name
            or len(sides) > 1
            or len(poolings) > 1
            or len(words) > 2
            or (len(sides) + len(poolings) < len(words))
        ):
            raise UsageError(
                f"{kind!r} is not {PREFIX}NAME[:{'|'.join(SIDES)}][:{'|'.join(POOLINGS)}]",
                hint="for example layer:encoder.layer.3 or layer:classifier:input:last",
            )
        return cls(name, *sides or SIDES[:1], *poolings or POOLINGS[:1])

    @property
    def kind(self) -> str:
        """The signal's name; one for each layer, side and pooling."""
        words = [self.side] * (self.side != SIDES[0]) + [self.pooling] * (self.pooling != POOLINGS[0])
        return PREFIX + ":".join([self.name, *words])


def is_layer(kind: str) -> bool:
    return kind.startswith(PREFIX)


def module_named(network: nn.Module, name: str) -> nn.Module:
    """The module of this name, or the only one whose name ends so.

    Raises:
        UnknownNameError: there is none; names those that are like it.
        CompatibilityError: several end so.
    """
    modules = {known: module for known, module in network.named_modules() if known}
    found = [name] if name in modules else [known for known in modules if known.endswith(f".{name}")]
    if not found:
        ends = {known.removeprefix(before) for known in modules for before in ("", "model.", "network.model.")}
        raise UnknownNameError("module", name, ends, how_to_list="the network's named_modules()",
                               where=type(network).__name__)  # fmt: skip
    if len(found) > 1:
        raise CompatibilityError(
            f"{len(found)} modules of the network end in {name!r}: {', '.join(found[:4])}",
            hint="write more of the name, up to where it differs",
        )
    return modules[found[0]]


class Taps:
    """Layers of a network, read whenever it runs inside `reading`.

    Raises:
        UsageError, UnknownNameError, CompatibilityError: see `Layer.parse` and `module_named`.
    """

    def __init__(self, network: nn.Module, kinds: Sequence[str]):
        self.layers = {kind: Layer.parse(kind) for kind in kinds if is_layer(kind)}
        self._modules = {kind: module_named(network, layer.name) for kind, layer in self.layers.items()}
        self._seen: dict[str, list[Any]] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Note what the modules are given and give in one forward pass."""
        self._seen = {kind: [] for kind in self.layers}
        hooks = []
        for kind, module in self._modules.items():
            seen = self._seen[kind]
            if self.layers[kind].side == "input":
                given = lambda _, args, named, seen=seen: seen.append((*args, *named.values()))  # noqa: E731
                hooks.append(module.register_forward_pre_hook(given, with_kwargs=True))
            else:
                hooks.append(module.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def signals(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What was read, by kind: (rows, ...), or for `all` of rows with a mask (positions of all rows, width).

        Raises:
            CompatibilityError: a module did not run, ran several times, or gave something else than rows of vectors.
        """
        mask, at = inputs.get("attention_mask"), inputs.get("row_at")
        given = {kind: _tensor(seen, kind) for kind, seen in self._seen.items()}
        given = given if at is None else {kind: x[at] for kind, x in given.items()}
        found = {kind: _pooled(x, mask, self.layers[kind]) for kind, x in given.items()}
        self._seen = {}
        return found


def run(task: Any, model: Any, examples: Sequence[Example], kinds: Sequence[str]) -> dict[str, Any]:
    """Layers of a model of a task (`NetworkTask`) for some examples, in eval mode and without gradient: an array
    (rows, ...) for each, or a list of arrays (positions, width)."""
    import numpy as np
    import torch

    module, parts = model.module, {kind: [] for kind in kinds}
    taps, where = Taps(module, kinds), next(module.parameters()).device
    was = module.training
    module.eval()
    try:
        for start in range(0, len(examples), ROWS):
            batch = task.collate(examples[start : start + ROWS], model)
            batch = {k: v.to(where) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            with torch.no_grad(), taps.reading():
                task.forward(module, batch)
            for kind, value in taps.signals(batch).items():
                value = value.float().cpu().numpy()
                if taps.layers[kind].pooling == "all" and (mask := batch.get("attention_mask")) is not None:
                    parts[kind] += np.split(value, mask.sum(1).cumsum(0)[:-1].tolist())
                else:
                    parts[kind].append(value)
    finally:
        module.train(was)
    ragged = {
        kind for kind, value in parts.items() if value and taps.layers[kind].pooling == "all" and value[0].ndim == 2
    }
    return {kind: value if kind in ragged else np.concatenate(value) for kind, value in parts.items()}


def shapes(
    task: Any, model: Any, examples: Sequence[Example], kinds: Sequence[str]
) -> dict[str, tuple[int | None, ...]]:
    """The shape of a row of layers, None in front where rows have several, seen by running one example."""
    given = run(task, model, examples[:1], kinds) if kinds else {}
    return {k: (None, v[0].shape[-1]) if isinstance(v, list) else tuple(v.shape[1:]) for k, v in given.items()}


def _tensor(seen: list[Any], kind: str) -> torch.Tensor:
    """The first tensor of fractions that a module was given, or gave, the one time that it ran."""
    if len(seen) != 1:
        often = f"runs {len(seen)} times in a forward pass" if seen else "does not run in a forward pass"
        raise CompatibilityError(f"{kind}: the module {often}", hint="name one that runs once")
    if (found := next(_vectors(seen[0]), None)) is None:
        raise CompatibilityError(f"{kind}: the module has no tensor of fractions there", hint="name one that has")
    return found


def _vectors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors of fractions in what modules take and give: token ids and masks are not what is looked for."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _vectors(one)


def _pooled(x: torch.Tensor, mask: torch.Tensor | None, layer: Layer) -> torch.Tensor:
    rows = len(x) if mask is None else len(mask)
    if x.dim() < 2 or len(x) != rows:
        raise CompatibilityError(
            f"{layer.kind}: the module has a tensor of shape {tuple(x.shape)}, expected (rows, width), "
            f"(rows, positions, width) or (rows, channels, ...) for {rows} rows"
        )
    if layer.pooling == "map":
        if x.dim() < 4:
            raise CompatibilityError(f"{layer.kind}: the module has no channels over places", hint="leave out :map")
        return x
    if x.dim() == 2:
        if layer.pooling == "all":
            raise CompatibilityError(f"{layer.kind}: the module has one vector a row", hint="leave out :all")
        return x
    x = x.flatten(2).transpose(1, 2) if x.dim() > 3 else x
    if mask is None:
        return x if layer.pooling == "all" else {"mean": x.mean(1), "first": x[:, 0], "last": x[:, -1]}[layer.pooling]
    if mask.shape != x.shape[:2]:
        raise CompatibilityError(f"{layer.kind}: {x.shape[1]} positions where the batch has {mask.shape[1]}")
    real = mask.bool()
    if layer.pooling == "all":
        return x[real]
    if layer.pooling == "mean":
        weights = real.unsqueeze(-1).to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1)
    at = real.int().argmax(1) if layer.pooling == "first" else real.shape[1] - 1 - real.int().flip(1).argmax(1)
    return x.gather(1, at[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)
