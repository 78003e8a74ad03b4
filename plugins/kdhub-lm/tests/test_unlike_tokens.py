"""uld and gold: what each token spells, which spans spell the same, the losses by hand, and a toy."""

from __future__ import annotations

import json
import math

import pytest
import torch
from kdhub_lm.log_probs import each_position
from kdhub_lm.methods.gold import Gold, followed, measures_apart, without
from kdhub_lm.methods.uld import by_rank, in_order
from kdhub_tasks.language import task
from kdhub_tasks.language.alignment import END, Alignment, spans, token_bytes
from kdhub_tasks.language.model import CausalLm
from kdhub_tasks.language.students import byte_tokenizer, llama, trained_tokenizer
from kdhub_tasks.positions import Head

import kdhub
from kdhub.data.dataset import Data
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals
from kdhub.student import BuildContext

STEPS = Progress(0, 10, 0.0)
TEXTS = ["the theory of the thing, then a naïve café – that is “nothing”", "über 12 + 34 = 46 🙂 yes", "a b  c\n\td"]


def tables(texts=TEXTS):
    return [
        Data.from_rows("t", {"train": lambda: iter([{"text": t} for t in texts])}, key={"n": str(texts)}).split("train")
    ]


@pytest.fixture(scope="module")
def tokenizers():
    return [trained_tokenizer(tables(TEXTS * 3), tokens) for tokens in (270, 330)]


def model(tokenizer, seed=0):
    made = llama("width=16,layers=1,heads=2,length=96", BuildContext(None, None, seed))
    made.module.model.resize_token_embeddings(len(tokenizer))
    return CausalLm(made.module.model, tokenizer)


# -- texts and tokens ------------------------------------------------------------------------------------------------


def test_spans_are_the_shortest_that_spell_the_same():
    assert spans([b"ab", b"c", b"d"], [b"a", b"bc", b"d"]) == [(0, 2, 0, 2), (2, 3, 2, 3)]
    assert spans([b"ab", b"c"], [b"ab", b"x"]) == [(0, 1, 0, 1)] and spans([], [b"a"]) == []
    assert spans([b"Hugging Face", END], [b"Hugging", b" Face", END]) == [(0, 1, 0, 2), (1, 2, 2, 3)]


def test_tokens_of_two_vocabularies_spell_what_is_decoded(tokenizers):
    for tokenizer in (*tokenizers, byte_tokenizer()):
        pieces = token_bytes(tokenizer)
        for text in TEXTS:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert b"".join(pieces[i] for i in ids).decode() == tokenizer.decode(ids) == text
        assert pieces[tokenizer.eos_token_id] == END and pieces[0] == b"<pad>"
    small, large = tokenizers
    mine, theirs = Alignment(small, large).shared
    assert len(small) <= 270 < len(large) <= 330 and 258 <= len(mine) <= len(small)
    for a, b in zip(small.convert_ids_to_tokens(mine.tolist()), large.convert_ids_to_tokens(theirs.tolist())):
        assert a == b


def test_vocabularies_of_pieces_are_read_and_others_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def of(vocabulary):
        backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate(vocabulary)}, "<unk>"))
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")

    assert token_bytes(of(["<unk>", "</s>", "\u2581the", "<0xE2>", "ï"])) == [
        b"<unk>",
        END,
        b" the",
        b"\xe2",
        "ï".encode(),
    ]
    with pytest.raises(CompatibilityError, match="neither of bytes nor"):
        token_bytes(of(["<unk>", "</s>", "the cat"]))


def batch_of(student, rows):
    return task.CausalLanguage().collate(task.CausalLanguage().preparer(student, None)(rows), student)


@pytest.mark.parametrize("rows", [
    [{"text": text} for text in TEXTS], [{"prompt": "the theory ", "response": text} for text in TEXTS],
])  # fmt: skip
def test_the_same_text_in_the_tokens_of_the_teacher(tokenizers, rows):
    student, teacher = map(model, tokenizers)
    batch = batch_of(student, rows)
    made = Alignment(*tokenizers).translated(batch, teacher.collate)
    theirs, found = made["theirs"], made["spans"].tolist()
    assert theirs["counts"].sum() == len(theirs["labels"]) == len(theirs["at"])
    assert theirs["labels"].tolist() == theirs["input_ids"].flatten()[theirs["at"] + 1].tolist()
    for i, j, m, n in found:
        mine, there = tokenizers[0].decode(batch["labels"][i:j]), tokenizers[1].decode(theirs["labels"][m:n])
        assert mine == there and mine
    assert found[0][0] == found[0][2] == 0 and found[-1][1] == len(batch["labels"]), "all of it is compared"
    assert all(a[1] == b[0] and a[3] == b[2] for a, b in zip(found, found[1:]))
    assert any(j - i > n - m for i, j, m, n in found), "one token of the larger vocabulary is several of the smaller"


