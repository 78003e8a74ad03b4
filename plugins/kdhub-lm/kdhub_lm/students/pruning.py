"""The teacher without some of its blocks as a student (section 4a of `self-data`; arXiv:2403.17887, 2403.03853).

    d(l, n) = mean over texts of arccos(cos(h_l, h_{l+n})) / pi,   h_l the residual stream that goes into block l

at the last token of each text. The run of n blocks with the smallest d is removed, as its input and output point in
nearly the same direction. Public code compares the outputs of blocks and so never removes the first one; here inputs
are compared, and `protect_first` says what must stay. With `metric: cosine_all_tokens` blocks are chosen one by one, by
1 - cos over all tokens (block influence), and need not be neighbours.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kdhub import open_data
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import MethodOptions
from kdhub.recipes.recipe import DataRef
from kdhub.student import BuildContext

if TYPE_CHECKING:
    import torch
    from kdhub_tasks.language.model import CausalLm
    from torch import Tensor, nn

logger = logging.getLogger("kdhub")

SHARE = 0.19
"""Share of the blocks to remove by default: 6 of 32."""
BATCH = 16
"""Texts run at once."""
EMBEDDED = "pydoc"
"""Calibration texts if neither option nor recipe names any."""


class PruneOptions(MethodOptions):
    metric: Literal["angular_last_token", "cosine_all_tokens"] = Field(
        "angular_last_token", description="remove a run of blocks by the last token, or single blocks by all tokens"
    )
    protect_first: int = Field(1, ge=0, description="blocks at the beginning that are never removed")
    protect_last: int = Field(1, ge=0, description="blocks at the end that are never removed")
    calib: Annotated[DataRef, BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v)] | None = Field(
        None, description="calibration texts; if unset, the first training rows"
    )
    calib_rows: int = Field(256, ge=8, description="most rows of them")


def depth_prune(argument: str, context: BuildContext) -> CausalLm:
    """`depth-prune:N`: the teacher without N blocks; `depth-prune:` without about a fifth of them.

    Raises:
        UsageError: N is not a number, or more than the blocks that are not protected.
        CompatibilityError: the teacher has no local weights.
    """
    from kdhub_tasks.language.model import CausalLm
    from kdhub_tasks.layers import blocks, keep_blocks

    teacher, options = getattr(context.teacher, "model", None), context.options
    if not isinstance(teacher, CausalLm):
        raise CompatibilityError("student depth-prune needs a language model with local weights as the teacher")
    have = len(blocks(teacher.module.model))
    if argument and not argument.isdigit():
        raise UsageError(f"student depth-prune:{argument} needs a number of blocks, as in depth-prune:2")
    count = int(argument) if argument else max(1, round(SHARE * have))
    first, last = options["protect_first"], options["protect_last"]
    if count > max(0, have - first - last):
        raise UsageError(
            f"student depth-prune:{argument} cannot remove {count} of {have} blocks (protect_first={first}, "
            f"protect_last={last})",
            hint="remove fewer, or set protect_first and protect_last",
        )
    model = copy.deepcopy(teacher.module.model).requires_grad_(True)
    how = f"all {have} blocks"
    if count:
        examples, of = _calibration(context)
        if options["metric"] == "angular_last_token":
            distances = run_distances(last_tokens(teacher, examples), count)
            start = least(distances, first, have - last - count)
            chosen, value = list(range(start, start + count)), distances[start]
        else:
            influence = influences(teacher, examples)
            inner = sorted(range(first, have - last), key=lambda i: (influence[i], i))
            chosen = sorted(inner[:count])
            value = sum(influence[i] for i in chosen) / count
        keep_blocks(model, [i for i in range(have) if i not in chosen])
        how = (
            f"without blocks {', '.join(str(i + 1) for i in chosen)} of {have} ({options['metric']} {value:.4f} on "
            f"{len(examples)} rows of {of})"
        )
        logger.info("depth-prune: %s", how)
    known = context.teacher.known
    base = known.get("id") if known.get("revision") else None
    start = {"base_model": base, "revision": known.get("revision"), "how": how}
    return teacher.like(model, start)


depth_prune.Options = PruneOptions


def run_distances(states: Tensor, n: int) -> list[float]:
    """d(l, n) in [0, 1] for each start l of a run of n blocks.

    Args:
        states: (blocks + 1, texts, width), the input of each block and the output of the last.
    """
    return [angular(a, b).mean().item() for a, b in zip(states[: len(states) - n], states[n:])]


def angular(a: Tensor, b: Tensor) -> Tensor:
    """Angle over pi: (..., width) twice -> (...,); 0 parallel, 1/2 orthogonal, 1 opposite."""
    return _cosine(a, b).arccos() / math.pi


def least(distances: Sequence[float], first: int, last: int) -> int:
    """The start with the smallest distance, from `first` to `last`; the first of ties.

    Raises:
        UsageError: there is no such start.
    """
    if first > last:
        raise UsageError("the blocks that are not protected are fewer than those to remove")
    return min(range(first, last + 1), key=lambda start: (distances[start], start))


def last_tokens(student: CausalLm, examples: Sequence[dict[str, Any]]) -> Tensor:
    """The residual stream at the last token of each example: (blocks + 1, examples, width) float32."""
    import torch

    parts = []
    for states, mask in _streams(student, examples):
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # for rows padded on the right or on the left
        parts.append(states[:, torch.arange(len(last)), last])
    return torch.cat(parts, 1)


def influences(student: CausalLm, examples: Sequence[dict[str, Any]]) -> list[float]:
    """1 - cos between the input and the output of each block, mean over all tokens."""
    total, tokens = 0.0, 0
    for states, mask in _streams(student, examples):
        real = mask.bool()
        total = total + (1 - _cosine(states[:-1], states[1:]))[:, real].double().sum(1)
        tokens += int(real.sum())
    return (total / tokens).tolist()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """In [-1, 1]; rounding may exceed it, where arccos is NaN."""
    import torch

    return torch.cosine_similarity(a.double(), b.double(), -1).clamp(-1, 1)


def _streams(student: CausalLm, examples: Sequence[dict[str, Any]]) -> Any:
    """The residual stream of some examples, one batch after the other: (blocks + 1, rows, positions, width) float32,
    and which positions are tokens, (rows, positions)."""
    import torch

    from kdhub.ranks import device

    network = student.module.to(device()).model
    was = network.training
    network.eval()
    with torch.no_grad(), _watched(network) as seen:
        for start in range(0, len(examples), BATCH):
            batch = student.collate(examples[start : start + BATCH])
            ids, mask = batch["input_ids"].to(student.device), batch["attention_mask"].to(student.device)
            seen.clear()
            network.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            yield torch.stack(seen).float(), mask
    network.train(was)


@contextmanager
def _watched(network: nn.Module) -> Any:
    """A list that receives the input of each block, and the output of the last."""
    from kdhub_tasks.layers import blocks

    seen: list[torch.Tensor] = []
    stack = blocks(network)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(_: Any, __: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in stack]
    hooks.append(stack[-1].register_forward_hook(after))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _calibration(context: BuildContext) -> tuple[list[dict[str, Any]], str]:
    """Calibration examples, and where they are from."""
    from kdhub.rows import plain_rows

    options, limit = context.options, context.options["calib_rows"]
    rows, of = context.facts.get("rows", [])[:limit], "the training data"
    if options["calib"] or not rows:
        ref = DataRef.model_validate(options["calib"] or {"source": EMBEDDED})
        data = open_data(ref)
        table = context.task.training_table([(data, data.pick("train"))])
        rows, of = plain_rows(table, range(min(limit, len(table)))), ref.source
    answers = {} if "text" in rows[0] or "response" in rows[0] or "messages" in rows[0] else {"prompts": 1}
    examples = context.task.preparer(None, context.teacher, **answers)(rows)
    return [e for e in examples if e.get("ids")], of
