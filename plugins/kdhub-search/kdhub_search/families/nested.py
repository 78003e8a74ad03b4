"""Nested slices: transformers of many sizes that share the weights of one (AutoDistil, arXiv:2201.12507, section 3).

A sub-space is a choice of layers, width, feed-forward ratio and heads. Each has a weight-sharing network of its own, as
large as its members need. A member has the first rows and columns of every weight: of embeddings, norms, biases and
heads the first `hidden`, of the feed-forward the first `hidden * ratio` units, of attention the first heads, each as
wide as before; and some layers, spread over all of them. So the slice of a weight is as large as the member's own
weight, and nothing else has to be known of an architecture than how a network of some size is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

import torch
from kdhub_tasks.wrappers import LazySignals
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from kdhub.errors import UsageError
from kdhub.named_layers import Taps
from kdhub_search.families.relations import RELATED, last_attention

MOST = 4096
"""Members of a family; the paper's have 256 in each sub-space."""
Keep = Literal["spread", "first"]
Positive = Annotated[int, Field(ge=1)]


class Space(BaseModel):
    """Choices of a sub-space; all layers of a member are alike."""

    model_config = ConfigDict(extra="forbid")
    layers: list[Positive] = Field(min_length=1)
    hidden: list[Positive] = Field(min_length=1)
    ratio: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    heads: list[Positive] = Field(min_length=1)


