"""LEAF against its specification: numbers worked out by hand, slow plain loops, and the properties it promises."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_tasks.embedding import encoder
from kdhub_tasks.embedding.task import TextEmbedding
from kdhub_tasks.embedding.teachers import EncoderTeacher
from kdhub_text.methods.leaf import Leaf, alignment_loss, fit_head
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from torch import nn

import kdhub
from kdhub.method import ObjectiveMethod, Progress
from kdhub.rows import Signals

Y = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
T = torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)


def leaf(**options) -> Leaf:
    return Leaf(Leaf.Options(**options))


def unit(n: int, width: int, seed: int) -> torch.Tensor:
    """Random unit vectors (n, width), float64."""
    rows = torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_the_specification():
    assert alignment_loss(Y[:1], T[:1]).item() == pytest.approx(0.08)
    assert alignment_loss(Y[1:], T[1:]).item() == pytest.approx(2.0)
    assert alignment_loss(Y, T).item() == pytest.approx(1.04)
    assert alignment_loss(Y, T, "l2").item() == pytest.approx(0.848528, abs=1e-6)
    assert alignment_loss(Y, T).item() == pytest.approx(2 * nn.functional.mse_loss(Y, T).item())  # 0.52, the trap
    # For unit vectors ||y - t||^2 = 2 - 2 cos.
    assert alignment_loss(Y, T).item() == pytest.approx(2 * alignment_loss(Y, T, "cosine").item())


@pytest.mark.parametrize("kind", ["sq_l2", "l2", "cosine"])
def test_each_distance_against_a_plain_loop(kind):
    y, t = 3 * unit(7, 5, 1), unit(7, 5, 2)
    total = 0.0
    for a, b in zip(y.tolist(), t.tolist()):
        squared = sum((p - q) ** 2 for p, q in zip(a, b))
        dot = sum(p * q for p, q in zip(a, b))
        norms = sum(p * p for p in a) ** 0.5 * sum(q * q for q in b) ** 0.5
        total += {"sq_l2": squared, "l2": squared**0.5, "cosine": 1 - dot / norms}[kind]
    assert alignment_loss(y, t, kind).item() == pytest.approx(total / 7, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["sq_l2", "l2"])
def test_a_student_that_equals_the_teacher_has_no_loss_and_no_gradient(kind, dtype):
    y = unit(3, 4, 1).to(dtype).requires_grad_()
    loss = alignment_loss(y, y.detach().clone(), kind)
    loss.backward()
    assert loss.item() <= 1e-12
    assert torch.equal(y.grad, torch.zeros_like(y))


def test_a_score_is_never_further_off_than_the_vector():
    d = torch.tensor([0.28, 0.96], dtype=torch.float64)
    error, distance = ((Y - T) @ d).abs(), (Y - T).norm(dim=1)
    assert error.tolist() == pytest.approx([0.136, 0.680])
    assert distance.tolist() == pytest.approx([0.282843, 1.414214], abs=1e-6)
    y, t, docs = unit(50, 8, 1), unit(50, 8, 2), unit(200, 8, 3)
    bound = torch.stack([alignment_loss(a[None], b[None], "l2") for a, b in zip(y, t)])
    assert (((y - t) @ docs.T).abs() <= bound[:, None] + 1e-12).all()


def test_one_rotation_of_both_spaces_changes_nothing_and_a_shift_of_one_does():
    y, t = unit(6, 5, 1), unit(6, 5, 2)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    assert alignment_loss(y @ rotation, t @ rotation).item() == pytest.approx(alignment_loss(y, t).item(), rel=1e-12)
    assert alignment_loss(y, t + 0.1).item() != pytest.approx(alignment_loss(y, t).item(), rel=1e-3)


def test_there_is_no_second_term_and_gradient_flows_into_the_student_only():
    y, t = unit(4, 3, 1).requires_grad_(), unit(4, 3, 2).half()
    terms = leaf().objective(Signals(embedding=y), Signals(embedding=t), {}, Progress(0, 1, 0.0))
    assert list(terms) == ["alignment"]
    assert terms["alignment"].item() == pytest.approx(alignment_loss(y, t.float()).item())
    terms["alignment"].backward()
    assert torch.allclose(y.grad, 2 * (y.detach() - t) / 4)
    assert leaf().extras(None, None) == {}


def test_the_options_pick_the_distance_and_refuse_another():
    y, t = Signals(embedding=Y), Signals(embedding=T)
    for kind in ("sq_l2", "l2", "cosine"):
        (term,) = leaf(loss=kind).objective(y, t, {}, Progress(0, 1, 0.0)).values()
        assert term.item() == pytest.approx(alignment_loss(Y, T.float(), kind).item())
    with pytest.raises(ValidationError):
        leaf(loss="mse")


# -- the schedule -----------------------------------------------------------------------------------------------------


def test_the_rate_falls_linearly_in_each_cycle_and_starts_again():
    method = leaf(cycles=3, warmup=0)
    assert [method.learning_rate(s, 30) for s in (0, 5, 9, 10, 15, 29)] == pytest.approx([1, 0.5, 0.1, 1, 0.5, 0.1])
    assert min(method.learning_rate(s, 31) for s in range(31)) > 0  # steps that do not divide into cycles


def test_the_warm_up_is_in_the_first_cycle_only():
    method = leaf(cycles=2, warmup=0.1)
    assert [method.learning_rate(s, 200) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5 * 0.96, 0.91])
    assert method.learning_rate(100, 200) == pytest.approx(1)


def test_cycles_times_their_epochs_are_the_epochs_unless_they_are_given():
    assert leaf(cycles=3, epochs_per_cycle=10).options.epochs == 30
    assert leaf(epochs=2).options.epochs == 2


# -- the ridge start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_the_closed_form_head_is_the_optimum_of_the_loss(bias):
    pooled, target = 3 * unit(40, 6, 1) + 0.5, unit(40, 9, 2)
    head = nn.Linear(6, 9, bias=bias).double()
    fit_head(head, pooled, target, ridge=0)
    p = torch.cat([pooled, torch.ones(40, 1, dtype=torch.float64)], 1) if bias else pooled
    solution = target.T @ p @ torch.linalg.inv(p.T @ p)  # T^T P (P^T P)^-1
    assert torch.allclose(head.weight, solution[:, :6], atol=1e-10)
    loss = alignment_loss(head(pooled), target)
    loss.backward()
    assert head.weight.grad.abs().max() < 1e-10
    assert not bias or head.bias.grad.abs().max() < 1e-10
    moved = nn.Linear(6, 9, bias=bias).double()
    moved.load_state_dict({k: v + 1e-3 for k, v in head.state_dict().items()})
    assert alignment_loss(moved(pooled), target) > loss


def test_the_default_ridge_stands_a_batch_with_fewer_rows_than_dimensions():
    head = nn.Linear(8, 3)
    fit_head(head, unit(4, 8, 1).float(), unit(4, 3, 2).half())
    assert torch.isfinite(head.weight).all()


class Twice(nn.Module):
    def forward(self, states):
        return {"sentence_embedding": 2 * states["x"]}


@pytest.mark.parametrize("bias", [False, True])
def test_a_ridge_start_is_of_the_states_below_the_head(bias):
    """P^T P with a thousandth of its mean diagonal more, of what the parts in front give."""
    torch.manual_seed(0)
    x, t = torch.randn(5, 2), torch.randn(5, 3)
    student = SimpleNamespace(module=nn.Sequential(Twice(), encoder.Dense(2, 3, bias=bias), nn.Identity()))
    head = student.module[1].linear
    before = head.weight.clone()
    leaf().initialise(student, {"x": x}, Signals(embedding=t))
    assert torch.equal(head.weight, before)
    leaf(head_init="ridge").initialise(student, {"x": x}, Signals(embedding=t))
    p = np.concatenate([2 * x.numpy(), np.ones((5, 1))], 1)[:, : 3 if bias else 2].astype(float)
    gram = p.T @ p
    w = np.linalg.solve(gram + 1e-3 * np.diag(gram).mean() * np.eye(len(gram)), p.T @ t.numpy()).T
    assert head.weight.tolist() == [pytest.approx(row, abs=1e-5) for row in w[:, :2].tolist()]
    assert not bias or head.bias.tolist() == pytest.approx(w[:, 2], abs=1e-5)


def test_how_rows_are_read():
    assert leaf().settings() == {"max_length": 512, "prompts": None}
    assert leaf(max_length=9, prompts={"a": "b"}).settings() == {"max_length": 9, "prompts": {"a": "b"}}


# -- what it does to the student --------------------------------------------------------------------------------------


@pytest.fixture
def built(tiny):
    """(student, teacher) as LEAF gets them: `built("layers", "2", hidden=32, ...)`."""

    def build(kind: str, argument: str, options: dict | None = None, **settings):
        teacher = {"source": f"path:{tiny.encoder(**settings)}", **(options or {})}
        teacher = kdhub.open_teacher(teacher, "text-embedding")
        return kdhub.open_student(f"{kind}:{argument}", "text-embedding", teacher=teacher), teacher

    return build


def names(student) -> list[str]:
    return [type(part).__name__ for part in student.module]


def test_a_head_is_added_only_where_the_widths_differ(built):
    student, teacher = built("layers", "2")
    leaf().adapt(student, teacher)
    assert names(student) == ["Transformer", "Pooling", "Normalize"]
    student, teacher = built("config", "layers=1,hidden_size=16,heads=2")
    leaf(head_bias=False).adapt(student, teacher)
    assert names(student) == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert student.width == teacher.width == 32
    head = student.module[2]
    assert head.linear.bias is None and isinstance(head.activation_function, nn.Identity)
    assert teacher.model.trunk.config.hidden_size == 32  # it is the student that is mapped, not the teacher


@pytest.mark.parametrize(
    "unit_teacher, option, ends",
    [(True, "auto", True), (False, "auto", False), (True, False, False), (False, True, True)],
)
def test_unit_length_only_where_the_teacher_has_it(built, unit_teacher, option, ends):
    student, teacher = built("layers", "1", normalise=unit_teacher)
    assert teacher.normalised is unit_teacher
    leaf(normalize=option).adapt(student, teacher)
    assert encoder.ends_normalised(student.module) is ends
    vectors = student.signals(TextEmbedding().preparer(student, None)([{"text": "kabel lofos"}, {"text": "a"}]), "")
    assert np.allclose(np.linalg.norm(vectors["embedding"], axis=1), 1, atol=1e-5) is ends


def test_a_student_that_was_normalised_already_is_so_once_and_behind_the_head(built, tiny):
    student, teacher = built("path", str(tiny.encoder(hidden=16)))
    assert names(student)[-1] == "Normalize"
    leaf().adapt(student, teacher)
    assert names(student) == ["Transformer", "Pooling", "Dense", "Normalize"]


def test_the_student_pools_by_mean_whatever_the_teacher_does(built):
    student, teacher = built("layers", "2", pooling="cls")
    leaf().adapt(student, teacher)
    assert student.module[1].pooling_mode == "mean"
    leaf(pooling="cls").adapt(student, teacher)
    assert student.module[1].pooling_mode == "cls"


def test_prompts_by_role_are_the_teachers_and_stand_in_the_saved_student(built, tmp_path):
    prompts = {"query": "kabel: ", "document": ""}
    student, teacher = built("config", "layers=1,hidden_size=16,heads=2", prompts=prompts)
    leaf().adapt(student, teacher)
    student.save(tmp_path)
    saved = SentenceTransformer(str(tmp_path), device="cpu")
    assert saved.prompts == prompts
    assert np.allclose(saved.encode_query("lofos"), saved.encode("kabel: lofos"), atol=1e-6)
    leaf(prompts={"query": "mipum "}).adapt(student, teacher)
    assert student.prompts == {"query": "mipum "}


def test_max_length_is_carried_into_the_student(built, tmp_path):
    student, teacher = built("layers", "1")
    leaf(max_length=8).adapt(student, teacher)
    student.save(tmp_path)
    assert SentenceTransformer(str(tmp_path), device="cpu").max_seq_length == 8


def test_padding_does_not_change_a_vector(built):
    student, _ = built("layers", "2")
    task, ids = TextEmbedding(), [[2, 60, 61, 3], [2, 62, 3]]
    inputs = encoder.features(student.module, ids, 0, student.module.device)
    more = {k: nn.functional.pad(v, (0, 9)) for k, v in inputs.items()}
    more["input_ids"][:, -9:] = 7  # whatever stands there
    with torch.no_grad():
        a, b = (task.forward(student.module.eval(), i).embedding for i in (inputs, more))
    assert torch.allclose(a, b, atol=1e-6)
    more["attention_mask"][:] = 1
    with torch.no_grad():
        assert not torch.allclose(a, task.forward(student.module, more).embedding, atol=1e-3)


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Every text a local teacher was asked for in training or evaluation, in order."""
    texts: list[str] = []
    signals = EncoderTeacher.signals

    def count(self, examples, kind):
        texts.extend(e["text"] for e in examples)
        return signals(self, examples, kind)

    monkeypatch.setattr(EncoderTeacher, "signals", count)
    return texts


