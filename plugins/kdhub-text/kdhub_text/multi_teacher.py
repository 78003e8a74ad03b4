"""One student of several teachers, as the Romanian BERTs were made (arXiv:2112.12650).

    L = a_ce L_ce + a_mlm L_labels + a_cos L_cos

DistilBERT's three terms, over real tokens, hidden tokens and real tokens again. With p_t, h_t of teacher t at
temperature tau and weights w_t that sum to 1:

    avg_loss     L_ce = tau^2 mean sum_t w_t KL(p_t || p_S)
    avg_prob     L_ce = tau^2 mean KL(sum_t w_t p_t || p_S), whose gradient is the same: they differ by the teachers'
                 own Jensen-Shannon divergence, a constant
    avg_logit    L_ce = tau^2 mean KL(softmax(sum_t w_t z_t / tau) || p_S)

    L_cos = mean sum_t w_t (1 - cos(h_S, h_t)),   h the last states; never of averaged states

Teachers with other tokens read the same text, with the same characters hidden, in their own way (`bridge`): states are
compared word by word (means of a word's tokens), and probabilities where a token has the very same characters in both,
over the tokens that both know, each side made to sum to 1. A token for which the teacher gives these less than half of
its probability is left out. What is compared is reported as coverage.

In classification p are those of classes and the labels' term is on the rows' labels; a value's target is the weighted
mean, and L_ce its squared error. There a_cos is 0 unless it is set.

The paper's body, and how it bridged its two vocabularies, could not be read. The terms' weights are DistilBERT's;
bridge, `confidence` and where the modes apply are ours: teachers with the student's tokens are one group that the mode
averages, each bridged teacher has its own KL, a mean over what was compared in a batch. DistilBERT has no token types
and no pooler; a student of BERT's shape keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_logits.soft_targets import label_losses, labelled_in, positions_in, tokens_in
from pydantic import Field

from kdhub.errors import CompatibilityError, TeacherError, UsageError
from kdhub.method import ObjectiveMethod, Progress, Run, TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.student import Student
    from kdhub.task import Signals
    from kdhub.teacher import Teacher

LEAST = 0.5
"""Share of a bridged teacher's probability that the tokens which both know must have."""
WIDE = 2**20
"""Characters of a text, at most, that spans are told apart by."""


