"""Learning rates by part: `rates: {encoder: 0.1, pooler: 0}` of a method's options.

A part is a module or a parameter of the student, or an extra of the method, by its name or an end of it that no other
has; `student` and `extras` are all of each. Of parts in parts the inner one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kdhub.errors import UsageError, close_matches

if TYPE_CHECKING:
    import torch
    from torch import nn

ROOTS = ("student", "extras")
SHOWN = 12
"""Parts that a message lists, at most."""


class Rates:
    """Factors on the learning rate of a network's parameters.

    Args:
        network: has the student and the extras as its modules `student` and `extras`.
        factors: name of a part -> factor; 0 freezes it.

    Attributes:
        frozen: the parameters that are not trained because of it.
        resting: the outermost modules all of whose parameters are frozen: they stay in evaluation mode, so that neither
            statistics nor dropout change what they give.

    Raises:
        UsageError: no such part, several that a name fits, or nothing is left to train.
    """

    def __init__(self, network: nn.Module, factors: Mapping[str, float]):
        by_part = {_part(network, name): factor for name, factor in factors.items()}
        self.by_id: dict[int, float] = {}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            inside = [part for part in by_part if f"{name}.".startswith(f"{part}.")]
            factor = by_part[max(inside, key=len)] if inside else None
            if factor is not None and self.by_id.setdefault(id(parameter), factor) != factor:
                raise UsageError(
                    f"rates: {name} is the same parameter as one of another part, and their factors differ "
                    f"({factor:g}, {self.by_id[id(parameter)]:g})",
                    hint="give both parts one factor",
                )
        trained = [p for p in network.parameters() if p.requires_grad]
        self.frozen = [p for p in trained if self.by_id.get(id(p)) == 0]
        if trained and len(self.frozen) == len(trained):
            raise UsageError(f"rates: nothing is left to train (rates={dict(factors)})")
        self.resting = list(_resting(network, {id(p) for p in self.frozen})) if self.frozen else []

    def spread(self, optimizer: torch.optim.Optimizer) -> None:
        """Split the optimiser's groups by factor."""
        groups = []
        for group in optimizer.param_groups:
            shared: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shared.setdefault(self.by_id.get(id(parameter), 1.0), []).append(parameter)
            groups += [{**group, "params": some, "lr": group["lr"] * factor} for factor, some in shared.items()]
        optimizer.param_groups[:] = groups


def _part(network: nn.Module, name: str) -> str:
    """The full name of a part of the network."""
    modules = [n for n, module in network.named_modules() if n and any(True for _ in module.parameters())]
    known = dict.fromkeys([*modules, *(n for n, _ in network.named_parameters(remove_duplicate=False))])
    wanted = ((name,), [f"{root}.{name}" for root in ROOTS], [n for n in known if n.endswith(f".{name}")])
    found = next((some for names in wanted if (some := [n for n in names if n in known])), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"rates: {len(found)} parts end in {name!r}: {', '.join(found[:SHOWN])}",
            hint="write more of the name, up to where it differs",
        )
    near = close_matches(name, [_inner(n) for n in known])
    there = [_inner(n) for n in known if n.count(".") == 1]
    raise UsageError(
        f"rates: there is no part {name!r}; there are {', '.join(there[:SHOWN])}{', ...' * (len(there) > SHOWN)}",
        hint=f"did you mean {' or '.join(near)}?" if near else "and whatever is inside them, as encoder.layer.0",
    )


def _inner(name: str) -> str:
    return name.removeprefix(f"{ROOTS[0]}.").removeprefix(f"{ROOTS[1]}.")


def _resting(module: nn.Module, frozen: set[int]) -> Iterable[nn.Module]:
    own = [id(p) for p in module.parameters()]
    if own and frozen.issuperset(own):
        yield module
    else:
        for child in module.children():
            yield from _resting(child, frozen)
