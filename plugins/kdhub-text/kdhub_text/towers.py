"""Two towers: one encoder reads each text alone, and a small head scores two of its vectors (arXiv:1908.05161).

    u, v = psi(A), psi(B)                                     the same encoder, pooled over its last layers
    concat   s = W2 relu(W1 [u ; v ; u*v ; |u-v|] + b1) + b2
    dot      s = sum(u*v), which any index of inner products ranks by

Two classes have one score, and the logits 0 and s. So texts' vectors can be kept: a query costs one pass of the encoder
and as many of the head as there are candidates.

A folder has `config.json` and `model.safetensors` with the head, and in `encoder/` a SentenceTransformer. With `cls`,
or one top layer and all tokens pooled, its vectors are the towers' own; else the library has no such pooling, and it
pools the last layer alone.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from kdhub_logits.classifiers import Classifier
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.hub.trust import check_model_folder
from kdhub.student import BuildContext
from kdhub.task import Example
from kdhub_text import encoder
from kdhub_text.cross_encoder import SortedRows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NETWORK = "two-towers"
DROPOUT = 0.1
"""On pooled vectors before the head, as the authors' code has it."""
BLOCK = 2**21
"""Numbers of a block while many pairs are scored, 8 MB: what stays in a cache."""


@dataclass(frozen=True)
class Shape:
    """What stands on the encoder. See `dse.Dse.Options` for each."""

    pooler: str = "concat_top_mean"
    include_cls: bool = False
    top_layers: int = 4
    embed_dim: int = -1
    head: str = "concat"
    fc_dims: tuple[int, ...] = (512,)
    symmetric: bool = False


def pool(states: Sequence[Tensor], mask: Tensor, pooler: str = "concat_top_mean", include_cls: bool = False) -> Tensor:
    """One vector a text, of the real tokens alone.

    Args:
        states: the last layers, each (texts, tokens, d).
        mask: (texts, tokens), 0 for padding.
        pooler: `cls`, the first token of the last layer; else `concat_top_MODE`, layers side by side, (texts, k d), or
            `average_top_MODE`, their mean, (texts, d). Modes: mean, sqrt_mean (sum / sqrt(n)), max.
        include_cls: whether the first token counts; [SEP] does either way, and so does a first token that is all there
            is. A text without a token is all 0.
    """
    if pooler == "cls":
        return states[-1][:, 0]
    how, _, mode = pooler.partition("_top_")
    x = torch.cat(list(states), -1) if how == "concat" else torch.stack(list(states)).mean(0)
    alone = x[:, 0] * mask[:, :1].to(x.dtype)
    if not include_cls and x.shape[1] > 1:
        x, mask = x[:, 1:], mask[:, 1:]
    real = mask.unsqueeze(-1).to(x.dtype)
    if mode == "max":
        pooled = x.masked_fill(real == 0, torch.finfo(x.dtype).min).amax(1)
    else:
        many = real.sum(1).clamp_min(1)
        pooled = (x * real).sum(1) / (many if mode == "mean" else many.sqrt())
    return torch.where(mask.any(1, keepdim=True), pooled, alone)


def leads(model: SentenceTransformer) -> bool:
    """Whether its tokenizer puts a special token before a text, as BERT's [CLS]; GPT's and T5's begin with a word."""
    return encoder.fast_tokenizer(model).encode("a").special_tokens_mask[:1] == [1]


