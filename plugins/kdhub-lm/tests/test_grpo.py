"""GRPO: advantages, clipping, means, and answers that get better."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_lm.methods.grpo import Answers, Grpo, advantages_of, aggregated, policy_losses, start_distances
from kdhub_tasks.language.students import llama
from kdhub_tasks.language.task import CausalLanguage

import kdhub
from kdhub.errors import DataError, RecipeError, TrainingError
from kdhub.method import ObjectiveMethod, Progress
from kdhub.rows import Rows, Signals
from kdhub.student import BuildContext

NOW = Progress(0, 1, 0.0)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3))


def method_for(student, **options):
    method = Grpo(Grpo.Options(max_new_tokens=4, group_size=4, **options), "spec")
    assert method.spec == "spec"
    method.adapt(student, None)
    method.extras(student, None)
    return method


def asked(student, rows):
    task = CausalLanguage()
    examples = task.preparer(student, None, prompts=4)(rows)
    return task.collate([{**e, "at": [], "gold": r["response"]} for e, r in zip(examples, rows)], student)


def test_advantages_by_hand():
    hits = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0]])
    given = advantages_of(hits)[0]
    assert given[hits[0] == 1].tolist() == pytest.approx([1.732047] * 2, abs=1e-6)
    assert given[hits[0] == 0].tolist() == pytest.approx([-0.577349] * 6, abs=1e-6)
    assert advantages_of(torch.ones(1, 8)).tolist() == [[0.0] * 8]


def test_clipping_by_hand():
    def clipped(ratio, advantage, high=0.2):
        return -policy_losses(torch.tensor(ratio), torch.tensor(advantage), 0.2, high).item()

    assert clipped(1.5, 1.0) == pytest.approx(1.2) and clipped(1.5, 1.0, high=0.28) == pytest.approx(1.28)
    assert clipped(1.5, -1.0) == pytest.approx(-1.5)
    assert clipped(0.5, 1.0) == pytest.approx(0.5)
    assert clipped(0.5, -1.0) == pytest.approx(-0.8)


def test_the_mean_is_over_tokens_or_over_answers():
    values, counts = torch.tensor([1.0, 1, 4, 4, 4, 4, 4, 4]), torch.tensor([2, 6])
    kept = torch.ones(8, dtype=torch.bool)
    assert aggregated(values, counts, kept, "sequence").item() == pytest.approx(2.5)
    assert aggregated(values, counts, kept, "token").item() == pytest.approx(3.25)
    first = torch.arange(8) < 2
    assert [aggregated(values, counts, first, how).item() for how in ("sequence", "token")] == [1.0, 1.0]
    assert aggregated(values, counts, ~kept, "sequence").item() == 0


def test_distance_to_the_start_is_never_negative_and_0_there():
    now = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    assert start_distances(now, now).tolist() == [0, 0, 0]
    assert start_distances(now, torch.tensor([-2.0, -1.0, -0.5])).tolist() == pytest.approx(
        [0.367879, 0.718282, 0], abs=1e-5
    )


def test_at_ratio_1_the_gradient_is_reinforce(student):
    method = method_for(student, temperature=0.7)
    tokens = [[40, 41, 1], [42, 1], [43, 44, 45, 46], [47, 1]]
    answers = Answers([[1, 50, 51]] * 4, tokens, [True, True, False, True], ["", "", "", ""])
    advantages = torch.tensor([1.5, -0.5, 9.0, -1.0])
    batch = {**answers.batch(student), "advantages": advantages}
    (weight,) = (student.module.model.model.layers[0].mlp.up_proj.weight,)
    (loss,) = method.objective(student.module(batch), Signals(), batch, NOW).values()
    by_hand = 0.0
    for ids, advantage in zip(tokens, advantages):
        if len(ids) < 4:  # the one that was cut off counts nothing
            row = torch.tensor([[1, 50, 51, *ids]])
            logits = student.module.model(row).logits[0, 2:-1, :258] / 0.7
            by_hand = by_hand - advantage * logits.log_softmax(-1).gather(-1, row[0, 3:, None]).sum() / 7
    (mine,), (theirs,) = torch.autograd.grad(loss, weight), torch.autograd.grad(by_hand, weight)
    assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-7) and mine.abs().max() > 0


@pytest.mark.parametrize(("how", "unit"), [("token", "labels"), ("sequence", "answers")])
def test_the_objective_by_hand(student, how, unit):
    """Clipped ratios to the policy that sampled, and the distance to the start; of a whole step where it is known."""
    method = method_for(student, loss_agg=how, beta_kl=0.5, eps_low=0.1, eps_high=0.3)
    answers = Answers([[1, 50]] * 3, [[0, 1], [42, 43, 1], [44, 45]], [True, True, False], [""] * 3)
    batch = {**answers.batch(student), "advantages": torch.tensor([2.0, -1.0, 7.0])}
    with torch.no_grad():
        for p in student.module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    now, start = (
        method.log_probs(m(batch), batch["labels"]).detach() for m in (student.module, method.reference.module)
    )
    batch["old"] = now - torch.tensor([0.5, -0.5, 0.05, 0.5, -0.5, 0, 0])
    terms = method.objective(student.module(batch), Signals(), batch, NOW)
    ratios = torch.tensor([0.5, -0.5, 0.05, 0.5, -0.5]).exp()
    advantages = torch.tensor([2.0, 2, -1, -1, -1])
    policy = -torch.minimum(ratios * advantages, ratios.clamp(0.9, 1.3) * advantages)
    apart = (start - now)[:5].exp() - (start - now)[:5] - 1

    def mean(values):
        return (values.mean() if how == "token" else (values[:2].mean() + values[2:].mean()) / 2).item()

    assert terms["policy"].item() == pytest.approx(mean(policy), rel=1e-5)
    assert terms["start"].item() == pytest.approx(0.5 * mean(apart), rel=1e-4) and terms["start"].item() > 1e-4
    assert method.counts(batch, {}) == {"answers": 2}
    few = {"labels": torch.tensor([0, -1, -1, 7]), "counts": torch.tensor([1, 2, 1])}
    assert method.counts(few, {}) == {"answers": 2}
    many = {"labels": 10.0, "answers": 4.0}
    step = method.objective(student.module(batch), Signals(), {**batch, "mean_counts": {unit: many[unit]}}, NOW)
    assert step["policy"].item() == pytest.approx(terms["policy"].item() / 2, rel=1e-5)


def test_defaults_and_means_of_a_step():
    ratios, advantages = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 1.0])
    assert torch.equal(policy_losses(ratios, advantages), policy_losses(ratios, advantages, 0.2, 0.28))
    values, counts, kept = torch.tensor([1.0, 3, 5]), torch.tensor([1, 2]), torch.tensor([True, True, True])
    assert aggregated(values, counts, kept).item() == 3
    assert [aggregated(values, counts, kept, how, 4.0).item() for how in ("token", "sequence")] == [9 / 4, 5 / 4]
    one = torch.tensor([True, False, False])
    assert [aggregated(values, counts, one, how).item() for how in ("token", "sequence")] == [1, 1]
    nothing = torch.zeros(3, dtype=torch.bool)
    assert [aggregated(values, counts, nothing, how).item() for how in ("token", "sequence")] == [0, 0]


def test_what_is_sampled_and_what_the_log_says_of_it(student, monkeypatch):
    """Answers of the policy that samples, by seed and key; running means from the first value on."""
    method = method_for(student, policy_steps=2, temperature=0.5)
    assert method.policy is not student and not any(p.requires_grad for p in method.policy.module.parameters())
    assert method.reference is None and method_for(student, beta_kl=0.1).reference is not None
    given = []
    generate = type(student).generate

    def noted(self, prompts, how, seed, rows, **more):
        given.append((self, prompts, how.temperature, how.max_new_tokens, rows, {**more, "seed": seed}))
        return [[*ids[:3], self.tokenizer.eos_token_id] for ids in generate(self, prompts, how, seed, rows, **more)]

    monkeypatch.setattr(type(student), "generate", noted)
    method.rewards = lambda answers, batch: torch.tensor([1.0, 0, 0, 1] + [float(len(batch["gold"]) == 2)] * 4)
    rows = [{"prompt": "3+5=", "response": "8"}, {"prompt": "1+1=", "response": "2"}]
    inputs = asked(student, rows)
    batch = method.prepare_batch(inputs, torch.Generator().manual_seed(1))
    ((who, prompts, temperature, most, numbers, more),) = given
    drawn = torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(1)).item()
    assert who is method.policy and (temperature, most, more) == (0.5, 4, {"trained": True, "seed": drawn})
    assert prompts[0] == prompts[3] != prompts[4] and len(prompts) == 8
    assert numbers == [key * 4 + n for key in inputs["keys"].tolist() for n in range(4)]
    assert batch["advantages"].tolist() == pytest.approx([1, -1, -1, 1, 0, 0, 0, 0], abs=1e-4)
    first = int(batch["counts"][:4].sum())
    assert (batch["labels"][:first] >= 0).all() and (batch["labels"][first:] == -1).all()
    old = method.log_probs(method.policy.module(batch), batch["labels"])
    assert torch.allclose(batch["old"], old) and not batch["old"].requires_grad
    assert method.state() == pytest.approx({"reward": 0.75, "ended": 1.0, "mixed": 0.5})
    method.note(reward=1.0)
    assert method.state()["reward"] == pytest.approx(0.9 * 0.75 + 0.1)
    other = method_for(student)
    other.load_state(method.state())
    assert other.seen == method.seen and other.seen is not method.seen


def test_the_copy_follows_every_few_steps(student):
    method = method_for(student, policy_steps=3)
    ((name, policy),) = method.extras(student, None).items()
    weight, copied = (m.model.lm_head.weight for m in (student.module, policy))
    with torch.no_grad():
        weight.add_(1)
    for step in range(3):
        assert not torch.equal(weight, copied)
        method.stepped({}, Progress(step, 9, 0.0))
    assert torch.equal(weight, copied) and name == "policy"


def test_the_start_is_tried_on_rows_of_the_whole_set(student, monkeypatch, caplog):
    rows = [{"prompt": f"{n}+1=", "response": str(n + 1)} for n in range(9)]
    method = method_for(student, probe=3)
    table = SimpleNamespace(column_names=["prompt", "response"])
    kept = Rows(table, lambda plain: [{"ids": [1, 40 + int(r["prompt"][0])]} for r in plain], None, np.ones(9))
    monkeypatch.setattr(Rows, "__getitem__", lambda self, at: self.prepare([rows[i] for i in at]))
    run = SimpleNamespace(
        seed=5, student=student, rows=lambda use, **how: {"train": kept}[use] if how == {"prompts": 4} else None
    )
    asked_for = []

    def of(who, prompts, numbers, options, seed):
        asked_for.append((prompts, list(numbers), seed, options.group_size if who is student else None))
        texts = ["1", "1", "9", "9", "5", "5", "5", "5", "9", "7", "7", "7"]
        return Answers([[1]] * 12, [[2]] * 12, [True] * 12, texts)

    monkeypatch.setattr(Answers, "of", of)
    stages = {}
    run.stage = lambda name, work: stages.update({name: work()})
    monkeypatch.setattr(ObjectiveMethod, "distill", lambda self, run: run.student)
    with caplog.at_level("INFO", "kdhub"):
        assert method.distill(run) is student
    assert stages == {"probe": pytest.approx({"right": 7 / 12, "mixed": 2 / 3})}
    assert asked_for == [([[1, 40], [1, 44], [1, 48]], [0, 1, 2], 5, 4)], "the first, the middle and the last"
    assert "58 % of answers are right, 67 % of prompts have both" in caplog.text
    prepared = method.rows(run).prepare([rows[2]])
    assert prepared == [{"ids": [1, 42], "at": [], "gold": "3"}]


def test_a_group_of_one_reward_gives_no_gradient_and_no_weight(student):
    rows = [{"prompt": "3+5=", "response": "8"}, {"prompt": "1+1=", "response": "2"}]
    for dynamic in (True, False):
        method = method_for(student, dynamic_sampling=dynamic)
        method.rewards = lambda answers, batch: torch.ones(len(answers.texts))
        batch = method.prepare_batch(asked(student, rows), torch.Generator().manual_seed(1))
        (loss,) = method.objective(student.module(batch), Signals(), batch, NOW).values()
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is None or not p.grad.any() for p in student.module.parameters())
    method = method_for(student)
    method.rewards = lambda answers, batch: torch.tensor([1.0] * 4 + [0.0, 1.0, 0.0, 0.0])
    batch = method.prepare_batch(asked(student, rows), torch.Generator().manual_seed(1))
    first = int(batch["counts"][:4].sum())
    assert (batch["labels"][:first] == -1).all(), "left out of the mean too"


def test_equal_prompts_get_answers_of_their_own(student):
    """Prompts that come twice in a batch are asked twice; those of other rows stay what they are."""
    method, (one, two) = method_for(student), ({"prompt": "3+5=", "response": "8"}, {"prompt": "1+1=", "response": "2"})
    method.rewards = lambda answers, batch: torch.arange(float(len(answers.texts)))

    def answers(*rows):
        made = method.prepare_batch(asked(student, rows), torch.Generator().manual_seed(1))
        return [tuple(part.tolist()) for part in made["input_ids"]]

    first, second, third = (answers(one, two, one)[n : n + 4] for n in (0, 4, 8))
    assert first != third and [row[:8] for row in answers(one, two)] == [row[:8] for row in first + second]


def test_what_is_right(student):
    method = method_for(student, format=r"<.*\d+>")
    texts, ended = ["<8>", "8", "<\n9>", "<8>"], [True, True, True, False]
    answers = Answers([[1]] * 4, [[2]] * 4, ended, texts)
    given = method.rewards(answers, {"gold": ["8"]}).tolist()
    assert given == pytest.approx([1.1, 1.0, 0.1, 0.0]), "one that was cut off is never right"
    with pytest.raises(RecipeError, match="format must be a regular expression"):
        kdhub.distill("grpo", set=["options.format=("])


def test_a_policy_that_lags_gives_ratios(student):
    method = method_for(student, policy_steps=3)
    method.rewards = lambda answers, batch: torch.tensor([1.0, 0, 0, 0])
    with torch.no_grad():
        for p in student.module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = method.prepare_batch(asked(student, [{"prompt": "3+5=", "response": "8"}]), torch.Generator())
    batch["labels"] = batch["labels"].clamp_min(0)  # as if all had ended
    batch["old"] = method.log_probs(method.policy.module(batch), batch["labels"])
    now = method.log_probs(student.module(batch), batch["labels"])
    assert (now - batch["old"]).abs().max() > 1e-3
    for step in range(3):
        method.stepped({}, Progress(step, 9, 0.0))
    assert torch.equal(method.log_probs(method.policy.module(batch), batch["labels"]), now.detach())


def test_the_pass_rate_rises(tmp_path):
    """From what is right at times to what is right mostly."""
    shared = {
        "task": "causal-lm",
        "data": {"train": [{"source": "arithmetic:larger", "options": {"numbers": 8, "held_out": 0}}]},
        "evaluation": {"data": [], "cost": False},
    }
    options = {"batch_size": 16, "lr": 5e-3, "precision": "float32", "schedule": "constant"}
    start = kdhub.distill(
        {**shared, "method": "supervised", "student": "llama:width=32,layers=1,heads=2,length=16",
         "options": {**options, "max_steps": 60}}, out=tmp_path / "start")  # fmt: skip
    run = kdhub.distill(
        {**shared, "method": "grpo", "student": f"path:{start.student_folder}",
         "options": {**options, "max_steps": 40, "max_new_tokens": 3}}, out=tmp_path / "run")  # fmt: skip
    states = [line["state"] for line in run.metrics()]
    probe = json.loads((tmp_path / "run/state.json").read_text())["stages"]["probe"]
    assert 0.1 < probe["right"] < 0.8
    assert states[-1]["right"] > probe["right"] + 0.1


def test_without_any_right_answer_it_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"none of the student's 512 answers to 64 prompts is right"):
        kdhub.distill("grpo", set={"student": "llama:width=16,layers=1,heads=2,length=64"}, out=tmp_path / "run")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "3+5="}\n')
    with pytest.raises(DataError, match="needs the right answers in the column response; the rows have prompt"):
        kdhub.distill(
            {"task": "causal-lm", "method": "grpo", "student": "llama:width=16,layers=1,heads=2,length=64",
             "data": {"train": [str(path)]}, "evaluation": {"cost": False}}, out=tmp_path / "other")  # fmt: skip


def test_a_policy_that_lags_is_resumed_exactly(tmp_path, monkeypatch):
    """The policy that samples is in the checkpoint, as it was, not as the student is."""
    recipe = {
        "task": "causal-lm", "method": "grpo", "student": "llama:width=16,layers=1,heads=2,length=16",
        "data": {"train": [{"source": "arithmetic:larger", "options": {"numbers": 6, "held_out": 0}}]},
        "options": {"batch_size": 4, "group_size": 4, "max_new_tokens": 3, "max_steps": 6, "lr": 0.05, "probe": 0,
                    "policy_steps": 3, "checkpoint_steps": 2, "precision": "float32"},
        "evaluation": {"data": [], "cost": False},
    }  # fmt: skip
    # letters instead of right answers, and nothing is cut off: an untrained model has something to learn
    monkeypatch.setattr(
        Grpo, "rewards", lambda self, answers, batch: torch.tensor([float(len(t)) for t in answers.texts])
    )
    monkeypatch.setattr(Answers, "batch", lambda self, student, own=Answers.batch: own(whole(self), student))
    once = kdhub.distill(recipe, out=tmp_path / "once")
    own = Grpo.objective

    def broken(self, student, teacher, batch, progress):
        if progress.step == 5:
            raise KeyboardInterrupt
        return own(self, student, teacher, batch, progress)

    monkeypatch.setattr(Grpo, "objective", broken)
    with pytest.raises(KeyboardInterrupt):
        kdhub.distill(recipe, out=tmp_path / "twice")
    monkeypatch.setattr(Grpo, "objective", own)
    again = kdhub.distill(resume=tmp_path / "twice")
    first, second = ((run.student_folder / "model.safetensors").read_bytes() for run in (once, again))
    assert first == second


def whole(answers):
    return Answers(answers.prompts, answers.tokens, [True] * len(answers.tokens), answers.texts)
