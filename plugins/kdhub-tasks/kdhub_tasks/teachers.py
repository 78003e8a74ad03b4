"""Saved models of the ground floor's tasks as teachers: as `kdhub.SavedTeacher`, and parts of large signals.

logits:top-32          see `sparse`
hidden_states:3,6      these layers, counted from 1; so with attentions
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdhub.errors import TeacherError
from kdhub.named_layers import is_layer
from kdhub.rows import Example
from kdhub.teachers.saved import SavedTeacher
from kdhub_tasks.signals import LAYERED
from kdhub_tasks.sparse import Form, packed


class ModelTeacher(SavedTeacher):
    """A saved model whose rows are read by its own tokenizer, and whose signals can be had in part."""

    nested = False

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    @property
    def vocabulary(self) -> str | None:
        """Of models whose signals are those of tokens: which tokens."""
        return self.facts.get("vocabulary")

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def reads(self) -> Any:
        """The model by which rows are read for it."""
        return self.model

    def layout(self, kind: str) -> dict[str, Any]:
        if is_layer(kind):
            return super().layout(kind)
        widths, (kind, _, keep) = self.facts["widths"], kind.partition(":")
        if kind in LAYERED and kind not in widths:  # of a teacher that was known before it had them
            widths = self.probe()["widths"]
        if kind not in widths or (keep and kind not in ("logits", *LAYERED)):
            raise TeacherError(
                f"{self.argument} gives {', '.join(widths)}, and parts of logits and layers, not {kind!r}"
            )
        shape = list(widths[kind])
        if kind in LAYERED and keep:
            shape[LAYERED[kind]] = len(keep.split(","))
        if kind in LAYERED or not keep:
            return {kind: tuple(shape)}
        field = Form.parse(keep, shape[-1]).field(kind, ragged=shape[0] is None)
        return {field.name: field}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if is_layer(kind):
            return super().signals(examples, kind)
        kind, _, keep = kind.partition(":")
        given = self.model.signals(examples, kind)
        if not keep:
            return given
        if kind in LAYERED:
            at, axis, rows = [int(layer) - 1 for layer in keep.split(",")], LAYERED[kind], given[kind]
            return {kind: np.take(rows, at, axis) if isinstance(rows, np.ndarray) else [r.take(at, axis) for r in rows]}
        ragged, form = self.model.ragged, Form.parse(keep, self.facts["widths"][kind][-1])
        contents = [example["content"] for example in examples]
        return {form.field(kind, ragged).name: packed(given[kind], form, contents, ragged)}