def test_what_is_cut_or_has_nothing_before_it_is_left_out(tokenizers):
    student, teacher = map(model, tokenizers)
    batch = batch_of(student, [{"text": TEXTS[0]}])
    short = Alignment(*tokenizers, limit=7).translated(batch, teacher.collate)
    assert short["theirs"]["input_ids"].shape == (1, 7) and short["spans"][-1, 3] <= 6
    unbegun = trained_tokenizer(tables(TEXTS * 3), 330)
    unbegun.bos_token = None
    made = Alignment(tokenizers[0], unbegun).translated(batch, teacher.collate)
    assert made["theirs"]["at"][0] == 0 and made["spans"][0, 2] == 0 and made["spans"][0, 0] > 0
    half = student.collate(
        [{"ids": [1, *tokenizers[0]("a \u00e9", add_special_tokens=False)["input_ids"][:-1]], "at": [0, 1, 2]}]
    )
    sample = {**half, "counts": torch.tensor([3])}  # a sample that ends in the midst of a letter
    assert [row[1] for row in Alignment(*tokenizers).translated(sample, teacher.collate)["spans"].tolist()][-1] == 2


# -- the losses -------------------------------------------------------------------------------------------------------


def test_by_rank_by_hand():
    assert by_rank(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6, 0.4])).item() == pytest.approx(0.4)
    assert by_rank(torch.tensor([0.2, 0.8]), torch.tensor([0.8, 0.0, 0.2])).item() == pytest.approx(0.0)
    mine, theirs = in_order(torch.tensor([3, 1, 2]), torch.tensor([2, 2, 0]))
    assert mine.tolist() == [0, 1, 3] and theirs.tolist() == [0, 1, 2]


def test_merged_probabilities_by_hand():
    """The example of the peer's documentation: "HF", "is", "cool"."""
    p = torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.9, 0.05]])
    after = followed(Signals(logits=p.log()), torch.tensor([0, 1]), torch.tensor([[0, 2]]))
    assert (p[0] * after.exp()).tolist() == pytest.approx([0.54, 0.27, 0.09])
    assert followed(Signals(logits=p.log()), torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 2]])).tolist() == [0, 0]


def test_measures_apart_by_hand_and_never_below_nothing():
    q, p = torch.tensor([0.5, 0.1]), torch.tensor([0.2, 0.1])
    log = math.log
    assert measures_apart(q, p, 0.0).tolist() == pytest.approx([0.2 * log(0.4) + 0.3, 0.0], abs=1e-6)
    assert measures_apart(q, p, 1.0).tolist() == pytest.approx([0.5 * log(2.5) - 0.3, 0.0], abs=1e-6)
    by_hand = 0.5 * 0.2 * log(0.2 / 0.35) + 0.5 * 0.5 * log(0.5 / 0.35)
    assert measures_apart(q, p, 0.5).tolist() == pytest.approx([by_hand, 0.0], abs=1e-6)
    drawn = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    assert all((measures_apart(*drawn, beta) >= -1e-6).all() for beta in (0, 0.3, 1))
    assert torch.isfinite(measures_apart(torch.zeros(2), torch.tensor([0.0, 1.0]), 0.5)).all()
    assert without(torch.tensor([[1, 2, 3]]), torch.tensor([1])).tolist() == [[1, 3]]


def by_hand(options, q, p, labels, theirs, found, shared, sizes):
    """gold's value for given logits."""
    method = Gold(Gold.Options(**options))
    method.alignment = type("A", (), {"shared": shared, "theirs": range(sizes)})()
    batch = {"labels": labels, "theirs": {"labels": theirs}, "spans": torch.tensor(found)}
    return method.distance(q, p, batch)


