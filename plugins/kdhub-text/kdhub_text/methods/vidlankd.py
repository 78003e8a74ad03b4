"""VidLanKD: what a language model learns from a teacher that saw video (arXiv:2107.02681).

Stage 1 is the method `vidlankd-teacher`. Stage 2, here, trains a student on text alone, by masked language modelling
and by the teacher's last states of the same masked tokens. With t the teacher's unit states and s = unit(Linear
LayerNorm GELU Linear (student's states)), a head for each objective that is thrown away at the end:

    L = CE_MLM + kd_weight sum of objectives

* `nst` (the released default): neurons as unit vectors over the tokens of a text, k(a, b) = (a b)^2:
  mean k(s, s') - 2 mean k(s, t) + mean k(t, t'), a squared MMD. The released code drops the last, a constant, sums over
  the batch, divides by the length and includes padding. `reduction: code` does all but the last: models give no states
  of padding here.
* `crd`: the paper's contrast of a token's two states against a queue of the teacher's earlier ones. It is not in the
  released code; this form (InfoNCE, temperature .07, 4096 in the queue) is ours. The queue also has states of the same
  words.
* `ntxent` (released): at each position NT-Xent over the texts of a batch that reach it, temperature 1; `reduction:
  code` divides by 2B once more.
* `soft_label`: KL of the masked tokens' probabilities, times the temperature's square. `l2`: squared distance of s, t.

The labels, `soft_label`, `l2` and, as means, `nst` are the same however a step is cut into micro-batches. The contrasts
are not: `ntxent` is among the texts of one, the queue of `crd` moves on with each, and `reduction: code` divides by its
longest text.

The paper's tables could not be read. Departures: schedules and Adam's eps (1e-8, not 1e-6) are the engine's; the
student has no dropout unless `dropout` is set; the teacher's is off, as in the code; nst takes all neurons, also of
wide models; there are no hard labels (vokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from kdhub.errors import CompatibilityError, DataError
from kdhub.method import ObjectiveMethod, Progress, RunContext, TrainingOptions
from kdhub.recipes.recipe import DataRef
from kdhub_text.token_losses import crd_loss, head, masked_loss, nst_loss, ntxent_loss, padded_states, queue
from kdhub_text.word_pictures import picture_probe, pictures_of, rsa, span_of, word_states

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

Objective = Literal["nst", "crd", "ntxent", "soft_label", "l2"]
DIRECT = ("crd", "ntxent", "l2")
"""Objectives that compare the student's states with the teacher's number by number."""


class VidLanKd(ObjectiveMethod):
    """Masked language modelling, and the states of a teacher that saw video (arXiv:2107.02681)."""

    class Options(TrainingOptions):
        lr: float = Field(2e-4, gt=0, description="peak learning rate of AdamW")
        objectives: tuple[Objective, ...] = Field(
            ("nst",), description="what is learned from the teacher; none is a control"
        )
        mlm_prob: float = Field(0.15, gt=0, lt=1, description="share of the tokens that is masked")
        kd_weight: float = Field(1.0, ge=0, description="weight of their sum")
        head: bool = Field(True, description="map the student's states by a head, one for each objective")
        ntxent_temperature: float = Field(1.0, gt=0, description="temperature of ntxent")
        crd_temperature: float = Field(0.07, gt=0, description="temperature of crd")
        crd_queue: int = Field(4096, ge=1, description="earlier states of the teacher that crd contrasts with")
        soft_label_temperature: float = Field(2.0, gt=0, description="temperature of soft_label")
        reduction: Literal["mean", "code"] = Field(
            "mean", description="nst and ntxent as means, or as the released code"
        )
        pictures: Annotated[
            DataRef | None, Field(description="sentences, a `word` in each and its `picture`, for evaluation")
        ] = None

    options: Options
    # nst alone cannot tell a teacher from one whose weights all have the other sign.
    tiny_recipe = {"options": {"objectives": ["nst", "soft_label"]}}

    def settings(self) -> dict[str, Any]:
        return {"mlm_prob": self.options.mlm_prob}

    @property
    def batchwise(self) -> str:
        of = {"ntxent", "crd"} | ({"nst"} if self.options.reduction == "code" else set())
        found = [name for name in self.options.objectives if name in of]
        return f"{' and '.join(found)} compare the texts of a batch" if found else ""

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """Whether the pictures, which are needed only after training, can be used.

        Raises:
            DataError: a column is missing, or a word is not in its text.
        """
        if self.options.pictures is None:
            return
        data, split = pictures_of(self.options.pictures)
        for n, row in enumerate(data.split(split).select_columns(["text", "word"]), 1):
            if span_of(row["word"], row["text"]) is None:
                what = f"{row['word']!r} is not in {row['text']!r}"
                raise DataError(f"pictures: {data.name}, split {split!r}: row {n}: {what}", rows=[n])

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        """A head for each objective, and the queue of crd.

        Raises:
            CompatibilityError: states of different widths would be compared without heads.
        """
        from torch import nn

        o = self.options
        mine, theirs = student.width("hidden_states")[-1], teacher.layout("hidden_states")["hidden_states"][-1]
        compared = [name for name in o.objectives if name != "soft_label"]
        if not o.head and mine != theirs and set(compared) & set(DIRECT):
            raise CompatibilityError(
                f"the student's states have {mine} dimensions, the teacher's {theirs}",
                hint="head: true maps them; nst alone compares any two widths",
            )
        made: dict[str, nn.Module] = {}
        if o.head and compared:
            made["heads"] = nn.ModuleDict({n: head(mine, theirs if n in DIRECT else mine) for n in compared})
        if "crd" in o.objectives:
            made["queue"] = queue(o.crd_queue, theirs)
        return made

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.losses import tokens_in
        from torch.nn.functional import normalize

        o, terms = self.options, {"labels": masked_loss(student, batch)}
        wanted = [name for name in o.objectives if o.kd_weight]
        if set(wanted) - {"soft_label"}:
            mask = batch["attention_mask"]
            states, real = padded_states(student, mask)
            target, _ = padded_states(teacher, mask)
            t = normalize(target.float(), dim=-1)
            tokens = tokens_in(batch, int(real.sum()))
        for name in wanted:
            if name == "soft_label":
                terms[name] = o.kd_weight * self._soft_labels(student, teacher, batch)
                continue
            s = normalize(self.modules["heads"][name](states) if o.head else states, dim=-1)
            if name == "nst":
                value = nst_loss(s, t, real, o.reduction)
            elif name == "ntxent":
                value = ntxent_loss(s, t, real, o.ntxent_temperature, o.reduction)
            elif name == "crd":
                memory = self.modules["queue"]
                value = crd_loss(s[real], t[real], memory.held(), o.crd_temperature, tokens)
                memory.put(t[real])
            else:
                value = (s[real] - t[real]).square().sum() / tokens
            terms[name] = o.kd_weight * value
        return terms

    def _soft_labels(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        from kdhub_tasks.divergences import forward_kl
        from kdhub_tasks.losses import labelled_in

        t = self.options.soft_label_temperature
        of = batch["labels"] >= 0
        mine, theirs = student.logits[of] / t, teacher.logits.float()[of] / t
        return t * t * forward_kl(mine, theirs).sum() / labelled_in(batch)

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also, for teacher and student, whether words with similar pictures are similar (`rsa`), and how well a word's
        picture can be predicted from its state (`picture-probe`)."""
        from kdhub.evaluation.report import Measure

        report, o = run.evaluate(student), self.options
        if o.pictures is None:
            return report
        data, split = pictures_of(o.pictures)
        rows = list(data.split(split))
        for subject, model in (("teacher", run.teacher.model), ("student", student)):
            states, pictures = word_states(model, rows)
            for name, value in (("rsa", rsa(states, pictures)), ("picture-probe", picture_probe(states, pictures))):
                report.measures.append(
                    Measure(
                        metric=name, value=value, subject=subject, dataset=data.name, split=split, examples=len(states)
                    )
                )  # fmt: skip
        return report
