"""The divergences: the specification's numbers, a slow loop in float64, properties, and hard inputs."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from kdhub_tasks import divergences as d

Z, S = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.5, 0.0])
ALL = {
    "forward_kl": d.forward_kl,
    "reverse_kl": d.reverse_kl,
    "jsd": d.jensen_shannon,
    "jsd-0.1": partial(d.jensen_shannon, beta=0.1),
    "tvd": d.total_variation,
    "skew": d.skew_kl,
    "skew-reverse": partial(d.skew_kl, direction="reverse"),
    "akl": d.adaptive_kl,
    "sym": d.symmetric_kl,
    "dkd": lambda s, t: d.decoupled_kd(s, t, torch.zeros(s.shape[:-1], dtype=torch.long)),
}
each = pytest.mark.parametrize("name", ALL)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (d.forward_kl, 0.239401),
        (d.reverse_kl, 0.245251),
        (d.jensen_shannon, 0.059213),
        (partial(d.jensen_shannon, beta=0.1), 0.021423),
        (partial(d.jensen_shannon, beta=0.9), 0.021829),
        (d.total_variation, 0.333742),
        (d.skew_kl, 0.191878),
        (partial(d.skew_kl, direction="reverse"), 0.194503),
        (d.adaptive_kl, 0.242326),
        (d.symmetric_kl, 0.1 * 0.239401 + 0.9 * 0.245251),
    ],
)
def test_numbers_of_the_specification(function, value):
    for logits, p in ((Z, [0.665241, 0.244728, 0.090031]), (S, [0.331499, 0.546549, 0.121952])):
        assert d.log_probabilities(logits).exp().tolist() == pytest.approx(p, abs=1e-6)
    assert function(S, Z).item() == pytest.approx(value, abs=2e-6)


def test_temperature_and_its_square():
    s, z = S.double(), Z.double()
    at = {t: t * t * d.forward_kl(s / t, z / t).item() for t in (2, 4, 100, 1e4)}
    centred = (z - z.mean()) - (s - s.mean())
    limit = centred.square().sum().item() / 6
    assert limit == pytest.approx(0.194444, abs=1e-6)
    assert at == pytest.approx({2: 0.230482, 4: 0.215678, 100: 0.195397, 1e4: limit}, abs=1e-5)
    assert d.forward_kl(S / 2, Z / 2).item() == pytest.approx(0.057620, abs=2e-6)


def test_ends_of_the_generalised_divergences():
    assert d.jensen_shannon(S.double(), Z.double(), 1e-6).item() / 1e-6 == pytest.approx(0.239401, abs=2e-6)
    assert d.jensen_shannon(S, Z).item() <= math.log(2)
    assert d.jensen_shannon(S, Z, 0) == d.forward_kl(S, Z) and d.jensen_shannon(S, Z, 1) == d.reverse_kl(S, Z)
    for direction, plain in (("forward", d.forward_kl), ("reverse", d.reverse_kl)):
        assert d.skew_kl(S, Z, 0.0, direction).item() == pytest.approx(plain(S, Z).item(), rel=1e-6)
        assert d.skew_kl(S, Z, 1.0, direction).abs() < 1e-6
    assert d.jensen_shannon(torch.tensor([50.0, 0]), torch.tensor([0.0, 50])).item() == pytest.approx(math.log(2))


def test_adaptive_kl_with_unequal_gaps():
    z, s = torch.tensor([2, 1.5, 1, 0]), torch.tensor([1, 2, 0, 1.5])
    assert d.forward_kl(s, z).item() == pytest.approx(0.408396, abs=2e-6)
    assert d.reverse_kl(s, z).item() == pytest.approx(0.429711, abs=2e-6)
    assert d.adaptive_kl(s, z, 0.8).item() == pytest.approx(0.417070, abs=2e-6)
    head, tail = 0.486120, 0.333566  # the gaps; swapped, or the mask left unsorted, it would be 0.421037
    for one, other, value in ((head, tail, 0.417070), (tail, head, 0.421037)):
        assert (one * 0.408396 + other * 0.429711) / (head + tail) == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize(
    ("head", "classes"), [(0.0, 1), (0.3, 1), (0.5, 1), (0.7, 2), (0.75, 2), (0.85, 2), (0.95, 3), (1.0, 4)]
)
def test_the_head_has_at_most_its_share(head, classes):
    """p = .4, .3, .2, .1 in some order: the most probable classes that together have at most `head`, the first always;
    as in the authors' code the one that crosses it is of the tail."""
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.2, 0.4, 0.1, 0.3], [0.1, 0.15, 0.45, 0.3]))
    gaps = (p - q).abs()[p.argsort(descending=True)]
    w = (gaps[:classes].sum() / gaps.sum()).item()
    by_hand = w * kl(p.tolist(), q.tolist()) + (1 - w) * kl(q.tolist(), p.tolist())
    assert d.adaptive_kl(q.log(), p.log(), head).item() == pytest.approx(by_hand, rel=1e-9)


