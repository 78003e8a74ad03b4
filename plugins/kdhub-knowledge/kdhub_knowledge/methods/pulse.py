"""PULSE (arXiv:2510.08626): why users chose what they chose. Rationales that a model wrote for histories, the histories
and the items lie in one space, and interactions supervise all three; the rationale that fits user and next item best is
the one that counts.

    user-item           L_ui = - mean log softmax_i(u v_i / tau)[next item]
    rationale-item      a L_ri, the same for r
    alignment           b L_ur = - b / 2 mean (log softmax_b'(u_b r_b' / tau)[b] + log softmax_b'(r_b u_b' / tau)[b])
    selection           argmax_k u r_k + r_k v of the next item; in the first epochs a random one
    ranking             (1 - w) u v + w r v, r the rationale with the highest u r; w by validation rows, 0 among them

Users with the same next item are no negatives of each other. The next item decides in training alone: afterwards
nothing but history and rationales is read.

Of the paper only abstract and stages could be read: losses, defaults and prompts are reconstructed. Refinement is a
data set (`refined:DATA`) of a second recipe that names the student of the first; the last stage, which tunes the
language model itself, is `supervised` on `recommendations:DATA`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import ObjectiveMethod, Progress, RunContext, TrainingOptions, step_count
from kdhub_knowledge.items.metrics import ndcg_10

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Rows, Signals

logger = logging.getLogger("kdhub")


class Pulse(ObjectiveMethod):
    class Options(TrainingOptions):
        lr: float = Field(5e-3, gt=0, description="peak learning rate of AdamW")
        batch_size: int = Field(100, ge=2, description="rows of one optimiser step, over all ranks and accumulations")
        epochs: float = Field(30.0, gt=0, description="passes over the training rows")
        weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay, not on biases and norms")
        schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="learning rate after warm-up")
        group_by_length: bool = Field(False, description="batches of histories of like length, which are alike users")
        tau: float = Field(0.1, gt=0, description="temperature of all similarities")
        rationale_weight: float = Field(1.0, ge=0, description="a: weight of predicting the next item from a rationale")
        alignment_weight: float = Field(0.5, ge=0, description="b: weight of aligning users with their own rationales")
        negatives: Annotated[str, Field(pattern=r"^(in-batch|full|sampled:[1-9]\d*)$")] = Field(
            "in-batch", description="items that the next one is told from: in-batch, sampled:N besides those, or full"
        )
        selection: Literal["learned", "random"] = Field(
            "learned", description="which rationale of a row is trained on; random is the ablation"
        )
        random_epochs: float = Field(
            3.0, ge=0, description="passes with a random rationale before the learned selection"
        )
        ranks_with: Literal["nearest", "first"] = Field(
            "nearest", description="which rationale ranks: the nearest to the user; the first is the ablation"
        )
        mix: float | None = Field(
            None, ge=0, le=1, description="w: share of the rationale in the ranking; by the validation rows if unset"
        )
        mixes: list[Annotated[float, Field(ge=0, le=1)]] = Field(
            [0.0, 0.1, 0.2, 0.35, 0.5], min_length=1, description="what is tried for it, the first of equal ones wins"
        )

    options: Options
    batchwise = "it contrasts the users, rationales and next items of a batch"
    tiny_recipe = {"options": {"random_epochs": 0.5, "mix": 0.2}}

    def check(self, student: Any, teacher: Any) -> None:
        if getattr(student, "reads", None) is None or student.config["feature"]:
            raise CompatibilityError(
                "pulse needs a student with a space of rationales", hint="student: thought-space, items: both or text"
            )
        self.items = len(student.classes)

    def adapt(self, student: Any, teacher: Any) -> None:
        student.set(tau=self.options.tau, mix=0.0, nearest=self.options.ranks_with == "nearest")

    def rows(self, run: RunContext) -> Rows:
        if "rationales" not in (names := run.table("train").column_names):
            raise DataError(
                f"the training rows have no column 'rationales', only {', '.join(names)}",
                hint="data: {train: [rationales:DATA]} has a model or a template write them",
            )
        return super().rows(run)

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        return {"rationales": int(batch["written"].any(1).sum())} if "written" in batch else {"rationales": 0}

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Draws a rationale for each row, and the sampled negatives."""
        import torch

        made, kind = dict(batch), self.options.negatives.partition(":")
        if "written" in batch:
            chance = torch.rand(batch["written"].shape, generator=generator).to(batch["written"].device)
            made["drawn"] = chance.masked_fill(~batch["written"], -1).argmax(1)
        if kind[0] == "sampled":
            drawn = torch.randint(self.items, (int(kind[2]),), generator=generator)
            made["negatives"] = drawn.to(batch["labels"].device)
        return made

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_knowledge.items.network import selection

        o, labels, u, v = self.options, batch["labels"], student.user, student.item
        columns = self._columns(batch)
        terms = {"user-item": item_losses(u, v, labels, columns, o.tau).mean()}
        if "rationale" not in student:
            zero = u.sum() * 0
            return {**terms, "rationale-item": zero, "alignment": zero}
        learned = o.selection == "learned" and progress.epoch >= o.random_epochs
        given = {name: student[name].detach() for name in ("user", "item", "rationale")}
        best = selection(given, batch["written"], labels).argmax(1) if learned else batch["drawn"]
        some = batch["written"].any(1).nonzero()[:, 0]
        r, u, labels = student.rationale[some, best[some]], u[some], labels[some]
        many = step_count(batch, "rationales") or max(1, len(some))
        of_items = item_losses(r, v, labels, columns, o.tau).sum() / many
        aligned = alignment_losses(u, r, labels, o.tau).sum() / many
        return {**terms, "rationale-item": o.rationale_weight * of_items, "alignment": o.alignment_weight * aligned}

    def _columns(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The items that the next one is told from, in their order; None for all."""
        import torch

        if self.options.negatives == "full":
            return None
        return torch.cat([batch["labels"], *([batch["negatives"]] if "negatives" in batch else [])]).unique()

    def distill(self, run: RunContext) -> Any:
        """
        Raises:
            UsageError: the mix is to be chosen, and there are no validation rows.
        """
        o = self.options
        if o.mix is None and not run.has_rows("validation"):
            raise UsageError(
                "mix is chosen by validation rows, and the recipe has none (mix=None)",
                hint="data: {validation: [...]}, or options: {mix: 0.2}; 0 ranks by the user alone",
            )
        student = super().distill(run)
        student.set(mix=run.stage("mix", lambda: self._chosen(run, student)) if o.mix is None else o.mix)
        return student

    def _chosen(self, run: RunContext, student: Any) -> float:
        """The share with the best NDCG@10 of the validation rows."""
        from kdhub_knowledge.items.task import ranked

        rows, found = run.rows("validation"), {}
        examples = rows[np.arange(len(rows))]
        for mix in self.options.mixes:
            student.set(mix=mix)
            found[mix] = ndcg_10(ranked(student, examples))
        best = max(found, key=found.__getitem__)
        logger.info(
            "mix %g: NDCG@10 of the validation rows %s", best, {m: round(value, 4) for m, value in found.items()}
        )
        run.log(mix=best, validation={str(mix): value for mix, value in found.items()})
        return best


def item_losses(query: Tensor, items: Tensor, labels: Tensor, columns: Tensor | None, tau: float) -> Tensor:
    """-log softmax(query item / tau) of each row's next item: query (rows, dim), items (all, dim), labels (rows,) among
    the items `columns`, which are in order; among all if None."""
    import torch
    from torch.nn.functional import cross_entropy

    if columns is not None:
        items, labels = items[columns], torch.searchsorted(columns, labels)
    return cross_entropy(query.float() @ items.float().T / tau, labels, reduction="none")


def alignment_losses(users: Tensor, rationales: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Symmetric InfoNCE of each row, users and rationales (rows, dim): its own rationale among those of the batch, and
    its own user; rows of the same next item are no negatives of each other."""
    import torch
    from torch.nn.functional import cross_entropy

    near = users.float() @ rationales.float().T / tau
    same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    near, own = near.masked_fill(same, -torch.inf), torch.arange(len(labels), device=labels.device)
    return (cross_entropy(near, own, reduction="none") + cross_entropy(near.T, own, reduction="none")) / 2
