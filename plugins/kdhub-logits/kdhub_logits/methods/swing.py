"""Swing distillation: each token has its own temperature, higher the likelier it is private (arXiv:2212.08349).

    T_i = T_min + (T_max - T_min) rho_i^gamma        rho_i in [0, 1]: how likely the token to be predicted is private
    q_i = softmax(z_i / T_i), with noise             the teacher's target
    L   = mean of (1 - alpha) KL(q_i || softmax(s_i / T_s)) + alpha (1 - rho_i) CE(y_i, s_i)

The paper's text was not at hand beyond its abstract: temperature and noise by token are the paper's, formulas and
defaults are a reconstruction. Two points decide whether anything is protected. The student's temperature T_s is T_min,
and there is no factor T^2: softened like the teacher, the student would have its best at the teacher's own logits, and
would only reach them later. And the labels count less where the token is private, or they would tell what the targets
hide. Noise is drawn once for each text and place, whatever the epoch: drawn again it would average out. None of this is
a guarantee of differential privacy. The teacher runs inside training, so that nothing of it is stored before noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, labelled_in, positions_in
from pydantic import Field, model_validator

from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import ObjectiveMethod, Progress
from kdhub.recipes.recipe import TextRef

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher
    from kdhub_logits.privacy import Scorer

TOP = 32
"""Classes that Laplace noise is drawn for; the others share one."""
MARGIN = 3.0
"""Nats by which a teacher must know more than public texts tell, for a token to be as likely private as not."""


class Swing(ObjectiveMethod):
    """Soft targets that hide what is private."""

    class Options(ClassifierOptions):
        privacy_scorer: Literal["pattern", "tagger", "memorisation", "combined", "none"] = Field(
            "combined",
            description="what is private: by a pattern, by a tagger, by the teacher's memory (with public), or by all "
            "of these that are given",
        )
        pattern: str | None = Field(None, description="what is private; numbers and addresses if unset")
        tagger: TextRef | None = Field(
            None,
            description="a classifier of words; below `teacher`, with the role tagger, the card names it too",
        )
        public: str | None = Field(None, description="texts without secrets, as --data takes them, for memorisation")
        t_min: float = Field(1.0, gt=0, description="temperature where nothing is private")
        t_max: float = Field(20.0, gt=0, description="temperature where everything is private")
        gamma: float = Field(1.0, gt=0, description="exponent of the likelihood of being private")
        student_temperature: Annotated[float, Field(gt=0)] | Literal["teacher_only", "matched"] = Field(
            "teacher_only", description="teacher_only: t_min; matched: the teacher's, which protects nothing"
        )
        noise: Literal["gauss_logit", "laplace_prob", "none"] = Field("gauss_logit", description="noise on targets")
        sigma_base: float = Field(0.1, ge=0, description="deviation of the noise on logits everywhere")
        sigma_private: float = Field(1.0, ge=0, description="further deviation, times the likelihood of being private")
        eps: float | None = Field(None, gt=0, description="budget of a token with laplace_prob")
        alpha: float = Field(0.5, ge=0, le=1, description="weight of the labels")
        gate_hard: bool = Field(True, description="weight labels by 1 - likelihood")
        noise_redraw: bool = Field(False, description="draw the noise again each time, which averages it away")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.t_max < self.t_min:
                raise ValueError(f"t_max must be at least t_min (t_min={self.t_min:g}, t_max={self.t_max:g})")
            if self.noise == "laplace_prob" and self.eps is None:
                raise ValueError("eps must be set where noise is laplace_prob (eps=null)")
            return self

    options: Options
    _public: Any = None

    def settings(self) -> dict[str, Any]:
        return {"private": self._scorer} if self._scorer else {}

    @cached_property
    def _scorer(self) -> Scorer | None:
        """Of texts alone, before the teacher sees them."""
        from kdhub import open_teacher
        from kdhub_logits import privacy

        o, scorers, tagger = self.options, [], self.teachers.get("tagger")
        if tagger is None and o.tagger is not None:
            tagger = open_teacher(o.tagger, "token-classification")
        if tagger is None and o.privacy_scorer == "tagger":
            raise UsageError(
                "a teacher must have the role tagger where privacy_scorer is tagger",
                hint="teacher: {source: roles, teacher: SOURCE, tagger: SOURCE}",
            )
        if o.privacy_scorer in ("pattern", "combined"):
            scorers.append(privacy.by_pattern(o.pattern or privacy.PATTERN))
        if tagger is not None and o.privacy_scorer in ("tagger", "combined"):
            scorers.append(privacy.by_tagger(tagger))
        return privacy.any_of(scorers) if scorers else None

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        """Count the public texts.

        Raises:
            UsageError: the teacher's memory is to be judged, and no public texts are named.
            CompatibilityError: the student reads no tokens.
        """
        o = self.options
        if o.privacy_scorer == "memorisation" and o.public is None:
            raise UsageError(
                "memorisation is what a teacher knows beyond public texts", hint="--set public=DATA, or another scorer"
            )
        if o.public is None or o.privacy_scorer not in ("memorisation", "combined"):
            return
        tokenizer = getattr(student, "tokenizer", None)
        if tokenizer is None or student.task != "causal-lm":
            raise CompatibilityError("memorisation is judged for language models", hint="--set privacy_scorer=pattern")
        from kdhub import open_data
        from kdhub_logits.privacy import Ngrams

        data = open_data(o.public)
        texts = data.split(data.pick("train"))["text"]
        begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        ids = [[*begin, *row] for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
        self._public = Ngrams(ids, student.width("logits")[0])

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        import torch
        from kdhub_tasks.divergences import forward_kl
        from torch.nn.functional import cross_entropy

        o, labels, z = self.options, batch["labels"], teacher.logits.float()
        real = labels >= 0
        rho = self.likelihood(z, batch)
        t = temperature(rho, o.t_min, o.t_max, o.gamma)
        with torch.no_grad():
            target = self.noised(z / t.unsqueeze(-1), rho, batch, (progress.step + 1) * o.noise_redraw)
        if o.student_temperature == "matched":
            own = t.unsqueeze(-1)
        else:
            own = o.t_min if o.student_temperature == "teacher_only" else o.student_temperature
        apart = forward_kl(student.logits / own, target)
        each = cross_entropy(student.logits.float(), labels.clamp_min(0), reduction="none")
        each = each * (1 - rho) if o.gate_hard else each
        # A word without a label has a teacher all the same; a mean over labelled ones is what the labels' part is.
        terms = {"teacher": (1 - o.alpha) * apart.sum() / positions_in(batch)}
        if o.alpha:
            terms["labels"] = o.alpha * each.masked_fill(~real, 0).sum() / labelled_in(batch)
        return terms

    def likelihood(self, z: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """rho of each token: 1 - the product of what each scorer leaves."""
        import numpy as np
        import torch

        open_ = torch.ones(len(z), device=z.device)
        if "private" in batch:
            open_ = open_ * (1 - batch["private"].to(z.device))
        if self._public is not None:
            at = batch["labels"].clamp_min(0).unsqueeze(-1)
            known = torch.log_softmax(z, -1).gather(-1, at).squeeze(-1)
            public = torch.from_numpy(np.concatenate(self._of_labels(batch))).to(known)
            open_ = open_ * (1 - torch.sigmoid(known - public - MARGIN))
        return 1 - open_

    def _of_labels(self, batch: Mapping[str, Any]) -> list[np.ndarray]:
        """What public texts tell of the labels of each row, log-probabilities, wherever they stand: a response follows
        its prompt, and the assistant of a conversation speaks in several places."""
        from kdhub_tasks.language.packing import mask_of

        ids, sizes = batch["input_ids"], mask_of(batch).sum(-1).tolist()
        places = (batch["at"] % ids.shape[1] + 1).split(batch["counts"].tolist())
        rows = (row[:size] for row, size in zip(ids.tolist(), sizes))
        return [self._public.log_probabilities(row)[at.cpu().numpy()] for row, at in zip(rows, places)]

    def noised(self, logits: Tensor, rho: Tensor, batch: Mapping[str, Any], draw: int = 0) -> Tensor:
        """Logits of the target: noise of its own for each text and place, another one for each `draw`."""
        import torch

        o = self.options
        if o.noise == "none":
            return logits
        parts, start = [], 0
        for key, n in zip(batch["keys"].tolist(), batch["counts"].tolist()):
            generator = torch.Generator().manual_seed((key + draw) % 2**63)
            part = logits[start : start + n]
            if o.noise == "gauss_logit":
                drawn = torch.randn(part.shape, generator=generator).to(part)
                parts.append(part + (o.sigma_base + o.sigma_private * rho[start : start + n, None]) * drawn)
            else:
                parts.append(laplace(part, 2 / o.eps, generator))
            start += n
        return torch.cat(parts)


def temperature(rho: Tensor, t_min: float, t_max: float, gamma: float = 1.0) -> Tensor:
    """T_min + (T_max - T_min) rho^gamma."""
    return t_min + (t_max - t_min) * rho**gamma


def laplace(logits: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Logits of softmax(logits) with Laplace noise on the 32 largest probabilities and on the sum of the others."""
    import torch

    p = torch.softmax(logits, -1)
    top, at = p.topk(min(TOP, p.shape[-1]), -1)
    rest = (1 - top.sum(-1, keepdim=True)).clamp_min(0)
    groups = torch.cat([top, rest], -1)
    uniform = torch.rand(groups.shape, generator=generator).to(groups) - 0.5
    drawn = -scale * uniform.sign() * torch.log1p(-2 * uniform.abs())
    new = renormalised(groups + drawn)
    others = p.shape[-1] - top.shape[-1]
    out = (new[..., -1:] / max(1, others)).expand_as(p).clone()
    out = out.scatter(-1, at, new[..., :-1])
    return (out / out.sum(-1, keepdim=True)).log()


def renormalised(p: Tensor) -> Tensor:
    """Clipped at 1e-8 and made to sum to 1."""
    p = p.clamp_min(1e-8)
    return p / p.sum(-1, keepdim=True)
