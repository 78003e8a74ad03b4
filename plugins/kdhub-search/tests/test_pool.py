"""Pools of stitched transformers: the numbers of the specification, members, and what a step changes."""

import json

import numpy as np
import pytest
import torch
from kdhub_search.families import stitching
from kdhub_search.methods.learngene import Learngene, soft_cross_entropy
from kdhub_search.methods.learngene_pool import LearngenePool
from kdhub_search.networks import Blocks
from safetensors.torch import load_file

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals

TASK = "image-classification"
FACTS = {"shape": [8, 8], "classes": [str(i) for i in range(10)], "mean": [[0.3]], "std": [[0.4]]}


def pool(argument="patch=4,layers=3,heads=2", seed=0, **options):
    source = {"source": f"pool:{argument}", "widths": [4, 8], **options}
    return kdhub.open_student(source, TASK, seed=seed, facts=FACTS)


def examples(many=5):
    return [{"x": x} for x in np.random.default_rng(0).integers(0, 256, (many, 8, 8), np.uint8)]


@pytest.mark.parametrize(("blocks", "count", "layers"), [(3, 7, 2), (4, 10, 3), (6, 16, 5), (9, 25, 8), (12, 34, 11)])
def test_paired_stitching(blocks, count, layers):
    made = stitching.pairs(blocks)
    assert len(made) == count and len({layer for *_, layer in made}) == layers
    assert made[:7] == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 2, 1), (2, 1, 1), (2, 2, 1)]


def test_stitches_lead_from_narrow_to_wide():
    assert [(p.front, p.end) for p in stitching.paths(3, 6, 2, 1, False)] == [(0, 2)] * 16
    assert [(p.front, p.end) for p in stitching.paths(3, 6, 2, 1, True)] == [(0, 1)] * 16 + [(0, 2)] * 16 + [
        (1, 2)
    ] * 16


@pytest.mark.parametrize(
    ("blocks", "found"),
    [(9, [2, 5, 8]), (6, [1, 3, 5]), (12, [3, 7, 11]), (3, [0, 1, 2]), (4, [0, 1, 3]), (2, [0, 0, 1])],
)
def test_positions_in_whole_numbers(blocks, found):
    assert stitching.positions("front-end", blocks) == found
    assert stitching.positions("mid-end", blocks) == found[1:] and stitching.positions("end", blocks) == found[2:]