def test_weights_of_the_adaptive_kl_are_constants():
    """Its gradient is that of both KLs with the weights of the moment."""
    z, s = torch.tensor([2, 1.5, 1, 0]).double(), torch.tensor([1, 2, 0, 1.5]).double().requires_grad_()
    p, q = torch.softmax(z, -1), torch.softmax(s.detach(), -1)
    w = ((p - q).abs()[0] / (p - q).abs().sum()).item()
    (given,) = torch.autograd.grad(d.adaptive_kl(s, z), s)
    (constant,) = torch.autograd.grad(w * d.forward_kl(s, z) + (1 - w) * d.reverse_kl(s, z), s)
    torch.testing.assert_close(given, constant)


def test_decoupled_kd_and_its_identity():
    y = torch.tensor(0)
    target, others = d.decoupled_kd(S, Z, y, 1, 0).item(), d.decoupled_kd(S, Z, y, 0, 1).item()
    assert (target, others) == pytest.approx((0.231828, 0.022622), abs=2e-6)
    assert target + (1 - 0.665241) * others == pytest.approx(0.239401, abs=2e-6)
    assert d.decoupled_kd(S, Z, y).item() == pytest.approx(0.412807, abs=4e-6)


# -- against a loop in float64 --------------------------------------------------------------------------------


def softmax(x):
    top = max(x)
    e = [math.exp(v - top) for v in x]
    return [v / sum(e) for v in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def slow(name, s, t):
    q, p = softmax(s), softmax(t)

    def mix(w):
        return [w * a + (1 - w) * b for a, b in zip(p, q)]

    def js(b):
        return b * kl(p, mix(b)) + (1 - b) * kl(q, mix(b))

    if name == "akl":
        order, mass, head = sorted(range(len(p)), key=lambda i: -p[i]), 0.0, set()
        for i in order:
            mass += p[i]
            if mass <= 0.5 or not head:
                head.add(i)
        gaps = [abs(a - b) for a, b in zip(p, q)]
        w = sum(gaps[i] for i in head) / sum(gaps)
        return w * kl(p, q) + (1 - w) * kl(q, p)
    if name == "dkd":
        rest_p, rest_q = [v / (1 - p[0]) for v in p[1:]], [v / (1 - q[0]) for v in q[1:]]
        return kl([p[0], 1 - p[0]], [q[0], 1 - q[0]]) + 8 * kl(rest_p, rest_q)
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: js(0.5),
        "jsd-0.1": lambda: js(0.1),
        "tvd": lambda: sum(abs(a - b) for a, b in zip(p, q)) / 2,
        "sym": lambda: 0.1 * kl(p, q) + 0.9 * kl(q, p),
        "skew": lambda: kl(p, mix(0.1)),
        "skew-reverse": lambda: kl(q, mix(0.9)),
    }[name]()


