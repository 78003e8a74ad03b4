"""Nested slices of a built-in vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from kdhub_tasks.classification.networks import Vit
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub.errors import CompatibilityError, UsageError
from kdhub_search.families.nested import Nested, NestedOptions

if TYPE_CHECKING:
    from kdhub.student import BuildContext, Student


class Attention(nn.Module):
    """Self-attention of heads of any width, with projections of their own for queries, keys and values."""

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim) for _ in range(3))
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm layer, as a `vit` has them."""

    def __init__(self, width: int, wide: int, heads: int, head_dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, head_dim)
        self.linear1, self.linear2 = nn.Linear(width, wide), nn.Linear(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class NarrowVit(nn.Module):
    """A vision transformer whose heads keep their width: a `vit` with feed-forward and attention of any width.

    Args:
        width, wide, layers, heads, head_dim: of states, feed-forward and attention.
        shape, classes, patch, mean, std: as of a `vit`.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, patch: int = 2, width: int = 32, wide: int = 64, layers: int = 2,
        heads: int = 4, head_dim: int = 8, mean: Any = 0.0, std: Any = 1.0,
    ):  # fmt: skip
        super().__init__()
        plain = Vit(shape, classes, patch, width, 1, 1, mean, std)
        self.scale, self.patches, self.positions = plain.scale, plain.patches, plain.positions
        self.layer = nn.ModuleList(Block(width, wide, heads, head_dim) for _ in range(layers))
        self.norm, self.head = plain.norm, plain.head

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = Vit.embedded(self, inputs)
        for block in self.layer:
            x = block(x)
        return Vit.answered(self, x)


def as_narrow(vit: Vit) -> dict[str, Tensor]:
    """The weights of a `vit` by their names in a `narrow-vit`."""
    state = {name: t for name, t in vit.state_dict().items() if not name.startswith("layers.")}
    for n, layer in enumerate(vit.layers.layers):
        parts = {f"{name}.{what}": getattr(getattr(layer, name), what)
                 for name in ("norm1", "norm2", "linear1", "linear2") for what in ("weight", "bias")}  # fmt: skip
        for what in ("weight", "bias"):
            packed = getattr(layer.self_attn, f"in_proj_{what}").chunk(3)
            parts |= {f"attention.{name}.{what}": t for name, t in zip(("query", "key", "value"), packed)}
            parts[f"attention.out.{what}"] = getattr(layer.self_attn.out_proj, what)
        state |= {f"layer.{n}.{name}": t.detach() for name, t in parts.items()}
    return state


class NestedVit(Nested):
    """Sub-spaces of a vision transformer.

    Args:
        layers, hidden, heads: of the `vit` that it is cut out of; its feed-forward has twice its width.
        spaces, keep_layers, best: see `Nested`.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, spaces: Mapping[str, Any], layers: int, hidden: int, heads: int,
        patch: int = 2, keep_layers: str = "spread", best: str | None = None, mean: Any = 0.0, std: Any = 1.0,
    ):  # fmt: skip
        self.head_dim, self.patch = hidden // heads, patch
        scale = {"mean": mean, "std": std}

        def make(layers: int, hidden: int, wide: int, heads: int) -> nn.Module:
            return NarrowVit(shape, classes, patch, hidden, wide, layers, heads, self.head_dim, **scale)

        limits = {"hidden": hidden, "wide": 2 * hidden, "heads": heads}
        super().__init__(make, self.head_dim, spaces, layers, limits, keep_layers, best)

    def cut(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and weights of a member as a network of its own."""
        size = self.sizes[name]
        settings = {"patch": self.patch, "width": size.hidden, "wide": size.wide, "layers": size.layers}
        settings |= {"heads": size.heads, "head_dim": self.head_dim}
        return {"network": "narrow-vit", **settings}, self.filled(name).state_dict()


def nested(argument: str, context: BuildContext) -> Student:
    """`nested`: slices of the teacher, a `vit`; `nested:SOURCE`: of any other. Its `spaces` are options.

    Raises:
        UsageError: neither, or a member that would be larger than the network it is cut out of.
        CompatibilityError: not a `vit`.
    """
    from kdhub_tasks.classification.model import NetworkClassifier

    from kdhub import open_student

    options = NestedOptions.model_validate(context.options)
    if argument:
        start = open_student(argument, context.task.name, seed=context.seed, facts=context.facts)
    elif context.teacher is not None:
        start = context.teacher.model
    else:
        raise UsageError("student nested needs weights to be cut out of: a teacher's, or nested:SOURCE")
    if not isinstance(start.module, Vit):
        raise CompatibilityError(
            f"nested slices are made of a built-in vit, not of a {type(start.module).__name__}",
            hint="nested:vit:...",
        )
    known = start.config
    shared = {k: known[k] for k in ("shape", "classes", "mean", "std", "problem_type", "patch", "layers", "heads")
              if k in known}  # fmt: skip
    family = {"network": "nested-vit", **shared, "hidden": known["width"], **options.model_dump()}
    made = NetworkClassifier(context.task.name, family, {"how": f"nested slices of {argument or 'the teacher'}"})
    with torch.no_grad():
        made.module.begin(as_narrow(start.module))
    return made


nested.Options = NestedOptions