class ConcatHead(nn.Module):
    """Scores of [u ; v ; u*v ; |u-v|] by a small network.

    Args:
        width: of u and of v; scores: how many come out; hidden: widths between.
        symmetric: the mean over both orders of the texts, which the score then does not depend on.
    """

    def __init__(self, width: int, scores: int, hidden: Sequence[int] = (512,), symmetric: bool = False):
        super().__init__()
        dims = [4 * width, *hidden, scores]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))
        self.symmetric = symmetric

    def lift(self, by: Tensor) -> None:
        """Give so much more for all pairs."""
        with torch.no_grad():
            self.layers[-1].bias.add_(by)

    @staticmethod
    def features(u: Tensor, v: Tensor) -> Tensor:
        return torch.cat([u, v, u * v, (u - v).abs()], -1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """(n, scores) of u and v (n, width), row by row."""
        orders = [(u, v), (v, u)] if self.symmetric else [(u, v)]
        return torch.stack([self._further(self.layers[0](self.features(*order))) for order in orders]).mean(0)

    def _further(self, x: Tensor) -> Tensor:
        for layer in self.layers[1:]:
            x = layer(x.relu())
        return x

    def block(self, u: Tensor, v: Tensor) -> Tensor:
        """(a, b, scores) of all u (a, width) with all v (b, width).

        The first layer's products with u and with v alone are made once for each text; u*v times its part of the weight
        is v times that part times u. Only |u-v| has to be made for each pair.
        """
        first = self.layers[0]
        of_u, of_v, of_product, of_distance = first.weight.chunk(4, 1)
        orders = [(u @ of_u.T + first.bias, v @ of_v.T)]
        if self.symmetric:
            orders.append((u @ of_v.T + first.bias, v @ of_u.T))
        rows = []
        for i, one in enumerate(u):
            pairs = v @ (of_product * one).T + (v - one).abs() @ of_distance.T
            given = [self._further(pairs + mine[i] + theirs) for mine, theirs in orders]
            rows.append(torch.stack(given).mean(0))
        return torch.stack(rows)


class DotHead(nn.Module):
    """sum(u*v), symmetric, without anything to train."""

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1, keepdim=True)

    def block(self, u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T).unsqueeze(-1)


class TwoTowers(nn.Module):
    """The network: what it takes are token ids and masks of `left` and `right` texts, each side with its own padding.

    It gives `logits` (n, classes) and `embeddings` (n, 2, width).
    """

    def __init__(self, model: SentenceTransformer, classes: int, shape: Shape):
        super().__init__()
        if isinstance(model[0], encoder.StaticEmbedding):
            raise CompatibilityError(
                "a token table has no layers to pool", hint="use an encoder: layers:2, hf:org/name"
            )
        self.encoder = model
        self.leads = leads(model)
        self.classes = classes
        self.stand(shape)

    def stand(self, shape: Shape) -> None:
        """Put a fresh pooling and head of this shape on the encoder.

        Raises:
            UsageError: more layers than it has; a scalar product for several scores.
        """
        config = self.encoder[0].auto_model.config
        if shape.pooler != "cls" and shape.top_layers > config.num_hidden_layers:
            raise UsageError(f"top_layers is {shape.top_layers}, the encoder has {config.num_hidden_layers} layers")
        number = 1 if self.classes <= 2 else self.classes
        if shape.head == "dot" and number > 1:
            raise UsageError(f"a scalar product is one score, {self.classes} classes have {number}; use head: concat")
        pooled = config.hidden_size * (shape.top_layers if shape.pooler.startswith("concat") else 1)
        self.width = shape.embed_dim if shape.embed_dim > 0 else pooled
        self.shape, device = shape, next(self.encoder.parameters()).device
        self.dropout = nn.Dropout(DROPOUT)
        self.project = nn.Linear(pooled, self.width).to(device) if shape.embed_dim > 0 else None
        concat = shape.head == "concat"
        self.head = (ConcatHead(self.width, number, shape.fc_dims, shape.symmetric) if concat else DotHead()).to(device)

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """psi: (texts, width) float32, of each text alone."""
        given = self.encoder[0].auto_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        top = 1 if self.shape.pooler == "cls" else self.shape.top_layers
        every = self.shape.include_cls or not self.leads
        pooled = pool(given.hidden_states[-top:], mask, self.shape.pooler, every)
        return (pooled if self.project is None else self.project(pooled)).float()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        u, v = (self.embed(inputs[f"{side}_ids"], inputs[f"{side}_mask"]) for side in ("left", "right"))
        scores = self.head(self.dropout(u), self.dropout(v))
        logits = torch.cat([torch.zeros_like(scores), scores], -1) if self.classes == 2 else scores
        return {"logits": logits, "embeddings": torch.stack([u, v], 1)}


