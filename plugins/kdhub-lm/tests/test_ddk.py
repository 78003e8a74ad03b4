"""DDK: the specification's numbers, which rows come, and a run that draws where its student lags."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_lm.data.synthetic import synthetic
from kdhub_lm.methods.ddk import Ddk, DomainSampler, initial, updated

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals
from kdhub.sampler import Probe

RHO = np.array([12, 20, 8]) / np.array([10, 10, 8])


def test_factors_of_the_specification():
    r0 = initial(RHO)
    assert RHO == pytest.approx([1.2, 2.0, 1.0]) and r0 == pytest.approx([0.247263, 0.550295, 0.202442], abs=1e-6)
    r1 = updated(r0, np.array([1.1, 1.6, 1.0]))
    assert r1 == pytest.approx([0.259086, 0.505781, 0.235133], abs=1e-6)
    r2 = updated(r1, np.array([1.05, 1.2, 1.0]))
    assert r2 == pytest.approx([0.287691, 0.441163, 0.271145], abs=1e-6)


def test_factors_in_the_long_run():
    for start in (initial(RHO), np.array([0.98, 0.01, 0.01])):
        r = start
        for _ in range(200):
            r = updated(r, RHO)
        assert r == pytest.approx([0.241357, 0.535419, 0.223224], abs=1e-6), "from any start"
    r = initial(RHO)
    for _ in range(10):
        r = updated(r, RHO, alpha=1.0)
    assert r == pytest.approx([0.000151, 0.999833, 0.000017], abs=1e-6)


def test_factors_keep_a_floor_and_know_no_constant():
    rng = np.random.default_rng(0)
    for _ in range(50):
        r, rho, alpha = rng.dirichlet([1] * 4), rng.uniform(0.5, 1000, 4), rng.uniform()
        new = updated(r, rho, alpha)
        assert new.sum() == pytest.approx(1) and (new >= (1 - alpha) / 4 - 1e-12).all(), "huge ratios do not overflow"
    assert updated(np.full(3, 1 / 3), np.full(3, 1.7)) == pytest.approx(1 / 3)
    assert updated(r, RHO.repeat(2)[:4], alpha=0.0) == pytest.approx(0.25)
    assert updated(r, rng.uniform(1, 2, 4) * 0 + [1, 2, 3, 4]) == pytest.approx(updated(r, np.array([6, 7, 8, 9])))


def test_the_loss_of_the_specification():
    s, z = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    batch, progress = {"labels": torch.tensor([0])}, Progress(0, 1, 0.0)
    terms = Ddk(Ddk.Options()).objective(Signals(logits=s), Signals(logits=z), batch, progress)
    assert terms["labels"].item() == pytest.approx(0.407606, abs=1e-6)
    assert terms["teacher"].item() / 0.2 == pytest.approx(0.176848, abs=1e-6)
    assert sum(terms.values()).item() == pytest.approx(0.442975, abs=1e-6)
    terms = Ddk(Ddk.Options(divergence="reverse", gamma=1.0)).objective(
        Signals(logits=s), Signals(logits=z), batch, progress
    )
    assert terms["teacher"].item() == pytest.approx(0.266805, abs=1e-6)
    terms = Ddk(Ddk.Options(gamma=0.0)).objective(Signals(logits=s), Signals(logits=z), batch, progress)
    assert sum(terms.values()).item() == pytest.approx(0.407606, abs=1e-6), "labels alone"


def test_the_rate_ends_at_a_tenth():
    """As in the paper, from 3e-5 to 3e-6; other schedules are what they are."""
    rates = [Ddk(Ddk.Options(warmup=0.2)).learning_rate(step, 100) for step in (0, 19, 20, 60, 100)]
    assert rates == pytest.approx([0.05, 1, 1, 0.55, 0.1])
    assert Ddk(Ddk.Options(lr_end=0.0)).learning_rate(100, 100) == pytest.approx(0)
    assert Ddk(Ddk.Options(schedule="linear")).learning_rate(100, 100) == 0


def sampler(**options):
    lengths = np.ones(60, np.int32)
    made = DomainSampler(lengths, 4, 0, parts=[("a", 10), ("b", 20), ("c", 30)], **options)
    return made, made.probes(1000)


def terms(rho, teacher=(0.0, 0.0, 0.0)):
    of_teacher = {f"teacher:{i}": loss for i, loss in enumerate(teacher)}
    return {f"student:{i}": float(np.log(r)) + teacher[i] for i, r in enumerate(rho)} | of_teacher


def test_what_counts_is_the_ratio_to_the_teacher():
    """Not how hard a domain is for the student alone."""
    for sampling, then in (("ddk", updated(initial(RHO), RHO)), ("no_smooth", initial(RHO))):
        made, _ = sampler(sampling=sampling)
        for step, shares in ((0, initial(RHO)), (10, then)):
            made.observe(step, terms(RHO, teacher=(3.0, 0.2, 1.5)))
            assert made.r == pytest.approx(shares)
    made, _ = sampler(stop_rho=2.5)
    made.observe(10, terms(RHO, teacher=(3.0, 0.2, 1.5)))
    assert made.enough


def test_rows_follow_the_shares_and_come_without_replacement():
    made, probe = sampler(interval=200)
    assert probe == Probe(200, 500)
    made.observe(0, terms(RHO))
    first = np.array(list(made.epoch(0)))
    domains = np.searchsorted([10, 30, 60], first, side="right")
    assert len(first) == 4 * 201 and np.bincount(domains) / len(first) == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=0.05)
    made.observe(200, terms([1.1, 1.6, 1.0]))
    second = np.array(list(made.epoch(1)))
    domains = np.searchsorted([10, 30, 60], second, side="right")
    assert len(second) == 800 and np.bincount(domains) / 800 == pytest.approx([0.259, 0.506, 0.235], abs=0.05)
    counts = np.bincount(np.concatenate([first, second]), minlength=60)
    for start, end in ((0, 10), (10, 30), (30, 60)):
        assert np.ptp(counts[start:end]) <= 1, "all rows of a domain before one comes again"


def test_other_ways_to_draw():
    for sampling, shares in (("equal", [1 / 3] * 3), ("proportional", [1 / 6, 1 / 3, 1 / 2])):
        made, probe = sampler(sampling=sampling, interval=300)
        domains = np.searchsorted([10, 30, 60], list(made.epoch(0)), side="right")
        assert probe is None and np.bincount(domains) / len(domains) == pytest.approx(shares, abs=0.05)
    made, probe = sampler(sampling="no_smooth", first_interval="r0")
    assert probe == Probe(40, 500)
    for rho in (RHO, RHO[::-1]):
        made.observe(0, terms(rho))
        assert made.shares == pytest.approx(initial(rho))
    assert [sampler()[0].probes(n).every for n in (100, 1024, 30_000)] == [10, 40, 1000]


def test_ratios_are_clipped_and_what_stops_is_a_measurement_of_training():
    made, _ = sampler(rho_clip=1.5)
    made.observe(0, terms([1.2, 9.0, 1.0]))
    assert made.r == pytest.approx(initial(np.array([1.2, 1.5, 1.0])))
    made.observe(10, terms([1.2, 9.0, 1.0]))
    assert made.r == pytest.approx(updated(initial(np.array([1.2, 1.5, 1.0])), np.array([1.2, 1.5, 1.0])))
    assert initial(np.array([30.0, 20.5, 1.0])) == pytest.approx([0.5, 0.5, 0], abs=1e-6), "20, unless said"
    assert updated(np.array([0.5, 0.5]), np.array([30.0, 20.5]), 1.0) == pytest.approx([0.5, 0.5])
    for stop, step, enough in ((2.5, 0, False), (2.5, 10, True), (1.9, 10, False), (2.0, 10, True), (None, 10, False)):
        made, probe = sampler(stop_rho=stop, sampling="equal" if step else "proportional")
        assert made.enough is False
        made.observe(step, terms([1.2, 2.0, 1.0]))
        assert made.enough is enough and made.r is None and (probe is None) is (stop is None)
    made.observe(10, {"loss": 1.0})
    assert made.r is None, "nothing was measured"


def test_ratios_that_are_all_small_keep_their_shares():
    assert initial(np.array([-700.0, -700.0])) == pytest.approx([0.5, 0.5])
    assert updated(np.array([0.25, 0.75]), np.array([-700.0, -700.0]), 1.0) == pytest.approx([0.25, 0.75])


def test_an_epoch_is_drawn_by_the_shares_of_the_start_and_goes_on_where_the_last_one_ended():
    one, _ = sampler(interval=3, sampling="equal")
    assert one.shares.tolist() == [1 / 3] * 3 and sampler(interval="auto")[0].interval == 40
    assert DomainSampler(np.ones(6, np.int32), 2, 0, parts=[("a", 2), ("b", 4)]).interval == 10
    first = [one._next(0, n).tolist() for n in (4, 0, 9, 7)]
    assert [len(rows) for rows in first] == [4, 0, 9, 7] and one.drawn.tolist() == [20, 0, 0]
    assert len(one._next(1, 21)) == 21, "one more than there are"
    rows = sum(first, [])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10)) and rows[:10] != rows[10:]
    orders = [np.random.default_rng([0, 0, 1 + turn]).permutation(10).tolist() for turn in (0, 1)]
    assert rows == sum(orders, []), "the same rows in every version"
    state = json.loads(json.dumps(one.state()))
    assert state == {"drawn": [20, 21, 0], "r": None, "shares": [1 / 3] * 3, "interval": 3}
    two, _ = sampler(interval=9)
    two.load_state(state)
    assert two.r is None and two.drawn.dtype == np.int64 and two.state() == state
    two.observe(1, terms(RHO))
    assert two.state()["r"] == pytest.approx(initial(RHO))


def test_the_terms_are_means_and_the_squared_temperature_is_an_option():
    torch.manual_seed(0)
    s, z, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, -1, 2, -1])
    found = {}
    for scaled in (False, True):
        method = Ddk(Ddk.Options(gamma=0.5, temperature=2.0, scale_t2=scaled))
        given = method.objective(Signals(logits=s), Signals(logits=z), {"labels": labels}, Progress(0, 1, 0.0))
        found[scaled] = {name: value.item() for name, value in given.items()}
    log_q, log_p = (s / 2).log_softmax(-1), (z / 2).log_softmax(-1)
    apart = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert found[False]["teacher"] == pytest.approx(0.5 * apart, rel=1e-5)
    assert found[True]["teacher"] == pytest.approx(2.0 * apart, rel=1e-5)
    own = s.log_softmax(-1)
    assert found[False]["labels"] == pytest.approx(-(own[0, 0] + own[2, 2]).item() / 2, rel=1e-5)


def test_state_comes_back_whole():
    one, _ = sampler(interval=5)
    two, _ = sampler(interval=5)
    one.observe(0, terms(RHO))
    list(one.epoch(0))
    one.observe(5, terms(RHO))
    two.load_state(json.loads(json.dumps(one.state())))
    assert list(one.epoch(1)) == list(two.epoch(1)) and one.state() == two.state()


@pytest.fixture
def recipe(tmp_path):
    from kdhub_tasks.language import task

    made = task.CausalLanguage().tiny_recipe(tmp_path)
    sizes = {"rows": 40, "length": 30}
    domains = [{"source": f"synthetic:{name}", "options": sizes} for name in ("additions", "integers")]
    made["data"] = {split: [{**d, "split": split} for d in domains] for split in ("train", "validation")}
    options = {"max_steps": 24, "batch_size": 8, "precision": "float32", "checkpoint_steps": 7}
    return {"task": "causal-lm", **made, "options": options, "sampler": {"source": "ddk", "interval": 6}}


@pytest.mark.parametrize("method", ["ddk", "kd"])
def test_a_run_measures_and_draws(recipe, method, tmp_path):
    """With any method; what was measured is in the log, before training and every six steps."""
    run = kdhub.distill({**recipe, "method": method}, out=tmp_path / "run")
    found = [r for r in run.metrics() if "probe" in r]
    assert [r["step"] for r in found] == [0, 6, 12, 18]
    assert set(found[0]["probe"]) == {"student:0", "student:1", "teacher:0", "teacher:1"}
    assert found[0]["probe"]["teacher:0"] == found[-1]["probe"]["teacher:0"], "the teacher does not change"
    assert found[0]["probe"]["student:0"] > found[-1]["probe"]["student:0"]


def test_an_interrupted_run_ends_with_the_same_student(recipe, tmp_path, monkeypatch):
    from kdhub.training.engine import Engine

    whole = kdhub.distill({**recipe, "method": "ddk"}, out=tmp_path / "whole")
    observe = Engine.observe

    def stop(self, step, loss, terms):
        if step == 16:
            raise KeyboardInterrupt
        observe(self, step, loss, terms)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "observe", stop)
        with pytest.raises(KeyboardInterrupt):
            kdhub.distill({**recipe, "method": "ddk"}, out=tmp_path / "cut")
    again = kdhub.distill(resume=tmp_path / "cut")
    weights = [(run.student_folder / "model.safetensors").read_bytes() for run in (whole, again)]
    assert weights[0] == weights[1]
    probes = [[r["probe"] for r in run.metrics() if "probe" in r] for run in (whole, again)]
    assert probes[0] == probes[1]


@pytest.mark.parametrize("sampling", ["ddk", "equal"])
def test_training_ends_where_no_domain_lags_any_more(recipe, tmp_path, sampling):
    """A ratio that every student is below: the first probe after training began is the end."""
    recipe["sampler"] |= {"stop_rho": 1e6, "sampling": sampling}
    run = kdhub.distill({**recipe, "method": "kd"}, out=tmp_path / "run")
    assert run.provenance["training"]["steps"] == 6
    assert [r["step"] for r in run.metrics() if "loss" in r][-1] == 6, "what the last steps learnt is in the log"


def test_domains_without_validation_data_are_refused(recipe, tmp_path):
    recipe["data"]["validation"] = recipe["data"]["validation"][:1]
    with pytest.raises(UsageError, match=r"data\.train has 2, data\.validation 1") as error:
        kdhub.distill({**recipe, "method": "kd"}, out=tmp_path / "run")
    assert "in the same order" in error.value.hint
    with pytest.raises((UsageError, CompatibilityError), match="there is no teacher"):
        kdhub.distill({**recipe, "method": "supervised", "teacher": None}, out=tmp_path / "other")


def test_made_texts():
    rows = [row["text"] for row in synthetic("additions", rows=20).split("train")]
    for text in rows:
        for sum_ in text.rstrip(";").split(";"):
            left, total = sum_.split("=")
            assert sum(map(int, left.split("+"))) == int(total)
    assert len(rows) == 20 and len(synthetic("integers", rows=20).split("test")) == 2
    assert not set(rows) & {r["text"] for r in synthetic("additions", rows=200).split("validation")}
    with pytest.raises(UsageError, match="synthetic:x must be one of additions, integers"):
        synthetic("x")
