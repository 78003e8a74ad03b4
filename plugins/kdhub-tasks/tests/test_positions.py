"""Terms in chunks are the terms of all positions at once: values and gradients, for every loss that is a sum."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from kdhub_tasks import divergences as d
from kdhub_tasks import positions
from kdhub_tasks.losses import cross_entropies, labels_in
from kdhub_tasks.positions import Head, TokenSignals, over_positions

from kdhub.method import Progress
from kdhub.rows import Signals

N, CLASSES, WIDTH, WIDE = 37, 50, 8, 12
LOSSES = {
    "forward_kl": d.forward_kl,
    "reverse_kl": d.reverse_kl,
    "jsd": d.jensen_shannon,
    "tvd": d.total_variation,
    "skew": d.skew_kl,
    "skew-reverse": partial(d.skew_kl, direction="reverse"),
    "akl": d.adaptive_kl,
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of six positions, the last one shorter; blocks of two."""
    monkeypatch.setattr(positions, "CHUNK", 7 * CLASSES)
    monkeypatch.setattr(positions, "BLOCK", 2 * CLASSES)


def models(dtype=torch.float32, **finish):
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=dtype)  # noqa: E731
    student = Head(make(N, WIDTH), make(CLASSES, WIDTH), make(CLASSES), **finish)
    for part in (student.states, student.weight, student.bias):
        part.requires_grad_()
    return student, Head(make(N, WIDE), make(CLASSES, WIDE)), torch.randint(-1, CLASSES, (N,))


def gradients(terms, student):
    sum(terms.values()).backward()
    found = [part.grad.clone() for part in (student.states, student.weight, student.bias)]
    for part in (student.states, student.weight, student.bias):
        part.grad = None
    return {name: term.item() for name, term in terms.items()}, found


@pytest.mark.parametrize("finish", [{}, {"scale": 0.5, "cap": 3.0}], ids=["plain", "scale-and-cap"])
@pytest.mark.parametrize("name", LOSSES)
def test_chunked_equals_full(name, finish, small_chunks):
    student, teacher, labels = models(**finish)

    def sums(s, z, y):
        return {
            "teacher": 4 * LOSSES[name](s / 2, z / 2).sum() / N,
            "labels": 0.5 * cross_entropies(s, y).sum() / labels_in(labels),
        }

    full, slopes = gradients(sums(student[:], teacher[:], labels), student)
    for given in (Signals(logits=teacher[:]), TokenSignals(head=teacher)):
        values, found = gradients(over_positions(sums, TokenSignals(head=student), given, labels), student)
        assert values == pytest.approx(full, rel=1e-6, abs=1e-6)
        for one, other in zip(found, slopes):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_gradient_from_above_reaches_all_terms(small_chunks):
    """A loss that is divided, as for accumulated batches."""
    student, teacher, labels = models(torch.float64)
    sums = lambda s, z: {"a": d.forward_kl(s, z).sum(), "b": d.reverse_kl(s, z).sum()}  # noqa: E731
    _, full = gradients({k: v / 8 for k, v in sums(student[:], teacher[:]).items()}, student)
    terms = over_positions(sums, TokenSignals(head=student), TokenSignals(head=teacher))
    _, found = gradients({k: v / 8 for k, v in terms.items()}, student)
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(found, full))
    terms = over_positions(sums, TokenSignals(head=student), TokenSignals(head=teacher))
    with pytest.raises(RuntimeError, match="put weights into"):
        (terms["a"] + 2 * terms["b"]).backward()


def test_nothing_as_large_as_all_logits_is_made(monkeypatch):
    """By the sizes of the tensors that the losses are given."""
    monkeypatch.setattr(positions, "BLOCK", 4 * CLASSES)
    student, teacher, _ = models()
    seen = []

    def sums(s, z):
        seen.append((len(s), len(z)))
        return {"teacher": d.forward_kl(s, z).sum()}

    over_positions(sums, TokenSignals(head=student), TokenSignals(head=teacher))
    assert max(seen) == (4, 4) and sum(n for n, _ in seen) == N
    student.weight.requires_grad_(False)  # a frozen head: the states have their gradient all the same
    over_positions(sums, TokenSignals(head=student), TokenSignals(head=teacher))["teacher"].backward()
    assert student.weight.grad is None and student.states.grad.abs().sum() > 0


def test_bfloat16_products_are_near():
    student, teacher, _ = models()
    sums = lambda s, z: {"teacher": d.forward_kl(s, z).sum() / N}  # noqa: E731
    full, slopes = gradients(sums(student[:], teacher[:]), student)
    with torch.autocast("cpu", torch.bfloat16):
        terms = over_positions(sums, TokenSignals(head=student), TokenSignals(head=teacher))
    values, found = gradients(terms, student)
    assert values == pytest.approx(full, rel=0.02)
    for one, other in zip(found, slopes):
        assert one.dtype == torch.float32 and torch.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.999


@pytest.mark.parametrize("name", ["kd", "dkd", "supervised"])
def test_methods_have_the_same_terms_either_way(name, small_chunks):
    from kdhub_logits.methods import soft_targets
    from kdhub_tasks.methods.supervised import Supervised

    cls = {"kd": soft_targets.Kd, "dkd": soft_targets.Dkd, "supervised": Supervised}[name]
    student, teacher, labels = models()
    method, progress = cls(cls.Options()), Progress(3, 10, 30.0)
    given = Signals() if name == "supervised" else TokenSignals(head=teacher)
    plain = Signals() if name == "supervised" else Signals(logits=teacher[:])
    full, slopes = gradients(method.objective(Signals(logits=student[:]), plain, {"labels": labels}, progress), student)
    values, found = gradients(
        method.objective(TokenSignals(head=student), given, {"labels": labels}, progress), student
    )
    assert values == pytest.approx(full, rel=1e-5)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, slopes))