def test_three_epochs_ask_the_teacher_once_for_each_text_and_bring_the_student_near(tiny, tmp_path, asked):
    texts = tiny.texts(200)
    data = tiny.jsonl(tmp_path / "texts.jsonl", texts + texts[:40])
    recipe = tiny.recipe(tiny.encoder(), "layers:1", data, cycles=2, epochs_per_cycle=1.5, batch_size=16)
    run = kdhub.distill(recipe, out=tmp_path / "run")
    assert sorted(asked) == sorted(texts)
    steps = list(run.metrics())
    assert all(list(s["terms"]) == ["alignment"] for s in steps)
    assert steps[-1]["step"] == 45 and steps[-1]["epoch"] == 3
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    rates = [s["lr"] for s in steps]
    assert max(rates) == pytest.approx(1e-3) and sum(b > a for a, b in zip(rates, rates[1:])) == 1


def test_a_ridge_head_starts_below_a_random_one(tiny, tmp_path):
    data = tiny.jsonl(tmp_path / "texts.jsonl", tiny.texts(300))
    first = {}
    for start in ("default", "ridge"):
        recipe = tiny.recipe(
            tiny.encoder(), "config:layers=1,hidden_size=16,heads=2", data, head_init=start, max_steps=1, lr=1e-9
        )
        run = kdhub.distill(recipe, out=tmp_path / start)
        first[start] = next(iter(run.metrics()))["loss"]
    assert first["ridge"] < 0.5 * first["default"]


def test_a_ridge_head_is_fitted_where_its_states_are():
    """All on one device, for which one without memory stands here: mixed ones are refused."""
    fit_head(torch.nn.Linear(4, 3, device="meta"), *(torch.empty(8, n, device="meta") for n in (4, 3)))


def test_a_ridge_start_without_a_head_changes_nothing():
    assert Leaf.initialise is not ObjectiveMethod.initialise
    student = SimpleNamespace(module=nn.Sequential(nn.Linear(2, 2)))
    before = student.module[0].weight.clone()
    leaf(head_init="ridge").initialise(student, {}, Signals(embedding=Y))
    assert torch.equal(student.module[0].weight, before)
