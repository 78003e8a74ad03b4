"""Swing distillation: the numbers of its design, what is marked private, and noise that does not average out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_logits.methods.soft_targets import Kd
from kdhub_logits.methods.swing import Swing, laplace, renormalised, temperature
from kdhub_logits.privacy import PATTERN, Ngrams, any_of, by_pattern, by_tagger, marked
from pydantic import ValidationError

from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals

NOW = Progress(0, 1, 0.0)


def batch(labels, private=None, keys=(7,), counts=None):
    made = {"labels": torch.tensor(labels), "keys": torch.tensor(keys)}
    made["counts"] = torch.tensor(counts or [len(labels)])
    if private is not None:
        made["private"] = torch.tensor(private)
    return made


def swing(**options) -> Swing:
    return Swing(Swing.Options(**options))


def near(value, expected, abs=2e-6):
    assert np.asarray(torch.as_tensor(value).tolist()) == pytest.approx(np.asarray(expected), abs=abs)


def test_targets_flatten_with_the_temperature():
    z = torch.tensor([4.0, 2.0, 0.0])
    expected = {
        1: [0.866813, 0.117310, 0.015876],
        5: [0.471776, 0.316241, 0.211983],
        20: [0.367165, 0.332225, 0.300610],
    }
    for t, p in expected.items():
        near(torch.softmax(z / t, -1), p)
    entropies = [-(q * q.log()).sum().item() for q in (torch.softmax(z / t, -1) for t in expected)]
    assert entropies == pytest.approx([0.441057, 1.047333, 1.095287], abs=2e-6)
    near(temperature(torch.tensor([0.0, 0.5, 1.0]), 1, 10), [1, 5.5, 10])
    near(temperature(torch.tensor([0.5]), 1, 10, gamma=2.0), [3.25])


def test_without_anything_private_it_is_kd_without_the_square():
    torch.manual_seed(0)
    s, z, labels = torch.randn(6, 5), torch.randn(6, 5), [0, 1, 2, 3, 4, 0]
    plain = {"noise": "none", "gate_hard": False, "t_min": 3.0, "t_max": 3.0}
    mine = swing(**plain).objective(Signals(logits=s), Signals(logits=z), batch(labels, [0.0] * 6), NOW)
    theirs = Kd(Kd.Options(temperature=3.0, alpha=0.5, scale_t2=False)).objective(
        Signals(logits=s), Signals(logits=z), batch(labels), NOW
    )
    for name in ("teacher", "labels"):
        near(mine[name], theirs[name].item(), abs=1e-6)


@pytest.mark.parametrize(
    "how, expected",
    [("matched", [-0.01198, 0.00257, 0.00470, 0.00470]), ("teacher_only", [-0.1198, 0.0257, 0.0470, 0.0470]),
     ("at 1", [-0.738, 0.243, 0.248, 0.248])],
)  # fmt: skip
def test_gradients_of_both_temperatures(how, expected):
    """Matched, and multiplied by T^2 as usual, it would be -1.198, .257, .470, .470: more than at T = 1."""
    z, s = torch.tensor([[6.0, 1.0, 0.0, 0.0]]), torch.zeros(1, 4, requires_grad=True)
    how, t_max = ("matched", 1.0) if how == "at 1" else (how, 10.0)
    method = swing(noise="none", alpha=0.0, t_max=t_max, student_temperature=how)
    sum(method.objective(Signals(logits=s), Signals(logits=z), batch([0], [1.0]), NOW).values()).backward()
    near(s.grad[0], expected, abs=6e-5 if t_max > 1 else 6e-4)
    if (how, t_max) == ("matched", 10.0):
        near(100 * s.grad[0], [-1.198, 0.257, 0.470, 0.470], abs=6e-4)


def test_a_constant_changes_nothing_and_impossible_tokens_do_no_harm():
    torch.manual_seed(0)
    z, s, rho = torch.randn(3, 5), torch.randn(3, 5), [0.0, 0.4, 1.0]

    def terms(s, z):
        return swing().objective(Signals(logits=s), Signals(logits=z), batch([0, 1, 2], rho), NOW)

    for name, value in terms(s, z + 7).items():
        near(value, terms(s, z)[name].item(), abs=1e-5)
    pad = torch.full((3, 2), -torch.inf)
    plain = {"noise": "none"}
    narrow, wide = (
        swing(**plain).objective(Signals(logits=a), Signals(logits=b), batch([0, 1, 2], rho), NOW)
        for a, b in ((s, z), (torch.cat([s, pad], -1).requires_grad_(), torch.cat([z, pad], -1)))
    )
    for name, value in wide.items():
        near(value, narrow[name].item(), abs=1e-6)
    for t in temperature(torch.tensor(rho), 1, 20):
        assert torch.equal((z / t).argmax(-1), z.argmax(-1)), "flatter, in the same order"


def test_where_the_loss_is_least():
    """With the student's own temperature the target itself, almost flat; matched, the teacher's logits."""
    z = torch.tensor([[6.0, 1.0, 0.0, 0.0]])

    def value(how, s):
        method = swing(noise="none", alpha=0.0, student_temperature=how)
        return sum(method.objective(Signals(logits=s), Signals(logits=z), batch([0], [1.0]), NOW).values()).item()

    for how, best in (("teacher_only", z / 20), ("matched", z)):
        assert value(how, best) == pytest.approx(0, abs=1e-6)
        assert value(how, best + torch.tensor([[0.5, 0, 0, 0]])) > 1e-5


def test_labels_count_less_where_a_token_is_private():
    z, s = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    terms = swing(noise="none", alpha=1.0).objective(
        Signals(logits=s), Signals(logits=z), batch([0, 0], [0.0, 1.0]), NOW
    )
    near(terms["labels"], -math.log(math.e / (math.e + 2)) / 2)
    open_ = swing(noise="none", alpha=1.0, gate_hard=False).objective(
        Signals(logits=s), Signals(logits=z), batch([0, 0], [0.0, 1.0]), NOW
    )
    assert open_["labels"] > terms["labels"]


def test_noise_belongs_to_a_text_and_a_place():
    z, rho = torch.zeros(5, 4), torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    both = batch([0] * 5, keys=(3, 9), counts=[2, 3])
    method = swing()
    first, again = method.noised(z, rho, both), method.noised(z, rho, both)
    assert torch.equal(first, again), "drawn once"
    other = method.noised(z, rho[[2, 3, 4, 0, 1]], batch([0] * 5, keys=(9, 3), counts=[3, 2]))
    assert torch.equal(other, torch.cat([first[2:], first[:2]])), "wherever the text stands in a batch"
    assert first[1].abs().mean() > 3 * first[0].abs().mean(), "more where it is private"
    assert not torch.equal(method.noised(z, rho, both, 1), method.noised(z, rho, both, 2))
    near(renormalised(torch.tensor([0.7, 0.2, 0.1]) + torch.tensor([-0.05, 0.1, -0.15])), [0.684211, 0.315789, 0.0])


def test_noise_by_hand():
    """Of each text from its own key, and the number of the draw; with a budget Laplace's, of scale 2 / eps."""
    z, rho = torch.randn(5, 4), torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0])
    both = batch([0] * 5, keys=(3, 2**63 - 1), counts=[2, 3])
    gauss, spent = swing(sigma_base=0.2, sigma_private=3.0), swing(noise="laplace_prob", eps=40.0)
    for draw in (0, 2):
        parts, p = [], []
        for key, some in ((3 + draw, slice(0, 2)), ((2**63 - 1 + draw) % 2**63, slice(2, 5))):
            drawn = torch.randn(z[some].shape, generator=torch.Generator().manual_seed(key))
            parts.append(z[some] + (0.2 + 3 * rho[some, None]) * drawn)
            p.append(laplace(z[some], 0.05, torch.Generator().manual_seed(key)))
        near(gauss.noised(z, rho, both, draw), torch.cat(parts).tolist())
        near(spent.noised(z, rho, both, draw), torch.cat(p).tolist())


