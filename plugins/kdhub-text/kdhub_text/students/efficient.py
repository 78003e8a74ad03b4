"""Students with another attention, for longer texts, or with fewer layers (arXiv:2311.13657)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.recipes.recipe import Ref
from kdhub.student import BuildContext
from kdhub_text.students.conversion import to_efficient

if TYPE_CHECKING:
    from torch import nn

    from kdhub.student import Student

KINDS = ("same", "full", "longformer", "bigbird", "lsg", "nystrom")


class EfficientOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    of: Ref | None = Field(None, description="the model to convert, named as a student; the teacher if unset")
    window: int = Field(512, ge=4, multiple_of=2, description="longformer: tokens seen, half on each side")
    globals: int = Field(1, ge=0, description="longformer, lsg: first tokens that are global; bigbird: first blocks")
    block: int = Field(64, ge=1, description="bigbird, lsg: tokens of a block")
    random_blocks: int = Field(3, ge=0, description="bigbird: random blocks that each block sees")
    random_seed: int = Field(0, ge=0, description="bigbird: seed of the random blocks")
    sparsity: int = Field(4, ge=0, description="lsg: tokens averaged into one beyond the neighbours; 0 for none")
    landmarks: int = Field(64, ge=1, description="nystrom: landmarks, means of queries and of keys")
    pinv: Literal["newton", "exact"] = Field("newton", description="nystrom: inverse by six Newton steps, or exact")
    conv: int = Field(0, ge=0, description="nystrom: odd width of a convolution parallel to attention; 0 for none")
    max_length: int | None = Field(4096, ge=4, description="tokens it takes; null for as many as before")
    layers: Literal["all", "half"] | tuple[Annotated[int, Field(ge=1)], ...] = Field(
        "all", description="layers to keep: all, half of them, or these, counted from 1"
    )
    init: Literal["alternate", "first", "random"] = Field(
        "alternate", description="half: evenly spaced layers, the first ones, or fresh weights"
    )


def efficient(argument: str, context: BuildContext) -> Student:
    """`efficient:KIND`: a text model with another attention, room for longer texts, and all or some of its layers.

    Raises:
        UsageError: an unknown kind, or settings that do not fit each other or the model.
        CompatibilityError: a model that cannot be converted.
    """
    o = EfficientOptions.model_validate(context.options)
    if argument not in KINDS:
        raise UsageError(f"student efficient:{argument}: KIND must be one of {', '.join(KINDS)}")
    start, of = _opened(o, context)
    model, how = cut_layers(start.trunk, o.layers, o.init, context.seed)
    model = to_efficient(model, argument, **o.model_dump(exclude={"of", "layers", "init"}))
    tokenizer = copy.deepcopy(start.tokenizer)
    if argument != "same" and o.max_length:
        tokenizer.model_max_length = o.max_length
    model.requires_grad_(True)
    steps = [of.get("how"), how, "" if argument == "same" else f"{argument} attention"]
    return type(start)(model, tokenizer, {**of, "how": ", ".join(filter(None, steps))})


efficient.Options = EfficientOptions


class HalfOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    of: Ref | None = Field(None, description="the model to start from, named as a student; the teacher if unset")


def half_layers(argument: str, context: BuildContext) -> Student:
    """`half-layers:alternate`, `half-layers:first`, `half-layers:random`: `efficient:same` with half of the layers."""
    if argument not in ("alternate", "first", "random"):
        raise UsageError(f"student half-layers:{argument} must be alternate, first or random")
    context.options = {**context.options, "layers": "half", "init": argument}
    return efficient("same", context)


half_layers.Options = HalfOptions


def chunked(argument: str, context: BuildContext) -> Student:
    """`chunked:N`: a token classifier that reads long rows in chunks with N tokens in common.

    Raises:
        UsageError: N is not a number, or leaves no room in the model.
    """
    start, of = _opened(HalfOptions.model_validate(context.options), context)
    overlap = int(argument) if argument.isdigit() else -1
    if not 0 <= overlap < start.max_length - 2:
        limit = start.max_length - 3
        raise UsageError(f"student chunked:{argument}: N must be from 0 to {limit}, as chunks have {limit + 3} tokens")
    start.trunk.config.chunk_overlap = overlap
    start.start = {**of, "how": ", ".join(filter(None, [of.get("how"), f"in chunks that share {overlap} tokens"]))}
    return start


chunked.Options = HalfOptions


def _opened(options: Any, context: BuildContext) -> tuple[Any, dict[str, Any]]:
    """A copy of the text model that is changed, and where it came from."""
    from kdhub import open_student

    if options.of is not None:
        how = {"teacher": context.teacher, "seed": context.seed, "facts": context.facts}
        start = open_student(options.of, context.task.name, **how)
    else:
        start = getattr(context.teacher, "model", None)
        if start is None:
            raise UsageError(
                "this student is made from another model, and the teacher is not one that can be changed",
                hint="name a model in its option `of`",
            )
        known = context.teacher.known
        of = {"base_model": known.get("id") if known.get("revision") else None, "revision": known.get("revision")}
        start = start.like(copy.deepcopy(start.trunk).requires_grad_(True), of)
    if not hasattr(start, "tokenizer") or not hasattr(start.module, "model"):
        raise CompatibilityError(
            f"this student is made from a text model of the transformers library, not from a {type(start).__name__}"
        )
    return start, dict(start.start)


def cut_layers(
    model: nn.Module, layers: str | tuple[int, ...], init: str = "alternate", seed: int = 0
) -> tuple[nn.Module, str]:
    """A copy with fewer layers, and what was done, in words; see `EfficientOptions`.

    Raises:
        UsageError: layers that the model does not have.
    """
    import transformers
    from kdhub_tasks.layers import blocks, evenly, keep_blocks

    have = len(blocks(model))
    if layers == "all":
        return copy.deepcopy(model), ""
    if layers == "half":
        keep = max(1, have // 2)
        chosen = list(range(keep)) if init == "first" else evenly(have, keep)
    else:
        chosen = [layer - 1 for layer in layers]
        if max(chosen) >= have or sorted(set(chosen)) != chosen:
            raise UsageError(f"layers must ascend and be from 1 to {have} (layers={list(layers)})")
    made = copy.deepcopy(model)
    keep_blocks(made, chosen)
    if init == "random":
        transformers.set_seed(seed)
        # From what would be saved: the attention that this object computes with is not valid for a new one.
        return type(made)(type(made.config)(**made.config.to_dict())).eval(), f"{len(chosen)} fresh layers"
    return made, f"layers {', '.join(str(i + 1) for i in chosen)} of {have}"
