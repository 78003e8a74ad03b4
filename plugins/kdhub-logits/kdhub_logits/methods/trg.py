"""TRG: the relations of tokens across a batch (arXiv:2306.12442).

Tokens are drawn from all images of a batch, the same ones in teacher and student. Beside soft targets and labels the
student is led to the teacher's graph of near tokens (local), to tell each token's counterpart from the others (global),
and to the teacher's context inside each image (inner):

    L = ce_weight CE + kd_weight T^2 KL + alpha L_inner + beta L_local + gamma L_global

No official code could be found, and the paper's weights, k, sigma, M and schedule could not be read: those here are
ours. The soft targets are KL(teacher || student) T^2, as usual. L_local is a mean over tokens. The graph and the
contrast are of the images of one micro-batch: with `accumulate` or several ranks they have fewer neighbours to tell
apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, isqrt, pi
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_tasks.distances import squared_distances
from kdhub_tasks.losses import ClassifierOptions, label_loss, positions_in
from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class Trg(ObjectiveMethod):
    """Soft targets, and the teacher's graph of tokens across images."""

    class Options(ClassifierOptions):
        tokens: int = Field(256, ge=32, le=2048, description="tokens of a batch in the graph (M)")
        k: int = Field(8, ge=1, description="neighbours of a token in the graph")
        sigma: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
            "auto", description="width of the kernel; auto: mean squared distance"
        )
        alpha: float = Field(1.0, ge=0, description="weight of the context inside images")
        beta: float = Field(1.0, ge=0, description="weight of the local graph")
        gamma: float = Field(1.0, ge=0, description="weight of the global contrast")
        global_start: float = Field(1.0, ge=0.02, le=5, description="temperature of the contrast at first")
        global_end: float = Field(0.1, ge=0.02, le=5, description="temperature of the contrast at last")
        global_schedule: Literal["linear", "cosine"] = Field("linear", description="how that temperature falls")
        ce_weight: float = Field(1.0, ge=0, description="weight of the labels")
        kd_weight: float = Field(0.9, ge=0, description="weight of the soft targets")
        temperature: float = Field(4.0, gt=0, description="of the soft targets")
        patch: int = Field(
            1,
            ge=1,
            description="side of the squares of positions that make one token; "
            "positions that are left over at the far sides make none",
        )
        kl_direction: Literal["student_teacher", "teacher_student"] = Field(
            "student_teacher", description="of the local graph: KL(student || teacher), or the other way round"
        )

    options: Options
    batchwise = "graph and contrast are of the tokens of a batch"
    tiny_recipe = {"student": "vit:patch=2,width=8,layers=1,heads=2"}

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        """The map of the student's tokens to the teacher's width.

        Raises:
            CompatibilityError: positions that make no square, where they must be pooled or joined; a `patch` larger
                than their square.
        """
        from torch import nn

        (mine, width), (theirs, wide) = student.width("tokens"), teacher.layout("tokens")["tokens"]
        patch, fewest = self.options.patch, min(mine, theirs)
        if (mine != theirs or patch > 1) and any(isqrt(n) ** 2 != n for n in (mine, theirs)):
            raise CompatibilityError(f"{mine} tokens of the student and {theirs} of the teacher make no common grid")
        if patch > 1 and patch > isqrt(fewest):
            raise CompatibilityError(
                f"patch must be at most the side of the smaller grid (patch={patch}, side={isqrt(fewest)})"
            )
        square = patch**2
        self.positions = (isqrt(fewest) // patch) ** 2 if patch > 1 else fewest
        return {"projection": nn.Linear(width * square, wide * square, bias=False)}

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        n = len(batch["labels"]) * self.positions
        chosen = torch.randperm(n, generator=generator)[: self.options.tokens]
        return {**batch, "chosen": chosen.to(batch["labels"].device)}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.divergences import forward_kl

        o, t, given = self.options, self.options.temperature, teacher.logits.float()
        mine, theirs = same_grid(student.tokens, teacher.tokens.float(), o.patch)
        chosen = batch["chosen"]
        s, g = (x.flatten(0, 1)[chosen] for x in (mine, theirs))
        share = progress.share if o.global_schedule == "linear" else (1 - cos(pi * progress.share)) / 2
        contrast = o.global_start + (o.global_end - o.global_start) * share
        return {
            "labels": o.ce_weight * label_loss(student.logits, batch),
            "teacher": o.kd_weight * t * t * forward_kl(student.logits / t, given / t).sum() / positions_in(batch),
            "inner": o.alpha * inner_loss(mine, theirs),
            "local": o.beta * local_loss(s, g, o.k, o.sigma, o.kl_direction),
            "global": o.gamma * global_loss(self.modules["projection"](s), g, contrast).mean(),
        }


def same_grid(student: Tensor, teacher: Tensor, patch: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens (batch, positions, width) of both on the smaller of their grids, then `patch` x `patch` of them joined.
    What is left over at the far sides, as behind a strided convolution, makes no token."""
    from torch.nn.functional import adaptive_avg_pool2d, unfold

    def grid(x: Tensor) -> Tensor:
        side = isqrt(x.shape[1])
        return x.transpose(1, 2).reshape(len(x), x.shape[2], side, side)

    if student.shape[1] != teacher.shape[1]:
        side = isqrt(min(student.shape[1], teacher.shape[1]))
        student, teacher = (adaptive_avg_pool2d(grid(x), side).flatten(2).transpose(1, 2) for x in (student, teacher))
    if patch > 1:
        student, teacher = (unfold(grid(x), patch, stride=patch).transpose(1, 2) for x in (student, teacher))
    return student, teacher


def graph(tokens: Tensor, k: int, sigma: float | str = "auto") -> Tensor:
    """A (M, M) of tokens (M, d): exp(-|t_i - t_j|^2 / 2 sigma) where i is among the k nearest others of j, else 0.

    Column j lists the neighbours of j, so A is not symmetric. sigma is not squared; `auto` is the mean squared distance
    to those neighbours, constant in the gradient.
    """
    import torch

    d2 = squared_distances(tokens, tokens)
    k = min(k, len(tokens) - 1)
    alone = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
    near = d2.detach().masked_fill(alone, torch.inf).topk(k, dim=0, largest=False).indices
    mask = torch.zeros_like(alone).scatter(0, near, True)
    width = d2.detach()[mask].mean().clamp_min(1e-12) if sigma == "auto" else sigma
    return torch.where(mask, (-d2 / (2 * width)).exp(), 0)


def local_loss(
    student: Tensor, teacher: Tensor, k: int = 8, sigma: float | str = "auto", direction: str = "student_teacher"
) -> Tensor:
    """Mean over tokens of the KL of the graphs' rows, softmax over all M columns; 0 for equal graphs."""
    from kdhub_tasks.divergences import forward_kl, reverse_kl

    apart = reverse_kl if direction == "student_teacher" else forward_kl
    return apart(graph(student, k, sigma), graph(teacher, k, sigma)).mean()


def global_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Of each token -log softmax over j of cos(student_i, teacher_j) / temperature, at j = i, (M,); both are (M, d)."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    like = normalize(student, dim=-1) @ normalize(teacher, dim=-1).T / temperature
    return cross_entropy(like, torch.arange(len(like), device=like.device), reduction="none")


def inner_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """MSE of the contexts of both, each with its own width; tokens are (batch, N, d)."""
    return (context(student) - context(teacher)).square().mean()


def context(tokens: Tensor) -> Tensor:
    """softmax(F F^T / sqrt(d)), (batch, N, N), of tokens (batch, N, d)."""
    import torch

    return torch.softmax(tokens @ tokens.transpose(1, 2) / tokens.shape[-1] ** 0.5, -1)
