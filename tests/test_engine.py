"""Pieces of the engine by themselves: the order of rows and its resume, steps, means, scales, dropout, checkpoints."""

from __future__ import annotations

import json
import logging
import math
from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdhub.errors import TrainingError, UnknownNameError, UsageError
from kdhub.files import read_sealed, sealed, write_sealed
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions
from kdhub.named_layers import Taps
from kdhub.rows import Signals, values_of
from kdhub.sampler import Sampler, ShuffledSampler
from kdhub.training import engine, feed
from kdhub.training.engine import STATE, list_checkpoints, magnitudes, newest_checkpoint, steps_of
from kdhub.training.feed import Order

TRAIN = engine.Engine.train

# -- order ----------------------------------------------------------------------------------------------------


class Follows(Sampler):
    """Rows drawn one by one by what it was told of; its state is a sum."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sum, self.told = 0.0, []

    def epoch(self, number):
        for n in range(6):
            yield int(100 * number + 10 * self.sum + n)

    def observe(self, step, terms):
        self.sum += terms["a"]
        self.told.append(step)

    def state(self):
        return {"sum": self.sum}

    def load_state(self, state):
        self.sum = state["sum"]


def taught(order, taken, upto=16):
    """Take rows, one batch of two after the other; before the third row of each pair a loss is told, as training does
    with rows that are drawn ahead."""
    rows = iter(order)
    for n in range(taken, upto):
        if n % 2 == 0 and n:
            order.observe(n // 2, {"a": n / 2})
        yield next(rows)


def test_rows_follow_epoch_after_epoch_to_the_last():
    sampler = ShuffledSampler(np.ones(5, np.int32), 2, 0)
    order = Order(sampler, 15)
    expected = np.concatenate([sampler.epoch(n) for n in range(3)])[:15].tolist()
    assert list(order) == expected and len(order) == 15 and all(type(row) is int for row in expected)
    assert order.state() == {}, "a sampler without state has none"
    for first in (0, 1, 6, 14, 15):
        again = Order(sampler, 15)
        again.resume(first, {})
        assert list(again) == expected[first:]


def test_a_sampler_that_learns_is_told_what_it_was_told_when_it_drew():
    order = Order(Follows(np.ones(6, np.int32), 2, 0), 16)
    whole = list(taught(order, 0))
    # told 1 before row 2, 2 before row 4, 3 before row 6 of the first epoch, ...
    assert whole == [0, 1, 12, 13, 34, 35, 160, 161, 202, 203, 254, 255, 410, 411, 482, 483]
    assert order.sampler.told == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("stop", [1, 2, 5, 6, 7, 11, 12, 13, 15])
def test_a_resumed_order_goes_on_as_if_nothing_had_been(stop):
    whole = list(taught(Order(Follows(np.ones(6, np.int32), 2, 0), 16), 0))
    order = Order(Follows(np.ones(6, np.int32), 2, 0), 16)
    assert list(taught(order, 0, stop)) == whole[:stop]
    state = json.loads(json.dumps(order.state()))
    again = Order(Follows(np.ones(6, np.int32), 2, 0), 16)
    again.resume(stop, state)
    assert list(taught(again, stop)) == whole[stop:]


def test_losses_reach_a_sampler_without_state_at_once():
    told = []
    sampler = ShuffledSampler(np.ones(4, np.int32), 2, 0)
    sampler.observe = lambda step, terms: told.append((step, terms))
    Order(sampler, 8).observe(3, {"a": 1.0})
    assert told == [(3, {"a": 1.0})]


# -- steps, means, scales -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (10, {"batch_size": 4, "epochs": 2}, (3, 6)),
        (8, {"batch_size": 4, "epochs": 2}, (2, 4)),
        (10, {"batch_size": 4, "epochs": 0.5}, (3, 2)),
        (10, {"batch_size": 4, "epochs": 0.1}, (3, 1)),
        (3, {"batch_size": 4, "epochs": 1}, (1, 1)),
        (10, {"batch_size": 4, "epochs": 2, "max_steps": 5}, (3, 5)),
    ],
)
def test_how_many_steps_there_are(rows, options, expected):
    assert steps_of(TrainingOptions(**options), rows) == expected
    assert steps_of(TrainingOptions(batch_size=4, epochs=2), 0) == (1, 2)


def test_one_term_that_is_a_thousand_times_another_is_found():
    found = magnitudes([{"a": -2000.0, "b": 1.0}, {"a": 4000.0, "b": -1.0}])
    assert (found.status, found.check) == ("warn", "loss terms")
    assert found.found == "loss term 'a' (3e+03) dwarfs 'b' (1)" and found.do == "check their weights"
    fine = magnitudes([{"a": 1000.0, "b": 1.0}])
    assert (fine.status, fine.check, fine.found) == ("ok", "loss terms", "a 1e+03, b 1")
    assert magnitudes([{"a": 1e-8, "b": 0.0}]).status == "warn" and magnitudes([{"a": 1e-10, "b": 0.0}]).status == "ok"


def test_means_over_batches_and_ranks(monkeypatch):
    sums = {"a": torch.tensor(6.0), "b": torch.tensor(3.0)}
    assert engine._means(sums, 3) == {"a": 2.0, "b": 1.0} and engine._means(sums, 0) == {"a": 6.0, "b": 3.0}
    monkeypatch.setattr(engine, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(torch.tensor([4.0, 0.0])))
    assert engine._means(sums, 3) == {"a": 3.0, "b": 0.5}


def test_dropout_is_set_for_the_time_of_training_and_put_back_after_an_error():
    attention = nn.Identity()
    attention.attention_dropout = 0.3
    odd = nn.Identity()
    odd.attention_dropout = "no number"
    net = nn.Sequential(nn.Dropout(0.5), attention, nn.Dropout(0.1), odd)

    def shares():
        return [net[0].p, net[1].attention_dropout, net[2].p, net[3].attention_dropout]

    with pytest.raises(RuntimeError), engine._without_dropout(net, 0.2):
        assert shares() == [0.2, 0.2, 0.2, "no number"]
        raise RuntimeError
    assert shares() == [0.5, 0.3, 0.1, "no number"]
    with engine._without_dropout(net, None):
        assert shares() == [0.5, 0.3, 0.1, "no number"]
    with engine._without_dropout(net, 0.0):
        assert shares()[:3] == [0.0] * 3


def test_whole_checkpoints_are_found_in_the_order_of_their_steps(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 10, 100, 200):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 200:
            (tmp_path / f"checkpoint-{step}" / STATE).write_text("{}")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (59.6, "1:00"), (65, "1:05"), (3599, "59:59"), (3600, "1:00:00"), (7384, "2:03:04")],
)
def test_times_that_are_left(seconds, shown):
    assert engine._clock(seconds) == shown


def test_attention_is_in_float32_and_comes_back_in_bfloat16():
    q = torch.randn(1, 1, 4, 8).bfloat16()
    attend = torch.nn.functional.scaled_dot_product_attention
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    with engine._Float32Attention():
        assert torch.equal(attend(q, q, q), attend(q.clone(), q, q)), "outside autocast nothing changes"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = attend(q, q, value=q, attn_mask=mask)
            assert torch.is_autocast_enabled("cpu")
    assert given.dtype == torch.bfloat16
    exact = attend(q.float(), q.float(), q.float(), attn_mask=mask)
    assert torch.equal(given, exact.bfloat16())


# -- a whole engine -------------------------------------------------------------------------------------------


@pytest.fixture
def built(toys, tmp_path, monkeypatch):
    """`built(**options)`: the engine of a small run, as it was when training began."""
    from kdhub.verbs.distill import distill

    class BuiltError(Exception):
        pass

    def build(sampler=None, seed=5, method="toy-hint", teacher="linear:1", **options):
        def stop(self):
            self.told = told
            build.engine = self
            raise BuiltError

        told, whole = {}, engine.TrainingArguments
        monkeypatch.setattr(engine, "TrainingArguments", lambda **how: told.update(how) or whole(**how))
        monkeypatch.setattr(engine.Engine, "train", stop)
        recipe = {
            "task": "toy-vectors", "method": method, "student": "mlp:6", "seed": seed,
            "data": {"train": {"source": "toy-points"}}, "evaluation": {"cost": False, "data": []},
            "options": {"batch_size": 8, "epochs": 3, "precision": "float32", **options},
        }  # fmt: skip
        recipe |= {"sampler": sampler} if sampler else {}
        recipe |= {"teacher": teacher} if teacher else {}
        with pytest.raises(BuiltError):
            distill(recipe, out=tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        return build.engine

    return build


def test_what_the_trainer_is_told(built):
    made = built(lr=0.03, weight_decay=0.2, grad_clip=0.7, accumulate=2)
    folder = str(made.run.checkpoints)
    assert made.told == {
        "output_dir": folder, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 15,
        "learning_rate": 0.03, "weight_decay": 0.2, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
        "max_grad_norm": 0.7, "optim": "adamw_torch_fused", "bf16": False,
        "fp16": False, "use_cpu": True, "save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no",
        "logging_nan_inf_filter": False, "report_to": [], "disable_tqdm": True, "remove_unused_columns": False,
        "dataloader_pin_memory": False, "seed": 5, "data_seed": 5, "full_determinism": False, "ignore_data_skip": True,
    }  # fmt: skip
    assert not made.trainer.model_accepts_loss_kwargs and made.trainer._get_train_sampler() is made.order
    assert [type(c).__name__ for c in made.trainer.callback_handler.callbacks if "Print" in type(c).__name__] == []
    assert (made.steps, made.steps_per_epoch, made.order.total, made.log_every) == (15, 5, 120, 1)
    assert made.generator.initial_seed() == made.sampler.seed == 5
    assert made.staging == made.run.checkpoints / ".staging" and made.stored and made.precision == "float32"
    assert made.sampler.options.group_by_length and made.method.modules is made.module.extras
    assert built(max_steps=500).log_every == 10 and built(max_steps=9000).log_every == 50


def test_terms_are_means_since_the_last_log(built):
    made = built()
    for a, b in ((1.0, 5.0), (3.0, 7.0)):
        made.observe(0, torch.tensor(a + b), {"a": torch.tensor(a), "b": torch.tensor(b)})
    assert made.mean_terms() == {"a": 2.0, "b": 6.0}
    made.observe(0, torch.tensor(1.0), {"a": torch.tensor(4.0)})
    assert made.mean_terms() == {"a": 4.0}


def test_a_bad_loss_names_its_terms_its_step_and_what_is_kept(built):
    made = built(lr=0.03)
    nan = torch.tensor(math.nan)
    with pytest.raises(TrainingError) as caught:
        made.observe(4, nan, {"a": torch.tensor(1.0), "b": nan, "c": torch.tensor(math.inf)})
    assert caught.value.message == "the loss is nan at step 5 of 15: term 'b', 'c'"
    assert caught.value.hint == "no checkpoint was made yet; try a lower lr (0.03)"
    (made.run.checkpoints / "checkpoint-3").mkdir(parents=True)
    (made.run.checkpoints / "checkpoint-3" / STATE).write_text("{}")
    with pytest.raises(TrainingError, match="step 1 of 15: term 'a'") as caught:
        made.observe(0, torch.tensor(math.inf), {"a": torch.tensor(1e38)})
    assert caught.value.hint.startswith("the last good checkpoint is checkpoint-3;")


def test_ranks_agree_every_tenth_step(built, monkeypatch):
    made = built()
    assert made.agree(True, 3) is True and made.agree(False, 10) is False, "alone there is nobody to ask"
    monkeypatch.setattr(engine, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda flag, source: flag.fill_(source == 0))
    assert made.agree(False, 20) is True and made.agree(True, 21) is False


def test_a_probe_is_taken_every_so_many_steps_but_not_after_the_last(built, monkeypatch):
    made = built()
    made._probe, made._probe_every = (lambda: {"student:0": 1.5}), 7
    logged, told = [], []
    monkeypatch.setattr(made.run, "log", lambda **record: logged.append(record))
    monkeypatch.setattr(made.order, "observe", lambda step, terms: told.append((step, terms)))
    for step in range(15):
        made.stepped(step)
    assert told == [(7, {"student:0": 1.5}), (14, {"student:0": 1.5})]
    assert logged == [{"step": step, "probe": found} for step, found in told]


def test_a_method_that_follows_its_steps_is_told_their_means(built, monkeypatch):
    import toy

    seen = []
    monkeypatch.setattr(toy.Hint, "stepped", lambda self, terms, progress: seen.append((terms, progress)))
    made = built()
    for step in (0, 7):
        for value in (1.0, 2.0):
            made.observe(step, torch.tensor(value), {"a": torch.tensor(value + step)})
        made.stepped(step)
    assert [(terms, p.step, p.steps, p.epoch) for terms, p in seen] == [
        ({"a": 1.5}, 0, 15, 0.0), ({"a": 8.5}, 7, 15, 7 / 5),
    ]  # fmt: skip


def test_rates_over_the_training_are_the_methods(built):
    made = built(lr=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=made.method.options.lr)
    schedule = made.trainer.create_scheduler(15, optimizer)
    assert made.trainer.create_scheduler(15, optimizer) is schedule
    rates = []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    lr = made.method.options.lr
    assert rates == pytest.approx([lr * made.method.learning_rate(step, 15) for step in range(15)])


def test_records_hold_step_epoch_terms_rate_and_speed(built, monkeypatch, caplog):
    made = built(lr=0.5)
    logged, told = [], []
    monkeypatch.setattr(made.run, "log", lambda **record: logged.append(record))
    monkeypatch.setattr(made.order, "observe", lambda step, terms: told.append((step, terms)))
    caplog.set_level(logging.INFO, "kdhub")
    made.steps_per_epoch = 3
    watch = engine._Watch(made)
    assert (watch.logged_step, watch.began) == (0, None)
    made.logged = told.append
    watch.logged, watch.logged_step, watch.timed_step, watch.began = 100.0, 3, 3, (90.0, 1)
    said = iter((True, False, True, True))  # as a bar that speaks every two seconds, and always at the end
    monkeypatch.setattr(
        watch, "bar", lambda done, total, line, *, last: (next(said) or last) and engine.logger.info("%s", line)
    )
    made.observe(6, torch.tensor(3.0), {"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    watch.write(SimpleNamespace(global_step=7), 107.0)
    rate = 0.5 * made.method.learning_rate(6, 15)
    assert logged == [{
        "step": 7, "epoch": 2.3333, "loss": 3.0, "terms": {"a": 1.0, "b": 2.0}, "lr": rate, "rows_per_second": 4.57,
        "state": {"mean": 1.0},
    }]  # fmt: skip
    assert told == [(7, {"a": 1.0, "b": 2.0}), logged[0]]
    assert (watch.logged, watch.logged_step) == (107.0, 7)
    # 17 seconds for six steps, and eight are left
    assert caplog.messages == [f"step 7/15  a 1.0000 b 2.0000  lr {rate:.2e}  5 rows/s  0:23 left"]
    made.observe(7, torch.tensor(1.0), {"a": torch.tensor(1.0)})
    watch.write(SimpleNamespace(global_step=8), 107.5)
    assert logged[1]["rows_per_second"] == 16 and len(caplog.messages) == 1, "said two seconds apart"
    made.observe(14, torch.tensor(1.0), {"a": torch.tensor(1.0)})
    watch.write(SimpleNamespace(global_step=15), 108.0)
    assert caplog.messages[1].startswith("step 15/15") and caplog.messages[1].endswith("0:00 left"), "and at the end"
    assert made.of_fit == {}
    made.fit, made.name = 2, "pool"
    made.observe(14, torch.tensor(1.0), {"a": torch.tensor(1.0)})
    watch.write(SimpleNamespace(global_step=15), 109.0)
    assert made.of_fit == {"fit": 2, "training": "pool"} == {k: logged[-1][k] for k in ("fit", "training")}
    assert caplog.messages[2].startswith("pool: step 15/15")


def test_terms_of_unlike_size_are_told_once_after_five_logs(built, caplog):
    made = built()

    def log(**terms):
        made.observe(0, torch.tensor(1.0), {name: torch.tensor(value) for name, value in terms.items()})
        made.mean_terms()
        return len(caplog.messages)

    assert [log(a=1.0)] + [log(a=5000.0, b=1.0) for _ in range(6)] == [0, 0, 0, 0, 0, 1, 1]
    assert caplog.messages == ["loss term 'a' (5e+03) dwarfs 'b' (1) over the first steps: check their weights"]
    made = built()
    assert {log(a=900.0, b=1.0) for _ in range(6)} == {1}, "not a thousand times"


def test_who_teaches_and_who_orders(built):
    import toy

    live = built(method="toy-mix", group_by_length=False)
    assert {role: type(t) for role, t in live.module._live.items()} == {"teacher": toy.Linear} and not live.stored
    assert live.sampler.batch == 8 and not live.sampler.options.group_by_length
    assert live.logged({}) is None and (live._probe, live._probe_every) == (None, 0)
    stored = built()
    assert stored.module._live == {} and stored.module.student is stored.student.module and stored.seed == 5
    assert set(stored.module.extras) == {"projection"} and stored.sampler.options.group_by_length


def test_a_step_knows_what_its_means_are_over(built, monkeypatch):
    made = built(accumulate=2)
    monkeypatch.setattr(made.task, "counts", lambda inputs: {"labels": inputs["n"]})
    monkeypatch.setattr(made.method, "prepare_batch", lambda batch, generator: {**batch, "seen": generator})

    def counts(*sizes):
        given = made.prepared([{"inputs": {"n": n}, "teacher": {"n": n}} for n in sizes], 5)
        assert [b["teacher"]["n"] for b in given] == [b["inputs"]["n"] for b in given] == list(sizes)
        assert all(b["inputs"]["seen"] is made.generator for b in given)
        return [b["inputs"]["mean_counts"] for b in given]

    assert counts(3, 8) == [{"labels": 5.5}] * 2 and counts(0, 0) == [{"labels": 0.5}] * 2
    assert made.module.progress == Progress(5, 15, 1.0)
    monkeypatch.setattr(made.task, "counts", lambda inputs: {})
    (given,) = made.prepared([{"inputs": {}, "teacher": {}}], 0)
    assert given["inputs"]["mean_counts"] == {}, "a task that counts nothing"
    monkeypatch.setattr(made.method, "counts", lambda inputs, teacher: {"pairs": teacher.n})
    given = made.prepared([{"inputs": {}, "teacher": {"n": n}} for n in (1, 4)], 0)
    assert [b["inputs"]["mean_counts"] for b in given] == [{"pairs": 2.5}] * 2, "and what the method counts"


def test_when_a_step_is_saved_and_written_and_when_training_ends(built, monkeypatch):
    made = built(checkpoint_steps=4)
    watch, wrote, stepped = engine._Watch(made), [], []
    monkeypatch.setattr(watch, "write", lambda state, now: wrote.append(state.global_step))
    monkeypatch.setattr(made, "stepped", stepped.append)
    made.log_every = 3

    def ended(step):
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        watch.on_step_end(None, SimpleNamespace(global_step=step), control)
        return control.should_save, control.should_training_stop

    assert [ended(n) for n in (2, 3, 4, 8)] == [(False, False), (False, False), (True, False), (True, False)]
    assert wrote == [3, 4, 8] and stepped == [1, 2, 3, 7]  # nothing was logged yet: `write` is another one here
    assert (watch.began[1], watch.timed_step) == (2, 1)
    wrote.clear()
    watch.logged_step = 14
    made.steps = 16
    assert [ended(n) for n in (15, 16)] == [(False, False)] * 2 and wrote == [16], "the last step is written, not saved"
    made.sampler.__class__ = type("Enough", (ShuffledSampler,), {"enough": True})
    watch.logged_step, made.steps = 11, 20
    assert ended(12) == (False, True) and wrote == [16, 12], "it ends there: none to go on from"


def test_checkpoints_are_so_many_minutes_apart(built, monkeypatch):
    made = built(checkpoint_minutes=2.0)
    clock, asked = [100.0], []
    monkeypatch.setattr(engine.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(made, "agree", lambda wish, step: asked.append((wish, step)) or wish)
    watch = engine._Watch(made)
    monkeypatch.setattr(watch, "write", lambda state, now: None)
    saved = []
    for step, clock[0] in ((1, 219.0), (2, 220.0), (3, 221.0), (4, 300.0), (5, 342.0)):
        control = SimpleNamespace(should_save=False)
        watch.on_step_end(None, SimpleNamespace(global_step=step), control)
        saved.append(control.should_save)
    assert saved == [False, False, True, False, True]
    assert asked == [(wish, step) for step, wish in enumerate(saved, 1)] and watch.saved == 342.0
    assert (watch.began, watch.logged, watch.bar.said) == ((219.0, 1), 100.0, 100.0)


def checkpoint(made, step, **state):
    """A whole one, as training leaves it."""
    folder = made.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    given = {
        "method": {"mean": 0.25}, "sampler": {}, "asked": {"calls": 3, "rows": 24}, "ranks": 1, "precision": "float32",
        "generator": made.generator.get_state().numpy().tobytes().hex(), **state,
    }  # fmt: skip
    write_sealed(folder / STATE, {**given, "files": sealed(folder)})
    return folder


@pytest.fixture
def trained(built, monkeypatch):
    """`trained(made)`: what training gives, with a trainer that only notes how it is called and takes all steps."""

    def train(made, steps=None):
        def run(resume_from_checkpoint):
            train.seen = {
                "from": resume_from_checkpoint, "dropout": made.student.module.drop.p,
                "trains": [n for n, p in made.module.named_parameters() if p.requires_grad],
                "draw": torch.rand(1).item(),
            }  # fmt: skip
            made.trainer.state.global_step = made.steps if steps is None else steps

        clock = chain([100.0], repeat(108.0))
        monkeypatch.setattr(made.trainer, "train", run)
        monkeypatch.setattr(made.run, "rewind_metrics", lambda *given: train.rewound.append(given))
        monkeypatch.setattr(made, "_tell_sampler", lambda step: train.told.append(step))
        train.rewound, train.told = [], []
        with monkeypatch.context() as patch:
            patch.setattr(engine.time, "monotonic", lambda: next(clock))
            return TRAIN(made)

    return train


def test_training_from_the_beginning(built, trained):
    made = built(rates={"inner": 0}, dropout=0.25)
    made.student.module.train()
    made._probe = object()
    assert trained(made) == {"seconds": 8.0, "steps": 15, "rows_per_second": 15.0, "precision": "float32"}
    torch.manual_seed(5)
    outer = [f"{part}.{kind}" for part in ("student.outer", "extras.projection") for kind in ("weight", "bias")]
    assert trained.seen == {"from": None, "dropout": 0.25, "trains": outer, "draw": torch.rand(1).item()}
    assert made.student.module.drop.p == 0.5 and not made.student.module.training
    assert all(p.requires_grad for p in made.module.parameters())
    assert (
        trained.rewound == [(0, 1)] and trained.told == [0] and made.resumed_from is None and made.checkpoints.is_dir()
    )
    assert made.trainer.model_wrapped is made.module


def test_training_from_a_checkpoint(built, trained, caplog):
    made = built()
    folder = checkpoint(made, 6, unlogged={"step": 4, "batches": 3, "sums": {"a": 1.5}})
    state = made.generator.get_state()
    torch.rand(3, generator=made.generator)
    caplog.set_level(logging.INFO, "kdhub")
    done = trained(made)
    assert trained.seen["from"] == str(folder) and made.resumed_from == folder and trained.rewound == [(6, 1)]
    assert (done["steps"], done["rows_per_second"], trained.told) == (15, 9 * 8 / 8, [])
    assert (made.method.mean, made.module.asked) == (0.25, {"calls": 3, "rows": 24}) and "asked" not in done
    assert torch.equal(made.generator.get_state(), state)
    assert (made.watch.logged_step, made._count, made._sums) == (4, 3, {"a": torch.tensor(1.5)})
    assert made.order.first == 6 * 8 and caplog.messages[-1] == "resuming from checkpoint-6"
    assert made.unlogged() == {"step": 4, "sums": {"a": 1.5}, "batches": 3}
    old = built()
    checkpoint(old, 2)
    old._probe = object()
    trained(old, steps=2)
    assert (old.watch.logged_step, old._count, old._sums, trained.told) == (2, 0, {}, [])
    assert old.unlogged() == {"step": 2, "sums": {}, "batches": 0}


@pytest.mark.parametrize(
    ("state", "said"),
    [({"ranks": 2}, "was written by 2 ranks, this job has 1"),
     ({"precision": "bfloat16"}, "was trained in bfloat16, and this machine trains in float32")],
)  # fmt: skip
def test_checkpoints_of_another_job_are_refused(built, trained, state, said):
    made = built()
    folder = checkpoint(made, 6, **state)
    with pytest.raises(UsageError) as caught:
        trained(made)
    assert caught.value.message == f"{folder} {said}"


def test_a_checkpoint_says_where_training_was_and_two_are_kept(built):
    made = built()
    made.module.asked, made.method.mean = {"calls": 1, "rows": 8}, 0.5
    for step in (2, 3, 10):
        folder = made.staging / f"checkpoint-{step}" / "inside"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(step))
        made.trainer.state.global_step = step
        made.trainer._commit(made, {"batches": 7})
    assert [p.name for p in list_checkpoints(made.checkpoints)] == ["checkpoint-3", "checkpoint-10"]
    last = made.checkpoints / "checkpoint-10"
    state = read_sealed(last / STATE)
    assert {name: state.pop(name) for name in ("schema", "method", "sampler", "asked", "unlogged")} == {
        "schema": 1, "method": {"mean": 0.5}, "sampler": {}, "asked": {"calls": 1, "rows": 8},
        "unlogged": {"batches": 7},
    }  # fmt: skip
    given = made.generator.get_state().numpy().tobytes()
    assert bytes.fromhex(state.pop("generator")) == given and list(state.pop("files")) == ["inside/weights"]
    assert state == {"ranks": 1, "precision": "float32"} and list(made.staging.iterdir()) == []
    (last / "old").touch()
    folder = made.staging / "checkpoint-10"
    folder.mkdir()
    made.trainer._commit(made, {})
    assert [p.name for p in last.iterdir()] == [STATE], "one that stood in its place is gone"


def test_a_damaged_checkpoint_is_passed_over(built, caplog):
    made = built()
    for step in (1, 2, 3):
        checkpoint(made, step)
    (made.checkpoints / "checkpoint-3" / "weights").write_text("other")
    (made.checkpoints / "checkpoint-2" / STATE).write_text("{")
    assert newest_checkpoint(made.checkpoints).name == "checkpoint-1" and len(caplog.messages) == 2
    assert "checkpoint-3 was changed since it was written (weights), and is not used" in caplog.messages[0]
    assert f"checkpoint-2 was changed since it was written ({STATE}: " in caplog.messages[1]


# -- one forward pass -----------------------------------------------------------------------------------------


class Step(ObjectiveMethod):
    """Keeps what it is given."""

    def __init__(self, terms=None):
        super().__init__(TrainingOptions(precision="float32"), SimpleNamespace(name="step", needs=()))
        self.given, self.terms = [], terms

    def objective(self, student, teacher, batch, progress):
        self.given.append((dict(student), dict(teacher), batch, progress))
        return self.terms or {"a": student.out.mean(), "b": 2 * student.out.sum().reshape(1)}


class Asks(Step):
    """Asks its teachers itself, of twice the batch."""

    def ask(self, student, inputs, teacher):
        return Signals(own=teacher({"x": 2 * inputs["x"]}, "view", gradient=True).out)


class Once:
    """A task, a student and a teacher: a factor on `x`."""

    task, members = None, ()

    def __init__(self, factor):
        self.module, self.chosen = nn.Linear(1, 1, bias=False), []
        self.module.weight.data.fill_(factor)

    def forward(self, module, inputs):
        return Signals(out=module(inputs["x"]))

    def choose(self, name):
        self.chosen.append(name)
        self.module.weight.data.fill_({"small": 1.0, "large": 3.0, None: 5.0}[name])


def passed(method, live=None, members=(None,)):
    task, student = Once(0.0), Once(5.0)
    made = engine._Objective(method, task, student, {"more": nn.Linear(1, 1)})
    made.members = members
    for role, teacher in (live or {}).items():
        made._live[role], made._live_taps[role] = teacher, Taps(teacher.module, ())
    return made, student


X = torch.tensor([[1.0], [2.0]])


def test_the_loss_is_the_sum_of_the_terms_and_the_method_sees_all():
    method = Step()
    made, student = passed(method)
    assert made.student is student.module and list(made.extras) == ["more"] and made.asked == {"calls": 0, "rows": 0}
    made.progress, batch = Progress(3, 9, 0.5), {"x": X}
    given = made(batch, {"stored": 7})
    assert given["loss"].item() == 7.5 + 30 and given["loss"].shape == () and given["loss"].requires_grad
    assert {n: (t.item(), t.requires_grad) for n, t in given["terms"].items()} == {
        "a": (7.5, False),
        "b": (30.0, False),
    }
    ((own, teacher, seen, progress),) = method.given
    assert own["out"].tolist() == [[5.0], [10.0]] and teacher == {"stored": 7}
    assert seen is batch and progress == Progress(3, 9, 0.5) and student.chosen == []
    made, _ = passed(Step({"a": X}))
    with pytest.raises(UsageError, match=r"loss term 'a' of step must be one number \(shape=\(2, 1\)\)"):
        made(batch)


def test_members_learn_from_one_answer_and_the_family_is_left_as_it_was():
    method = Step()
    made, student = passed(method, {"teacher": Once(2.0), "view": Once(4.0)}, ("small", "large"))
    given = made({"x": X}, {"view/out": "stored"})
    assert given["loss"].item() == pytest.approx((1.5 + 6 + 4.5 + 18) / 2) and student.chosen == [
        "small",
        "large",
        None,
    ]
    for _, teacher, _, _ in method.given:
        assert teacher["out"].tolist() == [[2.0], [4.0]] and teacher["view/out"] == "stored"
        assert not teacher["out"].requires_grad
    assert made.asked == {"calls": 2, "rows": 4}
    own = Asks()
    made, _ = passed(own, {"view": Once(4.0)}, ("small", "large"))
    made({"x": X})
    assert [t["own"].tolist() for _, t, _, _ in own.given] == [[[8.0], [16.0]]] * 2 and own.given[0][1][
        "own"
    ].requires_grad
    assert made.asked == {"calls": 2, "rows": 4}, "asked about each member"
    with torch.no_grad():
        made({"x": X})
    assert not own.given[-1][1]["own"].requires_grad
    with pytest.raises(UnknownNameError, match="live teacher"):
        made._ask({"x": X}, "other")
    nothing, _ = passed(own)
    assert nothing({"x": X})["loss"].item() == 37.5 and own.given[-1][1] == {}, "nobody is there to be asked"
    other = Once(1.0)
    other.task = SimpleNamespace(forward=lambda module, inputs: Signals(out=X))
    made, _ = passed(Step(), {"view": other})
    assert made._ask({"n": 3, "x": X})["view/out"].tolist() == X.tolist(), "a teacher of another task"
    assert made.asked == {"calls": 1, "rows": 2}


def test_parts_that_rest_stay_in_evaluation_mode():
    made, student = passed(Step())
    made._rates = SimpleNamespace(resting=[made.extras["more"]])
    made.train()
    assert student.module.training and not made.extras["more"].training
    made.eval()
    assert not student.module.training


# -- rows -----------------------------------------------------------------------------------------------------


class Counted:
    """Rows that say how often each was prepared."""

    def __init__(self, size):
        self.size, self.read = size, []

    def __len__(self):
        return 6

    def __getitem__(self, indices):
        self.read += indices
        return [{"x": np.zeros(self.size), "node": n, "more": [n, "text"]} for n in indices]


@pytest.mark.parametrize("again, size, once", [(True, 2, True), (False, 2, False), (True, 2000, False)])
def test_rows_that_are_read_again_are_prepared_once_where_they_are_small(monkeypatch, again, size, once):
    monkeypatch.setattr(feed, "KEPT", 10_000)
    rows, batches = Counted(size), [[0, 2, 1], [5, 4, 3], [3, 1, 5], [4, 2, 0, 0]]
    data = feed.TrainingRows(rows, {}, again=again)
    for indices in batches:
        ((examples, given),) = data.__getitems__(indices)
        assert [e["node"] for e in examples] == indices and given == {}
        assert values_of(examples, "node").tolist() == indices and [e["node"] for e in examples[1:3]] == indices[1:3]
        assert len(examples) == len(indices) and examples[-1]["node"] == indices[-1]
        assert values_of(examples, "first", lambda e: e["more"][0]).tolist() == indices
    assert sorted(rows.read) == (list(range(6)) if once else sorted(sum(batches, [])))
