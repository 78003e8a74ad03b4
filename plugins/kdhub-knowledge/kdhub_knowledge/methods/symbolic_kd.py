"""Symbolic knowledge distillation (arXiv:2110.07178): what a large language model knows of everyday events becomes a
graph in text, a critic filters it, and a small language model, COMET, learns from what is left.

    symbolic-kd-triples > symbolic-kd-annotations > symbolic-kd-critic > symbolic-kd-graph > symbolic-kd

This is the last step: cross-entropy of the tail's tokens after head and relation (`kdhub_knowledge.commonsense.comet`).
The authors' settings of it are not in their repository: those here were reconstructed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdhub_tasks.methods.supervised import Supervised
from pydantic import Field

from kdhub_knowledge.commonsense.comet import prompt_of

if TYPE_CHECKING:
    from kdhub.student import Student


class SymbolicKd(Supervised):
    class Options(Supervised.Options):
        lr: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")
        batch_size: int = Field(64, ge=1, description="triples of one optimiser step")
        epochs: float = Field(3.0, gt=0, description="passes over the graph")
        warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with rising learning rate")

    options: Options
    tiny_recipe = {"evaluation": {"metrics": None}}

    def adapt(self, student: Student, teacher: Any) -> None:
        """Note in the configuration what its prompts look like."""
        example = {"head": "PersonX misses the bus", "relation": "xWant"}
        student.module.model.config.example_prompt = prompt_of(example)
