"""Students of few bits: linear layers whose weights lie on a grid while they are trained, and are packed when saved.

Weights of a layer are cut along its inputs into groups of g, each with a scale of 16 bits:

    int-asym   s = max((max - min) / (2^b - 1), 1e-5)     z = clip(-round(min / s), 0, 2^b - 1)
               w_q = (clip(round(w / s) + z, 0, 2^b - 1) - z) s
    int-sym    s = max(max |w| / (2^(b-1) - 1), 1e-5)     w_q = clip(round(w / s), -2^(b-1), 2^(b-1) - 1) s
    fp4        s = max |w| / 6                            w_q = s times the nearest of +-{0, .5, 1, 1.5, 2, 3, 4, 6}

as BitDistiller's code has the integers (arXiv:2402.10631). Departures: scales are rounded to float16, as they are
saved, so that what is trained and measured is what is published; min and max of int-asym include 0, or a group of one
sign would saturate. The gradient is that of w (straight through).

A layer keeps its own class and the name `weight`; reading it gives w_q. `settle` puts w_q in the place of w.

Saved are the codes, bit after bit, each row filled up to 32 bits: `NAME.weight_packed` (int32), `NAME.weight_scale`
(float16), `NAME.weight_shape`, and for int-asym `NAME.weight_zero_point`, packed likewise. int-sym of a transformers
model is opened by transformers alone, with compressed-tensors beside it. The others no library reads back; their file
is `packed.safetensors`, so that transformers finds no weights instead of inventing those that it misses.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kdhub.errors import CompatibilityError, UntrustedError
from kdhub.student import Student

FILE = "quantization.json"
PLAIN, PACKED = "model.safetensors", "packed.safetensors"
"""Weights that other libraries open, and those that only kdhub does."""
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SMALLEST = 1e-5
"""Of an integer scale."""
SKIPPED = ("lm_head", "head", "classifier", "score", "embed_out")
"""Names of layers that are left as they are: the output head, as parts of a dotted name."""


@dataclass(frozen=True)
class Scheme:
    """What a layer's grid is like.

    Attributes:
        bits: of a code, 2 to 8; of fp4 always 4.
        group: weights that share a scale; -1 is a row.
        format: int-asym, int-sym or fp4.
    """

    bits: int
    group: int = 128
    format: str = "int-asym"

    def size(self, inputs: int) -> int:
        """Weights of a group of a layer with so many inputs.

        Raises:
            CompatibilityError: groups do not divide them.
        """
        if self.group == -1 or inputs < self.group:
            return inputs
        if inputs % self.group:
            raise CompatibilityError(
                f"groups of {self.group} do not divide the {inputs} inputs of a layer (group_size={self.group})",
                hint="group_size: -1 for a scale a row, or a divisor of the width",
            )
        return self.group

    def grid(self, weight: Tensor) -> Grid:
        """The grid of a weight (out, in), by the largest and smallest value of each group."""
        groups = _grouped(weight.detach().float(), self)
        if self.format == "int-asym":
            low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
            scale = _half((high - low).clamp_min(SMALLEST * (2**self.bits - 1)) / (2**self.bits - 1))
            return Grid(scale, (-(low / scale).round()).clamp(0, 2**self.bits - 1))
        largest = groups.abs().amax(-1)
        if self.format == "fp4":
            return Grid(_half(largest / FP4[-1]).masked_fill(largest == 0, 1.0))
        return Grid(_half((largest / (2 ** (self.bits - 1) - 1)).clamp_min(SMALLEST)))

    def codes(self, weight: Tensor, grid: Grid) -> Tensor:
        """(out, in) -> its codes (out, groups, g), whole numbers from 0 as float32."""
        scaled = _grouped(weight.detach().float(), self) / grid.scale.unsqueeze(-1)
        if self.format == "fp4":
            nearest = torch.bucketize(scaled.abs(), _between(scaled.device))
            return (nearest + 8 * (scaled < 0)).float()
        zero = grid.zero.unsqueeze(-1) if grid.zero is not None else 2 ** (self.bits - 1)
        return (scaled.round() + zero).clamp(0, 2**self.bits - 1)

    def values(self, codes: Tensor, grid: Grid) -> Tensor:
        """Codes (out, groups, g) -> weights (out, in), float32."""
        if self.format == "fp4":
            steps = torch.tensor([*FP4, *(-x for x in FP4)], device=codes.device)[codes.long()]
        else:
            steps = codes - (grid.zero.unsqueeze(-1) if grid.zero is not None else 2 ** (self.bits - 1))
        return (steps * grid.scale.unsqueeze(-1)).flatten(1)

    def bits_of(self, outputs: int, inputs: int) -> int:
        """Bits of a layer's weights: codes, a scale of 16 bits a group, and for int-asym a code for its zero."""
        groups = inputs // self.size(inputs)
        return outputs * (inputs * self.bits + groups * (16 + self.bits * (self.format == "int-asym")))


@dataclass(frozen=True)
class Grid:
    """Attributes:
    scale: (out, groups), float32 numbers that are float16 ones.
    zero: (out, groups) the code of 0, whole numbers; None where it is the same for all.
    """

    scale: Tensor
    zero: Tensor | None = None


