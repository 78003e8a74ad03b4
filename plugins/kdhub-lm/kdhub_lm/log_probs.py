"""Log-probabilities of labels, for losses that are not sums over positions: of whole sequences, of ratios, of ranks.

Losses that are sums over positions are better served by `kdhub_tasks.positions.over_positions`, which goes forward and
backward in one pass. Here the values may enter any expression, so logits are computed a few positions at a time in the
forward pass and again in the backward pass: memory grows neither with the positions nor with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from kdhub_tasks import positions
from kdhub_tasks.positions import Head
from torch import Tensor
from torch.nn import functional as F

from kdhub.rows import Signals


def label_log_probs(signals: Signals, labels: Tensor) -> Tensor:
    """log q(label) of each position, nats, differentiable.

    Args:
        signals: of a student or teacher, with `head`, or with `logits` (positions, classes), or with these very values
            as `label_log_probs`, from a server.
        labels: (positions,) classes; where negative, value and gradient are 0.

    Returns:
        (positions,) <= 0, float32 at least.
    """
    given = signals.get("label_log_probs")
    return each_position(_log_probs, signals, labels) if given is None else given


def _log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return -F.cross_entropy(exact, labels.clamp_min(-1), reduction="none", ignore_index=-1)


def each_position(function: Callable[..., Tensor], signals: Signals, *others: Tensor) -> Tensor:
    """A function of each position's logits, differentiable.

    Args:
        function: (logits (n, classes), *others) of some positions -> (n,). It may depend on nothing that is trained
            except these.
        signals: with `head`, or with `logits` (positions, classes).
        others: tensors (positions, ...), of which `function` gets the same part.

    Returns:
        (positions,), float32 at least.
    """
    head = signals.get("head")
    if head is None:
        return function(signals.logits, *others)
    return _Each.apply(head.states, head.weight, head.bias, head, function, *others)


def per_row(values: Tensor, counts: Tensor, mean: bool = False) -> Tensor:
    """Sums over the positions of each row, or means; 0 for a row without any.

    Args:
        values: (positions,), one row after the other; counts: (rows,) positions of each.
    """
    rows = torch.repeat_interleave(counts)
    sums = values.new_zeros(len(counts)).index_add(0, rows, values)
    return sums / counts.clamp_min(1) if mean else sums


class _Each(torch.autograd.Function):
    """Values chunk by chunk; logits are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        function: Callable[..., Tensor],
        *others: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(states, weight, bias, *others)
        ctx.head, ctx.function = head, function
        ctx.dtype = positions.product_type(states)
        values = states.new_empty(len(states), dtype=torch.promote_types(states.dtype, torch.float32))
        with torch.autocast(states.device.type, enabled=False):
            for at, made in _products(states, weight, ctx.dtype):
                products = made if bias is None else made + bias
                values[at] = function(head.finish(products), *(x[at] for x in others))
        return values

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, *others = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_others = [torch.zeros_like(x) if w else None for x, w in zip(others, wanted[5:])]
        of_states = torch.empty_like(states) if wanted[0] else None
        of_weight = torch.zeros_like(weight) if wanted[1] else None
        of_bias = torch.zeros_like(bias) if wanted[2] else None
        with torch.autocast(states.device.type, enabled=False):
            for at, made in _products(states, weight, ctx.dtype):
                with torch.enable_grad():
                    products = (made if bias is None else made + bias).detach().requires_grad_()
                    some = [x[at].detach().requires_grad_(w) for x, w in zip(others, wanted[5:])]
                    values = ctx.function(ctx.head.finish(products), *some)
                    trained = [products, *(x for x in some if x.requires_grad)]
                    slope, *slopes = torch.autograd.grad(values, trained, outer[at].to(values.dtype))
                for whole in filter(lambda x: x is not None, of_others):
                    whole[at] = slopes.pop(0)
                slope = slope.to(ctx.dtype)
                if of_states is not None:
                    of_states[at] = (slope @ weight.to(ctx.dtype)).to(states.dtype)
                if of_weight is not None:
                    of_weight += slope.T @ states[at].to(ctx.dtype)
                if of_bias is not None:
                    of_bias += slope.sum(0)
        return of_states, of_weight, of_bias, None, None, *of_others


def _products(states: Tensor, weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """States times head, a chunk of positions at a time."""
    h, w = states.detach().to(dtype), weight.detach().to(dtype)
    size = max(1, (positions.CHUNK if h.device.type == "cpu" else 16 * positions.CHUNK) // len(w))
    for start in range(0, len(h), size):
        at = slice(start, min(start + size, len(h)))
        yield at, h[at] @ w.T
