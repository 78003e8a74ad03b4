"""The wrapper `subclasses`: several outputs for each class, and one logit a class made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from kdhub_tasks.classification.networks import last_layer
from kdhub_tasks.wrappers import Wrapper
from torch import Tensor, nn

from kdhub.errors import CompatibilityError


class Subclasses(Wrapper):
    """A network with `number` outputs for each class, one after the other, and one logit a class made of them.

    `tempered`: temperature logsumexp(outputs / temperature), the logits whose softmax at that temperature is the sum of
    the outputs' probabilities there; `sum`: the same at temperature 1. `subclass_logits` are the outputs themselves.
    """

    def __init__(
        self, network: nn.Module, *, classes: int, number: int, temperature: float = 1.0, aggregate: str = "tempered"
    ):
        super().__init__(network)
        self.number, self.temperature = number, temperature if aggregate == "tempered" else 1.0

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = self.network(inputs)
        outputs = given["logits"]
        given.update(logits=merged(outputs, self.number, self.temperature), subclass_logits=outputs)
        return given

    @classmethod
    def outputs(cls, classes: Sequence[str], *, number: int, **settings: Any) -> list[str]:
        return [f"{name}/{part}" for name in classes for part in range(number)]

    @classmethod
    def classes(cls, outputs: Sequence[str], *, number: int, **settings: Any) -> list[str]:
        return [name.rpartition("/")[0] for name in outputs[::number]]

    @classmethod
    def prepare(cls, network: nn.Module, classes: int, *, number: int, **settings: Any) -> None:
        if isinstance(network, Wrapper):
            raise CompatibilityError(f"the logits of the student are those of a {type(network).__name__} already")
        widen(network, classes, number)

    def usage(self) -> str:
        return (
            "from transformers import pipeline\n\n"
            'classify, scores = pipeline("text-classification", model="{path}", top_k=None), {}\n'
            'for part in classify(["a text to classify"])[0]:  # outputs of one class are NAME/0, NAME/1, ...\n'
            '    name = part["label"].rpartition("/")[0]\n'
            f'    scores[name] = scores.get(name, 0) + part["score"] ** (1 / {self.temperature})\n'
            "print(max(scores, key=scores.get))"
        )


def merged(outputs: Tensor, number: int, temperature: float = 1.0) -> Tensor:
    """temperature logsumexp(outputs / temperature) over each class's `number` outputs: (..., classes) float32."""
    return temperature * (outputs.float() / temperature).unflatten(-1, (-1, number)).logsumexp(-1)


def widen(network: nn.Module, classes: int, number: int) -> None:
    """Give each class `number` outputs, in place. Each starts as the old one, so that the student keeps what it knew,
    with noise of half the weights' deviation: equal outputs would at first not tell the layers below what separates the
    parts of a class. With one output a class the layer stays."""
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
