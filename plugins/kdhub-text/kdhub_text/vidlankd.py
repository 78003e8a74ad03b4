"""VidLanKD: what a language model learns from a teacher that saw video (arXiv:2107.02681).

Two stages, each a method. `vidlankd-teacher` trains a language encoder on captioned clips, by masked language modelling
and by contrast with a video encoder, which is then thrown away. `vidlankd` trains a student on text alone, by masked
language modelling and by the teacher's last states of the same masked tokens.

Stage 1. With x_il the unit state of token l of caption i, v_i the unit vector of its clip, and neg(i) a clip of the
other half of the batch:

    L = CE_MLM + (1 / #tokens) sum_il max(0, m - x_il v_i + x_il v_neg(i)),   m = 1

Stage 2. With t the teacher's unit states and s = unit(Linear LayerNorm GELU Linear (student's states)), a head for each
objective that is thrown away at the end:

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

The paper's tables could not be read. Departures: the clip's vector is pooled by a mean over frames, which have
positions but no type embeddings; schedules and Adam's eps (1e-8, not 1e-6) are the engine's; what is trained has no
dropout unless `dropout` is set, the video's side only that of its head; teacher's dropout is off in stage 2, as in the
code; nst takes all neurons, also of wide models; there are no hard labels (vokens).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import ObjectiveMethod, Progress, Run, TrainingOptions
from kdhub.recipe import DataRef

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.data import Data
    from kdhub.student import Student
    from kdhub.task import Signals
    from kdhub.teacher import Teacher

Objective = Literal["nst", "crd", "ntxent", "soft_label", "l2"]
DIRECT = ("crd", "ntxent", "l2")
"""Objectives that compare the student's states with the teacher's number by number."""


# ---- stage 1


class TeacherOptions(TrainingOptions):
    lr: float = Field(5e-5, gt=0, description="peak learning rate of AdamW")
    epochs: float = Field(20.0, gt=0, description="passes over the captions")
    teacher_objectives: tuple[Literal["mlm", "contrast"], ...] = Field(
        ("mlm", "contrast"), min_length=1, description="what it learns from"
    )
    mlm_prob: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are to be told")
    margin: float = Field(1.0, ge=0, description="of the contrast")
    clips: Annotated[
        DataRef | None, Field(description="captioned clips, `text` and `frames`, as one of data.train")
    ] = None
    video_layers: int = Field(2, ge=1, description="of the video encoder")
    video_heads: int = Field(4, ge=1, description="of its attention; they divide the language model's width")
    video_dropout: float = Field(0.3, ge=0, lt=1, description="in the head of the video encoder")


class VidLanKdTeacher(ObjectiveMethod):
    """A language encoder from captions and their clips."""

    Options = TeacherOptions
    options: TeacherOptions
    tiny_recipe = {"options": {"teacher_objectives": ["mlm"]}}  # its rows are no captions of clips

    def settings(self) -> dict[str, Any]:
        return {"mlm_prob": self.options.mlm_prob}

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        o = self.options
        if "contrast" not in o.teacher_objectives:
            return {}
        self._clips = Clips(o.clips)
        frames, pixels = self._clips.shape
        width = student.width("hidden_states")[-1]
        if width % o.video_heads:
            raise UsageError(f"video_heads {o.video_heads} do not divide the language model's width {width}")
        return {"video": video_encoder(frames, pixels, width, o.video_layers, o.video_heads, o.video_dropout)}

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A clip for each caption: of those that have this very caption one is drawn."""
        import torch

        if "contrast" not in self.options.teacher_objectives:
            return batch
        chosen = []
        for key in batch["keys"].tolist():
            rows = self._clips.rows(key)
            if not rows:
                raise DataError(
                    "a training row is no caption of the clips", hint="data.train is the clips' own data set"
                )
            chosen.append(rows[int(torch.randint(len(rows), (), generator=generator))])
        return {**batch, "frames": self._clips.frames(chosen).to(batch["input_ids"].device)}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from torch.nn.functional import normalize

        o, terms = self.options, {}
        if "mlm" in o.teacher_objectives:
            terms["labels"] = _masked_loss(student, batch)
        if "contrast" in o.teacher_objectives:
            states, mask = padded_states(student, batch["attention_mask"])
            terms["contrast"] = contrast_loss(
                normalize(states, dim=-1), mask, self.modules["video"](batch["frames"]), o.margin
            )
        return terms