def test_each_term_by_hand():
    """Four tokens, two of them without a label; noise is the first draw, or that of the step; means are over the
    step's."""
    torch.manual_seed(0)
    s, z, rho = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0.0, 0.5, 1.0, 0.25])
    given = batch([2, -1, 0, -1], rho.tolist(), keys=(5, 6), counts=[1, 3])
    whole = {"positions": 8.0, "labels": 3.0}
    for options, own in (
        ({}, 2.0), ({"student_temperature": 4.0}, 4.0), ({"noise_redraw": True}, 2.0),
        ({"student_temperature": "matched"}, (2 + 6 * rho**2)[:, None]),
    ):  # fmt: skip
        method = swing(alpha=0.3, t_min=2.0, t_max=8.0, gamma=2.0, **options)
        draw = 5 if "noise_redraw" in options else 0
        q = method.noised(z / (2 + 6 * rho**2)[:, None], rho, given, draw).softmax(-1)
        apart = (q * (q.log() - (s / own).log_softmax(-1))).sum(-1)
        right = -(s.log_softmax(-1)[[0, 2], [2, 0]] * torch.tensor([1.0, 0.0])).sum()
        for more, positions, labels in (({}, 4, 2), ({"mean_counts": whole}, 8, 3)):
            terms = method.objective(Signals(logits=s), Signals(logits=z), given | more, Progress(4, 9, 0.0))
            near(terms["teacher"], 0.7 * apart.sum().item() / positions)
            near(terms["labels"], 0.3 * right.item() / labels)
    alone = swing(alpha=0.0).objective(Signals(logits=s), Signals(logits=z), given, NOW)
    assert set(alone) == {"teacher"}