class MultiTeacher(ObjectiveMethod):
    """DistilBERT's three terms from one teacher or several (arXiv:2112.12650)."""

    class Options(TrainingOptions):
        lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
        epochs: float = Field(3.0, gt=0, description="passes over the training rows")
        warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with rising learning rate")
        mode: Literal["avg_loss", "avg_prob", "avg_logit"] = Field("avg_loss", description="what is averaged")
        weights: Literal["uniform", "confidence"] | tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
            None, description="of the teachers: alike, by inverse entropy, or these; the ensemble's own if unset"
        )
        tau: float = Field(2.0, ge=1, description="temperature of the soft targets")
        a_ce: float = Field(5.0, ge=0, description="weight of the soft targets")
        a_mlm: float = Field(2.0, ge=0, description="weight of the labels: hidden tokens, or those of rows")
        a_cos: float | None = Field(None, ge=0, description="weight of the states; 1 in fill-mask, else 0, if unset")
        mlm_prob: float = Field(0.15, gt=0, lt=1, description="fill-mask: share of the tokens that are to be told")
        positions: Literal["all", "masked"] = Field("all", description="fill-mask: tokens of the soft targets")
        vocab_bridge: Literal["auto", "strict", "off"] = Field(
            "auto", description="teachers of other tokens: by words and characters, by characters alone, or refused"
        )

    options: Options
    tiny_recipe = {"options": {"epochs": 1.0}}

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self._masked = False
        self._seen: dict[int, list[float]] = {}  # bridged teacher -> tokens compared, tokens

    # -- what it learns from ----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Those of fill-mask; other tasks have no use for them."""
        o = self.options
        return {"mlm_prob": o.mlm_prob, "whole": o.positions == "all", "bridge": o.vocab_bridge != "off"}

    @property
    def _cosine(self) -> float:
        given = self.options.a_cos
        return float(self._masked) if given is None else given

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        from kdhub_logits.ensemble import EACH, LAST, own_kind

        several = EACH if teacher.members else ""
        self._masked = _of_tokens(teacher)
        kinds = ["logits"]
        if self._cosine:
            kinds.append(LAST if several else own_kind(teacher, LAST))
        if self._masked and self.options.positions == "all":
            kinds.append("spans")
        return tuple(several + kind for kind in kinds)

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """What the teachers count for, and which have other tokens.

        Raises:
            UsageError: weights that are not one for each teacher, or all 0; other tokens, and signals of hidden tokens
                alone.
        """
        from kdhub_logits.ensemble import shares

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
                        f"teacher {n + 1} has other tokens than the student",
                        hint="positions: all compares their tokens",
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

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_logits.ensemble import each
        from kdhub_logits.positions import over_positions

        o, given, labelled = self.options, each(teacher), labelled_in(batch)
        near = [n for n in range(len(given)) if n not in self._bridges]
        share = [self._weights[n] for n in near]

        def sums(s: Tensor, _: None, y: Tensor, *zs: Tensor) -> dict[str, Tensor]:
            terms = {"labels": o.a_mlm * label_losses(s, y).sum() / labelled}
            if zs and s.shape[-1] == 1:  # values
                target = sum(w * z.float() for w, z in zip(share, zs)) / sum(share)
                terms["teacher"] = o.a_ce * sum(share) * (s.float() - target).square().sum() / positions_in(batch)
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
            value = o.a_ce * self._weights[n] * o.tau**2 * apart / max(1, many)
            terms["teacher"] = terms["teacher"] + value if "teacher" in terms else value
        if self._cosine:
            terms["cosine"] = self._cosine * self._states(student, given, batch)
        return terms

    def _states(self, student: Signals, given: Sequence[Signals], batch: Mapping[str, Any]) -> Tensor:
        from kdhub_text.efficient_attention import cosine_loss

        mine, total = student["hidden_states"][:, -1], 0.0
        for n, one in enumerate(given):
            if n in self._bridges and self.options.vocab_bridge == "strict":
                continue
            theirs = one["hidden_states"].float()[:, -1]
            own = self.modules[f"width-{n}"](mine) if f"width-{n}" in self.modules else mine
            if n in self._bridges:
                a, b = by_word(own, batch["spans"], theirs, one.spans)
                value = cosine_loss(a, b).sum() / max(1, len(a))
            else:
                value = cosine_loss(own, theirs).sum() / tokens_in(batch, len(mine))
            total = total + self._weights[n] * value
        return total if not isinstance(total, float) else mine.sum() * 0

    # -- what was compared ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Of each bridged teacher the share of tokens whose probabilities were compared, and what it is made of."""
        shares = {f"coverage-{n + 1}": seen[0] / max(1.0, seen[1]) for n, seen in self._seen.items()}
        return {**shares, **({"seen": {str(n): seen for n, seen in self._seen.items()}} if self._seen else {})}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._seen = {int(n): list(seen) for n, seen in state.get("seen", {}).items()}

    def evaluate(self, run: Run, student: Student) -> Any:
        report = run.evaluate(student)
        for n, (compared, tokens) in sorted(self._seen.items()):
            report.notes.append(
                f"teacher {n + 1} has other tokens: the probabilities of {compared / max(1, tokens):.1%} of the "
                "training tokens were compared with its own"
            )
        return report


def divergence(student: Tensor, teachers: Sequence[Tensor], weights: Any, mode: str, tau: float) -> Tensor:
    """D(teachers, student) of each position at temperature tau, (positions,), nats, without the factor tau^2.

    Args:
        student, teachers: (positions, classes) logits.
        weights: one for each teacher, or (teachers, positions); those of one position may sum to less than 1 (other
            teachers are elsewhere), which is then the weight of the whole.
        mode: avg_loss, avg_prob or avg_logit.
    """
    import torch
    from kdhub_logits.divergences import forward_kl

    s, zs = student.float() / tau, torch.stack([z.float() for z in teachers]) / tau
    w = torch.as_tensor(weights, dtype=zs.dtype, device=zs.device)
    w = w.reshape(len(zs), -1).expand(len(zs), len(s))
    if mode == "avg_loss":
        return (w * torch.stack([forward_kl(s, z) for z in zs])).sum(0)
    whole = w.sum(0)
    own = (w / whole).nan_to_num(1.0).unsqueeze(-1)  # of teachers without weight any shares do: the whole is 0
    if mode == "avg_logit":
        return whole * forward_kl(s, (own * zs).sum(0))
    return whole * forward_kl(s, torch.logsumexp(zs.log_softmax(-1) + own.log(), 0))


def confidence(teachers: Sequence[Tensor], whole: float = 1.0) -> Tensor:
    """Weights (teachers, positions) by the inverse of each one's entropy; those of a position sum to `whole`."""
    import torch

    log_p = torch.stack([z.float().log_softmax(-1) for z in teachers])
    entropy = -(log_p.exp() * log_p.clamp_min(-100)).sum(-1)
    sure = 1 / entropy.clamp_min(1e-3)
    return whole * sure / sure.sum(0)