@each
@pytest.mark.parametrize("hard", ["plain", "float16", "bfloat16", "impossible", "huge"])
def test_equals_a_slow_loop(name, hard):
    """In float64; of half precision what is left of the numbers; with impossible classes; with large logits, where the
    first class, dkd's target, is not the only one that is left."""
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(5, 4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    if hard in ("float16", "bfloat16"):
        s, t = (x.to(getattr(torch, hard)) for x in (s, t))
    elif hard == "impossible":
        s[..., 5:], t[..., 5:] = -torch.inf, -torch.inf
    elif hard == "huge":
        s, t = 30 * s, 30 * t
        s[..., 0], t[..., 0] = s[..., 1:].amax(-1) - 1, t[..., 1:].amax(-1) - 2
    given = ALL[name](s, t)
    assert given.shape == (5, 4)
    near = {"rel": 1e-5, "abs": 1e-6} if hard.endswith("16") else {"rel": 1e-9, "abs": 1e-12}
    for i in range(5):
        for j in range(4):
            assert given[i, j].item() == pytest.approx(slow(name, s[i, j].tolist(), t[i, j].tolist()), **near)


# -- properties -----------------------------------------------------------------------------------------------


@each
def test_zero_with_zero_gradient_where_student_equals_teacher(name):
    t = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s = t.clone().requires_grad_()
    value = ALL[name](s, t)
    assert value.abs().max() < 1e-12
    value.sum().backward()
    if name != "tvd":  # its gradient jumps there
        assert s.grad.abs().max() < 1e-7


@each
def test_not_negative_and_blind_to_a_constant(name):
    generator = torch.Generator().manual_seed(2)
    s, t = (2 * torch.randn(50, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    value = ALL[name](s, t)
    assert value.min() >= -1e-12
    torch.testing.assert_close(ALL[name](s + 7, t - 3), value)


@each
def test_gradient_flows_to_the_student_only(name):
    s, t = S.clone().requires_grad_(), Z.clone().requires_grad_()
    ALL[name](s, t.detach()).backward()
    assert s.grad.abs().sum() > 0 and torch.isfinite(s.grad).all()


def test_forward_kl_has_its_gradient_times_what_follows_and_one_for_a_teacher_that_learns():
    s, t = S.double().requires_grad_(), Z.double().requires_grad_()
    p, q = torch.softmax(t.detach(), -1), torch.softmax(s.detach(), -1)
    (3 * d.forward_kl(s, t.detach())).backward()
    torch.testing.assert_close(s.grad, 3 * (q - p))
    assert torch.autograd.gradcheck(d.forward_kl, (s, t))
    assert d.forward_kl(s, t).item() == pytest.approx(kl(p.tolist(), q.tolist()))


def test_what_the_student_rules_out_is_infinitely_far_unless_the_teacher_is_mixed_in():
    s, t = torch.tensor([0.0, -torch.inf]), torch.zeros(2)
    assert d.skew_kl(s, t, 0.0) == d.forward_kl(s, t) == torch.inf and d.skew_kl(s, t, 0.1).isfinite()


@each
def test_columns_of_minus_infinity_on_both_sides_count_nothing(name):
    generator = torch.Generator().manual_seed(3)
    s, t = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    pad = torch.full((4, 2), -torch.inf)
    wide = torch.cat([s, pad], -1).requires_grad_()
    value = ALL[name](wide, torch.cat([t, pad], -1))
    torch.testing.assert_close(value, ALL[name](s, t))
    value.sum().backward()
    assert torch.isfinite(wide.grad).all() and wide.grad[:, 5:].abs().max() == 0


@each
def test_huge_logits_and_half_precision_stay_finite(name):
    s, t = torch.tensor([[3e4, 0.0, -3e4]]), torch.tensor([[-3e4, 0.0, 3e4]])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        given = s.to(dtype).detach().clone().requires_grad_()
        value = ALL[name](given, t.to(dtype))
        value.sum().backward()
        assert value.dtype == torch.float32 and torch.isfinite(value).all() and torch.isfinite(given.grad).all()


@each
def test_sides_may_differ_in_precision(name):
    s, t = (torch.randn(4, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (6, 7))
    for one in (torch.float64, torch.float32, torch.bfloat16):
        for other in (torch.float64, torch.float32, torch.bfloat16):
            a, b = s.to(one).detach().clone().requires_grad_(), t.to(other)
            value = ALL[name](a, b)
            value.sum().backward()
            assert value.dtype == (torch.float64 if torch.float64 in (one, other) else torch.float32)
            torch.testing.assert_close(value.double(), ALL[name](a.detach().double(), b.double()), rtol=1e-5, atol=1e-6)
            assert a.grad.dtype == one and torch.isfinite(a.grad).all()


@each
def test_one_class_is_no_choice(name):
    assert abs(ALL[name](torch.tensor([[3.0]]), torch.tensor([[-2.0]])).item()) < 1e-6


# -- what direction means -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "place", "width"), [("forward_kl", 19.7, 8.8), ("reverse_kl", 12.0, 2.0)])
def test_forward_kl_covers_two_modes_and_reverse_kl_takes_one(name, place, width):
    """One Gaussian over 41 bins, fitted to two modes of width 2 at 12 and 28. From one start the former ends between
    them and wide, the latter on the nearer mode with its width."""
    bins = torch.arange(41.0, dtype=torch.float64)
    teacher = torch.logsumexp(torch.stack([-((bins - m) ** 2) / 8 for m in (12.0, 28.0)]), 0)
    at, log_width = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (15.0, 0.7))
    optimiser = torch.optim.SGD([at, log_width], 0.1)
    for _ in range(3000):
        optimiser.zero_grad()
        ALL[name](-((bins - at) ** 2) / (2 * (2 * log_width).exp()), teacher).backward()
        optimiser.step()
    assert (at.item(), log_width.exp().item()) == pytest.approx((place, width), abs=0.1)
