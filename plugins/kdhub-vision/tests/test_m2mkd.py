"""Modules that learn apart: the numbers of the specification, what is trained, and what is put together."""

import pytest
import torch
from kdhub_tasks.splitting import Chain
from kdhub_vision.methods.m2mkd import M2mkd, M2mkdModule
from kdhub_vision.modules.experts import Experts, balance_loss
from kdhub_vision.modules.hybrid import Hybrid
from safetensors.torch import load_file

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals
from kdhub.testing._ranks import pair

TASK = "image-classification"
FACTS = {"shape": [8, 8], "classes": [str(i) for i in range(10)], "mean": 0.3, "std": 0.4}
MOE = "moe-vit:patch=4,width=4,layers=3,heads=2,experts=3"
X = {"x": torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))}


def vit(folder=None, layers=3, seed=0, width=8, patch=4):
    made = kdhub.open_student(f"vit:patch={patch},width={width},layers={layers},heads=2", TASK, seed=seed, facts=FACTS)
    if folder is not None:
        folder.mkdir()
        made.save(folder)
    return made


@pytest.fixture
def spliced(tmp_path):
    """A function module -> teacher, of a teacher of five blocks and a meta model of three."""
    vit(tmp_path / "teacher", 5, 1)
    vit(tmp_path / "meta", 3, 2)

    def opened(module=0, **options):
        sources = {"of": {"source": f"path:{tmp_path / 'teacher'}"}, "meta": {"source": f"path:{tmp_path / 'meta'}"}}
        return kdhub.open_teacher({"source": "spliced", "module": module, **sources, **options}, TASK)

    return opened


def loss(y_s, y_t, labels=(0,), **options):
    method = M2mkdModule(M2mkdModule.Options(**{"label_smoothing": 0.0, **options}))
    student, teacher = Signals({"logits": torch.tensor([y_s])}), Signals({"logits": torch.tensor([y_t])})
    terms = method.objective(student, teacher, {"labels": torch.tensor(labels)}, Progress(0, 1, 0.0))
    return {name: term.item() for name, term in terms.items()}


def test_the_loss_of_a_module():
    given = loss([1.0, 0.0], [0.0, 1.0])
    assert given["teacher"] == pytest.approx(0.5 * 0.231059, abs=1e-6)
    assert given["labels"] == pytest.approx(0.5 * 0.313262, abs=1e-6)
    assert sum(given.values()) == pytest.approx(0.272160, abs=1e-6)
    assert loss([1.0, 0.0], [0.0, 1.0], tau=2.0)["teacher"] == pytest.approx(0.5 * 0.244919, abs=1e-6)
    assert loss([1.0, 0.0], [0.0, 1.0], kd_norm="batch")["teacher"] == pytest.approx(0.5 * 0.462117, abs=1e-6)
    hard = loss([1.0, 0.0], [0.0, 1.0], distillation_type="hard")
    assert hard["teacher"] == pytest.approx(0.5 * 1.313262, abs=1e-6)


def test_labels_alone_and_the_teacher_alone():
    assert loss([1.0, 0.0], [0.0, 1.0], alpha_teacher=0.0) == {
        "teacher": 0.0,
        "labels": pytest.approx(0.313262, abs=1e-6),
    }
    assert loss([1.0, 0.0], [0.0, 1.0], (0,), alpha_teacher=1.0) == loss(
        [1.0, 0.0], [0.0, 1.0], (1,), alpha_teacher=1.0
    )
    assert loss([1.0, 0.0], [0.0, 1.0], (-1,), alpha_teacher=1.0).keys() == {"teacher"}


def test_each_token_goes_to_two_experts_whose_weights_sum_to_one():
    torch.manual_seed(0)
    layer, x = Experts(4, 8, 5, 2), torch.randn(3, 7, 4)
    given = layer(x)
    logits = layer.gate(x)
    every = torch.stack([expert(x) for expert in layer.experts], -2)
    best = logits.topk(2, -1)
    weights = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))
    assert ((weights > 0).sum(-1) == 2).all() and torch.allclose(weights.sum(-1), torch.ones(3, 7))
    torch.testing.assert_close(given, (weights.unsqueeze(-1) * every).sum(-2))
    usage, gates = layer.seen
    torch.testing.assert_close(usage, (weights > 0).float().mean(1) / 2)
    even = torch.full((2, 1, 4), 0.25)
    assert balance_loss(even, even).item() == pytest.approx(1.0)
    alone = torch.zeros(2, 1, 4).index_fill(-1, torch.tensor([2]), 1.0)
    assert balance_loss(alone, alone).item() == pytest.approx(4.0)
    given = Signals({"logits": torch.zeros(2, 3), "experts": alone, "gates": alone})
    method = M2mkd(M2mkd.Options(balance=0.1))
    terms = method.objective(given, Signals(), {"labels": torch.tensor([0, 1])}, Progress(0, 1, 0.0))
    assert terms["balance"].item() == pytest.approx(0.4) and method.state()["expert 1.3"] == 1


