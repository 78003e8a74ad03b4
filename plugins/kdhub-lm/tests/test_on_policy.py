"""gkd and minillm: what is sampled, what it is worth, and a toy on which both must better what the student writes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from kdhub_lm.methods import seqkd
from kdhub_lm.methods.gkd import Gkd
from kdhub_lm.methods.minillm import MiniLlm, importance, rewards_to_go
from kdhub_lm.on_policy import prompts_of, responded, response_seeds
from kdhub_tasks.language import task
from kdhub_tasks.language.model import CausalLm
from kdhub_tasks.language.students import byte_tokenizer

import kdhub
from kdhub.errors import CompatibilityError
from kdhub.method import Progress
from kdhub.rows import Signals

START, LETTERS = 1, [40, 41, 42]
STEPS = Progress(0, 10, 0.0)


class Chain(torch.nn.Module):
    """A language of three letters, each drawn by the one before it: of the teacher's table, or of one row of logits
    that the student has for all of them. It never ends by itself."""

    def __init__(self, table):
        super().__init__()
        self.letters = torch.nn.Parameter(table)
        self.config = SimpleNamespace(vocab_size=258, max_position_embeddings=64)

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
        rows = torch.full((258, 258), -40.0)
        table = self.letters.expand(4, 3)
        rows = rows.index_put((torch.tensor([[s] for s in (START, *LETTERS)]), torch.tensor([LETTERS] * 4)), table)
        logits = rows[input_ids]
        return SimpleNamespace(logits=logits, hidden_states=[logits])


def models():
    """The student at first writes what the teacher hardly ever would."""
    teacher = torch.tensor([[2.0, 0, -1], [1, 2, -2], [2, 1, -1], [-1, 0, 1]])
    return [CausalLm(Chain(table), byte_tokenizer(64)) for table in (torch.tensor([[-1.0, 0, 2]]), teacher)]


def rows(student, n=4, length=5):
    """A batch of plain texts."""
    texts = [[START, *(LETTERS[(i + j) % 3] for j in range(length - 1))] for i in range(n)]
    made = student.collate([{"ids": ids, "at": range(len(ids) - 1)} for ids in texts])
    labels = torch.tensor([i for ids in texts for i in ids[1:]])
    return {**made, "labels": labels, "counts": torch.tensor([length - 1] * n), "keys": torch.arange(n) + 7}


def distance_of_rollouts(student, teacher, length):
    """KL(q || p) of texts of so many letters, nats, exactly."""
    log_q, log_p = student.module.model.letters.log_softmax(-1), teacher.module.model.letters.log_softmax(-1)
    at, total = torch.tensor([1.0, 0, 0, 0]), 0.0  # where it stands: at the beginning
    for _ in range(length):
        total = total + at @ (log_q.exp() * (log_q - log_p)).sum(-1)
        at = torch.cat([torch.zeros(1), at @ log_q.exp().expand(4, 3)])
    return total


# -- batches -----------------------------------------------------------------------------------------------------


def test_prompts_are_what_stands_before_the_first_label():
    student, _ = models()
    made = student.collate([{"ids": [1, 5, 6, 7], "at": [2]}, {"ids": [1, 8], "at": [0]}, {"ids": [1, 9], "at": []}])
    batch = {**made, "counts": torch.tensor([1, 1, 0])}
    assert prompts_of(batch) == [[1, 5, 6], [1], [1, 9]]


def test_a_batch_of_samples():
    student, teacher = models()
    method = Gkd(Gkd.Options(lmbda=1.0, max_new_tokens=3))
    method.adapt(student, teacher)
    batch = rows(student)
    made = method.prepare_batch(batch, torch.Generator().manual_seed(0))
    assert made["counts"].tolist() == [3] * 4 and made["input_ids"].shape == (4, 4)
    assert made["input_ids"][:, 1:].flatten().tolist() == made["labels"].tolist()
    assert set(made["labels"].tolist()) <= set(LETTERS) and made["at"].tolist()[:4] == [0, 1, 2, 4]
    half = {k: v[2:] if k in ("input_ids", "attention_mask", "counts", "keys") else v[8:] for k, v in batch.items()}
    half["at"] = half["at"] - 10
    again = method.prepare_batch(half, torch.Generator().manual_seed(0))
    assert torch.equal(again["labels"], made["labels"][6:]), "a rank with half of the rows samples what one would"
    twice = {**batch, "keys": torch.full((4,), 7)}
    assert len(set(map(tuple, responded(twice, student, method.samples, 3)["labels"].view(4, 3).tolist()))) > 1


def test_data_and_samples_take_turns_by_lmbda_and_only_after_the_first_part():
    student, teacher = models()
    batch = rows(student)
    for options, low, high in (
        ({"lmbda": 0.0}, 0, 0), ({"lmbda": 1.0}, 60, 60), ({"lmbda": 0.3}, 10, 26), ({"sample_after": 0.5}, 0, 0),
    ):  # fmt: skip
        method = Gkd(Gkd.Options(max_new_tokens=1, **options))
        method.adapt(student, teacher)
        generator = torch.Generator().manual_seed(1)
        sampled = sum(method.prepare_batch(batch, generator) is not batch for _ in range(60))
        assert low <= sampled <= high
    method.stepped({}, Progress(4, 10, 0.0))
    other = Gkd(method.options)
    other.load_state(method.state())
    assert other.done == 0.5


def test_a_prompt_that_fills_the_context_gets_no_sample():
    student, _ = models()
    full = student.collate([{"ids": [1] * 64, "at": []}, {"ids": [1, 40], "at": [0]}])
    batch = {**full, "labels": torch.tensor([40]), "counts": torch.tensor([0, 1]), "keys": torch.tensor([1, 2])}
    made = responded(batch, student, Gkd(Gkd.Options(max_new_tokens=3)).samples, 0)
    assert made["counts"].tolist() == [0, 3] and made["at"].tolist() == [64, 65, 66]


def test_a_row_that_stands_twice_gets_two_responses():
    assert response_seeds([7, 8, 7, 7]) == [7, 8, 7 + 2**32, 7 + 2 * 2**32]


def test_samples_are_to_be_trained_on_and_keep_their_rows_keys():
    """What a model's own settings change at use does not apply to them."""
    student, _ = models()
    asked, batch = [], rows(student)
    student.generate = lambda prompts, *rest, **how: asked.append((rest[1:], how)) or [[40]] * len(prompts)
    made = responded(batch, student, "how", 3, "mixed")
    assert asked == [((3, [7, 8, 9, 10], "mixed"), {"trained": True})] and made["keys"].tolist() == [7, 8, 9, 10]
    student.generate = lambda prompts, *rest, **how: [[]] * len(prompts)
    same = responded(batch, student, "how", 3)
    assert same is not batch and all(same[name] is batch[name] for name in batch)


