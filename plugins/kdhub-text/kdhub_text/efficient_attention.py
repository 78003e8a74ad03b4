"""Students that are long-context and small: converted to efficient attention, then distilled (arXiv:2311.13657).

Convert, train on, distil, fine-tune: each is a recipe of its own, and the paper's order or the other way round is how
they are chained.

* Convert (`efficient:KIND`): all weights stay, attention is swapped (`kdhub_logits.attention`), learned positions are
  tiled to the new length.
* Distil: a student of half the layers, every second of the teacher's, with the same attention. As in DistilBERT, which
  the paper names its three terms after,

      L = a_ce tau^2 mean KL(p_T^tau || p_S^tau)  +  a_mlm mean CE  +  a_cos mean (1 - cos(h_S, h_T))

  over positions, positions with a label, and real tokens; h are the last states. Positions are all real tokens in
  masked language modelling, as in DistilBERT's code, and the masked ones have labels; in classification of texts or
  words both are the rows' own, in question answering the first and last token of an answer.

The paper's body was not at hand: weights are DistilBERT's (tau 2, 5, 2, 1), and where it is silent the choice is ours
(tiling, which layers, the share of long documents, which is a matter of the recipe's data: the sampler `mixture`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_logits.soft_targets import ClassifierOptions, cross_entropies, labelled_in, positions_in, tokens_in
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import ObjectiveMethod, Progress
from kdhub.recipe import Ref
from kdhub.student import BuildContext

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.student import Student
    from kdhub.task import Signals
    from kdhub.teacher import Teacher

KINDS = ("same", "full", "longformer", "bigbird", "lsg", "nystrom")


class EfficientAttention(ObjectiveMethod):
    """Soft targets, labels, and the direction of the last states (arXiv:2311.13657)."""

    class Options(ClassifierOptions):
        tau: float = Field(2.0, gt=0, description="temperature of the soft targets")
        a_ce: float = Field(5.0, ge=0, description="weight of the soft targets")
        a_mlm: float = Field(2.0, ge=0, description="weight of the labels: masked tokens, or classes")
        a_cos: float = Field(1.0, ge=0, description="weight of the cosine of last states")
        positions: Literal["all", "masked"] = Field("all", description="fill-mask: tokens of the soft targets")

    options: Options
    partial_signals = ("top", "renormalised")

    def settings(self) -> dict[str, Any]:
        """That of fill-mask; other tasks have no use for it."""
        return {"whole": self.options.positions == "all"}

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        if not self.options.a_cos:
            return ("logits",)
        layers = teacher.layout("hidden_states")["hidden_states"][-2]
        return ("logits", f"hidden_states:{layers}")

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """The widths of the last states.

        Raises:
            CompatibilityError: they differ.
        """
        if self.options.a_cos:
            mine, theirs = student.width("hidden_states")[-1], teacher.layout("hidden_states")["hidden_states"][-1]
            if mine != theirs:
                raise CompatibilityError(
                    f"the student's states have {mine} dimensions, the teacher's {theirs}: no cosine between them",
                    hint="a student of the same width (half-layers:alternate), or a_cos: 0",
                )

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_logits.divergences import forward_kl
        from kdhub_logits.positions import over_positions
        from kdhub_logits.sparse import divergence

        o, labelled = self.options, labelled_in(batch)

        def sums(s: Tensor, z: Tensor, y: Tensor) -> dict[str, Tensor]:
            soft = divergence(forward_kl, s, z, o.tau).sum()
            return {
                "teacher": o.a_ce * o.tau**2 * soft / positions_in(batch),
                "labels": o.a_mlm * cross_entropies(s, y).sum() / labelled,
            }

        terms = over_positions(sums, student, teacher, batch["labels"])
        if o.a_cos:
            apart = cosine_loss(student["hidden_states"][:, -1], teacher["hidden_states"].float()[:, -1])
            terms["cosine"] = o.a_cos * apart.sum() / tokens_in(batch, len(apart))
        return terms


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(h_S, h_T) of each token, (tokens,), in [0, 2]; blind to the scale of either."""
    from kdhub_logits.similarity import feature_distance

    if student.shape != teacher.shape:
        raise CompatibilityError(
            f"the student has states {tuple(student.shape)}, the teacher {tuple(teacher.shape)}",
            hint="states are compared token by token: both need one tokenizer and one width",
        )
    return feature_distance(student, teacher, "cosine")


