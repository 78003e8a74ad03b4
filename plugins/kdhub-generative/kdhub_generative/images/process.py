"""A diffusion: alpha_t and sigma_t for t from 0, the picture, to 1, noise. Models and methods of this family share it.

    x_t = alpha_t x_0 + sigma_t e        e: noise of unit variance; alpha_t^2 + sigma_t^2 = 1

A network may predict e, x_0 or v = alpha_t e - sigma_t x_0; whichever it is, `x0` has the picture. Everything stands in
terms of the signal y_t = (x_t - sigma_t e) / alpha_t, the point of a trajectory with its known noise removed, in which
a step of DDIM (arXiv:2010.02502) is exact in two numbers:

    y_s = (1 - r) f + r y_t        r = sigma_s alpha_t / (alpha_s sigma_t), f: the picture predicted at x_t
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdhub.errors import UsageError

PREDICTIONS = ("v", "epsilon", "x0")
"""What a network may give."""
COSINE_START = 0.99
"""Where sampling begins with the cosine, which has no picture left at 1: alpha is .016 there."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> the picture, of rows of x."""


class Process:
    """alpha and sigma of t.

    Args:
        kept: alpha^2 after each of N discrete steps, falling, as diffusers has it (`alphas_cumprod`); t = i / N is
            after i of them. None: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Attributes:
        start: t at which sampling begins, with x = e.
    """

    def __init__(self, kept: Sequence[float] | None = None):
        self.kept = None if kept is None else torch.tensor([1.0, *kept], dtype=torch.float64)
        if self.kept is not None and (self.kept.diff() > 0).any():
            raise UsageError("alphas_cumprod of a scheduler must fall from one step to the next, and these do not")
        self.start = COSINE_START if kept is None else 1.0

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, of the shape of t, float32."""
        t = t.double()
        if self.kept is None:
            angle = t * (torch.pi / 2)
            return angle.cos().float(), angle.sin().float()
        kept, place = self.kept.to(t.device), t * (len(self.kept) - 1)
        low = place.floor().long().clamp(0, len(kept) - 2)
        square = kept[low] + (place - low) * (kept[low + 1] - kept[low])
        return square.sqrt().float(), (1 - square).sqrt().float()

    def network_time(self, t: Tensor) -> Tensor:
        """t as networks are given it: itself, or the index of a discrete step, 0 to N - 1."""
        return t if self.kept is None else (t * (len(self.kept) - 1) - 1).clamp(min=0)

    def ratio(self, t: Tensor, s: Tensor) -> Tensor:
        """r of a step from t to s < t: in [0, 1), 0 where s is 0."""
        (alpha, sigma), (alpha_s, sigma_s) = self.at(t), self.at(s)
        return sigma_s * alpha / (alpha_s * sigma)

    def noised(self, y: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """x_t of a signal and its noise; t one for each row."""
        alpha, sigma = self.at(t)
        return over(alpha, y) * y + over(sigma, e) * e

    def x0(self, prediction: str, given: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The picture by what a network gave for x at t."""
        if prediction == "x0":
            return given
        alpha, sigma = (over(value, x) for value in self.at(t))
        return alpha * x - sigma * given if prediction == "v" else (x - sigma * given) / alpha

    def target(self, prediction: str, picture: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """What a network should give for x_t of a picture."""
        alpha, sigma = (over(value, picture) for value in self.at(t))
        return {"x0": picture, "epsilon": e}.get(prediction, alpha * e - sigma * picture)


def over(values: Tensor, x: Tensor) -> Tensor:
    """One value a row, in a shape that multiplies x."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def ddim_step(y: Tensor, f: Tensor, r: Tensor) -> Tensor:
    """y_s from y_t and the picture that is predicted at x_t; r one for each row."""
    return y + (1 - over(r, y)) * (f - y)


def heun_step(process: Process, y: Tensor, f: Tensor, e: Tensor, t: Tensor, s: Tensor, predict: Predict) -> Tensor:
    """The same by the mean of the pictures predicted at both ends: second order, one more call of `predict`."""
    r = process.ratio(t, s)
    there = predict(process.noised(ddim_step(y, f, r), e, s), s)
    return ddim_step(y, (f + there) / 2, r)


def guided(predict: Callable[[Any], Tensor], condition: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
    """Classifier-free guidance in pictures, f(0) + w (f(c) - f(0)): the same as of the guided epsilon, as both are
    linear. One call for both.

    Args:
        predict: conditions of twice the rows, the null ones first -> pictures.
        null: the null condition of each row. scale: w, a number or one for each row.
    """
    without, with_it = predict(torch.cat([null, condition])).chunk(2)
    scale = over(scale, without) if isinstance(scale, Tensor) else scale
    return without + scale * (with_it - without)


def ddim(process: Process, predict: Predict, e: Tensor, steps: int) -> Tensor:
    """The picture that the deterministic trajectory of noise ends at, in so many steps of equal length in t, each one
    call of `predict`. x at the start is the noise itself."""
    grid = torch.linspace(process.start, 0, steps + 1, device=e.device)
    (alpha,), (sigma,) = process.at(grid[:1])
    y = e * ((1 - sigma) / alpha if alpha > 0 else 0.0)
    for now, then in zip(grid, grid[1:]):
        t, s = now.expand(len(e)), then.expand(len(e))
        y = ddim_step(y, predict(process.noised(y, e, t), t), process.ratio(t, s))
    return y


def process_of(settings: Mapping[str, Any]) -> Process:
    """The process that a saved network of ours names.

    Raises:
        UsageError: it is not a known one.
    """
    if settings.get("process", "cosine") != "cosine":
        raise UsageError(f"process must be cosine (process={settings['process']!r})")
    return Process()