def test_least_squares():
    before = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 1]])
    after = torch.tensor([[2.0, 1, 0], [1, 2, 1], [2, 2, 1], [4, 3, 1]])
    weight, bias = stitching.least_squares(before, after)
    torch.testing.assert_close(weight, torch.tensor([[1.5, 1 / 3], [0.5, 4 / 3], [0, 1]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(bias, torch.tensor([0.5, 0.5, 0]), atol=1e-5, rtol=0)


def test_learned_stitches_are_transposed_maps():
    narrow, middle, wide = torch.randn(2, 8), torch.randn(4, 8), torch.randn(8, 8)
    assert torch.equal(stitching.learned([narrow, middle, wide], 0, 2), narrow.T)
    assert torch.equal(stitching.learned([narrow, middle, wide], 0, 1), middle @ narrow.T)


def test_the_loss_of_instances():
    student, teacher = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])
    assert soft_cross_entropy(student, teacher, 1.0).item() == pytest.approx(0.446501, abs=1e-6)
    method = Learngene(Learngene.Options(terms="logits", alpha=0.1))
    signals = [Signals({"logits": logits}) for logits in (student, teacher)]
    terms = method.objective(*signals, {"labels": torch.tensor([0])}, Progress(0, 1, 0.0))
    assert terms["labels"].item() == pytest.approx(0.0551445, abs=1e-6)
    assert sum(terms.values()).item() == pytest.approx(0.456995, abs=1e-6)
    assert Learngene(Learngene.Options(terms="logits+rep")).alpha == 0.5 and Learngene(Learngene.Options()).alpha == 0.1


def test_tokens_before_the_patches_are_not_compared():
    method = Learngene(Learngene.Options(terms="logits+rep", where="end"))
    method._of = {"teacher": Blocks(["t"], "attention", 3, 2), "student": Blocks(["s"], "self_attn", 2, 2)}
    method._at, method._first, method.modules = {"teacher": ["t"], "student": ["s"]}, 1, {"rep-0": torch.nn.Identity()}
    states, logits = torch.randn(4, 3, 2), torch.zeros(4, 5)
    student = Signals({"logits": logits, "layer:s:all": states[:, 1:]})
    teacher = Signals({"logits": logits, "layer:t:all": states})
    terms = method.objective(student, teacher, {"labels": torch.zeros(4, dtype=torch.long)}, Progress(0, 1, 0.0))
    assert terms["rep"] == 0


def test_members_are_cut_out_bit_for_bit_and_counted():
    family = pool(all_pairs=True, widths=[4, 8, 12])
    assert len(family.members) == 3 + 3 * 7
    counts = []
    for name in family.members:
        family.choose(name)
        given = family.signals(examples(), "logits")["logits"]
        family.choose(None)
        cut = family.cut(name)
        assert np.array_equal(cut.signals(examples(), "logits")["logits"], given)
        counts.append(sum(p.numel() for p in cut.module.parameters()))
        assert counts[-1] == family.module.parameters_of(name)
    assert counts == sorted(counts)
    # Patches (16 to 4) and 4 positions, one block of width 4, a stitch to 8, two blocks of 8, norm and head.
    block = lambda w: 4 * (w * w + w) + (2 * w * w + 2 * w) + (2 * w * w + w) + 4 * w  # noqa: E731
    expected = (16 * 4 + 4) + 4 * 4 + block(4) + (4 * 8 + 8) + 2 * block(8) + 16 + (8 * 10 + 10)
    assert family.module.parameters_of("1x4+2x8") == expected


def test_an_identity_between_equal_anchors_changes_nothing():
    module = pool().module
    module.anchors[0] = module.anchors[1]
    path = module.paths["2x4+1x8"]  # leave after block 1, enter at block 2
    layer = torch.nn.Linear(8, 8)
    torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    module.stitches["0-1"][path.layer] = layer
    inputs = {"x": torch.rand(3, 8, 8)}
    module.member = "2x4+1x8"
    through = module(inputs)["logits"]
    module.member = "3x8"
    torch.testing.assert_close(through, module(inputs)["logits"])


def test_a_step_on_a_member_leaves_all_others_as_they_were():
    family = pool()
    optimiser = torch.optim.AdamW(family.module.parameters(), lr=0.1, weight_decay=0.5)
    for name in ("3x8", "1x4+2x8"):  # the second step: with moments of the first
        before = {key: value.clone() for key, value in family.module.state_dict().items()}
        family.choose(name)
        optimiser.zero_grad(set_to_none=True)
        family.module(family.collate(examples()))["logits"].square().sum().backward()
        optimiser.step()
        own = {id(p) for part in family.module.parts(name).values() for p in _parameters(part)}
        for key, value in family.module.named_parameters():
            assert torch.equal(value, before[key]) == (id(value) not in own), key


def test_a_family_of_another_kdhub_is_refused(tmp_path):
    pool().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value, said in (
        ("kdhub", 2, "format 2, and this kdhub reads format 1"),
        ("network", "vit-lake", "vit-lake"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CompatibilityError, match=said) as error:
            kdhub.load(tmp_path)
        assert error.value.hint


def _parameters(part):
    return [part] if isinstance(part, torch.nn.Parameter) else part.parameters()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"widths": [8, 4]}, "must ascend"),
        ({"widths": [4, 6], "argument": "patch=4,layers=3,heads=4"}, "heads must divide every width"),
        ({"argument": "patch=3,layers=3,heads=2"}, "do not divide"),
    ],
)
def test_pools_that_mean_nothing(change, said):
    with pytest.raises(UsageError, match=said):
        pool(**change)


# -- runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ancestor(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("ancestor"))


def saved(folder, layers=3, classes=10):
    facts = {**FACTS, "classes": FACTS["classes"][:classes]}
    kdhub.open_student(f"vit:patch=4,width=8,layers={layers},heads=2", TASK, seed=5, facts=facts).save(folder)
    return f"path:{folder}"


