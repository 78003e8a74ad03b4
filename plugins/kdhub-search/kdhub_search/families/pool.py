"""A pool of vision transformers of several widths and equally many blocks, run as any of them or as a stitched path:
the first blocks of a narrow one, a linear map, the last blocks of a wider one (Learngene Pool, arXiv:2312.05743).

A path embeds images as its front does, and ends with norm and head of its end. Cut out, an anchor is a plain `vit`, and
a path a `stitched-vit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdhub_tasks.classification.networks import Vit
from torch import Tensor, nn

from kdhub.errors import UsageError
from kdhub_search.families.stitching import Path, paths


class StitchedVit(nn.Module):
    """One path as a network of its own.

    Args:
        shape, classes, patch, mean, std: as of a `vit`.
        front, end: width, heads and number of the blocks on either side of the stitch.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        front: Mapping[str, int],
        end: Mapping[str, int],
        patch: int = 2,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        self.front = Vit(shape, classes, patch, **front, mean=mean, std=std)
        self.end = Vit(shape, classes, patch, **end, mean=mean, std=std)
        del self.front.norm, self.front.head, self.end.scale, self.end.patches, self.end.positions
        self.stitch = nn.Linear(front["width"], end["width"])

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _through(self.front, self.front.layers.layers, self.stitch, self.end, self.end.layers.layers, inputs)


class PoolVit(nn.Module):
    """All anchors and stitches.

    Args:
        widths: of the anchors, ascending.
        heads, layers, patch: of each.
        window, stride: of paired stitching.
        all_pairs: stitch each anchor to each wider one; else the narrowest to the widest alone.

    Attributes:
        members: name -> how it is cut out, the one with the fewest parameters first: `3x16` is three blocks of width
            16, `1x16+2x48` a path.
        member: as which it runs; None: the widest anchor.
        paths: name -> its parts, for the members that are stitched.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        heads: int = 4,
        layers: int = 3,
        patch: int = 2,
        window: int = 2,
        stride: int = 1,
        all_pairs: bool = False,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        if len(widths) < 2 or any(a >= b for a, b in zip(widths, widths[1:])):
            raise UsageError(
                f"widths of a pool must ascend, so that no path gets narrower (widths={list(widths)})",
                hint="give at least two: widths: [16, 48]",
            )
        self.widths, self.blocks, self.common = list(widths), layers, {"heads": heads}
        self.patch = patch
        self.anchors = nn.ModuleList(Vit(shape, classes, patch, w, layers, heads, mean, std) for w in widths)
        made = paths(len(widths), layers, window, stride, all_pairs)
        count = 1 + max(path.layer for path in made)
        self.stitches = nn.ModuleDict(
            {
                f"{a}-{b}": nn.ModuleList(nn.Linear(widths[a], widths[b]) for _ in range(count))
                for a, b in dict.fromkeys((path.front, path.end) for path in made)
            }
        )
        self.anchor_names = [f"{layers}x{w}" for w in widths]
        self.paths = {self._name(path): path for path in made}
        known = {name: {"width": w} for name, w in zip(self.anchor_names, widths)}
        known |= {name: vars(path) for name, path in self.paths.items()}
        self.members = {name: known[name] for name in sorted(known, key=self.parameters_of)}
        self.member: str | None = None

    def _name(self, path: Path) -> str:
        front, end = self.widths[path.front], self.widths[path.end]
        return f"{path.leave + 1}x{front}+{self.blocks - path.enter}x{end}"

    def stitch(self, path: Path) -> nn.Linear:
        """The stitch layer of a path, which it may share with up to three others."""
        return self.stitches[f"{path.front}-{path.end}"][path.layer]

    def parts(self, name: str) -> dict[str, nn.Module | nn.Parameter]:
        """What a member is made of: name in the network that it is cut out as -> the part. All weights are counted
        once."""
        if name not in self.paths:
            return {"": self.anchors[self.anchor_names.index(name)]}
        path = self.paths[name]
        front, end = self.anchors[path.front], self.anchors[path.end]
        made: dict[str, Any] = {f"front.{n}": getattr(front, n) for n in ("scale", "patches", "positions")}
        made |= {f"front.layers.layers.{i}": front.layers.layers[i] for i in range(path.leave + 1)}
        made |= {"stitch": self.stitch(path)}
        made |= {f"end.layers.layers.{n}": end.layers.layers[j] for n, j in enumerate(range(path.enter, self.blocks))}
        return made | {f"end.{n}": getattr(end, n) for n in ("norm", "head")}

    def parameters_of(self, name: str) -> int:
        """The sum over its parts."""
        parts = self.parts(name).values()
        return sum(
            part.numel() if isinstance(part, nn.Parameter) else sum(p.numel() for p in part.parameters())
            for part in parts
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        name = self.member or self.anchor_names[-1]
        if name not in self.paths:
            return self.anchors[self.anchor_names.index(name)](inputs)
        path = self.paths[name]
        front, end = self.anchors[path.front], self.anchors[path.end]
        first, last = front.layers.layers[: path.leave + 1], end.layers.layers[path.enter :]
        return _through(front, first, self.stitch(path), end, last, inputs)

    def cut(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and weights of a member as a network of its own."""
        state: dict[str, Tensor] = {}
        for at, part in self.parts(name).items():
            inside = {"": part} if isinstance(part, nn.Parameter) else part.state_dict()
            state |= {".".join(filter(None, (at, key))): value.detach() for key, value in inside.items()}
        if name not in self.paths:
            width = self.members[name]["width"]
            return {"network": "vit", "patch": self.patch, "width": width, "layers": self.blocks, **self.common}, state
        path = self.paths[name]
        sides = {
            "front": {"width": self.widths[path.front], "layers": path.leave + 1, **self.common},
            "end": {"width": self.widths[path.end], "layers": self.blocks - path.enter, **self.common},
        }
        return {"network": "stitched-vit", "patch": self.patch, **sides}, state


def _through(
    front: Vit,
    first: Sequence[nn.Module],
    stitch: nn.Linear,
    end: Vit,
    last: Sequence[nn.Module],
    inputs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    x = front.embedded(inputs)
    for block in first:
        x = block(x)
    x = stitch(x)
    for block in last:
        x = block(x)
    return end.answered(x)