@pytest.mark.parametrize("module", [0, 1, 2])
def test_a_copy_of_the_teachers_module_gives_what_the_teacher_gives(spliced, module):
    teacher = spliced(module)
    assert teacher.module.start == [0, 2, 4][module] and teacher.module.end == [2, 4, None][module]
    copy = Hybrid(teacher.meta.module, teacher.of.module, module, [2, 2, 1]).eval()
    with torch.no_grad():
        mine, theirs = copy(X)["logits"], teacher.module(X)["logits"]
    assert torch.equal(mine, theirs) and (mine - teacher.of.module(X)["logits"]).abs().max() > 1e-3
    meta = teacher.meta.module
    own = Hybrid(meta, meta, module, [1, 1, 1]).eval()  # its own blocks in their places
    torch.testing.assert_close(own(X)["logits"], meta(X)["logits"])


def test_only_the_module_and_its_stitches_learn_through_the_frozen_tail(spliced):
    teacher = spliced(1)
    student = kdhub.open_student(f"module:{MOE}", TASK, teacher=teacher, facts=FACTS)
    whole = kdhub.open_student(MOE, TASK, facts=FACTS).module.state_dict()
    own = student.module.own_state()
    assert own and all(name.startswith("layers.1.") and torch.equal(whole[name], own[name]) for name in own)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    optimiser = torch.optim.AdamW(student.module.parameters(), 0.01)
    student.module.train()
    student.module(X)["logits"].logsumexp(-1).sum().backward()
    optimiser.step()
    moved = {n for n, value in student.module.state_dict().items() if not torch.equal(value, before[n])}
    assert moved and all(n.startswith(("other.layers.1.", "before.", "after.")) for n in moved)
    assert {n.split(".")[0] for n in moved} == {"other", "before", "after"}
    assert not student.module.meta.training
    assert kdhub.count_costs(student)["parameters"] < kdhub.count_costs(vit())["parameters"] + 1500


def saved(student, folder):
    folder.mkdir()
    student.save(folder)
    return {"source": f"path:{folder}"}


def test_modules_are_assembled_without_stitches_unless_they_are_kept(spliced, tmp_path):
    def trained(module):
        return kdhub.open_student(f"module:{MOE}", TASK, teacher=spliced(module), seed=module, facts=FACTS)

    refs = [saved(trained(module), tmp_path / f"module{module}") for module in (2, 0, 1)]
    made = kdhub.open_student({"source": "assembled", "modules": refs}, TASK, facts=FACTS)
    state, fresh = made.module.state_dict(), [kdhub.open_student(MOE, TASK, seed=n, facts=FACTS) for n in range(3)]
    assert state.keys() == fresh[0].module.state_dict().keys() and made.config == fresh[0].config
    owner = Chain(made.module).owner(X)
    assert {owner("patches.weight"), owner("positions")} == {0} and owner("head.weight") == 2
    assert all(torch.equal(value, fresh[owner(name)].module.state_dict()[name]) for name, value in state.items())
    kept = kdhub.open_student({"source": "assembled", "modules": refs, "keep_stitch": True}, TASK, facts=FACTS)
    saved(kept, tmp_path / "kept")
    again = kdhub.open_task(TASK).load(tmp_path / "kept")
    torch.testing.assert_close(again.module(X)["logits"], kept.module.eval()(X)["logits"])
    assert (again.module(X)["logits"] - made.module.eval()(X)["logits"]).abs().max() > 1e-3
    for wrong, said in ((refs[:2], r"\[0, 2\] of 3: 1 missing"), (refs[:2] + refs[:1], "module 2 is there twice")):
        with pytest.raises(UsageError, match=said):
            kdhub.open_student({"source": "assembled", "modules": wrong}, TASK, facts=FACTS)


