"""The three losses."""

from __future__ import annotations

import pytest
import torch
from kdhub_text.methods.efficient_attention import EfficientAttention, cosine_loss

from kdhub.errors import CompatibilityError
from kdhub.method import Progress
from kdhub.rows import Signals


def test_cosine_loss():
    loss = cosine_loss(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
    assert loss == pytest.approx([0.292893, 0.292893], abs=1e-6)  # whatever their lengths
    with pytest.raises(CompatibilityError, match=r"states \(2, 3\), the teacher \(3, 3\)"):
        cosine_loss(torch.zeros(2, 3), torch.zeros(3, 3))


def objective(student, teacher, labels, **options):
    method = EfficientAttention(EfficientAttention.Options(**options), None)
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    mine, theirs = Signals(logits=student, hidden_states=states), Signals(logits=teacher, hidden_states=states)
    return method.objective(mine, theirs, {"labels": torch.tensor(labels)}, Progress(0, 1, 0.0))


def test_three_terms():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    terms = objective(logits, logits + 3, [0, -1])
    assert terms["teacher"] == pytest.approx(0, abs=1e-5)  # a constant in the logits says nothing
    assert terms["cosine"] == pytest.approx(0, abs=1e-6)
    assert terms["labels"] == pytest.approx(2 * 0.126928, abs=1e-5)  # 2 log(1 + e^-2), of the row with a label
    teacher = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    p = torch.softmax(logits / 2, -1)
    kl = (0.5 * (torch.log(torch.tensor(0.5)) - p.log())).sum(-1).mean()
    assert objective(logits, teacher, [0, 1])["teacher"] == pytest.approx(float(5 * 4 * kl), rel=1e-5)
    assert set(objective(logits, logits, [0, 1], a_cos=0)) == {"teacher", "labels"}
