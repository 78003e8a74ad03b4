"""Rewards made of preferences: the head, and a policy that earns them."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from kdhub_lm.methods import reward_distill
from kdhub_lm.methods.grpo import Answers
from kdhub_lm.methods.reward_distill import RewardDistill, bradley_terry, fit, mean_states
from kdhub_lm.reference import Reference
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.students import llama
from kdhub_tasks.language.task import CausalLanguage

import kdhub
from kdhub.student import BuildContext


@pytest.fixture
def student():
    torch.manual_seed(0)
    return llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3))


def test_bradley_terry_by_hand():
    rewards = torch.tensor([2.0, 0.5, 1.0], requires_grad=True)
    better, worse = torch.tensor([0, 1]), torch.tensor([1, 2])
    loss = bradley_terry(rewards, better, worse)
    loss.backward()
    a, b = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(0.5))  # how sure it is of either pair
    assert loss.item() == pytest.approx(-(math.log(a) + math.log(b)) / 2, rel=1e-6)
    assert loss.item() == pytest.approx(0.587745, abs=1e-6)
    assert rewards.grad.tolist() == pytest.approx([-(1 - a) / 2, (1 - a) / 2 - (1 - b) / 2, (1 - b) / 2], rel=1e-5)
    assert bradley_terry(torch.zeros(3), better, worse).item() == pytest.approx(math.log(2))


def test_a_head_learns_a_ranking():
    torch.manual_seed(0)
    states, direction = torch.randn(40, 8), torch.randn(8)
    value = states @ direction
    better, worse = (value[:, None] > value).nonzero(as_tuple=True)
    head = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    before, after = fit(head, states, better, worse)
    assert after > 0.97 > before
    fresh = torch.randn(400, 8)
    with torch.no_grad():
        given = head(fresh).squeeze(-1)
    assert torch.corrcoef(torch.stack([given, fresh @ direction]))[0, 1] > 0.9


def test_states_and_prompts_of_groups(student):
    task = CausalLanguage()
    rows = [
        {"prompt": "ab", "responses": ["cd", "e"], "scores": [1, 0]},
        {"prompt": "xyz", "responses": ["y", "zzz", "w"], "scores": [2, 1, 0]},
    ]
    batch = task.collate(task.preparer(student, None, groups=True)(rows), student)
    reference, method = Reference(student), RewardDistill(RewardDistill.Options())
    prompts, keys = method.prompts(batch)
    assert prompts == [[1, *student.tokenizer(r["prompt"])["input_ids"]] for r in rows] and len(set(keys)) == 2
    states = mean_states(reference, batch)
    ids = torch.tensor([[1, *student.tokenizer("xyzzzz")["input_ids"], 1]])
    own = student.module.model.base_model(ids).last_hidden_state[0, 3:-1].mean(0)
    assert torch.allclose(states[3], own, atol=1e-5), "from the prompt's last token to the response's"
    # the same sequence, had the student written it
    end = student.tokenizer.eos_token_id
    written = Answers([prompts[1]], [[*student.tokenizer("zzz")["input_ids"], end]], [True], ["zzz"])
    assert torch.allclose(mean_states(reference, written.batch(student))[0], states[3], atol=1e-5)


def test_a_head_is_at_the_optimum_of_its_loss():
    """Bradley-Terry with half the decay times the squared weights: the gradient is 0; ties are not ranked."""
    torch.manual_seed(0)
    states, better, worse = torch.randn(6, 3), torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    head = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(head.weight)
    before, after = fit(head, states, better, worse, 0.5)
    assert before == 0 and after > 0 and head.weight.grad is None
    value = bradley_terry((states @ head.weight.T)[:, 0], better, worse) + 0.25 * head.weight.square().sum()
    (slope,) = torch.autograd.grad(value, head.weight)
    assert slope.abs().max() < 1e-5 < head.weight.abs().max()


def test_a_head_is_fitted_to_the_first_rows_and_trained_no_further(student):
    rows = [{"prompt": "ab", "responses": ["cd", "e", "zz"], "scores": [1, 0, 2]}]
    batch = CausalLanguage().collate(CausalLanguage().preparer(student, None, groups=True)(rows), student)
    method = RewardDistill(RewardDistill.Options(head_width=3, head_decay=0.2))
    method.adapt(student, None)
    first, _, second = method.head
    assert (first.in_features, first.out_features, second.in_features, second.out_features) == (16, 3, 3, 1)
    with torch.no_grad():
        student.module.model.lm_head.weight.add_(1)  # the reference stays the start
    by_hand = copy.deepcopy(method.head)
    states = mean_states(method.reference, batch)
    fit(by_hand, states, torch.tensor([0, 2, 2]), torch.tensor([1, 0, 1]), 0.2)
    method.initialise(student, batch, {})
    assert torch.allclose(method.head(states), by_hand(states), atol=1e-3)
    extras = method.extras(student, None)
    assert extras == {"reward": method.head} and not any(p.requires_grad for p in method.head.parameters())
    assert method.student is method.policy is student


def test_an_answer_that_was_cut_has_the_least_reward_of_a_whole_one(student, monkeypatch):
    """And 0 where no answer of its group is whole."""
    method = RewardDistill(RewardDistill.Options(group_size=3))
    method.adapt(student, None)
    method.modules = {"reward": method.head}
    tokens = [[*student.tokenizer(text)["input_ids"], 1] for text in ("a", "bc", "def", "g", "hi", "jk")]
    answers = Answers([[1, 40]] * 6, tokens, [True, True, False, False, False, False], [""] * 6)
    with torch.no_grad():
        each = method.head(mean_states(method.reference, answers.batch(student)))[:, 0].tolist()
    found = method.rewards(answers, {"input_ids": torch.zeros(1)})
    assert found.dtype == torch.float32 and found.shape == (6,)
    assert found.tolist() == pytest.approx([each[0], each[1], min(each[:2]), 0, 0, 0], abs=1e-6)
    whole = mean_states(method.reference, answers.batch(student))
    monkeypatch.setattr(reward_distill, "BATCH", 4)
    assert torch.allclose(mean_states(method.reference, answers.batch(student)), whole, atol=1e-6)


def test_the_reward_rises_and_what_the_teacher_likes_with_it(tmp_path):
    """A teacher that likes the letter z."""
    words = ["aa", "az", "zz", "ab", "bz", "bb"]
    rows = [{"prompt": f"{c}>", "responses": words, "scores": [w.count("z") for w in words]} for c in "abcdefgh"]
    flat = [{"prompt": row["prompt"], "response": word} for row in rows for word in words]
    for name, lines in (("rows", rows), ("flat", flat)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def distilled(method, name, student, **options):
        options = {"batch_size": 8, "lr": 5e-3, "precision": "float32", "schedule": "constant", **options}
        data = {"train": [str(tmp_path / f"{name}.jsonl")]}
        recipe = {"task": "causal-lm", "method": method, "student": student, "data": data, "options": options}
        return kdhub.distill({**recipe, "evaluation": {"data": [], "cost": False}}, out=tmp_path / method)

    start = distilled("supervised", "flat", "llama:width=16,layers=1,heads=2,length=16", max_steps=100)
    run = distilled("reward-distill", "rows", f"path:{start.student_folder}", max_steps=10, max_new_tokens=6, lr=2e-3)
    rewards = [line["state"]["reward"] for line in run.metrics()]
    assert rewards[-1] > rewards[0] + 0.5

    def letters(run):
        model = CausalLanguage().load(run.student_folder)
        asked = [[1, *model.tokenizer("c>")["input_ids"]]] * 64
        return "".join(
            model.tokenizer.batch_decode(model.generate(asked, Generation(temperature=1.0, max_new_tokens=6), 0))
        )

    assert letters(run).count("z") > letters(start).count("z") + 16
