"""Learning from preferences: rows, pairs, DPO and RRHF."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from kdhub_lm.data.preferences import mean_log_probs
from kdhub_lm.methods.dpo import Dpo, preference_loss
from kdhub_lm.methods.reward_distill import RewardDistill
from kdhub_lm.methods.rrhf import Rrhf, ranking_loss
from kdhub_tasks.language.groups import pairs
from kdhub_tasks.language.students import llama
from kdhub_tasks.language.task import CausalLanguage

import kdhub
from kdhub.errors import DataError
from kdhub.method import Progress
from kdhub.student import BuildContext

NOW = Progress(0, 1, 0.0)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3))


def batch_of(student, rows):
    task = CausalLanguage()
    return task.collate(task.preparer(student, None, groups=True)(rows), student)


def test_dpo_by_hand():
    now = torch.tensor([-10.0, -12.0], requires_grad=True)
    start, first, second = torch.tensor([-11.0, -11.0]), torch.tensor([0]), torch.tensor([1])
    loss = preference_loss(now, start, first, second, 0.1)
    assert loss.item() == pytest.approx(0.598139, abs=1e-6)
    loss.backward()
    slope = 0.1 / (1 + math.exp(0.2))  # beta sigmoid(-beta margin)
    assert now.grad.tolist() == pytest.approx([-slope, slope], rel=1e-5)
    assert preference_loss(start, start, first, second).item() == pytest.approx(math.log(2), abs=1e-6)
    assert preference_loss(now, start, first[:0], second[:0]).item() == 0
    assert preference_loss(now, start, first, second).item() == pytest.approx(0.598139, abs=1e-6)
    assert preference_loss(now, start, first, second, 0.1, 4).item() == pytest.approx(0.598139 / 4, abs=1e-6)


def test_rrhf_by_hand():
    values, groups = torch.tensor([-1.0, -0.5], requires_grad=True), torch.tensor([0, 0])
    loss = ranking_loss(values, groups, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == 0.5 and values.grad.tolist() == [-1.0, 1.0]
    assert ranking_loss(values, groups, torch.tensor([0.0, 1.0])).item() == 0, "in the right order already"
    assert ranking_loss(values, torch.tensor([0, 1]), torch.tensor([1.0, 0.0])).item() == 0, "of other prompts"


def test_pairs_stay_in_their_group_and_ties_are_none():
    better, worse = pairs(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([2.0, 1.0, 1.0, 5.0, 9.0]))
    assert sorted(zip(better.tolist(), worse.tolist())) == [(0, 1), (0, 2), (4, 3)]


@pytest.mark.parametrize("cls", [Dpo, Rrhf, RewardDistill])
def test_rows_are_read_as_groups_with_the_methods_settings(cls):
    method, table = cls(cls.Options()), SimpleNamespace(column_names=["prompt", "chosen", "rejected"])
    method.settings = lambda: {"max_length": 7}
    run = SimpleNamespace(rows=lambda *use, **how: SimpleNamespace(table=table, asked=(use, how)))
    assert method.rows(run).asked == (("train",), {"max_length": 7, "groups": True})


def test_both_forms_of_rows_are_one_batch(student):
    rows = [{"prompt": "ab", "chosen": "cd", "rejected": "e"}, {"prompt": "x", "chosen": "y", "rejected": "zzz"}]
    ranked = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "scores": [1, 0]} for r in rows]
    one, other = batch_of(student, rows), batch_of(student, ranked)
    assert one["groups"].tolist() == [0, 0, 1, 1] and one["scores"].tolist() == [1, 0, 1, 0]
    assert one["counts"].tolist() == [3, 2, 2, 4], "tokens and the end"
    assert all(torch.equal(one[name], other[name]) for name in one)
    task = CausalLanguage()
    (best,) = task.preparer(student, None)([{"prompt": "ab", "responses": ["no", "yes", "so"], "scores": [0, 2, 1]}])
    (plain,) = task.preparer(student, None)([{"prompt": "ab", "response": "yes"}])
    assert best == plain, "without groups a row is its best response"


def test_objectives_are_the_formulas_on_whole_sequences(student):
    """Against a plain loop over sequences, one at a time and with all logits."""
    rows = [
        {"prompt": "ab", "responses": ["cd", "e", "fgh"], "scores": [0.1, 0.5, 0.3]},
        {"prompt": "x", "responses": ["y", "zz"], "scores": [2, 1]},
    ]

    def log_probs(module, prompt, response):
        ids = [1, *student.tokenizer(prompt)["input_ids"], *student.tokenizer(response)["input_ids"], 1]
        logits = module.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        n = len(response) + 1
        return logits.gather(-1, torch.tensor(ids[1:])[:, None])[-n:, 0]

    dpo = Dpo(Dpo.Options(beta=0.5))
    dpo.adapt(student, None)
    with torch.no_grad():
        for p in student.module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = batch_of(student, rows)
    start = [[log_probs(dpo.reference.module, r["prompt"], t).sum() for t in r["responses"]] for r in rows]
    each = [[log_probs(student.module, r["prompt"], t) for t in r["responses"]] for r in rows]
    by_hand, ranked = [], []
    for r, now, before in zip(rows, each, start):
        for i, a in enumerate(r["scores"]):
            for j, b in enumerate(r["scores"]):
                if a > b:
                    margin = (now[i].sum() - before[i]) - (now[j].sum() - before[j])
                    by_hand.append(-torch.nn.functional.logsigmoid(0.5 * margin))
                    ranked.append((now[j].mean() - now[i].mean()).relu())
    found = dpo.objective(student.module(batch), {}, batch, NOW)
    assert found["preference"].item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-4)
    assert dpo.counts(batch, {}) == {"pairs": len(by_hand)}
    step = {**batch, "mean_counts": {"pairs": 2.0 * len(by_hand)}}
    halved = dpo.objective(student.module(batch), {}, step, NOW)["preference"].item()
    assert halved == pytest.approx(found["preference"].item() / 2, rel=1e-5)
    loss, expected = found["preference"], torch.stack(by_hand).mean()
    weight = student.module.model.model.layers[0].mlp.up_proj.weight
    (mine,), (theirs,) = torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight, retain_graph=True)
    assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-6)
    assert all(not p.requires_grad for p in dpo.reference.module.parameters())

    terms = Rrhf(Rrhf.Options()).objective(student.module(batch), {}, batch, NOW)
    assert terms["ranking"].item() == pytest.approx(torch.stack(ranked).sum().item() / 2, rel=1e-4)
    best = [each[0][1].sum(), each[1][0].sum()]
    assert terms["labels"].item() == pytest.approx(-sum(best).item() / 2, rel=1e-4), "eq. 4 is a sum over tokens"
    level = Rrhf(Rrhf.Options()).objective(
        student.module(batch), {}, {**batch, "scores": torch.tensor([0.5, 0.5, 0.3, 2, 1])}, NOW
    )
    equal = (each[0][0].sum() + each[0][1].sum()) / 2
    assert level["labels"].item() == pytest.approx(-(equal + best[1]).item() / 2, rel=1e-4), "of equals the mean"


def test_a_model_writes_and_a_teacher_or_the_verifier_scores(student, tmp_path):
    (tmp_path / "t").mkdir()
    student.save(tmp_path / "t")
    teacher = kdhub.open_teacher(f"path:{tmp_path}/t", "causal-lm")
    first, second = mean_log_probs(teacher, "3+5=", ["8", "77"])
    ids = torch.tensor([[1, *teacher.tokenizer("3+5=8")["input_ids"], 1]])
    logits = teacher.module.model(ids).logits[0].log_softmax(-1)
    assert first == pytest.approx((logits[4, ids[0, 5]] + logits[5, 1]).item() / 2, rel=1e-4) and second != first

    ref, names = {"source": f"path:{tmp_path / 't'}"}, {"samples": 3, "max_new_tokens": 3}
    open_ = lambda **o: kdhub.open_data("preferences:arithmetic:add", options=o).split("test")  # noqa: E731
    twice = kdhub.open_data("preferences:arithmetic:twice", options={"writer": ref, **names})
    with pytest.raises(DataError, match="30 of 30 prompts .* the same score"):
        twice.split("test")  # an untrained model is never right
    rows = open_(writer=ref, teacher=ref, **names)
    assert rows.column_names == ["prompt", "responses", "scores"]
    assert all(len(set(r["responses"])) == len(r["responses"]) == len(r["scores"]) >= 2 for r in rows)
    plain = open_()
    assert all(r["scores"] == [1.0, 0.0] and eval(r["prompt"][:-1]) == int(r["responses"][0]) for r in plain)


@pytest.mark.parametrize("row, said", [
    ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty text in 'rejected'"),
    ({"prompt": "a", "responses": ["b", "c"], "scores": [1]}, "as many scores"),
    ({"prompt": "a", "responses": ["b", "c"], "scores": [1, float("nan")]}, "NaN in 'scores'"),
])  # fmt: skip
def test_bad_rows_are_named(tmp_path, row, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=said):
        kdhub.open_data(str(path)).split("train")


def test_rows_without_preferences_are_refused(tmp_path):
    made = CausalLanguage().tiny_recipe(tmp_path)
    del made["teacher"]
    with pytest.raises(
        DataError, match="dpo learns from preferences and needs the columns prompt, chosen, rejected or prompt, resp"
    ):
        kdhub.distill({**made, "task": "causal-lm", "method": "dpo"}, out=tmp_path / "run")


def test_preference_accuracy_counts_pairs(student):
    import datasets
    from kdhub_tasks.language.metrics import preference_accuracy
    from kdhub_tasks.language.outputs import Outputs

    from kdhub.evaluation.evaluator import encoder_of

    rows = [
        {"prompt": "ab", "responses": ["cd", "e", "fgh"], "scores": [0.1, 0.5, 0.3]},
        {"prompt": "x", "responses": ["y", "zz"], "scores": [2.0, 1.0]},
        {"prompt": "x", "responses": ["y", "y"], "scores": [2.0, 1.0]},
    ]
    task = CausalLanguage()
    out = Outputs(encoder_of(student, task.preparer(student, None)), datasets.Dataset.from_list(rows))

    def mean(prompt, text):
        (example,) = task.preparer(student, None)([{"prompt": prompt, "response": text}])
        logits = torch.tensor(student.signals([example], "logits")["logits"][0]).log_softmax(-1)
        return logits.gather(-1, torch.tensor(example["labels"])[:, None]).mean()

    values = [[mean(r["prompt"], text) for text in r["responses"]] for r in rows]
    a, b, c = values[0]
    hits = [float(b > c), float(b > a), float(c > a), float(values[1][0] > values[1][1]), 0.5]
    assert preference_accuracy(out) == pytest.approx(sum(hits) / 5)
