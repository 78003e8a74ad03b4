"""Loss terms that are sums over positions (rows, words, tokens), also where the logits of all would not fit.

A language model has as many classes as tokens. Logits of 4,096 positions over 32,000 classes are 0.5 GB, and a
divergence of two of them, with its gradient, several times that. So a model of tokens gives its last states and its
head, and `over_positions` makes logits for a few positions at a time, asks for their terms, and goes back through them
at once: states and head get their gradients in the same pass, and memory does not grow with the number of positions.

Any loss that is a sum over positions is written once, as a function of logits. Nothing is derived by hand: automatic
differentiation runs on blocks that stay in the processor's cache, where it costs little beside the matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdhub.rows import Signals
from kdhub_tasks.sparse import kept

CHUNK = 2**23
"""Numbers of a chunk of logits, for which one matrix product is made."""
BLOCK = 2**18
"""Numbers of a block of logits, which stay in the cache of a core while its terms are computed."""

Sums = Callable[..., Mapping[str, Tensor]]
"""(student's logits, teacher's logits, what is kept of them, or None, *others), of some positions -> named terms, sums
over them."""


@dataclass(frozen=True)
class Head:
    """Logits that are not there yet: `cap tanh((states weight^T + bias) scale / cap)`, without the last where no cap.

    Attributes:
        states: (positions, width); weight: (classes, width); bias: (classes,) or None.
        scale: of the logits; cap: their largest value, or None.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, part: slice) -> Tensor:
        """Logits of these positions, float32."""
        return self.finish(torch.nn.functional.linear(self.states[part], self.weight, self.bias))

    def finish(self, products: Tensor) -> Tensor:
        """What follows the matrix product, in float32 at least."""
        logits = products if products.dtype == torch.float64 else products.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class TokenSignals(Signals):
    """Signals of a model with a `head`; `logits` and `features` are made when they are asked for."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (name in ("logits", "features") and super().__contains__("head"))

    def __missing__(self, name: str) -> Any:
        if name == "logits" and "head" in self:
            return self["head"][:]
        if name == "features" and "head" in self:
            return self["head"].states.float()
        raise KeyError(name)


def over_positions(sums: Sums, student: Signals, teacher: Signals, *others: Tensor) -> dict[str, Tensor]:
    """The terms over all positions.

    Args:
        sums: terms of some positions, each divided by what the mean is over: `{"teacher": kl(s, z).sum() / n}`. It may
            depend on nothing that is trained but the student's logits.
        student: with `head`, or with `logits` (positions, classes).
        teacher: likewise, or with a part of its logits (`sparse`); nothing for methods without one.
        others: tensors (positions, ...) that `sums` gets its part of (labels).

    Returns:
        Scalars. Of a `head` their gradient is known already, so they can be added, but not weighted one by one.
    """
    head = student.get("head")
    given = teacher["head"] if dict.__contains__(teacher, "head") else teacher.get("logits")
    if given is None and teacher:
        given = kept(teacher, len(head.weight) if head is not None else student.logits.shape[-1])
    if head is None or not torch.is_grad_enabled():
        return dict(sums(student.logits, None if given is None else given[:], *others))
    names: list[str] = []
    values = _InChunks.apply(head.states, head.weight, head.bias, head, given, sums, others, names)
    return dict(zip(names, values.unbind()))


def product_type(states: Tensor) -> torch.dtype:
    """The type that states times head is computed in: bfloat16 under its autocast, else that of the states; float16 has
    too little range for gradients that no scaler has seen."""
    device = states.device.type
    bfloat16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if bfloat16 else states.dtype


class _InChunks(torch.autograd.Function):
    """Terms, and the gradient of their sum, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        given: Any,
        sums: Sums,
        others: tuple[Tensor, ...],
        names: list[str],
    ) -> Tensor:
        device, classes = states.device.type, len(weight)
        dtype = product_type(states)
        on_cpu = device == "cpu"
        block = max(1, BLOCK // classes) if on_cpu else max(1, 16 * CHUNK // classes)
        chunk = max(1, CHUNK // classes // block) * block if on_cpu else block
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_states = torch.empty_like(states) if wants_states else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        of_bias = torch.zeros_like(bias) if wants_bias else None
        total: Tensor | None = None
        with torch.autocast(device, enabled=False):
            h, w = states.detach().to(dtype), weight.detach().to(dtype)
            b = None if bias is None else bias.detach()
            if isinstance(given, Head):
                given = replace(given, states=given.states.to(dtype), weight=given.weight.to(dtype))
            buffer = torch.empty(min(chunk, len(h)), classes, dtype=dtype, device=h.device)
            for start in range(0, max(1, len(h)), chunk):  # once without positions too: terms have names
                part = slice(start, min(start + chunk, len(h)))
                made = torch.mm(h[part], w.T, out=buffer[: part.stop - start])
                theirs = None if given is None else given[part]
                for first in range(0, max(1, len(made)), block):
                    rows = slice(first, min(first + block, len(made)))
                    at = slice(start + rows.start, start + rows.stop)
                    products = (made[rows] if b is None else made[rows] + b).detach()
                    with torch.enable_grad():
                        products.requires_grad_()
                        terms = sums(
                            head.finish(products), None if theirs is None else theirs[rows], *(x[at] for x in others)
                        )
                        (slope,) = torch.autograd.grad(sum(terms.values()), products)
                    here = torch.stack([term.detach().double() for term in terms.values()])
                    total = here if total is None else total + here
                    names[:] = terms
                    made[rows] = slope
                if of_states is not None:
                    of_states[part] = made @ w
                if of_weight is not None:
                    if dtype == weight.dtype:
                        of_weight.addmm_(made.T, h[part])
                    else:
                        of_weight += made.T @ h[part]
                if of_bias is not None:
                    of_bias += made.sum(0)
        ctx.gradients = (of_states, of_weight, of_bias)
        return total.float()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if not (outer == outer[0]).all():
            raise RuntimeError("the terms of over_positions have one gradient together: put weights into `sums`")
        if outer[0] != 1:
            for gradient in ctx.gradients:
                if gradient is not None:
                    gradient.mul_(outer[0])
        gradients, ctx.gradients = ctx.gradients, None
        return (*gradients, None, None, None, None, None)