# -- losses ------------------------------------------------------------------------------------------------------


def test_gkd_is_the_mean_divergence_of_a_position():
    z, s = torch.tensor([2.0, 1, 0]), torch.tensor([1.0, 1.5, 0])  # of the specification
    batch = {"labels": torch.zeros(2, dtype=torch.long)}
    for beta, value in ((0.5, 0.059213), (0.1, 0.021423), (0.0, 0.239401), (1.0, 0.245251)):
        method = Gkd(Gkd.Options(beta=beta))
        terms = method.objective(Signals(logits=s.repeat(2, 1)), Signals(logits=z.repeat(2, 1)), batch, STEPS)
        assert terms["teacher"].item() == pytest.approx(value, abs=1e-6)
    plain = Gkd(Gkd.Options(temperature=2.0, beta=0.0, scale_t2=False), "spec")
    terms = plain.objective(Signals(logits=s[None]), Signals(logits=z[None]), {"labels": batch["labels"][:1]}, STEPS)
    assert terms["teacher"].item() == pytest.approx(0.230482 / 4, abs=1e-6) and plain.spec == "spec"
    warm = Gkd(Gkd.Options(temperature=2.0, beta=0.0))
    terms = warm.objective(Signals(logits=s[None]), Signals(logits=z[None]), {"labels": batch["labels"][:1]}, STEPS)
    assert terms["teacher"].item() == pytest.approx(0.230482, abs=1e-6)


def test_rewards_to_go_by_hand():
    r, counts = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([3, 0, 1])
    hand = {
        (1.0, False, True): [7, 6, 4, 3],
        (1.0, False, False): [6, 4, 0, 0],
        (1.0, True, True): [7 / 3, 3, 4, 3],
        (1.0, True, False): [3, 4, 0, 0],
        (0.5, False, True): [3, 4, 4, 3],
        (0.5, True, True): [3 / 1.75, 4 / 1.5, 4, 3],
        (0.5, True, False): [4 / 1.5, 4, 0, 0],
        (0.0, False, True): [1, 2, 4, 3],
    }
    assert torch.equal(rewards_to_go(r, counts), rewards_to_go(r, counts, 1.0, True, False))
    assert rewards_to_go(r[:0], counts[:0]).shape == (0,)
    for (gamma, normalised, immediate), values in hand.items():
        assert rewards_to_go(r, counts, gamma, normalised, immediate).tolist() == pytest.approx(values)


