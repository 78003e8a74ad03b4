"""SnapCap: captions straight from a compressive snapshot (arXiv:2401.04903).

A camera multiplies B frames X_k by masks C_k and adds them up in one image Y (`captioning.snapshot`). The student
reads (Y, C) and never a frame; a frozen CLIP that reads the frames guides it in training alone.

    stage 1  `snapcap-encoder`   L1 = a mean (P(M_S) - M_T)^2 + b (1 - cos(v_S, v_T)) + c mean (r(M_S) - X)^2
    stage 2  `snapcap`           L2 = - mean log p(y_t | y_<t, V_S) + d L1
    `caption`                    the first term of L2 alone

M_S are maps, V_S tokens and v_S the vector of the student's encoder; M_T = mean_k M_k and v_T = mean_k e_k / |e_k| are
the teacher's, stored once for each clip; M_T is averaged down, or resized, to the cells of M_S. P is a 1x1 convolution
where channels differ, r two convolutions that end in B frames, and a linear map brings v_S to v_T's where widths do:
all three are trained along and not published. The encoder learns at a tenth of the decoder's rate in stage 2 (`rates`).

Reconstructed, as no code was found and its tables could not be read: a, b, c, d, the distance of maps, the mean over
frames, networks, optimiser. The two stages, what each has, and that only the snapshot is needed at the end, are the
paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions, step_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

Sigma = Annotated[float, Field(ge=0, le=0.1)]


class CaptionOptions(TrainingOptions):
    lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(64, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
    epochs: float = Field(10.0, gt=0, description="passes over the training rows")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="learning rate after warm-up")
    noise_sigma: Sigma | tuple[Sigma, Sigma] = Field(
        0.0, description="noise on simulated snapshots in training; [low, high]: drawn for each clip of a step"
    )

    @field_validator("noise_sigma")
    @classmethod
    def _low_first(cls, sigma: Any) -> Any:
        if isinstance(sigma, tuple) and sigma[0] > sigma[1]:
            raise ValueError(f"the low end of noise_sigma must not be above the high one (noise_sigma={list(sigma)})")
        return sigma


class _OfSnapshots(ObjectiveMethod):
    """What both stages share: noise."""

    Options = CaptionOptions
    options: CaptionOptions

    def check(self, student: Student, teacher: Teacher | None) -> None:
        if not student.reads_snapshots:
            raise CompatibilityError(
                f"{self.spec.name} trains captioners of snapshots, and the student reads frames",
                hint="student: snapshot-captioner:width=64",
            )

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import numpy as np
        import torch

        sigma = self.options.noise_sigma
        low, high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        drawn = int(torch.randint(2**31, (), generator=generator))
        if not high:
            return batch
        noisy = batch["measurement"].clone()
        for row, key in zip(noisy, batch["keys"].tolist()):
            rng = np.random.default_rng([drawn, key])
            noise = rng.uniform(low, high) * rng.standard_normal(row.shape)
            row += torch.as_tensor(noise, dtype=row.dtype, device=row.device)
        return {**batch, "measurement": noisy}


class Caption(_OfSnapshots):
    """Captions by likelihood alone: the arm without distillation."""

    def settings(self) -> dict[str, Any]:
        return {"captions": True}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        from torch.nn.functional import cross_entropy

        following = batch["words"][:, 1:]
        lost = cross_entropy(student.logits.flatten(0, 1), following.flatten(), ignore_index=-1, reduction="sum")
        return {"caption": lost / (step_count(batch, "words") or max(1, int((following >= 0).sum())))}


class SnapcapEncoderOptions(CaptionOptions):
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    w_feature: float = Field(1.0, ge=0, description="a, weight of the distance of maps")
    w_embed: float = Field(1.0, ge=0, description="b, weight of the distance of vectors")
    w_recon: float = Field(0.1, ge=0, description="c, weight of reconstructed frames")
    embed_loss: Literal["cosine", "mse"] = Field("cosine", description="distance of vectors")


class SnapcapEncoder(_OfSnapshots):
    """Stage 1. Captions are not used."""

    Options = SnapcapEncoderOptions
    options: SnapcapEncoderOptions

    def settings(self) -> dict[str, Any]:
        return {"frames": True}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        super().check(student, teacher)
        if "maps" not in student.kinds:
            raise CompatibilityError(
                f"{self.spec.name} guides the encoder of a snapshot, and the student reconstructs frames first",
                hint="student: snapshot-captioner:width=64",
            )

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        from torch import nn

        widths, (frames, high, wide) = student.describe()["widths"], student.shape
        (channels, *_), (width,) = widths["maps"], widths["embedding"]
        given = {kind: teacher.layout(kind)[kind] for kind in ("maps", "embedding")}
        made: dict[str, nn.Module] = {"reconstruction": reconstruction(channels, frames, high, wide)}
        if given["maps"][0] != channels:
            made["maps"] = nn.Conv2d(channels, given["maps"][0], 1)
        if given["embedding"][0] != width:
            made["embedding"] = nn.Linear(width, given["embedding"][0])
        return made

    def guided(self, student: Signals, teacher: Signals, batch: Mapping[str, Any], factor: float) -> dict[str, Tensor]:
        """The terms of L1, times a factor; those without weight are left out."""
        from torch.nn.functional import mse_loss

        o, found = self.options, {}
        if o.w_feature:
            own = self.modules["maps"](student.maps) if "maps" in self.modules else student.maps
            found["feature"] = o.w_feature * mse_loss(own, fitted(teacher.maps.float(), own.shape[-2:]))
        if o.w_embed:
            own = self.modules["embedding"](student.embedding) if "embedding" in self.modules else student.embedding
            found["embed"] = o.w_embed * embed_distance(own, teacher.embedding.float(), o.embed_loss)
        if o.w_recon:
            found["recon"] = o.w_recon * mse_loss(self.modules["reconstruction"](student.maps), batch["frames"])
        return {name: factor * term for name, term in found.items()}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        return self.guided(student, teacher, batch, 1.0)


class SnapcapOptions(SnapcapEncoderOptions):
    lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW, of the decoder")
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"encoder": 0.1},
        description="factors on lr for named parts of the student or extras; 0 freezes a part",
    )
    stage2_distill: float = Field(0.1, ge=0, description="d, weight of the terms of stage 1")


class Snapcap(SnapcapEncoder):
    """Stage 2."""

    Options = SnapcapOptions
    options: SnapcapOptions

    def settings(self) -> dict[str, Any]:
        return {"captions": True, "frames": bool(self.options.stage2_distill)}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        terms = Caption.objective(self, student, teacher, batch, progress)
        d = self.options.stage2_distill
        return terms | (self.guided(student, teacher, batch, d) if d else {})


def reconstruction(channels: int, frames: int, high: int, wide: int) -> nn.Module:
    """r: from maps to frames."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(),
        nn.Upsample((high, wide), mode="bilinear"), nn.Conv2d(channels, frames, 3, 1, 1),
    )  # fmt: skip


def fitted(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps averaged down to `size` cells, or resized where one of its sides is larger."""
    from torch.nn.functional import adaptive_avg_pool2d, interpolate

    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if all(have >= want for have, want in zip(maps.shape[-2:], size)):
        return adaptive_avg_pool2d(maps, size)
    return interpolate(maps, size, mode="bilinear")


def embed_distance(mine: Tensor, theirs: Tensor, kind: str = "cosine") -> Tensor:
    """1 - cosine of vectors (rows, width), or their mean squared difference; mean over rows."""
    from torch.nn.functional import cosine_similarity, mse_loss

    return (1 - cosine_similarity(mine, theirs, dim=-1)).mean() if kind == "cosine" else mse_loss(mine, theirs)
