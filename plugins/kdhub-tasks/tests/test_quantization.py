"""Students of few bits: the grids of the specification, files of the stated size, and what opens them."""

from __future__ import annotations

import json

import pytest
import torch
from kdhub_tasks import quantization as q
from kdhub_tasks.language.students import llama
from kdhub_tasks.quantized import quantized

import kdhub
from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.student import BuildContext

HALF = 2**-11
"""Relative error of a scale in float16."""


class Teacher:
    known = {"id": "org/lm", "revision": "abc"}

    def __init__(self, model):
        self.model = model


def build(bits="3", **options):
    teacher = Teacher(llama("width=192,layers=1,heads=4,length=32", BuildContext(None, None, 3)))
    options = {"group_size": 32, **options}
    return quantized(str(bits), BuildContext(kdhub.open_task("causal-lm"), teacher, 0, options))


def logits(network):
    with torch.no_grad():
        return network(input_ids=torch.arange(24)[None]).logits


def on_grid(w, scheme):
    grid = scheme.grid(w)
    return scheme.values(scheme.codes(w, grid), grid)


def test_grids_of_the_specification():
    w, scheme = torch.tensor([[-1.0, -0.4, 0.1, 0.6]]), q.Scheme(2, -1)
    grid = scheme.grid(w)
    assert (grid.scale.item(), grid.zero.item()) == (pytest.approx(0.533333, rel=HALF), 2)
    assert on_grid(w, scheme)[0].tolist() == pytest.approx([-1.066667, -0.533333, 0, 0.533333], rel=HALF)
    assert on_grid(w, q.Scheme(3, -1, "int-sym"))[0].tolist() == pytest.approx([-1, -1 / 3, 0, 2 / 3], rel=HALF)
    assert on_grid(torch.tensor([[6.0, -2.4, 0.2, 0.3]]), q.Scheme(4, -1, "fp4")).tolist() == [[6, -2, 0, 0.5]]


GRIDS = [(2, "int-asym"), (3, "int-asym"), (2, "int-sym"), (8, "int-sym"), (4, "fp4")]


@pytest.mark.parametrize(("bits", "kind"), GRIDS)
def test_a_grid_is_near_its_values_stay_and_codes_are_packed_without_loss(bits, kind):
    w, scheme = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), q.Scheme(bits, 32, kind)
    grid = scheme.grid(w)
    once, codes = on_grid(w, scheme), scheme.codes(w, grid).flatten(1)
    assert torch.equal(once, scheme.values(scheme.codes(once, grid), grid))
    assert (once - w).abs().max() <= 1.01 * grid.scale.max()
    assert torch.equal(q._numbers(q._bits(codes, bits), bits, 64), codes)


def test_a_group_of_one_sign_does_not_saturate():
    w = torch.linspace(1, 2, 32)[None]
    assert (on_grid(w, q.Scheme(3, 32)) - w).abs().max() < 0.15


def test_training_goes_straight_through_and_moves_only_the_weights_behind_the_grid():
    layer = torch.nn.Linear(8, 4)
    raw = layer.weight.detach().clone()
    q.put_on(layer, q.Scheme(2, 4))
    assert not torch.equal(layer.weight, raw) and [*layer.state_dict()] == ["weight", "bias"]
    layer(torch.eye(8)).sum().backward()
    assert torch.equal(layer._parameters["weight"].grad, torch.ones(4, 8))
    assert torch.equal(layer._parameters["weight"].data, raw)
    before = layer.weight.detach().clone()
    q.settle(layer)
    assert torch.equal(layer._parameters["weight"].data, before) and torch.equal(layer.weight, before)


@pytest.mark.parametrize(("bits", "kind"), [(3, "int-sym"), (3, "int-asym"), (2, "int-asym"), (4, "fp4")])
def test_a_packed_folder_has_the_stated_size_and_opens_as_what_was_trained(bits, kind, tmp_path):
    student = build(bits, format=kind)
    assert student.start["relation"] == "quantized" and student.start["base_model"] == "org/lm"
    expected = logits(student.module.model)
    student.finalise()
    student.save(tmp_path)
    task = kdhub.open_task("causal-lm")
    opened = task.load(tmp_path)
    torch.testing.assert_close(logits(opened.module.model), expected, atol=1e-5, rtol=0)

    layers = q.quantized_layers(opened.module)
    stated = sum(x.scheme.bits_of(x.out_features, x.in_features) for x in layers.values())
    own = {id(x._parameters["weight"]) for x in layers.values()}
    rest = sum(4 * p.numel() for p in opened.module.parameters() if id(p) not in own)
    assert len(layers) == 7
    file = q.PLAIN if kind == "int-sym" else q.PACKED
    assert (tmp_path / file).stat().st_size - rest <= 1.15 * stated / 8
    assert json.loads((tmp_path / q.FILE).read_text())["bits"] == stated

    (tmp_path / "again").mkdir()
    opened.save(tmp_path / "again")
    assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()

    from transformers import AutoModelForCausalLM

    if kind == "int-sym":
        pytest.importorskip("compressed_tensors")
        alone = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(logits(alone), expected, atol=1e-5, rtol=0)
        assert "transformers" in student.usage()
    else:
        with pytest.raises(OSError, match="no file named"):  # and no random weights
            AutoModelForCausalLM.from_pretrained(tmp_path)
        assert "kdhub.load" in student.usage()


def test_damaged_codes_are_refused(tmp_path):
    student = build()
    student.save(tmp_path)
    said = json.loads((tmp_path / q.FILE).read_text())
    said["layers"]["model.layers.9.mlp.up_proj"] = {"bits": 3, "group": 32, "format": "int-asym"}
    (tmp_path / q.FILE).write_text(json.dumps(said))
    with pytest.raises(UntrustedError, match="damaged"):
        kdhub.open_task("causal-lm").load(tmp_path)


def test_layers_are_left_out_by_name():
    names = [*q.quantized_layers(build(skip_modules=["mlp", "lm_head"]).module)]
    assert len(names) == 4 and not any("mlp" in name for name in names)


@pytest.mark.parametrize(
    ("bits", "options", "error", "said"),
    [
        ("1", {}, UsageError, "bits must be from 2 to 8"),
        ("9", {}, UsageError, "bits must be from 2 to 8"),
        ("three", {}, UsageError, "bits must be from 2 to 8"),
        ("3", {"format": "fp4"}, UsageError, "fp4 has 4 bits"),
        ("3", {"group_size": 36}, CompatibilityError, "q_proj.*groups of 36 do not divide the 192 inputs"),
        ("3", {"group_size": 0}, UsageError, "group_size"),
        ("3", {"skip_modules": ["mpl"]}, UsageError, "'mpl'.*skip_modules"),
    ],
)
def test_bad_input_is_named(bits, options, error, said):
    with pytest.raises(error, match=said):
        build(bits, **options)