class Quantized:
    """What is mixed into the class of a linear layer: its `weight` is read as it lies on the grid.

    Attributes:
        scheme: of the layer.
        fixed: its grid, once the weights were settled; until then the grid follows them.
    """

    scheme: Scheme
    fixed: Grid | None

    @property
    def weight(self) -> Tensor:
        raw = self._parameters["weight"]
        return raw + (self.on_grid() - raw).detach()

    @property
    def grid(self) -> Grid:
        if self.fixed is None:
            return self.scheme.grid(self._parameters["weight"])
        where = self._parameters["weight"].device
        return Grid(self.fixed.scale.to(where), None if self.fixed.zero is None else self.fixed.zero.to(where))

    def on_grid(self) -> Tensor:
        raw, grid = self._parameters["weight"], self.grid
        return self.scheme.values(self.scheme.codes(raw, grid), grid).to(raw.dtype)


@cache
def _mixed(kind: type[nn.Linear]) -> type[nn.Linear]:
    return type(f"Quantized{kind.__name__}", (Quantized, kind), {})


def quantized_layers(module: nn.Module) -> dict[str, Any]:
    """Its quantised layers by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Quantized)}


def put_on(layer: nn.Linear, scheme: Scheme, grid: Grid | None = None) -> None:
    """Have a linear layer's weights lie on a grid from here on."""
    scheme.size(layer.in_features)
    layer.__class__, layer.scheme, layer.fixed = _mixed(type(layer)), scheme, grid


def settle(module: nn.Module) -> None:
    """Put the weights on the grid in the place of the trained ones, for good."""
    for layer in quantized_layers(module).values():
        layer.fixed, raw = layer.grid, layer._parameters["weight"]
        raw.data = layer.on_grid()


# -- files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Saved:
    """`quantization.json`. `layers`: name of a layer in the file -> its scheme; `bits` of them all, with scales."""

    layers: Mapping[str, Mapping[str, Any]]
    dtype: str
    bits: int
    schema: int = 1


def pack(module: nn.Module, folder: Path) -> None:
    """Write the quantised weights of a saved folder as codes.

    Raises:
        CompatibilityError: its weights are not in one file, by the names they have in the network.
    """
    from safetensors.torch import load_file, save_file

    layers = quantized_layers(module)
    file = folder / PLAIN
    state = load_file(file) if file.is_file() else {}
    saved, bits = {}, 0
    for name, layer in layers.items():
        known = next((n for n in (name, name.removeprefix("model."), name.partition("model.")[2])
                      if f"{n}.weight" in state), None)  # fmt: skip
        if known is None:
            raise CompatibilityError(f"the weights of {name} are not in {file.name}, so that they cannot be packed")
        dtype = str(state.pop(f"{known}.weight").dtype).removeprefix("torch.")
        scheme, grid = layer.scheme, layer.grid
        codes = scheme.codes(layer._parameters["weight"], grid).flatten(1)
        state[f"{known}.weight_packed"] = _bits(codes, scheme.bits)
        state[f"{known}.weight_scale"] = grid.scale.half().contiguous()
        state[f"{known}.weight_shape"] = torch.tensor(codes.shape)
        if grid.zero is not None:
            state[f"{known}.weight_zero_point"] = _bits(grid.zero, scheme.bits)
        whole = scheme.size(codes.shape[1]) == codes.shape[1]
        saved[known], bits = asdict(replace(scheme, group=-1) if whole else scheme), bits + scheme.bits_of(*codes.shape)
    (folder / FILE).write_text(json.dumps(asdict(_Saved(saved, dtype, bits)), indent=2))
    config = json.loads((folder / "config.json").read_text())
    if alone := "architectures" in config and opens_alone(module):
        config["quantization_config"] = _for_transformers(saved)
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    file.unlink()
    save_file(state, folder / (PLAIN if alone else PACKED), metadata={"format": "pt"})


def _for_transformers(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What tells transformers how to open layers of int-sym, by compressed-tensors."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, scheme in layers.items():
        groups.setdefault((scheme["bits"], scheme["group"]), []).append(name)
    made = {}
    for n, ((bits, group), names) in enumerate(groups.items()):
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
        weights |= {"strategy": "channel"} if group == -1 else {"strategy": "group", "group_size": group}
        made[f"group_{n}"] = {"targets": names, "weights": weights}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": made, "ignore": [],
    }  # fmt: skip


