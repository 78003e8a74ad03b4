"""Student builders of classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import DataError, UsageError
from kdhub.files import given_or_shared
from kdhub.student import BuildContext, sizes
from kdhub_tasks.classes import classes_for, problem_for

if TYPE_CHECKING:
    from kdhub_tasks.classification.model import NetworkClassifier


def mlp(argument: str, context: BuildContext) -> NetworkClassifier:
    """`mlp:64,32`: hidden layers of these widths; `mlp:` with nothing is a linear map."""
    return network(context, {"network": "mlp", "hidden": _numbers("mlp", argument)}, f"mlp:{argument}")


class SlimmableOptions(BaseModel):
    """Of a slimmable network."""

    model_config = ConfigDict(extra="forbid")
    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.25, 0.5, 1.0], min_length=1, description="of the width, each a member of the family; 1 is all of it"
    )


def slimmable_mlp(argument: str, context: BuildContext) -> NetworkClassifier:
    """`slimmable-mlp:64,32`: a multilayer perceptron that can be run at some `shares` of these widths: a family."""
    hidden, shares = _numbers("slimmable-mlp", argument), sorted({*context.options.get("shares", [0.25, 0.5, 1.0])})
    if not hidden or len({max(1, round(share * hidden[0])) for share in shares}) < len(shares):
        raise UsageError(
            f"student slimmable-mlp:{argument}: members must differ in their width (shares={shares})",
            hint="take wider layers or fewer shares",
        )
    config = {"network": "slimmable-mlp", "hidden": hidden, "shares": shares}
    return network(context, config, f"slimmable-mlp:{argument}")


slimmable_mlp.Options = SlimmableOptions


def resnet(argument: str, context: BuildContext) -> NetworkClassifier:
    """`resnet:20`: the ResNet for CIFAR with 6n + 2 layers.

    Raises:
        UsageError: another depth.
    """
    (depth,) = _numbers("resnet", argument) or [0]
    if depth < 8 or (depth - 2) % 6:
        raise UsageError(f"student resnet:{argument}: depths are 8, 14, 20, 32, 44, 56, ... (6n + 2)")
    return network(context, {"network": "resnet", "depth": depth}, f"resnet:{argument}")


def residual(argument: str, context: BuildContext) -> NetworkClassifier:
    """`residual:width=16,stage1=3,stage2=3,stage3=3`: the ResNet for small images with a width (channels of its first
    stage; each next one has twice as many) and a number of blocks in each stage; each may be left out.

    Raises:
        UsageError: an unknown setting.
    """
    settings = sizes("residual", argument, width=16, stage1=3, stage2=3, stage3=3)
    width = settings.pop("width")
    config = {"network": "resnet", "width": width, "depths": [*settings.values()]}
    return network(context, config, f"residual:{argument}")


def resnet_checkpoint(argument: str, context: BuildContext) -> NetworkClassifier:
    """`resnet-checkpoint:FILE`: a ResNet for CIFAR as PyTorch saved it (keys as in akamaster/pytorch_resnet_cifar10).

    The file is searched as it is named, then below `KDHUB_DATA`. It is read without running anything in it. Inputs are
    standardised by ImageNet's means, as these networks were trained; for other classes the last layer is fresh.

    Raises:
        UsageError: no such file, or no such network in it.
    """
    import pickle

    import torch

    from kdhub_tasks.classification.model import NetworkClassifier
    from kdhub_tasks.classification.networks import timm_scale

    file = given_or_shared(argument)
    if file is None:
        raise UsageError(f"there is no file {argument}", hint="also searched below KDHUB_DATA, where that is set")
    try:
        read = torch.load(file, map_location="cpu", weights_only=True)
        state = {name.removeprefix("module."): t for name, t in read.get("state_dict", read).items()}
        blocks = len({name.split(".")[1] for name in state if name.startswith("layer1.")})
        classes = len(state["linear.bias"])
    except (OSError, pickle.UnpicklingError, RuntimeError, AttributeError, KeyError) as error:
        raise UsageError(f"{file} is not a ResNet for CIFAR: {str(error).splitlines()[0]}") from error
    config = {"network": "resnet", "depth": 6 * blocks + 2, "shape": [3, 32, 32], "classes": classes_for(context)}
    config |= timm_scale({}, config["shape"]) | _problem(context)
    torch.manual_seed(context.seed)
    student = NetworkClassifier(context.task.name, config, {"how": f"the weights of {file.name}"})
    if classes != len(student.classes):
        state = {name: t for name, t in state.items() if not name.startswith("linear.")}
    missing, other = student.module.load_state_dict(state, strict=False)
    lacking = [name for name in missing if not name.startswith(("scale.", "linear."))]
    if lacking or other:
        raise UsageError(f"{file} is not a ResNet for CIFAR: {', '.join([*lacking, *other][:4])}")
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
    return network(context, {"network": "vit", **settings}, f"vit:{argument}")


def timm(argument: str, context: BuildContext) -> NetworkClassifier:
    """`timm:NAME`: a fresh network of the timm library, for images of the training rows' size. Inputs are standardised
    as timm's configuration of the network says. With its weights: `path:` or `hf:` to a folder of timm's.

    Raises:
        UsageError: timm is not installed. UnknownNameError: it has no such network.
    """
    from kdhub.errors import UnknownNameError
    from kdhub_tasks.classification.networks import timm_library, timm_scale

    library = timm_library()
    if not library.is_model(argument):
        raise UnknownNameError("timm network", argument, library.list_models())
    shape = context.facts.get("shape") or [3, 32, 32]
    config: dict[str, Any] = {"network": "timm", "name": argument}
    config |= timm_scale({n: library.get_pretrained_cfg_value(argument, n) for n in ("mean", "std")}, shape)
    if library.get_pretrained_cfg_value(argument, "fixed_input_size"):
        config["settings"] = {"img_size": shape[-2:]}
    return network(context, config, f"timm:{argument}")


def network(context: BuildContext, config: dict[str, Any], how: str) -> NetworkClassifier:
    """A fresh network for the training rows; its inputs are standardised by their mean and deviation."""
    import torch

    from kdhub_tasks.classification.model import NetworkClassifier

    facts = context.facts
    if sizes := facts.get("sizes"):
        counted = ", ".join(f"{size} ({many} of {sum(sizes.values())} rows)" for size, many in list(sizes.items())[:6])
        raise DataError(
            f"the inputs are of {len(sizes)} sizes, and a fresh network takes one: {counted}",
            hint="bring them to one size (resized:SIZE:DATA), or take a model with an image processor (hf:org/name)",
        )
    if not facts.get("shape"):
        raise UsageError("a fresh network needs training rows to know the shape of its inputs", hint="give --data")
    known = {"shape": facts["shape"], "classes": classes_for(context), "mean": facts["mean"], "std": facts["std"]}
    config = known | _problem(context) | config
    torch.manual_seed(context.seed)
    return NetworkClassifier(context.task.name, config, {"how": f"fresh {how}"})


def _problem(context: BuildContext) -> dict[str, str]:
    problem = problem_for(context)
    return {"problem_type": problem} if problem else {}


def _numbers(kind: str, argument: str) -> list[int]:
    parts = [p.strip() for p in argument.split(",") if p.strip()]
    if not all(p.isdigit() and int(p) for p in parts):
        raise UsageError(f"student {kind}:{argument}: expected whole numbers, {kind}:64 or {kind}:64,32")
    return [int(p) for p in parts]
