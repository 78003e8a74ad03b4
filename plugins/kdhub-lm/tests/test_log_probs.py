"""Log-probabilities of labels in chunks are those of full logits: values, and gradients for any loss made of them."""

from __future__ import annotations

import pytest
import torch
from kdhub_lm.log_probs import label_log_probs, per_row
from kdhub_tasks import positions
from kdhub_tasks.positions import Head, TokenSignals

from kdhub.rows import Signals

N, CLASSES, WIDTH = 37, 50, 8


def losses(values):
    """A loss that is not a sum over positions: differences of rows, squared."""
    rows = per_row(values, torch.tensor([10, 0, 20, 7]), mean=True)
    return torch.sigmoid(rows[0] - rows[2]) + rows[3].square() + (values.exp() * torch.arange(N)).sum() / N


@pytest.mark.parametrize("finish", [{}, {"scale": 0.5, "cap": 3.0}], ids=["plain", "scale-and-cap"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_chunked_equals_full(finish, bias, dtype, monkeypatch):
    monkeypatch.setattr(positions, "CHUNK", 7 * CLASSES)  # of seven positions, the last one shorter
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=dtype, requires_grad=True)  # noqa: E731
    head = Head(make(N, WIDTH), make(CLASSES, WIDTH), make(CLASSES) if bias else None, **finish)
    parts = [part for part in (head.states, head.weight, head.bias) if part is not None]
    labels = torch.randint(-1, CLASSES, (N,))
    labels[4] = -1
    full = torch.log_softmax(head[:], -1)[torch.arange(N), labels.clamp_min(0)].where(labels >= 0, 0)
    slopes = torch.autograd.grad(losses(full), parts)
    for signals in (TokenSignals(head=head), Signals(logits=head[:])):
        values = label_log_probs(signals, labels)
        assert values[4] == 0
        torch.testing.assert_close(values, full, rtol=1e-6, atol=1e-6)
        found = torch.autograd.grad(losses(values), parts)
        for one, other in zip(found, slopes):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    """What autograd keeps between forward and backward is the states, not the logits."""
    states = torch.randn(64, WIDTH, requires_grad=True)
    head = Head(states, torch.randn(2**14, WIDTH, requires_grad=True))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        label_log_probs(TokenSignals(head=head), torch.zeros(64, dtype=torch.long))
    assert max(kept) == head.weight.numel() < 64 * 2**14


def test_bfloat16_products_are_close():
    torch.manual_seed(1)
    head = Head(torch.randn(N, WIDTH, requires_grad=True), torch.randn(CLASSES, WIDTH, requires_grad=True))
    labels = torch.randint(0, CLASSES, (N,))
    full = label_log_probs(TokenSignals(head=head), labels)
    with torch.autocast("cpu", torch.bfloat16):
        rough = label_log_probs(TokenSignals(head=head), labels)
    assert rough.dtype == torch.float32 and (rough - full).abs().max() > 1e-4, "it is the products that are rough"
    torch.testing.assert_close(rough, full, rtol=0.05, atol=0.05)
    rough.sum().backward()
    exact = torch.autograd.grad(full.sum(), (head.states, head.weight))
    for found, right in zip((head.states.grad, head.weight.grad), exact):
        assert found.dtype == torch.float32 and 1e-4 < (found - right).abs().max() < 0.1


def test_narrow_logits_give_exact_values_and_every_negative_label_none():
    logits, labels = torch.randn(3, 5).bfloat16(), torch.tensor([1, -1, -5])
    found = label_log_probs(Signals(logits=logits), labels)
    assert found.dtype == torch.float32 and found[1:].tolist() == [0, 0]
    assert found[0].item() == pytest.approx(logits.float().log_softmax(-1)[0, 1].item(), abs=1e-6)


def test_rows():
    values, counts = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 1])
    assert per_row(values, counts).tolist() == [3, 0, 4]
    assert per_row(values, counts, mean=True).tolist() == [1.5, 0, 4]