def unpack(folder: Path, plain: Path) -> dict[str, tuple[Scheme, Grid]]:
    """Write a packed folder's files into another one as any library reads them.

    Returns:
        Name of a layer -> its scheme and grid.

    Raises:
        UntrustedError: its files do not fit each other.
    """
    from safetensors.torch import load_file, save_file

    try:
        said = _Saved(**json.loads((folder / FILE).read_text()))
        file = folder / PACKED
        state, found = load_file(file if file.is_file() else folder / PLAIN), {}
        for name, settings in said.layers.items():
            scheme = Scheme(**settings)
            rows, columns = state.pop(f"{name}.weight_shape").tolist()
            groups = columns // scheme.size(columns)
            scale = state.pop(f"{name}.weight_scale").float().reshape(rows, groups)
            zero = None
            if scheme.format == "int-asym":
                zero = _numbers(state.pop(f"{name}.weight_zero_point"), scheme.bits, groups)
            grid = Grid(scale, zero)
            codes = _numbers(state.pop(f"{name}.weight_packed"), scheme.bits, columns).reshape(rows, groups, -1)
            state[f"{name}.weight"] = scheme.values(codes, grid).to(getattr(torch, said.dtype))
            found[name] = scheme, grid
    except (KeyError, ValueError, TypeError, RuntimeError, OSError, AttributeError) as error:
        raise UntrustedError(f"{folder}: its packed weights are damaged: {type(error).__name__}: {error}") from error
    for path in folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, plain / path.name)
        elif path.name not in (FILE, PLAIN, PACKED):
            shutil.copy(path, plain / path.name)
    config = json.loads((plain / "config.json").read_text())
    config.pop("quantization_config", None)
    (plain / "config.json").write_text(json.dumps(config))
    save_file(state, plain / PLAIN, metadata={"format": "pt"})
    return found


F = TypeVar("F", bound=Callable[..., Any])


def opening(load: F) -> F:
    """Of a function that opens a student's folder: packed ones too, with their layers on their grids."""

    @wraps(load)
    def opened(folder: Path, **how: Any) -> Any:
        folder = Path(folder)
        if not (folder / FILE).is_file():
            return load(folder, **how)
        with tempfile.TemporaryDirectory() as plain:
            found = unpack(folder, Path(plain))
            student = load(Path(plain), **{**how, "name": how.get("name") or str(folder)})
        for name, (scheme, grid) in found.items():
            layers = dict(_linear(student.module, name))
            for layer in layers.values():
                put_on(layer, scheme, grid)
        return student

    return opened


def _linear(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Linear]]:
    """The layer that a file calls so; a student's network may have the library's model inside."""
    for known, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and (known == name or known.endswith(f"model.{name}")):
            yield known, layer
            return
    raise UntrustedError(f"its weights are packed for a layer {name!r}, which it has not")


def saving(save: F) -> F:
    """Of a method that saves a student: what is quantised is packed."""

    @wraps(save)
    def packed(self: Any, folder: Path, *args: Any, **more: Any) -> None:
        save(self, folder, *args, **more)
        if quantized_layers(self.module) and not (Path(folder) / FILE).exists():
            pack(self.module, Path(folder))

    return packed


def using(usage: F) -> F:
    """Of a method that says how a saved student is used: by kdhub where no library opens what is packed."""

    @wraps(usage)
    def said(self: Any) -> str | None:
        return usage(self) if opens_alone(self.module) else Student.usage(self)

    return said


def opens_alone(module: nn.Module) -> bool:
    """Whether the saved folder is opened without kdhub, as if nothing were quantised or by compressed-tensors."""
    return all(layer.scheme.format == "int-sym" for layer in quantized_layers(module).values())


def weight_bits(costed: Any) -> float | None:
    """Bits of all weights of a model, scales and zeros included: those of its quantised layers as they are packed, 32
    for each other number, or as many as it has in the precision that it is in."""
    module = getattr(costed.model, "module", None)
    if module is None:
        return None
    layers = quantized_layers(module)
    packed = {id(layer._parameters["weight"]) for layer in layers.values()}
    plain = sum(p.numel() * p.element_size() * 8 for p in module.parameters() if id(p) not in packed)
    return float(plain + sum(x.scheme.bits_of(x.out_features, x.in_features) for x in layers.values()))


def _bits(codes: Tensor, bits: int) -> Tensor:
    """(rows, n) codes -> int32 (rows, n bits in 32), the lowest bit first."""
    array = codes.cpu().numpy().astype(np.uint8)
    spread = np.unpackbits(array[..., None], axis=-1, count=bits, bitorder="little").reshape(len(array), -1)
    spread = np.pad(spread, ((0, 0), (0, -spread.shape[1] % 32)))
    return torch.from_numpy(np.packbits(spread, axis=-1, bitorder="little").view("<i4").copy())


def _numbers(packed: Tensor, bits: int, n: int) -> Tensor:
    """What `_bits` packed: (rows, n)."""
    array = np.ascontiguousarray(packed.numpy()).view(np.uint8)
    spread = np.unpackbits(array, axis=-1, count=n * bits, bitorder="little").reshape(len(array), n, bits)
    return torch.from_numpy(np.packbits(spread, axis=-1, bitorder="little")[..., 0].astype(np.float32))


def _grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    return weight.unflatten(-1, (-1, scheme.size(weight.shape[-1])))


def _half(scale: Tensor) -> Tensor:
    """To what float16 can say, and at least its smallest number."""
    return scale.half().float().clamp(2.0**-24, 65504)


def _between(device: torch.device) -> Tensor:
    """Where the nearest number of fp4 changes."""
    steps = torch.tensor(FP4, device=device)
    return (steps[1:] + steps[:-1]) / 2
