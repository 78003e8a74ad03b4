"""Several rows in one sequence, none of which sees another: each begins at position 0, and transformers derives a block
mask from positions that restart (for sdpa, eager and flash attention).

It saves padding in batches of mixed lengths; batches of similar length, the default, have hardly any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdhub.errors import CompatibilityError
from kdhub.rows import Example

if TYPE_CHECKING:
    from torch import Tensor, nn


def places(lengths: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """(sequence, offset) of each row: the longest first, into the first sequence of `limit` tokens with room for it."""
    used: list[int] = []
    found = [(0, 0)] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((n for n, taken in enumerate(used) if taken + lengths[row] <= limit), len(used))
        if at == len(used):
            used.append(0)
        found[row] = at, used[at]
        used[at] += lengths[row]
    return found


def packed(examples: Sequence[Example], limit: int, pad: int) -> dict[str, Tensor]:
    """A batch: `input_ids` and `position_ids` (sequences, longest), and `at`, flat positions in the order of the
    rows."""
    import torch

    where = places([len(e["ids"]) for e in examples], limit)
    width = max(offset + len(e["ids"]) for e, (_, offset) in zip(examples, where))
    ids = torch.full((1 + max(n for n, _ in where), width), pad)
    positions = torch.zeros_like(ids)  # of padding, which nobody sees, 0 everywhere
    at = []
    for example, (n, offset) in zip(examples, where):
        part = slice(offset, offset + len(example["ids"]))
        ids[n, part] = torch.tensor(example["ids"])
        positions[n, part] = torch.arange(len(example["ids"]))
        at += [n * width + offset + place for place in example["at"]]
    return {"input_ids": ids, "position_ids": positions, "at": torch.tensor(at, dtype=torch.long)}


def mask_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Which positions of a batch are tokens, (rows, longest) int64: for methods that read its rows one by one.

    Raises:
        CompatibilityError: several rows share a sequence.
    """
    if "attention_mask" not in batch:
        raise CompatibilityError(
            "this method reads the rows of a batch one by one, which packing does not allow (packing=true)",
            hint="remove packing from the student's options",
        )
    return batch["attention_mask"]


def require_packing(model: nn.Module) -> None:
    """
    Raises:
        CompatibilityError: in this network the rows of a sequence see each other.
    """
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3, 2, 1]], device=device)
    was = model.training
    model.eval()
    with torch.no_grad():
        positions = torch.tensor([[0, 1, 2, 0, 1]], device=device)
        both = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, 3:]
        alone = model(input_ids=ids[:, 3:]).logits[0]
    model.train(was)
    if not torch.allclose(both, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())):
        raise CompatibilityError(
            f"packing is not supported by {type(model).__name__}, in which the rows of a sequence see each other",
            hint="remove packing from the student's options",
        )
