"""AutoDistil: students of many sizes from one training without labels (arXiv:2201.12507, NeurIPS 2022).

Each sub-space of a family of nested slices (`kdhub_search.families.nested`) has a weight-sharing network, which begins
as slices of the teacher. One after the other is trained by the sandwich rule: in each step the largest member, the
smallest and `n_random` others, drawn from the seed and the step, so alike on all ranks. The loss is of relations
(section 3.2, eq. 3 to 5): for queries, keys and values of the last layers, the mean over the teacher's relation heads
and over pairs of tokens of (softmax(T T^T / sqrt(d_T)) - softmax(S S^T / sqrt(d_S)))^2.

Then all members are run on held-out rows. The search `agnostic` takes the least loss within the budget; `proxy`
fine-tunes the best of these by a recipe and takes the best score.

Departures and reconstruction. Padding is no part of the mean (it is in the authors' code). The loss is the mean over
the members of a step, not their sum: AdamW takes the same steps, up to its epsilon, but `grad_clip` is of the mean.
Texts are read as they are, nothing masked (reconstructed). `relation_space: raw` is the authors' code without its mask
of -10000, as padded pairs are left out. Weights that no member of a step has are put back after it: momentum and decay
would move them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.families import MEMBER
from kdhub.files import write_json
from kdhub.method import ObjectiveMethod, Progress, RunContext, TrainingOptions, step_count
from kdhub.metric import Measure
from kdhub.named_layers import Taps
from kdhub.ranks import barrier, device, of_first, rank
from kdhub.specs import MAIN

if TYPE_CHECKING:
    import torch

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher
    from kdhub_search.families.relations import LastAttention

LOSS, HELD_OUT = "relation-loss", "validation rows"
ALIKE = "all alike"
"""Among the losses of members: that of a network to which all tokens of a row are alike. A loss falls to it by
forgetting alone, and below it only by learning from the teacher."""
BATCH = 32
"""Held-out rows that are run together."""


class AutoDistil(ObjectiveMethod):
    """Nested slices, the sandwich rule, relations, a search within a budget."""

    class Options(TrainingOptions):
        lr: float = Field(4e-5, gt=0, description="peak learning rate of AdamW")
        batch_size: int = Field(128, ge=1, description="rows of one optimiser step")
        epochs: float = Field(10.0, gt=0, description="passes over the training rows, for each sub-space")
        warmup: float = Field(0.06, ge=0, le=1, description="share of the steps with rising learning rate")
        n_random: int = Field(2, ge=0, le=8, description="members of a step besides the smallest and the largest")
        relation_heads: int | None = Field(None, ge=1, description="relation heads; those of the teacher if unset")
        relation_space: Literal["softmax", "raw"] = Field(
            "softmax", description="relations after a softmax (the paper), or plain products (the code)"
        )
        relations: list[Literal["queries", "keys", "values"]] = Field(
            ["queries", "keys", "values"], min_length=1, description="of which relations are learned"
        )
        search: Literal["agnostic", "proxy"] = Field(
            "agnostic", description="the member with the least held-out loss, or with the best score of `proxy`"
        )
        max_flops: float | None = Field(
            0.5, gt=0, description="budget: FLOPs of a row as a share of the teacher's up to 1, else their number"
        )
        max_params: int | None = Field(None, ge=1, description="budget: parameters, as counted")
        proxy: str | dict[str, Any] | None = Field(
            None, description="a recipe by which candidates of search=proxy are fine-tuned and scored"
        )
        candidates: int = Field(4, ge=1, description="members that search=proxy fine-tunes, by held-out loss")
        max_length: int | None = Field(128, ge=4, description="tokens of a text at most")

    options: Options
    tiny_recipe = {
        "student": {
            "source": "nested",
            "spaces": {"tiny": {"layers": [1], "hidden": [4, 8], "ratio": [1, 2], "heads": [1]}},
        },
        "data": {"validation": []},
        "options": {"max_flops": None, "n_random": 1},
    }
    space = ""
    """The sub-space that is trained."""
    _others: Sequence[Any] = ()

    def settings(self) -> dict[str, Any]:
        return {"max_length": self.options.max_length}

    def needs_of(self, role: str, teacher: Teacher) -> tuple[str, ...]:
        return _attention(teacher).kinds

    def check(self, student: Student, teacher: Teacher | None) -> None:
        from kdhub_search.families.nested import Nested

        if not isinstance(student.module, Nested):
            raise CompatibilityError(
                "autodistil trains nested slices, and the recipe names another student",
                hint="student: {source: nested, spaces: {NAME: {layers: [...], hidden: [...], ratio: [...], heads: "
                "[...]}}}",
            )
        of = _attention(teacher)
        heads = self.options.relation_heads or of.heads
        if of.width % heads:
            raise UsageError(f"relation_heads must divide the teacher's width of attention (relation_heads={heads}, "
                             f"width={of.width})")  # fmt: skip
        narrowest = min(size.heads for size in student.module.sizes.values()) * student.module.axes.head_dim
        if narrowest < heads:
            raise UsageError(
                f"relation_heads must be at most the width of every member's attention (relation_heads={heads}, "
                f"width={narrowest})", hint="fewer relation heads, or more heads in the sub-space",
            )  # fmt: skip

    def members(self, student: Student, rng: np.random.Generator) -> Sequence[str]:
        names = student.module.spaces[self.space]
        drawn = sorted(rng.permutation(max(0, len(names) - 2))[: self.options.n_random] + 1)
        chosen = [*names[:1], *(names[i] for i in drawn), *names[1:][-1:]]
        self._module, self._others = student.module, student.module.others(chosen)
        return chosen

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        self._module.put_back(self._others)

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Texts without masked tokens. No token is to be predicted, which would be most of the work."""
        if "original" not in batch:
            return batch
        return {**batch, "input_ids": batch["original"], "at": batch["at"][:0]}

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> Mapping[str, int]:
        from kdhub_search.families.relations import pairs

        return {"pairs": pairs(batch["attention_mask"])} if "attention_mask" in batch else {}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> Mapping[str, torch.Tensor]:
        return self._losses(student, teacher, batch, _attention(self.teachers[MAIN]))

    def _losses(
        self, student: Mapping[str, torch.Tensor], teacher: Signals, batch: Mapping[str, Any], of: LastAttention
    ) -> dict[str, torch.Tensor]:
        """Of each relation, the mean over heads and pairs of positions."""
        from kdhub_search.families.relations import RELATED, by_rows, difference, pairs, relations

        mask, o = batch.get("attention_mask"), self.options
        how = o.relation_heads or of.heads, mask, o.relation_space
        if "relations" not in teacher:  # once for all members of a step
            given = dict(zip(RELATED, of.of(teacher)))
            teacher["relations"] = {name: relations(by_rows(given[name], mask), *how) for name in o.relations}
        terms = {}
        for name, target in teacher["relations"].items():
            own = by_rows(student[name], mask)
            many = own.shape[0] * own.shape[1] ** 2 if mask is None else step_count(batch, "pairs") or pairs(mask)
            terms[name] = difference(relations(own, *how), target, mask) / many
        return terms

    # -- all sub-spaces, and the search -----------------------------------------------------------------------

    def distill(self, run: RunContext) -> Student:
        student, module = run.student, run.student.module
        self.check(student, run.teacher)
        if self.options.search == "proxy" and not (self.options.proxy and run.has_rows("validation")):
            raise UsageError(
                "search=proxy needs a recipe that fine-tunes candidates, and rows to choose them by "
                f"(proxy={self.options.proxy})", hint="--set proxy=RECIPE, and data: {validation: [...]}",
            )  # fmt: skip
        fitting = self._fitting(run, student)
        before = {space: self._held_out(run, student, space, "before") for space in module.spaces}
        for self.space in module.spaces:
            student = run.fit(self, student, f"sub-space {self.space}")
        after = {space: self._held_out(run, student, space, "after") for space in module.spaces}
        if not run.has_rows("validation"):
            return student
        losses = {name: loss for each in after.values() for name, loss in each.items()}
        order = sorted((name for name in student.members if name in fitting), key=losses.get)
        scores = self._proxy(run, student, order[: self.options.candidates])
        chosen = max(scores, key=scores.get) if scores else order[0]
        student.module.best = student.config["best"] = chosen  # it stands for the whole from here on
        if rank() == 0:
            each = {n: {**fitting_costs, "loss": losses[n]} for n, fitting_costs in self._costs(run, student).items()}
            best = {space: next((n for n in order if n in of), None) for space, of in module.spaces.items()}
            write_json(run.folder / "search.json", {
                "chosen": chosen, "best_of_each_sub_space": best, "within_budget": order, "scores": scores,
                "members": each, "loss_before": {s: {n: of[n] for n in module.spaces[s]} for s, of in before.items()},
                "loss_all_alike": losses[ALIKE],
            })  # fmt: skip
        return student

    def _costs(self, run: RunContext, student: Student) -> dict[str, dict[str, float]]:
        """What each member costs, counted, with what the authors' formula says beside it."""
        import kdhub
        from kdhub_search.families.nested import formula

        def count() -> dict[str, dict[str, float]]:
            row, found = dict(run.table("train")[0]), {}
            for name, size in student.module.sizes.items():
                found[name] = dict(kdhub.count_costs(student.cut(name), row, task=run.task))
                vocabulary = getattr(student, "tokenizer", None)
                if vocabulary is not None:
                    found[name]["formula"] = formula(size, len(vocabulary), student.max_length)
            return found

        return run.stage("member costs", count)

    def _fitting(self, run: RunContext, student: Student) -> list[str]:
        """The members within the budget.

        Raises:
            UsageError: there is none; says which is the smallest.
        """
        import kdhub

        o, costs = self.options, self._costs(run, student)
        limits: dict[str, float] = {"parameters": o.max_params} if o.max_params else {}
        if o.max_flops is not None:
            row = dict(run.table("train")[0])
            whole = run.stage(
                "teacher flops", lambda: kdhub.count_costs(run.teacher.model, row, task=run.task).get("flops", 0)
            )
            limits["flops"] = o.max_flops * whole if o.max_flops <= 1 else o.max_flops
        fitting = [n for n, c in costs.items() if all(c.get(what, 0) <= most for what, most in limits.items())]
        if not fitting:
            least = {what: min(costs, key=lambda n, what=what: costs[n][what]) for what in limits}
            told = "; ".join(
                f"{what} of at most {most:,.0f}: the least is {costs[least[what]][what]:,}, of {least[what]}"
                for what, most in limits.items()
            )
            raise UsageError(
                f"no member of the family is within the budget: {told}",
                hint="a larger max_flops or max_params, or smaller sub-spaces",
            )
        return fitting

    def _held_out(self, run: RunContext, student: Student, space: str, when: str) -> dict[str, float]:
        """The loss of each member of a sub-space on held-out rows, in eval mode, and `ALIKE`; {} without any."""
        import torch

        from kdhub.rows import Signals
        from kdhub_search.families.relations import RELATED, pairs

        if not run.has_rows("validation"):
            return {}

        def measure() -> dict[str, float]:
            rows, names = run.rows("validation", **self.settings()), student.module.spaces[space]
            of, network, total = _attention(run.teacher), run.teacher.module.to(device()), 0
            taps, where, sums = Taps(network, of.kinds), device(), np.zeros(len(names) + 1)
            student.module.to(where).eval()
            with torch.no_grad():
                for start in range(0, len(rows), BATCH):
                    examples = rows[np.arange(start, min(start + BATCH, len(rows)))]
                    batch = {k: v.to(where) for k, v in run.task.collate(examples, student).items()}
                    batch = self.prepare_batch(batch, torch.Generator())
                    with taps.reading():
                        run.task.forward(network, batch)
                    teacher = Signals(taps.signals(batch))
                    many = pairs(batch["attention_mask"]) if "attention_mask" in batch else len(examples)
                    for n, name in enumerate(names):
                        student.choose(name)
                        terms = self._losses(run.task.forward(student.module, batch), teacher, batch, of)
                        sums[n] += many * float(sum(terms.values()))
                    blind = {name: torch.zeros_like(given) for name, given in zip(RELATED, of.of(teacher))}
                    sums[-1] += many * float(sum(self._losses(blind, teacher, batch, of).values()))
                    total += many
            student.choose(None)
            return dict(zip((*names, ALIKE), (sums / total).tolist()))

        return run.stage(f"losses {when} {space}", measure)

    def _proxy(self, run: RunContext, student: Student, names: Sequence[str]) -> dict[str, float]:
        """The score of each candidate after it was fine-tuned; {} for a search that needs none."""
        import kdhub

        def score(name: str) -> float:
            out = run.folder / "candidates" / name
            start = out.with_name(f"{name}-start")
            if (out / "recipe.yaml").is_file():  # stopped in the midst of it
                report = kdhub.distill(resume=out).report
            else:
                if rank() == 0:
                    start.mkdir(parents=True, exist_ok=True)
                    student.cut(name).save(start)
                barrier()
                report = kdhub.distill(self.options.proxy, out=out, student=f"path:{start}").report
            if rank() != 0:  # a run is measured by the first alone
                return of_first(0.0)
            primary = set((report["facts"].get("primary") or {}).values())
            own = [m for m in report["measures"] if m["subject"] == "student" and m["metric"] in primary]
            return of_first(own[0]["value"] * (1 if own[0].get("higher_is_better", True) else -1))

        if self.options.search == "agnostic":
            return {}
        return {name: run.stage(f"score {name}", lambda name=name: score(name)) for name in names}

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also each member's loss on held-out rows, in thousandths, before training and after; and which loss says that
        nothing of the teacher was learned."""
        report = run.evaluate(student)
        for when, subject in (("before", "student-before"), ("after", "student")):
            for space in student.module.spaces:
                losses = self._held_out(run, student, space, when)
                alike = losses.pop(ALIKE, None)
                for name, value in losses.items():
                    known = {"dataset": HELD_OUT, "higher_is_better": False, "unit": "e-3", "subject": subject}
                    for variant in [{MEMBER: name}, *([{}] if name == student.module.chosen else [])]:
                        report.measures.append(Measure(metric=LOSS, value=1000 * value, variant=variant, **known))
        if alike is not None:
            report.notes.append(
                f"a network to which all tokens of a row are alike would have a relation-loss of {1000 * alike:.3g} "
                "e-3: a member above it, or hardly below, has learned little of the teacher's relations"
            )
        return report


def _attention(teacher: Any) -> LastAttention:
    from kdhub_search.families.relations import last_attention

    return last_attention(teacher.module)