def test_who_says_what_is_private(monkeypatch):
    texts, spans = ["ab 5 Anna"], [[(0, 2), (3, 4), (5, 9)]]

    def marks(method):
        scorer = method.settings().get("private")
        return scorer and scorer(texts, spans)[0]

    assert marks(swing()) == [1, 1, 1] and marks(swing(pattern="ab")) == [1, 1, 0]
    assert swing(privacy_scorer="none").settings() == {} == swing(privacy_scorer="memorisation", public="x").settings()
    opened = []
    monkeypatch.setattr("kdhub.open_teacher", lambda *given: opened.append(given) or Names())
    for scorer, expected in (("tagger", [0, 0, 0.75]), ("combined", [1, 1, 0.75]), ("pattern", [1, 1, 0])):
        method = swing(privacy_scorer=scorer, tagger="words", pattern="ab")
        assert marks(method) == pytest.approx(expected) and method.settings() == method.settings()
    assert {(ref.source, task) for ref, task in opened} == {("words", "token-classification")}
    with_role, many = swing(privacy_scorer="tagger"), len(opened)
    with_role.teachers = {"tagger": Names()}
    assert marks(with_role) == pytest.approx([0, 0, 0.75]) and len(opened) == many
    with pytest.raises(UsageError, match="must have the role tagger"):
        swing(privacy_scorer="tagger").settings()
    with pytest.raises(UsageError, match="beyond public texts"):
        swing(privacy_scorer="memorisation").adapt(None, None)
    swing().adapt(None, None)  # combined, and nothing public


def test_laplace_keeps_a_distribution_and_shares_what_is_beyond_the_top():
    logits = torch.randn(20, 100, generator=torch.Generator().manual_seed(1))
    p = laplace(logits, 0.05, torch.Generator().manual_seed(2)).exp()
    near(p.sum(-1), [1.0] * 20, abs=1e-5)
    top = logits.topk(32, -1).indices
    rest = torch.ones(20, 100, dtype=torch.bool).scatter(1, top, False)
    assert all(len(set(row[mask].tolist())) == 1 for row, mask in zip(p, rest)), "the others share one number"
    small = laplace(torch.tensor([[1.0, 0.0]]), 1e-9, torch.Generator().manual_seed(0)).exp()
    near(small[0], torch.softmax(torch.tensor([1.0, 0.0]), -1).tolist(), abs=1e-5)


