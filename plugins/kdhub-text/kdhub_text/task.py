"""The task of text embedding: texts to vectors, scored by retrieval and similarity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from kdhub.errors import DataError
from kdhub.findings import Finding, shared_tokens
from kdhub.student import Student
from kdhub.task import Encoder, Example, Prepare, Signals, Task, View
from kdhub_text import outputs

if TYPE_CHECKING:
    import datasets
    import torch
    from sentence_transformers import SentenceTransformer
    from torch import nn

    from kdhub.data import Data
    from kdhub_text import encoder

ROLES = ("document", "query")

PROBES = (
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "How do I reverse a list?",
    "Return the number of items in a container.",
    "In 1969 two people walked on the moon for the first time.",
    "##ing",
    "Der Zug nach Hamburg hat zehn Minuten Verspätung.",
    "A longer text has more than one sentence. It says one thing, then another, and stops after the third. Like this.",
)
"""Texts that show what a teacher's vectors are like."""


class EmbeddingStudent(Student):
    """A text encoder in the SentenceTransformer format: tokens, pooling, perhaps a linear head, perhaps unit length.

    Attributes:
        module: the SentenceTransformer.
    """

    task = "text-embedding"

    def __init__(self, module: SentenceTransformer, start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.module = module

    @property
    def width(self) -> int:
        """Dimensions of its vectors."""
        from kdhub_text import encoder

        return encoder.width(self.module)

    @property
    def max_length(self) -> int | None:
        """Tokens it takes, special ones included; None for a token table, which has no limit."""
        from kdhub_text import encoder

        return encoder.max_length(self.module)

    @property
    def prompts(self) -> dict[str, str]:
        return dict(self.module.prompts or {})

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        self.module.prompts = dict(prompts)

    @cached_property
    def cutter(self) -> encoder.Cutter:
        from kdhub_text import encoder

        return encoder.Cutter.of(self.module)

    def limit(self, max_length: int | None) -> None:
        """Take at most so many tokens from now on, here and wherever the student is loaded."""
        if None not in (max_length, self.max_length) and max_length < self.max_length:
            self.module.max_seq_length = max_length
            self.__dict__.pop("cutter", None)

    def add_head(self, width: int, *, bias: bool = True) -> None:
        """A linear layer to `width` dimensions behind pooling; no activation."""
        from kdhub_text import encoder

        self.module.append(encoder.linear(self.width, width, bias))

    def set_pooling(self, mode: Literal["mean", "cls"]) -> None:
        """Pool token states by mean or first token. Nothing to do for a token table, which is a mean by itself."""
        from kdhub_text import encoder

        for i, part in enumerate(self.module):
            if isinstance(part, encoder.Pooling):
                self.module[i] = encoder.Pooling(part.embedding_dimension, pooling_mode=mode)

    def set_normalised(self, unit: bool) -> None:
        """End with unit length, or without."""
        from kdhub_text import encoder

        if unit and not encoder.ends_normalised(self.module):
            self.module.append(encoder.Normalize())
        elif not unit and encoder.ends_normalised(self.module):
            del self.module[len(self.module) - 1]

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        from kdhub_text import encoder

        prompts = encoder.prompt_lengths(self.module, self.cutter, [e["prompt"] for e in examples])
        return {"embedding": encoder.encode(self.module, [e["ids"] for e in examples], prompt_lengths=prompts)}

    def save(self, folder: Path) -> None:
        self.module.save(str(folder), create_model_card=False, safe_serialization=True)

    def usage(self) -> str:
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("{path}")\n'
            'vectors = model.encode_document(["a text to find"])\n'
            'print(model.similarity(model.encode_query(["what to look for"]), vectors))'
        )

    @property
    def library(self) -> str:
        return "sentence-transformers"


