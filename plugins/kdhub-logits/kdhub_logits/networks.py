"""Small networks for small data: a multilayer perceptron, the ResNet for CIFAR, a vision transformer.

Each takes `{"x": ...}` and gives named signals: `logits` (batch, classes), `features` (batch, width) before the last
layer, and, where the network has positions, `tokens` (batch, positions, width) before they are averaged. One with
layers of attention also has, when it is asked, `hidden_states` (batch, positions, layers, width), what each layer
gives, and `attentions` (batch, positions^2, layers), mean over heads, query after query. The way inputs are scaled is a
part of the network, so that teacher and student may differ in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Given(dict):
    """A network's signals of a batch; those of `later` are made when they are asked for, in the same graph."""

    def __init__(self, now: Mapping[str, Tensor], **later: Callable[[], Tensor]):
        super().__init__(now)
        self.later = later

    def __missing__(self, name: str) -> Tensor:
        self[name] = self.later[name]()
        return self[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.later


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


class _Block(nn.Module):
    """Two 3x3 convolutions; the shortcut takes every second pixel and pads channels with zeros (option A)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.pad = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """The ResNet for 32x32 images of He et al. (arXiv:1512.03385, section 4.2): 6n + 2 layers of 16, 32, 64 channels.

    Args:
        shape: (channels, height, width) of one image, or (height, width).
        classes: how many.
        depth: 20, 32, 44, 56, ... (6n + 2); 8 for tests.
    """

    def __init__(self, shape: Sequence[int], classes: int, depth: int = 20, mean: Any = 0.0, std: Any = 1.0):
        super().__init__()
        self.scale = Standardise(mean, std)
        channels = shape[0] if len(shape) == 3 else 1
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        n, stages, before = (depth - 2) // 6, [], 16
        for after, stride in ((16, 1), (32, 2), (64, 2)):
            stages.append(
                nn.Sequential(*(_Block(before if i == 0 else after, after, stride if i == 0 else 1) for i in range(n)))
            )
            before = after
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, classes)
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
        self.positions = nn.Parameter(0.02 * torch.randn((height // patch) * (breadth // patch), width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.patches(_channels(self.scale(inputs["x"]))).flatten(2).transpose(1, 2)
        states = [x + self.positions]
        for layer in self.layers.layers:
            states.append(layer(states[-1]))
        tokens = self.norm(states[-1])
        features = tokens.mean(1)
        return Given(
            {"logits": self.head(features), "features": features, "tokens": tokens},
            hidden_states=lambda: torch.stack(states[1:], 2),
            attentions=lambda: torch.stack(
                [_attention(layer, x).flatten(1) for layer, x in zip(self.layers.layers, states)], 2
            ),
        )


def _attention(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    """(batch, positions, positions): the layer's weights, mean over heads."""
    x = layer.norm1(x)
    return layer.self_attn(x, x, x, need_weights=True)[1]


class Timm(nn.Module):
    """A network of the timm library, which `kdhub-logits[timm]` installs.

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
        from kdhub.errors import UntrustedError

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
    from kdhub.errors import UsageError

    try:
        import timm
    except ModuleNotFoundError as error:
        raise UsageError(
            f"networks of timm need a package that is not installed: {error.name}",
            hint="pip install 'kdhub-logits[timm]'",
        ) from error
    except (ImportError, RuntimeError) as error:  # torchvision of another build than torch: no operators of its own
        raise UsageError(
            f"timm cannot be imported: {error}",
            hint="timm needs torchvision, of the version and build (CPU, CUDA) that go with the installed torch",
        ) from error
    return timm


class KernelRidge(nn.Module):
    """Scores that are linear in a kernel against stored inputs: offset + k(x) coefficients.

    Args:
        rows: stored inputs.
        kernel: `rbf`, exp(-gamma |x - x'|^2), or `linear`, x . x'.
        gamma: of the RBF kernel.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        rows: int = 1,
        kernel: str = "rbf",
        gamma: float = 1.0,
        mean: Any = 0.0,
        std: Any = 1.0,
    ):
        super().__init__()
        self.kernel, self.gamma = kernel, gamma
        self.register_buffer("support", torch.zeros(rows, prod(shape), dtype=torch.float64))
        self.coefficients = nn.Parameter(torch.zeros(rows, classes, dtype=torch.float64))
        self.register_buffer("offset", torch.full((classes,), 1 / classes, dtype=torch.float64))

    def similarity(self, x: Tensor) -> Tensor:
        """(batch, rows) of inputs of any shape."""
        x = x.flatten(1).double()
        products = x @ self.support.T
        if self.kernel == "linear":
            return products
        d2 = x.square().sum(1, keepdim=True) + self.support.square().sum(1) - 2 * products
        return (-self.gamma * d2.clamp_min(0)).exp()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Under a mixed precision the sums over thousands of rows would be worth nothing.
        with torch.autocast(inputs["x"].device.type, enabled=False):
            scores = self.offset + self.similarity(inputs["x"]) @ self.coefficients
        return {"logits": scores.float(), "features": inputs["x"].flatten(1)}


def rescaled(logits: Tensor) -> Tensor:
    """Logits over their own deviation across classes (n - 1 in the denominator), at least 1e-6; (..., classes)."""
    return logits / logits.std(-1, keepdim=True).clamp_min(1e-6)


class Rescaled(nn.Module):
    """A network whose logits are divided by their deviation over the classes (arXiv:2211.03946)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = self.network(inputs)
        given["logits"] = rescaled(given["logits"].float())
        return given


class TwoHeads(nn.Module):
    """A network with a second linear head on its features, for what the teacher says (arXiv:2506.00910).

    `logits` are the logarithms of (1 - mix) softmax(labels) + mix softmax(teacher / beta).
    """

    def __init__(self, network: nn.Module, width: int, classes: int, mix: float = 0.5, beta: float = 1.0):
        super().__init__()
        self.network, self.head, self.mix, self.beta = network, nn.Linear(width, classes), mix, beta

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = self.network(inputs)
        of_teacher = self.head(given["features"])
        p, q = torch.softmax(given["logits"].float(), -1), torch.softmax(of_teacher.float() / self.beta, -1)
        mixed = ((1 - self.mix) * p + self.mix * q).clamp_min(1e-30).log()
        given.update(logits=mixed, of_labels=given["logits"], of_teacher=of_teacher)
        return given


class Subclasses(nn.Module):
    """A network with `number` outputs for each class, one after the other, and one logit a class made of them.

    `tempered`: temperature logsumexp(outputs / temperature), the logits whose softmax at that temperature is the sum of
    the outputs' probabilities there; `sum`: the same at temperature 1. `subclass_logits` are the outputs themselves.
    """

    def __init__(self, network: nn.Module, number: int, temperature: float = 1.0, aggregate: str = "tempered"):
        super().__init__()
        self.network, self.number = network, number
        self.temperature = temperature if aggregate == "tempered" else 1.0

    @property
    def model(self) -> nn.Module:
        return self.network.model

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = self.network(inputs)
        outputs = given["logits"]
        given.update(logits=merged(outputs, self.number, self.temperature), subclass_logits=outputs)
        return given


def merged(outputs: Tensor, number: int, temperature: float = 1.0) -> Tensor:
    """temperature logsumexp(outputs / temperature) over each class's `number` outputs: (..., classes) float32."""
    return temperature * (outputs.float() / temperature).unflatten(-1, (-1, number)).logsumexp(-1)


def last_layer(network: nn.Module, classes: int) -> str:
    """The name of the linear layer that gives the logits.

    Raises:
        CompatibilityError: there is none.
    """
    from kdhub.errors import CompatibilityError

    named = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not named:
        raise CompatibilityError(f"a {type(network).__name__} has no linear layer that gives its {classes} classes")
    return named[-1]


def widen(network: nn.Module, classes: int, number: int) -> None:
    """Give each class `number` outputs, in place: its old one so often, so that a student knows what it knew, with
    noise of half the weights' deviation. Outputs that begin alike would not tell the layers below at first what tells
    the parts of a class apart. One output a class is the old layer."""
    if number == 1:
        return
    name = last_layer(network, classes)
    old = network.get_submodule(name)
    new = nn.Linear(old.in_features, classes * number, old.bias is not None).to(old.weight)
    with torch.no_grad():
        new.weight.copy_(old.weight.repeat_interleave(number, 0))
        new.weight += 0.5 * old.weight.std() * torch.randn_like(new.weight)
        if old.bias is not None:
            new.bias.copy_(old.bias.repeat_interleave(number))
    network.set_submodule(name, new)


NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": Mlp,
    "resnet": CifarResNet,
    "vit": Vit,
    "kernel": KernelRidge,
    "timm": Timm,
}


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network of a `config.json`: `{"network": "mlp", "shape": [8, 8], "classes": [...], ...}`.

    `std_scaled_probs: true` makes it `Rescaled`, `two_heads: {mix, beta}` gives it `TwoHeads`, `subclasses: {number,
    temperature, aggregate}` makes it `Subclasses`.
    """
    around = ("network", "task", "kdhub", "std_scaled_probs", "two_heads", "subclasses")
    settings = {k: v for k, v in config.items() if k not in around}
    split = config.get("subclasses")
    outputs = len(config["classes"]) * (split["number"] if split else 1)
    network = NETWORKS[config["network"]](**{**settings, "classes": outputs})
    if split:
        network = Subclasses(network, **split)
    if heads := config.get("two_heads"):
        with torch.no_grad():
            width = network({"x": torch.zeros(1, *config["shape"])})["features"].shape[1]
        network = TwoHeads(network, width, len(config["classes"]), **heads)
    return Rescaled(network) if config.get("std_scaled_probs") else network


def _channels(x: Tensor) -> Tensor:
    """(batch, height, width) as images of one channel."""
    return x.unsqueeze(1) if x.dim() == 3 else x
