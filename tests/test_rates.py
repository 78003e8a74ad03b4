"""Rates by part, and the optimiser's own options, with the toy family."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdhub.errors import UsageError
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.resolve import Resolver
from kdhub.training import engine
from kdhub.training.rates import Rates
from kdhub.verbs.distill import distill


@pytest.fixture
def train(toys, tmp_path):
    def run(name="run", **options):
        recipe = {"task": "toy-vectors", "method": "toy-hint", "teacher": "linear:1", "student": "mlp:6"}
        recipe |= {"data": {"train": "toy-points"}, "evaluation": {"cost": False, "data": []}}
        recipe["options"] = {"batch_size": 8, "epochs": 2, "precision": "float32", "lr": 0.01, **options}
        return distill(recipe, out=tmp_path / name)

    return run


@pytest.fixture
def optimizers(monkeypatch):
    made, own = [], engine._Trainer.create_optimizer

    def create(self, model=None):
        made.append((own(self, model), self.engine))
        return made[-1][0]

    monkeypatch.setattr(engine._Trainer, "create_optimizer", create)
    return made


def saved(run):
    return load_file(run.student_folder / "model.safetensors")


def start():
    import toy

    return toy.mlp("6", type("C", (), {"seed": 0})()).module.state_dict()


def test_a_frozen_part_stays_and_the_rest_learns_at_its_own_rate(train, optimizers):
    trained = saved(train(rates={"inner": 0, "outer.bias": 0.1, "projection": 10}, weight_decay=0.0))
    before = start()
    moved = {name for name in before if not torch.equal(trained[name], before[name])}
    assert moved == {"outer.weight", "outer.bias"}

    optimizer, made = optimizers[0]
    names = {id(p): name for name, p in made.module.named_parameters()}
    rates = {names[id(p)]: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == pytest.approx(
        {
            "student.outer.weight": 0.01,
            "student.outer.bias": 0.001,
            "extras.projection.weight": 0.1,
            "extras.projection.bias": 0.1,
        }
    ), "what is frozen is not in the optimiser"
    assert all(p.grad is None for p in made.student.module.inner.parameters())
    assert all(p.requires_grad for p in made.module.parameters()), "frozen for the time of training only"


def test_all_of_the_student_or_the_extras(train):
    before = start()
    frozen = saved(train("frozen", rates={"student": 0}))
    assert all(torch.equal(frozen[name], before[name]) for name in before), "the projection alone is trained"
    inner = saved(train("inner", rates={"student": 0, "student.outer": 1}))
    moved = {name for name in before if not torch.equal(inner[name], before[name])}
    assert moved == {"outer.weight", "outer.bias"}, "of parts in parts the inner one counts"


def test_betas_and_eps_reach_the_optimiser(train, optimizers):
    plain = saved(train("plain"))
    other = saved(train("other", adam_betas=[0.5, 0.9], adam_eps=1e-3))
    assert [(g["betas"], g["eps"]) for g in optimizers[0][0].param_groups] == [((0.9, 0.999), 1e-8)] * 2
    assert [(g["betas"], g["eps"]) for g in optimizers[1][0].param_groups] == [((0.5, 0.9), 1e-3)] * 2
    assert not torch.equal(plain["outer.weight"], other["outer.weight"])


def test_rates_and_the_optimisers_options_are_in_the_recipe_and_a_resumed_run_has_them(train, tmp_path, monkeypatch):
    import toy

    options = {"rates": {"inner": 0.1, "outer.bias": 0}, "adam_betas": [0.5, 0.9], "checkpoint_steps": 2}
    whole = train("whole", **options)
    monkeypatch.setattr(toy.Hint, "fail_at", 5)
    with pytest.raises(KeyboardInterrupt):
        train("cut", **options)
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    resumed = distill(resume=tmp_path / "cut")
    assert resumed.recipe.options["rates"] == {"inner": 0.1, "outer.bias": 0}
    assert (resumed.student_folder / "model.safetensors").read_bytes() == (
        whole.student_folder / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"iner": 0}, "there is no part 'iner'; there are inner, outer, projection.*did you mean .*inner"),
        ({"weight": 0}, "parts end in 'weight': student.inner.weight, student.outer.weight, extras.projection.weight"),
        ({"student": 0, "extras": 0}, "nothing is left to train"),
    ],
)
def test_parts_that_are_not_there(train, rates, said):
    with pytest.raises(UsageError) as error:
        train(rates=rates)
    assert re.search(said, f"{error.value.message} {error.value.hint}")


def test_names_with_dots_can_be_set_on_the_command_line(toys):
    recipe = resolve_recipe("toy-hint", set=["options.rates.outer.bias=0"])
    method = Resolver().method(recipe)
    assert method.options.rates == {"outer.bias": 0.0}


class Tied(nn.Module):
    """A student with statistics, and a parameter that stands in two of its parts."""

    def __init__(self):
        super().__init__()
        body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.student = nn.ModuleDict({"body": body, "head": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3, affine=False)})
        self.student["head"].weight = body[0].weight
        self.extras = nn.ModuleDict()


def test_a_frozen_module_rests():
    network = Tied()
    assert Rates(network, {"body": 0}).resting == [network.student["body"]]
    assert Rates(network, {"body.1": 0}).resting == [network.student["body"][1]]
    assert Rates(network, {"body.1": 0.5}).resting == []


def test_a_shared_parameter_has_one_factor():
    network = Tied()
    shared = id(network.student["head"].weight)
    assert Rates(network, {"head": 0.5}).by_id[shared] == 0.5, "by whichever name it is called"
    with pytest.raises(UsageError, match=r"same parameter as one of another part.*\(0.1, 0.5\)"):
        Rates(network, {"body": 0.5, "head": 0.1})


class Parts(nn.Module):
    """A student of two layers, or of more, and one extra."""

    def __init__(self, more=0):
        super().__init__()
        layers = {"inner": nn.Linear(2, 3), "outer": nn.Linear(3, 2), **{f"l{n}": nn.Linear(1, 1) for n in range(more)}}
        self.student, self.extras = nn.ModuleDict(layers), nn.ModuleDict({"projection": nn.Linear(2, 2)})


def test_groups_of_the_optimiser_are_split_by_factor():
    network = Parts()
    inner, outer, extra = network.student["inner"], network.student["outer"], network.extras["projection"]
    groups = [{"params": [inner.weight, outer.weight, extra.weight], "lr": 0.5, "weight_decay": 0.1},
              {"params": [inner.bias, outer.bias], "lr": 0.5, "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.SGD(groups)
    kept, rates = optimizer.param_groups, Rates(network, {"inner": 3, "student.outer.bias": 0.1, "extras": 0})
    rates.spread(optimizer)
    assert optimizer.param_groups is kept
    assert [([id(p) for p in g["params"]], g["lr"], g["weight_decay"]) for g in kept] == [
        ([id(inner.weight)], 1.5, 0.1), ([id(outer.weight)], 0.5, 0.1), ([id(extra.weight)], 0.0, 0.1),
        ([id(inner.bias)], 1.5, 0.0), ([id(outer.bias)], 0.05, 0.0),
    ]  # fmt: skip
    assert [id(p) for p in rates.frozen] == [id(extra.weight), id(extra.bias)] and rates.resting == [network.extras]


def test_what_is_frozen_anyway_is_not_frozen_by_rates():
    network = Parts()
    network.student["inner"].requires_grad_(False)
    rates = Rates(network, {"student": 0, "inner.bias": 0})
    assert [id(p) for p in rates.frozen] == [id(p) for p in network.student["outer"].parameters()]
    assert rates.resting == [network.student["outer"]]
    with pytest.raises(UsageError, match="nothing is left to train"):
        Rates(network, {"outer": 0, "extras": 0})
    assert Rates(network.requires_grad_(False), {"student": 0}).frozen == [], "nothing was to be trained"
    alone = nn.ModuleDict({"student": nn.ModuleDict({"inner": nn.Linear(1, 1), "inner2": nn.Linear(1, 1)})})
    assert set(Rates(alone, {"inner": 3}).by_id) == {id(p) for p in alone["student"]["inner"].parameters()}


def test_names_of_parts_that_are_not_there_or_several_times():
    def said(name, more=0):
        with pytest.raises(UsageError) as caught:
            Rates(Parts(more), {name: 0.5})
        return caught.value.message, caught.value.hint

    message, hint = said("iner")
    assert message == "rates: there is no part 'iner'; there are inner, outer, projection"
    assert hint.startswith("did you mean inner")
    assert said("xyzzy")[1] == "and whatever is inside them, as encoder.layer.0"
    many = ", ".join(["inner", "outer", *(f"l{n}" for n in range(10))])
    assert said("xyzzy", 10)[0] == f"rates: there is no part 'xyzzy'; there are {many}, ..."
    assert said("xyzzy", 9)[0].endswith("l8, projection")
    ends = "student.inner.bias, student.outer.bias, extras.projection.bias"
    assert said("bias") == (f"rates: 3 parts end in 'bias': {ends}", "write more of the name, up to where it differs")
    assert said("bias", 11)[0].count("student.") == 12
    assert list(Rates(Parts(), {"extras.projection.bias": 7}).by_id.values()) == [7]