class TextEmbedding(Task):
    """Texts to vectors.

    Training rows have `text` and perhaps `role` (document or query). Evaluation knows two forms: `retrieval`
    (splits `corpus` and `queries`, and judgements) and `sts` (`sentence1`, `sentence2`, `score`).
    """

    name = "text-embedding"
    primary = {"retrieval": "ndcg@10", "sts": "spearman"}
    primary_signal = "embedding"
    pipeline_tag = "sentence-similarity"

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        asymmetric: bool = Field(True, description="also score student queries against the teacher's documents")
        truncate: list[Annotated[int, Field(ge=1)]] | Literal["auto", "off"] = Field(
            "auto", description="dimensions kept; auto halves the width down to 32"
        )
        precisions: list[Literal["int8", "binary"]] = Field(
            ["int8", "binary"], description="how stored vectors are kept, beside float32"
        )
        noise: list[Annotated[float, Field(gt=0, le=1)]] | Literal["off"] = Field(
            "off", description="cosines of exact perturbations of the teacher's vectors (robustness margin)"
        )

        @field_validator("truncate", "noise", mode="before")
        @classmethod
        def _as_written(cls, value: Any) -> Any:
            return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false

    # -- training ---------------------------------------------------------------------------------------------

    def training_table(self, parts: Sequence[tuple[Data, str]]) -> datasets.Dataset:
        from kdhub.data import Data

        (data, split), *more = parts
        return Data.join(parts).split("train") if more else data.texts(split)

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Rows to texts with their prompts in front, cut to what both models take.

        Settings:
            max_length: tokens at most, beside the models' own limits.
            prompts: text in front by role; the teacher's by default, the student's own without a teacher.
        """
        prompts = settings.get("prompts")
        if prompts is None:
            prompts = (teacher or student).prompts
        cutters = _cutters(student, teacher, settings.get("max_length"))

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            given = [prompts.get(row.get("role") or "", "") for row in rows]
            texts = [prompt + row["text"] for prompt, row in zip(given, rows)]
            fitted, ids, cut = texts, None, [False] * len(texts)
            for cutter in cutters:
                fitted, ids, more = cutter.cut(fitted)
                cut = [a or b for a, b in zip(cut, more)]
            if cutters and len(cutters) > 1:  # the last one was not the student's
                ids = cutters[0].ids(fitted)
            if ids is None:  # a black box: characters stand for tokens
                ids = [range(len(text) // 4 + 1) for text in fitted]
            return [
                {"content": f"{p}\x1f{t}".encode(), "text": t, "prompt": p, "ids": i, "length": len(i), "cut": c}
                for p, t, i, c in zip(given, fitted, ids, cut)
            ]

        return prepare

    def collate(self, examples: Sequence[Example], student: Any) -> dict[str, torch.Tensor]:
        import torch

        from kdhub_text import encoder

        ids = [e["ids"] for e in examples]
        return encoder.features(student.module, ids, encoder.pad_id(student.module), torch.device("cpu"))

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return Signals(embedding=module(dict(inputs))["sentence_embedding"].float())

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Prompts and unit length, which must be the same for vectors of one space; tokens, which need not."""
        from kdhub_text import encoder

        mine, theirs = ({r: p for r, p in model.prompts.items() if p} for model in (student, teacher))
        found = [Finding("ok", "prompts", f"the same: {mine or 'none'}")]
        if mine != theirs:
            do = "vectors of other prompts are those of other texts: leave options.prompts unset, or set both alike"
            found = [Finding("warn", "prompts", f"student {mine or 'none'}, teacher {theirs or 'none'}", do)]
        unit = {who: "unit length" if is_unit else "any length" for who, is_unit in (
            ("student", encoder.ends_normalised(student.module)), ("teacher", teacher.normalised)
        )}  # fmt: skip
        if unit["student"] == unit["teacher"]:
            found.append(Finding("ok", "normalisation", f"both of {unit['student']}"))
        else:
            do = "distances then compare lengths as well: options.normalize: auto does what the teacher does"
            found.append(Finding("warn", "normalisation", f"student {unit['student']}, teacher {unit['teacher']}", do))
        if thorough and teacher.cutter is not None:
            found.append(shared_tokens(student.cutter.tokenizer, teacher.cutter.tokenizer))
        return found

    def load(self, folder: Path) -> EmbeddingStudent:
        from kdhub_text import encoder

        return EmbeddingStudent(encoder.load(Path(folder)))

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Any:
        form = data.form(split)
        if form == "retrieval":
            part = data.retrieval(split)
            return outputs.RetrievalOutputs(
                query_ids=[str(i) for i in part.queries["id"]],
                corpus_ids=[str(i) for i in part.corpus["id"]],
                queries=encode(part.queries, "embedding", role="query")["embedding"],
                corpus=encode(part.corpus, "embedding", role="document")["embedding"],
                qrels={q: {d: int(g) for d, g in grades.items()} for q, grades in part.judgements.items()},
            )
        if form == "sts":
            table = data.split(split)

            def side(column: str) -> np.ndarray:
                return encode(table.select_columns([column]).rename_column(column, "text"), "embedding")["embedding"]

            return outputs.StsOutputs(side("sentence1"), side("sentence2"), np.asarray(table["score"], np.float64))
        raise DataError(
            f"{data.name}, split {split!r}, has the form {form!r}: text embedding is scored on 'retrieval' and 'sts'",
            hint="use it for training, or evaluate on another data set: kdhub list datasets",
        )

    def views(self, out: Any, options: Any, subject: str) -> Iterator[View]:
        yield View()
        width = getattr(out, out.sides[0]).shape[1]
        dims = options.truncate
        if dims == "auto":
            dims = [width >> k for k in range(1, 6) if width >> k >= 32]
        for k in dims if dims != "off" else ():
            if k < width:
                yield View({"dims": k}, partial(outputs.truncate, dims=k))
        for precision in options.precisions:
            yield View({"precision": precision}, getattr(outputs, precision))
        for cosine in options.noise if options.noise != "off" and subject == "teacher" else ():
            for sides in ("queries", "both"):
                yield View(
                    {"noise": cosine, "sides": sides}, partial(outputs.noise, cosine=cosine, seed=0, sides=sides)
                )

    def mixed(self, student: Any, teacher: Any) -> Any | None:
        return outputs.mixed(student, teacher)

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        if data.form(split) == "retrieval":
            part = data.retrieval(split)
            half = n // 2
            queries = [{"text": t, "role": "query"} for t in part.queries[:half]["text"]]
            return queries + [{"text": t, "role": "document"} for t in part.corpus[: n - len(queries)]["text"]]
        return [{"text": t} for t in data.texts(split)[:n]["text"]]

    def flops(self, student: Any, example: Example) -> int | None:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from kdhub_text import encoder

        module = student.module
        if module is None:
            return None
        device = next(module.parameters()).device
        inputs = encoder.features(module, [example["ids"]], encoder.pad_id(module), device)
        module.eval()
        # Counted in the plain arithmetic: the fused attention kernels of some devices are unknown to the counter.
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            with FlopCounterMode(display=False) as counter:
                module(inputs)
        return int(counter.get_total_flops())

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_text import tiny

        return tiny.recipe(folder)


def _cutters(student: Any, teacher: Any, max_length: int | None) -> list[encoder.Cutter]:
    """The cutters a text goes through: one for a shared tokenizer, else the student's and then the teacher's.

    A token table puts no special tokens around a text, so that with the same tokenizer it takes more of it: two.
    """
    from kdhub_text import encoder

    models = [m for m in (student, teacher) if m is not None and getattr(m, "cutter", None) is not None]
    limits = filter(None, (max_length, *(m.cutter.max_length for m in models)))
    kinds = {(m.cutter.special, m.cutter.lower, encoder.fast_tokenizer(m.module).to_str()) for m in models}
    if len(kinds) == 1:
        return [encoder.Cutter.of(models[0].module, min(limits, default=None))]
    return [encoder.Cutter.of(m.module, max_length) for m in models]
