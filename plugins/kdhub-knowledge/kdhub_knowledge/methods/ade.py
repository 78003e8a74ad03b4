"""Pairs in sentences from a teacher's labels alone (arXiv:2307.06439): a language model labels sentences with (drug,
adverse event), and a small student learns from these labels.

    labels     the teacher's pairs of each sentence, through the store; one that is not in its sentence is dropped, and
               a sentence without a readable answer is no negative
    mentions   heads of the pairs, what the teacher named as a head in any sentence, and what has the form of one
    rows       each sentence; for each mention its sentence with the mention marked and the tails to be tagged: all with
               tails, and `negatives_per_positive` times as many without, drawn
    loss       BCE(p_head) summed over the tokens, mean over sentences + BCE(p_tail | marked head) summed, mean over
               marked sentences; tokens of a tail count `event_token_weight` times
    pairwise   heads and tails are tagged at once, and each pair of a mention and a tail is classified

Of overlapping tails of one head the longest is tagged; what no tagging can give is counted (`unreachable`).

With `data.validation`, sentences that the teacher labels as well, the weights of the epoch with the least loss on them
are kept; training goes on to its end.

From memory of the paper are the options' ranges; its code is not published. Strict and lenient scores are always
computed: which of them counts is a choice of metrics.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.files import given_or_shared
from kdhub.kept import keep, kept
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions, step_count
from kdhub.ranks import rank
from kdhub.rows import Example, Rows, Signals
from kdhub.specs import MAIN
from kdhub_knowledge.relations.profiles import profile
from kdhub_knowledge.relations.spans import Span, align, longest, mentions, words
from kdhub_knowledge.relations.task import CANDIDATE, MARKED, SENTENCE

if TYPE_CHECKING:
    import torch

    from kdhub.method import RunContext

logger = logging.getLogger("kdhub")

BEST = "checkpoints/best.safetensors"
"""The weights of the best epoch, in the run folder until it ends."""
Labelled = tuple[str, list[tuple[Span, Span]]]
"""A sentence and its pairs."""


class Ade(ObjectiveMethod):
    class Options(TrainingOptions):
        lr: float = Field(3e-5, gt=0, description="peak learning rate of AdamW")
        batch_size: int = Field(16, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
        epochs: float = Field(6.0, gt=0, description="passes over the rows")
        warmup: float = Field(0.1, ge=0, le=1, description="share of the steps with rising learning rate")
        dropout: float | None = Field(None, ge=0, lt=1, description="dropout of the student; null keeps its own")
        labels: Literal["teacher", "rows"] = Field(
            "teacher",
            description="whose pairs are learnt; rows: those of the training rows, people's or corrected ones",
        )
        profile: str | None = Field(
            None, description="what the pairs are: ade, gene-disease, phi, or a YAML file; the teacher's if unset"
        )
        n_unlabeled: int | None = Field(None, ge=1, description="sentences to label, drawn; all if unset")
        negatives_per_positive: float = Field(
            1.0, ge=0, description="marked heads without a tail, for each one with tails"
        )
        drug_source: Literal["tagger", "lexicon", "gold"] = Field(
            "tagger",
            description="where the student's heads come from: itself, their form and `lexicon`, or `entities` of a row",
        )
        lexicon: str | None = Field(None, description="a file of heads, one a line; never those of a test set")
        structure: Literal["drug-centric", "pairwise"] = Field(
            "drug-centric", description="tails are tagged for a marked head, or each pair is classified"
        )
        threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a word is of a span")
        event_token_weight: float = Field(1.0, ge=1, description="weight of the tokens that are of a tail")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.lexicon and self.drug_source == "gold":
                raise ValueError(
                    f"lexicon must be unset where heads are given (lexicon={self.lexicon}, drug_source=gold)"
                )
            return self

    options: Options
    _held: list[Example] = []
    _best: tuple[float, int] | None = None
    """Least loss on the labelled sentences of `data.validation`, and after how many steps."""
    tiny_recipe = {"options": {"lr": 0.05, "epochs": 2, "threshold": 0.1}}

    def check(self, student: Any, teacher: Any) -> None:
        if not hasattr(student, "settle"):
            raise CompatibilityError(
                "ade trains a student that finds pairs", hint="student: relations-lstm:, or an encoder"
            )
        profile(self.profile)
        self._lexicon()

    @property
    def profile(self) -> str:
        """The name of the profile."""
        of_teacher = getattr(self.teachers.get(MAIN), "options", None)
        return self.options.profile or getattr(of_teacher, "profile", "ade")

    def needs(self, teacher: Any) -> tuple[str, ...]:
        return ()  # its labels are in the rows

    def distill(self, run: RunContext) -> Any:
        self._run = run
        student = run.fit(self, run.student)
        if self._held:
            student.module.load_state_dict(kept(run.folder / BEST))
        return student

    def adapt(self, student: Any, teacher: Any) -> None:
        self._student, o = student, self.options
        named = self._lexicon()
        student.settle(
            structure=o.structure, profile=self.profile, threshold=o.threshold, drug_source=o.drug_source, lexicon=named
        )

    def _lexicon(self) -> list[str]:
        """
        Raises:
            UsageError: there is no such file, or nothing in it.
        """
        if self.options.lexicon is None:
            return []
        file = given_or_shared(self.options.lexicon)
        names = [] if file is None else Path(file).read_text(encoding="utf-8").split("\n")
        if not (names := sorted({name.strip() for name in names} - {""})):
            raise UsageError(f"lexicon must be a file with a head in each line (lexicon={self.options.lexicon})")
        return names

    # -- rows -------------------------------------------------------------------------------------------------

    def rows(self, run: RunContext) -> Rows:
        """The rows that `made` gives for the labelled sentences of `data.train`."""
        import datasets

        from kdhub.signals.store import row_key

        o, rng = self.options, np.random.default_rng([run.seed, 7])
        if run.has_rows("validation"):
            held = self._labelled(run, run.rows("validation"))
            self._held = prepare(list(self.made(held, run.student, np.random.default_rng([run.seed, 8]))))
        plain = run.rows("train")
        if o.n_unlabeled is not None and o.n_unlabeled < len(plain):
            plain = plain.select(np.sort(rng.permutation(len(plain))[: o.n_unlabeled]))
        found = self._labelled(run, plain)
        table = datasets.Dataset.from_list(list(self.made(found, run.student, rng)))
        return Rows.build(table, prepare, row_key)

    def _labelled(self, run: RunContext, plain: Rows) -> list[Labelled]:
        examples, lost, unread = plain[np.arange(len(plain))], 0, 0
        found: list[Labelled] = []
        if self.options.labels == "rows":
            for example in examples:
                if example["gold"] is None:
                    raise DataError("labels=rows takes the column 'pairs', which the rows of data.train do not have")
                pairs, gone = align(example["text"], example["gold"])
                found.append((example["text"], pairs))
                lost += len(gone)
        else:
            given = run.signals(plain, "pairs")[np.arange(len(plain))]
            readable = np.asarray(given.get("readable", np.ones(len(plain))))
            unread = int((readable == 0).sum())
            for example, spans, good in zip(examples, given["pairs"], readable):
                pairs = [((a, b), (c, d)) for a, b, c, d in np.asarray(spans, int).reshape(-1, 4).tolist()]
                if good:
                    found.append((example["text"], [p for p in pairs if _inside(p, len(example["text"]))]))
        many = sum(len(pairs) for _, pairs in found)
        if lost or unread:
            logger.warning("%d pairs are not in their sentence and %d sentences have no readable answer", lost, unread)
        if not many:
            raise DataError(
                f"none of {len(plain)} sentences has a pair ({unread} have no readable answer)",
                hint="look at what the teacher says: kdhub.open_data('relations:DATA', options={'teacher': ...})",
            )
        logger.info("%d pairs in %d of %d sentences", many, sum(bool(p) for _, p in found), len(found))
        return found

    def made(self, found: list[Labelled], student: Any, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """The rows of training, as plain values."""
        o = self.options
        named = {text[a:b].lower() for text, pairs in found for (a, b), _ in pairs} | {
            n.lower() for n in self._lexicon()
        }
        form, positive, negative = profile(self.profile), [], []
        pairwise = o.structure == "pairwise"
        for text, pairs in found:
            low = text.lower()
            known = mentions(text, [name for name in named if name in low])
            heads = longest([*(h for h, _ in pairs), *known, *form.heads(text)])
            of = {head: longest(t for h, t in pairs if _touch(h, head)) for head in heads}
            tails = longest(t for _, t in pairs)
            if pairwise or o.drug_source == "tagger":
                own = tails if pairwise else None
                for first in student.starts(text):
                    yield _row(text, SENTENCE, first=first, heads=heads, tails=own)
            for head in heads:
                asked = [(MARKED, {"tails": of[head]}, bool(of[head]))]
                if pairwise:
                    asked = [(CANDIDATE, {"tail": t, "related": int(t in of[head])}, t in of[head]) for t in tails]
                for kind, more, good in asked:
                    (positive if good else negative).append(_row(text, kind, head=head, **more))
        most = round(o.negatives_per_positive * len(positive))
        chosen = np.sort(rng.permutation(len(negative))[:most])
        yield from positive
        yield from (negative[n] for n in chosen)

    # -- the best epoch ---------------------------------------------------------------------------------------

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        done, an_epoch = progress.step + 1, max(1, round(progress.steps / self.options.epochs))
        if not self._held or (done % an_epoch and done < progress.steps):
            return
        loss = self._held_loss()
        logger.info("loss on the labelled validation sentences after %d steps: %.4f", done, loss)
        if self._best is None or loss < self._best[0]:
            self._best = loss, done
            if rank() == 0:
                keep(self._student.module.state_dict(), self._run.folder / BEST)

    def _held_loss(self) -> float:
        """The mean over rows of the batches' losses."""
        import torch

        module, task, total = self._student.module, self._run.task, 0.0
        was, where = module.training, next(module.parameters()).device
        module.eval()
        with torch.no_grad():
            for start in range(0, len(self._held), 64):
                some = self._held[start : start + 64]
                batch = {name: value.to(where) for name, value in task.collate(some, self._student).items()}
                terms = self.objective(task.forward(module, batch), Signals(), batch, Progress(0, 1, 0.0))
                total += float(sum(terms.values())) * len(some)
        module.train(was)
        return total / len(self._held)

    def state(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._best = tuple(state["best"]) if state.get("best") else None

    # -- loss -------------------------------------------------------------------------------------------------

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from torch.nn.functional import binary_cross_entropy_with_logits as bce

        o, labels = self.options, batch["labels"]
        losses = bce(student.pairs, labels.clamp(min=0), reduction="none") * (labels >= 0)
        losses = losses * labels.new_tensor([1.0, o.event_token_weight]).where(labels == 1, labels.new_ones(()))
        whose = "sentences" if o.structure == "pairwise" else "marked"
        terms = {"tail": losses[:, 1].sum() / _many(batch, whose)}
        if o.structure == "pairwise" or o.drug_source == "tagger":
            terms["head"] = losses[:, 0].sum() / _many(batch, "sentences")
        if o.structure == "pairwise":
            related = bce(student.related, batch["related"].clamp(min=0), reduction="none")
            terms["related"] = (related * (batch["kind"] == CANDIDATE)).sum() / _many(batch, "candidates")
        return terms


def _many(batch: Mapping[str, Any], unit: str) -> float:
    """Over how many rows of a kind the mean is; at least a part of one, as a step may have none."""
    kind = {"sentences": SENTENCE, "marked": MARKED, "candidates": CANDIDATE}[unit]
    count = step_count(batch, unit)
    return (int((batch["kind"] == kind).sum()) if count is None else count) or 1.0


def prepare(rows: list[dict[str, Any]]) -> list[Example]:
    """The rows of `Ade.made` as examples."""
    made = []
    for row in rows:
        given = {name: value for name, value in row.items() if value is not None}
        given |= {side: tuple(given[side]) for side in ("head", "tail") if side in given}
        known = json.dumps({name: np.asarray(value).tolist() for name, value in given.items()}, ensure_ascii=False)
        made.append({**given, "content": known.encode(), "length": len(words(row["text"])), "cut": False})
    return made


def _row(text: str, kind: int, **given: Any) -> dict[str, Any]:
    return {"text": text, "kind": kind, "first": 0, "head": None, "tail": None, "heads": None, "tails": None} | {
        "related": -1, **given
    }  # fmt: skip


def _touch(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _inside(pair: tuple[Span, Span], length: int) -> bool:
    return all(0 <= begin < end <= length for begin, end in pair)