class TwoTowerStudent(SortedRows, Classifier):
    """Two towers with their tokenizer: `embed` gives texts' vectors to keep, `matrix` the scores of all with all."""

    kinds = ("logits", "embeddings")

    def __init__(
        self, model: SentenceTransformer, classes: Sequence[str], shape: Shape, start: Mapping[str, Any] | None = None
    ):
        body = encoder.trainable(encoder.assemble(model[0]))  # without its own pooling
        super().__init__("text-pairs", TwoTowers(body, len(classes), shape), classes, start)
        self._cutters: dict[int | None, encoder.Cutter] = {}

    @property
    def batch(self) -> int:
        return 32 if self.device.type == "cpu" else 512

    @property
    def encoder(self) -> SentenceTransformer:
        return self.module.encoder

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    def stand(self, shape: Shape) -> None:
        """Another pooling and head, fresh; what is of this shape already stays as it is."""
        if shape != self.module.shape:
            self.module.stand(shape)

    def limit(self, max_length: int) -> None:
        """Take at most so many tokens of a text from now on, here and wherever it is loaded."""
        if max_length < (encoder.max_length(self.encoder) or max_length + 1):
            self.encoder.max_seq_length = max_length

    def cutter(self, max_length: int | None = None) -> encoder.Cutter:
        """That of the encoder's limit or a shorter one, kept: to make one takes longer than to read a batch."""
        limit = min(filter(None, (encoder.max_length(self.encoder), max_length)), default=None)
        if limit not in self._cutters:
            self._cutters[limit] = encoder.Cutter.of(self.encoder, limit)
        return self._cutters[limit]

    # -- pairs ------------------------------------------------------------------------------------------------

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int | None = None) -> list[dict[str, Any]]:
        """Each pair as token ids of either text."""
        cutter = self.cutter(max_length)
        (lefts, some), (rights, others) = (cutter.cut([pair[side] for pair in pairs])[1:] for side in (0, 1))
        return [
            {"tokens": (a, b), "by": self, "length": len(a) + len(b), "cut": c or d}
            for a, b, c, d in zip(lefts, rights, some, others)
        ]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        tokens = [e["tokens"] if e.get("by") is self else None for e in examples]
        if None in tokens:  # prepared for another model
            tokens = [read["tokens"] for read in self.encode_pairs([e["pair"] for e in examples])]
        batch = {}
        for side, ids in zip(("left", "right"), zip(*tokens)):
            given = encoder.features(self.encoder, ids, encoder.pad_id(self.encoder), torch.device("cpu"))
            batch |= {f"{side}_ids": given["input_ids"], f"{side}_mask": given["attention_mask"]}
        return batch

    def width(self, kind: str) -> tuple[int, ...]:
        return {"logits": (len(self.classes),), "embeddings": (2, self.module.width)}[kind]

    # -- serving ----------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width) float32: what is kept of a candidate, and made once of a query."""
        ids, device = self.cutter().cut(list(texts))[1], self.device
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        result = np.empty((len(ids), self.module.width), np.float32)
        budget = encoder.CPU_TOKENS if device.type == "cpu" else encoder.GPU_TOKENS
        with self._at_rest():
            for rows in encoder.token_batches(lengths, budget):
                given = encoder.features(self.encoder, [ids[i] for i in rows], encoder.pad_id(self.encoder), device)
                result[rows] = self.module.embed(given["input_ids"], given["attention_mask"]).cpu().numpy()
        return result

    def matrix(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(a, b) float32: the score of all left vectors (a, width) with all right ones (b, width); the logit of the
        second of two classes less the first's, or (a, b, classes) logits of more.

        No pass of the encoder; memory beside the result is that of a block.
        """
        number = 1 if len(self.classes) <= 2 else len(self.classes)
        result = np.empty((len(left), len(right), number), np.float32)
        for rows, columns, block in self._blocks(left, right):
            result[rows, columns] = block
        return result[..., 0] if number == 1 else result

    def _blocks(self, left: np.ndarray, right: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
        width, device = self.module.width, self.device
        many = max(1, BLOCK // width)
        with self._at_rest():
            for start in range(0, len(right), many):
                columns = slice(start, start + many)
                v = torch.tensor(right[columns], dtype=torch.float32, device=device)
                for first in range(0, len(left), many):
                    rows = slice(first, first + many)
                    u = torch.tensor(left[rows], dtype=torch.float32, device=device)
                    yield rows, columns, self.module.head.block(u, v).cpu().numpy()

    def _at_rest(self) -> Any:
        self.module.eval()
        return torch.inference_mode()

    # -- saving -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        shape = {**asdict(self.module.shape), "fc_dims": list(self.module.shape.fc_dims)}
        config = {"kdhub": 1, "task": self.task, "network": NETWORK, "classes": self.classes, **shape}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        own = {n: t.contiguous() for n, t in self.module.state_dict().items() if not n.startswith("encoder.")}
        if own:
            save_file(own, folder / "model.safetensors")
        self.sentence_encoder().save(str(folder / "encoder"), create_model_card=False, safe_serialization=True)

    def sentence_encoder(self) -> SentenceTransformer:
        """The encoder as the library knows encoders; see the module's text for when its vectors are the towers'."""
        shape = self.module.shape
        mode = {"mean": "mean", "sqrt_mean": "mean_sqrt_len_tokens", "max": "max"}.get(shape.pooler.split("_top_")[-1])
        body = self.encoder[0]
        parts = [body, encoder.Pooling(int(body.get_embedding_dimension()), pooling_mode=mode or "cls")]
        if self.module.project is not None and self.module.project.in_features == parts[1].pooling_output_dimension:
            dense = encoder.linear(self.module.project.in_features, self.module.project.out_features, True)
            dense.linear.load_state_dict(self.module.project.state_dict())
            parts.append(dense)
        return encoder.assemble(*parts)

    @classmethod
    def load(cls, folder: Path, *, name: str | None = None) -> TwoTowerStudent:
        """Raises: UntrustedError: pickles, code, or weights of another shape."""
        check_model_folder(folder, name=name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = {key: config[key] for key in Shape.__dataclass_fields__ if key in config}
        shape = Shape(**{**known, "fc_dims": tuple(known.get("fc_dims", ()))})
        student = cls(encoder.load(folder / "encoder", name=name), config["classes"], shape)
        own = {n for n in student.module.state_dict() if not n.startswith("encoder.")}
        state = load_file(folder / "model.safetensors") if own else {}
        if set(state) != own:
            raise UntrustedError(f"{name or folder} has the weights of another network than its config.json says")
        student.module.load_state_dict(state, strict=False)
        student.module.eval()
        return student

    def usage(self) -> str:
        return (
            "import kdhub\n\n"
            'model = kdhub.load("{path}")\n'
            'kept = model.embed(["a text to compare with", "another one"])\n'
            'print(model.matrix(model.embed(["a text"]), kept))'
        )


def are_in(folder: Path) -> bool:
    """Whether a folder is that of two towers."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("network") == NETWORK


# -- the builder ----------------------------------------------------------------------------------------------


class TowerOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    of: str = Field("packaged:all-minilm-l6-v2", description="the text encoder that layers:, config: are made from")
    options: dict[str, Any] = Field(default_factory=dict, description="of the student that the encoder is")


def towers(argument: str, context: BuildContext) -> TwoTowerStudent:
    """`towers:ENCODER`: any student of text embeddings (`layers:2`, `hf:org/name`, `config:layers=2,hidden_size=64`) as
    both towers, with a fresh head; `towers:teacher`: the cross-encoder's own encoder.

    Raises:
        CompatibilityError: a token table; a teacher without an encoder of its own.
    """
    from kdhub_logits.students import _classes

    from kdhub.recipe import Ref
    from kdhub.resolve import Resolver

    resolver = Resolver()
    if argument == "teacher":
        model, start = _of_teacher(context), {"how": "two towers of the teacher's encoder, fresh head"}
    else:
        options = TowerOptions.model_validate(context.options)
        task = resolver.task("text-embedding")
        made_of = resolver.target("student", argument, task.name).entry.spec.from_teacher
        of = resolver.teacher(Ref(source=options.of), task.name) if made_of else None
        inner = resolver.student(Ref(source=argument, **options.options), BuildContext(task, of, context.seed))
        model, start = (
            inner.module,
            {**inner.start, "how": f"two towers, {inner.start.get('how', argument)}, fresh head"},
        )
    torch.manual_seed(context.seed)
    layers = getattr(getattr(model[0], "auto_model", None), "config", None)
    top = min(Shape.top_layers, layers.num_hidden_layers) if layers is not None else 1
    return TwoTowerStudent(model, _classes(context), Shape(top_layers=top), start)


towers.Options = TowerOptions


def _of_teacher(context: BuildContext) -> SentenceTransformer:
    given = getattr(context.teacher, "model", None)
    network = getattr(getattr(given, "module", None), "model", None)
    if network is None or not hasattr(network, "base_model"):
        raise CompatibilityError("student towers:teacher: this teacher has no encoder of its own")
    body = copy.deepcopy(network.base_model)
    with tempfile.TemporaryDirectory() as folder:  # a SentenceTransformer is made from one
        body.save_pretrained(folder)
        given.tokenizer.save_pretrained(folder)
        return encoder.load(Path(folder))