class Clips:
    """Captioned clips, which stay on disk until they are asked for; held are 16 bytes a caption.

    Attributes:
        shape: (frames, pixels) of the first one, and of all.

    Raises:
        UsageError: there are none. DataError: a column is missing, or the first row has no clip.
    """

    def __init__(self, ref: DataRef | None):
        from kdhub.resolve import Resolver

        if ref is None:
            raise UsageError("the contrast needs clips", hint="options.clips: {source: digit-clips}")
        data = Resolver().data(ref)
        split = data.pick("train")
        table = data.split(split)
        if not {"text", "frames"} <= set(table.column_names):
            raise DataError(f"clips have text and frames, not {', '.join(table.column_names)}")
        texts = (text for part in table.select_columns(["text"]).iter(1000) for text in part["text"])
        keys = np.fromiter((zlib.crc32(text.encode()) for text in texts), np.int64, len(table))
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._table, self._name = table.select_columns(["frames"]).with_format("arrow"), f"{data.name}, split {split!r}"
        self.shape: tuple[int, ...] = ()
        self.shape = tuple(self.frames([0]).shape[1:])

    def rows(self, key: int) -> list[int]:
        """The rows, in their order, whose caption's content gives this number."""
        first, last = np.searchsorted(self._keys, [key, key + 1])
        return self._order[first:last].tolist()

    def frames(self, rows: Sequence[int]) -> Tensor:
        """Clips of some rows, (rows, frames, pixels).

        Raises:
            DataError: one is not of the first one's shape, or not of finite numbers.
        """
        import torch

        from kdhub.task import plain_rows

        made = []
        for n, row in zip(rows, plain_rows(self._table, rows)):
            try:
                clip = np.asarray(row["frames"], np.float32)
            except (TypeError, ValueError):  # no numbers, or lists of several lengths
                clip = np.empty(0)
            if clip.ndim != 2 or clip.shape != (self.shape or clip.shape) or not np.isfinite(clip).all():
                size = " x ".join(map(str, self.shape or ("frames", "pixels")))
                raise DataError(f"{self._name}: `frames` of row {n + 1} are not {size} finite numbers", rows=[n + 1])
            made.append(clip)
        return torch.from_numpy(np.stack(made))


def video_encoder(frames: int, pixels: int, width: int, layers: int, heads: int, dropout: float) -> nn.Module:
    """(batch, frames, pixels) -> (batch, width) unit vectors: two linear layers, positions, a transformer, and on the
    mean over frames a head of Linear, ReLU, Dropout, Linear."""
    import torch
    from torch import nn

    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Sequential(nn.Linear(pixels, width), nn.Linear(width, width))
            self.positions = nn.Parameter(0.02 * torch.randn(frames, width))
            self.norm = nn.LayerNorm(width)
            block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True)
            self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))

        def forward(self, frames: Tensor) -> Tensor:
            states = self.blocks(self.norm(self.into(frames) + self.positions))
            return nn.functional.normalize(self.head(states.mean(1)), dim=-1)

    return Video()


