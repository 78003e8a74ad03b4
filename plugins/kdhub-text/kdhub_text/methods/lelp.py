"""LELP: a few classes are split along linear projections of the teacher's embeddings (arXiv:2409.20449).

With two to five classes, soft labels say little more than the label. LELP makes them say more: inside each class c,
directions V_c of the teacher's embeddings h split it into S pseudo-subclasses, once, before training:

    h'         = P h                             P = I - W^+ W: without what the logits already carry
    a_c(x)     = V_c (h'(x) - mu_c) / s_c        V_c: S principal directions of the class, rotated at random
    p_{c,s}(x) = p_c(x) softmax_s(a_c(x) / beta)    p = softmax(z / tau), the teacher's
    L          = (1 - alpha) tau^2 CE(p, softmax(o / tau)) + alpha CE(y, sum_s softmax(o))

o are the student's S outputs a class, which its last layer gives from then on. In use it has one logit a class again,
tau logsumexp_s(o_{c,s} / tau): at the least loss (alpha 0) the teacher's own, up to a constant. Rows need no labels.

The paper's text was not available. From it are the split, P, principal directions, the random rotation, tau and beta,
alpha 0. Ours are s_c, the root of the mean variance over the S directions, which makes one beta fit all classes and
teachers, groups by the teacher's choice, and the defaults. W is not read from the teacher's weights: it is the
least-squares map from embeddings to logits over the training rows. Where logits are linear in the embeddings (images,
tables) that is the same and needs no weights; where they are not (texts, whose embeddings are means over tokens) it
removes the part of the logits that is linear in them. The rotation is drawn from the run's seed and stored in
checkpoints with the rest.

Controls: `control: random` gives each row the split of another row, `oracle` the true subclass (`data.labels`), as soft
as an embedding that says nothing else would be. The student's last layer is widened by repeating its outputs, with a
little noise; S = 1 is `kd`.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from kdhub_tasks.losses import ClassifierOptions, label_loss, positions_in
from pydantic import Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import ObjectiveMethod, Progress
from kdhub_text.subspaces import Moments, clusters, null_space

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

READ = 4096
"""Rows whose signals are read at once."""


class Lelp(ObjectiveMethod):
    """One cross-entropy over pseudo-subclasses that the teacher's embeddings make."""

    class Options(ClassifierOptions):
        subclasses: int = Field(5, ge=1, le=100, description="pseudo-subclasses of each class (S)")
        beta: float = Field(1.0, gt=0, description="temperature of the split inside a class")
        temperature: float = Field(4.0, gt=0, description="temperature of both sides (tau)")
        alpha: float = Field(0.0, ge=0, le=1, description="weight of the labels")
        null_space: Literal["auto"] | bool = Field(
            "auto", description="remove what the logits carry; auto: if anything else is left"
        )
        rotate: bool = Field(True, description="rotate the directions of a class at random, so that none dominates")
        direction: Literal["pca", "random", "kmeans"] = Field(
            "pca",
            description="directions of the split; ablations: random ones, or kmeans, by the nearest of S centres",
        )
        group_by: Literal["teacher", "label"] = Field("teacher", description="whose class a row counts for in the fit")
        center: bool = Field(True, description="subtract the mean of a class")
        aggregate: Literal["tempered", "sum"] = Field(
            "tempered", description="how a class's outputs are combined in use: at the training temperature, or at 1"
        )
        control: Literal["none", "random", "oracle"] = Field(
            "none", description="random: the split of another row; oracle: the true subclass, where rows have it"
        )

    options: Options
    _rows: Rows
    _number: int
    _split: tuple[np.ndarray, np.ndarray] | None = None
    _others: tuple[Tensor, Tensor] | None = None

    def distill(self, run: RunContext) -> Student:
        self._rows = run.rows("train", **self.settings())
        if self.options.control == "oracle":
            self._number = self._true_subclasses()
        else:
            self._fit(run)
        return super().distill(run)

    def rows(self, run: RunContext) -> Rows:
        return self._rows

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return ("logits", "features") if self.options.control == "none" else ("logits",)

    def adapt(self, student: Any, teacher: Teacher | None) -> None:
        o = self.options
        student.wrap("subclasses", number=self._number, temperature=o.temperature, aggregate=o.aggregate)

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        """Buffers, not modules: what classes are split along, for the checkpoints."""
        import torch
        from torch import nn

        if self._split is None:
            return {}
        subspaces = nn.Module()
        for name, value in zip(("weight", "offset"), self._split):
            subspaces.register_buffer(name, torch.from_numpy(value).float())
        return {"subspaces": subspaces}

    def state(self) -> dict[str, Any]:
        return {"subclasses": self._number}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_text.subclasses import merged

        o, outputs = self.options, student["subclass_logits"]
        aim = targets(teacher.logits.float(), self._shares(teacher, batch), o.temperature)
        apart = cross_entropies(outputs / o.temperature, aim).sum() / positions_in(batch)
        terms = {"teacher": (1 - o.alpha) * o.temperature**2 * apart}
        if o.alpha:
            terms["labels"] = o.alpha * label_loss(merged(outputs, self._number), batch)
        return terms

    def _shares(self, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        """q, (batch, classes, S)."""
        import torch

        if self.options.control == "oracle":
            classes, beta = teacher.logits.shape[-1], self.options.beta
            return true_shares(batch["labels"], batch["subclasses"], classes, self._number, beta)
        if self._others is not None:
            keys, shares = self._others = tuple(x.to(batch["keys"].device) for x in self._others)
            return shares[torch.searchsorted(keys, batch["keys"])]
        return self._of(teacher.features.float(), self.modules["subspaces"].weight, self.modules["subspaces"].offset)

    def _of(self, features: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        return shares(features, weight, offset, None if self.options.direction == "kmeans" else self.options.beta)

    # -- before training --------------------------------------------------------------------------------------

    def _fit(self, run: RunContext) -> None:
        """Read all rows' signals once, and find along what each class is split."""
        o, classes = self.options, len(run.student.classes)
        stored = {kind: run.signals(self._rows, kind) for kind in ("logits", "features")}

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for start in range(0, len(self._rows), READ):
                some = np.arange(start, min(start + READ, len(self._rows)))
                h, z = (stored[kind][some][kind].astype(np.float64) for kind in ("features", "logits"))
                given = z.argmax(1) if o.group_by == "teacher" else [e["label"] for e in self._rows[some]]
                yield h, z, np.asarray(given)

        rng = np.random.default_rng([run.seed, 0])
        found = Moments.of(parts(), classes)
        if not found.n[:classes].any():
            raise UsageError("group_by=label needs labels, and no training row has one", hint="--set group_by=teacher")
        p = np.eye(found.width)
        if o.null_space is not False:
            p = null_space(found.map_to_logits())
            left = round(np.trace(p))
            if left == 0 and o.null_space is True:
                raise CompatibilityError(
                    f"null_space=true leaves nothing to split by: the logits carry all {found.width} dimensions",
                    hint="--set null_space=auto",
                )
            p = p if left else np.eye(found.width)
        ways, c = found.narrowest(p, o.subclasses)
        number = max(1, min(o.subclasses, ways))
        if number < o.subclasses:
            logger.warning(
                "the teacher's embeddings of the %d rows of class %s vary in %d directions: %d pseudo-subclasses "
                "instead of %d%s; rows that it was not trained on vary more", found.n[c], run.student.classes[c], ways,
                number, o.subclasses, ", which is plain soft targets" if number == 1 else "",
            )  # fmt: skip
        if o.direction == "kmeans":
            self._split = clusters(parts(), p, classes, number, run.seed)
        else:
            self._split = found.subspaces(p, number, rng, direction=o.direction, rotate=o.rotate, center=o.center)
        self._number = number
        if o.control == "random":
            self._others = self._permuted(parts, rng)

    def _permuted(self, parts: Any, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Content keys in order, and for each the split of some other row, drawn again for each class."""
        import torch

        weight, offset = (torch.from_numpy(x).float() for x in self._split)
        table = torch.cat([self._of(torch.from_numpy(h).float(), weight, offset) for h, _, _ in parts()])
        for c in range(table.shape[1]):
            table[:, c] = table[torch.from_numpy(rng.permutation(len(table))), c]
        content = (example["content"] for example in self._examples())
        keys, order = torch.tensor([zlib.crc32(one) for one in content]).sort()
        return keys, table[order]

    def _true_subclasses(self) -> int:
        """How many there are.

        Raises:
            UsageError: rows do not say.
        """
        found = [e.get("subclass") for e in self._examples()]
        if None in found or max(found) < 0:
            raise UsageError(
                "control=oracle needs training rows with a column 'subclass'",
                hint="data: {source: 'labels:DATA', options: {groups: ...}} makes one",
            )
        return max(found) + 1

    def _examples(self) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(self._rows), READ):
            yield from self._rows[np.arange(start, min(start + READ, len(self._rows)))]


def shares(features: Tensor, weight: Tensor, offset: Tensor, beta: float | None) -> Tensor:
    """q = softmax(a / beta) over each class's S scores a = weight h - offset, (n, C, S); without beta 1 for the largest
    one, shared among equals."""
    import torch

    scores = torch.einsum("csd,nd->ncs", weight, features) - offset
    if beta is None:
        largest = (scores == scores.amax(-1, keepdim=True)).to(scores)
        return largest / largest.sum(-1, keepdim=True)
    return torch.softmax(scores / beta, -1)


def true_shares(labels: Tensor, subclasses: Tensor, classes: int, number: int, beta: float) -> Tensor:
    """q, (n, C, S): in the true class softmax(a / beta) of an embedding that is the true subclass, one of S equal ones,
    standardised like others; equal parts elsewhere.

    Giving all to the true subclass teaches the other outputs that they are never right, and at T = 4 a row between two
    subclasses then goes to another class: students ended far below `kd`.
    """
    import torch
    from torch.nn.functional import one_hot

    q = torch.full((len(labels), classes, number), 1 / number, device=labels.device)
    known = ((labels >= 0) & (subclasses >= 0)).nonzero().squeeze(-1)
    deviation = max(number - 1, 1) ** 0.5 / number
    q[known, labels[known]] = torch.softmax(one_hot(subclasses[known], number).to(q) / (deviation * beta), -1)
    return q


def targets(teacher: Tensor, shares: Tensor, temperature: float = 1.0) -> Tensor:
    """p_{c,s} = p_c q_{c,s}, (n, C S), from the teacher's logits (n, C) and q (n, C, S); each class keeps its p_c."""
    import torch

    return (torch.softmax(teacher / temperature, -1).unsqueeze(-1) * shares).flatten(1)


def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """-sum p log softmax(outputs) of each row, in nats."""
    from kdhub_tasks.divergences import log_probabilities

    return -(targets * log_probabilities(outputs)).sum(-1)
