"""GOLD: general on-policy logit distillation, from a teacher with other tokens; the peer is TRL's `GOLDTrainer`.

Tokens of both sides are merged into the shortest spans that spell the same. With y_1 ... y_k the tokens of a span, what
is compared is the distribution at its first one, times what follows in it:

    p(v) = p(v | before) p(y_2 | y_1, before) ... p(y_k | ...)             so p(y_1) is the probability of the span

and likewise q of the student, whose gradient goes through all of its tokens. These do not sum to 1. Then

    L = weight mean over spans of  w D_beta(p, q on tokens that both have) + (1 - w) sum_i |p_(i) - q_(i)| on the others

with D_beta the generalised Jensen-Shannon divergence between tokens that spell the same, and the others by rank, as in
`uld`. w is `matched`, or the share of the teacher's tokens that the student has.

Departures: tokens are the same where they spell the same bytes, whatever the two vocabularies write them as; at beta 0
and 1, where KL of what does not sum to 1 may be negative, the sums' difference is added (sum p log(p/q) - p + q >= 0);
the end of the response is compared too. `label_weight` is 0 as in the peer. Source: the peer's documentation of how
probabilities are merged, and "Unlocking On-Policy Distillation for Any Model Family" (2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.rows import Signals
from kdhub_lm.methods.uld import Uld, UldOptions, by_rank, compared_in, logits_of, positions

if TYPE_CHECKING:
    from torch import Tensor


class Gold(Uld):
    class Options(UldOptions):
        lmbda: float = Field(0.5, ge=0, le=1, description="probability that a batch has the student's own responses")
        label_weight: float = Field(0.0, ge=0, description="weight of the labels' cross-entropy, not on own responses")
        weight: float = Field(1.0, ge=0, description="weight of the distance to the teacher")
        beta: float = Field(
            0.5, ge=0, le=1, description="the teacher's weight in the mixture: 0 is KL(p||q), 1 is KL(q||p)"
        )
        matched: float | None = Field(
            None, ge=0, le=1, description="weight of tokens that both have; their share of the teacher's if unset"
        )

    options: Options

    def compared(self, batch: Mapping[str, Any]) -> int:
        return len(batch["spans"])

    def distance(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        import torch

        from kdhub_lm.log_probs import each_position

        o, spans, theirs = self.options, batch["spans"], logits_of(teacher)
        mine, there = (numbers.to(spans.device) for numbers in self.alignment.shared)
        share = len(there) / len(self.alignment.theirs) if o.matched is None else o.matched
        with torch.no_grad():
            after_theirs = followed(teacher, batch["theirs"]["labels"], spans[:, 2:])

        def apart(s: Tensor, at: Tensor, after_mine: Tensor, after_theirs: Tensor) -> Tensor:
            q = (s / o.temperature).softmax(-1) * after_mine.exp()[:, None]
            p = (theirs[at].float() / o.temperature).softmax(-1) * after_theirs.exp()[:, None]
            same = measures_apart(q[:, mine], p[:, there], o.beta).sum(-1)
            return share * same + (1 - share) * by_rank(without(q, mine), without(p, there))

        after_mine = followed(student, batch["labels"], spans[:, :2])
        values = each_position(apart, positions(student, spans[:, 0]), spans[:, 2], after_mine, after_theirs)
        return values.sum() / compared_in(batch, len(spans))


def followed(signals: Signals, labels: Tensor, spans: Tensor) -> Tensor:
    """log P(y_2 ... y_k | y_1, before) of each span, nats; 0 for one of a single token.

    Args:
        labels: (positions,); spans: (n, 2) first position of each, and the one after its last.
    """
    import torch

    from kdhub_lm.log_probs import label_log_probs

    more = spans[:, 1] - spans[:, 0] - 1
    of = torch.repeat_interleave(more)
    at = spans[of, 0] + 1 + torch.arange(len(of), device=spans.device) - (more.cumsum(0) - more)[of]
    values = label_log_probs(positions(signals, at), labels[at])
    return values.new_zeros(len(spans)).index_add(0, of, values)


def measures_apart(q: Tensor, p: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of each class, nats, of p and q that need not sum to 1: >= 0, and 0
    where they are equal.

    Args:
        q, p: (..., classes) >= 0.
        beta: the weight of p in the mixture; at 0 p log(p/q) - p + q, at 1 q log(q/p) - q + p.
    """
    import torch

    # the slope of x log x at 0 is infinite
    q, p = (one.clamp_min(torch.finfo(one.dtype).tiny) for one in (q, p))
    if beta == 0:
        return p * (p / q).log() - p + q
    if beta == 1:
        return q * (q / p).log() - q + p
    log_m = (beta * p + (1 - beta) * q).log()
    return beta * p * (p.log() - log_m) + (1 - beta) * q * (q.log() - log_m)


def without(values: Tensor, classes: Tensor) -> Tensor:
    """(n, classes) without some of the classes."""
    import torch

    others = torch.ones(values.shape[-1], dtype=torch.bool, device=values.device)
    others[classes] = False
    return values[:, others]
