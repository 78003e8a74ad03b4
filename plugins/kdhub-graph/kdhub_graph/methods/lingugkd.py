"""LinguGKD (arXiv:2402.05894): a graph network learns from a reader of texts, layer by layer and hop by hop.

With h[k] (n, d) the student's states of layer k and g[k] (n, d_T) the teacher's states of hop k, for k = 0..L

    G[k] = W P_k(g[k]),     P_k = Linear, PReLU, LayerNorm, Dropout, Linear;  W without bias, the same for all k
    S    = normalise(h[k]) normalise(G[k])^T / T
    l_k  = mean_i -log softmax(S_i)_i       over columns of other classes and i itself; rows are the student's
    L    = w_0 CE(logits, y) + w_1 sum_k gamma_k l_k,   gamma = softmax(v), w = softmax(u), learned

P_k, W, v and u are trained along and thrown away. Only training nodes are aligned, and of these, where classes decide
what contrasts, those with a label.

Departures: the layers are the student's, and its teacher must have as many hops; batches of 128 rows unless stated, as
one of 32 (the paper's) has few negatives; the last step's student is taken, not the one that scores best on a split.
Reconstructed: the width between the two maps of P_k is the student's, and its dropout 0, which the paper does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, label_loss, labelled_in, positions_in
from pydantic import Field, model_validator

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress
from kdhub.ranks import gathered, rank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class LinguGkd(ObjectiveMethod):
    class Options(ClassifierOptions):
        lr: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
        epochs: float = Field(300.0, gt=0, description="passes over the training rows")
        batch_size: int = Field(128, ge=1, description="rows of one optimiser step; each row contrasts with the others")
        temperature: float = Field(0.07, gt=0, description="similarities are divided by it before the softmax")
        mask_same_label: bool = Field(True, description="nodes of one class do not contrast with each other")
        layer_weights: Literal["learned", "uniform", "last"] = Field(
            "learned", description="weights of the layers: a learned softmax, all alike, or the last layer alone"
        )
        loss_weights: Literal["learned", "fixed"] = Field(
            "learned", description="weights of labels and teacher: a learned softmax, or `weights`"
        )
        weights: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = Field(
            (0.5, 0.5), description="weights of labels and teacher where loss_weights is fixed, from 0"
        )
        proj_dim: int | None = Field(
            None, ge=1, description="inner width of each hop's projection; that of the student if unset"
        )
        proj_dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the projections")

        @model_validator(mode="after")
        def _weighted(self) -> Any:
            if not sum(self.weights):
                raise ValueError(f"weights must not all be 0 (weights={list(self.weights)})")
            if self.loss_weights == "learned" and self.weights != (0.5, 0.5):
                raise ValueError(
                    "weights must be left out unless loss_weights is fixed "
                    f"(weights={list(self.weights)}, loss_weights={self.loss_weights})"
                )
            return self

    options: Options
    across_ranks = True
    tiny_recipe = {"options": {"epochs": 4, "lr": 1e-2, "batch_size": 16}}

    @property
    def batchwise(self) -> str:
        return "each row contrasts with the others of its batch"

    @property
    def off(self) -> bool:
        """Whether the teacher has no weight: then this is training by labels, and nothing is asked of it."""
        return self.options.loss_weights == "fixed" and not self.options.weights[1]

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return () if self.off else super().needs(teacher)

    def check(self, student: Student, teacher: Teacher | None) -> None:
        mine, theirs = student.width("hop_states")[0], teacher.layout("hop_states")["hop_states"][0]
        if mine != theirs:
            raise CompatibilityError(
                f"the student has {mine - 1} layers and the teacher reads {theirs - 1} hops: each layer learns from "
                "the hop of its number",
                hint=f"student: ...:layers={theirs - 1}, or a teacher with hops: {mine - 1}",
            )

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        import torch
        from torch import nn

        if self.off:
            return {}
        (hops, width), theirs = student.width("hop_states"), teacher.layout("hop_states")["hop_states"][-1]
        made: dict[str, nn.Module] = {
            "projections": projections(hops, theirs, width, self.options.proj_dim or width, self.options.proj_dropout)
        }
        o = self.options
        learned = {"layers": hops * (o.layer_weights == "learned"), "losses": 2 * (o.loss_weights == "learned")}
        weights = {name: nn.Parameter(torch.ones(n)) for name, n in learned.items() if n}
        return made | ({"weights": nn.ParameterDict(weights)} if weights else {})

    def layer_weights(self, hops: int) -> Tensor:
        """gamma, (hops,)."""
        import torch

        if self.options.layer_weights == "learned":
            return self.modules["weights"]["layers"].softmax(0)
        each = torch.full((hops,), 1 / hops)
        return each if self.options.layer_weights == "uniform" else torch.eye(hops)[-1]

    def loss_weights(self) -> Tensor:
        """w_0 of labels and w_1 of the teacher, (2,)."""
        import torch

        if self.options.loss_weights == "learned":
            return self.modules["weights"]["losses"].softmax(0)
        return torch.tensor(self.options.weights)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        import torch

        if self.off:
            return {"labels": self.options.weights[0] * label_loss(student.logits, batch)}
        states, labels = student.hop_states.float(), batch["labels"]
        given = teacher.hop_states.to(states.dtype)
        mask = gathered(labels) if self.options.mask_same_label else None
        rows, first = positions_in(batch) if mask is None else labelled_in(batch), rank() * len(states)
        led = [gathered(project(self.modules["projections"], k, given[:, k])) for k in range(states.shape[1])]
        each = torch.stack([
            contrast(states[:, k], every, mask, self.options.temperature, first).sum() / rows
            for k, every in enumerate(led)
        ])  # fmt: skip
        gamma, w = self.layer_weights(len(each)).to(each.device), self.loss_weights().to(each.device)
        return {"labels": w[0] * label_loss(student.logits, batch), "teacher": w[1] * (gamma * each).sum()}

    def state(self) -> dict[str, Any]:
        """The weights, for the log: they are those in the loss."""
        if "projections" not in getattr(self, "modules", {}):
            return {}
        gamma = self.layer_weights(len(self.modules["projections"]["hops"])).tolist()
        of_labels, of_teacher = self.loss_weights().tolist()
        layers = {f"weight_layer_{k}": value for k, value in enumerate(gamma)}
        return {**layers, "weight_labels": of_labels, "weight_teacher": of_teacher}


def contrast(student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float, first: int = 0) -> Tensor:
    """One-way InfoNCE of each row, (n,): the student's rows against all of the teacher's.

    Args:
        student (n, d), teacher (m, d): of any scale; the student's first row is the teacher's row `first`.
        labels: (m,) classes: columns of a row's own class other than itself, and of unknown ones (-1), are left out,
            and a row without a label has 0; None: all columns contrast.
    """
    import torch
    from torch.nn.functional import normalize

    scores = normalize(student, dim=1) @ normalize(teacher, dim=1).T / temperature
    mine = torch.arange(first, first + len(student), device=scores.device)
    right = scores.gather(1, mine[:, None])[:, 0]
    if labels is None:
        return scores.logsumexp(1) - right
    own = torch.arange(len(teacher), device=scores.device)[None, :] == mine[:, None]
    out = ((labels[mine][:, None] == labels[None, :]) | (labels < 0)[None, :]) & ~own
    return (scores.masked_fill(out, float("-inf")).logsumexp(1) - right) * (labels[mine] >= 0)


def projections(hops: int, inputs: int, width: int, inner: int, dropout: float) -> nn.ModuleDict:
    """P_k for each hop and W for all."""
    from torch import nn

    def one() -> nn.Module:
        return nn.Sequential(
            nn.Linear(inputs, inner), nn.PReLU(), nn.LayerNorm(inner), nn.Dropout(dropout), nn.Linear(inner, width)
        )

    each = nn.ModuleList([one() for _ in range(hops)])
    return nn.ModuleDict({"hops": each, "shared": nn.Linear(width, width, bias=False)})


def project(made: nn.ModuleDict, hop: int, states: Tensor) -> Tensor:
    """G[k], (n, width), of the teacher's states of one hop."""
    return made["shared"](made["hops"][hop](states))
