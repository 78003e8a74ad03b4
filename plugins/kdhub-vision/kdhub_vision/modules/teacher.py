"""`spliced`: a teacher's module in the place of one block of a meta model, both frozen.

    teacher: {source: spliced, of: {source: recipe:m2mkd-teacher}, meta: {source: recipe:m2mkd-meta}, module: 0}

It depends on the image alone, so its logits are stored: a second run of a module calls nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub import open_teacher
from kdhub.errors import CompatibilityError, TeacherError, UsageError
from kdhub.recipes.recipe import TextRef
from kdhub.rows import Example
from kdhub.teacher import Teacher


class Spliced(Teacher):
    """Teacher and meta model are saved classifiers with lists of blocks, whose states have one shape between modules.
    There is one module for each block of the meta model."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        of: TextRef | None = Field(None, description="the teacher whose modules are taken")
        meta: TextRef | None = Field(None, description="the meta model, one block for each module")
        module: int = Field(0, ge=0, description="which module, from 0")
        depths: list[Annotated[int, Field(ge=1)]] | None = Field(
            None, description="blocks of each of the teacher's modules; even if unset"
        )

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {"of": recipe["teacher"], "meta": recipe["teacher"]}

    def _opened(self, name: str) -> Any:
        if (ref := getattr(self.options, name)) is None:
            raise UsageError(
                f"teacher spliced: {name} is missing",
                hint="teacher: {source: spliced, of: {source: recipe:TEACHER}, meta: {source: recipe:META}, module: 0}",
            )
        return open_teacher(ref, self.task.name)

    @cached_property
    def of(self) -> Any:
        return self._opened("of")

    @cached_property
    def meta(self) -> Any:
        return self._opened("meta")

    @property
    def identity(self) -> Mapping[str, Any]:
        own = {"module": self.options.module, "depths": self.options.depths}
        return {"kind": "spliced", "of": dict(self.of.identity), "meta": dict(self.meta.identity), **own}

    @property
    def provenance(self) -> Mapping[str, Any]:
        known = {"module": self.options.module, "meta": self.meta.provenance.get("source")}
        return {**self.of.provenance, **known}

    @property
    def classes(self) -> list[str]:
        if self.of.classes != self.meta.classes:
            raise CompatibilityError(
                f"the teacher has the classes {', '.join(self.of.classes[:6])}, the meta model "
                f"{', '.join(self.meta.classes[:6])}",
                hint="train both on the same classes",
            )
        return self.of.classes

    @property
    def problem(self) -> str:
        return getattr(self.of, "problem", "")

    @cached_property
    def module(self) -> Any:
        """
        Raises:
            UsageError: no such module, or depths that do not add up.
            CompatibilityError: states of another shape, or no blocks.
        """
        from kdhub_tasks.splitting import Chain

        from kdhub_vision.modules.hybrid import Hybrid, depths_of, fits

        networks = [self.meta.model, self.of.model]
        meta, of = (Chain(model.module) for model in networks)
        depths = depths_of(self.modules, len(of), self.options.depths, "teacher")
        fits(*(one.shapes(model.blank()) for one, model in zip((meta, of), networks)), depths, "teacher")
        return Hybrid(meta.network, of.network, self.options.module, depths).eval().requires_grad_(False)

    @property
    def modules(self) -> int:
        """How many there are.

        Raises:
            UsageError: there is none of the number asked for.
        """
        from kdhub_tasks.splitting import Chain

        many = len(Chain(self.meta.model.module))
        if self.options.module >= many:
            raise UsageError(
                f"module must be below the number of the meta model's blocks (module={self.options.module}, "
                f"blocks={many})"
            )
        return many

    def layout(self, kind: str) -> dict[str, tuple[int | None, ...]]:
        if kind != "logits":
            raise TeacherError(f"spliced gives logits, not {kind!r}")
        return {"logits": (len(self.classes),)}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        import torch

        from kdhub.ranks import device

        made, where, module = [], device(), self.module.to(device())
        with torch.no_grad():
            for start in range(0, len(examples), self.of.model.batch):
                some = examples[start : start + self.of.model.batch]
                meta, own = (
                    {name: value.to(where) for name, value in model.collate(some).items()}
                    for model in (self.meta.model, self.of.model)
                )
                made.append(module(meta, own)["logits"].float().cpu().numpy())
        return {"logits": np.concatenate(made)}
