"""One student from several teachers, as the Romanian BERTs were made (arXiv:2112.12650).

    L = a_ce L_ce + a_mlm L_labels + a_cos L_cos

DistilBERT's three terms, over real tokens, masked tokens and real tokens again. With p_t, h_t of teacher t at
temperature tau and weights w_t that sum to 1:

    avg_loss     L_ce = tau^2 mean sum_t w_t KL(p_t || p_S)
    avg_prob     L_ce = tau^2 mean KL(sum_t w_t p_t || p_S), which has the same gradient: they differ by the teachers'
                 own Jensen-Shannon divergence, a constant
    avg_logit    L_ce = tau^2 mean KL(softmax(sum_t w_t z_t / tau) || p_S)

    L_cos = mean sum_t w_t (1 - cos(h_S, h_t)),   h the last states; never of averaged states

Teachers with another vocabulary read the same text, with the same characters masked, in their own tokens (`bridge`):
states are compared word by word (averaged over a word's tokens), and probabilities where a token has exactly the same
characters in both, between shared tokens, each side normalised to sum to 1. A position is left out where the teacher
gives the shared tokens less than half of its probability. The report says for how much of the text they were compared
(coverage).

In classification p are the probabilities of classes, and labels are those of the rows; for values the target is the
weighted mean, and L_ce its squared error. There a_cos is 0 unless it is set.

The paper's body, and how it bridged its two vocabularies, could not be read. The weights of the terms are DistilBERT's.
Ours are the bridge, `confidence`, and where the modes apply: teachers with the student's vocabulary form one group that
the mode averages; each bridged teacher has a KL of its own, the mean over what was compared in an optimiser step.
DistilBERT has no token types and no pooler; a student of BERT's shape keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_tasks.losses import label_losses, labelled_in, positions_in, tokens_in
from pydantic import Field

from kdhub.errors import TeacherError, UsageError
from kdhub.method import ObjectiveMethod, Progress, RunContext, TrainingOptions, step_count
from kdhub_text.bridge import Bridge, by_word, shared_words

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class MultiTeacher(ObjectiveMethod):
    """DistilBERT's three terms from one teacher or several (arXiv:2112.12650)."""

    class Options(TrainingOptions):
        lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
        epochs: float = Field(3.0, gt=0, description="passes over the training rows")
        warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with rising learning rate")
        mode: Literal["avg_loss", "avg_prob", "avg_logit"] = Field("avg_loss", description="what is averaged")
        weights: Literal["uniform", "confidence"] | tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
            None, description="weights of the teachers: equal, by inverse entropy, or these; the ensemble's if unset"
        )
        tau: float = Field(2.0, ge=1, description="temperature of the soft targets")
        a_ce: float = Field(5.0, ge=0, description="weight of the soft targets")
        a_mlm: float = Field(2.0, ge=0, description="weight of the labels: masked tokens, or those of rows")
        a_cos: float | None = Field(None, ge=0, description="weight of the states; 1 in fill-mask, else 0, if unset")
        mlm_prob: float = Field(0.15, gt=0, lt=1, description="fill-mask: share of the tokens that is masked")
        positions: Literal["all", "masked"] = Field("all", description="fill-mask: tokens of the soft targets")
        vocab_bridge: Literal["auto", "strict", "off"] = Field(
            "auto", description="other vocabularies: compared by words and characters, by characters alone, or refused"
        )

    options: Options
    tiny_recipe = {"options": {"epochs": 1.0}}

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self._masked = False
        self._seen: dict[int, list[float]] = {}  # bridged teacher -> tokens compared, tokens

    # -- what it learns from ----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Settings of fill-mask; other tasks ignore them."""
        o = self.options
        return {"mlm_prob": o.mlm_prob, "whole": o.positions == "all", "bridge": o.vocab_bridge != "off"}

    @property
    def _cosine(self) -> float:
        given = self.options.a_cos
        return float(self._masked) if given is None else given

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        from kdhub_tasks.ensemble import EACH, LAST, own_kind

        several = EACH if teacher.members else ""
        self._masked = _of_tokens(teacher)
        kinds = ["logits"]
        if self._cosine:
            kinds.append(LAST if several else own_kind(teacher, LAST))
        if self._masked and self.options.positions == "all":
            kinds.append("spans")
        return tuple(several + kind for kind in kinds)

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """The weights of the teachers, and which of them have another vocabulary.

        Raises:
            UsageError: weights that are not one for each teacher, or all 0; another vocabulary, and signals of the
                masked tokens alone.
        """
        from kdhub_tasks.ensemble import shares

        o, teachers = self.options, teacher.members or [teacher]
        self._masked = _of_tokens(teacher)
        given = getattr(teacher, "weights", None) if o.weights is None else o.weights
        try:
            self._weights = shares(None if isinstance(given, str) else given, len(teachers))
        except TeacherError as error:
            raise UsageError(error.message, hint=error.hint) from None
        self._bridges: dict[int, Bridge] = {}
        if self._masked:
            for n, one in enumerate(teachers):
                if one.vocabulary == student.vocabulary:
                    continue
                if o.positions != "all":
                    raise UsageError(
                        f"positions must be all, as teacher {n + 1} and the student use different vocabularies "
                        f"(positions={o.positions})"
                    )
                self._bridges[n] = Bridge.between(student.tokenizer, one.tokenizer)

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        """Maps of the student's states to the width of teachers that have another one."""
        from torch import nn

        o, teachers, made = self.options, teacher.members or [teacher], {}
        for n, one in enumerate(teachers if self._cosine else ()):
            mine, theirs = student.width("hidden_states")[-1], one.layout("hidden_states")["hidden_states"][-1]
            if mine != theirs and not (n in self._bridges and o.vocab_bridge == "strict"):
                made[f"width-{n}"] = nn.Linear(mine, theirs)
        return made

    # -- the loss ---------------------------------------------------------------------------------------------

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        """For each bridged teacher the `tokens-N` and `words-N` that are compared."""
        from kdhub_tasks.ensemble import each

        found = {}
        for n, bridge in self._bridges.items():
            mine, given = batch["spans"], each(teacher)[n]
            found[f"tokens-{n}"] = len(bridge.compared(mine, given.logits, given.spans)[0])
            found[f"words-{n}"] = shared_words(mine, given.spans)
        return found

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.ensemble import each
        from kdhub_tasks.positions import over_positions

        o, given, labelled = self.options, each(teacher), labelled_in(batch)
        near = [n for n in range(len(given)) if n not in self._bridges]
        share = [self._weights[n] for n in near]

        def sums(s: Tensor, _: None, y: Tensor, *zs: Tensor) -> dict[str, Tensor]:
            terms = {"labels": o.a_mlm * label_losses(s, y).sum() / labelled}
            if zs and s.shape[-1] == 1:  # values, of which no teacher is bridged: the weights sum to 1
                target = sum(w * z.float() for w, z in zip(share, zs))
                terms["teacher"] = o.a_ce * (s.float() - target).square().sum() / positions_in(batch)
            elif zs:
                w = confidence(zs, sum(share)) if o.weights == "confidence" else share
                apart = divergence(s, zs, w, o.mode, o.tau)
                terms["teacher"] = o.a_ce * o.tau**2 * apart.sum() / positions_in(batch)
            return terms

        terms = over_positions(sums, student, {}, batch["labels"], *(given[n].logits for n in near))
        for n, bridge in self._bridges.items():
            apart, many = bridge.divergence(student.logits, batch["spans"], given[n].logits, given[n].spans, o.tau)
            seen = self._seen.setdefault(n, [0.0, 0.0])
            seen[0], seen[1] = seen[0] + many, seen[1] + float((batch["spans"][:, 3] >= 0).sum())
            value = o.a_ce * self._weights[n] * o.tau**2 * apart / (step_count(batch, f"tokens-{n}") or max(1, many))
            terms["teacher"] = terms["teacher"] + value if "teacher" in terms else value
        if self._cosine:
            terms["cosine"] = self._cosine * self._states(student, given, batch)
        return terms

    def _states(self, student: Signals, given: Sequence[Signals], batch: Mapping[str, Any]) -> Tensor:
        from kdhub_text.methods.efficient_attention import cosine_loss

        mine, total = student["hidden_states"][:, -1], 0.0
        for n, one in enumerate(given):
            if n in self._bridges and self.options.vocab_bridge == "strict":
                continue
            theirs = one["hidden_states"].float()[:, -1]
            own = self.modules[f"width-{n}"](mine) if f"width-{n}" in self.modules else mine
            if n in self._bridges:
                a, b = by_word(own, batch["spans"], theirs, one.spans)
                value = cosine_loss(a, b).sum() / (step_count(batch, f"words-{n}") or max(1, len(a)))
            else:
                value = cosine_loss(own, theirs).sum() / tokens_in(batch, len(mine))
            total = total + self._weights[n] * value
        return total if not isinstance(total, float) else mine.sum() * 0

    # -- what was compared ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For each bridged teacher the share of tokens whose probabilities were compared, and the counts behind it."""
        shares = {f"coverage-{n + 1}": seen[0] / max(1.0, seen[1]) for n, seen in self._seen.items()}
        return {**shares, **({"seen": {str(n): seen for n, seen in self._seen.items()}} if self._seen else {})}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._seen = {int(n): list(seen) for n, seen in state.get("seen", {}).items()}

    def evaluate(self, run: RunContext, student: Student) -> Any:
        report = run.evaluate(student)
        for n, (compared, tokens) in sorted(self._seen.items()):
            report.notes.append(
                f"teacher {n + 1} uses another vocabulary: the probabilities of {compared / max(1, tokens):.1%} of the "
                "training tokens were compared"
            )
        return report