def _of_tokens(teacher: Teacher) -> bool:
    """Whether a teacher, or those it is made of, are models of tokens."""
    return getattr((teacher.members or [teacher])[0], "vocabulary", None) is not None


# ---- teachers with other tokens


class Bridge:
    """Which tokens two vocabularies have in common, as what they stand for in a text.

    Attributes:
        mine, theirs: (tokens,) the numbers of each shared one.
    """

    def __init__(self, mine: Sequence[int], theirs: Sequence[int]):
        import torch

        self.mine, self.theirs = torch.tensor(mine, dtype=torch.long), torch.tensor(theirs, dtype=torch.long)

    @classmethod
    def between(cls, student: Any, teacher: Any) -> Bridge:
        """Of two tokenizers.

        Raises:
            CompatibilityError: they share nothing.
        """
        a, b = written(student), written(teacher)
        shared = sorted(a.keys() & b.keys())
        if not shared:
            raise CompatibilityError(
                "student and teacher have no token in common", hint="vocab_bridge: off, and teachers with its tokens"
            )
        return cls([a[one] for one in shared], [b[one] for one in shared])

    def divergence(
        self, student: Tensor, mine: Tensor, teacher: Tensor, theirs: Tensor, tau: float
    ) -> tuple[Tensor, int]:
        """Sum of KL(p_t || p_S) over the tokens that have the same characters in both, among the tokens that both know;
        and how many those are. `mine`, `theirs` are their `spans`, rows of one batch one after the other."""
        from kdhub_logits.divergences import forward_kl

        # Stored spans are int32, too narrow for both ends in one number.
        at, there = matched(*(_keys(spans, spans[:, 1].long() * WIDE + spans[:, 2]) for spans in (mine, theirs)))
        z = teacher.float()[there]
        known = z.softmax(-1)[:, self.theirs.to(z.device)].sum(-1) >= LEAST
        s = student.float()[at[known]][:, self.mine.to(z.device)]
        z = z[known][:, self.theirs.to(z.device)]
        return forward_kl(s / tau, z / tau).sum(), int(known.sum())


def by_word(student: Tensor, mine: Tensor, teacher: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """States of the words that both have, means over the tokens of each: (words, width) of either side."""
    import torch

    sides, keys = [], []
    for states, spans in ((student, mine), (teacher, theirs)):
        own = _keys(spans, spans[:, 3])
        kept = own >= 0
        words, place = own[kept].unique(return_inverse=True)
        sums = states.new_zeros(len(words), states.shape[-1]).index_add(0, place, states[kept])
        sides.append(sums / torch.bincount(place, minlength=len(words)).unsqueeze(-1))
        keys.append(words)
    at, there = matched(*keys)
    return sides[0][at], sides[1][there]


def _keys(spans: Tensor, own: Tensor) -> Tensor:
    """What tells a token (or word) from all others of a batch; -1 for special ones. A new row begins where a token is
    the first of its text."""
    row = (spans[:, 0] == 0).cumsum(0) - 1
    return (row.long() * WIDE * WIDE + own.long()).masked_fill(spans[:, 3] < 0, -1)


def matched(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Where both have the same key, in the order of `mine`: places in either. Keys of `theirs` are different ones but
    for -1, which matches nothing."""
    import torch

    ordered, order = theirs.sort()
    place = torch.searchsorted(ordered, mine).clamp_max(max(0, len(ordered) - 1))
    if not len(ordered):
        return place[:0], place[:0]
    same = (ordered[place] == mine) & (mine >= 0)
    return same.nonzero().flatten(), order[place[same]]


def written(tokenizer: Any) -> dict[tuple[bool, str], int]:
    """What each token stands for: whether it begins a word, and its letters. Special tokens are left out, and so are
    those with a part of a letter's bytes.

    WordPiece marks tokens inside a word (`##`), byte-level BPE and SentencePiece those at its beginning; a vocabulary
    with neither is one of words.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    own = {token: n for token, n in vocabulary.items() if n not in special}
    # Asked of the model: in a byte-level vocabulary `##` is a heading.
    inside = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    # Either mark may be a mere letter of the other's vocabulary.
    marked = {mark: sum(token.startswith(mark) for token in own) for mark in ("\u0120", "\u2581")}
    first = max(marked, key=marked.get) if any(marked.values()) else None
    found: dict[tuple[bool, str], int] = {}
    for token, n in own.items():
        if inside:
            begins, letters = not token.startswith(inside), token.removeprefix(inside)
        elif first:
            begins = token.startswith(first)
            letters = tokenizer.convert_tokens_to_string([token]).strip() if first == "\u0120" else token.lstrip(first)
        else:
            begins, letters = True, token
        if letters and "\ufffd" not in letters:
            found.setdefault((begins, letters), n)
    return found
