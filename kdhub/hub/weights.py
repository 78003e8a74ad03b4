"""What the headers of safetensors files say, read before a library makes anything of a folder: how many numbers there
are says how large a configuration may claim to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdhub.errors import UntrustedError
from kdhub.files import once
from kdhub.plain_json import fit, plain_json, read_json
from kdhub.shapes import Shape

_LARGEST_HEADER = 100 * 10**6  # as the library itself has it
_LARGEST_CONFIG = 8 * 2**20
_FEW_LAYERS, _MOST_LAYERS = 512, 2048
"""So many any model may have, as some share their weights between layers; and more than that none."""
_LAYERS = ("layers", "n_layer", "depth", "blocks", "layer_types")
_WIDTHS = ("hidden_size", "intermediate_size", "vocab_size", "d_model", "d_ff", "n_embd", "n_inner", "ffn_dim", "dim")
_LENGTHS = {"positions": 2**25, "position_embeddings": 2**25, "timesteps": 2**20, "num_labels": 2**22}
"""The most of what is counted without weights: the longest context that models claim is ten million."""
_PARTS, _ROOM = 250_000, 2**27
"""Modules that a network may have, and numbers beyond those that its files have room for: members of a family, say,
which share theirs."""

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Type of numbers -> bits of one."""

_Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Tensor(Shape):
    dtype: str
    shape: Annotated[list[_Size], Field(max_length=64)]
    data_offsets: Annotated[list[_Size], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Header:
    """Of one file: name of each tensor -> its number type and shape."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def numbers(self) -> int:
        return sum(prod(shape) for _, shape in self.tensors.values())


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        ValueError: it is none, or the file is shorter or longer than its header says.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"its header of {length:,} bytes is none")
        told = plain_json(file.read(length), dict[str, Any])
    told.pop("__metadata__", None)
    fit(dict[str, _Tensor], told)
    at = 0
    for name, tensor in sorted(told.items(), key=lambda one: one[1]["data_offsets"]):
        kind, shape, (begin, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        if kind not in _BITS:
            raise ValueError(f"{name[:100]} holds numbers of an unknown type, {kind[:20]!r}")
        if begin != at or 8 * (end - begin) != _BITS[kind] * prod(shape):
            raise ValueError(
                f"{name[:100]} is not where its header says ({kind} of {shape}, bytes {begin} to {end})"[:300]
            )
        at = end
    if at != size - 8 - length:
        raise ValueError(f"it has {size - 8 - length:,} bytes of numbers, its header speaks of {at:,}")
    tensors = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in told.items()}
    return Header(tensors)


@once
def check_weights(folder: Path, name: str) -> None:
    """Refuse weights that are not whole, and configurations that claim more than the weights beside them can be: ten
    million layers keep a library busy for minutes before it sees that there is nothing to put into them.

    Raises:
        UntrustedError: names file, and key.
    """
    for config in sorted([*folder.rglob("config.json"), *folder.rglob("scheduler_config.json")]):
        headers = []
        for path in sorted(config.parent.glob("*.safetensors")):
            try:
                headers.append(read_header(path))
            except (OSError, ValueError) as error:
                raise UntrustedError(f"{name}: {path.name} is damaged: {error}") from error
        tensors, numbers = sum(len(h.tensors) for h in headers), sum(h.numbers for h in headers)
        for key, value in _claims(_config(config, name)):
            last = key.rpartition(".")[2].lower()
            for counted, most in _LENGTHS.items():
                if last.endswith(counted) and value > most:
                    raise UntrustedError(f"{name}: {config.name} says {key}={value:,}, more than {most:,}")
            if not headers:
                continue
            if last.endswith(_LAYERS) and value > min(max(tensors, _FEW_LAYERS), _MOST_LAYERS):
                raise UntrustedError(f"{name}: config.json says {key}={value:,}, and its weights are {tensors} tensors")
            if last.endswith(_WIDTHS) and value > max(numbers, 2**16):
                raise UntrustedError(f"{name}: config.json says {key}={value:,}, and its weights {numbers:,} numbers")


@contextmanager
def built_within(folder: Path, name: str) -> Iterator[None]:
    """Stop a network that, while it is built from a folder, grows beyond what the files there can fill, before memory
    is taken: whatever the key is by which a configuration asks for that. What is built on no device takes none.

    Raises:
        UntrustedError: as `check_weights`; it has too many parts, or too many numbers.
    """
    check_weights(folder, name)
    from torch.nn.modules import module as torch_module

    most = _ROOM + 16 * sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    parts = numbers = 0

    def module(*_: Any) -> None:
        nonlocal parts
        if (parts := parts + 1) > _PARTS:
            raise UntrustedError(f"{name}: its configuration asks for more than {_PARTS:,} parts of a network")

    def parameter(_: Any, key: str, made: Any) -> None:
        nonlocal numbers
        numbers += 0 if made is None or made.device.type == "meta" else made.numel()
        if numbers > most:
            raise UntrustedError(f"{name}: its configuration asks for {numbers:,} numbers ({key}), more than it has")

    hooks = [
        torch_module.register_module_module_registration_hook(module),
        torch_module.register_module_parameter_registration_hook(parameter),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _config(path: Path, name: str) -> Any:
    try:
        return read_json(path, most=_LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise UntrustedError(f"{name}: {path.name} is not readable JSON ({error})") from error


def _claims(value: Any, at: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number, by its keys; a list counts as its length."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _claims(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        yield at, len(value)
        for inner in value:
            if isinstance(inner, (dict, list)):
                yield from _claims(inner, at)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield at, value