def _space(layers: tuple[int, int], hidden: tuple[int, int], ratio: float, heads: tuple[int, int]) -> dict[str, Any]:
    """Four values of each, evenly spaced."""
    spaced = lambda first, last: list(range(first, last + 1, (last - first) // 3))  # noqa: E731
    ratios = [ratio + 0.5 * i for i in range(4)]
    return {"layers": spaced(*layers), "hidden": spaced(*hidden), "ratio": ratios, "heads": spaced(*heads)}


OFFICIAL = {
    "tiny": _space((4, 7), (128, 224), 2, (7, 10)),
    "small": _space((9, 12), (256, 352), 2.5, (7, 10)),
    "base": _space((9, 12), (544, 640), 2.5, (9, 12)),
}
"""The sub-spaces of the paper's table 1, for teachers of 12 layers and 12 heads of 64: 256 members each."""


def named_spaces(given: Any) -> Any:
    """`spaces` of a recipe: names of `OFFICIAL` ones, or choices by a name of one's own."""
    if isinstance(given, str):
        given = given.split(",")
    if isinstance(given, Mapping):
        if wrong := [name for name in given if not re.fullmatch(r"[\w-]+", str(name))]:
            raise UsageError(f"the name of a sub-space has letters, digits, _ and - alone (spaces: {wrong[0]!r})")
        return dict(given)
    if unknown := [name for name in given if name not in OFFICIAL]:
        raise UsageError(
            f"sub-space {unknown[0]!r} is not one of {', '.join(OFFICIAL)}",
            hint="or give choices by name: spaces: {mine: {layers: [2, 4], hidden: [...], ...}}",
        )
    return {name: OFFICIAL[name] for name in given}


Spaces = Annotated[dict[str, Space], BeforeValidator(named_spaces)]


class NestedOptions(BaseModel):
    """Of a student that is nested slices."""

    model_config = ConfigDict(extra="forbid")
    spaces: Spaces = Field(
        list(OFFICIAL), min_length=1, validate_default=True,
        description="sub-spaces: names of official ones, or lists of layers, hidden, ratio and heads by a name",
    )  # fmt: skip
    keep_layers: Keep = Field("spread", description="which layers: spread over all (the code), or the first")


@dataclass(frozen=True)
class Size:
    """How a member is cut out. `wide` is the width of its feed-forward."""

    space: str
    layers: int
    hidden: int
    ratio: float
    heads: int

    @property
    def wide(self) -> int:
        return int(self.hidden * Fraction(str(self.ratio)))

    @property
    def name(self) -> str:
        return f"{self.space}-{self.layers}x{self.hidden}-r{self.ratio:g}-h{self.heads}"


def sizes_of(name: str, space: Space) -> list[Size]:
    """All members of a sub-space."""
    each = product(*(sorted(set(values)) for values in (space.layers, space.hidden, space.ratio, space.heads)))
    return [Size(name, *choice) for choice in each]


def kept_layers(layers: int, of: int, keep: Keep = "spread") -> list[int]:
    """Which of a network's layers a member has: floor(i / (layers / of)), in whole numbers, or the first."""
    return [i * of // layers if keep == "spread" else i for i in range(layers)]


def formula(size: Size, vocabulary: int = 30522, positions: int = 512) -> float:
    """The parameters that the official code counts for a search among twelfths of heads. The real attention is wider
    than its H^2 h / 12, so members are counted instead; this stands beside it."""
    h, wide = size.hidden, size.wide
    layer = h * h + 3 * h * h * size.heads / 12 + 6 * h + 2 * h * wide + wide + 3 * h
    return h * (vocabulary + positions + 4) + size.layers * layer + h * h + 2 * h


Make = Callable[[int, int, int, int], nn.Module]
"""(layers, hidden, wide, heads) -> a network of that size; its list of layers is called `layer`."""
PROBE = {"hidden": 1_000_003, "wide": 1_000_033, "heads": 1_009}
"""Sizes that no vocabulary or image has, by which is seen which axes of a weight depend on what."""


class Axes:
    """Of each weight of an architecture, which of its axes are as long as what.

    Args:
        make: how a network is made.
        head_dim: width of a head.
    """

    def __init__(self, make: Make, head_dim: int):
        with torch.device("meta"):
            probe = make(1, PROBE["hidden"], PROBE["wide"], PROBE["heads"])
        known = {PROBE["hidden"]: "hidden", PROBE["wide"]: "wide", PROBE["heads"] * head_dim: "inner"}
        self.of = {name: tuple(known.get(n, n) for n in p.shape) for name, p in probe.named_parameters()}
        self.head_dim = head_dim

    def shape(self, name: str, size: Size) -> tuple[int, ...]:
        """Of a weight, by its name in any network of this architecture."""
        lengths = {"hidden": size.hidden, "wide": size.wide, "inner": size.heads * self.head_dim}
        return tuple(lengths.get(axis, axis) for axis in self.of[_layer(name, lambda _: 0)])

    def parameters(self, size: Size) -> int:
        """The sum over all parts of a member, in whole numbers."""
        each = ((prod(self.shape(name, size)), ".layer." in f".{name}") for name in self.of)
        return sum(n * (size.layers if repeats else 1) for n, repeats in each)


def _layer(name: str, number: Callable[[int], int]) -> str:
    """A weight's name with another number of its layer."""
    return re.sub(r"(?<=\blayer\.)\d+(?=\.)", lambda found: str(number(int(found[0]))), name, count=1)


class Nested(nn.Module):
    """One weight-sharing network for each sub-space, run as any of their members.

    Args:
        make, head_dim: the architecture.
        layers: of the network that it is cut out of, from which members take theirs.
        limits: that network's `hidden`, `wide` and `heads`.
        best: the member that stands for all; the largest if None.

    Attributes:
        members: name -> how it is cut out, the one with the fewest parameters first.
        member: as which it runs; None: the best.
        networks: of each sub-space, with the layers and widths that some member has.
    """

    def __init__(
        self,
        make: Make,
        head_dim: int,
        spaces: Mapping[str, Mapping[str, Any]],
        layers: int,
        limits: Mapping[str, int],
        keep_layers: Keep = "spread",
        best: str | None = None,
    ):
        super().__init__()
        try:
            known = NestedOptions(spaces=spaces, keep_layers=keep_layers).spaces
        except ValidationError as error:
            wrong = error.errors()[0]
            raise UsageError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']} ({wrong['input']})") from error
        self._make, self.axes, self._keep, self._of = make, Axes(make, head_dim), keep_layers, layers
        many = sum(prod(map(len, (s.layers, s.hidden, s.ratio, s.heads))) for s in known.values())
        if many > MOST:
            raise UsageError(f"spaces must have at most {MOST:,} members together, and have {many:,}")
        found = [size for name, space in known.items() for size in sizes_of(name, space)]
        self._check(found, {"layers": layers, **limits})
        self.sizes = {size.name: size for size in sorted(found, key=self.axes.parameters)}
        self.members = {
            name: {"layers": s.layers, "hidden": s.hidden, "ratio": s.ratio, "heads": s.heads}
            for name, s in self.sizes.items()
        }
        self.spaces = {name: [m for m, size in self.sizes.items() if size.space == name] for name in known}
        self.layers = {
            name: sorted({i for m in of for i in kept_layers(self.sizes[m].layers, layers, keep_layers)})
            for name, of in self.spaces.items()
        }
        self.networks = nn.ModuleDict({name: make(len(self.layers[name]), *self._widths(name)) for name in known})
        self.member, self.best = None, best
        self._skeletons: dict[str, tuple[nn.Module, Taps]] = {}

    @staticmethod
    def _check(sizes: Iterable[Size], limits: Mapping[str, int]) -> None:
        for size in sizes:
            for what, most in limits.items():
                if (given := getattr(size, what)) > most:
                    shown = {"wide": "hidden x ratio"}.get(what, what)
                    raise UsageError(
                        f"sub-space {size.space}: {shown} must be at most that of the network it is cut out of "
                        f"({shown}={given}, there {most})",
                        hint="student: {source: nested, spaces: {NAME: {layers: [...], hidden: [...], ratio: [...],"
                        " heads: [...]}}}",
                    )

    def _widths(self, space: str) -> tuple[int, int, int]:
        """The most that a member of a sub-space has: width, feed-forward, heads."""
        of = [self.sizes[m] for m in self.spaces[space]]
        return max(s.hidden for s in of), max(s.wide for s in of), max(s.heads for s in of)

    @property
    def chosen(self) -> str:
        """The member that it runs as."""
        return self.member or self.best or list(self.members)[-1]

    def layers_of(self, member: str) -> list[int]:
        """The numbers of a member's layers in the network of its sub-space."""
        size = self.sizes[member]
        return [self.layers[size.space].index(i) for i in kept_layers(size.layers, self._of, self._keep)]

    def parts(self, member: str) -> dict[str, tuple[nn.Parameter, tuple[slice, ...]]]:
        """What a member is made of: name of its own weight -> the weight that it is cut out of, and the slice."""
        size, at = self.sizes[member], self.layers_of(member)
        own = {name: p for name, p in self.networks[size.space].named_parameters()}
        made = {}
        for name, weight in own.items():
            numbers = re.findall(r"\blayer\.(\d+)\.", name)[:1]
            for n in [at.index(int(numbers[0]))] if numbers and int(numbers[0]) in at else [] if numbers else [0]:
                cut = tuple(slice(0, length) for length in self.axes.shape(name, size))
                made[_layer(name, lambda _, n=n: n)] = weight, cut
        return made

    def begin(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of the network that this is cut out of, by their names there."""
        with torch.no_grad():
            for space, network in self.networks.items():
                for name, weight in network.named_parameters():
                    given = state[_layer(name, lambda i, space=space: self.layers[space][i])]
                    weight.copy_(given[tuple(slice(0, n) for n in weight.shape)])
                own = dict(network.named_buffers())
                for name, value in state.items():
                    if name in own and own[name].shape == value.shape:
                        own[name].copy_(value)

    def _skeleton(self, member: str) -> tuple[nn.Module, Taps]:
        """A member without weights, in no memory, and what looks at its queries, keys and values."""
        if member not in self._skeletons:
            size = self.sizes[member]
            with torch.device("meta"):
                made = self._make(size.layers, size.hidden, size.wide, size.heads)
            self._skeletons[member] = made, Taps(made, last_attention(made).kinds)
        return self._skeletons[member]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The signals of the chosen member, and `queries`, `keys` and `values` of its last layer."""
        network, taps = self._skeleton(self.chosen)
        whole = self.networks[self.sizes[self.chosen].space]
        if network.training != self.training:
            network.train(self.training)
        if self.training:  # what a recipe says of dropout was said to the network that is trained
            p = next((m.p for m in whole.modules() if isinstance(m, nn.Dropout)), 0.0)
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = p
        # At rest of one block of memory, as a network of its own has them: so products are the same to the last bit.
        # In training those copies would be a tenth of a step, most of it of the embeddings.
        own = (lambda x: x) if self.training else Tensor.contiguous
        state = {name: own(weight[cut]) for name, (weight, cut) in self.parts(self.chosen).items()}
        state |= {name: value for name, value in whole.named_buffers()}
        with taps.reading():
            given = functional_call(network, state, (inputs,))
        seen = taps.signals(inputs)
        made = given if isinstance(given, LazySignals) else LazySignals(given)
        made.update(zip(RELATED, (seen[kind] for kind in last_attention(network).kinds)))
        return made

    def filled(self, member: str) -> nn.Module:
        """A member as a network of its own, with weights of its own."""
        size = self.sizes[member]
        made, parts = self._make(size.layers, size.hidden, size.wide, size.heads), self.parts(member)
        with torch.no_grad():
            for name, own in made.named_parameters():
                weight, cut = parts[name]
                own.copy_(weight[cut])
            for (_, own), (_, value) in zip(made.named_buffers(), self.networks[size.space].named_buffers()):
                own.copy_(value)
        return made.eval()

    # -- a step on some members leaves all else as it is --------------------------------------------------------

    def others(self, members: Sequence[str]) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
        """Weights of which these members have a part alone: the weight, its values now, and which no member has. Decay
        and momentum would move them in a step of an optimiser, as the gradient there is 0 and not missing."""
        cuts: dict[nn.Parameter, list[tuple[slice, ...]]] = {}
        for member in members:
            for weight, cut in self.parts(member).values():
                cuts.setdefault(weight, []).append(cut)
        made = []
        for weight, each in cuts.items():
            if not any(all(n <= s.stop for n, s in zip(weight.shape, cut)) for cut in each):
                rest = torch.ones_like(weight, dtype=torch.bool)
                for cut in each:
                    rest[cut] = False
                made.append((weight, weight.detach().clone(), rest))
        return made

    @staticmethod
    def put_back(others: Iterable[tuple[nn.Parameter, Tensor, Tensor]]) -> None:
        """After a step: what `others` gave before it."""
        with torch.no_grad():
            for weight, values, rest in others:
                torch.where(rest, values, weight, out=weight.data)