def test_laplace_by_hand():
    """Without noise the others share what is left of 1; with it each group moves by a draw of its own."""
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one_more = laplace(logits[:, :33], 1e-12, torch.Generator().manual_seed(2)).exp()
    assert torch.allclose(one_more, logits[:, :33].softmax(-1), atol=1e-6), "one shares with nobody"
    p = logits.softmax(-1)
    top, at = p.topk(32, -1)
    quiet = laplace(logits, 1e-12, torch.Generator().manual_seed(2)).exp()
    by_hand = ((1 - top.sum(-1, keepdim=True)) / 8).expand(2, 40).scatter(1, at, top)
    assert torch.allclose(quiet, by_hand, atol=1e-6)
    u = torch.rand(2, 33, generator=torch.Generator().manual_seed(2)).double() - 0.5
    moved = torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1) - 0.01 * u.sign() * (1 - 2 * u.abs()).log()
    moved = moved.clamp_min(1e-8) / moved.clamp_min(1e-8).sum(-1, keepdim=True)
    by_hand = (moved[:, 32:] / 8).expand(2, 40).scatter(1, at, moved[:, :32])
    by_hand = by_hand / by_hand.sum(-1, keepdim=True)
    assert torch.allclose(laplace(logits, 0.01, torch.Generator().manual_seed(2)).exp(), by_hand, atol=1e-6)


def test_public_texts_are_counted_as_the_students_tokens(monkeypatch):
    texts = {"train": {"text": ["ab", "b"]}}
    data = SimpleNamespace(pick=lambda split: {"train": "train"}[split], split=lambda name: texts[name])
    monkeypatch.setattr("kdhub.open_data", lambda name: {"x": data}[name])
    read = lambda given, **how: {"input_ids": [[ord(c) - 94 for c in text] for text in given]} if how == {  # noqa: E731
        "add_special_tokens": False, "verbose": False} else None  # fmt: skip
    for begin, counted in ((1, [[1, 3, 4], [1, 4]]), (None, [[3, 4], [4]])):
        tokenizer = type("T", (), {"bos_token_id": begin, "__call__": lambda self, *a, **k: read(*a, **k)})()
        student = SimpleNamespace(tokenizer=tokenizer, task="causal-lm", width=lambda kind: {"logits": (8, 9)}[kind])
        for scorer in ("memorisation", "combined"):
            method = swing(privacy_scorer=scorer, public="x")
            method.adapt(student, None)
            mine, theirs = (model.log_probabilities([1, 3, 4]) for model in (method._public, Ngrams(counted, 8)))
            assert np.array_equal(mine, theirs)
    other = swing(privacy_scorer="pattern", public="x")
    other.adapt(SimpleNamespace(), None)
    assert getattr(other, "_public", None) is None
    for task, tokens in (("text-classification", tokenizer), ("causal-lm", None)):
        with pytest.raises(CompatibilityError, match="memorisation is judged for language models"):
            method.adapt(SimpleNamespace(task=task, tokenizer=tokens), None)


def test_what_the_pattern_marks():
    text = "call 555 or anna@x.org, code a1b2c3"
    words, at = text.split(" "), 0
    spans = []
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    found = marked(text, spans, PATTERN)
    # call, 555, or, anna@x.org, code, a1b2c3: and what stands beside one
    assert found == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert marked("a b c d 5 e f", [(i, i + 1) for i in range(0, 13, 2)], PATTERN) == [0, 0, 0, 1, 1, 1, 0]


class Names:
    """A tagger that finds three of four capitalised words to be names."""

    classes, argument, members = ("O", "NAME"), "names", ()

    @property
    def reads(self):
        return self

    def encode_words(self, rows, limit=None):
        return [[0] * len(row) for row in rows], [list(range(len(row))) for row in rows]

    def signals(self, examples, kind):
        assert kind == "logits"
        odds = [[math.log(3) if word[0].isupper() else -40.0 for word in e["words"]] for e in examples]
        return {"logits": [np.array([[0.0, x] for x in row]) for row in odds]}


