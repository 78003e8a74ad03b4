"""Two towers: one encoder reads each text separately, and a small head scores two vectors (arXiv:1908.05161).

    u, v = psi(A), psi(B)                                     the same encoder, pooled over its last layers
    concat   s = W2 relu(W1 [u ; v ; u*v ; |u-v|] + b1) + b2
    dot      s = sum(u*v), which any index of inner products ranks by

Two classes have one score, and the logits 0 and s. The vectors of texts can be stored: a query costs one pass of the
encoder, and one of the head for each candidate.

A folder has `config.json` and `model.safetensors` with the head, and a SentenceTransformer in `encoder/`. With `cls`,
or one top layer and all tokens pooled, its vectors are those of the towers; the library has no pooling for the other
shapes, and then it pools the last layer alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example
from kdhub_tasks.embedding import encoder
from kdhub_tasks.models import Classifier
from kdhub_tasks.pairs.heads import ConcatHead, DotHead, Shape, pool
from kdhub_tasks.pairs.model import SortedRows
from kdhub_tasks.pairs.spec import TOWERS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DROPOUT = 0.1
"""Of pooled vectors, before a projection, as in the authors' code."""
BLOCK = 2**21
"""Numbers in a block while many pairs are scored: 8 MB, which fit into a cache."""


def leads(model: SentenceTransformer) -> bool:
    """Whether its tokenizer puts a special token before a text, such as BERT's [CLS]; GPT's and T5's do not."""
    return encoder.fast_tokenizer(model).encode("a").special_tokens_mask[:1] == [1]


class TwoTowers(nn.Module):
    """The network. It takes token ids and masks of `left` and `right` texts, each side with its own padding, and gives
    `logits` (n, classes) and `embeddings` (n, 2, width)."""

    def __init__(self, model: SentenceTransformer, classes: int, shape: Shape):
        super().__init__()
        if isinstance(model[0], encoder.StaticEmbedding):
            raise CompatibilityError(
                "two towers pool the layers of an encoder, and a token table has none", hint="use layers:2, hf:org/name"
            )
        self.encoder = model
        self.leads = leads(model)
        self.classes = classes
        self.stand(shape)

    def stand(self, shape: Shape) -> None:
        """Put a fresh pooling and head of this shape on the encoder.

        Raises:
            UsageError: more layers than it has; an inner product for several scores.
        """
        config = self.encoder[0].auto_model.config
        if shape.pooler != "cls" and shape.top_layers > config.num_hidden_layers:
            have = config.num_hidden_layers
            raise UsageError(f"top_layers must be at most the encoder's {have} layers (top_layers={shape.top_layers})")
        number = 1 if self.classes <= 2 else self.classes
        if shape.head == "dot" and number > 1:
            raise UsageError(
                f"head must be concat for more than two classes, which have one score each (head=dot, {number} classes)"
            )
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
        pooled = self.dropout(pool(given.hidden_states[-top:], mask, self.shape.pooler, every))
        return (pooled if self.project is None else self.project(pooled)).float()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        u, v = (self.embed(inputs[f"{side}_ids"], inputs[f"{side}_mask"]) for side in ("left", "right"))
        scores = self.head(u, v)
        logits = torch.cat([torch.zeros_like(scores), scores], -1) if self.classes == 2 else scores
        return {"logits": logits, "embeddings": torch.stack([u, v], 1)}


class TwoTowerStudent(SortedRows, Classifier):
    """Two towers with their tokenizer: `embed` gives vectors to store, `matrix` the scores of all pairs of them."""

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
        """Another pooling and head, fresh; those that have this shape already stay."""
        if shape != self.module.shape:
            self.module.stand(shape)

    def limit(self, max_length: int) -> None:
        """Take at most so many tokens of a text from now on, here and wherever it is loaded."""
        if max_length < (encoder.max_length(self.encoder) or max_length + 1):
            self.encoder.max_seq_length = max_length

    def cutter(self, max_length: int | None = None) -> encoder.Cutter:
        """The cutter for the encoder's limit or a shorter one; cached, since making one takes longer than reading a
        batch."""
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
        """(texts, width) float32: what is stored of a candidate and computed once for a query."""
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
        """(a, b) float32: scores of all left vectors (a, width) with all right ones (b, width). For two classes the
        logit of the second minus that of the first; for more the logits, (a, b, classes).

        The encoder is not run; memory besides the result is that of a block.
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
        config = {"kdhub": 1, "task": self.task, "network": TOWERS, "classes": self.classes, **shape}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        own = {n: t.contiguous() for n, t in self.module.state_dict().items() if not n.startswith("encoder.")}
        if own:
            save_file(own, folder / "model.safetensors")
        self.sentence_encoder().save(str(folder / "encoder"), create_model_card=False, safe_serialization=True)

    def sentence_encoder(self) -> SentenceTransformer:
        """The encoder in the library's format; the module docstring says when its vectors are those of the towers."""
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
