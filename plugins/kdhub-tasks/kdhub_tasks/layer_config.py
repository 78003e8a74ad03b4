"""What a configuration of the transformers library says of single layers, after some of them were taken out.

A configuration speaks of layers in lists with one entry a layer (`layer_types`, `attention_window`), in lists of their
numbers (`mlp_only_layers`), in pairs of kinds and repeats (`attention_types`), and in counts of the first or last ones.
What it derives from a layer's number by a rule of its own (every fourth) cannot be kept. So what it says in the end is
compared with the layers that are there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError

if TYPE_CHECKING:
    from torch import nn

OTHERS = ("token", "label", "architectures", "shape", "section", "limit", "factor", "multiplier", "ssm", "mean", "std")
"""Parts of the names of lists that are not about layers, however long."""
LAYERS = ("layer", "block", "window", "attn", "attention", "rope", "pattern", "intermediate", "types", "sparsity")
"""Parts of the names of lists that have one entry a layer if they are as long as there are layers."""
NUMBERS = ("_layers", "_ids", "_idxs", "_idx", "_indices", "_indexes")
"""Ends of the names of lists that may hold numbers of layers; those with a flag for each layer end so as well."""
FLAGS = ("no_rope_layers",)
"""Lists of zeros and ones that are as long as there are layers, and look like numbers where there are two."""
FIRST, LAST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers"), ("num_kv_shared_layers",)
"""Counts of layers from the beginning, and from the end."""


KEPT = ("_attn_implementation_internal", "_experts_implementation_internal", "_name_or_path", "dtype")
"""What a configuration knows of this process and not of the model."""


def cut(model: nn.Module, config: Any, chosen: Sequence[int], have: int) -> None:
    """Have a model's configuration say of the layers `chosen` what it said of them among `have`, and how many there
    are.

    Raises:
        CompatibilityError: it cannot; or a list is as long as there were layers and may or may not be about them.
    """
    values = config.to_dict()
    _cut_values(values, chosen, have, type(config).__name__)
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(chosen)
    try:
        made = type(config).from_dict(values)
        fits = made.num_hidden_layers == len(chosen)
    except Exception as error:  # whatever the library says of values that do not fit
        raise refusal(model, str(error).strip().splitlines()[-1].strip()) from error
    if not fits:
        raise refusal(model, "its number of layers follows from other settings")
    kept = {name: value for name, value in vars(config).items() if name in KEPT or hasattr(value, "to_dict")}
    vars(config).update({**vars(made), **kept})  # in place: all parts of the model have this object


def _cut_values(values: dict[str, Any], chosen: Sequence[int], have: int, where: str) -> None:
    for name, value in list(values.items()):
        if any(part in name for part in OTHERS):
            continue
        if isinstance(value, dict) and "num_hidden_layers" not in value:  # else it is of other layers
            if "layer" in name and value and {str(key) for key in value} <= {str(i) for i in range(have)}:
                values[name] = {new: value[k] for new, old in enumerate(chosen) for k in value if str(k) == str(old)}
            else:
                _cut_values(value, chosen, have, f"{where}.{name}")
        elif isinstance(value, (list, tuple)):
            values[name] = type(value)(_cut_list(name, value, chosen, have, where))
        elif name in FIRST and isinstance(value, int) and value < have:
            values[name] = sum(i < value for i in chosen)
        elif name in LAST and isinstance(value, int):
            values[name] = sum(i >= have - value for i in chosen)


def _cut_list(name: str, value: Sequence[Any], chosen: Sequence[int], have: int, where: str) -> Sequence[Any]:
    if pairs := _repeated(value, have):
        return [[[pairs[i] for i in chosen], 1]]
    numbers = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < have for i in value)
    ascending = numbers and list(value) == sorted(set(value))
    if ascending and name.endswith(NUMBERS) and not (name in FLAGS and len(value) == have):
        return [chosen.index(i) for i in value if i in chosen]
    if len(value) != have or len(chosen) == have:
        return value
    if any(part in name for part in LAYERS):
        return [value[i] for i in chosen]
    raise CompatibilityError(
        f"{where} has a list {name!r} of {have} entries, as many as it has layers, and kdhub does not know whether "
        "they are about layers: layers of this model cannot be left out"
    )


def _repeated(value: Sequence[Any], have: int) -> list[Any] | None:
    """The kinds of all layers, where a list has pairs of some kinds and how often they are repeated."""
    if not all(isinstance(v, (list, tuple)) and len(v) == 2 and isinstance(v[0], (list, tuple)) for v in value):
        return None
    if not all(isinstance(times, int) for _, times in value):
        return None
    kinds = [kind for some, times in value for _ in range(times) for kind in some]
    return kinds if value and len(kinds) == have else None


def described(model: nn.Module) -> nn.Module:
    """The model that is made from its configuration once that was saved, without memory for its weights.

    Raises:
        CompatibilityError: the library refuses its configuration.
    """
    import torch

    config = model.config
    try:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            known = type(config).from_pretrained(folder, local_files_only=True)
        known._attn_implementation = "eager"  # every class takes it; attention of ours is set when its model is there
        with torch.device("meta"):
            return type(model)(known)
    except Exception as error:  # whatever the library says of values that do not fit
        raise refusal(model, str(error).strip().splitlines()[-1].strip()) from error


def compare(model: nn.Module, before: nn.Module, after: nn.Module, path: str, chosen: Sequence[int], have: int) -> None:
    """Whether what a configuration describes after a cut are the layers that it described before, so that a model is
    the same after it was saved and loaded. What may change with their number is changed in the model itself.

    Args:
        model: cut.
        before, after: `described` by its configuration as it was and as it is.
        path: of the list of layers.

    Raises:
        CompatibilityError: it is not; names the first difference.
    """
    here, there = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, after))
    for name in here:
        if name not in there:
            raise refusal(model, f"{name} would be lost")
        if here[name] != there[name]:
            raise refusal(model, f"{name} has the shape {here[name]}, and would need {there[name]}")
    if fresh := [name for name in there if name not in here and "pooler" not in name]:
        raise refusal(model, f"{fresh[0]} would be random")
    for new, old in enumerate(chosen):
        was, now = (dict(m.get_submodule(f"{path}.{i}").named_modules()) for m, i in ((before, old), (after, new)))
        own = dict(model.get_submodule(f"{path}.{new}").named_modules())
        for part, module in was.items():
            if type(module) is not type(now.get(part)):
                raise refusal(model, f"layer {old + 1} has a {type(module).__name__}, its place {new + 1} has none")
            theirs = _plain(now[part])
            for name, value in _plain(module).items():
                if value == (then := theirs.get(name)):
                    continue
                renumbered = (old, new), (have, len(chosen))
                if (value, then) not in renumbered and not _is_cut(value, then, chosen, have):
                    raise refusal(model, f"{name} is {value} in layer {old + 1}, and would be {then}")
                if part in own:
                    setattr(own[part], name, then)


def refusal(model: nn.Module, why: str) -> CompatibilityError:
    return CompatibilityError(
        f"layers of a {type(model).__name__} ({model.config.model_type}) cannot be left out, because its configuration "
        f"cannot describe those that stay: {why}",
        hint="take the whole model, or a student of its own: hf:org/name, path:FOLDER",
    )


def _is_cut(value: Any, then: Any, chosen: Sequence[int], have: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == have and list(then) == [value[i] for i in chosen]


def _plain(module: nn.Module) -> Mapping[str, Any]:
    """What a module was made with; dropout, which may grow with depth, is nothing to what it gives."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and "drop" not in name and name != "training" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
