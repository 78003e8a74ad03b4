"""Losses of the tokens of a masked language model: its labels, and its states against those of a teacher.

`nst_loss`, `ntxent_loss` and `crd_loss` are the objectives of VidLanKD (arXiv:2107.02681); see `methods.vidlankd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdhub.rows import Signals


def masked_loss(student: Signals, batch: Mapping[str, Any]) -> Tensor:
    """Mean -log q of the masked tokens, over the whole step."""
    from kdhub_tasks.losses import cross_entropies, labelled_in
    from kdhub_tasks.positions import over_positions

    labelled = labelled_in(batch)
    terms = over_positions(
        lambda s, _, y: {"labels": cross_entropies(s, y).sum() / labelled}, student, {}, batch["labels"]
    )
    return terms["labels"]


def padded_states(signals: Signals, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Last states (batch, length, width), zero for padding, from `hidden_states` of real tokens; and which are real."""
    real = mask.bool()
    given = signals["hidden_states"][:, -1]
    states = given.new_zeros(*real.shape, given.shape[-1])
    states[real] = given
    return states, real


def head(inputs: int, outputs: int) -> nn.Module:
    """Linear, GELU, LayerNorm, Linear."""
    from torch import nn

    return nn.Sequential(nn.Linear(inputs, inputs), nn.GELU(), nn.LayerNorm(inputs), nn.Linear(inputs, outputs))


def queue(size: int, width: int) -> nn.Module:
    """The last `size` states that were put in, in the checkpoints but not trained."""
    import torch
    from torch import nn

    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("states", torch.zeros(size, width))
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def held(self) -> Tensor:
            return self.states[: min(int(self.seen), size)].clone()

        def put(self, states: Tensor) -> None:
            with torch.no_grad():
                new = states.detach().float()[-size:]
                at = (torch.arange(len(new), device=new.device) + self.seen) % size
                self.states[at] = new
                self.seen += len(new)

    return Queue()


def nst_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, reduction: str = "mean", constant: bool | None = None
) -> Tensor:
    """Neuron selectivity transfer: mean k(s, s') - 2 mean k(s, t) (+ mean k(t, t')) of neurons as unit vectors over the
    real tokens of a text, k(a, b) = (a b)^2; mean over texts. Least where the student's neurons are the teacher's up to
    order and sign, there 0 with the constant.

    Args:
        student: (batch, length, d_s); teacher: (batch, length, d_t), d_t may differ; mask: (batch, length), true for
            real tokens.
        reduction: `code` sums over texts and divides by the length, without the constant.
        constant: add the last term; by default as `reduction` says.
    """
    from torch.nn.functional import normalize

    a, b = (normalize((x * mask[..., None]).transpose(1, 2), dim=-1) for x in (student, teacher))

    def k(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.transpose(1, 2)).square().mean((1, 2))

    each = k(a, a) - 2 * k(a, b)
    if constant if constant is not None else reduction == "mean":
        each = each + k(b, b)
    return each.mean() if reduction == "mean" else each.sum() / mask.shape[1]


def ntxent_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """At each position NT-Xent of the B texts that reach it: of 2B unit vectors each should find its partner among
    2B - 1 others. Mean over anchors, then over positions that two texts reach; `code` divides by 2B once more.

    Args:
        student, teacher: (batch, length, width) unit vectors; mask: (batch, length), true for real tokens.
    """
    import torch

    both = torch.cat([student, teacher]).transpose(0, 1)  # (length, 2 batch, width)
    many, n = len(student), 2 * len(student)
    real = torch.cat([mask, mask]).T  # (length, 2 batch)
    like = both @ both.transpose(1, 2) / temperature
    itself = torch.eye(n, dtype=torch.bool, device=like.device)
    like = like.masked_fill(itself | ~real[:, None], -torch.inf)
    partner = torch.arange(n, device=like.device).roll(many)
    # Of positions that no other text reaches there is nothing to tell apart.
    here = mask.sum(0) >= 2
    if not here.any():
        return student.sum() * 0
    like, real = like[here], real[here]
    log_p = torch.log_softmax(like.masked_fill(~real[..., None], 0), -1)
    each = -log_p[:, torch.arange(n), partner].masked_fill(~real, 0)
    value = each.sum(1) / real.sum(1)
    if reduction == "code":
        value = value / real.sum(1)
    return value.mean()


def crd_loss(
    student: Tensor, teacher: Tensor, queue: Tensor, temperature: float = 0.07, many: float | None = None
) -> Tensor:
    """-log of the share of a token's own teacher state among it and those of the queue, mean over tokens; of an empty
    queue 0.

    Args:
        student, teacher: (tokens, width) unit vectors; queue: (n, width), the teacher's of earlier tokens.
        many: tokens that the mean is over; those here if None.
    """
    import torch

    own = (student * teacher).sum(-1, keepdim=True)
    like = torch.cat([own, student @ queue.to(student.dtype).T], 1) / temperature
    return -torch.log_softmax(like, 1)[:, 0].sum() / (many or len(like))