def distil(out, ancestor, student=None, **options):
    digits = {"source": "digits", "split": "train", "limit": 32}
    recipe = {
        "task": TASK, "method": "learngene-pool", "teacher": {"source": ancestor},
        "student": student or {"source": "pool:patch=4,layers=3,heads=2", "widths": [4, 8]},
        "data": {"train": [digits], "validation": [digits]},
        "options": {"instance_epochs": 1, "max_steps": 2, "batch_size": 16, **options},
        "evaluation": {"data": [], "cost": False},
    }  # fmt: skip
    return kdhub.distill(recipe, out=out)


def test_a_pool_that_was_stopped_between_two_stages_ends_alike(tmp_path, ancestor, monkeypatch):
    run = distil(tmp_path / "whole", ancestor)
    told = {(m["metric"], m["subject"]) for m in run.report["measures"]}
    assert told >= {(m, s) for m in ("path-mean", "anchor-3x4", "anchor-3x8") for s in ("student-before", "student")}
    with monkeypatch.context() as patched:
        patched.setattr(LearngenePool, "_stitch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distil(tmp_path / "stopped", ancestor)
    trained, own = [], LearngenePool._instance
    monkeypatch.setattr(LearngenePool, "_instance", lambda *a: trained.append(a) or own(*a))
    resumed = kdhub.distill(resume=tmp_path / "stopped")
    assert not trained  # anchors and their maps were kept
    files = [one.student_folder / "model.safetensors" for one in (run, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_ancestor_of_transformers(tmp_path):
    """Of three blocks, with a token of the class, which built-in instances have not."""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    names = {i: str(i) for i in range(10)}
    made = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, id2label=names))
    made.save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    run = distil(tmp_path / "run", f"path:{tmp_path / 'vit'}")
    maps = load_file(run.folder / "instances" / "3x4.safetensors")
    assert {
        name: tuple(x.shape) for name, x in maps.items() if name.startswith("att-") and name.endswith("weight")
    } == {f"att-{p}.weight": (4, 8) for p in range(3)}


def test_least_squares_are_exact_where_anchors_are_alike(tmp_path, ancestor):
    """Where front and end see the same, what leaves the stitch is what the end's block before it gave."""
    family = pool()
    with torch.no_grad():
        for parameter in family.module.parameters():
            parameter.mul_(0.1)

    class Rows(list):
        def __getitem__(self, which):
            return [list.__getitem__(self, int(i)) for i in which]

    class Run:
        seed = 0

        def rows(self, use):
            return Rows(examples(40))

    with torch.no_grad():
        LearngenePool(LearngenePool.Options())._solve(Run(), family)
        inputs = family.collate(examples(40))
        front, end = family.module.anchors
        x, y = front.embedded(inputs), end.embedded(inputs)
        x, y = front.layers.layers[0](x), end.layers.layers[0](y)
        stitch = family.module.stitches["0-1"][0]
        assert (stitch(x) - y).square().mean() < 0.5 * y.var()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"student": "mlp:8"}, CompatibilityError, "makes a pool of anchors"),
        (
            {"student": {"source": "pool:patch=4,layers=2,heads=2", "widths": [4, 8]}},
            CompatibilityError,
            "the student has 2",
        ),
        ({"ancestor": {"layers": 2}}, CompatibilityError, "compares 3 blocks, and the teacher has 2"),
        ({"ancestor": {"classes": 7}}, CompatibilityError, " of [0-9]+ are in both"),
        ({"terms": "none"}, UsageError, "needs the maps of blocks"),
        (
            {"student": {"source": "pool:patch=2,layers=3,heads=2", "widths": [4, 8]}},
            CompatibilityError,
            "position by pos",
        ),
    ],
)
def test_refused(tmp_path, changes, error, said):
    (tmp_path / "ancestor").mkdir()
    ancestor = saved(tmp_path / "ancestor", **changes.get("ancestor", {}))
    with pytest.raises(error, match=said):
        distil(tmp_path / "a", **{**changes, "ancestor": ancestor})
