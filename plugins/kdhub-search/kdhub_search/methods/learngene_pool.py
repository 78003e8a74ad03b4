"""Learngene Pool: many sizes from one deep transformer (arXiv:2312.05743), and SN-Net as its baseline.

    A  each anchor of the pool, all of n blocks, learns from the ancestor by `learngene`: the narrowest at three
       positions, the others at the end
    B  stitches from narrow to wide begin as the transposed maps of A, the mean over positions, with biases 0
       (`stitch_init: learned`); as least squares between features of 100 images (SN-Net); or at random
    C  all is trained on labels: each step one member, drawn uniformly, and the weights that it has

SN-Net is `terms: none, stitch_init: lstsq`: anchors from labels alone, stitches by least squares.

Departures. For the target of a stitch that enters at block 0 the authors' least squares take the last block's output
(an index of -1); here it is the embedding. Their soft targets in C are weighted by 100: not so here. For an ancestor of
another depth than 12 the positions follow the student's three formulas (reconstructed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from kdhub_tasks.losses import label_loss
from pydantic import Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.kept import keep, kept
from kdhub.method import ObjectiveMethod, Progress, RunContext
from kdhub.metric import Measure
from kdhub.ranks import barrier, device, rank
from kdhub_search.methods.learngene import InstanceOptions, Learngene, Where

if TYPE_CHECKING:
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

FOLDER = "instances"
"""In the run folder: weights of each anchor with its maps, as stage A left them."""
IMAGES = 100
"""Of which least squares are."""


class LearngenePool(ObjectiveMethod):
    """Anchors, stitches, paths."""

    class Options(InstanceOptions):
        lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW, of the pool")
        epochs: float = Field(50.0, gt=0, description="passes over the training rows by the pool")
        weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay, not on biases and norms")
        instance_epochs: float = Field(100.0, gt=0, description="passes by each anchor, before")
        instance_lr: float | None = Field(None, gt=0, description="peak learning rate of the anchors; lr if unset")
        narrow_where: Where = Field("front-end", description="blocks at which the narrowest anchor is compared")
        wide_where: Where = Field("end", description="blocks at which the others are")
        stitch_init: Literal["learned", "lstsq", "random"] = Field("learned", description="how stitches begin")
        pool_distill: Literal["none", "soft", "hard"] = Field(
            "none", description="also the teacher in the pool: its probabilities or its classes, by half"
        )

    options: Options
    tiny_recipe = {
        "student": {"source": "pool:patch=4,layers=2,heads=2", "widths": [4, 8]},
        "options": {"narrow_where": "end", "instance_epochs": 1},
    }

    def distill(self, run: RunContext) -> Student:
        pool = run.student
        if not hasattr(pool.module, "anchor_names"):
            raise CompatibilityError(
                "learngene-pool makes a pool of anchors, and the recipe names another student",
                hint="--student pool:patch=2,layers=3,heads=4, with widths: [16, 48]",
            )
        if self.options.stitch_init == "learned" and self.options.terms not in ("all", "logits+rep"):
            raise UsageError(
                f"stitch_init=learned needs the maps of blocks (terms={self.options.terms})",
                hint="--set terms=all, or --set stitch_init=lstsq",
            )
        for n, name in enumerate(pool.module.anchor_names):
            run.stage(f"instance {name}", lambda n=n, name=name: self._instance(run, pool, n, name))
        maps = [self._take(run.folder / FOLDER / f"{name}.safetensors", pool, n)
                for n, name in enumerate(pool.module.anchor_names)]  # fmt: skip
        self._stitch(run, pool, maps)
        run.stage("paths before", lambda: self._accuracies(run, pool))
        return run.fit(self, pool, "paths")

    # -- A: anchors -------------------------------------------------------------------------------------------

    def _instance(self, run: RunContext, pool: Student, n: int, name: str) -> None:
        """Train an anchor and write it with its maps."""
        method = self._learngene(n)
        student = run.fit(method, pool.cut(name), f"anchor {name}")
        state = {f"student.{key}": value for key, value in student.module.state_dict().items()}
        for key, extra in getattr(method, "modules", {}).items():
            state |= {f"{key}.{inner}": value for inner, value in extra.state_dict().items()}
        if rank() == 0:
            keep(state, run.folder / FOLDER / f"{name}.safetensors")
        barrier()  # the other ranks open it

    def _learngene(self, n: int) -> Learngene:
        from kdhub_search.families.spec import METHODS

        o = self.options
        known = {key: getattr(o, key) for key in InstanceOptions.model_fields}
        known |= {"epochs": o.instance_epochs, "lr": o.instance_lr or o.lr}
        known["where"] = o.wide_where if n else o.narrow_where
        return Learngene(Learngene.Options(**known), next(spec for spec in METHODS if spec.name == "learngene"))

    @staticmethod
    def _take(file: Path, pool: Student, n: int) -> Tensor | None:
        """Put a trained anchor into the pool; the mean over positions of its maps (D_S, D_T), None without any."""
        import torch

        state = kept(file)
        own = {k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")}
        pool.module.anchors[n].load_state_dict(own)
        maps = [value for key, value in sorted(state.items()) if key.startswith("rep-") and key.endswith(".weight")]
        return torch.stack(maps).mean(0) if maps else None

    # -- B: stitches ------------------------------------------------------------------------------------------

    def _stitch(self, run: RunContext, pool: Student, maps: Sequence[Tensor | None]) -> None:
        """Set how the stitches begin."""
        import torch

        from kdhub_search.families.stitching import learned

        if self.options.stitch_init == "random":
            return
        module = pool.module
        with torch.no_grad():
            if self.options.stitch_init == "lstsq":
                self._solve(run, pool)
                return
            for path in module.paths.values():
                if maps[-1].shape[0] != maps[-1].shape[1]:
                    raise CompatibilityError(
                        f"learned stitches lead to the teacher's width (widths={module.widths}, "
                        f"teacher={maps[-1].shape[1]})",
                        hint="make the last width the teacher's, or --set stitch_init=lstsq",
                    )
                layer = module.stitch(path)
                layer.weight.copy_(learned(maps, path.front, path.end))
                layer.bias.zero_()

    def _solve(self, run: RunContext, pool: Student) -> None:
        """Each stitch layer the mean of the least squares of the pairs that share it."""
        import torch

        from kdhub_search.families.stitching import least_squares

        rows, module = run.rows("train"), pool.module.to(device()).eval()
        some = np.random.default_rng([run.seed, 1]).permutation(len(rows))[:IMAGES]
        inputs = {"x": pool.collate(rows[np.sort(some)])["x"].to(device())}
        states = []
        for anchor in module.anchors:  # before the first block, and after each
            states.append([anchor.embedded(inputs)])
            for block in anchor.layers.layers:
                states[-1].append(block(states[-1][-1]))
        solved: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for path in module.paths.values():
            before, after = states[path.front][path.leave + 1], states[path.end][path.enter]
            solved.setdefault(module.stitch(path), []).append(least_squares(before.flatten(0, 1), after.flatten(0, 1)))
        for layer, found in solved.items():
            for parameter, values in zip((layer.weight, layer.bias), zip(*found)):
                parameter.copy_(torch.stack(values).mean(0))

    # -- C: the pool ------------------------------------------------------------------------------------------

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return () if self.options.pool_distill == "none" else ("logits",)

    def members(self, student: Student, rng: np.random.Generator) -> Sequence[str]:
        """One of them, each as likely as any other."""
        names = list(student.members)
        return [names[rng.integers(len(names))]]

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        from torch.nn.functional import cross_entropy

        how = self.options.pool_distill
        if how == "none":
            return {"labels": label_loss(student.logits, batch)}
        targets = teacher.logits.float().softmax(-1) if how == "soft" else teacher.logits.argmax(-1)
        apart = cross_entropy(student.logits.float(), targets)
        return {"labels": 0.5 * label_loss(student.logits, batch), "teacher": 0.5 * apart}

    # -- what is told -----------------------------------------------------------------------------------------

    def _accuracies(self, run: RunContext, pool: Student) -> dict[str, float]:
        """Of each member, on validation rows where the recipe has some."""
        if not run.has_rows("validation"):
            return {}
        rows = run.rows("validation")
        examples = rows[np.arange(len(rows))]
        labels, found = np.array([e["label"] for e in examples]), {}
        for name in pool.members:
            pool.choose(name)
            found[name] = float((pool.signals(examples, "logits")["logits"].argmax(1) == labels).mean())
        pool.choose(None)
        return found

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also accuracies on validation rows, before the pool was trained and after: the mean over members, and that of
        each anchor, which is drawn as seldom as any other member."""
        report = run.evaluate(student)
        before = run.stage("paths before", lambda: self._accuracies(run, student))
        for subject, each in (("student-before", before), ("student", self._accuracies(run, student))):
            told = {"path-mean": float(np.mean([*each.values()]))} if each else {}
            told |= {f"anchor-{name}": each[name] for name in student.module.anchor_names if each}
            known = {"subject": subject, "dataset": "validation rows"}
            report.measures += [Measure(metric=metric, value=value, **known) for metric, value in told.items()]
        return report
