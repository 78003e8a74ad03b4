"""Weights that a run writes for itself and needs again: by rename, with a digest in the file, so that a changed byte is
noticed where they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdhub.errors import RunError
from kdhub.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

SEAL = "seal"


def keep(tensors: Mapping[str, Tensor], path: Path) -> None:
    """
    Raises:
        OSError: as `kdhub.files.atomic_write`.
    """
    import torch
    from safetensors.torch import save

    plain = torch.contiguous_format
    whole = {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, save(whole, metadata={SEAL: _digest(whole)}))


def kept(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        RunError: there are none, or they were changed since.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
            if (file.metadata() or {}).get(SEAL, "") != _digest(found):
                raise ValueError("they were changed since they were written")
    except Exception as error:  # of the library's own kind where the file is damaged
        raise RunError(
            f"the weights in {path} cannot be used: {error}", hint="start the run again, with another --out"
        ) from error
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
