"""Steps of Adam that a killed run goes on with: parameters, moments and what else a method counts, in one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

EVERY = 100
"""Steps between two writings of the file."""


class Fitting:
    """
    Args:
        parts: name -> module; all that is trained or saved with it. Parameters may change their length on the way.
        optimisers: name -> optimiser of some of their parameters.
        counted: tensors that belong to it beside these, changed in place or by key.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer],
        counted: dict[str, Tensor] | None = None,
    ):  # fmt: skip
        self.parts, self.optimisers, self.counted = parts, optimisers, counted if counted is not None else {}
        self.names = {p: f"{m}/{n}" for m, module in parts.items() for n, p in module.named_parameters()}

    def run(self, file: Path, steps: int, step: Callable[[int], Any], every: int = EVERY) -> None:
        """Do steps 0, 1, ... up to `steps`, from where the file stands."""
        begin = self._load(file) if file.is_file() else 0
        for n in range(begin, steps):
            step(n)
            if (n + 1) % every == 0 or n + 1 == steps:
                self._save(file, n + 1)

    def _save(self, file: Path, step: int) -> None:
        tensors = {f"w/{m}/{n}": v for m, module in self.parts.items() for n, v in module.state_dict().items()}
        tensors |= {f"c/{name}": value for name, value in self.counted.items()}
        for which, optimiser in self.optimisers.items():
            for p, state in optimiser.state.items():
                tensors |= {f"m/{which}/{k}/{self.names[p]}": torch.as_tensor(v) for k, v in state.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(file.name + ".part")
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(whole, beside, metadata={"step": json.dumps(step)})
        beside.replace(file)

    def _load(self, file: Path) -> int:
        with safe_open(file, "pt") as opened:
            given = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            step = json.loads(opened.metadata()["step"])
        known = {name: p for p, name in self.names.items()}
        for name, value in given.items():
            kind, _, rest = name.partition("/")
            if kind == "c":
                self.counted[rest] = value
            elif kind == "w":
                part, _, of = rest.partition("/")
                if rest in known:
                    known[rest].data = value.to(known[rest].device)
                else:
                    self.parts[part].get_buffer(of).copy_(value)
            else:
                which, key, of = rest.split("/", 2)
                self.optimisers[which].state[known[of]][key] = value
        return step


def resized(optimiser: torch.optim.Optimizer, p: nn.Parameter, value: Tensor, moments: Callable[[Tensor], Tensor]):
    """Have a parameter be `value`, of another length, and its moments what a function makes of theirs."""
    state = optimiser.state[p]
    for key in ("exp_avg", "exp_avg_sq"):
        if key in state:
            state[key] = moments(state[key])
    p.grad = None
    p.data = value
