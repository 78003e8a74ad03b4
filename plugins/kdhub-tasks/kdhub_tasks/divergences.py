"""Divergences between a teacher's and a student's distribution over classes or tokens.

Every function takes logits `(..., classes)` of student and teacher, already divided by the temperature, and gives one
value a position, `(...,)`, >= 0 and 0 where both distributions are equal. Arithmetic is float32 at least, whatever the
inputs are. A class whose logit is -inf on both sides has no part in anything; with p the teacher's and q the student's
probabilities, 0 log 0 is 0.

Where the outputs of a model are not one class a row, `suited` says which divergence stands for one, if any does.

Names follow arXiv:2402.13116. `beta` is always the teacher's weight; other code calls the student's weight so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdhub.errors import CompatibilityError, UsageError


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax over the last axis in float32 or better; -inf stays -inf, and its gradient is 0."""
    return F.log_softmax(*_exact(logits), dim=-1)


def _both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """log p of the teacher and log q of the student, both in the more exact type of the two."""
    student, teacher = _exact(student, teacher)
    return log_probabilities(teacher), log_probabilities(student)


def _exact(*logits: Tensor) -> tuple[Tensor, ...]:
    """In one type, that of the most exact or float32."""
    exact = torch.float64 if any(x.dtype == torch.float64 for x in logits) else torch.float32
    return tuple(x.to(exact) for x in logits)


