"""The student builder `quantized:BITS`: another student with the weights of its linear layers on a grid."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn

from kdhub import open_student
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import MethodOptions
from kdhub.recipes.recipe import Ref
from kdhub.student import BuildContext
from kdhub_tasks.models import Classifier
from kdhub_tasks.quantization import SKIPPED, Quantized, Scheme, put_on


class QuantizedOptions(MethodOptions):
    of: dict[str, Any] | None = Field(None, description="the student to quantise, {source: ...}; the teacher if none")
    format: Literal["int-asym", "int-sym", "fp4"] = Field("int-asym", description="the grid; fp4 has 4 bits")
    group_size: int = Field(128, ge=-1, description="weights that share a scale; -1 is a row; narrower layers have one")
    skip_modules: list[str] = Field(list(SKIPPED), description="names, or parts of them, of layers that stay as is")


def quantized(argument: str, context: BuildContext) -> Any:
    """`quantized:BITS`: another student, or the teacher's own weights, with the weights of its linear layers on a grid.
    Embeddings, norms, biases and the output head stay as they are.

    Raises:
        UsageError: bits outside 2 to 8; other than 4 for fp4; a name of skip_modules that no layer has.
        CompatibilityError: there is nothing to quantise, or groups do not divide a layer's inputs.
    """
    known = QuantizedOptions.model_fields  # beside those that every student of the task takes
    options = QuantizedOptions(**{name: value for name, value in context.options.items() if name in known})
    bits = int(argument) if argument.isdigit() else 0
    if not 2 <= bits <= 8:
        raise UsageError(f"student quantized:{argument}: bits must be from 2 to 8", hint="quantized:3")
    if options.format == "fp4" and bits != 4:
        raise UsageError(f"student quantized:{argument}: fp4 has 4 bits", hint="quantized:4, or format: int-sym")
    if options.group_size == 0:
        raise UsageError(f"student quantized:{argument}: group_size must be -1 or from 1 (group_size=0)")
    student, of = _start(argument, options, context)
    scheme = Scheme(bits, options.group_size, options.format)
    chosen = _chosen(student.module, options.skip_modules, f"quantized:{argument}")
    for name, layer in chosen.items():
        try:
            put_on(layer, scheme)
        except CompatibilityError as error:
            raise CompatibilityError(f"student quantized:{argument}: {name}: {error}", hint=error.hint) from error
    student.start = {**of, "relation": "quantized", "how": f"{options.format} of {bits} bits, {len(chosen)} layers"}
    return student


quantized.Options = QuantizedOptions


def _start(argument: str, options: QuantizedOptions, context: BuildContext) -> tuple[Any, dict[str, Any]]:
    """The student to quantise, and where it came from."""
    if options.of is not None:
        ref = Ref.model_validate(options.of)
        student = open_student(ref, context.task.name, teacher=context.teacher, seed=context.seed, facts=context.facts)
        of = dict(student.start)
    else:
        model = getattr(context.teacher, "model", None)
        if model is None:
            raise CompatibilityError(
                f"student quantized:{argument} needs a teacher with weights at hand, or a student to start from",
                hint="student: {source: quantized:3, of: {source: path:FOLDER}}",
            )
        student, known = copy.deepcopy(model), context.teacher.known
        of = {"base_model": known.get("id") if known.get("revision") or known.get("package") else None}
        of = {k: v for k, v in {**of, **{n: known.get(n) for n in ("revision", "licence")}}.items() if v is not None}
    if not isinstance(student, Classifier):
        kind = type(student).__name__
        raise CompatibilityError(f"student quantized:{argument}: a {kind} cannot be saved in few bits")
    student.module.requires_grad_(True)
    return student, of


def _chosen(module: nn.Module, skipped: Sequence[str], what: str) -> dict[str, nn.Linear]:
    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, Quantized)}
    head = getattr(getattr(module, "model", None), "get_output_embeddings", lambda: None)()

    def matches(name: str, skip: str) -> bool:
        return f".{skip}." in f".{name}."

    if unknown := [s for s in skipped if s not in SKIPPED and not any(matches(name, s) for name in layers)]:
        raise UsageError(
            f"student {what}: no linear layer is called {', '.join(map(repr, unknown))} (skip_modules)",
            hint=f"there are {', '.join(list(layers)[:8])}",
        )
    chosen = {n: l for n, l in layers.items() if l is not head and not any(matches(n, s) for s in skipped)}  # noqa: E741
    if not chosen:
        raise CompatibilityError(
            f"student {what}: there is no linear layer to quantise",
            hint=f"linear layers that were left out: {', '.join(layers) or 'none'}",
        )
    return chosen
