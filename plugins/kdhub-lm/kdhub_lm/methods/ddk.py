"""DDK: more data from the domains where the student lags the teacher most (arXiv:2407.16154).

    rho_i  = exp(CE of the student on domain i) / exp(CE of the teacher)      perplexity ratio, on validation rows
    r_0    = softmax(rho),   psi = r_t exp(rho),   r_{t+1} = alpha psi / sum psi + (1 - alpha) / N
    L      = CE(y, s) + gamma KL(softmax(z / T) || softmax(s / T))

Every K steps the ratios are measured, and the next K steps are drawn from r. The sampler works with any method, the
loss with any sampler. Domains are the data sets of `data.train`; `data.validation` names one for each, in the same
order.

As in the paper the cosine schedule ends at a tenth of the peak rate; its warm-up of 1,000 of 30,000 steps is `warmup`.

Departures: the paper writes the KL with the student first but lists reverse KL as another method; forward KL is the
default here. Ratios are clipped from above: with an untrained student their softmax would be one-hot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from kdhub_tasks.losses import ClassifierOptions, cross_entropies, labelled_in, positions_in
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress
from kdhub.sampler import Probe, ShuffledSampler

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals


class DomainSampler(ShuffledSampler):
    """Domains in shares that follow the perplexity ratio of student and teacher.

        sampler: {source: ddk, alpha: 0.5}

    Within a domain rows are drawn without replacement, and from the start once all were drawn. An epoch is one
    interval, the first is one batch longer: rows are drawn one batch ahead of the measurement.
    """

    class Options(ShuffledSampler.Options):
        alpha: float = Field(0.5, ge=0, le=1, description="smoothing: 1 for none, 0 for uniform shares")
        interval: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
            "auto", description="optimiser steps between updates; auto is 1/25 of all, between 10 and 1000"
        )
        first_interval: Literal["random", "r0"] = Field(
            "random", description="shares of the first interval: by size, as in the paper (random), or r_0 (r0)"
        )
        sampling: Literal["ddk", "equal", "proportional", "no_smooth"] = Field(
            "ddk", description="ddk; no_smooth, the softmax of the ratios; or fixed shares: equal, proportional to rows"
        )
        rho_clip: float = Field(20.0, gt=1, description="upper bound of the ratios")
        stop_rho: float | None = Field(None, gt=1, description="stop training once no domain's ratio is above this")
        val_rows_per_domain: int = Field(500, ge=1, description="validation rows of each domain for the ratios")

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        sizes = np.array([rows for _, rows in self.parts])
        self.sizes, self.starts = sizes, np.cumsum(sizes) - sizes
        self.drawn = np.zeros(len(sizes), np.int64)
        self.r: np.ndarray | None = None  # r_t; None before the first measurement
        self._enough = False
        self.shares = sizes / sizes.sum()
        self.interval = 10 if self.options.interval == "auto" else self.options.interval
        if self.options.sampling == "equal":
            self.shares = np.full(len(sizes), 1 / len(sizes))

    def probes(self, steps: int) -> Probe | None:
        o = self.options
        if o.interval == "auto":
            self.interval = min(1000, max(10, steps // 25))
        asks = o.sampling in ("ddk", "no_smooth") or o.stop_rho is not None
        return Probe(self.interval, o.val_rows_per_domain) if asks else None

    @property
    def enough(self) -> bool:
        return self._enough

    def observe(self, step: int, terms: Mapping[str, float]) -> None:
        if "student:0" not in terms:
            return
        o, n = self.options, range(len(self.sizes))
        rho = np.exp([terms[f"student:{i}"] - terms[f"teacher:{i}"] for i in n])
        self._enough = bool(step) and o.stop_rho is not None and float(rho.max()) <= o.stop_rho
        if o.sampling in ("equal", "proportional"):
            return
        if self.r is None or o.sampling == "no_smooth":
            self.r = initial(rho, o.rho_clip)
        else:
            self.r = updated(self.r, rho, o.alpha, o.rho_clip)
        if step or o.first_interval == "r0":
            self.shares = self.r

    def epoch(self, number: int) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, number])
        part = rng.choice(len(self.sizes), size=(self.interval + (number == 0)) * self.batch, p=self.shares)
        order = np.empty(len(part), np.int64)
        for i in range(len(self.sizes)):
            at = np.flatnonzero(part == i)
            order[at] = self.starts[i] + self._next(i, len(at))
        if self.options.group_by_length:
            order = self.grouped(order, rng)
        yield from order.tolist()

    def _next(self, domain: int, count: int) -> np.ndarray:
        """The next rows of a domain, one shuffle after the other."""
        size, first = int(self.sizes[domain]), int(self.drawn[domain])
        self.drawn[domain] += count
        rounds = range(first // size, (first + count - 1) // size + 1)
        rows = [np.random.default_rng([self.seed, domain, 1 + turn]).permutation(size) for turn in rounds]
        return np.concatenate([*rows, np.zeros(0, np.int64)])[first % size :][:count]

    def state(self) -> dict[str, Any]:
        r = None if self.r is None else self.r.tolist()
        return {"drawn": self.drawn.tolist(), "r": r, "shares": self.shares.tolist(), "interval": self.interval}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.drawn, self.shares = np.array(state["drawn"], np.int64), np.array(state["shares"])
        self.r, self.interval = None if state["r"] is None else np.array(state["r"]), state["interval"]


def initial(rho: np.ndarray, clip: float = 20.0) -> np.ndarray:
    """softmax of the ratios (eq. 1): (domains,), > 0, sum 1."""
    rho = np.minimum(rho, clip)
    weights = np.exp(rho - rho.max())
    return weights / weights.sum()


def updated(r: np.ndarray, rho: np.ndarray, alpha: float = 0.5, clip: float = 20.0) -> np.ndarray:
    """Factor smooth updating (eq. 2): each domain keeps at least (1 - alpha) / N."""
    rho = np.minimum(rho, clip)
    psi = r * np.exp(rho - rho.max())
    return alpha * psi / psi.sum() + (1 - alpha) / len(r)


class Ddk(ObjectiveMethod):
    """Labels and a small weight on the teacher (eq. 3). With `sampler: ddk` it is the paper's method."""

    class Options(ClassifierOptions):
        gamma: float = Field(0.2, ge=0, description="weight of the teacher")
        temperature: float = Field(1.0, gt=0, description="temperature of both sides' logits in the teacher's term")
        scale_t2: bool = Field(False, description="multiply the teacher's term by the squared temperature")
        divergence: Literal["forward", "reverse"] = Field("forward", description="KL(teacher || student), or reverse")
        lr_end: float = Field(0.1, ge=0, le=1, description="what the cosine schedule ends at, a share of the peak rate")

    options: Options
    tiny_recipe = {"sampler": None, "data": {"validation": []}}  # the loss alone; tiny data has one domain

    @property
    def partial_signals(self) -> tuple[str, ...]:
        sampled = self.options.divergence == "forward" and self.options.temperature == 1
        return ("top", "sampled") if sampled else ("top",)

    def learning_rate(self, step: int, steps: int) -> float:
        o, rate = self.options, super().learning_rate(step, steps)
        falls = o.schedule == "cosine" and step >= round(o.warmup * steps)
        return o.lr_end + (1 - o.lr_end) * rate if falls else rate

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.divergences import forward_kl, reverse_kl
        from kdhub_tasks.positions import over_positions
        from kdhub_tasks.sparse import divergence

        o, labels, t = self.options, batch["labels"], self.options.temperature
        function = forward_kl if o.divergence == "forward" else reverse_kl
        weight, labelled = o.gamma * (t * t if o.scale_t2 else 1), labelled_in(batch)

        def sums(s: Tensor, z: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {
                "labels": cross_entropies(s, y).sum() / labelled,
                "teacher": weight * divergence(function, s, z, t).sum() / positions_in(batch),
            }

        return over_positions(sums, student, teacher, labels)