def contrast_loss(tokens: Tensor, mask: Tensor, clips: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over real tokens of max(0, margin - x v_i + x v_neg(i)): the texts of the first half of the batch and those
    of the second are each other's negatives; an odd batch is completed by its last row.

    Args:
        tokens: (batch, length, width) unit vectors; mask: (batch, length), true for real ones; clips: (batch, width).
    """
    import torch

    if len(tokens) % 2:
        tokens, mask, clips = (torch.cat([x, x[-1:]]) for x in (tokens, mask, clips))
    half = len(tokens) // 2
    other = clips.roll(half, 0)
    positive, negative = ((tokens * v[:, None]).sum(-1) for v in (clips, other))
    return ((margin - positive + negative).clamp_min(0) * mask).sum() / mask.sum().clamp_min(1)


# ---- stage 2


class VidLanKd(ObjectiveMethod):
    """Masked language modelling, and the states of a teacher that saw video (arXiv:2107.02681)."""

    class Options(TrainingOptions):
        lr: float = Field(2e-4, gt=0, description="peak learning rate of AdamW")
        objectives: tuple[Objective, ...] = Field(
            ("nst",), description="what is taken from the teacher; none is a control"
        )
        mlm_prob: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are to be told")
        kd_weight: float = Field(1.0, ge=0, description="of their sum")
        head: bool = Field(True, description="map the student's states by a head of its own for each objective")
        ntxent_temperature: float = Field(1.0, gt=0, description="of ntxent")
        crd_temperature: float = Field(0.07, gt=0, description="of crd")
        crd_queue: int = Field(4096, ge=1, description="states of the teacher that crd contrasts with")
        soft_label_temperature: float = Field(2.0, gt=0, description="of soft_label")
        reduction: Literal["mean", "code"] = Field(
            "mean", description="nst and ntxent as means, or as the released code"
        )
        pictures: Annotated[
            DataRef | None, Field(description="sentences, a `word` of each and its `picture`, that it is measured on")
        ] = None

    options: Options
    # nst alone does not see a teacher whose weights all have the other sign: its states are then the same, up to sign.
    tiny_recipe = {"options": {"objectives": ["nst", "soft_label"]}}

    def settings(self) -> dict[str, Any]:
        return {"mlm_prob": self.options.mlm_prob}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """The pictures, which are needed after training only.

        Raises:
            DataError: a column is missing, or a word is not in its text.
        """
        if self.options.pictures is None:
            return
        data, split = _pictures(self.options.pictures)
        for n, row in enumerate(data.split(split).select_columns(["text", "word"]), 1):
            if span_of(row["word"], row["text"]) is None:
                what = f"{row['word']!r} is not in {row['text']!r}"
                raise DataError(f"pictures: {data.name}, split {split!r}: row {n}: {what}", rows=[n])

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        """A head for each objective, and the queue of crd.

        Raises:
            CompatibilityError: without heads, states of other widths are compared.
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
        from torch.nn.functional import normalize

        o, terms = self.options, {"labels": _masked_loss(student, batch)}
        wanted = [name for name in o.objectives if o.kd_weight]
        if set(wanted) - {"soft_label"}:
            mask = batch["attention_mask"]
            states, real = padded_states(student, mask)
            target, _ = padded_states(teacher, mask)
            t = normalize(target.float(), dim=-1)
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
                value = crd_loss(s[real], t[real], memory.held(), o.crd_temperature)
                memory.put(t[real])
            else:
                value = (s[real] - t[real]).square().sum(-1).mean()
            terms[name] = o.kd_weight * value
        return terms

    def _soft_labels(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        from kdhub_logits.divergences import forward_kl
        from kdhub_logits.soft_targets import labelled_in

        t = self.options.soft_label_temperature
        of = batch["labels"] >= 0
        mine, theirs = student.logits[of] / t, teacher.logits.float()[of] / t
        return t * t * forward_kl(mine, theirs).sum() / labelled_in(batch)

    def evaluate(self, run: Run, student: Student) -> Any:
        """Also, of teacher and student, how words lie to each other as their pictures do (`rsa`), and how well a
        word's picture is told from its state (`picture-probe`)."""
        from kdhub.report import Measure

        report, o = run.evaluate(student), self.options
        if o.pictures is None:
            return report
        data, split = _pictures(o.pictures)
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


def _masked_loss(student: Signals, batch: Mapping[str, Any]) -> Tensor:
    """Mean -log q of the masked tokens, over the whole step."""
    from kdhub_logits.positions import over_positions
    from kdhub_logits.soft_targets import cross_entropies, labelled_in

    labelled = labelled_in(batch)
    terms = over_positions(
        lambda s, _, y: {"labels": cross_entropies(s, y).sum() / labelled}, student, {}, batch["labels"]
    )
    return terms["labels"]


def padded_states(signals: Signals, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Last states (batch, length, width), zero for padding, from `hidden_states` of real tokens; and which are real."""
    real = mask.bool()
    given = signals["hidden_states"][:, -1]
    states = given.new_zeros(*real.shape, given.shape[-1])
    states[real] = given
    return states, real


def head(inputs: int, outputs: int) -> nn.Module:
    """Linear, GELU, LayerNorm, Linear."""
    from torch import nn

    return nn.Sequential(nn.Linear(inputs, inputs), nn.GELU(), nn.LayerNorm(inputs), nn.Linear(inputs, outputs))


def queue(size: int, width: int) -> nn.Module:
    """The last `size` states that were put in, in the checkpoints but not trained."""
    import torch
    from torch import nn

    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("states", torch.zeros(size, width))
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def held(self) -> Tensor:
            return self.states[: min(int(self.seen), size)].clone()

        def put(self, states: Tensor) -> None:
            with torch.no_grad():
                new = states.detach().float()[-size:]
                at = (torch.arange(len(new), device=new.device) + self.seen) % size
                self.states[at] = new
                self.seen += len(new)

    return Queue()


def nst_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, reduction: str = "mean", constant: bool | None = None
) -> Tensor:
    """Neuron selectivity transfer: mean k(s, s') - 2 mean k(s, t) (+ mean k(t, t')) of neurons as unit vectors over the
    real tokens of a text, k(a, b) = (a b)^2; mean over texts. Least where the student's neurons are the teacher's up to
    order and sign, there 0 with the constant.

    Args:
        student: (batch, length, d_s); teacher: (batch, length, d_t), d_t may differ; mask: (batch, length), true for
            real tokens.
        reduction: `code` sums over texts and divides by the length, without the constant.
        constant: add the last term; by default as `reduction` says.
    """
    from torch.nn.functional import normalize

    a, b = (normalize((x * mask[..., None]).transpose(1, 2), dim=-1) for x in (student, teacher))

    def k(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.transpose(1, 2)).square().mean((1, 2))

    each = k(a, a) - 2 * k(a, b)
    if constant if constant is not None else reduction == "mean":
        each = each + k(b, b)
    return each.mean() if reduction == "mean" else each.sum() / mask.shape[1]


def ntxent_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """At each position NT-Xent of the B texts that reach it: of 2B unit vectors each should find its partner among
    2B - 1 others. Mean over anchors, then over positions that two texts reach; `code` divides by 2B once more.

    Args:
        student, teacher: (batch, length, width) unit vectors; mask: (batch, length), true for real tokens.
    """
    import torch

    both = torch.cat([student, teacher]).transpose(0, 1)  # (length, 2 batch, width)
    many, n = len(student), 2 * len(student)
    real = torch.cat([mask, mask]).T  # (length, 2 batch)
    like = both @ both.transpose(1, 2) / temperature
    itself = torch.eye(n, dtype=torch.bool, device=like.device)
    like = like.masked_fill(itself | ~real[:, None], -torch.inf)
    partner = torch.arange(n, device=like.device).roll(many)
    # Of positions that no other text reaches there is nothing to tell apart.
    here = mask.sum(0) >= 2
    if not here.any():
        return student.sum() * 0
    like, real = like[here], real[here]
    log_p = torch.log_softmax(like.masked_fill(~real[..., None], 0), -1)
    each = -log_p[:, torch.arange(n), partner].masked_fill(~real, 0)
    value = each.sum(1) / real.sum(1)
    if reduction == "code":
        value = value / real.sum(1)
    return value.mean()


def crd_loss(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float = 0.07) -> Tensor:
    """-log of the share of a token's own teacher state among it and those of the queue, mean over tokens; of an empty
    queue 0.

    Args:
        student, teacher: (tokens, width) unit vectors; queue: (n, width), the teacher's of earlier tokens.
    """
    import torch

    own = (student * teacher).sum(-1, keepdim=True)
    like = torch.cat([own, student @ queue.to(student.dtype).T], 1) / temperature
    return -torch.log_softmax(like, 1)[:, 0].mean()


# ---- what words are like


def _pictures(ref: DataRef) -> tuple[Data, str]:
    """A data set of words and what they look like, and its split.

    Raises:
        DataError: a column is missing.
    """
    from kdhub.resolve import Resolver

    data = Resolver().data(ref)
    split = data.pick("test")
    columns = data.split(split).column_names
    if missing := [name for name in ("text", "word", "picture") if name not in columns]:
        raise DataError(f"pictures: {data.name}, split {split!r}, has no column {', '.join(missing)}")
    return data, split


def span_of(word: Any, text: str) -> tuple[int, int] | None:
    """Where a word starts and ends in a text, in characters, whatever their case: first as a word of its own, else as
    a part of one; None if it is not there."""
    if not word or not isinstance(word, str):
        return None
    letters = re.escape(word)
    found = re.search(rf"(?<!\w){letters}(?!\w)", text, re.IGNORECASE) or re.search(letters, text, re.IGNORECASE)
    return found.span() if found else None


def word_states(model: Any, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Of each word the mean last state of its tokens over its sentences, (words, width), and its picture. Sentences
    that the model has to cut before the word are left out.

    Args:
        model: a masked language model (`masked_lm.MaskedLm`).
        rows: `text`, in which `word` stands, and `picture`.

    Raises:
        DataError: a word is not in its text, or in none as far as the model reads.
    """
    import torch
    from kdhub_logits.classifiers import padded

    names = list(dict.fromkeys(row["word"] for row in rows))
    network = model.module.model
    base, was, device = network.base_model, network.training, next(network.parameters()).device
    found: dict[str, list[Any]] = {name: [] for name in names}
    network.eval()
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            read = [one for one, _ in model.read([row["text"] for row in some])]
            given = padded([one["ids"] for one in read], model.tokenizer.pad_token_id or 0)
            given = {name: values.to(device) for name, values in given.items()}
            states = base(**given).last_hidden_state.float().cpu().numpy()
            for n, (row, one, state) in enumerate(zip(some, read, states), start + 1):
                word = span_of(row["word"], row["text"])
                if word is None:
                    raise DataError(f"row {n}: {row['word']!r} is not in {row['text']!r}", rows=[n])
                at = [i for i, (first, last) in enumerate(one["spans"]) if first < word[1] and word[0] < last]
                if at:
                    found[row["word"]].append(state[at].mean(0))
    network.train(was)
    if lost := [name for name in names if not found[name]]:
        raise DataError(f"the model reads {model.max_length} tokens of a text, and in these is no {', '.join(lost)}")
    pictures = {row["word"]: np.asarray(row["picture"], np.float64) for row in rows}
    return np.stack([np.mean(found[n], 0) for n in names]), np.stack([pictures[n] for n in names])


def rsa(states: Any, pictures: Any) -> float | None:
    """Representational similarity: Spearman's correlation of the cosines of all pairs of words with those of their
    pictures; |rho| below .29 is chance (p = .05) for the 45 pairs of ten. None of one word, or of words of one state.
    """
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    cosines = [1 - pdist(x, "cosine") for x in (states, pictures)]
    if len(states) < 2 or any(np.ptp(values) < 1e-9 for values in cosines):
        return None
    return float(spearmanr(*cosines).statistic)


def picture_probe(states: Any, pictures: Any, ridge: float = 1.0) -> float | None:
    """How well a ridge regression from the other words' states tells a word's picture: the mean cosine, over words, of
    told and true picture, both without the mean picture of the others. None of one word: there are no others."""
    from sklearn.linear_model import Ridge

    if len(states) < 2:
        return None
    values = []
    scaled = (states - states.mean(0)) / max(float(states.std()), 1e-12)
    for word in range(len(states)):
        others = np.arange(len(states)) != word
        told = Ridge(alpha=ridge).fit(scaled[others], pictures[others]).predict(scaled[word : word + 1])[0]
        mean = pictures[others].mean(0)
        a, b = told - mean, pictures[word] - mean
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        values.append(float(a @ b) / size if size > 0 else 0.0)
    return float(np.mean(values))
