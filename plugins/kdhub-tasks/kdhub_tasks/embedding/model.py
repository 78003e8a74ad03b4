"""Text encoders as students, in the SentenceTransformer format."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdhub.errors import CompatibilityError
from kdhub.rows import Example
from kdhub.student import Student

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

    from kdhub_tasks.embedding import encoder

DOCUMENT = ("document", "passage", "corpus")
"""What the library takes for the prompt of a document, the first that a model has."""
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
"""Texts whose vectors show what a model's are like."""


class EmbeddingStudent(Student):
    """A text encoder in the SentenceTransformer format: tokens, pooling, optionally a linear head and unit length.

    Attributes:
        module: the SentenceTransformer.
    """

    task = "text-embedding"

    def __init__(self, module: SentenceTransformer, start: Mapping[str, Any] | None = None):
        from kdhub_tasks.embedding import encoder

        super().__init__(start)
        self.module = module
        encoder.heed_prompts(module)

    @classmethod
    def load(
        cls, folder: Path, *, name: str | None = None, start: Mapping[str, Any] | None = None, trust_remote_code=False
    ) -> EmbeddingStudent:
        """A SentenceTransformer folder, or one of a plain transformers encoder.

        Raises:
            UntrustedError: pickled weights, or code of its own that is not trusted.
        """
        from kdhub_tasks.embedding import encoder

        return cls(encoder.load(Path(folder), name=name, trust_remote_code=trust_remote_code), start)

    @property
    def width(self) -> int:
        """Dimensions of its vectors."""
        from kdhub_tasks.embedding import encoder

        return encoder.width(self.module)

    @property
    def max_length(self) -> int | None:
        """Tokens it takes, including special ones; None for a token table, which has no limit."""
        from kdhub_tasks.embedding import encoder

        return encoder.max_length(self.module)

    @property
    def prompts(self) -> dict[str, str]:
        """Text put in front, by role, as the library does it: "" is the role of a text of which none is known
        (`encode`, by `default_prompt_name`), a document's may be called `passage` or `corpus`, and a role without a
        text of its own has the default."""
        found = dict(self.module.prompts or {})
        default = found.get(self.module.default_prompt_name or "")
        documents = [found[name] for name in DOCUMENT if name in found]
        if documents:
            found.setdefault(DOCUMENT[0], documents[0])
        return found if default is None else {"query": default, DOCUMENT[0]: default, **found, "": default}

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        own, default = {role: text for role, text in prompts.items() if role}, prompts.get("")
        name = None
        if default:
            name = next((role for role, text in own.items() if text == default), "default")
            own[name] = default
        self.module.prompts, self.module.default_prompt_name = own, name

    @cached_property
    def cutter(self) -> encoder.Cutter:
        from kdhub_tasks.embedding import encoder

        return encoder.Cutter.of(self.module)

    def limit(self, max_length: int | None) -> None:
        """Take at most `max_length` tokens from now on, also after it is saved and loaded."""
        if None not in (max_length, self.max_length) and max_length < self.max_length:
            self.module.max_seq_length = max_length
            self.__dict__.pop("cutter", None)

    def add_head(self, width: int, *, bias: bool = True) -> None:
        """Add a linear layer to `width` dimensions, without activation."""
        from kdhub_tasks.embedding import encoder

        self.module.append(encoder.linear(self.width, width, bias))

    def set_pooling(self, mode: Literal["mean", "cls"]) -> None:
        """Pool token states by mean or first token. A token table, which is a mean anyway, stays as it is."""
        from kdhub_tasks.embedding import encoder

        for i, part in enumerate(self.module):
            if isinstance(part, encoder.Pooling):
                self.module[i] = encoder.Pooling(part.embedding_dimension, pooling_mode=mode)

    def set_normalised(self, unit: bool) -> None:
        """Make vectors unit length at the end, or not."""
        from kdhub_tasks.embedding import encoder

        if unit and not encoder.ends_normalised(self.module):
            self.module.append(encoder.Normalize())
        elif not unit and encoder.ends_normalised(self.module):
            del self.module[len(self.module) - 1]

    # -- other networks ---------------------------------------------------------------------------------------

    @property
    def layered(self) -> bool:
        """Whether it has layers, and can be made smaller by leaving some out."""
        return hasattr(self.module[0], "auto_model")

    @property
    def trunk(self) -> nn.Module:
        """The transformer, which has the list of layers."""
        return self.module[0].auto_model

    @property
    def exported(self) -> nn.Module:
        """The transformer: pooling and what follows stay with the library that loads it."""
        if not self.layered:
            raise CompatibilityError(
                "a token table has no transformer to export", hint="it is one matrix, which runs fast as it is"
            )
        return self.trunk

    def like(self, network: nn.Module, start: Mapping[str, Any]) -> EmbeddingStudent:
        """Another transformer, mean pooled, that reads texts as this one."""
        from kdhub_tasks.embedding import encoder

        body = copy.deepcopy(self.module[0], {id(self.trunk): network})
        pooling = encoder.Pooling(int(body.get_embedding_dimension()), pooling_mode="mean")
        student = type(self)(encoder.trainable(encoder.assemble(body, pooling)), start)
        student.prompts = self.prompts
        return student

    # -- signals ----------------------------------------------------------------------------------------------

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        from kdhub_tasks.embedding import encoder

        prompts = encoder.prompt_lengths(self.module, self.cutter, [e["prompt"] for e in examples])
        return {"embedding": encoder.encode(self.module, [e["ids"] for e in examples], prompt_lengths=prompts)}

    def describe(self, precision: str = "auto") -> dict[str, Any]:
        """`width`, `max_length`, `prompts`, and whether its vectors are `normalised`: those of eight texts have a
        length within 1e-3 of 1."""
        from kdhub_tasks.embedding import encoder

        vectors = encoder.encode(self.module, self.cutter.ids(PROBES), precision=precision)
        norms = np.linalg.norm(vectors, axis=1)
        return {
            "width": int(vectors.shape[1]),
            "normalised": bool(np.all(np.abs(norms - 1) < 1e-3)),
            "max_length": self.max_length,
            "prompts": self.prompts,
            "default_prompt": self.prompts.get(""),
        }

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