def test_a_tagger_marks_the_tokens_of_its_words():
    text = "hello Anna, 5 of them"
    tokens = [(0, 5), (6, 8), (8, 11), (12, 13), (14, 21)]  # a word of two tokens, a token of two words
    names = by_tagger(Names())
    assert names([text], [tokens])[0] == pytest.approx([0, 0.75, 0.75, 0, 0])
    both = any_of([names, by_pattern(r"Anna|5")])
    assert both([text, ""], [tokens, []])[0] == pytest.approx([1, 1, 1, 1, 1])
    long = " ".join(["a"] * 250 + ["Boris"])
    assert names([long], [[(500, 505), (0, 1)]])[0] == pytest.approx([0.75, 0]), "in pieces of a hundred words"
    assert names([""], [[]]) == [[]] and names(["", " a Bo"], [[], [(0, 1), (3, 5), (4, 4)]])[1] == pytest.approx(
        [0, 0.75, 0]
    )
    other = Names()
    other.classes = ("nothing", "NAME")
    with pytest.raises(CompatibilityError, match="calls what is not private O"):
        by_tagger(other)


def test_ngrams_by_hand_and_a_memory_beyond_them():
    model = Ngrams([[1, 2, 1, 2, 3]], 4, order=2, weight=2.0)
    # p_0(1) = (2 + 2/4) / (5 + 2); behind 2 comes 1 once and 3 once: p_1(3 | 2) = (1 + 2 p_0(3)) / (2 + 2)
    p0 = {1: 2.5 / 7, 2: 2.5 / 7, 3: 1.5 / 7}
    found = np.exp(model.log_probabilities([1, 2, 3]))
    assert found == pytest.approx([p0[1], (2 + 2 * p0[2]) / (2 + 2), (1 + 2 * p0[3]) / (2 + 2)])
    whole = sum(math.exp(model.log_probabilities([2, y])[1]) for y in range(4))
    assert whole == pytest.approx(1.0), "a distribution"
    method = swing(privacy_scorer="memorisation", public="x")
    method._public = model
    at = {**batch([2, 3]), **rows_of([[1, 2, 3]], [[1, 2]])}
    sure = torch.full((2, 4), -20.0)
    sure[[0, 1], [2, 3]] = 20.0
    rho = method.likelihood(sure, at)
    public = model.log_probabilities([1, 2, 3])[1:]
    near(rho, 1 / (1 + np.exp(public + 3.0)), abs=1e-5)
    assert rho[1] > rho[0], "what public texts make less likely is likelier a memory"
    unsure = torch.tensor([[1.0, 0, 2, -1], [0, 0, 1, 3]])
    known = unsure.log_softmax(-1)[[0, 1], [2, 3]].numpy()
    near(method.likelihood(unsure, at), 1 / (1 + np.exp(public + 3.0 - known)), abs=1e-6)
    both = method.likelihood(sure, {**at, "private": torch.tensor([0.5, 0.0])})
    near(both, [1 - 0.5 * (1 - rho[0].item()), rho[1].item()], abs=1e-6)


def test_ngrams_as_by_a_plain_count():
    """Of contexts of up to four tokens, those that end a text left out, with the weight of 2; many tokens are known."""
    rng, ids = np.random.default_rng(0), np.array([0, 7, 49_999])
    texts, seen = [ids[rng.integers(0, 3, n)].tolist() for n in (40, 25, 1)], ids[rng.integers(0, 3, 12)].tolist()
    for how, order, weight in (({}, 5, 2.0), ({"order": 3, "weight": 0.5}, 3, 0.5)):
        by_hand = []
        for i, y in enumerate(seen):
            p = 1 / 50_000
            for k in range(min(order, i + 1)):
                after = [t[n + k] for t in texts for n in range(len(t) - k) if t[n : n + k] == seen[i - k : i]]
                p = (after.count(y) + weight * p) / (len(after) + weight)
            by_hand.append(math.log(p))
        assert Ngrams(texts, 50_000, **how).log_probabilities(seen) == pytest.approx(by_hand)


