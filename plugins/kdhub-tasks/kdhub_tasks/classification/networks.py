"""Small networks for small data: a multilayer perceptron, the ResNet for CIFAR, a vision transformer.

Each takes `{"x": ...}` and gives named signals: `logits` (batch, classes), `features` (batch, width) before the last
layer, and, where the network has positions, `tokens` (batch, positions, width) before they are averaged. One with
layers of attention also has, when it is asked, `hidden_states` (batch, positions, layers, width), what each layer
gives, and `attentions` (batch, positions^2, layers), mean over heads, query after query. The way inputs are scaled is a
part of the network, so that teacher and student may differ in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub_tasks.wrappers import FORMERLY, KEY, LazySignals, network_class, outputs_of, wrapped, wrappers_in


class Standardise(nn.Module):
    """(x - mean) / std with constants that are saved along; a std of 0 counts as 1.

    Args:
        mean, std: broadcast against one example.
    """

    def __init__(self, mean: Any, std: Any):
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _Layer(nn.Linear):
    """A linear map and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Mlp(nn.Module):
    """Linear layers with ReLU between; inputs of any shape are flattened and standardised by feature or channel.

    Args:
        shape: of one input.
        classes: how many.
        hidden: widths of the hidden layers.
        mean, std: of the inputs, broadcast against `shape`.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, hidden: Sequence[int] = (64,), mean: Any = 0.0, std: Any = 1.0
    ):
        super().__init__()
        self.scale = Standardise(mean, std)
        widths = [prod(shape), *hidden]
        self.hidden = nn.ModuleList(_Layer(a, b) for a, b in zip(widths, widths[1:]))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.scale(inputs["x"]).flatten(1)
        for layer in self.hidden:
            x = layer(x)
        return {"logits": self.head(x), "features": x}


class SlimmableMlp(Mlp):
    """A multilayer perceptron whose hidden layers can be run at a share of their width: the first units of each, which
    all wider ones have as well (slimmable networks, arXiv:1812.08928). A member is a plain `mlp`.

    Args:
        hidden: widths of the hidden layers at a share of 1.
        shares: of the width, each a member.

    Attributes:
        members: name -> its settings as a plain `mlp`, the narrowest first.
        member: as which its forward runs; None: the widest of them.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (64,),
        shares: Sequence[float] = (0.25, 0.5, 1.0),
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__(shape, classes, hidden, mean, std)
        widths = {f"{share:g}x": [max(1, round(share * n)) for n in hidden] for share in sorted(shares)}
        self.members = {name: {"hidden": of} for name, of in widths.items()}
        self.member: str | None = None

    def _slices(self, member: str | None) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer, the head last, at the member's widths."""
        widths = self.members[member or list(self.members)[-1]]["hidden"]
        made, before = [], self.hidden[0].in_features
        for layer, width in zip((*self.hidden, self.head), (*widths, self.head.out_features)):
            # Of one block of memory, as a plain network has them: so their products are the same to the last bit.
            made.append((layer.weight[:width, :before].contiguous(), layer.bias[:width]))
            before = width
        return made

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        *layers, head = self._slices(self.member)
        x = self.scale(inputs["x"]).flatten(1)
        for weight, bias in layers:
            x = F.relu(F.linear(x, weight, bias))
        return {"logits": F.linear(x, *head), "features": x}

    def cut(self, member: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and weights of a member as a network of its own."""
        names = [*(f"hidden.{i}" for i in range(len(self.hidden))), "head"]
        state = {n: t for n, t in self.state_dict().items() if n.startswith("scale.")}
        for name, (weight, bias) in zip(names, self._slices(member)):
            state |= {f"{name}.weight": weight.detach(), f"{name}.bias": bias.detach()}
        return {"network": "mlp", "hidden": self.members[member]["hidden"]}, state


class _Block(nn.Module):
    """Two 3x3 convolutions; the shortcut takes every second pixel and pads channels with zeros (option A)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.more = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            half = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.more - half))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """The ResNet for 32x32 images of He et al. (arXiv:1512.03385, section 4.2): 6n + 2 layers of 16, 32, 64 channels.

    Args:
        shape: (channels, height, width) of one image, or (height, width).
        classes: how many.
        depth: 20, 32, 44, 56, ... (6n + 2); 8 for tests.
        depths: blocks of each stage, instead of n in all three; each stage has twice the channels of the one before.
        width: channels of the first stage.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        depth: int = 20,
        depths: Sequence[int] | None = None,
        width: int = 16,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        self.scale = Standardise(mean, std)
        channels = shape[0] if len(shape) == 3 else 1
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        n, stages, before = (depth - 2) // 6, [], width
        for stage, blocks in enumerate(depths or (n, n, n)):
            after, stride = width << stage, 1 + (stage > 0)
            stages.append(
                nn.Sequential(
                    *(_Block(before if i == 0 else after, after, stride if i == 0 else 1) for i in range(blocks))
                )
            )
            before = after
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(before, classes)
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = _channels(self.scale(inputs["x"]))
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        tokens = x.flatten(2).transpose(1, 2)
        features = tokens.mean(1)
        return {"logits": self.linear(features), "features": features, "tokens": tokens}


class Vit(nn.Module):
    """A small vision transformer: square patches, learned positions, pre-norm layers, mean over tokens.

    Args:
        shape: (channels, height, width) of one image, or (height, width).
        patch: side of a patch in pixels; must divide the image's sides.
        width, layers, heads: of the transformer.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        patch: int = 2,
        width: int = 32,
        layers: int = 2,
        heads: int = 4,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        channels, (height, breadth) = (shape[0] if len(shape) == 3 else 1), shape[-2:]
        self.scale = Standardise(mean, std)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.empty((height // patch) * (breadth // patch), width))
        with torch.no_grad():
            self.positions.copy_(0.02 * torch.randn(self.positions.shape))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = [self.embedded(inputs)]
        for layer in self.layers.layers:
            states.append(layer(states[-1]))
        return LazySignals(
            self.answered(states[-1]),
            hidden_states=lambda: torch.stack(states[1:], 2),
            attentions=lambda: torch.stack(
                [_attention(layer, x).flatten(1) for layer, x in zip(self.layers.layers, states)], 2
            ),
        )

    def embedded(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(batch, positions, width): what the first layer is given."""
        return self.patches(_channels(self.scale(inputs["x"]))).flatten(2).transpose(1, 2) + self.positions

    def answered(self, state: Tensor) -> dict[str, Tensor]:
        """The signals, from what the last layer gives."""
        tokens = self.norm(state)
        features = tokens.mean(1)
        return {"logits": self.head(features), "features": features, "tokens": tokens}


def _attention(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    """(batch, positions, positions): the layer's weights, mean over heads."""
    x = layer.norm1(x)
    return layer.self_attn(x, x, x, need_weights=True)[1]


class Timm(nn.Module):
    """A network of the timm library, which `kdhub-tasks[timm]` installs.

    Args:
        name: as timm has it (`resnet18`, `vit_tiny_patch16_224`).
        settings: further arguments of its `create_model` (`img_size`).
        mean, std: of its inputs, from timm's configuration of the network; not taken from the training rows.

    Raises:
        UsageError: timm is not there, or cannot be imported.
        UntrustedError: timm has no such network, or would read weights or a configuration from elsewhere.
    """

    ELSEWHERE = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        name: str,
        settings: Mapping[str, Any] | None = None,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):

        super().__init__()
        self.scale = Standardise(mean, std)
        channels, library, settings = shape[0] if len(shape) == 3 else 1, timm_library(), dict(settings or {})
        if not library.is_model(str(name)):
            raise UntrustedError(f"timm has no network {name!r}")
        if led := sorted(settings.keys() & set(self.ELSEWHERE)):
            raise UntrustedError(f"the configuration of a {name} leads timm elsewhere: {', '.join(led)}")
        self.model = library.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **settings)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = self.model.forward_features(_channels(self.scale(inputs["x"])))
        features = self.model.forward_head(states, pre_logits=True)
        return {"logits": self.model.forward_head(states), "features": features.flatten(1)}


def timm_library() -> Any:
    """The module `timm`.

    Raises:
        UsageError: it is not there, or cannot be imported.
    """

    try:
        import timm
    except ModuleNotFoundError as error:
        raise UsageError(
            f"networks of timm need a package that is not installed: {error.name}",
            hint="pip install 'kdhub-tasks[timm]'",
        ) from error
    except (ImportError, RuntimeError) as error:  # torchvision of another build than torch: no operators of its own
        raise UsageError(
            f"timm cannot be imported: {error}",
            hint="timm needs torchvision, of the version and build (CPU, CUDA) that go with the installed torch",
        ) from error
    return timm


def last_layer(network: nn.Module, classes: int) -> str:
    """The name of the linear layer that gives the logits.

    Raises:
        CompatibilityError: there is none.
    """

    named = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not named:
        raise CompatibilityError(f"a {type(network).__name__} has no linear layer that gives its {classes} classes")
    return named[-1]


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network of a `config.json`: `{"network": "mlp", "shape": [8, 8], "classes": [...], ...}`, by its registered
    name, with its wrappers around it (`kdhub_tasks.wrappers`)."""
    around = ("network", "task", "kdhub", "problem_type", KEY, *FORMERLY)
    settings, wrappers = {k: v for k, v in config.items() if k not in around}, wrappers_in(config)
    outputs = outputs_of(config["classes"], wrappers)
    network = network_class(config["network"])(**{**settings, "classes": len(outputs)})
    features = None
    if wrappers:
        with torch.no_grad():
            features = network({"x": torch.zeros(1, *config["shape"])})["features"].shape[1]
    return wrapped(network, len(config["classes"]), wrappers, features)


def _channels(x: Tensor) -> Tensor:
    """(batch, height, width) as images of one channel."""
    return x.unsqueeze(1) if x.dim() == 3 else x


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of its colours."""


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
