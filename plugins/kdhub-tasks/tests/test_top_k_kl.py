"""TopKLD: the numbers of the specification, what makes it right, and what the naive reading does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from kdhub_tasks.divergences import default_k, forward_kl, reverse_kl, top_classes, top_k_kl

from kdhub.errors import UsageError

Z = torch.tensor([3.0, 2, 0, -1], dtype=torch.float64)
S = torch.tensor([2, 2.5, 0.5, 0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"form": "naive", "implicit": 0}, 0.171344),
        ({"form": "naive", "explicit": 0}, -0.042461),  # a part may be negative
        ({"form": "naive"}, 0.128883),
        ({"implicit": 0}, 0.243121),
        ({"explicit": 0}, 0.029316),
        ({}, 0.272437),
        ({"k": 4}, 0.284541),
        ({"k": 0}, 0.277360),
        ({"form": "naive", "assignment": "fwd_top"}, 0.433018),
        ({"assignment": "fwd_top"}, 0.289464),
        ({"form": "renormalized"}, 0.272511),
        ({"form": "renormalized", "implicit": 0}, 0.030915 + 0.240346),
        ({"form": "renormalized", "explicit": 0}, 0.030915 + 0.001249),
    ],
)
def test_numbers_of_the_specification(settings, value):
    assert top_k_kl(S, Z, **{"k": 2, **settings}).item() == pytest.approx(value, abs=2e-6)


def test_its_ends_are_the_two_kls_and_the_correction_is_twice_the_difference_of_masses():
    for assignment, all_classes, none in (("rev_top", reverse_kl, forward_kl), ("fwd_top", forward_kl, reverse_kl)):
        both = partial(top_k_kl, S, Z, assignment=assignment)
        torch.testing.assert_close(both(k=4), all_classes(S, Z))
        torch.testing.assert_close(both(k=0), none(S, Z))
        sign = 1 if assignment == "rev_top" else -1
        masses = (Z.softmax(-1) - S.softmax(-1))[:2].sum()
        torch.testing.assert_close(both(k=2) - both(k=2, form="naive"), sign * 2 * masses)


def test_only_the_naive_form_is_not_least_where_both_agree():
    def at(form, assignment="rev_top"):
        s = Z.clone().requires_grad_()
        value = top_k_kl(s, Z, 2, form=form, assignment=assignment)
        return value.item(), torch.autograd.grad(value, s)[0].abs().max().item()

    for form, assignment in (("generalized", "rev_top"), ("generalized", "fwd_top"), ("renormalized", "rev_top")):
        assert max(map(abs, at(form, assignment))) < 1e-12
    assert at("naive")[1] > 0.01

    masses = torch.linspace(1e-4, 1 - 1e-4, 9999, dtype=torch.float64)
    q, p = torch.stack([masses, 1 - masses], -1).log(), torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    for form, assignment, where, least in (
        ("naive", "rev_top", 0.2877, -0.5244),
        ("naive", "fwd_top", 0.9852, -0.1097),
        ("generalized", "rev_top", 0.9, 0),
    ):
        values = top_k_kl(q, p.expand_as(q), 1, form=form, assignment=assignment)
        assert masses[values.argmin()].item() == pytest.approx(where, abs=2e-4)
        assert values.min().item() == pytest.approx(least, abs=1e-4)


def test_it_is_never_negative_and_sees_no_constants_and_its_gradient_is_right():
    g = torch.Generator().manual_seed(0)
    s, z = (3 * torch.randn(64, 12, generator=g, dtype=torch.float64) for _ in range(2))
    for form in ("generalized", "renormalized"):
        values = top_k_kl(s, z, 3, form=form)
        assert (values > 0).all()
        torch.testing.assert_close(values, top_k_kl(s + 5, z - 7, 3, form=form))
        assert torch.autograd.gradcheck(lambda s, f=form: top_k_kl(s, z[:3], 3, form=f), s[:3].requires_grad_())


def test_the_top_set_has_exactly_k_the_first_of_equals():
    tied = torch.tensor([[1.0, 2, 2, 2, 0], [0.0, 0, 0, 0, 0]]).log_softmax(-1)
    assert top_classes(tied, 2).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert top_classes(tied, 0).sum() == 0 and top_classes(tied, 5).all()
    p = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert top_classes(p, top_p=0.7).int().tolist() == [0, 1, 0, 1]
    assert (default_k(4096), default_k(3)) == (901, 1)
    with pytest.raises(UsageError, match=r"k=5, classes=4"):
        top_k_kl(S, Z, 5)


@pytest.mark.parametrize("form", ["generalized", "naive", "renormalized"])
def test_excluded_classes_count_nothing_and_leave_no_nan(form):
    z, s = torch.cat([Z, Z.new_tensor([-torch.inf])]), torch.cat([S, S.new_tensor([-torch.inf])])
    torch.testing.assert_close(top_k_kl(s, z, 2, form=form), top_k_kl(S, Z, 2, form=form))
    s = torch.cat([S, S.new_tensor([1.0])]).requires_grad_()  # the student does not exclude it
    for k in (0, 2, 5):
        (slope,) = torch.autograd.grad(top_k_kl(s, z, k, form=form), s)
        assert slope.isfinite().all()
    assert top_k_kl(S, Z.new_tensor([1, torch.nan, 0, 0]), 2, form=form).isnan()  # for the engine to stop at