@pytest.mark.parametrize("immediate", [True, False])
def test_rewards_to_go_of_a_slow_loop(immediate):
    torch.manual_seed(0)
    counts, gamma = torch.tensor([5, 1, 9, 0, 3]), 0.9
    r, found = torch.randn(18), []
    for part in r.split(counts.tolist()):
        for t in range(len(part)):
            ahead = part[t if immediate else t + 1 :]
            weights = [gamma**n for n in range(len(ahead))]
            total = sum(w * x.item() for w, x in zip(weights, ahead))
            found.append(total / sum(weights) if weights else 0.0)
    assert rewards_to_go(r, counts, gamma, True, immediate).tolist() == pytest.approx(found, abs=1e-5)


def test_the_gradient_is_that_of_the_distance_between_whole_texts():
    """All 27 texts of three letters, each counted as often as the student writes it."""
    student, teacher = models()
    letters, length = student.module.model.letters, 3
    (exact,) = torch.autograd.grad(distance_of_rollouts(student, teacher, length), letters)
    texts = [[START, *letters_] for letters_ in itertools.product(LETTERS, repeat=length)]
    inputs = student.collate([{"ids": ids, "at": range(length)} for ids in texts])
    labels = torch.tensor([i for ids in texts for i in ids[1:]])
    method = MiniLlm(MiniLlm.Options(normalised=False, teacher_share=0.0))

    def gradient(row, **options):
        method.options = MiniLlm.Options(normalised=False, teacher_share=0.0, **options)
        some = {k: v[row : row + 1] for k, v in inputs.items() if k != "at"} | {"at": inputs["at"][:length]}
        batch = {"labels": labels[row * length :][:length], "counts": torch.tensor([length])}
        q = student.module(some)
        p = teacher.module(some).logits.detach()
        terms = method.objective(q, Signals(logits=p), batch, STEPS)
        log_q = q.logits.log_softmax(-1)[torch.arange(length), batch["labels"]].sum()
        return log_q.exp().detach() * length * torch.autograd.grad(sum(terms.values()), letters)[0]

    for options in ({}, {"immediate": True, "single_weight": 0.0}):
        found = sum(gradient(row, **options) for row in range(27))
        torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)
    lacking = sum(gradient(row, policy_weight=0.0) for row in range(27))
    assert not torch.allclose(lacking, exact, atol=1e-2), "what a letter leads to counts"


def test_importance_weights():
    log_q, log_p = torch.tensor([0.5, 0.1, 1.0]).log(), torch.tensor([0.5, 0.9, 1e-9]).log()
    assert importance(log_q, log_p, 0.2).tolist() == pytest.approx([1, 0.1 / 0.26, 1.25], abs=1e-5)
    assert importance(log_q, log_p, 0.0).tolist() == [1, 1, 1]


