"""A meta model with one block replaced by a module of another network (arXiv:2402.16918).

With z_i what the meta model's first i blocks make of an image, a module in the place of block i + 1 gives

    u = after( s_i( before( z_i ) ) ),        y = head(the meta model's blocks i + 2, ... applied to u)

The first module has the image and its own patches, the last one its own norm and head: there nothing of the meta model
comes before, or behind. `before` and `after` are stitches where widths differ: of a student; a teacher has the meta
model's width and needs none. Gradients pass through the frozen tail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from kdhub_tasks.classification import networks
from kdhub_tasks.splitting import Chain
from kdhub_tasks.wrappers import Wrapper
from torch import Tensor, nn

from kdhub.errors import CompatibilityError, UsageError
from kdhub_vision.modules.experts import GATES, USAGE, expert_signals

SIGNALS = ("logits", "features", USAGE, GATES)
STITCHES = ("layernorm_linear", "linear", "identity")


def depths_of(modules: int, blocks: int, depths: Sequence[int] | None, whose: str) -> list[int]:
    """How many blocks each module has: as stated, else an even split whose first modules have one more.

    Raises:
        UsageError: they do not add up, or a module would have none.
    """
    found = list(depths or (blocks // modules + (n < blocks % modules) for n in range(modules)))
    if len(found) != modules or sum(found) != blocks or min(found) < 1:
        raise UsageError(
            f"the {whose}'s depths must be {modules} numbers from 1 whose sum is its {blocks} blocks (depths={found})",
            hint="one for each block of the meta model",
        )
    return found


def stretch(depths: Sequence[int], module: int) -> tuple[int, int | None]:
    """The first block of a module, and the one behind its last; None for all that comes."""
    ends = [0, *accumulate(depths)]
    return ends[module], None if module == len(depths) - 1 else ends[module + 1]


class Hybrid(nn.Module):
    """A meta model with a module of another network in it.

    Args:
        meta, other: networks with blocks; other's stretch of blocks that is the module is given by
        module: its number from 0, and depths: of all modules.
        before, after: stitches.

    Raises:
        CompatibilityError: what the module gives is of another shape than what the meta model takes.
    """

    def __init__(
        self, meta: nn.Module, other: nn.Module, module: int, depths: Sequence[int], before: nn.Module | None = None,
        after: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.meta, self.other = meta, other
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.module, (self.start, self.end) = module, stretch(depths, module)
        self.chains = Chain(meta), Chain(other)

    def forward(self, inputs: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """
        Args:
            inputs: of the meta model; own: of the other network, the same if None.
        """
        (meta, other), own, state = self.chains, inputs if own is None else own, None
        if self.module:
            state = self.before(meta.run(inputs, 0, self.module))
        given = other.run(own, self.start, self.end, state)
        if self.end is not None:
            given = meta.run(inputs, self.module + 1, None, self.after(given))
        return {name: given[name] for name in SIGNALS if name in given} | expert_signals(self.other)

    def train(self, mode: bool = True) -> Hybrid:
        super().train(mode)
        self.meta.eval()
        return self


class Stitch(nn.Module):
    """A linear map of the channels of a state, after a norm of them where it is `layernorm_linear`.

    Raises:
        CompatibilityError: `identity` between two widths.
    """

    def __init__(self, kind: str, before: int, after: int):
        super().__init__()
        if kind == "identity" and before != after:
            raise CompatibilityError(
                f"stitch must be a linear map where widths differ (stitch=identity, widths {before} and {after})",
                hint="stitch: layernorm_linear, or linear",
            )
        self.norm = nn.LayerNorm(before) if kind == "layernorm_linear" else nn.Identity()
        self.linear = nn.Identity() if kind == "identity" else nn.Linear(before, after)

    def forward(self, state: Tensor) -> Tensor:
        last = state.movedim(1, -1) if state.dim() == 4 else state
        made = self.linear(self.norm(last))
        return made.movedim(-1, 1) if state.dim() == 4 else made


class Passed(nn.Sequential):
    """In the place of a block that belongs to another module.

    Args:
        tupled: whether it gives its state in a tuple, as the others do.
    """

    def __init__(self, tupled: bool):
        super().__init__()
        self.tupled = tupled

    def forward(self, state: Tensor, *_: Any, **__: Any) -> Any:
        return (state,) if self.tupled else state


def channels(shape: Sequence[int]) -> int:
    """Of a state of one example: its width, (width,), (positions, width) or (channels, height, width)."""
    return shape[0] if len(shape) == 3 else shape[-1]


def fits(meta: Sequence[Sequence[int]], other: Sequence[Sequence[int]], depths: Sequence[int], whose: str) -> None:
    """Whether the states between modules are of one shape, or have as many positions where `whose` has stitches.

    Args:
        meta, other: shapes of all states (`Chain.shapes`).

    Raises:
        CompatibilityError: they are not.
    """
    ends = [*accumulate(depths)]
    for n, end in enumerate(ends[:-1], 1):
        mine, theirs = tuple(meta[n]), tuple(other[end])
        rest = [shape[1:] if len(shape) == 3 else shape[:-1] for shape in (mine, theirs)]
        if mine != theirs if whose == "teacher" else rest[0] != rest[1]:
            what = "shape" if whose == "teacher" else "positions"
            raise CompatibilityError(
                f"the {whose} and the meta model must have states of the same {what} between modules: behind module "
                f"{n} the {whose}'s are {' x '.join(map(str, theirs))}, the meta model's {' x '.join(map(str, mine))}",
                hint=f"train a meta model of the {whose}'s width and patches"
                if whose == "teacher"
                else "take a student with the meta model's patches",
            )


class SplicedNetwork(Hybrid):
    """A student's module in a frozen meta model, as it is trained and saved. Only the module and its stitches learn.

    Args:
        meta, student: configurations of two registered networks.
        module: the place, from 0; depths: blocks of each of the student's modules.
        stitch: one of `STITCHES`.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, meta: Mapping[str, Any], student: Mapping[str, Any], module: int,
        depths: Sequence[int], stitch: str = STITCHES[0],
    ):  # fmt: skip
        blank = {"x": torch.zeros(1, *shape)}
        ours, theirs = networks.build(meta), networks.build(student)
        chain, own = Chain(ours), Chain(theirs)
        sizes, widths = own.shapes(blank), chain.shapes(blank)
        fits(widths, sizes, depths, "student")
        owned, (start, end) = own.owner(blank), stretch(depths, module)
        inside = range(start, len(own) if end is None else end)
        kept = {name for name, _ in theirs.named_parameters() if owned(name) in inside}
        paths = {part: name for name, part in theirs.named_modules()}
        for number, block in enumerate(own.blocks):
            if number not in inside:
                theirs.set_submodule(paths[block], Passed(own.tupled(blank)))
        stitches: list[nn.Module | None] = [
            Stitch(stitch, channels(widths[module]), channels(sizes[start])) if start else None,
            None if end is None else Stitch(stitch, channels(sizes[end]), channels(widths[module + 1])),
        ]
        super().__init__(ours, theirs, module, depths, *stitches)
        self.meta.requires_grad_(False)
        for name, weight in self.other.named_parameters():
            weight.requires_grad_(name in kept)
        self.owned = [name for name in self.other.state_dict() if owned(name) in inside]

    def own_state(self) -> dict[str, Tensor]:
        """The weights of the module, by their names in the whole student."""
        state = self.other.state_dict()
        return {name: state[name] for name in self.owned}


class Stitched(Wrapper):
    """A student assembled with the stitches of its modules kept: behind each module but the last, into the meta model's
    width and back.

    Args:
        places: the number of blocks in front of each stitch.
        width: of the meta model; own: of the student there, one for each place.
    """

    def __init__(
        self, network: nn.Module, classes: int, places: Sequence[int], width: int, own: Sequence[int],
        stitch: str = STITCHES[0],
    ):  # fmt: skip
        super().__init__(network)
        self.places = list(places)
        self.after = nn.ModuleList(Stitch(stitch, one, width) for one in own)
        self.before = nn.ModuleList(Stitch(stitch, width, one) for one in own)
        blocks = Chain(network).blocks
        for number, place in enumerate(self.places):
            blocks[place - 1].register_forward_hook(self._through(number))

    def _through(self, number: int) -> Any:
        def hook(_: Any, __: Any, given: Any) -> Any:
            state = given[0] if isinstance(given, tuple) else given
            state = self.before[number](self.after[number](state))
            return (state, *given[1:]) if isinstance(given, tuple) else state

        return hook

    def forward(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.network(inputs)