def test_gold_by_hand():
    """The student writes "ab" as a, b; the teacher as one token, and has no b of its own."""
    q = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]])  # a, b, end
    p = torch.tensor([[0.5, 0.4, 0.1]])  # ab, a, end
    shared = torch.tensor([0, 2]), torch.tensor([1, 2])
    q_merged, log = [0.42, 0.12, 0.06], math.log  # times 0.6, the probability of b
    same = (0.4 * log(0.4 / 0.42) - 0.4 + 0.42) + (0.1 * log(0.1 / 0.06) - 0.1 + 0.06)
    others = abs(0.5 - q_merged[1])
    for share, value in ((1.0, same), (0.0, others), (None, (2 * same + others) / 3)):
        logits = q.log().requires_grad_()
        given = by_hand(
            {"beta": 0.0, "matched": share}, Signals(logits=logits), Signals(logits=p.log()), torch.tensor([0, 1]),
            torch.tensor([0]), [[0, 2, 0, 1]], shared, 3,
        )  # fmt: skip
        assert given.item() == pytest.approx(value, abs=1e-6)
        given.backward()
        assert logits.grad[1].abs().sum() > 0, "the span's later tokens learn too"


def test_values_of_a_head_have_the_gradients_of_plain_logits():
    generator = torch.Generator().manual_seed(0)
    states, weight, other = (torch.randn(*shape, generator=generator) for shape in ((5, 3), (7, 3), (5,)))
    grads = []
    for chunked in (False, True):
        own = [x.clone().requires_grad_() for x in (states, weight, other)]
        signals = Signals(head=Head(own[0], own[1])) if chunked else Signals(logits=own[0] @ own[1].T)
        values = each_position(lambda z, x: (z.softmax(-1)[:, 0] * x.exp()).log1p(), signals, own[2])
        (values * torch.arange(1.0, 6)).sum().backward()
        grads.append([x.grad for x in own])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Texts, a teacher that knows them, and its folder."""
    folder = tmp_path_factory.mktemp("toy")
    texts = [f"{a} and {b} make {a + b}." for a in range(8) for b in range(8)]
    rows = folder / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = llama(
        "width=32,layers=1,heads=2,length=32,tokens=300", BuildContext(None, None, 0, facts={"tables": tables(texts)})
    )
    network, tokens = made.module, [made.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    examples = [{"ids": [1, *ids], "at": range(len(ids))} for ids in tokens]
    batch, labels = made.collate(examples), torch.tensor([i for ids in tokens for i in ids])
    steps = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(80):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(network(batch).logits, labels).backward()
        steps.step()
    made.save(folder / "teacher")
    return rows, folder / "teacher"


@pytest.mark.parametrize(("method", "options"), [("uld", {"weight": 1.5}), ("gold", {"lmbda": 0.0})])
def test_a_student_with_other_tokens_comes_nearer_to_its_teacher(toy, tmp_path, method, options):
    rows, teacher = toy
    recipe = {
        "task": "causal-lm", "method": method, "teacher": f"path:{teacher}",
        "student": "llama:width=32,layers=1,heads=2,length=48,tokens=262", "data": {"train": [f"path:{rows}"]},
        "options": {"max_steps": 30, "batch_size": 16, "lr": 0.02, "precision": "float32", **options},
        "evaluation": {"data": [f"path:{rows}"], "metrics": ["bits-per-byte"], "cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    losses = [line["terms"]["teacher"] for line in run.metrics() if "terms" in line]
    assert losses[-1] < 0.6 * losses[0]
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "bits-per-byte"}
    assert values["teacher"] < values["student"] < 0.5 * values["student-before"]
    assert len(kdhub.load(run.folder / "student").tokenizer) == 262


def test_what_does_not_fit_is_refused(toy, tmp_path):
    rows, teacher = toy
    recipe = {
        "task": "causal-lm", "method": "uld", "teacher": f"path:{teacher}", "data": {"train": [f"path:{rows}"]},
        "student": "llama:width=32,layers=1,heads=2,length=48,tokens=100", "options": {"max_steps": 1},
    }  # fmt: skip
    with pytest.raises(UsageError, match="tokens must be at least 258"):
        kdhub.distill(recipe, out=tmp_path / "few")
    packed = {"source": "llama:width=32,layers=1,heads=2,length=48", "packing": True}
    with pytest.raises(CompatibilityError, match="uld reads each row by two tokenizers"):
        kdhub.distill({**recipe, "student": packed}, out=tmp_path / "packed")
    unlike = {**recipe, "method": "gkd", "student": "llama:width=32,layers=1,heads=2,tokens=262"}
    with pytest.raises(CompatibilityError, match="262 tokens are the same, of 262 and 280") as caught:
        kdhub.distill(unlike, out=tmp_path / "gkd")
    assert "gold" in caught.value.hint
