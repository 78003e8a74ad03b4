"""SKT: the numbers of its specification, its invariants, and a run whose student learns to count."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_vision.counting.students import csrnet
from kdhub_vision.counting.task import Counting
from kdhub_vision.methods.skt import Skt, SktOptions, cosine_distance, grams, pooled, squares, stride_of
from safetensors.torch import load_file

import kdhub
from kdhub.errors import CompatibilityError, KdhubError
from kdhub.method import Progress
from kdhub.named_layers import Taps
from kdhub.rows import Signals
from kdhub.specs import MethodSpec
from kdhub.testing._ranks import pair

A = torch.tensor([[[[1.0, 2], [3, 4]], [[4, 3], [2, 1]]]])
A2 = torch.tensor([[[[1.0, 2], [4, 3]], [[4, 3], [2, 1]]]])
B = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 0], [1, 1]]]])


def near(given, expected):
    assert torch.allclose(given, torch.tensor(expected), atol=1e-6), given


def test_cosine_by_hand():
    student = torch.tensor([[[[1.0, 0], [0, 2]], [[0, 1], [1, 0]]]])
    teacher = torch.tensor([[[[1.0, 1], [0, 1]], [[0, 1], [1, 1]]]])
    near(cosine_distance(student, teacher), 0.585786)
    near(cosine_distance(student, teacher, mean=True), 0.585786 / 4)
    near(cosine_distance(7 * student, teacher), 0.585786)  # the same of any positive multiple
    student[..., 0, 0] = 0
    near(cosine_distance(student, teacher), 1.585786)  # a dead position adds 1


def test_gram_matrices_by_hand():
    (g,), (g2,), (own,) = grams([A, B]), grams([A2, B]), grams([A, A])
    near(g[0], [[0, 0.894406], [0, -0.894406]])
    near(g2[0], [[-0.447203, 0.894406], [0, -0.894406]])
    near(squares(g - g2), 0.199990)
    near(squares(g - g2, mean=True), 0.199990 / 4)
    near(own[0], [[0.999992, -0.999992], [-0.999992, 0.999992]])
    assert torch.allclose(grams([3 * A + 5, B])[0], g, atol=1e-5), "the same of any affine change of a channel"
    assert len(grams([A] * 7)) == 21
    both = grams([torch.cat([A, A2]), torch.cat([B, B])])[0]
    near(both[1] - g2[0], [[0.0, 0.0], [0.0, 0.0]])  # each image has its own


def test_pools_round_up_and_strides_are_seen():
    assert pooled(torch.arange(9.0).reshape(1, 1, 3, 3), 2).flatten().tolist() == [4, 5, 7, 8]
    images = torch.zeros(1, 3, 61, 90)
    assert [stride_of("x", images, torch.zeros(1, 1, -(-61 // s), -(-90 // s))) for s in (1, 2, 4, 8)] == [1, 2, 4, 8]
    with pytest.raises(
        CompatibilityError, match="layer:x:map has maps of 30 x 45 and 31 x 45 cells for images of 61 x 90"
    ):
        stride_of("layer:x:map", images, torch.zeros(1, 1, 31, 45), torch.zeros(1, 1, 30, 45))


class Context:
    seed, options = 0, {}


class Trial:
    """The method on a batch of images of several sizes, before its first step."""

    def __init__(self, student, teacher, sizes=((64, 48), (33, 57)), **options):
        spec = MethodSpec(name="skt", target="x:y", needs=("density",), live=True)
        self.method, self.task = Skt(SktOptions(sigma=2, **options), spec), Counting()
        self.student, self.teacher = student, teacher
        draw = np.random.default_rng(0)
        rows = [{"image": draw.integers(0, 256, size, dtype=np.uint8), "points": [[9, 9], [30, 20]]} for size in sizes]
        self.batch = self.task.collate(self.task.preparer(None, None, **self.method.settings())(rows), student)
        theirs = {kind: value.shape[1:] for kind, value in self.given(teacher).items()}
        student.layers = {kind: value.shape[1:] for kind, value in self.given(student).items()}
        self.method.check(student, None)
        teacher.layout = lambda kind: {kind: theirs[kind]}
        self.method.modules = self.method.extras(student, teacher)

    def given(self, model, batch=None):
        taps = Taps(model.module, self.method.kinds)
        with taps.reading():
            found = self.task.forward(model.module, batch or self.batch)
        return Signals({**found, **taps.signals(self.batch)})

    def terms(self, batch=None):
        batch = batch or self.batch
        with torch.no_grad():
            both = self.given(self.student, batch), self.given(self.teacher, batch)
            return {n: float(v) for n, v in self.method.objective(*both, batch, Progress(0, 1, 0.0)).items()}


def test_a_copy_of_the_teacher_loses_nothing_but_dead_positions():
    teacher = csrnet("32", Context())
    trial, dead = Trial(teacher, teacher, sizes=[(64, 48)]), 0
    with torch.no_grad():
        for adapter in trial.method.modules["adapters"]:
            adapter.weight.copy_(torch.eye(adapter.weight.shape[0])[..., None, None])
            adapter.bias.zero_()
    given = trial.given(teacher)
    dead = sum(int((given[kind].abs().sum(1) == 0).sum()) for kind in trial.method.kinds)
    found = trial.terms()
    assert found["teacher"] == 0 and found["fsp"] == 0
    assert found["cos"] == pytest.approx(0.5 * dead, abs=0.05) and 0 < dead


def test_the_adapters_are_105_728_weights_and_no_part_of_the_student(tmp_path):
    kinds = Skt(SktOptions()).kinds
    widths = dict(zip(kinds, (64, 64, 128, 256, 512, 256)))

    class Quarter:
        layers = {kind: (width // 4, 8, 8) for kind, width in widths.items()}

    class Teacher:
        layout = staticmethod(lambda kind: {kind: (widths[kind], 8, 8)})

    made = Skt(SktOptions()).extras(Quarter(), Teacher())["adapters"]
    assert sum(p.numel() for p in made.parameters()) == 105_728


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_batch_is_the_mean_of_its_images(reduction):
    """Each has its own Gram matrices and its own size: nothing of another, or of what is padded, counts."""
    student, teacher, sizes = csrnet("32", Context()), csrnet("16", Context()), ((64, 48), (33, 57), (64, 48))
    whole = Trial(student, teacher, sizes, reduction=reduction)
    alone = []
    for n, (high, wide) in enumerate(sizes):
        cells = -(-high // 8), -(-wide // 8)
        alone.append(
            {
                "image": whole.batch["image"][n : n + 1, :, :high, :wide],
                "sizes": whole.batch["sizes"][n : n + 1],
                "target": whole.batch["target"][n : n + 1, : cells[0], : cells[1]],
            }
        )
    each = [whole.terms(batch) for batch in alone]
    for name, value in whole.terms().items():
        assert value == pytest.approx(sum(one[name] for one in each) / 3, rel=1e-3), name


def test_sums_are_much_larger_than_means_and_rows_without_labels_have_no_hard_term():
    student, teacher = csrnet("32", Context()), csrnet("16", Context())
    sums, means = (Trial(student, teacher, reduction=of) for of in ("sum", "mean"))
    means.method.modules = sums.method.modules
    a, b = sums.terms(), means.terms()
    assert a["labels"] == b["labels"] and a["teacher"] == b["teacher"] and a["cos"] > 100 * b["cos"] > 0
    assert 0 < b["cos"] < 0.5 * 6 * 2 and a["fsp"] > b["fsp"] > 0
    blind = {**sums.batch, "target": sums.batch["target"] * torch.nan}
    assert sums.terms(blind)["labels"] == 0
    sums.method.stepped(a, Progress(0, 1, 0.0))
    assert sums.method.state()["share_cos"] == pytest.approx(a["cos"] / sum(a.values()))


def test_crops_are_of_whole_cells_and_keep_what_lies_in_them():
    student = csrnet("32", Context())
    trial = Trial(student, csrnet("32", Context()), sizes=[(65, 90), (40, 48), (24, 33)], flip=0.5)
    made, seen = [], set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        batch = trial.method.prepare_batch(trial.batch, generator)
        for size, whole in zip(batch["sizes"].tolist(), ((65, 90), (40, 48), (24, 33))):
            assert all(n % 8 == 0 and n >= max(16, whole[i] // 2 - 12) for i, n in enumerate(size))
            seen.add(tuple(size))
        high, wide = (n // 8 for n in batch["sizes"][0].tolist())
        whole = trial.batch["target"][0]
        window = batch["target"][0, :high, :wide]
        places = [
            whole[y : y + high, x : x + wide] for y in range(9 - high + 1) for x in range(12 - wide + 1)
        ]  # fmt: skip
        assert any(torch.equal(window, at) or torch.equal(window.flip(1), at) for at in places)
        made.append(batch)
    assert len(seen) > 8
    row = {name: value[1:2] for name, value in trial.batch.items()}
    alone = trial.method.prepare_batch(row, torch.Generator().manual_seed(0))
    high, wide = alone["sizes"][0].tolist()
    assert torch.equal(alone["image"][0], made[0]["image"][1, :, :high, :wide]), "a row's crop is its own"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hook_points": ["front.1"]}, "two or more names"),
        ({"fsp_stride": 4}, "greater than or equal to 8"),
        ({"fsp_stride": 12}, "power of two .fsp_stride=12"),
        ({"crop": [0.9, 0.5]}, "must not be above the most .crop="),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        SktOptions(**options)


def test_layers_that_are_not_there_are_named():
    student = csrnet("32", Context())
    with pytest.raises(KdhubError, match="no module named 'front.99'"):
        Trial(student, student, hook_points=("front.1", "front.99"))


def test_a_teacher_alone_teaches_its_maps(tmp_path):
    """Without labels; the log has the terms and their shares, the student none of the adapters, and the count of a
    photograph that nothing is known of is at hand."""
    tiny = Counting().tiny_recipe(tmp_path)
    for use in (tiny["data"]["train"][0], tiny["evaluation"]["data"][0]):
        use["options"] = {**use["options"], "train": 32}
    options = {"reduction": "mean", "hard_weight": 0, "lr": 3e-3, "batch_size": 8, "epochs": 8, "crop": [1, 1]}
    run = kdhub.distill({**tiny, "task": "counting", "method": "skt", "options": options}, out=tmp_path / "run")
    gap = [m["value"] for m in run.report["measures"] if m["metric"] == "count-gap"]
    assert gap[1] < gap[0] / 4, "the student's counts are the teacher's, as far as they can be"
    last = list(run.metrics())[-1]
    assert set(last["terms"]) == {"labels", "teacher", "cos", "fsp"} and last["state"]["share_teacher"] > 0
    saved = kdhub.load(run.folder)
    assert sum(p.numel() for p in saved.module.parameters()) == sum(
        p.numel() for p in csrnet("32", Context()).module.parameters()
    )
    assert np.isfinite(saved.count(np.zeros((40, 33), np.uint8)))
    pictures = [p["file"] for p in json.loads((run.folder / "provenance.json").read_text())["pictures"]]
    assert pictures == ["plots/rows-densities.png", "plots/rows-counts.png"]


def test_two_processes_give_the_counter_of_one(tmp_path):
    options = {"reduction": "mean", "lr": 1e-3, "batch_size": 4, "max_steps": 2, "precision": "float32", "flip": 0}
    tiny = {**Counting().tiny_recipe(tmp_path), "evaluation": {"data": []}}
    recipe = {**tiny, "task": "counting", "method": "skt", "options": options | {"crop": [0.7, 1]}}
    kdhub.distill(recipe, out=tmp_path / "one")
    pair().distil(recipe, tmp_path / "both")
    one, both = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "both"))
    for name in one:
        torch.testing.assert_close(both[name], one[name], rtol=0, atol=2e-5, msg=name)