def divergence(student: Tensor, teachers: Sequence[Tensor], weights: Any, mode: str, tau: float) -> Tensor:
    """D(teachers, student) of each position at temperature tau, (positions,), nats, without the factor tau^2.

    Args:
        student, teachers: (positions, classes) logits.
        weights: one for each teacher, or (teachers, positions); they may sum to less than 1 at a position, where the
            others belong to bridged teachers, and the sum is then the weight of the whole.
        mode: avg_loss, avg_prob or avg_logit.
    """
    import torch
    from kdhub_tasks.divergences import forward_kl

    s, zs = student.float() / tau, torch.stack([z.float() for z in teachers]) / tau
    w = torch.as_tensor(weights, device=zs.device).reshape(len(zs), -1).expand(len(zs), len(s))
    if mode == "avg_loss":
        return (w * torch.stack([forward_kl(s, z) for z in zs])).sum(0)
    whole = w.sum(0)
    own = (w / whole).nan_to_num(1.0).unsqueeze(-1)  # without any weight the shares do not matter: the whole is 0
    if mode == "avg_logit":
        return whole * forward_kl(s, (own * zs).sum(0))
    return whole * forward_kl(s, torch.logsumexp(zs.log_softmax(-1) + own.log(), 0))


def confidence(teachers: Sequence[Tensor], whole: float = 1.0) -> Tensor:
    """Weights (teachers, positions) by the inverse of each teacher's entropy; at each position they sum to `whole`."""
    import torch

    log_p = torch.stack([z.float().log_softmax(-1) for z in teachers])
    entropy = -(log_p.exp() * log_p.clamp_min(-100)).sum(-1)
    sure = 1 / entropy.clamp_min(1e-3)
    return whole * sure / sure.sum(0)


def _of_tokens(teacher: Teacher) -> bool:
    """Whether a teacher, or those it is made of, are models of tokens."""
    return getattr((teacher.members or [teacher])[0], "vocabulary", None) is not None
