"""SKT: Structured Knowledge Transfer for crowd counting (arXiv:2003.10120).

S_1 .. S_6 are layers of the student, found by name, T_i those of the teacher on the same crop, P the density maps, D
that of the labels. Of one image:

    F_i    = ReLU(conv1x1_i(S_i)), to the teacher's channels; F_7 = P^S, T_7 = P^T
    cos    = lambda_cos  sum_i sum_positions (1 - cos(F_i, T_i))                                      i = 1 .. 6
    fsp    = lambda_fsp  sum_{i<j} ||G_ij(F) - G_ij(T)||^2      over all pairs of the seven maps, 21
    labels = ||s (P^S - D)||^2            teacher = ||s (P^S - P^T)||^2

G_ij = X_i X_j^T / positions, of maps that are max-pooled to one stride and normalised over space, channel by channel
(variance without correction, eps 1e-5); the density map is normalised as well. Where a vector is zero its cosine is 0.
`reduction: mean` takes the mean over positions, and over the entries of each G, in place of their sums; both terms of
the density stay sums. Losses are means over the images of a step; the authors' batch is one image.

The 1x1 convolutions are trained along and never published. s is the scale of the student's target, a factor on what the
network gives; the authors have none (s = 1).

Departures: Gram matrices are of each image, where the authors' code takes the first of a batch; `hard_weight` (0 for
images without labels), `reduction` and s are added; crops and the optimiser are those of `density`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from kdhub.errors import CompatibilityError
from kdhub.method import Progress
from kdhub_vision.counting.targets import STRIDE
from kdhub_vision.methods.density import Density, DensityOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

HOOKS = ("front.1", "front.4", "front.9", "front.16", "back.1", "back.7")
"""Of CSRNet: the first ReLU, the three pools, the first and the fourth ReLU of the back."""
EPS = 1e-5


class SktOptions(DensityOptions):
    lambda_cos: float = Field(0.5, ge=0, description="factor on the cosine distances of layers")
    lambda_fsp: float = Field(0.5, ge=0, description="factor on the distances of Gram matrices between layers")
    soft_weight: float = Field(1.0, ge=0, description="factor on the distance to the teacher's density")
    hook_points: tuple[str, ...] = Field(
        HOOKS, description="layers that are compared, by their names in both networks; two or more, outermost first"
    )
    fsp_stride: int = Field(STRIDE, ge=STRIDE, description="pixels of a cell that maps are pooled to, a power of two")
    adapter_relu: bool = Field(
        True, description="ReLU behind the 1x1 convolutions that bring layers to the teacher's width"
    )
    reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="of cosine and Gram terms over positions and entries; sum is published, mean for short training",
    )

    @field_validator("hook_points")
    @classmethod
    def _several(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"hook_points must be two or more names, each once (hook_points={list(names)})")
        return names

    @field_validator("fsp_stride")
    @classmethod
    def _power_of_two(cls, stride: int) -> int:
        if stride & (stride - 1):
            raise ValueError(f"fsp_stride must be a power of two (fsp_stride={stride})")
        return stride


class Skt(Density):
    Options = SktOptions
    options: SktOptions
    tiny_recipe = {"options": {"reduction": "mean", "lr": 1e-3}}

    def __init__(self, options: SktOptions, spec: Any = None):
        super().__init__(options, spec)
        self.least = (
            2 * options.fsp_stride // STRIDE if options.lambda_fsp else 1
        )  # normalised over one cell, all is zero
        self._shares: dict[str, float] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The layers that are read, as signals of either network."""
        read = self.options.lambda_cos or self.options.lambda_fsp
        return tuple(f"layer:{name}:map" for name in self.options.hook_points) if read else ()

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return ("density", *self.kinds)

    def uses(self, student: Student) -> tuple[str, ...]:
        return self.kinds

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        if not self.kinds:
            return {}
        from torch import nn

        widths = [(student.layers[kind][0], teacher.layout(kind)[kind][0]) for kind in self.kinds]
        made = nn.ModuleList(nn.Conv2d(mine, theirs, 1) for mine, theirs in widths)
        for layer in made:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        return {"adapters": made}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        o, many, sizes = self.options, len(batch["sizes"]), batch["sizes"]
        terms = super().objective(student, teacher, batch, progress)
        gap = self.scale * (student.density - teacher.density)
        terms["teacher"] = o.soft_weight * gap.square().sum() / many
        if not self.kinds:
            return terms
        from kdhub_vision.counting.networks import alike, unflat

        strides = [stride_of(kind, batch["image"], student[kind], teacher[kind]) for kind in self.kinds] + [STRIDE]
        of_both = [
            [*(given[kind] for kind in self.kinds), unflat(given.density, -(-sizes // STRIDE))]
            for given in (student, teacher)
        ]
        cos, fsp, mean = [], [], o.reduction == "mean"
        for (high, wide), rows in alike(sizes.tolist()).items():
            mine, theirs = (
                [m[rows, :, : -(-high // s), : -(-wide // s)] for m, s in zip(maps, strides)] for maps in of_both
            )
            for n, adapter in enumerate(self.modules["adapters"]):
                mine[n] = adapter(mine[n]).relu() if o.adapter_relu else adapter(mine[n])
            weight = len(rows) if mean else 1
            if o.lambda_cos:
                cos += [weight * cosine_distance(f, t, mean) for f, t in zip(mine[:-1], theirs)]
            if o.lambda_fsp:
                own, other = (
                    grams([pooled(m, o.fsp_stride // s) for m, s in zip(maps, strides)]) for maps in (mine, theirs)
                )
                fsp += [weight * squares(a - b, mean) for a, b in zip(own, other)]
        factors = {"cos": (o.lambda_cos, cos), "fsp": (o.lambda_fsp, fsp)}
        return terms | {name: factor * sum(of) / many for name, (factor, of) in factors.items() if factor}

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        total = sum(terms.values())
        self._shares = {f"share_{name}": value / total for name, value in terms.items()} if total else {}

    def state(self) -> dict[str, Any]:
        """What share of the loss each term had in the last step; in each line of the log."""
        return dict(self._shares)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._shares = dict(state)


def stride_of(kind: str, images: Tensor, *maps: Tensor) -> int:
    """Pixels of a side of a cell of maps that two networks give for the same images.

    Raises:
        CompatibilityError: they are not of one size, or not of a stride that is a power of two.
    """
    stride, size = 1, tuple(images.shape[2:])
    shapes = {tuple(one.shape[2:]) for one in maps}
    while stride < max(size):
        if shapes == {tuple(-(-n // stride) for n in size)}:
            return stride
        stride *= 2
    said = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
    raise CompatibilityError(
        f"{kind} has maps of {said} cells for images of {size[0]} x {size[1]} pixels; expected one size, that of the "
        "image divided by a power of two, in student and teacher",
        hint="name other hook_points",
    )


def cosine_distance(mine: Tensor, theirs: Tensor, mean: bool = False) -> Tensor:
    """1 - cosine of the channels at each position of maps (rows, channels, height, width), summed, or their mean; 1
    where either vector is zero."""
    from torch.nn.functional import cosine_similarity

    each = 1 - cosine_similarity(mine, theirs, dim=1)
    return each.mean() if mean else each.sum()


def pooled(maps: Tensor, by: int) -> Tensor:
    """The largest of `by` x `by` cells, those at the edge included."""
    from torch.nn.functional import max_pool2d

    return max_pool2d(maps, by, by, ceil_mode=True) if by > 1 else maps


def grams(maps: Sequence[Tensor]) -> list[Tensor]:
    """G_ij for every pair i < j of maps of one size, each (rows, channels, height, width): (rows, C_i, C_j)."""
    from torch.nn.functional import instance_norm

    flat = [instance_norm(one, eps=EPS).flatten(2) for one in maps]
    return [a @ b.transpose(1, 2) / a.shape[2] for a, b in combinations(flat, 2)]


def squares(differences: Tensor, mean: bool = False) -> Tensor:
    each = differences.square()
    return each.mean() if mean else each.sum()
