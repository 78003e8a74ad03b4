"""Talking models: the specification's numbers, what gradients reach, and that what is said matters."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from kdhub_tasks.classification import networks, tiny
from kdhub_tasks.classification.folders import load
from kdhub_tasks.splitting import Split
from kdhub_text.messages import codecs, distance
from kdhub_text.methods.talking_models import TalkingModels
from torch import nn
from torch.nn.functional import pad
from transformers import AutoTokenizer

import kdhub
from kdhub.errors import CompatibilityError, UsageError

E_H, D_H = [[1.0, 0, 0], [0, 1, 1]], [[1.0, 0], [0, 1], [1, 1]]
I2 = [[1.0, 0], [0, 1]]


def side(encoder, decoder) -> nn.ModuleDict:
    """One model's codecs of plain matrices, the same at both places."""

    def linear(matrix):
        made = nn.Linear(len(matrix[0]), len(matrix), bias=False)
        with torch.no_grad():
            made.weight.copy_(torch.tensor(matrix))
        return made

    of = {"encoder": linear(encoder), "decoder": linear(decoder)}
    return nn.ModuleDict({kind: nn.ModuleDict({"lower": one, "upper": one}) for kind, one in of.items()})


def talking(**options) -> TalkingModels:
    """The specification's example: the teacher's upper part is relu(. - 1)."""
    method = TalkingModels(TalkingModels.Options(**{"standardise": False} | options))
    teacher = networks.Mlp([3], 2, [3, 3])
    with torch.no_grad():
        teacher.hidden[1].weight.copy_(torch.eye(3))
        teacher.hidden[1].bias.fill_(-1)
    method._teacher = Split(teacher.requires_grad_(False), 1, 2)
    method.modules = {"codecs": nn.ModuleDict({"student": side(I2, I2), "teacher": side(E_H, D_H)})}
    return method


def states(lower=(1.0, 2.0), upper=(1.0, 1.0), teacher=(1.0, 1.0, 1.0), above=(0.0, 1.0, 2.0)):
    def one(x):
        return torch.tensor([[x]])

    return {
        "student": {"lower": one(lower), "upper": one(upper)},
        "teacher": {"lower": one(teacher), "upper": one(above)},
    }


BATCH = {"x": torch.zeros(1, 3)}


def talked(method, own, batch=BATCH, **how):
    """L_I of a conversation."""
    return method._interaction(own, batch, method._conversation(own, batch, **how))


# -- the losses -----------------------------------------------------------------------------------------------


def test_an_answer_of_the_specification_and_a_second_round():
    """Decoded [1, 2, 3], thought [0, 1, 2], answer [0, 3]; then [0, 3] > [0, 3, 3] > [0, 2, 2] > [0, 4]."""
    method = talking()
    message = torch.tensor([[[1.0, 2.0]]])
    assert method._answer(message, states(), BATCH).tolist() == [[[0, 3]]]
    assert talked(method, states()).item() == 2.5
    assert talked(talking(rounds=2), states()).item() == (2.5 + 5.0) / 2
    # One way: the teacher's own [0, 1, 2] is [0, 3] in words, whatever the student says.
    assert talked(talking(one_way=True, rounds=3), states(lower=(9.0, 9.0))).item() == 2.5


def test_consistency_of_the_specification():
    method = talking(w_mc=1.0, w_sc=1.0)
    found = method._consistency(states(), None)
    # One word for both below, [1, 2]; above the student says [1, 1], the teacher [0, 3].
    assert found["messages"].item() == pytest.approx(0 + 2.5)
    # The student's come back as they were; [1, 1, 1] comes back as [1, 2, 3], and [0, 1, 2] as [0, 3, 3].
    assert found["states"].item() == pytest.approx(5 / 3 + 5 / 3)
    method.modules["codecs"]["teacher"] = side(torch.eye(3).tolist(), torch.eye(3).tolist())
    method.modules["codecs"]["student"] = side([[2.0, 0], [0, 4], [0, 0]], [[0.5, 0, 0], [0, 0.25, 0]])
    assert method._consistency(states(), None)["states"].item() == 0, "exact inverses"


def test_what_is_decoded_is_led_to_what_was_encoded_and_not_the_other_way():
    """The target of L_SC is a constant: with codecs that give nothing back no gradient reaches the states. Of L_MC the
    student's do move."""
    zero = [[0.0] * 2] * 2, [[0.0] * 2] * 2
    method, own = talking(w_mc=0.0, w_sc=1.0), states()
    method.modules["codecs"] = nn.ModuleDict(
        {"student": side(*zero), "teacher": side([[0.0] * 3] * 2, [[0.0] * 2] * 3)}
    )
    leaves = [state.requires_grad_() for of in own.values() for state in of.values()]
    found = method._consistency(own, None)["states"]
    assert found.item() == pytest.approx(5 / 2 + 1 + 1 + 5 / 3), "mean squares of the states themselves"
    assert all(slope is None or not slope.any() for slope in torch.autograd.grad(found, leaves, allow_unused=True))
    method = talking(w_mc=1.0, w_sc=0.0)
    (slope,) = torch.autograd.grad(method._consistency(own, None)["messages"], own["student"]["upper"])
    assert slope.any()