# ---- starts


class EfficientOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    of: Ref | None = Field(None, description="the model that is changed, as a student; the teacher if unset")
    window: int = Field(512, ge=4, multiple_of=2, description="longformer: tokens seen, half on each side")
    globals: int = Field(1, ge=0, description="longformer, lsg: first tokens that are global; bigbird: first blocks")
    block: int = Field(64, ge=1, description="bigbird, lsg: tokens of a block")
    random_blocks: int = Field(3, ge=0, description="bigbird: further blocks that each sees")
    random_seed: int = Field(0, ge=0, description="bigbird: of those")
    sparsity: int = Field(4, ge=0, description="lsg: tokens of a mean beyond the neighbours; 0 for none")
    landmarks: int = Field(64, ge=1, description="nystrom: means of queries and of keys")
    pinv: Literal["newton", "exact"] = Field("newton", description="nystrom: inverse by six steps, or exact")
    conv: int = Field(0, ge=0, description="nystrom: odd width of the convolution beside attention; 0 for none")
    max_length: int | None = Field(4096, ge=4, description="tokens that it shall take; null for as many as now")
    layers: Literal["all", "half"] | tuple[Annotated[int, Field(ge=1)], ...] = Field(
        "all", description="layers that stay: all, half of them, or these, counted from 1"
    )
    init: Literal["alternate", "first", "random"] = Field(
        "alternate", description="half: evenly from first to last, the first ones, or fresh weights"
    )


def efficient(argument: str, context: BuildContext) -> Student:
    """`efficient:KIND`: a text model with other attention, room for longer texts, and as many of its layers as wished.

    Raises:
        UsageError: an unknown kind, or settings that fit neither each other nor the model.
        CompatibilityError: a model that cannot be converted.
    """
    o = EfficientOptions.model_validate(context.options)
    if argument not in KINDS:
        raise UsageError(f"student efficient:{argument}: kinds are {', '.join(KINDS)}")
    start, of = _opened(o, context)
    model, how = cut_layers(start.module.model, o.layers, o.init, context.seed)
    model = to_efficient(model, argument, **o.model_dump(exclude={"of", "layers", "init"}))
    tokenizer = copy.deepcopy(start.tokenizer)
    if argument != "same" and o.max_length:
        tokenizer.model_max_length = o.max_length
    model.requires_grad_(True)
    told = [of.get("how"), how, "" if argument == "same" else f"{argument} attention"]
    made = {**of, "how": ", ".join(filter(None, told))}
    return type(start)(model, tokenizer, made)


efficient.Options = EfficientOptions


class HalfOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    of: Ref | None = Field(None, description="the model that is cut, as a student; the teacher if unset")


def half_layers(argument: str, context: BuildContext) -> Student:
    """`half-layers:alternate`, `half-layers:first`, `half-layers:random`: `efficient:same` with half of the layers."""
    if argument not in ("alternate", "first", "random"):
        raise UsageError(f"student half-layers:{argument}: alternate, first or random")
    context.options = {**context.options, "layers": "half", "init": argument}
    return efficient("same", context)


half_layers.Options = HalfOptions


def chunked(argument: str, context: BuildContext) -> Student:
    """`chunked:N`: a classifier of words that reads long rows in chunks with N tokens in common.

    Raises:
        UsageError: N is no number, or leaves no room in the model.
    """
    start, of = _opened(HalfOptions.model_validate(context.options), context)
    overlap = int(argument) if argument.isdigit() else -1
    if not 0 <= overlap < start.max_length - 2:
        raise UsageError(f"student chunked:{argument}: chunks of {start.max_length} tokens share 0 or more of them")
    start.module.model.config.chunk_overlap = overlap
    start.start = {**of, "how": ", ".join(filter(None, [of.get("how"), f"in chunks that share {overlap} tokens"]))}
    return start


