"""Networks in three parts: what is read is what their blocks give, and what is put in is what they think on from."""

from __future__ import annotations

import pytest
import torch
from kdhub_tasks.classification import networks, tiny
from kdhub_tasks.splitting import Chain, Split, as_sequence, as_state, resized
from kdhub_tasks.transformer import TextClassifier
from kdhub_text.subclasses import Subclasses

from kdhub.errors import CompatibilityError, UsageError

X = {"x": torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))}


def network(kind, folder):
    torch.manual_seed(1)
    if kind == "text":
        model = TextClassifier.load(tiny.text_classifier(folder, layers=3))
        texts = ["a film", "a very great plot", "the meal"]
        return model.module, model.collate([{"text": text} for text in texts])
    made = {
        "mlp": lambda: networks.Mlp([8, 8], 3, [12, 10, 6]),
        "vit": lambda: networks.Vit([8, 8], 3, patch=4, width=8, layers=3, heads=2),
        "resnet": lambda: networks.CifarResNet([8, 8], 3, 8),
        "subclasses": lambda: Subclasses(networks.Mlp([8, 8], 6, [12, 10, 6]), classes=3, number=2),
    }[kind]()
    return made.eval(), X


@pytest.mark.parametrize("kind", ["mlp", "vit", "resnet", "subclasses", "text"])
def test_its_own_state_put_in_gives_its_own_answer_and_gradients_pass(tmp_path, kind):
    model, inputs = network(kind, tmp_path)
    model.requires_grad_(False)
    split = Split(model, 1, 2)
    plain = model(inputs)
    with split.read():
        given = model(inputs)
    assert {"lower", "upper"} <= set(given) and not {"lower", "upper"} & set(model(inputs)), "read only while open"
    torch.testing.assert_close(given["logits"], plain["logits"])
    torch.testing.assert_close(split.onward(inputs, lambda own: own), given["upper"])
    message = torch.randn_like(as_sequence(given["lower"])).requires_grad_()
    said = split.onward(inputs, lambda own: as_state(message, own))
    assert said.shape == given["upper"].shape and (said - given["upper"]).abs().max() > 1e-4
    (said * torch.randn_like(said)).sum().backward()
    assert message.grad.abs().sum() > 0 and all(p.grad is None for p in model.parameters())


def test_states_of_a_perceptron_are_those_after_relu():
    torch.manual_seed(1)
    model = networks.Mlp([8, 8], 3, [12, 10])
    with Split(model).read():
        given = model(X)
    first = torch.relu(X["x"].flatten(1) @ model.hidden[0].weight.T + model.hidden[0].bias)
    torch.testing.assert_close(given["lower"], first)
    torch.testing.assert_close(given["upper"], given["features"])
    with Split(model, 0).read():
        torch.testing.assert_close(model(X)["lower"], X["x"].flatten(1))


def test_sequences_and_back():
    image = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    sequence = as_sequence(image)
    assert sequence.shape == (2, 16, 3) and torch.equal(as_state(sequence, image), image)
    assert torch.equal(resized(sequence, 4)[0, 0], sequence[0, :4].mean(0))
    assert torch.equal(resized(sequence[:, :1], 3), sequence[:, :1].expand(-1, 3, -1))
    assert as_state(sequence, torch.zeros(2, 3)).shape == (2, 3)


def test_places_that_are_not_there():
    model = networks.Mlp([8, 8], 3, [12, 10])
    for lower, upper in ((2, 2), (0, 3), (1, 1)):
        with pytest.raises(UsageError, match="of 2 blocks cannot be split"):
            Split(model, lower, upper)
    with pytest.raises(CompatibilityError, match="no list of layers"):
        Split(networks.Mlp([8, 8], 3, []))


@pytest.mark.parametrize("kind", ["mlp", "vit", "resnet", "text"])
def test_stretches_of_a_chain_are_the_whole(tmp_path, kind):
    model, inputs = network(kind, tmp_path)
    chain, whole = Chain(model), model(inputs)["logits"]
    shapes = chain.shapes(inputs)
    assert len(shapes) == len(chain) + 1 == 4
    for place in range(len(chain) + 1):
        state = chain.run(inputs, 0, place)
        assert tuple(state.shape[1:]) == shapes[place]
        torch.testing.assert_close(chain.run(inputs, place, None, state)["logits"], whole)
    torch.testing.assert_close(chain.run(inputs, 1, 2, chain.run(inputs, 0, 1)), chain.run(inputs, 0, 2))
    torch.testing.assert_close(model(inputs)["logits"], whole)
    owner = chain.owner(inputs)
    assert {owner(name) for name in model.state_dict()} == {0, 1, 2}
    ends = {"vit": ("positions", "head.bias"), "resnet": ("bn1.running_mean", "linear.weight")}.get(kind)
    assert ends is None or [owner(name) for name in ends] == [0, 2]
    assert all(not p.requires_grad or p.grad is None for p in model.parameters())