def test_states_count_alike_whatever_their_size():
    """Ten times the states of both models, through a teacher for which ten times in is ten times out."""
    method = talking(standardise=True)
    method._teacher.network.hidden[1].bias.data.zero_()
    torch.manual_seed(0)
    own = {
        who: {place: torch.rand(6, 1, n) for place in ("lower", "upper")} for who, n in (("student", 2), ("teacher", 3))
    }
    large = {who: {place: 10 * h for place, h in of.items()} for who, of in own.items()}
    batch = {"x": torch.zeros(6, 3)}
    for talk in (partial(talked, method), lambda s, _: method._consistency(s, None)["states"]):
        assert talk(large, batch).item() == pytest.approx(talk(own, batch).item(), rel=1e-4)
    seen = method._unit(5 + own["student"]["lower"])
    assert seen.mean((0, 1)).abs().max() < 1e-5 and seen.square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_distances_leave_padding_out():
    a, b = torch.tensor([[[1.0, 0], [5, 5]]]), torch.tensor([[[0.0, 1], [1, 1]]])
    assert distance(a, b).item() == 8.5 and distance(a, b, real=torch.tensor([[1, 0]])).item() == 1.0
    assert distance(a, b, "cosine").item() == pytest.approx(0.5, abs=1e-6)
    assert distance(a, b, real=torch.ones(1, 3)).item() == 8.5, "a mask of other positions says nothing"


@pytest.fixture
def of_texts(tmp_path):
    """Two models of tokens that talk, and what they read: a method, its student, a batch of ten texts."""
    models = [
        load(tiny.text_classifier(tmp_path / str(n), seed=n, of="BertForTokenClassification", hidden=8 + 8 * n))
        for n in range(2)
    ]
    batch = models[0].collate([{"words": row["text"].split()} for row in tiny.rows(10)])
    method = TalkingModels(TalkingModels.Options(batch_size=16, message_dim=4))
    method._student, method._teacher = (Split(model.module.requires_grad_(False)) for model in models)
    torch.manual_seed(0)
    with method._student.read(), method._teacher.read():
        own = method._read(models[0], batch)
        method.modules = {"codecs": nn.ModuleDict({who: codecs(own[who], 4, "mlp", "auto") for who in own})}
        yield method, models[0], batch


def test_padding_behind_the_rows_changes_no_loss(of_texts):
    method, student, batch = of_texts
    assert not batch["attention_mask"].all(), "some rows are padded anyway"
    wide = {name: pad(batch[name], (0, 7)) for name in ("input_ids", "attention_mask")}
    a, b = ((method._read(student, one), one) for one in (batch, wide))
    for talk in (partial(talked, method), lambda s, one: sum(method._consistency(s, one["attention_mask"]).values())):
        assert talk(*b).item() == pytest.approx(talk(*a).item(), rel=1e-5)
    seen = method._unit(b[0]["student"]["upper"], wide["attention_mask"])[wide["attention_mask"].bool()]
    assert seen.mean(0).abs().max() < 1e-5 and seen.square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_no_more_rows_are_run_at_once_than_are_trained_on(of_texts):
    method, student, batch = of_texts
    whole, many = method._read(student, batch), []
    method.options.batch_size = 4
    with student.module.register_forward_pre_hook(lambda _, given: many.append(len(given[0]["input_ids"]))):
        parts = method._read(student, batch)
    assert many == [4, 4, 2]
    for who, own in whole.items():
        assert all(torch.allclose(parts[who][place], own[place], atol=1e-5) for place in own)


def test_only_the_first_messages_are_those_of_other_rows():
    method, rows = talking(rounds=2), torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]]])
    own = {who: {place: h.repeat(2, 1, 1) for place, h in of.items()} for who, of in states().items()}
    own["student"] = {"lower": rows, "upper": torch.tensor([[[1.0, 1.0]], [[0.0, 4.0]]])}
    batch, swap = {"x": torch.zeros(2, 3)}, torch.tensor([1, 0])
    others = {**own, "student": {**own["student"], "lower": rows[swap]}}
    swapped = talked(method, own, batch, order=swap)
    assert swapped == talked(method, others, batch) != talked(method, own, batch)


def test_a_frozen_teacher_passes_gradients_on_and_keeps_none():
    method = talking()
    own = states()
    own["student"]["upper"].requires_grad_()
    before = {name: p.clone() for name, p in method._teacher.network.named_parameters()}
    talked(method, own).backward()
    codecs = method.modules["codecs"]
    for part in (codecs["student"]["encoder"]["lower"], codecs["teacher"]["decoder"]["lower"]):
        assert part.weight.grad.abs().sum() > 0
    assert own["student"]["upper"].grad.abs().sum() > 0, "the student moves towards the answer"
    for name, p in method._teacher.network.named_parameters():
        assert p.grad is None and torch.equal(p, before[name])


