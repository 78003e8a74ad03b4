"""Losses from labels, and what sums over positions are divided by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdhub.method import TrainingOptions, step_count

if TYPE_CHECKING:
    from torch import Tensor


class ClassifierOptions(TrainingOptions):
    """Defaults of training small classifiers."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(64, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
    epochs: float = Field(40.0, gt=0, description="passes over the training rows")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="learning rate after warm-up")


def cross_entropies(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log q(label) of each row, 0 where there is no label: logits (n, classes), labels (n,) or -1."""
    from torch.nn.functional import cross_entropy

    each = cross_entropy(logits.float(), labels.clamp_min(0), reduction="none", label_smoothing=smoothing)
    return each.masked_fill(labels < 0, 0)


def has_label(labels: Tensor) -> Tensor:
    """Which rows have one: (n,) classes are numbers from 0 (-1 for none), (n, classes) say 0 or 1 of each (-1 for
    none); values, (n,) or (n, values), are fractions (NaN for none)."""
    known = ~labels.isnan() if labels.is_floating_point() else labels >= 0
    return known if known.dim() == 1 else known.all(-1)


def of_any_number(labels: Tensor) -> bool:
    """Whether labels say of each class whether a row is of it."""
    return labels.dim() == 2 and not labels.is_floating_point()


def label_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """What each row is short of its label, 0 where it has none.

    -log q(label) where labels are classes, in nats; the sum over classes of -log q(is of it, or is not) where each is a
    yes or no; the mean over values of (logit - label)^2 where they are values. Smoothing is of the former two: a label
    is then (1 - smoothing) itself, and the rest is spread evenly over the classes, or over yes and no.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    if labels.is_floating_point():
        aim = labels.nan_to_num().reshape(len(labels), -1)
        each = (logits.float().reshape(aim.shape) - aim).square().mean(-1)
    elif of_any_number(labels):
        aim = labels.clamp_min(0).float() * (1 - smoothing) + smoothing / 2
        each = binary_cross_entropy_with_logits(logits.float(), aim, reduction="none").sum(-1)
    else:
        return cross_entropies(logits, labels, smoothing)
    return each.masked_fill(~has_label(labels), 0)


def positions_in(batch: Mapping[str, Any]) -> float:
    """What a sum over the positions of a batch is divided by for their mean: in training how many a batch has on
    average, over all ranks and accumulated batches of the step, so that no position counts more than another."""
    return step_count(batch, "positions") or max(1, len(batch["labels"]))


def labelled_in(batch: Mapping[str, Any]) -> float:
    """The same for a sum over the positions with a label."""
    return step_count(batch, "labels") or labels_in(batch["labels"])


def tokens_in(batch: Mapping[str, Any], here: float) -> float:
    """The same for a sum over all tokens but padding, of which this batch has `here`; so have all batches of inputs of
    one shape, which have no mask."""
    return (step_count(batch, "tokens") if "attention_mask" in batch else None) or here


def labels_in(labels: Tensor) -> Tensor:
    """How many rows have a label, at least 1: what a mean over them is divided by."""
    return has_label(labels).sum().clamp_min(1)


def label_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Mean of `label_losses` over the rows that have one, over the whole step (`labelled_in`); 0 when none has."""
    return label_losses(logits, batch["labels"]).sum() / labelled_in(batch)
