"""Students that are one network: what all of them do, whatever they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from kdhub.errors import CompatibilityError, UntrustedError
from kdhub.ranks import device
from kdhub.rows import Example
from kdhub.student import Student
from kdhub_tasks import quantization, wrappers

BATCH = 256
TOKENS = 2**16
"""Of the texts that are run together, at most."""


def take_weights(module: nn.Module, file: Path, name: str) -> None:
    """Fill a network from a safetensors file, in the precision that it has there.

    Args:
        name: of the student, for the error.

    Raises:
        UntrustedError: they are not its weights.
    """
    state = load_file(file)
    for known, tensor in (*module.named_parameters(), *module.named_buffers()):
        if known in state:
            tensor.data = tensor.data.to(state[known].dtype)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UntrustedError(f"{name}: its weights are not those of its configuration: {error}") from error


class Classifier(Student):
    """A network that gives `logits`, one a class.

    Attributes:
        classes: their names, in the order of the logits.
        problem: what the logits are where they are not of one class a row (`kdhub_tasks.classes`).
        kinds: the signals it gives.
        ragged: whether an example has several of each (words): as many as it has `labels`.
        batch: examples that are run at once.
    """

    classes: list[str]
    kinds: tuple[str, ...] = ("logits", "features")
    ragged = False
    batch = BATCH
    max_length: int | None = None

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        if "save" in vars(cls):
            cls.save = quantization.saving(cls.save)
        if "usage" in vars(cls):
            cls.usage = quantization.using(cls.usage)

    def __init__(self, task: str, module: nn.Module, classes: Sequence[str], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.task, self.module, self.classes = task, module, list(classes)

    def finalise(self) -> None:
        quantization.settle(self.module)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """What `module` takes, for some examples."""
        raise NotImplementedError

    def signals(self, examples: Sequence[Example], kind: str, *more: str) -> dict[str, Any]:
        """One kind of signal, or several of the same pass."""
        where = device()
        if self.device != where:  # looking at each weight again would be a part of a small network's latency
            self.module.to(where)
        was, parts, counts = self.module.training, {one: [] for one in (kind, *more)}, []
        self.module.eval()
        with torch.no_grad():
            at_once = self.at_once(examples)
            for start in range(0, len(examples), at_once):
                some = examples[start : start + at_once]
                batch = {k: v.to(where) for k, v in self.collate(some).items()}
                given = self.module(batch)
                for one, found in parts.items():
                    found.append(given[one].float().cpu().numpy())
                counts += self.counts(some, batch, kind) or ()
        self.module.train(was)
        values = {one: np.concatenate(found) for one, found in parts.items()}
        return {one: np.split(v, np.cumsum(counts)[:-1]) if counts else v for one, v in values.items()}

    def at_once(self, examples: Sequence[Example]) -> int:
        """How many of these are run together."""
        return self.batch

    def counts(self, examples: Sequence[Example], batch: Mapping[str, torch.Tensor], kind: str) -> list[int] | None:
        """How many of a signal each of some examples has; None where each has one, of one shape."""
        return [len(e["labels"]) for e in examples] if self.ragged else None

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def width(self, kind: str) -> tuple[int, ...]:
        """The shape of one example's signal.

        Raises:
            CompatibilityError: it gives no such signal.
        """
        raise NotImplementedError

    def shape(self, kind: str) -> tuple[int | None, ...]:
        """The same, with None in front where an example has several."""
        return (*((None,) if self.ragged else ()), *self.width(kind))

    def describe(self) -> dict[str, Any]:
        return {"classes": self.classes, "widths": {kind: list(self.shape(kind)) for kind in self.kinds}}

    # -- other networks ---------------------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The network that has the list of layers."""
        return getattr(self.module, "model", self.module)

    @property
    def layered(self) -> bool:
        """Whether it can be made smaller by leaving layers out."""
        return "hidden_states" in self.kinds

    def like(self, network: nn.Module, start: Mapping[str, Any]) -> Classifier:
        """The same with another network in the place of `trunk`, as with fewer layers."""
        raise NotImplementedError

    def wrap(self, name: str, **settings: Any) -> None:
        """Put a registered wrapper around the network, from here on and in what is saved.

        Raises:
            CompatibilityError: no plugin provides it, or it does not fit the network.
        """
        features = self.width("features")[0] if "features" in self.kinds else None
        self.module = wrappers.wrap(self.module, name, len(self.classes), features, **settings).to(self.device)
        self.note_wrapper({"wrapper": name, **settings})

    def note_wrapper(self, wrapper: Mapping[str, Any]) -> None:
        """Keep a wrapper in the configuration that is saved."""
        raise CompatibilityError(f"a {type(self).__name__} cannot be saved with a wrapper around it")


class ProbedClassifier(Classifier):
    """A network of which it is seen by running it which signals it gives, and of which shapes."""

    def blank(self) -> dict[str, torch.Tensor]:
        """What `module` takes, for one example without anything on it."""
        raise NotImplementedError

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one example's signals."""
        was = self.module.training
        self.module.eval()
        with torch.no_grad():
            given = self.module({name: value.to(self.device) for name, value in self.blank().items()})
            names = [*given, *getattr(given, "later", ())]
            shapes = {name: tuple(given[name].shape[1:]) for name in names}
        self.module.train(was)
        return shapes

    def width(self, kind: str) -> tuple[int, ...]:
        if kind not in self._shapes:
            raise CompatibilityError(f"a {self.network} gives {', '.join(self._shapes)}, not {kind!r}")
        return self._shapes[kind]

    def wrap(self, name: str, **settings: Any) -> None:
        super().wrap(name, **settings)
        self.__dict__.pop("_shapes", None)

    @property
    def network(self) -> str:
        """What it is called in messages."""
        return type(getattr(self.module, "model", self.module)).__name__