def _expected(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p (log p - log q), where classes with p = 0 count nothing."""
    zero = p == 0
    return (p * (log_p.masked_fill(zero, 0) - log_q.masked_fill(zero, 0))).sum(-1)


def _mixed(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log(weight a + (1 - weight) b), also where either is 0."""
    if weight in (0.0, 1.0):
        return log_a if weight else log_b
    bound = torch.finfo(log_a.dtype).min / 4  # -inf on both sides would have no gradient but nan
    log_a, log_b = log_a.clamp_min(bound), log_b.clamp_min(bound)
    scale = log_a.new_tensor([weight, 1 - weight]).log()
    return torch.logaddexp(log_a + scale[0], log_b + scale[1])


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p || q) = sum p log(p/q): the student covers what the teacher may say (Hinton et al., arXiv:1503.02531)."""
    if teacher.requires_grad and torch.is_grad_enabled():
        log_p, log_q = _both(student, teacher)
        return _expected(log_p.exp(), log_p, log_q)
    return _ForwardKl.apply(student, teacher)


class _ForwardKl(torch.autograd.Function):
    """KL(p || q) to a constant p with its gradient q - p: a third of the memory traffic, which many tokens feel."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        s, z = _exact(student, teacher)
        p, q = torch.softmax(z, -1), torch.softmax(s, -1)
        # log of what softmax divides by, from the largest of each row
        of_z, of_s = z.amax(-1) - p.amax(-1).log(), s.amax(-1) - q.amax(-1).log()
        apart = torch.linalg.vecdot(p, z - s) - of_z + of_s
        if not torch.isfinite(apart).all():  # -inf somewhere
            log_p, log_q = log_probabilities(z), log_probabilities(s)
            apart = _expected(p, log_p, log_q)
        ctx.save_for_backward(q.sub_(p))
        ctx.dtype = student.dtype
        return apart

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return (difference * slope.unsqueeze(-1)).to(ctx.dtype), None


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q || p): the student keeps to what the teacher says most (arXiv:2306.08543)."""
    log_p, log_q = _both(student, teacher)
    return _expected(log_q.exp(), log_q, log_p)


def symmetric_kl(student: Tensor, teacher: Tensor, reverse: float = 0.9) -> Tensor:
    """(1 - reverse) KL(p || q) + reverse KL(q || p); public code (DistiLLM's) has 0.9."""
    log_p, log_q = _both(student, teacher)
    return (1 - reverse) * _expected(log_p.exp(), log_p, log_q) + reverse * _expected(log_q.exp(), log_q, log_p)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (arXiv:2306.13649); at most ln 2 for 0.5.

    At beta = 0 it is KL(p || q) and at 1 KL(q || p), as public code has it. By the formula the value tends to 0 there,
    and value / beta, value / (1 - beta) tend to these.
    """
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    log_p, log_q = _both(student, teacher)
    log_m = _mixed(log_p, log_q, beta)
    return beta * _expected(log_p.exp(), log_p, log_m) + (1 - beta) * _expected(log_q.exp(), log_q, log_m)


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """sum |p - q| / 2, in [0, 1]."""
    return (log_probabilities(teacher).exp() - log_probabilities(student).exp()).abs().sum(-1) / 2


def skew_kl(student: Tensor, teacher: Tensor, skew: float = 0.1, direction: str = "forward") -> Tensor:
    """DistiLLM's skewed KL (arXiv:2402.03898): "forward" KL(p || skew p + (1 - skew) q), "reverse"
    KL(q || (1 - skew) p + skew q). At skew 0 the plain KL, at 1 zero."""
    log_p, log_q = _both(student, teacher)
    if direction == "forward":
        return _expected(log_p.exp(), log_p, _mixed(log_p, log_q, skew))
    return _expected(log_q.exp(), log_q, _mixed(log_q, log_p, skew))


def adaptive_kl(student: Tensor, teacher: Tensor, head: float = 0.5) -> Tensor:
    """AKL (arXiv:2404.02657): w KL(p || q) + (1 - w) KL(q || p), where w is the head's share of the gap |p - q|.

    The head is the teacher's most probable classes that together have at most `head` of its mass, and the first one
    always; as in the authors' code the class that crosses `head` is of the tail. The weights carry no gradient. Where
    p = q they are 1/2. A re-implementation (TAID's) has the crossing class in the head, sums from the least probable
    class, lets the gradient through the weights and takes the cross-entropy for the forward term.
    """
    log_p, log_q = _both(student, teacher)
    p, q = log_p.exp(), log_q.exp()
    with torch.no_grad():
        descending, order = p.sort(dim=-1, descending=True)
        reached = descending.cumsum(-1)
        in_head = reached <= head * reached[..., -1:]  # of a sum that rounding may keep from 1
        in_head[..., 0] = True
        gap = (p - q).abs().gather(-1, order)
        of_head, whole = (gap * in_head).sum(-1), gap.sum(-1)
        weight = torch.where(whole > 0, of_head / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0.5)
    return weight * _expected(p, log_p, log_q) + (1 - weight) * _expected(q, log_q, log_p)


def decoupled_kd(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0) -> Tensor:
    """DKD (arXiv:2203.08679): alpha TCKD + beta NCKD.

    TCKD is the KL of (p_y, 1 - p_y); NCKD that of the other classes, each side made to sum to 1. So
    KL(p || q) = TCKD + (1 - p_y) NCKD. Labels are `(...,)`, each a class.
    """
    log_p, log_q = _both(student, teacher)
    at = labels.unsqueeze(-1)
    target = torch.zeros_like(log_p, dtype=torch.bool).scatter_(-1, at, True)

    def split(log: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        rest = logits.masked_fill(target, -torch.inf)
        of_target = log.gather(-1, at)
        return torch.cat([of_target, torch.logsumexp(log.masked_fill(target, -torch.inf), -1, keepdim=True)], -1), rest

    pair_p, rest_p = split(log_p, teacher)
    pair_q, rest_q = split(log_q, student)
    binary = _expected(pair_p.exp(), pair_p, pair_q)
    if student.shape[-1] == 1:  # no other class, nothing to decouple
        return alpha * binary
    rest_p, rest_q = log_probabilities(rest_p), log_probabilities(rest_q)
    return alpha * binary + beta * _expected(rest_p.exp(), rest_p, rest_q)


def top_k_kl(
    student: Tensor,
    teacher: Tensor,
    k: int | None = None,
    top_p: float | None = None,
    form: str = "generalized",
    assignment: str = "rev_top",
    explicit: float = 1.0,
    implicit: float = 1.0,
) -> Tensor:
    """TopKLD: one divergence on the classes that a sampler can draw, the teacher's top K, another on the rest.

    With A the K most probable classes of the teacher, R the others, and `rev_top`

        explicit sum_A (q log(q/p) - q + p)  +  implicit sum_R (p log(p/q) - p + q)

    `fwd_top` swaps the two divergences. It is a reconstruction: arXiv:2501.06218 has a loss of this name, linked to
    top-K sampling, whose equation could not be read. The terms beside the logarithms are what makes it >= 0, and 0 at
    q = p alone; with both weights 1 they sum to 2 (P_A - Q_A), or the negative of it for `fwd_top`. With K = all
    classes `rev_top` is KL(q || p), with K = 0 it is KL(p || q).

    Classes that the teacher excludes (-inf) are left out of both sums.

    Args:
        k: 0 to the number of classes; of equal logits the first ones. By default `default_k`.
        top_p: instead of k, the fewest most probable classes that together have this probability.
        form: `generalized`; `naive`, without the terms beside the logarithms, which is *not* least at q = p and draws
            the student's probability away from A; `renormalized`, forward KL of (P_A, P_R) and each side's divergence
            among its own classes, Q_A KL(q_A || p_A) + P_R KL(p_R || q_R), of `rev_top` alone.
        explicit, implicit: weights of A and R; `renormalized` weighs the divergences among classes.
    """
    log_p, log_q = _both(student, teacher)
    allowed = log_p != -torch.inf  # NaN stays NaN
    top = top_classes(log_p, k, top_p)
    p, q = log_p.exp(), log_q.exp()
    # where a side has nothing, 0 times -inf must count nothing, without a gradient
    gap = (log_p - log_q.clamp_min(torch.finfo(log_q.dtype).min / 4)).masked_fill(~allowed, 0)
    covering, seeking = p * gap, -q * gap
    if form == "renormalized":
        tiny, sides = torch.finfo(p.dtype).tiny, (top & allowed, ~top & allowed)

        def of(values: Tensor, side: Tensor) -> Tensor:
            return values.masked_fill(~side, 0).sum(-1)

        (p_a, p_r), (q_a, q_r) = ([of(x, side) for side in sides] for x in (p, q))
        apart_a, apart_r = (a.clamp_min(tiny).log() - b.clamp_min(tiny).log() for a, b in ((p_a, q_a), (p_r, q_r)))
        among_a = of(seeking, sides[0]) + q_a * apart_a
        among_r = of(covering, sides[1]) - p_r * apart_r
        return p_a * apart_a + p_r * apart_r + explicit * among_a + implicit * among_r
    if form == "generalized":
        covering, seeking = covering - p + q, seeking - q + p
    of_top, of_rest = (seeking, covering) if assignment == "rev_top" else (covering, seeking)
    return torch.where(top, explicit * of_top, implicit * of_rest).masked_fill(~allowed, 0).sum(-1)


def default_k(classes: int) -> int:
    """K where none is stated, .22 of all classes: the share that VAR's sampler draws from, 900 of 4,096."""
    return max(1, round(0.22 * classes))


def top_classes(log_p: Tensor, k: int | None = None, top_p: float | None = None) -> Tensor:
    """Which classes are among the K most probable ones, exactly K each, the first of equals; or with `top_p` the fewest
    that have this probability. (..., classes) -> the same of bool."""
    classes = log_p.shape[-1]
    if top_p is not None:
        values, order = log_p.sort(dim=-1, descending=True, stable=True)
        before = values.exp().cumsum(-1) - values.exp()
        return torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, before < top_p)
    k = default_k(classes) if k is None else k
    if not 0 <= k <= classes:
        raise UsageError(f"k must be from 0 to the number of classes (k={k}, classes={classes})")
    if k == 0:
        return torch.zeros_like(log_p, dtype=torch.bool)
    least = log_p.kthvalue(classes - k + 1, dim=-1, keepdim=True).values  # a sort of all classes would cost more
    above, equal = log_p > least, log_p == least
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def suited(function: Callable[..., Tensor], labels: Tensor) -> Callable[..., Tensor]:
    """A divergence of distributions over classes for what a model's outputs are, by the labels of a batch.

    One class a row: `function`. Any number of labels: the sum over labels of `function` between the two-point
    distributions with the logits (0, z). Values: for `forward_kl` the mean squared error, which is twice the KL of
    normal distributions of deviation 1; it has no temperature.

    Raises:
        CompatibilityError: values, for a divergence that means nothing between them.
    """
    from kdhub_tasks.losses import of_any_number

    inner = getattr(function, "func", function)
    if labels.is_floating_point():
        if inner is not forward_kl:
            raise CompatibilityError(
                f"{inner.__name__} is a divergence of distributions, and the models' outputs are values",
                hint="kd takes the squared error of values",
            )
        return lambda student, teacher: (student.float() - teacher.float()).square().mean(-1)
    if not of_any_number(labels):
        return function

    def pairs(logits: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(logits), logits], -1)

    return lambda student, teacher: function(pairs(student), pairs(teacher)).sum(-1)
