"""Student builders of classification."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext, sizes

if TYPE_CHECKING:
    from torch import nn

    from kdhub_logits.classifiers import Classifier, NetworkClassifier, TextClassifier

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of its colours."""


def mlp(argument: str, context: BuildContext) -> NetworkClassifier:
    """`mlp:64,32`: hidden layers of these widths; `mlp:` with nothing is a linear map."""
    return _network(context, {"network": "mlp", "hidden": _numbers("mlp", argument)}, f"mlp:{argument}")


def resnet(argument: str, context: BuildContext) -> NetworkClassifier:
    """`resnet:20`: the ResNet for CIFAR with 6n + 2 layers.

    Raises:
        UsageError: another depth.
    """
    (depth,) = _numbers("resnet", argument) or [0]
    if depth < 8 or (depth - 2) % 6:
        raise UsageError(f"student resnet:{argument}: depths are 8, 14, 20, 32, 44, 56, ... (6n + 2)")
    return _network(context, {"network": "resnet", "depth": depth}, f"resnet:{argument}")


def resnet_checkpoint(argument: str, context: BuildContext) -> NetworkClassifier:
    """`resnet-checkpoint:FILE`: a ResNet for CIFAR as PyTorch saved it (keys as in akamaster/pytorch_resnet_cifar10).

    The file is searched as it is named, then below `KDHUB_DATA`. It is read without running anything in it. Inputs are
    standardised by ImageNet's means, as these networks were trained; for other classes the last layer is fresh.

    Raises:
        UsageError: no such file, or no such network in it.
    """
    import os
    import pickle

    import torch

    from kdhub_logits.classifiers import NetworkClassifier

    given = Path(argument).expanduser()
    below = Path(os.environ["KDHUB_DATA"]) / argument if os.environ.get("KDHUB_DATA") else given
    file = next((p for p in (given, below) if p.is_file()), None)
    if file is None:
        raise UsageError(f"there is no file {argument}", hint="also searched below KDHUB_DATA, where that is set")
    try:
        read = torch.load(file, map_location="cpu", weights_only=True)
        state = {name.removeprefix("module."): t for name, t in read.get("state_dict", read).items()}
        blocks = len({name.split(".")[1] for name in state if name.startswith("layer1.")})
        classes = len(state["linear.bias"])
    except (OSError, pickle.UnpicklingError, RuntimeError, AttributeError, KeyError) as error:
        raise UsageError(f"{file} is no ResNet for CIFAR: {str(error).splitlines()[0]}") from error
    config = {"network": "resnet", "depth": 6 * blocks + 2, "shape": [3, 32, 32], "classes": _classes(context)}
    config |= timm_scale({}, config["shape"])
    torch.manual_seed(context.seed)
    student = NetworkClassifier(context.task.name, config, {"how": f"the weights of {file.name}"})
    if classes != len(student.classes):
        state = {name: t for name, t in state.items() if not name.startswith("linear.")}
    missing, other = student.module.load_state_dict(state, strict=False)
    lacking = [name for name in missing if not name.startswith(("scale.", "linear."))]
    if lacking or other:
        raise UsageError(f"{file} is no ResNet for CIFAR: {', '.join([*lacking, *other][:4])}")
    return student


def vit(argument: str, context: BuildContext) -> NetworkClassifier:
    """`vit:patch=2,width=32,layers=2,heads=4`: a small vision transformer; each may be left out.

    Raises:
        UsageError: an unknown setting, a patch that does not divide the image, heads that do not divide the width.
    """
    settings = sizes("vit", argument, patch=2, width=32, layers=2, heads=4)
    shape = context.facts.get("shape", [])
    if shape and any(n % settings["patch"] for n in shape[-2:]):
        raise UsageError(f"student vit:{argument}: patches of {settings['patch']} do not divide {shape[-2:]} pixels")
    if settings["width"] % settings["heads"]:
        raise UsageError(
            f"student vit:{argument}: {settings['heads']} heads do not divide a width of {settings['width']}"
        )
    return _network(context, {"network": "vit", **settings}, f"vit:{argument}")


