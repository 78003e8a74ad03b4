"""Models of the transformers library with another attention and more positions: the conversion of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


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

    Weights stay; those of Longformer's global tokens start as copies. Positions are tiled to `max_length`.

    Raises:
        CompatibilityError: a model of another family.
        UsageError: settings that do not fit each other.
    """
    import transformers
    from kdhub_tasks.attention import AUTO, CONFIGS, DEFAULTS, PREFIX, without_square_mask

    if kind == "same":
        return model
    family = model.config.model_type.removeprefix(PREFIX)
    if family not in CONFIGS:
        raise CompatibilityError(
            f"attention can be replaced in models of {', '.join(CONFIGS)}, not of {model.config.model_type}",
        )
    auto = next(
        (a for a in (getattr(transformers, name) for name in AUTO) if _class_of(a, model.config) is type(model)), None
    )
    if auto is None:
        raise CompatibilityError(f"a {type(model).__name__} cannot be converted: its head is unknown")
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
            raise UsageError(f"lsg: sparsity must divide block (sparsity={own['sparsity']}, block={own['block']})")
        if own.get("conv") and own["conv"] % 2 == 0:
            raise UsageError(f"nystrom: conv must be odd (conv={own['conv']})")
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
    """Its weights, with learned positions repeated for `max_length` tokens, and how many positions precede that of the
    first token: in RoBERTa those up to padding's."""
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
    """The library's own Longformer, which has RoBERTa's shape: BERT's parts have other names, and no offset."""
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
        raise CompatibilityError(f"Longformer's head has the activation gelu, this model's has {config.hidden_act}")
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
    """The model with these weights. All weights must fit, and nothing may stay without one but what starts at zero (a
    convolution) or is tied."""
    fresh = {name for name in made.state_dict() if ".conv." in name}
    missing, unknown = made.load_state_dict(dict(weights), strict=False)
    if unknown or set(missing) - fresh:
        raise CompatibilityError(
            f"a {type(made).__name__} does not take these weights: {', '.join([*unknown, *missing][:3])}"
        )
    made.tie_weights()
    return made.eval()
