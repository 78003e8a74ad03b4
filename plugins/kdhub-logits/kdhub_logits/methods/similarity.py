"""Distillation by likeness: features led to the teacher's, sets of features to one distribution, classes to one order.

The loss of one batch is

    (1 - alpha) mean CE(y, q)  +  alpha weight D

with D over all rows and the cross-entropy over rows with a label. `feature` and `rank` are means over the whole
optimiser step; `mmd` compares sets, those of each micro-batch, so there `accumulate` and the number of ranks matter.
arXiv:2402.13116 lists these as similarity functions and as rank optimisation; it has no defaults for their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_tasks.distances import LOWEST, attention_distance, feature_distance, layer_pairs, squared_distances
from kdhub_tasks.losses import ClassifierOptions, label_loss, positions_in, tokens_in
from kdhub_tasks.signals import LAYERED
from pydantic import Field, model_validator

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress, RunContext, step_count
from kdhub.named_layers import PREFIX, Layer, is_layer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class LikenessOptions(ClassifierOptions):
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher; 1 - alpha is that of the labels")
    weight: float = Field(1.0, ge=0, description="factor on the distance, which has no natural scale")


class _Likeness(ObjectiveMethod):
    options: LikenessOptions

    def apart(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        """The distance of one batch, a scalar."""
        raise NotImplementedError

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        o = self.options
        terms = {"teacher": o.alpha * o.weight * self.apart(student, teacher, batch)}
        if o.alpha < 1:
            terms["labels"] = (1 - o.alpha) * label_loss(student.logits, batch)
        return terms


class _Features(_Likeness):
    """The student's features pass a linear map of the teacher's width, trained along and thrown away."""

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        from torch import nn

        (mine,), theirs = student.width("features"), teacher.layout("features")["features"][-1]
        return {"projector": nn.Linear(mine, theirs, bias=False)}


class Feature(_Features):
    """D = the distance of projected features: |W s - t|^2 / d (FitNets, arXiv:1412.6550), their L1, or 1 - cosine.

    Of the features before the last layer, or of hidden states or attention maps, layer by layer: a mean over positions
    (or queries) and pairs of layers. States pass a linear map for each pair. Maps are means over heads, and need none.
    `layer:NAME` compares any module of either network (`kdhub.named_layers`), through one linear map.
    """

    class Options(LikenessOptions):
        of: str = Field(
            "features",
            description="what is compared: features, hidden_states, attentions, or layer:NAME of the teacher",
        )
        student_of: str | None = Field(
            None, description="layer:NAME of the student, where it is not what `of` says; for features and layers"
        )
        distance: Literal["mse", "l1", "cosine", "kl"] = Field(
            "mse", description="distance of student and teacher; kl is for attentions only, cosine is not for them"
        )
        layer_map: Literal["uniform", "last"] | tuple[Annotated[int, Field(ge=1)], ...] = Field(
            "uniform", description="layers that are compared: evenly, the last ones, or the teacher's for each of the "
            "student's",
        )  # fmt: skip

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.of not in ("features", *LAYERED) and not is_layer(self.of):
                raise ValueError(f"of must be features, {', '.join(LAYERED)} or {PREFIX}NAME (of={self.of})")
            if self.student_of and (self.of in LAYERED or not is_layer(self.student_of)):
                raise ValueError(
                    f"student_of must be {PREFIX}NAME, beside features or a layer "
                    f"(student_of={self.student_of}, of={self.of})"
                )
            others = {"mse", "l1", "kl" if self.of == "attentions" else "cosine"}
            if self.distance not in others:
                raise ValueError(
                    f"distance must be one of {', '.join(sorted(others))} between {self.of} (distance={self.distance})"
                )
            return self

    options: Options
    pairs: list[tuple[int, int]]

    @property
    def theirs(self) -> str:
        """The teacher's signal, where it is not one of all layers."""
        return Layer.parse(self.options.of).kind if is_layer(self.options.of) else self.options.of

    @property
    def mine(self) -> str:
        """The student's."""
        return Layer.parse(self.options.student_of).kind if self.options.student_of else self.theirs

    def uses(self, student: Student) -> tuple[str, ...]:
        return (self.mine,) if is_layer(self.mine) else ()

    def distill(self, run: RunContext) -> Student:
        if (of := self.options.of) in LAYERED:
            if of not in (kinds := run.student.kinds):
                raise CompatibilityError(
                    f"the student gives {', '.join(kinds)}, not {of}",
                    hint="students with layers of attention do: vit:, and text classifiers of transformers",
                )
            layers = (shape[LAYERED[of]] for shape in (run.student.shape(of), run.teacher.layout(of)[of]))
            self.pairs = layer_pairs(*layers, self.options.layer_map)
        return super().distill(run)

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        of = self.options.of
        return (f"{of}:{','.join(str(theirs) for _, theirs in self.pairs)}" if of in LAYERED else self.theirs,)

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        from torch import nn

        of = self.options.of
        if of not in LAYERED:
            (*_, mine), theirs = student.layers.get(self.mine) or student.width(self.mine), teacher.layout(self.theirs)
            return {"projector": nn.Linear(mine, theirs[self.theirs][-1], bias=False)}
        if of == "attentions":
            return {}
        mine, theirs = student.width(of)[-1], teacher.layout(of)[of][-1]
        return {"projector": nn.ModuleList(nn.Linear(mine, theirs, bias=False) for _ in self.pairs)}

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        """`weights`, of the attention maps of texts: as many as a text's tokens, squared."""
        if self.options.of != "attentions" or "attention_mask" not in batch:
            return {}
        return {"weights": int(batch["attention_mask"].sum(1).square().sum())}

    def apart(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        import torch

        of, distance = self.options.of, self.options.distance
        # of all rows, one after the other; the teacher's layers are stored in the order of the pairs
        end = LAYERED.get(of, -1) - 1
        mine, theirs = student[self.mine].flatten(0, end), teacher[self.theirs].float().flatten(0, end)
        if len(mine) != len(theirs):
            raise CompatibilityError(
                f"the student has {len(mine)} {of} where the teacher has {len(theirs)}: their positions differ",
                hint="layers are compared position by position: models of one tokenizer, or of patches of one size",
            )
        if of not in LAYERED:
            return self._mean(feature_distance(self.modules["projector"](mine), theirs, distance), batch)
        mine = mine[:, [layer - 1 for layer, _ in self.pairs]]
        if of == "attentions":
            known = (tokens_in(batch, 0), step_count(batch, "weights")) if "attention_mask" in batch else ()
            return attention_distance(mine, theirs, distance, *known)
        projected = torch.stack([w(mine[:, i]) for i, w in enumerate(self.modules["projector"])], 1)
        return feature_distance(projected, theirs, distance).mean(1).sum() / tokens_in(batch, len(mine))

    def _mean(self, each: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Over positions of features, over tokens of a layer in full, over rows of one that is pooled."""
        if not is_layer(self.mine):
            return each.sum() / positions_in(batch)
        return each.sum() / tokens_in(batch, len(each)) if Layer.parse(self.mine).pooling == "all" else each.mean()


class Mmd(_Features):
    """D = the squared maximum mean discrepancy of the batch's features (arXiv:1707.01219 with an RBF kernel).

    It is of two sets, the student's and the teacher's features of one micro-batch; over a step it is the mean of those.
    """

    batchwise = "the distributions that are compared are those of a batch's rows"

    class Options(LikenessOptions):
        bandwidths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
            (0.5, 1.0, 2.0), description="widths of the kernels, in median distances"
        )

    options: Options

    def apart(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        mine, theirs = self.modules["projector"](student.features), teacher.features.float()
        return mmd2(mine, theirs, [b * median_distance(mine, theirs) for b in self.options.bandwidths])


class Rank(_Likeness):
    """D = how far the student keeps to the teacher's order of its most probable classes."""

    defaults_for = {"next-token": {"alpha": 1.0}}

    class Options(LikenessOptions):
        rank_k: int = Field(20, ge=2, description="how many of the teacher's most probable classes are ranked")
        form: Literal["hinge", "logistic"] = Field(
            "hinge", description="hinge: gaps of probability at least the teacher's; logistic: the order of logits"
        )
        temperature: float = Field(1.0, gt=0, description="both sides' logits are divided by it")

    options: Options

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        """`ranked`, the pairs of classes."""
        return {"ranked": int(ranked(teacher.logits.float() / self.options.temperature, self.options.rank_k)[2].sum())}

    def apart(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        o, pairs = self.options, step_count(batch, "ranked")
        s, z = student.logits / o.temperature, teacher.logits.float() / o.temperature
        return rank_loss(s, z, o.rank_k, o.form, pairs)


def mmd2(student: Tensor, teacher: Tensor, sigmas: list[Any]) -> Tensor:
    """mean k(s, s') + mean k(t, t') - 2 mean k(s, t), biased, >= 0; k is the mean of RBF kernels exp(-d^2 / 2 sigma^2).

    Args:
        student, teacher: (n, d), (m, d).
    """

    def k(a: Tensor, b: Tensor) -> Tensor:
        d2 = squared_distances(a, b)
        return sum((-d2 / (2 * sigma**2)).exp() for sigma in sigmas) / len(sigmas)

    return k(student, student).mean() + k(teacher, teacher).mean() - 2 * k(student, teacher).mean()


def median_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Of all pairs of both sets together; constant in the gradient, at least 1e-6."""
    import torch

    both = torch.cat([student, teacher]).detach()
    above = torch.triu_indices(len(both), len(both), 1, device=both.device)
    return squared_distances(both, both)[above[0], above[1]].median().sqrt().clamp_min(1e-6)


def ranked(teacher: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest probabilities of logits (..., classes), which classes those are, and for which pairs of them the
    first is ahead of the second, (..., k, k)."""
    from kdhub_tasks.divergences import log_probabilities

    top, order = log_probabilities(teacher).exp().topk(min(k, teacher.shape[-1]), dim=-1)
    return top, order, top.unsqueeze(-1) > top.unsqueeze(-2)


def rank_loss(student: Tensor, teacher: Tensor, k: int = 20, form: str = "hinge", pairs: float | None = None) -> Tensor:
    """Mean over all pairs of the teacher's top-k classes with p_i > p_j, of all rows: `hinge`
    relu((p_i - p_j) - (q_i - q_j)), `logistic` log(1 + exp(s_j - s_i)). Logits are (..., classes); `pairs` is how many
    the mean is over, those here if None."""
    import torch
    from kdhub_tasks.divergences import log_probabilities
    from torch.nn.functional import relu, softplus

    top, order, ahead = ranked(teacher, k)
    if form == "hinge":
        q = log_probabilities(student).exp().gather(-1, order)
        each = relu((top.unsqueeze(-1) - top.unsqueeze(-2)) - (q.unsqueeze(-1) - q.unsqueeze(-2)))
    else:
        s = student.float().clamp_min(LOWEST).gather(-1, order)  # -inf - -inf has no gradient but nan
        each = softplus(s.unsqueeze(-2) - s.unsqueeze(-1))
    return torch.where(ahead, each, 0).sum() / (pairs or ahead.sum().clamp_min(1))