def timm(argument: str, context: BuildContext) -> NetworkClassifier:
    """`timm:NAME`: a fresh network of the timm library, for images of the training rows' size. Inputs are standardised
    as timm's configuration of the network says. With its weights: `path:` or `hf:` to a folder of timm's.

    Raises:
        UsageError: timm is not installed. UnknownNameError: it has no such network.
    """
    from kdhub.errors import UnknownNameError
    from kdhub_logits.networks import timm_library

    library = timm_library()
    if not library.is_model(argument):
        raise UnknownNameError("timm network", argument, library.list_models())
    shape = context.facts.get("shape") or [3, 32, 32]
    config: dict[str, Any] = {"network": "timm", "name": argument}
    config |= timm_scale({n: library.get_pretrained_cfg_value(argument, n) for n in ("mean", "std")}, shape)
    if library.get_pretrained_cfg_value(argument, "fixed_input_size"):
        config["settings"] = {"img_size": shape[-2:]}
    return _network(context, config, f"timm:{argument}")


def timm_scale(given: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """`mean` and `std` of timm's configuration for images of this shape; grey ones have the mean over the colours."""
    scale = {}
    for name, default in (("mean", IMAGENET[0]), ("std", IMAGENET[1])):
        values = list(given.get(name) or default)
        if len(shape) == 2 or len(values) != shape[0]:
            scale[name] = float(np.mean(values))
        else:
            scale[name] = [[[float(v)]] for v in values]
    return scale


def kernel(argument: str, context: BuildContext) -> NetworkClassifier:
    """A kernel machine without rows; the method that fits it gives it some."""
    return _network(context, {"network": "kernel"}, "kernel machine")


def path(argument: str, context: BuildContext) -> Classifier:
    """A folder: a classifier as it is, or a transformers encoder, which gets a fresh classifier; so does an image
    classifier of transformers or timm for other classes than the teacher's or the rows'."""
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise UsageError(f"student folder {folder} does not exist")
    config = _config(folder)
    if "architecture" in config:
        return _of_timm(folder, context, {"how": "a network of timm's in a local folder"})
    if _headless(config):
        return _with_head(folder, context, {"how": "a local folder with a fresh classifier"})
    if context.task.name == "image-classification" and "architectures" in config:
        return _with_head(folder, context, {"how": "a model in a local folder"})
    student = context.task.load(folder)
    student.start = {"how": "a model in a local folder"}
    return student


def hub(argument: str, context: BuildContext) -> Classifier:
    """A model of transformers on the Hub, or a network of timm's; its classifier is made anew when it has other
    classes."""
    from kdhub.hub.fetch import fetch_model

    folder, repo, commit = fetch_model(argument)
    start = {"base_model": repo, "revision": commit, "how": "as it is"}
    if "architecture" in _config(folder):
        return _of_timm(folder, context, start, name=repo)
    return _with_head(folder, context, start, name=repo)


def packaged(argument: str, context: BuildContext) -> TextClassifier:
    """An encoder that an installed package carries, with a fresh classifier; its weights' digest is checked."""
    from kdhub.recipe import Ref
    from kdhub.resolve import Resolver

    encoder = Resolver().teacher(Ref(source=f"packaged:{argument}"), "text-embedding")
    how = {"how": "a packaged encoder with a fresh classifier", "base_model": encoder.provenance.get("id")}
    return _with_head(encoder.folder, context, how)


def _config(folder: Path) -> dict[str, Any]:
    """Its `config.json`, empty where there is none that can be read."""
    import json

    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _headless(config: Mapping[str, Any]) -> bool:
    """Whether it is that of a transformers model without a head of its task."""
    names = config.get("architectures") or [""]
    headed = str(names[0]).endswith(("Classification", "QuestionAnswering"))
    return bool(config) and "network" not in config and not headed


def _of_timm(folder: Path, context: BuildContext, start: dict[str, Any], name: str | None = None) -> NetworkClassifier:
    import torch

    from kdhub_logits.classifiers import NetworkClassifier

    torch.manual_seed(context.seed)
    student = NetworkClassifier.of_timm(folder, _config(folder), classes=_classes(context), name=name)
    student.start = start
    return student


def _with_head(folder: Path, context: BuildContext, start: dict[str, Any], name: str | None = None) -> Classifier:
    from kdhub.hub.trust import check_model_folder
    from kdhub_logits.classifiers import TextClassifier, TokenClassifier

    if context.task.name == "image-classification":
        from kdhub_logits.vision import ImageClassifier

        return ImageClassifier.load(folder, name=name, classes=_classes(context), seed=context.seed, start=start)
    check_model_folder(folder, name=name)
    known = {c.task_name: c.with_head for c in (TextClassifier, TokenClassifier)}
    with_head = known.get(context.task.name) or partial(context.task.with_head, context.facts)
    return with_head(folder, _classes(context), context.seed, start)


def layers(argument: str, context: BuildContext) -> Classifier:
    """N evenly spaced layers of a transformer teacher, first and last among them, with its embeddings and classifier.

    Raises:
        UsageError: N is no number from 1 to the teacher's layers.
        CompatibilityError: the teacher is no transformer.
    """
    from kdhub_logits.classifiers import Classifier

    teacher = getattr(context.teacher, "model", None)
    if "hidden_states" not in getattr(teacher, "kinds", ()):
        raise CompatibilityError(
            "student layers: is made from a transformer teacher; this one has no layers of one width"
        )
    return teacher.like(*keep_layers(argument, context, Classifier))


def keep_layers(argument: str, context: BuildContext, kind: type) -> tuple[Any, dict[str, Any]]:
    """A copy of a transformer teacher with N of its layers, and where it came from; errors as `layers`."""
    teacher = getattr(context.teacher, "model", None)
    if not isinstance(teacher, kind):
        raise CompatibilityError("student layers: is made from a transformer teacher; this one has no layers")
    model = copy.deepcopy(getattr(teacher.module, "model", teacher.module))
    have, keep = len(blocks(model)), int(argument) if argument.isdigit() else 0
    if not 1 <= keep <= have:
        raise UsageError(f"student layers:{argument}: the teacher has {have} layers")
    chosen = evenly(have, keep)
    keep_blocks(model, chosen)
    model.requires_grad_(True)
    known = context.teacher.known
    how = f"layers {', '.join(str(i + 1) for i in chosen)} of {have}"
    base = known.get("id") if known.get("revision") else None
    return model, {"base_model": base, "revision": known.get("revision"), "how": how}


def evenly(have: int, keep: int) -> list[int]:
    """So many of some layers, counted from 0: evenly spaced, the first and the last among them; the first of one."""
    return np.linspace(0, have - 1, keep).round().astype(int).tolist() if keep > 1 else [0]


def blocks(model: nn.Module) -> nn.ModuleList:
    """The list of a transformer's blocks, whatever its architecture calls it: of its lists that are as long as the
    configuration says, or of all, the first of those with the most parameters.

    Raises:
        CompatibilityError: it has none.
    """
    lists = [m for m in model.modules() if type(m).__name__ == "ModuleList" and len(m) > 0]
    said = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [m for m in lists if len(m) == said] or lists
    if not lists:
        raise CompatibilityError(f"a {type(model).__name__} has no list of layers")
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def keep_blocks(model: nn.Module, chosen: Sequence[int]) -> None:
    """Take all other blocks out of a transformer, in place. Those that stay are numbered anew, for what they remember
    of a text is found by number, and lists in the configuration that have one entry a block are cut likewise."""
    stack, config = blocks(model), getattr(model, "config", None)
    have = len(stack)
    for i in reversed(range(have)):
        if i not in chosen:
            del stack[i]
    for number, block in enumerate(stack):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    if config is None:
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == have and any(w in name for w in ("layer", "block", "window")):
            setattr(config, name, [value[i] for i in chosen])
    config.num_hidden_layers = len(chosen)


def _network(context: BuildContext, config: dict[str, Any], how: str) -> NetworkClassifier:
    """A fresh network for the training rows; its inputs are standardised by their mean and deviation."""
    import torch

    from kdhub_logits.classifiers import NetworkClassifier

    facts = context.facts
    if not facts.get("shape"):
        raise UsageError("a fresh network needs training rows to know the shape of its inputs", hint="give --data")
    config = {"shape": facts["shape"], "classes": _classes(context)} | {k: facts[k] for k in ("mean", "std")} | config
    torch.manual_seed(context.seed)
    return NetworkClassifier(context.task.name, config, {"how": f"fresh {how}"})


def _classes(context: BuildContext) -> list[str]:
    """The teacher's classes, in its order; without one, or where the training rows have others, those of the rows."""
    of_rows, classes = context.facts.get("classes"), context.teacher.classes if context.teacher is not None else None
    if not classes or (of_rows and not _are_of(of_rows, classes)):
        classes = of_rows
    if not classes:
        raise UsageError("a fresh classifier needs a teacher or labelled rows to know its classes")
    return list(classes)


def _are_of(rows: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether rows' classes are some of these; numbers are their positions."""
    return set(rows) <= set(classes) or (all(c.isdecimal() for c in rows) and len(rows) <= len(classes))


def _numbers(kind: str, argument: str) -> list[int]:
    parts = [p.strip() for p in argument.split(",") if p.strip()]
    if not all(p.isdigit() and int(p) for p in parts):
        raise UsageError(f"student {kind}:{argument}: expected whole numbers, {kind}:64 or {kind}:64,32")
    return [int(p) for p in parts]
