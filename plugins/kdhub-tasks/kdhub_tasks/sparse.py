"""A part of a teacher's distribution in few bytes, for many classes: `signals: {keep: top-32}` or `{keep: sampled-22}`.

`top-K`: the K most probable classes with their log-probabilities in 8 bits, and what is left as one more cell. A
divergence is taken of these K + 1 cells on both sides. It is 0 where they agree, and exact for K = C but for the 8
bits: an error of at most 1/508 of the span between the K values, in nats. At temperature 1 it is at most that of all
classes. At others classes are joined before they are tempered, so it may be more: at T > 1 a KL(p || q) of cells is at
most Z / Z' <= (C - K)^(1 - 1/T) times that of all classes, with Z the sum of p^(1/T) over classes and Z' over cells.
(Z KL is the least over c of the sum of h(p^(1/T), c q^(1/T)), h(u, v) = u log(u/v) - u + v. The T-th power of a summand
is convex and of degree 1 in (p, q), so joining classes cannot raise the sum.) Below T = 1 nothing is guaranteed.

`renormalised-K`: the same K classes, and a divergence among them alone, each side made to sum to 1. What either side
gives to all others counts nothing, so it is 0 for some students that differ from the teacher. The survey
(arXiv:2402.13116) has both; programs that know no rest beside the K log-probabilities of a teacher have only this.

`sampled-N`: N classes drawn from the teacher, of equal weight (arXiv:2503.16870 with the teacher itself as the
proposal, so that no importance weights are needed). The draws are systematic, p's cumulative sum cut at (u + i) / N:
each class comes N p times on average, as with independent draws, with less spread. The cross-entropy to them has the
gradient of the KL to the whole teacher on average; no other divergence does. It lacks the teacher's entropy, so its
value is not 0 where both agree.

Indices have as many bits as the number of classes asks for: at 128,256 classes 17, so 106 bytes a position for top-32
and 47 for sampled-22, against 256,512 for all in float16.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import UsageError
from kdhub.signals.store import Field

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("top", "renormalised", "sampled")
LOWEST = -25.0
"""Log-probability below which a class counts as impossible."""
SMALLEST = 1e-7
"""Probability that all classes which are not kept have together, at least."""


@dataclass(frozen=True)
class Form:
    """How much of a distribution over `classes` is kept: `top`, `renormalised` or `sampled`, and how many."""

    name: str
    count: int
    classes: int

    @classmethod
    def parse(cls, text: str, classes: int) -> Form:
        """`top-32`, `renormalised-32`, `sampled-22`.

        Raises:
            UsageError: anything else, or more than there are classes.
        """
        name, _, count = text.partition("-")
        if name not in FORMS or not count.isdecimal() or not int(count):
            raise UsageError(
                f"signals.keep is {text!r}", hint="all, or with a number: top-32, renormalised-32, sampled-22"
            )
        if name != "sampled" and int(count) > classes:
            raise UsageError(f"signals.keep is {text!r}, and there are {classes} classes")
        return cls(name, int(count), classes)

    @property
    def bits(self) -> int:
        """Of an index."""
        return max(1, (self.classes - 1).bit_length())

    @property
    def bytes(self) -> int:
        """Of a position."""
        return math.ceil(self.count * self.bits / 8) + (0 if self.name == "sampled" else self.count + 6)

    def field(self, name: str, ragged: bool) -> Field:
        """Of the store."""
        return Field(f"{name}.{self.name}-{self.count}", "uint8", (self.bytes,), ragged)

    # -- packing ----------------------------------------------------------------------------------------------

    def pack(self, logits: np.ndarray, key: bytes) -> np.ndarray:
        """(n, classes) logits of one example -> (n, bytes) uint8. `key` seeds the draws, so that they are always the
        same for one example."""
        x = np.asarray(logits, np.float64)
        shifted = x - x.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        if self.name != "sampled":
            return self._pack_top(log_p)
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(key).digest()[:16], "little")))
        edges = (rng.random((len(x), 1)) + np.arange(self.count)) / self.count
        reached = np.exp(log_p).cumsum(-1)
        reached /= reached[:, -1:]
        drawn = [np.searchsorted(row, at, side="right") for row, at in zip(reached, edges)]
        return self._indices(np.array(drawn, np.int64).reshape(len(x), self.count).clip(max=self.classes - 1))

    def _pack_top(self, log_p: np.ndarray) -> np.ndarray:
        at = np.sort(np.argpartition(-log_p, self.count - 1, axis=-1)[:, : self.count], -1)
        return self.pack_top(at, np.take_along_axis(log_p, at, -1))

    def pack_top(self, at: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """(n, count) classes, the lowest first, and their log-probabilities -> (n, bytes) uint8."""
        # Never nothing: what the teacher all but excludes would be infinitely far from any student.
        rest = np.log(np.clip(1 - np.exp(kept).sum(-1, keepdims=True), SMALLEST, None))
        possible = kept >= LOWEST
        low = np.where(possible, kept, np.inf).min(-1, keepdims=True)
        ends = np.concatenate([low, kept.max(-1, keepdims=True), rest], -1).astype("<f2")
        low, high = ends[:, :1].astype(np.float64), ends[:, 1:2].astype(np.float64)
        with np.errstate(invalid="ignore"):
            codes = 1 + np.rint((kept - low) / np.maximum(high - low, 1e-6) * 254).clip(0, 254)
        codes = np.where(possible, codes, 0).astype(np.uint8)
        return np.concatenate([self._indices(at), codes, ends.view(np.uint8)], -1)

    def _indices(self, at: np.ndarray) -> np.ndarray:
        """(n, count) -> their bits, the lowest first, one index after the other."""
        bits = (at[..., None] >> np.arange(self.bits)) & 1
        return np.packbits(bits.astype(np.uint8).reshape(len(at), -1), axis=-1, bitorder="little")

    # -- unpacking --------------------------------------------------------------------------------------------

    def unpack(self, packed: Tensor) -> Top | Sampled:
        """(n, bytes) uint8 -> what losses are taken to."""
        import torch

        size = math.ceil(self.count * self.bits / 8)
        steps = torch.arange(8, device=packed.device, dtype=torch.uint8)
        bits = (packed[:, :size, None] >> steps & 1).reshape(len(packed), -1)[:, : self.count * self.bits]
        values = 2 ** torch.arange(self.bits, device=packed.device)
        at = (bits.reshape(len(packed), self.count, self.bits) * values).sum(-1)
        if self.name == "sampled":
            return Sampled(at)
        codes = packed[:, size : size + self.count].float()
        ends = packed[:, size + self.count :].clone(memory_format=torch.contiguous_format).view(torch.float16).float()
        low, high, rest = ends.unbind(-1)
        kept = low[:, None] + (codes - 1) / 254 * (high - low)[:, None]
        kept = kept.masked_fill(codes == 0, -torch.inf)
        return Top(at, torch.cat([kept, rest[:, None]], -1), alone=self.name == "renormalised")


@dataclass(frozen=True)
class Top:
    """Attributes:
    at: (n, k) classes; log_p: (n, k + 1) their log-probabilities, and that of all others.
    alone: the others count nothing, and both sides are made to sum to 1 over these classes.
    """

    at: Tensor
    log_p: Tensor
    alone: bool = False

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, part: slice) -> Top:
        return Top(self.at[part], self.log_p[part], self.alone)

    def left_out(self, student: Tensor, beta: float) -> Tensor:
        """beta p + (1 - beta) q of all other classes together, (n,): 0 where there are none.

        The generalised Jensen-Shannon divergence of all classes is above that of the cells by at most ln 2 times this:
        what the cells lack is that of the two sides among the other classes, which is at most ln 2, times their mass.
        """
        if self.at.shape[-1] == student.shape[-1]:
            return student.new_zeros(len(student))
        kept = student.float().softmax(-1).gather(-1, self.at).sum(-1)
        return beta * self.log_p[:, -1].exp() + (1 - beta) * (1 - kept).clamp_min(0)

    def apart(self, function: Callable[..., Tensor], student: Tensor, temperature: float) -> Tensor:
        """The divergence of the cells, each side's log-probabilities at temperature 1 divided by `temperature`. Every
        divergence begins with a softmax, which makes cells sum to 1."""
        import torch

        s = student if student.dtype == torch.float64 else student.float()
        if self.alone or self.at.shape[-1] == s.shape[-1]:  # nothing is left
            return function(s.gather(-1, self.at) / temperature, self.log_p[:, :-1] / temperature)
        lowest = torch.finfo(s.dtype).min / 4  # where all others are impossible, -inf would have no gradient but nan
        rest = s.clamp_min(lowest).scatter(-1, self.at, lowest).logsumexp(-1, keepdim=True)
        cells = torch.cat([s.gather(-1, self.at), rest], -1) - s.logsumexp(-1, keepdim=True)
        return function(cells / temperature, self.log_p / temperature)


@dataclass(frozen=True)
class Sampled:
    """Attributes:
    at: (n, draws) classes, each as often as it was drawn.
    """

    at: Tensor

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, part: slice) -> Sampled:
        return Sampled(self.at[part])

    def apart(self, function: Callable[..., Tensor], student: Tensor, temperature: float) -> Tensor:
        """The cross-entropy to the draws. Which methods may have it is checked before, by their `partial_signals`."""
        from kdhub_tasks.divergences import log_probabilities

        return -log_probabilities(student).gather(-1, self.at).mean(-1)


def divergence(function: Callable[..., Tensor], student: Tensor, teacher: Any, temperature: float = 1.0) -> Tensor:
    """`function` of the logits of both over the temperature, or of what is kept of the teacher's.

    Args:
        student: (n, classes).
        teacher: (n, classes), a `Top`, or `Sampled`.

    Returns:
        (n,).
    """
    if isinstance(teacher, (Top, Sampled)):
        return teacher.apart(function, student, temperature)
    return function(student / temperature, teacher.float() / temperature)


def kept(signals: Any, classes: int) -> Top | Sampled | None:
    """What is kept of the logits in a batch's stored signals; None where nothing is but all."""
    for name, values in signals.items():
        signal, _, form = name.partition(".")
        if signal == "logits" and form:
            return Form.parse(form, classes).unpack(values)
    return None


def packed(values: Sequence[np.ndarray] | np.ndarray, form: Form, keys: Sequence[bytes], ragged: bool) -> Any:
    """The logits of some examples as the store keeps them."""
    rows = [form.pack(row if ragged else row[None], key) for row, key in zip(values, keys)]
    return rows if ragged else np.concatenate(rows)
