"""What the headers of safetensors files say, read before a library makes anything of a folder: how many numbers there
are says how large a configuration may claim to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from kdhub.errors import UntrustedError
from kdhub.plain_json import plain_json, read_json

_LARGEST_HEADER = 100 * 10**6  # as the library itself has it
_LARGEST_CONFIG = 8 * 2**20
_FEW_LAYERS = 512
"""So many any model may have: some share their weights between layers."""
_LAYERS = ("layers", "n_layer", "depth", "blocks", "layer_types")
_WIDTHS = ("hidden_size", "intermediate_size", "vocab_size", "d_model", "d_ff", "n_embd", "n_inner", "ffn_dim", "dim")


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
        try:
            told = plain_json(file.read(length))
            tensors = {
                name: (str(t["dtype"]), tuple(map(int, t["shape"])), tuple(map(int, t["data_offsets"])))
                for name, t in told.items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError("its header is not that of a safetensors file") from error
    if any(n < 0 for _, shape, _ in tensors.values() for n in shape):
        raise ValueError("a tensor has a negative size")
    if (end := max((offsets[-1] for _, _, offsets in tensors.values()), default=0)) != size - 8 - length:
        raise ValueError(f"it has {size - 8 - length:,} bytes of numbers, its header speaks of {end:,}")
    return Header({name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()})


def check_weights(folder: Path, name: str) -> None:
    """Refuse weights that are not whole, and configurations that claim more than the weights beside them can be: ten
    million layers keep a library busy for minutes before it sees that there is nothing to put into them.

    Raises:
        UntrustedError: names file, and key.
    """
    for config in sorted(folder.rglob("config.json")):
        headers = []
        for path in sorted(config.parent.glob("*.safetensors")):
            try:
                headers.append(read_header(path))
            except (OSError, ValueError) as error:
                raise UntrustedError(f"{name}: {path.name} is damaged: {error}") from error
        if not headers:
            continue
        tensors, numbers = sum(len(h.tensors) for h in headers), sum(h.numbers for h in headers)
        for key, value in _claims(_config(config, name)):
            last = key.rpartition(".")[2].lower()
            if last.endswith(_LAYERS) and value > max(tensors, _FEW_LAYERS):
                raise UntrustedError(f"{name}: config.json says {key}={value:,}, and its weights are {tensors} tensors")
            if last.endswith(_WIDTHS) and value > max(numbers, 2**16):
                raise UntrustedError(f"{name}: config.json says {key}={value:,}, and its weights {numbers:,} numbers")


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
