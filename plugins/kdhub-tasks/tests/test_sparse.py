"""A part of a teacher's distribution: bits, bytes, the specification's numbers, and what is true on average."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdhub_tasks import divergences as d
from kdhub_tasks.sparse import Form, Sampled, Top, divergence, kept, packed

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.signals.store import Field

Z, S = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.5, 0.0]])


def stored(logits, text, key=b"row"):
    form = Form.parse(text, logits.shape[-1])
    return form.unpack(torch.from_numpy(form.pack(logits.numpy(), key)))


def exactly(logits, k, alone):
    """What is kept of some logits, without bits."""
    log_p = torch.log_softmax(logits, -1)
    at = log_p.topk(k).indices
    rest = log_p.scatter(-1, at, -torch.inf).logsumexp(-1, keepdim=True)
    return Top(at, torch.cat([log_p.gather(-1, at), rest], -1), alone)


@pytest.mark.parametrize(("name", "value"), [("renormalised", 0.257403), ("top", 0.239401)])
def test_numbers_of_the_specification(name, value):
    """Of a top-2 cache. With a cell for the others it is exact here: one class alone is left out."""
    assert divergence(d.forward_kl, S, exactly(Z, 2, name == "renormalised")).item() == pytest.approx(value, abs=2e-6)
    assert divergence(d.forward_kl, S, stored(Z, f"{name}-2")).item() == pytest.approx(value, abs=2e-3)
    for function in (d.forward_kl, d.reverse_kl, d.total_variation):
        for t in (1.0, 2.0):
            full = function(S / t, Z / t).item()
            assert divergence(function, S, exactly(Z, 3, name == "renormalised"), t).item() == pytest.approx(
                full, abs=1e-6
            )
            assert divergence(function, S, stored(Z, f"{name}-3"), t).item() == pytest.approx(full, abs=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0, 4.0, 10.0])
def test_how_far_cells_may_be_above_all_classes(temperature):
    """Over random sides of all sharpness, near each other and far: at most by what joining leaves out of the tempered
    sum of the side that the mean is over; without joining before tempering, at T = 1, not at all."""
    generator, above = torch.Generator().manual_seed(0), 0.0
    for draw in range(69):
        classes = 3 + draw % 23
        k = 1 + draw * 7 % (classes - 1)
        z = 6 * torch.rand(40, 1, generator=generator) * torch.randn(40, classes, generator=generator)
        s = draw % 3 / 2 * z + 6 * torch.rand(40, 1, generator=generator) * torch.randn(
            40, classes, generator=generator
        )
        z, s = z.double(), s.double()
        top = exactly(z, k, False)

        def left_out(logits, top=top):
            log_p = torch.log_softmax(logits, -1) / temperature
            log_rest = (log_p * temperature).scatter(-1, top.at, -torch.inf).logsumexp(-1) / temperature
            cells = log_p.gather(-1, top.at).exp().sum(-1) + log_rest.exp()
            return log_p.exp().sum(-1) / cells

        for function, side in ((d.forward_kl, z), (d.reverse_kl, s)):
            joined, whole = top.apart(function, s, temperature), function(s / temperature, z / temperature)
            factor = left_out(side)
            assert (joined <= factor * whole * (1 + 1e-7) + 1e-10).all()
            assert (factor <= (classes - k) ** (1 - 1 / temperature) * (1 + 1e-9)).all()
            above = max(above, ((joined - whole) / whole.clamp_min(1e-6)).max().item())
    assert (above > 0.01) == (temperature > 1), "a bound of 1 would not hold"


@pytest.mark.parametrize("classes", [2, 3, 257, 128_256])
def test_indices_survive_their_bits(classes):
    torch.manual_seed(0)
    logits = 4 * torch.randn(5, classes)
    k = min(classes, 32)
    top = stored(logits, f"top-{k}")
    assert torch.equal(top.at, logits.topk(k).indices.sort(-1).values)
    exact = torch.log_softmax(logits.double(), -1).gather(-1, top.at)
    span = (exact.amax(-1) - exact.amin(-1)).max().item()
    assert (top.log_p[:, :-1] - exact).abs().max() < span / 508 + 0.01  # the ends are float16
    rest = 1 - exact.exp().sum(-1)
    assert torch.allclose(top.log_p[:, -1].double().exp(), rest.clamp_min(0), atol=2e-3)
    assert stored(logits, "sampled-22").at.shape == (5, 22)


def test_bytes_of_a_position():
    """At 128,256 classes 17 bits an index."""
    assert Form.parse("sampled-22", 128_256).bytes == 47 <= 48
    assert Form.parse("top-32", 128_256).bytes == 106 <= 121
    assert Form.parse("top-1", 2).bytes == 1 + 1 + 6
    assert Form.parse("renormalised-32", 128_256).bytes == 106


def test_what_is_packed_does_not_depend_on_the_type_of_the_logits():
    logits = (4 * np.random.default_rng(1).normal(size=(6, 40))).astype(np.float16)
    for text in ("top-5", "renormalised-5", "sampled-9"):
        form = Form.parse(text, 40)
        assert np.array_equal(form.pack(logits, b"a"), form.pack(logits.astype(np.float64), b"a"))
        assert form.pack(logits + 100, b"a").dtype == np.uint8
        assert np.array_equal(form.pack(logits.tolist(), b"a"), form.pack(logits, b"a"))


def test_log_probabilities_of_a_position_to_the_bit():
    """p = (1/2, 1/4, 1/8, 1/8): the ends are exact in float16 but for log(1/2); codes of 254 steps between them."""
    p = np.array([[0.5, 0.25, 0.125, 0.125]])
    top = Form.parse("top-2", 4).unpack(torch.from_numpy(Form.parse("top-2", 4).pack(np.log(p) + 3, b"")))
    assert top.at.tolist() == [[0, 1]] and not top.alone
    half = [float(np.float16(np.log(x))) for x in (0.5, 0.25, 0.25)]
    assert top.log_p[0].tolist() == pytest.approx(half, abs=1e-7)
    three = Form.parse("renormalised-3", 4)
    at, values = np.array([[0, 2, 3]]), np.log(np.array([[0.5, 0.25, 0.125]]))
    given = three.unpack(torch.from_numpy(three.pack_top(at, values)))
    low, high = (float(np.float16(np.log(x))) for x in (0.125, 0.5))
    code = round((math.log(0.25) - low) / (high - low) * 254)
    assert given.at.tolist() == at.tolist() and given.alone
    assert given.log_p[0].tolist() == pytest.approx([high, low + code / 254 * (high - low), low, low], abs=1e-6)
    sure = three.unpack(torch.from_numpy(three.pack_top(at, np.array([[0.0, -30.0, -24.0]]))))
    assert sure.log_p[0].tolist() == pytest.approx([0, -math.inf, -24, math.log(1e-7)], abs=0.01)
    impossible = three.unpack(torch.from_numpy(three.pack_top(at, np.array([[0.0, -np.inf, -26.0]]))))
    assert impossible.log_p[0].tolist() == pytest.approx([0, -math.inf, -math.inf, math.log(1e-7)], abs=0.01)


def test_the_most_probable_are_kept_of_many_rows():
    logits = torch.randn(300, 500, generator=torch.Generator().manual_seed(2))
    for k in (1, 2, 7):
        assert torch.equal(stored(logits, f"top-{k}").at, logits.topk(k).indices.sort(-1).values)


@pytest.mark.parametrize("values", [[-10.003, -10.001], [-9.9985, -9.9971], [-10.0, -10.0]])
def test_values_between_two_neighbours_of_float16_stay_where_they_are(values):
    form = Form.parse("top-2", 30_000)
    top = form.unpack(torch.from_numpy(form.pack_top(np.array([[3, 7]]), np.array([values]))))
    assert top.log_p[0, :2].tolist() == pytest.approx(values, abs=0.008)


@pytest.mark.parametrize("text", ["top-2", "renormalised-2", "top-6", "sampled-3"])
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_rows_do_not_depend_on_their_company_and_halves_are_widened(text, t):
    generator = torch.Generator().manual_seed(4)
    student, part = torch.randn(5, 6, generator=generator), stored(torch.randn(5, 6, generator=generator), text)
    given = divergence(d.forward_kl, student, part, t)
    alone = [divergence(d.forward_kl, student[i : i + 1], part[i : i + 1], t) for i in range(5)]
    assert given.shape == (5,) and torch.allclose(given, torch.cat(alone))
    assert divergence(d.reverse_kl, student.double(), part, t).dtype == torch.float64
    half = student.half()
    assert torch.equal(divergence(d.forward_kl, half, part, t), divergence(d.forward_kl, half.float(), part, t))


def test_parts_slices_and_fields():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for text, alone in (("top-2", False), ("renormalised-2", True)):
        top = stored(logits, text)
        assert (len(top), len(top[1:3]), top[1:3].alone) == (4, 2, alone)
        assert torch.equal(top[1:3].at, top.at[1:3]) and torch.equal(top[1:3].log_p, top.log_p[1:3])
    drawn = stored(logits, "sampled-3")
    assert (len(drawn), drawn[1:].at.tolist()) == (4, drawn.at.tolist()[1:])
    form = Form.parse("top-2", 6)
    assert form.field("logits", True) == Field("logits.top-2", "uint8", (form.bytes,), True)
    assert form.field("other", False) == Field("other.top-2", "uint8", (form.bytes,), False)


def test_what_a_batch_keeps_is_found_by_its_name():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    form = Form.parse("top-2", 6)
    values = torch.from_numpy(form.pack(logits.numpy(), b""))
    found = kept({"features.top-2": values[:1], "logits": values[:2], "logits.top-2": values}, 6)
    assert torch.equal(found.at, stored(logits, "top-2").at)
    assert kept({"logits": values, "features.top-2": values}, 6) is None


def test_examples_are_packed_one_by_one_with_their_own_keys():
    logits, form = np.random.default_rng(0).normal(size=(3, 2, 9)), Form.parse("sampled-4", 9)
    keys = [b"a", b"b", b"c"]
    ragged = packed([logits[0], logits[1, :1], logits[2]], form, keys, True)
    each = [form.pack(logits[0], b"a"), form.pack(logits[1, :1], b"b"), form.pack(logits[2], b"c")]
    assert all(np.array_equal(a, b) for a, b in zip(ragged, each)) and len(ragged) == 3
    flat = packed(logits[:, 0], form, keys, False)
    assert np.array_equal(flat, np.concatenate([form.pack(x[:1], k) for x, k in zip(logits, keys)]))


def test_whole_logits_are_divided_by_the_temperature():
    given = divergence(d.forward_kl, S, Z.half(), 2.0)
    assert given.item() == pytest.approx(d.forward_kl(S / 2, Z / 2).item()) and given.dtype == torch.float32
    assert divergence(d.forward_kl, S, Z).item() == pytest.approx(d.forward_kl(S, Z).item())


def test_draws_are_unbiased_and_their_gradient_too():
    """Over 4,000 draws, within five deviations of independent ones: every class's share, and the gradient of the KL."""
    torch.manual_seed(0)
    logits, student, n, draws = torch.randn(1, 30), torch.randn(1, 30, requires_grad=True), 12, 4000
    form = Form.parse(f"sampled-{n}", 30)
    at = torch.cat([form.unpack(torch.from_numpy(form.pack(logits.numpy(), bytes([i % 256, i // 256])))).at
                    for i in range(draws)])  # fmt: skip
    p = torch.softmax(logits, -1)[0]
    share = torch.bincount(at.flatten(), minlength=30) / (n * draws)
    assert ((share - p).abs() <= 5 * (p * (1 - p) / (n * draws)).sqrt() + 1e-6).all()
    spread = torch.stack([torch.bincount(row, minlength=30) for row in at]).float().var(0)
    assert (spread <= 1.05 * n * p * (1 - p) + 0.01).all(), "less spread than independent draws"

    (exact,) = torch.autograd.grad(d.forward_kl(student, logits).sum(), student)
    many = Sampled(at)
    (mean,) = torch.autograd.grad(divergence(d.forward_kl, student.expand(draws, 30), many).mean(), student)
    assert (mean - exact).abs().max() < 5 * 0.5 / math.sqrt(n * draws)


def test_one_example_is_always_drawn_alike():
    logits = np.random.default_rng(0).normal(size=(7, 100))
    form = Form.parse("sampled-9", 100)
    assert np.array_equal(form.pack(logits, b"a"), form.pack(logits, b"a"))
    assert not np.array_equal(form.pack(logits, b"a"), form.pack(logits, b"b"))


def test_equal_sides_are_zero_apart_and_impossible_classes_do_no_harm():
    hard = torch.tensor([[50.0, -torch.inf, 0.0, -torch.inf], [0.0, 1e4, 0.0, -1e4]])
    for text in ("top-1", "top-4", "renormalised-2", "renormalised-4"):
        both = stored(hard, text)
        student = hard.clone().requires_grad_()
        value = divergence(d.forward_kl, student, both)
        value.sum().backward()
        assert value.abs().max() < 2e-3 and torch.isfinite(student.grad).all()


def test_wrong_forms_are_named():
    for wrong in ("top", "top-x", "half-3", "top-0", "top-99", "renormalised-11"):
        with pytest.raises(UsageError, match="signals.keep"):
            Form.parse(wrong, 10)
    for method, keep in (("dkd", "top-3"), ("reverse-kl", "sampled-4"), ("kd", "sampled-4")):  # kd: at T = 2
        with pytest.raises(CompatibilityError, match=f"does not learn from signals.keep: {keep}") as told:
            kdhub.distill("digits", method=method, set=[f"signals.keep={keep}"])
        assert "it takes all" in told.value.hint


@pytest.fixture(scope="module")
def digits_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDHUB_HOME", str(folder / "home"))
        return kdhub.distill("digits-teacher", out=folder / "run", set=["options.epochs=10"]).student_folder


@pytest.mark.parametrize("keep", ["top-3", "renormalised-3", "sampled-8"])
def test_a_student_learns_from_a_part(keep, digits_teacher, tmp_path):
    """From the store, in training alone: what is measured against has everything."""
    run = kdhub.distill(
        "digits", method="kd", out=tmp_path / "run",
        teacher=f"path:{digits_teacher}",
        set=[f"signals.keep={keep}", "options.temperature=1", "options.alpha=1", "options.max_steps=150",
             "evaluation.cost=false"],
    )  # fmt: skip
    signals = run.provenance["signals"]
    assert signals[f"logits:{keep}"]["item_bytes"] == Form.parse(keep, 10).bytes and "logits" in signals
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "accuracy"}
    assert values["student"] > 0.8 > values["student-before"]