def test_codecs_by_width():
    some = {"lower": torch.rand(20, 1, 6) * 3 + 5, "upper": torch.rand(20, 1, 4)}
    made = codecs(some, 3, "mlp", "auto")
    assert made["encoder"]["lower"] is not made["encoder"]["upper"]
    assert made["decoder"]["upper"](torch.rand(2, 1, 3)).shape == (2, 1, 4)
    with pytest.raises(CompatibilityError, match="they have 6 and 4 numbers"):
        codecs(some, 3, "mlp", True)
    even = {place: some["lower"] for place in some}
    made = codecs(even, 3, "linear", "auto")
    assert made["encoder"]["lower"] is made["encoder"]["upper"] and isinstance(made["encoder"]["lower"], nn.Linear)


# -- runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A network trained for a moment on the ten upright digits."""
    folder = tmp_path_factory.mktemp("teacher")
    recipe = "upright-digits-teacher"
    return kdhub.distill(recipe, out=folder / "run", set={"options.epochs": 4, "evaluation.data": []}).student_folder


def run(teacher, out, method="talking-models", **options):
    changes = {"options.epochs": 60, "evaluation.cost": False} | {f"options.{k}": v for k, v in options.items()}
    recipe = {"name": "x"} | ({} if method == "supervised" else {"teacher": f"path:{teacher}"})
    if method == "supervised":
        catalogue = kdhub.catalogue.catalog.default_catalog().get("recipes", "talking-models")
        recipe |= {key: catalogue[key] for key in ("task", "student", "data", "evaluation", "options")}
    return kdhub.distill({"method": method, **recipe}, out=out, set=changes)


def measured(run):
    return {m["metric"]: m["value"] for m in run.report["measures"] if m["subject"] == "student"}


def test_without_weights_it_is_supervised_training_to_the_bit(teacher, tmp_path):
    """And the student that is kept is one that was never spoken to: the same file, name by name."""
    nothing = {"w_interact": 0.0, "w_mc": 0.0, "w_sc": 0.0, "epochs": 5}
    folders = [run(teacher, tmp_path / "talk", **nothing), run(teacher, tmp_path / "alone", "supervised", epochs=5)]
    a, b = (load(done.student_folder).module.state_dict() for done in folders)
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_said_matters_and_a_teacher_of_other_classes_is_not_measured(teacher, tmp_path):
    talk = run(teacher, tmp_path / "talk", lr=5e-3)
    found = measured(talk)
    training, steps = talk.provenance["training"], talk.provenance["training"]["steps"]
    assert training["live_teacher_calls"] == 2 * steps, "it is asked about the rows, and what the student says of them"
    assert found["permutation-ratio"] > 2 and found["message-dependence"] > 0.05 and found["accuracy"] > 0.7
    assert not [m for m in talk.report["measures"] if m["subject"] == "teacher" and m["metric"] == "accuracy"]
    assert "the teacher was not measured: the student has the classes high, low" in talk.report["notes"][-1]
    one = measured(run(teacher, tmp_path / "one", one_way=True, epochs=5))
    assert one["permutation-ratio"] == 1.0 and one["message-dependence"] == 0.0
    again = kdhub.evaluate(talk.folder)
    value = next(m.value for m in again.measures if m.metric == "accuracy")
    assert value == pytest.approx(found["accuracy"])


def test_a_teacher_that_learns_along_is_a_copy(teacher, tmp_path):
    before = (teacher / "model.safetensors").read_bytes()
    kept = {"freeze_teacher": False, "rounds": 2, "distance": "cosine", "codec": "linear", "epochs": 5}
    done = run(teacher, tmp_path / "run", **kept)
    assert (teacher / "model.safetensors").read_bytes() == before
    assert all(line["terms"]["interaction"] > 0 for line in done.metrics())


def test_its_logits_are_of_no_use_for_other_classes(teacher, tmp_path):
    with pytest.raises(CompatibilityError, match="the student has the classes high, low, the teacher 0, 1"):
        kdhub.distill({**_data(), "method": "kd", "teacher": f"path:{teacher}"}, out=tmp_path / "kd")
    with pytest.raises(ValueError, match="freeze_teacher must be true with one_way"):
        TalkingModels.Options(freeze_teacher=False, one_way=True)
    with pytest.raises(UsageError, match="of 2 blocks cannot be split at 2 and 2"):
        run(teacher, tmp_path / "run", student_lower=2)


def test_texts_are_read_by_one_tokenizer(tmp_path):
    recipe = tiny.text_recipe(tmp_path)
    settings = {"task": "text-classification", "method": "talking-models", "options": {"max_steps": 2}}
    assert measured(kdhub.distill({**recipe, **settings}, out=tmp_path / "run"))["message-dependence"] > 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    tokenizer.add_tokens(["other"])
    tokenizer.save_pretrained(tmp_path / "student")
    with pytest.raises(CompatibilityError, match="different vocabularies"):
        kdhub.distill({**recipe, **settings}, out=tmp_path / "other")


def _data():
    catalogue = kdhub.catalogue.catalog.default_catalog().get("recipes", "talking-models")
    return {key: catalogue[key] for key in ("task", "student", "data")}