def test_both_terms_weigh_a_token_by_its_mixture():
    """By hand: w KL(q || p) and -w R log q of each token, mean over tokens."""
    torch.manual_seed(0)
    s, z, labels, share = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 1]), 0.5
    log_q, log_p = s.log_softmax(-1), z.log_softmax(-1)
    mine, theirs = (x.gather(-1, labels[:, None])[:, 0] for x in (log_q, log_p))
    w = mine.exp() / ((1 - share) * mine.exp() + share * theirs.exp())
    assert (w - 1).abs().min() > 0.05
    method = MiniLlm(MiniLlm.Options(teacher_share=share, gamma=0.0, normalised=False, single_weight=2.0))
    batch = {"labels": labels, "counts": torch.tensor([5])}
    terms = method.objective(Signals(logits=s), Signals(logits=z), batch, STEPS)
    apart = (log_q.exp() * (log_q - log_p)).sum(-1)
    assert terms["single"].item() == pytest.approx(2 * (w * apart).mean().item(), rel=1e-5)
    ahead = torch.cat([(theirs - mine)[1:], torch.zeros(1)])  # of gamma 0 the next token's reward alone
    assert terms["policy"].item() == pytest.approx(-(w * ahead * mine).mean().item(), rel=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
def test_later_rewards_are_a_mean_or_a_sum_as_the_option_says(normalised):
    s, z, labels = torch.zeros(3, 2), torch.tensor([[0.0, 0], [0, 1], [0, 2]]), torch.tensor([0, 0, 0])
    r = (z.log_softmax(-1) - s.log_softmax(-1))[:, 0]
    method = MiniLlm(MiniLlm.Options(teacher_share=0.0, normalised=normalised, single_weight=0.0))
    batch = {"labels": labels, "counts": torch.tensor([3])}
    found = method.objective(Signals(logits=s), Signals(logits=z), batch, STEPS)["policy"].item()
    ahead = [(r[1] + r[2]) / (2 if normalised else 1), r[2]]
    assert found == pytest.approx(float(sum(ahead)) * math.log(2) / 3, rel=1e-5)


def test_the_teachers_answers_take_the_place_of_the_data_only_where_asked(monkeypatch):
    run = SimpleNamespace(rows=lambda use, **settings: (use, settings))
    monkeypatch.setattr(seqkd, "answered_rows", lambda *given: given)
    method = Gkd(Gkd.Options())
    assert method.rows(run) == ("train", method.settings())
    method = Gkd(Gkd.Options(seq_kd=True, max_new_tokens=3))
    assert method.rows(run) == (run, method.samples, method.settings())


@pytest.mark.parametrize("cls", [Gkd, MiniLlm])
def test_what_is_sampled_comes_from_the_generator_alone(cls):
    """Which a resumed run has again; and all its numbers count."""
    student, teacher = models()
    seeds, coins, batch = [], [], rows(student)
    student.generate = lambda prompts, how, seed, *rest, **more: seeds.append(seed) or [[40]] * len(prompts)
    method = cls(cls.Options(max_new_tokens=2, **({"lmbda": 1.0} if cls is Gkd else {})))
    method.adapt(student, teacher)
    for other in (0, 1):
        torch.manual_seed(other)
        method.prepare_batch(batch, torch.Generator().manual_seed(5))
        often, generator = Gkd(Gkd.Options(lmbda=0.5)), torch.Generator().manual_seed(5)
        often.adapt(student, teacher)
        coins.append([often.prepare_batch(batch, generator) is batch for _ in range(20)])
    assert seeds[0] == seeds[len(seeds) // 2] > 2**40 and coins[0] == coins[1] and len({*coins[0]}) == 2
    shares = [MiniLlm(MiniLlm.Options(teacher_share=share)) for share in (0.0, 0.3)] if cls is MiniLlm else []
    for method in shares:
        method.adapt(student, teacher)
        student.generate = lambda prompts, how, seed, rows, mixed, **_: seeds.append(mixed) or [[40]] * len(prompts)
        method.prepare_batch(batch, torch.Generator())
        assert seeds[-1] == ((teacher, 0.3) if method.options.teacher_share else None)


def test_weighted_samples_of_the_mixture_have_the_students_mean():
    student, teacher = models()
    method = MiniLlm(MiniLlm.Options(max_new_tokens=1, teacher_share=0.5))
    method.adapt(student, teacher)
    batch = rows(student, 2000, 2)
    made = method.prepare_batch(batch, torch.Generator().manual_seed(0))
    log = [model.module(made).logits.log_softmax(-1).gather(-1, made["labels"][:, None])[:, 0] for model in models()]
    weights = importance(*log, 0.5)
    q = models()[0].module.model.letters[0].softmax(-1)
    share = [(weights * (made["labels"] == letter)).mean().item() for letter in LETTERS]
    assert share == pytest.approx(q.tolist(), abs=0.03)
    plain = [(made["labels"] == letter).float().mean().item() for letter in LETTERS]
    assert abs(plain[2] - q[2].item()) > 0.2, "the teacher's letters are among them"


# -- a toy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Gkd, {"lmbda": 1.0, "beta": 1.0, "sampling_temperature": 1.0}),
        (Gkd, {"lmbda": 1.0}),
        (MiniLlm, {"normalised": False}),
        (MiniLlm, {"gamma": 0.0, "immediate": True, "teacher_share": 0.0}),
    ],
    ids=["gkd-reverse", "gkd", "minillm", "minillm-trl"],
)
def test_what_the_student_writes_comes_nearer_to_the_teacher(cls, options):
    """The student cannot be the teacher: it has three parameters for nine. It comes within a fifth of the best."""
    student, teacher = models()
    length, letters = 4, student.module.model.letters
    method = cls(cls.Options(max_new_tokens=length, **options))
    method.adapt(student, teacher)
    best, _ = models()
    search = torch.optim.Adam(best.module.parameters(), 0.2)
    for _ in range(60):
        search.zero_grad()
        distance_of_rollouts(best, teacher, length).backward()
        search.step()
    first = distance_of_rollouts(student, teacher, length).item()
    optimiser, generator, batch = torch.optim.Adam([letters], 0.2), torch.Generator().manual_seed(0), rows(student, 24)
    for _ in range(25):
        made = method.prepare_batch(batch, generator)
        with torch.no_grad():
            given = teacher.module(made)
        optimiser.zero_grad()
        sum(method.objective(student.module(made), given, made, STEPS).values()).backward()
        optimiser.step()
    last, least = (distance_of_rollouts(model, teacher, length).item() for model in (student, best))
    assert last - least < 0.2 * (first - least), (first, last, least)


def test_methods_that_read_rows_one_by_one_refuse_packed_ones(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    student = {"source": "llama:width=16,layers=1,heads=2,length=64", "packing": True}
    with pytest.raises(CompatibilityError, match="reads the rows of a batch one by one"):
        kdhub.distill(
            {"task": "causal-lm", "method": "gkd", **made, "student": student,
             "options": {"lmbda": 1.0, "sample_after": 0.0, "max_steps": 1, "batch_size": 4}},
            out=tmp_path / "run")  # fmt: skip
