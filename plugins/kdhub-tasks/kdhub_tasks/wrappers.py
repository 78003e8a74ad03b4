"""Networks around networks: what a method changes about a student for good, saved by its registered name.

A wrapper (`NetworkSpec(wraps=True)`) makes other signals of those of the network inside: logits that are scaled, a
second head, several outputs a class. A saved student lists its wrappers from the inside out, each with its settings,
so that whoever has the plugin opens it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from kdhub.errors import CompatibilityError, UnknownNameError, UntrustedError

WEIGHTS = "wrappers.safetensors"
KEY = "wrappers"
"""Of a configuration: `[{"wrapper": NAME, setting: value, ...}, ...]`."""
FORMERLY = {"subclasses": "subclasses", "two_heads": "two-heads", "std_scaled_probs": "rescaled"}
"""Keys of configurations from before there were names -> the wrapper; they stood in this order, from the inside."""


class LazySignals(dict):
    """A network's signals of a batch; those of `later` are made when they are asked for, in the same graph."""

    def __init__(self, now: Mapping[str, Tensor], **later: Callable[[], Tensor]):
        super().__init__(now)
        self.later = later

    def __missing__(self, name: str) -> Tensor:
        self[name] = self.later[name]()
        return self[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.later


class Wrapper(nn.Module):
    """A network around another one, which stands at `network`; its forward takes what that one takes.

    A subclass is built as `cls(network, classes=..., **settings)`, with `features`, the width of the signal, where it
    says so.

    Attributes:
        takes_features: whether it is built with the width of the features.
    """

    takes_features: ClassVar[bool] = False

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def model(self) -> nn.Module:
        """The library's model inside."""
        return self.network.model

    @classmethod
    def outputs(cls, classes: Sequence[str], **settings: Any) -> list[str]:
        """Names of the outputs that the network inside must have for these classes."""
        return list(classes)

    @classmethod
    def classes(cls, outputs: Sequence[str], **settings: Any) -> list[str]:
        """The classes, from the names of the outputs of the network inside."""
        return list(outputs)

    @classmethod
    def prepare(cls, network: nn.Module, classes: int, **settings: Any) -> None:
        """Change a network, in place, before it is wrapped for the first time.

        Raises:
            CompatibilityError: it cannot be wrapped.
        """

    def usage(self) -> str | None:
        """Lines of Python that use a saved text classifier without kdhub, where the usual ones would not do."""
        return None


def wrappers_in(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The wrappers of a configuration, from the inside out."""
    found = [dict(one) for one in config.get(KEY) or ()]
    for key, name in FORMERLY.items():
        if given := config.get(key):
            found.append({"wrapper": name, **(given if isinstance(given, Mapping) else {})})
    return found


def wrapped(network: nn.Module, classes: int, wrappers: Sequence[Mapping[str, Any]], features: int | None) -> nn.Module:
    """A network with its wrappers around it; `features` is the width of its features."""
    for settings, cls in map(opened, wrappers):
        network = cls(network, classes=classes, **_width(cls, features), **settings)
    return network


def outputs_of(classes: Sequence[str], wrappers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the outputs that the network inside all wrappers must have."""
    for settings, cls in map(opened, reversed(wrappers)):
        classes = cls.outputs(classes, **settings)
    return list(classes)


def classes_of(outputs: Sequence[str], wrappers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The classes, from the names of the outputs of the network inside all wrappers."""
    for settings, cls in map(opened, wrappers):
        outputs = cls.classes(outputs, **settings)
    return list(outputs)


def wrap(network: nn.Module, name: str, classes: int, features: int | None, **settings: Any) -> Wrapper:
    """A network with one more wrapper, for the first time."""
    cls = network_class(name)
    cls.prepare(network, classes, **settings)
    return cls(network, classes=classes, **_width(cls, features), **settings)


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of the wrappers themselves, which the model inside (`model`) does not have."""
    return {name: value for name, value in network.state_dict().items() if "model" not in name.split(".")}


def save_weights(network: nn.Module, folder: Path) -> None:
    """Keep the wrappers' own weights beside those of the model inside, where they have some."""
    if own := own_weights(network):
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in own.items()}, folder / WEIGHTS)


def load_weights(network: nn.Module, folder: Path, name: str | None = None) -> None:
    """
    Raises:
        UntrustedError: they are not there, or those of other wrappers.
    """
    if not (own := own_weights(network)):
        return
    from safetensors.torch import load_file

    found = load_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else {}
    if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in own.items()}:
        raise UntrustedError(f"{name or folder} has no weights for its wrappers, or those of others, in {WEIGHTS}")
    network.load_state_dict(found, strict=False)


def opened(one: Mapping[str, Any]) -> tuple[dict[str, Any], type[Wrapper]]:
    """Settings and class of a wrapper in a configuration."""
    settings = dict(one)
    return settings, network_class(settings.pop("wrapper"))


def network_class(name: str) -> Any:
    """The class that a registered network or wrapper is.

    Raises:
        CompatibilityError: no plugin here provides it.
    """
    from kdhub import open_network

    try:
        return open_network(name)
    except UnknownNameError as error:
        raise CompatibilityError(
            f"no plugin here provides a network called {name!r}",
            hint="it may come with a plugin that is not installed: kdhub list networks, kdhub plugins",
        ) from error


def _width(cls: type[Wrapper], features: int | None) -> dict[str, int | None]:
    return {"features": features} if cls.takes_features else {}
