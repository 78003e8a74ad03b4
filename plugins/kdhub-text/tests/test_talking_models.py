"""Talking models: the specification's numbers, what gradients reach, and that what is said matters."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from kdhub_tasks.classification import networks, tiny
from kdhub_tasks.classification.folders import load
from kdhub_tasks.splitting import Split
from kdhub_text.messages import among, codecs, distance
from kdhub_text.methods.talking_models import TalkingModels, _slices
from told import Few, Told
from torch import nn
from torch.nn.functional import pad
from transformers import AutoTokenizer

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.rows import Signals

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
    two = torch.cat([a, b])
    assert among(two, torch.tensor([[1, 1], [0, 1]])).tolist() == [[[1, 0], [5, 5], [1, 1]]]
    assert among(two, None) is two is among(two, torch.ones(2, 3))


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


# -- in training, by hand -------------------------------------------------------------------------------------


def test_terms_have_their_weights_and_are_over_the_step():
    """The example of the specification; then with a second position that is padding, over four of a step."""
    method = talking(w_interact=2.0, w_mc=0.5, w_sc=0.25)
    own, logits = states(), torch.tensor([[1.0, 0.0]])
    wide = {who: {place: torch.cat([h, h + 9], 1) for place, h in of.items()} for who, of in own.items()}
    heard = [torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[0.0, 4.0]]])]
    mask = {"attention_mask": torch.tensor([[1, 0]]), "mean_counts": {"tokens": 4.0, "labels": 2.0, "positions": 2.0}}
    for of, pad_, more, n, labels in ((own, 0, {}, 1, 1), (wide, 1, mask, 4, 2)):
        student, teacher = (Signals(of[who]) for who in ("student", "teacher"))
        student["logits"], teacher["heard"] = logits, [pad(h, (0, 0, 0, pad_), value=9.0) for h in heard]
        terms = method.objective(student, teacher, {"labels": torch.tensor([0]), **more}, None)
        assert {name: value.item() for name, value in terms.items()} == pytest.approx({
            "labels": -logits.log_softmax(-1)[0, 0].item() / labels,
            "interaction": 2 * (2.5 + 5.0) / 2 / n, "messages": 0.5 * 2.5 / n, "states": 0.25 * (5 / 3 + 5 / 3) / n,
        }, rel=1e-5)  # fmt: skip
    assert method.batchwise == "" and talking(standardise=True).batchwise.startswith("states are standardised")


def test_the_teacher_is_asked_about_the_rows_and_about_each_message():
    """What it says first is [0, 3], then [0, 4], whatever it would think of the rows itself."""
    method, asked = talking(rounds=2), []
    student = Signals(lower=torch.tensor([[1.0, 2.0]]), upper=torch.tensor([[1.0, 1.0]]))

    def teacher(batch, gradient=False):
        asked.append((batch is BATCH, gradient))
        return Signals(method._teacher.network(batch))

    with method._teacher.read():
        given = method.ask(student, BATCH, teacher)
        own = method._teacher.network(BATCH)
    assert asked == [(True, False), (True, True), (True, True)]
    assert [h.tolist() for h in given["heard"]] == [[[[0, 3]]], [[[0, 4]]]]
    assert torch.equal(given["lower"], own["lower"]) and torch.equal(given["upper"], own["upper"])


def pair(**options):
    """A student two numbers wide and a teacher three wide, on inputs of three; both are split after their first
    block."""
    torch.manual_seed(0)
    method = TalkingModels(TalkingModels.Options(**{"batch_size": 4, "lr": 0.01} | options))
    student, teacher = (SimpleNamespace(module=networks.Mlp([3], 2, [n, n])) for n in (2, 3))
    method._student, method._teacher = (Split(one.module.requires_grad_(False)) for one in (student, teacher))
    return method, student, teacher, {"x": torch.rand(10, 3)}


@pytest.mark.parametrize(
    ("options", "width", "kind"),
    [({"warmup_codec_epochs": 3}, 2, "mlp"), ({"message_dim": 5, "codec": "linear", "w_mc": 0.0}, 5, "linear"),
     ({"warmup_codec_epochs": 0, "share_codec_levels": False}, 2, "mlp")],
)  # fmt: skip
def test_codecs_are_warmed_up_in_a_plain_loop(options, width, kind):
    """Both networks read in their state of use, and go on in the one they were in."""
    method, student, _, inputs = pair(**options)
    with method._student.read(), method._teacher.read():
        own = {who: {place: split.network(inputs)[place].unsqueeze(1) for place in ("lower", "upper")}
               for who, split in (("student", method._student), ("teacher", method._teacher))}  # fmt: skip
        modes = []
        student.module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
        student.module.train()
        torch.manual_seed(1)
        with torch.no_grad():
            method.initialise(student, inputs, Signals())
    assert student.module.training and modes == [False] * 3
    shared = options.get("share_codec_levels", "auto")
    other, made = pair(**options)[0], nn.ModuleDict()
    torch.manual_seed(1)
    for who in own:
        made[who] = codecs(own[who], width, kind, shared)
    other.modules = {"codecs": made}
    optimiser = torch.optim.AdamW(made.parameters(), lr=0.01)
    for _ in range(options.get("warmup_codec_epochs", 1)):
        for some in torch.randperm(10).split(4):
            optimiser.zero_grad()
            seen = {who: {place: h[some] for place, h in of.items()} for who, of in own.items()}
            sum(other._consistency(seen, None).values()).backward()
            optimiser.step()
    mine, theirs = method.modules["codecs"].state_dict(), made.state_dict()
    assert list(mine) == list(theirs) and all(torch.allclose(mine[n], theirs[n], atol=1e-6) for n in mine)
    assert all(p.grad is None for p in method.modules["codecs"].parameters())
    assert method.extras(None, None) == {"codecs": method.modules["codecs"]}


def test_the_upper_blocks_of_a_copy_may_be_trained():
    method, student, teacher, inputs = pair(freeze_teacher=False, codec="linear")
    teacher.module.hidden[1].weight.data.abs_()
    teacher.module.hidden[1].bias.data.fill_(1)  # so that units are on
    before = copy.deepcopy(teacher.module.state_dict())
    with method._student.read(), method._teacher.read():
        method.initialise(student, inputs, Signals())
    made = method.extras(None, None)
    assert set(made) == {"codecs", "teacher"} and made["teacher"] is not teacher.module
    assert {n for n, p in made["teacher"].named_parameters() if p.requires_grad} == {"hidden.1.weight", "hidden.1.bias"}
    assert not any(p.requires_grad for p in teacher.module.parameters())
    said = Signals(lower=torch.rand(10, 2), upper=torch.rand(10, 2))
    with method._teacher.read():
        given = method.ask(said, inputs, lambda batch, **how: Signals(teacher.module(batch)) if not how else 1 / 0)
        sum(h.sum() for h in given["heard"]).backward()
    assert made["teacher"].hidden[1].weight.grad.abs().sum() > 0 and not made["teacher"].training
    assert all(torch.equal(value, before[n]) for n, value in teacher.module.state_dict().items())


@pytest.mark.parametrize("standardise", [False, True])
def test_what_is_measured_afterwards_by_hand(standardise):
    """Over all rows, without padding: losses without weights, and answers to no message and to those of others."""
    method = talking(w_mc=0.5, w_sc=0.25, rounds=2, standardise=standardise)
    torch.manual_seed(0)
    sizes, mask = {"student": 2, "teacher": 3}, torch.tensor([[1, 1], [1, 0], [1, 1]])
    own = {who: {place: 3 * torch.rand(3, 2, n) for place in ("lower", "upper")} for who, n in sizes.items()}
    batch = {"x": torch.zeros(3, 3), "attention_mask": mask}
    student = SimpleNamespace(module=nn.Linear(1, 1))
    method._read = lambda model, inputs: own if model is student else None
    run = Told(student, {"train": [{"n": n} for n in range(3)]}, seed=2)
    run.task = SimpleNamespace(collate=lambda rows, model: {3: batch}[len(rows)] if model is student else None)
    assert method.rows(run) is run.rows() is method._rows
    many, found = method._measured(run, student)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(2))
    assert many == 3 and not torch.equal(order, torch.arange(3))
    plain = talking(w_mc=1.0, w_sc=1.0, standardise=standardise)._consistency(own, mask)
    talk, other = talked(method, own, batch).item(), talked(method, own, batch, order=order).item()
    said = method._unit(own["student"]["lower"], mask)
    answer, without = (method._answer(m, own, batch) for m in (said, torch.zeros(3, 2, 2)))
    assert other != talk
    assert found == pytest.approx({
        "interaction-loss": talk, "message-consistency-loss": plain["messages"].item(),
        "state-consistency-loss": plain["states"].item(), "permutation-ratio": other / talk,
        "message-dependence": ((answer - without).square().mean() / answer.square().mean()).item(),
    })  # fmt: skip
    method.options.w_mc = method.options.w_sc = 0.0
    assert set(method._measured(run, student)[1]) == {"interaction-loss", "permutation-ratio", "message-dependence"}
    method._found = many, found
    report = method.evaluate(run, student)
    told = {m.metric: (m.value, m.subject, m.dataset, m.examples, m.higher_is_better) for m in report.measures}
    assert told == {name: (value, "student", "training rows", 3, name in ("permutation-ratio", "message-dependence"))
                    for name, value in found.items()}  # fmt: skip
    nothing = talking()
    nothing.modules["codecs"]["teacher"] = side([[0.0] * 3] * 2, D_H)
    nothing.modules["codecs"]["student"] = side(I2, [[0.0] * 2] * 2)
    own["student"]["upper"] = torch.zeros(3, 2, 2)
    nothing._read, nothing._rows = method._read, Few([{}] * 3)
    found = nothing._measured(run, student)[1]  # no answer at all
    assert found["permutation-ratio"] == found["message-dependence"] == 0.0


def test_both_networks_are_read_while_the_student_is_trained():
    method, student, teacher, inputs = pair(student_lower=0, student_upper=1, teacher_lower=1, teacher_upper=2)
    run, seen = Told(student, {"train": []}, teacher=teacher), []
    run.fit = lambda fits, model: seen.append([one.module(inputs).keys() for one in (model, teacher)]) or model
    method._measured = lambda run, made: (made is student and 7, {})
    assert method.distill(run) is student and method._found == (7, {})
    assert all({"lower", "upper"} <= set(names) for names in seen[0]) and "lower" not in teacher.module(inputs)
    assert [(s.lower, s.upper) for s in (method._student, method._teacher)] == [(0, 1), (1, 2)]
    vocabularies = [SimpleNamespace(get_vocab=lambda n=n: {"a": n}) for n in (0, 1)]
    student.tokenizer = vocabularies[0]
    method.distill(run)  # the teacher reads no tokens
    teacher.tokenizer = vocabularies[1]
    with pytest.raises(CompatibilityError, match="different vocabularies"):
        method.distill(run)
    teacher.tokenizer = vocabularies[0]
    method.distill(run)


def test_parts_of_a_batch_have_what_has_an_entry_a_row():
    batch = {"input_ids": torch.zeros(5, 3), "labels": torch.zeros(7), "at": torch.arange(5), "x": torch.zeros(5)}
    assert _slices(batch, 5) == [batch]
    parts = _slices(batch, 2)
    assert [len(part["input_ids"]) for part in parts] == [2, 2, 1]
    assert {tuple(part) for part in parts} == {("input_ids", "x")}
    assert [len(part["x"]) for part in _slices({"x": torch.arange(3)}, 1)] == [1, 1, 1]


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