chunked.Options = HalfOptions


def _opened(options: Any, context: BuildContext) -> tuple[Any, dict[str, Any]]:
    """The text model that is changed, a copy, and where it came from."""
    from kdhub.resolve import Resolver

    if options.of is not None:
        inner = BuildContext(context.task, context.teacher, context.seed, facts=context.facts)
        start = Resolver().student(options.of, inner)
    else:
        start = getattr(context.teacher, "model", None)
        if start is None:
            raise UsageError("there is no model to change", hint="name one in the student's option `of`")
        known = context.teacher.known
        of = {"base_model": known.get("id") if known.get("revision") else None, "revision": known.get("revision")}
        start = type(start)(copy.deepcopy(start.module.model).requires_grad_(True), start.tokenizer, of)
    if not hasattr(start, "tokenizer") or not hasattr(start.module, "model"):
        raise CompatibilityError(f"a {type(start).__name__} is no text model of the transformers library")
    return start, dict(start.start)


def cut_layers(
    model: nn.Module, layers: str | tuple[int, ...], init: str = "alternate", seed: int = 0
) -> tuple[nn.Module, str]:
    """A copy with fewer layers, and what was done, in words; see `EfficientOptions`.

    Raises:
        UsageError: layers that it has not.
    """
    import transformers
    from kdhub_logits.students import blocks, evenly, keep_blocks

    have = len(blocks(model))
    if layers == "all":
        return copy.deepcopy(model), ""
    if layers == "half":
        keep = max(1, have // 2)
        chosen = list(range(keep)) if init == "first" else evenly(have, keep)
    else:
        chosen = [layer - 1 for layer in layers]
        if max(chosen) >= have or sorted(set(chosen)) != chosen:
            raise UsageError(f"layers {list(layers)}: the model has {have}, counted from 1, in ascending order")
    made = copy.deepcopy(model)
    keep_blocks(made, chosen)
    if init == "random":
        transformers.set_seed(seed)
        # Of what would be saved: how this object computes its masks is no choice that a new one may be made with.
        return type(made)(type(made.config)(**made.config.to_dict())).eval(), f"{len(chosen)} fresh layers"
    return made, f"layers {', '.join(str(i + 1) for i in chosen)} of {have}"


def to_efficient(
    model: nn.Module,
    kind: str,
    *,
    max_length: int | None = None,
    window: int = 512,
    globals: int = 1,
    **settings: Any,
) -> nn.Module:
    """A model of the transformers library (BERT, RoBERTa, XLM-R, with any head) with another attention.

    Weights are its own; those of Longformer's global tokens begin as copies. Positions are tiled to `max_length`.

    Raises:
        CompatibilityError: another family.
        UsageError: settings that do not fit each other.
    """
    import transformers
    from kdhub_logits.attention import AUTO, CONFIGS, DEFAULTS, PREFIX, without_square_mask

    if kind == "same":
        return model
    family = model.config.model_type.removeprefix(PREFIX)
    if family not in CONFIGS:
        raise CompatibilityError(
            f"a {model.config.model_type} model has no other attention here",
            hint=f"models of {', '.join(CONFIGS)} have",
        )
    auto = next(
        (a for a in (getattr(transformers, name) for name in AUTO) if _class_of(a, model.config) is type(model)), None
    )
    if auto is None:
        raise CompatibilityError(f"a {type(model).__name__} cannot be converted: its head is not known")
    weights, offset = _tiled(model, family, max_length)
    given = model.config.to_dict()
    given["max_position_embeddings"] = len(weights[_positions(weights)])
    for name in ("efficient_attention", "architectures", "model_type"):
        given.pop(name, None)
    if kind == "longformer":
        return without_square_mask(_longformer(auto, given, weights, offset, window, globals))
    if kind == "full":
        config = transformers.AutoConfig.for_model(family, **given)
    else:
        own = {name: settings.get(name, value) for name, value in DEFAULTS[kind].items()}
        if "globals" in own:
            own["globals"] = globals
        if own.get("sparsity") and own["block"] % own["sparsity"]:
            raise UsageError(f"lsg: means of {own['sparsity']} tokens do not divide blocks of {own['block']}")
        if own.get("conv") and own["conv"] % 2 == 0:
            raise UsageError(f"nystrom: a convolution of {own['conv']} has no middle; its width is odd")
        config = CONFIGS[family](**given, efficient_attention={"kind": kind, **own})
    made = _class_of(auto, config)(config)
    return _filled(made, weights)


def _class_of(auto: Any, config: Any) -> type | None:
    try:
        return auto._model_mapping[type(config)]
    except KeyError:
        return None


def _positions(weights: Mapping[str, Tensor]) -> str:
    return next(name for name in weights if name.endswith("embeddings.position_embeddings.weight"))


def _tiled(model: nn.Module, family: str, max_length: int | None) -> tuple[dict[str, Tensor], int]:
    """Its weights, with learned positions repeated for `max_length` tokens, and how many positions stand before the
    first token's: RoBERTa's begin behind that of padding."""
    import torch

    weights = {name: t.detach().clone() for name, t in model.state_dict().items()}
    name = _positions(weights)
    offset = 0 if family == "bert" else model.config.pad_token_id + 1
    special, learned = weights[name][:offset], weights[name][offset:]
    many = max_length or len(learned)
    weights[name] = torch.cat([special, learned.repeat(-(-many // len(learned)), 1)[:many]])
    return weights, offset


def _longformer(
    auto: Any, given: Mapping[str, Any], weights: dict[str, Tensor], offset: int, window: int, first: int
) -> nn.Module:
    """The library's own model, which is RoBERTa's shape: BERT's parts have other names there, and no offset."""
    import torch
    import transformers

    known = transformers.LongformerConfig().to_dict()
    config = transformers.LongformerConfig(**{n: v for n, v in given.items() if n in known})
    config.attention_window, config.global_tokens = [window] * config.num_hidden_layers, first
    if not offset:
        pad, name = config.pad_token_id + 1, _positions(weights)
        weights[name] = torch.cat([weights[name][:1].expand(pad, -1), weights[name]])
    config.max_position_embeddings = len(weights[_positions(weights)])
    renamed = {}
    for name, value in weights.items():
        for theirs, ours in _NAMES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        renamed[name] = value
    if "classifier.weight" in renamed and "classifier.dense.weight" in renamed:  # BERT's pooler and classifier
        for part in ("weight", "bias"):
            renamed[f"classifier.out_proj.{part}"] = renamed.pop(f"classifier.{part}")
    for name in list(renamed):
        for part in ("query", "key", "value"):
            if f".self.{part}." in name:
                renamed[name.replace(f".self.{part}.", f".self.{part}_global.")] = renamed[name].clone()
    made = _class_of(auto, config)(config)
    if "lm_head.dense.weight" in renamed and config.hidden_act != "gelu":
        raise CompatibilityError(f"a head with {config.hidden_act} is not Longformer's, which has gelu")
    return _filled(made, renamed)


_NAMES = (
    ("cls.predictions.transform.dense.", "lm_head.dense."),
    ("cls.predictions.transform.LayerNorm.", "lm_head.layer_norm."),
    ("cls.predictions.", "lm_head."),
    ("bert.pooler.dense.", "classifier.dense."),
    ("bert.", "longformer."),
    ("roberta.", "longformer."),
)


def _filled(made: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights; all of them must find their place, and all places a weight, but what is zero at
    first (a convolution) or tied."""
    fresh = {name for name in made.state_dict() if ".conv." in name}
    missing, unknown = made.load_state_dict(dict(weights), strict=False)
    if unknown or set(missing) - fresh:
        raise CompatibilityError(
            f"a {type(made).__name__} does not take these weights: {', '.join([*unknown, *missing][:3])}"
        )
    made.tie_weights()
    return made.eval()
