"""Talking models: student and teacher converse about each input, and the student learns from the answers
(arXiv:2310.03188).

Each model has an encoder E from its states to messages and a decoder D back, at a lower and an upper place between its
blocks. The student sends what it has seen so far, the teacher continues from that and answers:

    m = E_g(H_g^l)    Ht_h^l = D_h(m)    Ht_h^u = upper_h(Ht_h^l)    answer = E_h(Ht_h^u)    Ht_g^u = D_g(answer)

    L = CE(y) + w_interact L_I + w_mc L_MC + w_sc L_SC
    L_I  = d(Ht_g^u, H_g^u)                                      the answer is the student's own view, further on
    L_MC = d(E_g(H_g^l), E_h(H_h^l)) + d(E_g(H_g^u), E_h(H_h^u))    same input, same message: both models read x
    L_SC = sum over models and places of d(D(E(H)), H)           a message preserves the state

with d a mean squared difference. In further rounds the student's message is what it understood, m = E_g(Ht_g^u), and
L_I is the mean. The teacher's weights are frozen, but gradients reach E_g and D_h through its graph. As it teaches by
its states, it may be a model for other classes. Only the student is saved and used.

The paper's text and code were not available: its reviewers report that the four parts are these; the arguments of the
losses and all defaults are a reconstruction. States are standardised before the codecs, by the batch's mean and one
deviation, and distances are in these units; padding counts in neither. The batch is a micro-batch: with `accumulate` or
several ranks there are fewer rows to take them from, while the means of the distances are over the optimiser step.
Gradients flow through both: with constants the interaction fell because the student's states shrank, until all were the
same. No gradient is taken of the teacher's own states and of the targets of L_SC; H_g^u in L_I moves. Codecs are warmed
up on L_MC and L_SC over up to 1,024 rows, with both models frozen, before training starts.

Departures: the teacher must be able to read the student's inputs (the paper's other case, without the teacher's halves
of L_MC, is not offered). Rows have classes: no regression, no recommendation. Instead of `teacher_lr` there is
`freeze_teacher: false`, a copy of the upper blocks trained at the rate of the rest. There is no `consult`, a student
that needs its teacher in use.

Control: `one_way`, in which the teacher reads x itself and the student's message is not used. Its answer is the same
in every round, so the mean over `rounds` is that of one. After training,
`permutation-ratio` is L_I with the first message from another row over L_I, 1 without a message, and
`message-dependence` is the change of the answer when the message is 0, over its size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, label_loss, tokens_in
from pydantic import Field, model_validator

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress
from kdhub.metric import Measure
from kdhub_text.messages import PLACES, among, codecs, distance, hear, say

if TYPE_CHECKING:
    import torch
    from kdhub_tasks.splitting import Split
    from torch import Tensor, nn

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

ROWS = 256
"""Rows on which messages are measured, at most."""


class TalkingModels(ObjectiveMethod):
    """The student sends messages and the teacher's upper blocks answer; both learn to understand them."""

    class Options(ClassifierOptions):
        student_lower: int | None = Field(None, ge=0, description="blocks below the student's message; default half")
        student_upper: int | None = Field(
            None, ge=1, description="block of the student that is compared; default the last"
        )
        teacher_lower: int | None = Field(None, ge=0, description="lower blocks that the teacher skips; default half")
        teacher_upper: int | None = Field(None, ge=1, description="block of the teacher that answers; default the last")
        message_dim: int | None = Field(
            None, ge=1, le=65536, description="numbers in a message; default the smallest width"
        )
        codec: Literal["mlp", "linear"] = Field("mlp", description="encoders and decoders: one hidden layer, or none")
        rounds: int = Field(1, ge=1, le=5, description="rounds of message and answer; all alike with one_way")
        w_interact: float = Field(1.0, ge=0, description="weight of the answer against the student's own state")
        w_mc: float = Field(0.1, ge=0, description="weight of message consistency: the same message for the same input")
        w_sc: float = Field(0.1, ge=0, description="weight of state consistency: what is decoded is what was encoded")
        one_way: bool = Field(False, description="control: the teacher reads the input, not the student's message")
        freeze_teacher: bool = Field(True, description="false: train a copy of its upper blocks, and throw it away")
        share_codec_levels: Literal["auto"] | bool = Field(
            "auto", description="one encoder and decoder for both places of a model; auto: where the widths are equal"
        )
        distance: Literal["mse", "cosine"] = Field("mse", description="distance of states and of messages")
        standardise: bool = Field(True, description="standardise states by the batch's mean and deviation")
        warmup_codec_epochs: int = Field(1, ge=0, le=1000, description="passes for the codecs alone, before training")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.one_way and not self.freeze_teacher:
                raise ValueError(
                    "freeze_teacher must be true with one_way, as no gradient comes (freeze_teacher=false)"
                )
            return self

    options: Options
    _rows: Rows

    @property
    def batchwise(self) -> str:
        return "states are standardised by the mean and deviation of a batch" if self.options.standardise else ""

    def rows(self, run: RunContext) -> Rows:
        self._rows = super().rows(run)
        return self._rows

    def distill(self, run: RunContext) -> Student:
        from kdhub_tasks.splitting import Split

        o = self.options
        mine, theirs = (getattr(model, "tokenizer", None) for model in (run.student, run.teacher))
        if mine is not None and theirs is not None and mine.get_vocab() != theirs.get_vocab():
            raise CompatibilityError(
                "student and teacher use different vocabularies, and the teacher reads the student's inputs",
                hint="start the student from the teacher: --student layers:N",
            )
        self._student = Split(run.student.module, o.student_lower, o.student_upper)
        self._teacher = Split(run.teacher.module, o.teacher_lower, o.teacher_upper)
        with ExitStack() as reading:
            for split in (self._student, self._teacher):
                reading.enter_context(split.read())
            student = super().distill(run)
            self._found = self._measured(run, student)
        return student

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also measures of the messages, over training rows."""
        report = run.evaluate(student)
        rows, found = self._found
        for name, value in found.items():
            better = name in ("permutation-ratio", "message-dependence")
            report.measures.append(
                Measure(
                    metric=name, value=value, subject="student", dataset="training rows", examples=rows,
                    higher_is_better=better,
                )
            )  # fmt: skip
        return report

    # -- before training --------------------------------------------------------------------------------------

    def initialise(self, student: Any, inputs: Mapping[str, Tensor], teacher: Signals) -> None:
        """Make the codecs, and warm them up."""
        import torch

        o = self.options
        states = self._read(student, inputs)
        self._modules = torch.nn.ModuleDict(
            {who: codecs(own, self._width(states), o.codec, o.share_codec_levels) for who, own in states.items()}
        )
        if not o.freeze_teacher:
            self._copy = copy.deepcopy(self._teacher.network).requires_grad_(False)
            for block in self._answering.blocks[self._teacher.lower : self._teacher.upper]:
                block.requires_grad_(True)
        self._modules.to(states["student"]["upper"].device)
        self.modules = {"codecs": self._modules}
        optimiser = torch.optim.AdamW(self._modules.parameters(), lr=o.lr)
        many = len(states["student"]["upper"])
        with torch.enable_grad():
            for _ in range(o.warmup_codec_epochs):
                for some in torch.randperm(many).split(o.batch_size):
                    seen = {who: {p: h[some] for p, h in own.items()} for who, own in states.items()}
                    loss = sum(self._consistency(seen, _real(inputs, some)).values())
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
        optimiser.zero_grad()

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        return {"codecs": self._modules} | ({} if self.options.freeze_teacher else {"teacher": self._copy})

    def _read(self, student: Any, inputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Both models' states of a batch, without gradient, as sequences; run in parts no larger than a batch of
        training."""
        import torch

        was, states, parts = student.module.training, {}, _slices(inputs, self.options.batch_size)
        student.module.eval()
        with torch.no_grad():
            for who, split in (("student", self._student), ("teacher", self._teacher)):
                own = [_states(split.network(part)) for part in parts]
                states[who] = {p: torch.cat([h[p] for h in own]) for p in PLACES} if len(own) > 1 else own[0]
        student.module.train(was)
        return states

    def _width(self, states: Mapping[str, Mapping[str, Tensor]]) -> int:
        return self.options.message_dim or min(h.shape[-1] for own in states.values() for h in own.values())

    # -- messages ---------------------------------------------------------------------------------------------

    def ask(self, student: Signals, batch: Mapping[str, Any], teacher: Callable[..., Signals]) -> Signals:
        """The batch itself, then the student's message of each round; `heard` is what it understands of the answers."""
        given = teacher(batch)

        def onward(replace: Callable[[Tensor], Tensor]) -> Tensor:
            with self._teacher.replaced(replace):
                return teacher(batch, gradient=True)["upper"]

        states = {"student": _states(student), "teacher": _states(given)}
        given["heard"] = self._conversation(states, batch, onward if self.options.freeze_teacher else None)
        return given

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        states = {"student": _states(student), "teacher": _states(teacher)}
        terms = {"labels": label_loss(student.logits, batch)}
        terms["interaction"] = self.options.w_interact * self._interaction(states, batch, teacher["heard"])
        return terms | self._consistency(states, _real(batch), _positions(batch))

    def _interaction(
        self, states: Mapping[str, Mapping[str, Tensor]], batch: Mapping[str, Any], heard: Sequence[Tensor]
    ) -> Tensor:
        """L_I, the mean over rounds."""
        real = _real(batch)
        own = self._unit(states["student"]["upper"], real)
        apart = (distance(one, own, self.options.distance, real, _positions(batch)) for one in heard)
        return sum(apart) / len(heard)

    def _conversation(
        self,
        states: Mapping[str, Mapping[str, Tensor]],
        batch: Mapping[str, Any],
        onward: Callable[..., Tensor] | None = None,
        order: Tensor | None = None,
    ) -> list[Tensor]:
        """What the student understands in each round, standardised; with `order` the first messages are permuted."""
        student, real = self.modules["codecs"]["student"], _real(batch)
        lower, own = states["student"].values()
        message = say(student, "lower", self._unit(lower, real))
        message, heard = message if order is None else message[order], []
        for _ in range(1 if self.options.one_way else self.options.rounds):
            heard.append(self._heard(self._answer(message, states, batch, onward), own.shape[1]))
            message = say(student, "upper", heard[-1])
        return heard

    def _heard(self, answer: Tensor, positions: int) -> Tensor:
        """Ht_g^u, standardised."""
        from kdhub_tasks.splitting import resized

        return hear(self.modules["codecs"]["student"], "upper", resized(answer, positions))

    def _answer(
        self,
        message: Tensor,
        states: Mapping[str, Mapping[str, Tensor]],
        batch: Mapping[str, Any],
        onward: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """The teacher's reply to messages; `onward` runs its upper blocks on other states, see `Split.onward`."""
        from kdhub_tasks.splitting import as_sequence, as_state

        codec, real = self.modules["codecs"]["teacher"], _real(batch)
        below, above = (self._scale(state, real) for state in states["teacher"].values())
        if self.options.one_way:
            reached = states["teacher"]["upper"]
        else:

            def replace(own: Tensor) -> Tensor:
                return as_state(hear(codec, "lower", message) * below[1] + below[0], own)

            onward = onward or partial(self._answering.onward, batch)
            reached = as_sequence(onward(replace)).float()
        return say(codec, "upper", (reached - above[0]) / above[1])

    def _scale(self, state: Tensor, real: Tensor | None = None) -> tuple[Any, Any]:
        """The mean of each number, and one deviation for all numbers."""
        if not self.options.standardise:
            return 0.0, 1.0
        seen = among(state, real)
        mean = seen.mean((0, 1))
        return mean, ((seen - mean).square().mean() + 1e-12).sqrt()

    def _unit(self, state: Tensor, real: Tensor | None = None) -> Tensor:
        mean, deviation = self._scale(state, real)
        return (state - mean) / deviation

    @property
    def _answering(self) -> Split:
        """The teacher, or its copy where that is trained."""
        from kdhub_tasks.splitting import Split

        if self.options.freeze_teacher:
            return self._teacher
        return Split(self._copy.eval(), self._teacher.lower, self._teacher.upper)

    def _consistency(
        self, states: Mapping[str, Mapping[str, Tensor]], real: Tensor | None, many: float | None = None
    ) -> dict[str, Tensor]:
        """L_MC and L_SC, with their weights; means over `many` real positions, those here if None."""
        from kdhub_tasks.splitting import resized

        o, all_codecs = self.options, self.modules["codecs"]
        messages, kept = {}, []
        for who, own in states.items():
            for place in PLACES:
                state = self._unit(own[place], real)
                messages[who, place] = say(all_codecs[who], place, state)
                again = hear(all_codecs[who], place, messages[who, place])
                kept.append(distance(again, state.detach(), o.distance, real, many))
        alike = []
        for place in PLACES:
            mine, theirs = messages["student", place], messages["teacher", place]
            alike.append(distance(mine, resized(theirs, mine.shape[1]), o.distance, real, many))
        return {"messages": o.w_mc * sum(alike), "states": o.w_sc * sum(kept)}

    # -- afterwards -------------------------------------------------------------------------------------------

    def _measured(self, run: RunContext, student: Any) -> tuple[int, dict[str, float]]:
        """The number of rows, and the three losses, message dependence and permutation ratio over them."""
        import torch

        examples = self._rows[self._rows.some(ROWS)]
        device = next(student.module.parameters()).device
        inputs = {k: v.to(device) for k, v in run.task.collate(examples, student).items()}
        states, real, o = self._read(student, inputs), _real(inputs), self.options
        many = len(states["student"]["upper"])
        order = torch.randperm(many, generator=torch.Generator().manual_seed(run.seed)).to(device)
        with torch.no_grad():
            codec = self.modules["codecs"]["student"]
            message = say(codec, "lower", self._unit(states["student"]["lower"], real))
            both = (self._answer(m, states, inputs) for m in (message, torch.zeros_like(message)))
            answer, without = (among(one, real) for one in both)
            talk, other = (self._interaction(states, inputs, self._conversation(states, inputs, order=one))
                           for one in (None, order))  # fmt: skip
            found = {"interaction-loss": talk}
            rest = self._consistency(states, real)
            for name, term, weight in (("message", "messages", o.w_mc), ("state", "states", o.w_sc)):
                if weight:
                    found[f"{name}-consistency-loss"] = rest[term] / weight
            found["message-dependence"] = (answer - without).square().mean() / answer.square().mean().clamp_min(1e-12)
            found["permutation-ratio"] = other / talk.clamp_min(1e-12)
        return len(examples), {name: float(value) for name, value in found.items()}


def _slices(inputs: Mapping[str, Tensor], size: int) -> list[Mapping[str, Tensor]]:
    """A batch in parts of `size` rows. What does not have one entry a row (labels of words) or counts through the batch
    (`at`) is left out: states need none of it."""
    many = len(inputs["input_ids" if "input_ids" in inputs else "x"])
    if many <= size:
        return [inputs]
    of_rows = {name: values for name, values in inputs.items() if len(values) == many and name != "at"}
    return [{name: v[start : start + size] for name, v in of_rows.items()} for start in range(0, many, size)]


def _states(signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from kdhub_tasks.splitting import as_sequence

    return {place: as_sequence(signals[place]).float() for place in PLACES}


def _positions(batch: Mapping[str, Any]) -> float | None:
    """Real positions that means are over; None where the rows have no mask."""
    return None if (real := _real(batch)) is None else tokens_in(batch, int(real.sum()))


def _real(batch: Mapping[str, Any], some: Tensor | None = None) -> Tensor | None:
    mask = batch.get("attention_mask")
    return mask if mask is None or some is None else mask[some]
