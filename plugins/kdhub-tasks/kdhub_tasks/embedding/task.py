"""Text embedding: texts to vectors, scored by retrieval and similarity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from kdhub.errors import DataError
from kdhub.findings import Finding, shared_tokens
from kdhub.rows import Example, Prepare, Signals
from kdhub.task import Encoder, NetworkTask, View
from kdhub_tasks.embedding import outputs, views
from kdhub_tasks.embedding.model import EmbeddingStudent
from kdhub_tasks.embedding.teachers import EncoderTeacher

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture
    from kdhub.student import BuildContext
    from kdhub_tasks.embedding import encoder

ROLES = ("document", "query")


class TextEmbedding(NetworkTask):
    """Texts to vectors.

    Training rows have `text` and optionally `role` (document or query). Evaluation takes two forms: `retrieval`
    (splits `corpus` and `queries`, and judgements) and `sts` (`sentence1`, `sentence2`, `score`).
    """

    name = "text-embedding"
    primary = {"retrieval": "ndcg@10", "sts": "spearman"}
    primary_signal = "embedding"
    pipeline_tag = "sentence-similarity"
    drawn = 16
    Teacher = EncoderTeacher

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        asymmetric: bool = Field(True, description="also score student queries against the teacher's documents")
        truncate: list[Annotated[int, Field(ge=1)]] | Literal["auto", "off"] = Field(
            "auto", description="dimensions kept; auto halves the width down to 32"
        )
        precisions: list[Literal["int8", "binary"]] = Field(
            ["int8", "binary"], description="how vectors are stored, other than float32"
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
        from kdhub.data.dataset import Data

        (data, split), *more = parts
        return Data.join(parts).split("train") if more else data.texts(split)

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Rows to texts with their prompts in front, cut to what both models take.

        Settings:
            max_length: tokens at most, besides the models' own limits.
            prompts: text put in front, by role, "" for rows without one; by default the teacher's, or without one
                the student's.
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
            if len(cutters) > 1:  # the last one was not the student's
                ids = cutters[0].ids(fitted)
            if ids is None:  # a teacher behind an API: lengths are estimated from characters
                ids = [range(len(text) // 4 + 1) for text in fitted]
            return [
                {"content": f"{p}\x1f{t}".encode(), "text": t, "prompt": p, "ids": i, "length": len(i), "cut": c}
                for p, t, i, c in zip(given, fitted, ids, cut)
            ]

        return prepare

    def collate(self, examples: Sequence[Example], student: Any) -> dict[str, torch.Tensor]:
        import torch

        from kdhub_tasks.embedding import encoder

        module, ids = student.module, [e["ids"] for e in examples]
        batch = encoder.features(module, ids, encoder.pad_id(module), torch.device("cpu"))
        if encoder.leaves_prompt_out(module):
            lengths = encoder.prompt_lengths(module, student.cutter, [e.get("prompt", "") for e in examples])
            batch["prompt_lengths"] = torch.tensor(lengths)
        return batch

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return Signals(embedding=module(dict(inputs))["sentence_embedding"].float())

    def compare(self, student: Any, teacher: Any, thorough: bool = False) -> list[Finding]:
        """Prompts and unit length, which must be the same for vectors in one space; vocabularies, which may differ."""
        from kdhub_tasks.embedding import encoder

        mine, theirs = ({r: p for r, p in model.prompts.items() if p} for model in (student, teacher))
        found = [Finding("ok", "prompts", f"the same: {mine or 'none'}")]
        if mine != theirs:
            do = "other prompts are other texts: leave options.prompts unset, or set the same for both"
            found = [Finding("warn", "prompts", f"student {mine or 'none'}, teacher {theirs or 'none'}", do)]
        unit = {who: "unit length" if is_unit else "any length" for who, is_unit in (
            ("student", encoder.ends_normalised(student.module)), ("teacher", teacher.normalised)
        )}  # fmt: skip
        if unit["student"] == unit["teacher"]:
            found.append(Finding("ok", "normalisation", f"both of {unit['student']}"))
        else:
            do = "distances then compare lengths too: options.normalize=auto follows the teacher"
            found.append(Finding("warn", "normalisation", f"student {unit['student']}, teacher {unit['teacher']}", do))
        if thorough and teacher.cutter is not None:
            found.append(shared_tokens(student.cutter.tokenizer, teacher.cutter.tokenizer))
        return found

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> EmbeddingStudent:
        return EmbeddingStudent.load(folder, name=name)

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> EmbeddingStudent:
        """A SentenceTransformer keeps its modules; a plain transformers encoder is mean pooled."""
        from kdhub_tasks.embedding import encoder

        student = EmbeddingStudent.load(folder, name=name, start=start)
        if len(student.module) == 1 and student.layered:
            width = int(student.module[0].get_embedding_dimension())
            student.module.append(encoder.Pooling(width, pooling_mode="mean"))
        encoder.trainable(student.module)
        return student

    def configure(self, student: EmbeddingStudent, context: BuildContext) -> EmbeddingStudent:
        """The same prompt goes in front of a text for both models."""
        if context.teacher is not None:
            student.prompts = context.teacher.prompts
        return student

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
                qrels=part.judgements,
            )
        if form == "sts":
            table = data.split(split)

            def side(column: str) -> np.ndarray:
                return encode(table.select_columns([column]).rename_column(column, "text"), "embedding")["embedding"]

            return outputs.StsOutputs(side("sentence1"), side("sentence2"), np.asarray(table["score"], np.float64))
        raise DataError(
            f"text embedding is scored on 'retrieval' and 'sts'; {data.name}, split {split!r}, has the form {form!r}",
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
                yield View({"dims": k}, partial(views.truncate, dims=k))
        for precision in options.precisions:
            yield View({"precision": precision}, getattr(views, precision))
        for cosine in options.noise if options.noise != "off" and subject == "teacher" else ():
            for sides in ("queries", "both"):
                yield View({"noise": cosine, "sides": sides}, partial(views.noise, cosine=cosine, seed=0, sides=sides))

    def mixed(self, student: Any, teacher: Any) -> Any | None:
        return outputs.mixed(student, teacher)

    def to_draw(self, out: Any, n: int) -> dict[str, np.ndarray]:
        from kdhub_tasks.embedding.vectors import unit

        one, other = (unit(getattr(out, side)[:n].astype(np.float64)) for side in out.sides)
        return {"cosines": one @ other.T}

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_tasks.embedding.drawing import similarities

        of_pairs = data.form(split) == "sts"
        yield similarities(given, ("first sentences", "second sentences") if of_pairs else ("queries", "documents"))

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

        from kdhub_tasks.embedding import encoder

        module = student.module
        if module is None:
            return None
        device = next(module.parameters()).device
        inputs = encoder.features(module, [example["ids"]], encoder.pad_id(module), device)
        module.eval()
        # Counted with plain kernels: the counter does not know the fused attention of some devices.
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            with FlopCounterMode(display=False) as counter:
                module(inputs)
        return int(counter.get_total_flops())

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.embedding import tiny

        return tiny.recipe(folder)


def _cutters(student: Any, teacher: Any, max_length: int | None) -> list[encoder.Cutter]:
    """The cutters a text goes through: one for a shared tokenizer, else the student's and then the teacher's.

    A token table takes no special tokens, so it fits more of a text than an encoder with the same tokenizer: two.
    """
    from kdhub_tasks.embedding import encoder

    models = [m for m in (student, teacher) if m is not None and getattr(m, "cutter", None) is not None]
    limits = filter(None, (max_length, *(m.cutter.max_length for m in models)))
    kinds = {(m.cutter.special, m.cutter.lower, encoder.fast_tokenizer(m.module).to_str()) for m in models}
    if len(kinds) == 1:
        return [encoder.Cutter.of(models[0].module, min(limits, default=None))]
    return [encoder.Cutter.of(m.module, max_length) for m in models]
