"""`layer:NAME`: any named module's input or output as a signal, pooled over the positions that are real."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdhub.errors import CompatibilityError, UnknownNameError, UsageError
from kdhub.named_layers import Layer, Taps


class Net(nn.Module):
    """A step over positions, and one over rows; `twice` runs twice and `idle` never."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"step": nn.Linear(2, 2, bias=False), "idle": nn.Linear(2, 2)})
        self.other = nn.ModuleDict({"step": nn.Identity()})
        self.twice, self.head = nn.Identity(), nn.Identity()
        with torch.no_grad():
            self.body["step"].weight.copy_(2 * torch.eye(2))

    def forward(self, x):
        states = self.other["step"](self.twice(self.twice(self.body["step"](x))))
        return self.head((states.flatten(1).sum(1, keepdim=True), None))


X = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [100.0, 9.0]], [[5.0, 1.0], [6.0, 1.0], [7.0, 1.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def read(kind, x=X, mask=MASK):
    net = Net()
    taps = Taps(net, [kind])
    with taps.reading():
        net(x)
    assert not net.body["step"]._forward_hooks, "no hook stays behind"
    return taps.signals({} if mask is None else {"attention_mask": mask})[kind].tolist()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("layer:body.step", [[4, 0], [12, 2]]),
        ("layer:body.step:input", [[2, 0], [6, 1]]),
        ("layer:body.step:first", [[2, 0], [10, 2]]),
        ("layer:body.step:input:last", [[3, 0], [7, 1]]),
        ("layer:body.step:input:all", [[1, 0], [3, 0], [5, 1], [6, 1], [7, 1]]),
    ],
)
def test_positions_that_are_not_real_never_count(kind, expected):
    assert read(kind) == expected


def test_padding_in_front_and_maps_of_channels():
    left = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert read("layer:body.step:input:first", mask=left) == [[3, 0], [5, 1]]
    assert read("layer:body.step:input:last", mask=left) == [[100, 9], [7, 1]]
    maps = torch.arange(16.0).reshape(1, 2, 4, 2)  # one row of 2 channels over 4 x 2
    assert read("layer:body.step:input", maps, None) == [[3.5, 11.5]]
    assert read("layer:body.step:input:all", maps, None)[0][:2] == [[0, 8], [1, 9]]
    assert read("layer:body.step:input:map", maps, None) == maps.tolist(), "where they are"
    with pytest.raises(CompatibilityError, match="no channels over places"):
        read("layer:body.step:map", mask=None)
    assert read("layer:head:output", mask=None) == [[2 * 113.0], [2 * 21.0]], "the first tensor of several"


def test_a_name_is_found_by_its_end_and_a_wrong_one_names_those_that_are_like_it():
    assert Layer.parse("layer:a.b:mean:output").kind == "layer:a.b"
    assert Layer.parse("layer:a.b:all:input").kind == "layer:a.b:input:all"
    assert Taps(nn.Sequential(Net()), ["layer:body.step"]).layers, "under a wrapper"
    with pytest.raises(UnknownNameError, match="no module named 'body.stop'") as caught:
        Taps(Net(), ["layer:body.stop"])
    assert "body.step" in caught.value.hint
    with pytest.raises(CompatibilityError, match=r"2 modules .* 'step': body.step, other.step"):
        Taps(Net(), ["layer:step"])
    for wrong in ("layer:", "layer:a:max", "layer:a:mean:last", "layer:a:mean:input:mean"):
        with pytest.raises(UsageError, match="layer:NAME"):
            Layer.parse(wrong)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("layer:twice", "runs 2 times"), ("layer:idle", "does not run"), ("layer:body.step:all", "3 positions .* has 4")],
)
def test_what_cannot_be_read_says_which_module(kind, says):
    with pytest.raises(CompatibilityError, match=f"{kind}.*{says}"):
        read(kind, mask=torch.ones(2, 4))


def test_a_live_teacher_gives_its_layers_beside_the_students(toys, tmp_path, monkeypatch):
    """In a run of the toy family, whose objective sees both under their names."""
    import toy

    import kdhub

    seen = []

    def objective(self, student, teacher, batch, progress):
        seen.append((student["layer:inner:input"], teacher["layer:map:input"], student["layer:inner"].requires_grad))
        return {"match": (student.vector - teacher.vector).square().mean()}

    monkeypatch.setattr(toy.Mix, "needs", lambda self, teacher: ("vector", "layer:map:input"))
    monkeypatch.setattr(toy.Mix, "uses", lambda self, student: ("layer:inner", "layer:inner:input"))
    monkeypatch.setattr(toy.Mix, "objective", objective)
    recipe = toy.Vectors().tiny_recipe(tmp_path)
    run = kdhub.distill({**recipe, "task": "toy-vectors", "method": "toy-mix"}, out=tmp_path / "run")
    assert len(seen) == run.provenance["training"]["steps"] > 0
    assert all(torch.equal(mine, theirs) and flows for mine, theirs, flows in seen)