def rows_of(ids, labelled):
    """Rows of tokens as a task pads them, with the places of those that are labels."""
    width = max(map(len, ids)) + 1
    made = [torch.tensor(row + [0] * (width - len(row))) for row in ids]
    return {
        "input_ids": torch.stack(made),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "at": torch.tensor([n * width + place - 1 for n, places in enumerate(labelled) for place in places]),
        "counts": torch.tensor([len(places) for places in labelled]),
    }


def test_memory_is_that_of_the_labels_wherever_they_stand():
    """A response behind its prompt and an assistant that speaks twice: what public texts never say is private, what
    they say again and again is not."""
    method = swing(privacy_scorer="memorisation", public="x")
    method._public = Ngrams([[1, 2, 3, 4]] * 500, 8)
    ids, labelled = [[1, 2, 3, 4, 7, 6], [1, 2, 3, 7, 1, 2]], [[4, 5], [1, 3, 5]]
    labels = [ids[n][place] for n, places in enumerate(labelled) for place in places]
    sure = torch.full((5, 8), -30.0)
    sure[range(5), labels] = 30.0
    rho = method.likelihood(sure, {**rows_of(ids, labelled), "labels": torch.tensor(labels)})
    near(rho > 0.9, [True, True, False, True, False])
    assert rho[2] < 0.1 and rho[4] < 0.1


@pytest.mark.parametrize("texts", [[], [[]], [[1]], [[1, 2, 3]], [[1, 2, 3], [1, 2, 3, 4, 5, 6]]])
def test_public_texts_may_be_shorter_than_a_context(texts):
    model = Ngrams(texts, 8)
    for seen in ([], [1], [1, 2, 3], [1, 2, 3, 4, 5, 6]):
        p = np.exp(model.log_probabilities(seen))
        assert p.shape == (len(seen),) and (p > 0).all() and (p <= 1).all()
    whole = sum(math.exp(model.log_probabilities([1, 2, 3, 4, y])[-1]) for y in range(8))
    assert whole == pytest.approx(1.0)


def test_options_that_do_not_fit():
    for wrong, words in (
        ({"t_max": 0.5}, "t_max must be at least t_min .t_min=1, t_max=0.5"),
        ({"noise": "laplace_prob"}, "eps must be set"),
    ):
        with pytest.raises(ValidationError, match=words):
            Swing.Options(**wrong)


def test_a_tagger_is_a_teacher_of_another_task_by_its_role(tmp_path, monkeypatch):
    """It stands in provenance and card beside the model that gives the logits."""
    from kdhub import open_task
    from kdhub.verbs.distill import distill

    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "home"))
    for name in ("language", "words"):
        (tmp_path / name).mkdir()
    language = open_task("causal-lm").tiny_recipe(tmp_path / "language")
    words = open_task("token-classification").tiny_recipe(tmp_path / "words")
    with pytest.raises(UsageError, match="a teacher must have the role tagger"):
        swing(privacy_scorer="tagger").settings()
    recipe = {
        **language, "task": "causal-lm", "method": "swing",
        "teacher": {"source": "roles", "teacher": language["teacher"], "tagger": words["teacher"]},
        "options": {"privacy_scorer": "tagger", "max_steps": 1, "batch_size": 8, "precision": "float32"},
        "evaluation": {"data": [], "cost": False},
    }  # fmt: skip
    run = distill(recipe, out=tmp_path / "run")
    members = run.provenance["teacher"]["members"]
    assert [(one["role"], one.get("task")) for one in members] == [
        ("teacher", None), ("tagger", "token-classification")
    ]  # fmt: skip
    assert "(tagger)" in (run.folder / "README.md").read_text()
    assert run.provenance["training"]["live_teacher_calls"] == 1, "the tagger reads rows, it is not run in training"
