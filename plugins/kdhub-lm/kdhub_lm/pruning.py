"""Students that are the teacher without some of its blocks (section 4a of `self-data`; arXiv:2403.17887, 2403.03853).

    d(l, n) = mean over texts of arccos(cos(h_l, h_{l+n})) / pi,   h_l the residual stream that goes into block l

at the last token of each text; of all runs of n blocks the one with the smallest d is taken out, for what goes into it
and what comes out of it point the same way. Public code compares the outputs of blocks and so never finds that the
first one could go; here inputs are compared, and `protect_first` says what must stay. With `metric:
cosine_all_tokens` blocks are judged one by one, by 1 - cos over all tokens (block influence), and need not be
neighbours.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.recipe import DataRef
from kdhub.student import BuildContext
from kdhub_lm.lora import StudentOptions, builder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub_lm.models import CausalLm

logger = logging.getLogger("kdhub")

SHARE = 0.19
"""Of the blocks, taken out where no number is given: 6 of 32."""
BATCH = 16
"""Texts that are run at once."""
EMBEDDED = "pydoc"
"""Texts that blocks are judged on where neither option nor recipe names any."""


class PruneOptions(StudentOptions):
    metric: Literal["angular_last_token", "cosine_all_tokens"] = Field(
        "angular_last_token", description="runs of neighbours by the last token, or single blocks by all tokens"
    )
    protect_first: int = Field(1, ge=0, description="blocks at the beginning that are never taken out")
    protect_last: int = Field(1, ge=0, description="blocks at the end that are never taken out")
    calib: Annotated[DataRef, BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v)] | None = Field(
        None, description="texts that blocks are judged on; if unset the first training rows"
    )
    calib_rows: int = Field(256, ge=8, description="rows of them, at most")


@builder(PruneOptions)
def depth_prune(argument: str, context: BuildContext) -> CausalLm:
    """`depth-prune:N`: the teacher without N blocks; `depth-prune:` without about a fifth of them.

    Raises:
        UsageError: N is no number, or more than there are between the protected blocks.
        CompatibilityError: the teacher's weights are not at hand.
    """
    from kdhub_logits.students import blocks, keep_blocks

    from kdhub_lm.models import CausalLm

    teacher, options = getattr(context.teacher, "model", None), context.options
    if not isinstance(teacher, CausalLm):
        raise CompatibilityError("student depth-prune: is made from a language model whose weights are at hand")
    have = len(blocks(teacher.module.model))
    if argument and not argument.isdigit():
        raise UsageError(f"student depth-prune:{argument}: expected a number of blocks, depth-prune:2")
    count = int(argument) if argument else max(1, round(SHARE * have))
    first, last = options["protect_first"], options["protect_last"]
    if count > max(0, have - first - last):
        raise UsageError(
            f"student depth-prune:{argument}: the teacher has {have} blocks, of which the first {first} and the last "
            f"{last} are protected: {count} cannot be taken out",
            hint="take fewer, or set protect_first and protect_last",
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
    return CausalLm(model, context.teacher.tokenizer, start)


def run_distances(states: Tensor, n: int) -> list[float]:
    """d(l, n) in [0, 1] for each start l of a run of n blocks.

    Args:
        states: (blocks + 1, texts, width), what goes into each block and what comes out of the last.
    """
    return [angular(a, b).mean().item() for a, b in zip(states[: len(states) - n], states[n:])]


def angular(a: Tensor, b: Tensor) -> Tensor:
    """Angle over pi: (..., width) twice -> (...,); 0 the same way, 1/2 across, 1 opposite."""
    return _cosine(a, b).arccos() / math.pi


def least(distances: Sequence[float], first: int, last: int) -> int:
    """The start with the smallest distance, from `first` to `last`; the first of equal ones.

    Raises:
        UsageError: there is no such start.
    """
    if first > last:
        raise UsageError("no run of blocks lies between those that are protected")
    return min(range(first, last + 1), key=lambda start: (distances[start], start))


def last_tokens(student: CausalLm, examples: Sequence[dict[str, Any]]) -> Tensor:
    """The residual stream at the last token of each example: (blocks + 1, examples, width) float32."""
    import torch

    parts = []
    for states, mask in _streams(student, examples):
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # of rows that are padded on the right or on the left
        parts.append(states[:, torch.arange(len(last)), last])
    return torch.cat(parts, 1)


def influences(student: CausalLm, examples: Sequence[dict[str, Any]]) -> list[float]:
    """1 - cos between what goes into a block and what comes out, mean over all tokens, for each block."""
    total, tokens = 0.0, 0
    for states, mask in _streams(student, examples):
        real = mask.bool()
        total = total + (1 - _cosine(states[:-1], states[1:]))[:, real].double().sum(1)
        tokens += int(real.sum())
    return (total / tokens).tolist()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """In [-1, 1]; rounding may lead beyond, where arccos is no number."""
    import torch

    return torch.cosine_similarity(a.double(), b.double(), -1).clamp(-1, 1)


def _streams(student: CausalLm, examples: Sequence[dict[str, Any]]) -> Any:
    """The residual stream of some examples, a batch after the other: (blocks + 1, rows, places, width) float32, and
    which places are real, (rows, places)."""
    import torch

    from kdhub._ranks import device

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
    """A list that gets what goes into each block, and what comes out of the last."""
    from kdhub_logits.students import blocks

    seen: list[torch.Tensor] = []
    stack = blocks(network)

    def before(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(given[0] if given else named["hidden_states"])

    def after(_: Any, given: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in stack]
    hooks.append(stack[-1].register_forward_hook(after))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _calibration(context: BuildContext) -> tuple[list[dict[str, Any]], str]:
    """Examples that blocks are judged on, and where they are from."""
    from kdhub.resolve import Resolver
    from kdhub.task import plain_rows

    options, limit = context.options, context.options["calib_rows"]
    rows, of = context.facts.get("rows", [])[:limit], "the training data"
    if options["calib"] or not rows:
        ref = DataRef.model_validate(options["calib"] or {"source": EMBEDDED})
        data = Resolver().data(ref)
        table = context.task.training_table([(data, data.pick("train"))])
        rows, of = plain_rows(table, range(min(limit, len(table)))), ref.source
    answers = {} if "text" in rows[0] or "response" in rows[0] or "messages" in rows[0] else {"prompts": 1}
    examples = context.task.preparer(None, context.teacher, **answers)(rows)
    return [e for e in examples if e.get("ids")], of