def test_parts_that_do_not_fit_are_refused(spliced, tmp_path):
    wide = saved(vit(width=12), tmp_path / "wide")
    with pytest.raises(CompatibilityError, match="behind module 1 the teacher's are 4 x 12, the meta model's 4 x 8"):
        spliced(of=wide).module  # noqa: B018
    with pytest.raises(UsageError, match=r"whose sum is its 5 blocks \(depths=\[2, 2, 2\]\)"):
        spliced(depths=[2, 2, 2]).module  # noqa: B018
    with pytest.raises(UsageError, match="module=3, blocks=3"):
        spliced(3).module  # noqa: B018
    with pytest.raises(CompatibilityError, match="the student's are 16 x 8"):
        kdhub.open_student("module:vit:patch=2,width=8,layers=3,heads=2", TASK, teacher=spliced(), facts=FACTS)
    with pytest.raises(UsageError, match="the student's depths must be 3 numbers"):
        source = {"source": f"module:{MOE}", "depths": [1, 1]}
        kdhub.open_student(source, TASK, teacher=spliced(), facts=FACTS)
    with pytest.raises(CompatibilityError, match="stitch=identity, widths 4 and 8"):
        source = {"source": f"module:{MOE}", "stitch": "identity"}
        kdhub.open_student(source, TASK, teacher=spliced(), facts=FACTS)
    with pytest.raises(UsageError, match="top=4, experts=3"):
        kdhub.open_student("moe-vit:patch=4,width=4,layers=1,heads=2,experts=3,top=4", TASK, facts=FACTS)


def test_networks_of_other_kinds_can_be_teacher_and_meta_model(tmp_path):
    """Stages of a ResNet; and a vision transformer of the transformers library as the teacher."""
    import transformers
    from kdhub_tasks.classification.vision import ImageNetwork

    deep, shallow = (kdhub.open_student(f"resnet:{n}", TASK, facts=FACTS) for n in (14, 8))
    refs = {"of": saved(deep, tmp_path / "deep"), "meta": saved(shallow, tmp_path / "shallow")}
    teacher = kdhub.open_teacher({"source": "spliced", "module": 1, **refs}, TASK)
    student = kdhub.open_student("module:residual:width=4", TASK, teacher=teacher, facts=FACTS)
    assert student.module.train()(X)["logits"].shape == teacher.module(X)["logits"].shape == (5, 10)
    assert student.module.own_state() and all(name.startswith("layer2.") for name in student.module.own_state())
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    chain, x = Chain(ImageNetwork(transformers.ViTForImageClassification(config)).eval()), {"x": X["x"].unsqueeze(1)}
    whole = chain.run(x)["logits"]
    for place in range(len(chain) + 1):
        torch.testing.assert_close(chain.run(x, place, None, chain.run(x, 0, place))["logits"], whole)


def test_a_module_is_the_same_again_or_by_two_processes_and_its_second_run_asks_nobody(spliced, tmp_path):
    teachers = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("teacher", "meta")}
    recipe = {
        "task": TASK, "method": "m2mkd-module", "student": f"module:{MOE}", "seed": 1,
        "teacher": {
            "source": "spliced", "module": 2, "of": {"source": f"path:{tmp_path / 'teacher'}"},
            "meta": {"source": f"path:{tmp_path / 'meta'}"},
        },
        "data": {"train": [{"source": "digits", "split": "train", "limit": 64}]},
        "options": {"batch_size": 16, "max_steps": 2, "precision": "float32"},
        "evaluation": {"data": [], "cost": False},
    }  # fmt: skip
    spliced()
    one, again = (kdhub.distill(recipe, out=tmp_path / name) for name in ("a", "b"))
    pair().distil(recipe, tmp_path / "both")
    whole, parts = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("a", "both"))
    for name in whole:  # a key's bias is added to all scores of a softmax: its gradient is rounding
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=2e-5, msg=name)
    files = [(run.student_folder / "model.safetensors").read_bytes() for run in (one, again)]
    assert files[0] == files[1]
    calls = [run.provenance["signals"]["logits"]["calls"] for run in (one, again)]
    assert calls[0] > calls[1] == 0
    assert {name: (tmp_path / name / "model.safetensors").read_bytes() for name in teachers} == teachers
    usage = [m for m in one.report["measures"] if m["metric"] == "expert-usage"]
    assert [m["variant"] for m in usage] == [{"layer": 1, "expert": n} for n in (1, 2, 3)]
    assert sum(m["value"] for m in usage) == pytest.approx(1, abs=1e-5)
    (line, *_) = one.metrics()
    assert line["terms"].keys() == {"teacher", "labels"} and "expert 1.3" in line["state"]
