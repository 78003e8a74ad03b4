"""Several teachers: the specification's numbers, weights, and the bridge between vocabularies."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_tasks.classification import tiny
from kdhub_tasks.classification.metrics import agreement, probability_loyalty, regression_loyalty
from kdhub_tasks.classification.task import Predictions
from kdhub_tasks.masked.model import MaskedLm
from kdhub_tasks.masked.students import wordpiece
from kdhub_text.bridge import Bridge, by_word, matched, written
from kdhub_text.methods.multi_teacher import MultiTeacher, confidence, divergence
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.rows import Signals

Z1, Z2, S = (torch.tensor([row]) for row in ([2.0, 1, 0], [0.0, 1, 2], [1.0, 1, 0]))
MODES = ("avg_loss", "avg_prob", "avg_logit")


def test_modes_as_computed_by_hand():
    """Invariant 1: the mean of KLs, the KL of the mean, and their difference, which is the teachers' own."""
    loss, prob = (float(divergence(S, [Z1, Z2], [0.5, 0.5], mode, 2.0)) for mode in MODES[:2])
    assert loss == pytest.approx(0.111030, abs=1e-6)
    assert prob == pytest.approx(0.034167, abs=1e-6)
    assert loss - prob == pytest.approx(0.076863, abs=2e-6)
    even = torch.zeros(1, 3)
    assert float(divergence(even, [Z1, Z2], [0.5, 0.5], "avg_logit", 2.0)) == pytest.approx(0, abs=1e-7)


def test_mean_of_losses_and_loss_of_the_mean_have_one_gradient():
    slopes = []
    for mode in MODES:
        s = S.clone().requires_grad_()
        divergence(s, [Z1, Z2], [0.3, 0.7], mode, 2.0).sum().backward()
        slopes.append(s.grad)
    assert torch.allclose(slopes[0], slopes[1], atol=1e-6)
    assert not torch.allclose(slopes[0], slopes[2], atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_one_teacher_twice_is_that_teacher(mode):
    """Invariant 2."""
    alone = divergence(S, [Z1], [1.0], mode, 2.0)
    assert torch.allclose(divergence(S, [Z1, Z1], [0.5, 0.5], mode, 2.0), alone, atol=1e-6)
    assert torch.allclose(divergence(S, [Z1, Z2], [1.0, 0.0], mode, 2.0), alone, atol=1e-6)
    assert torch.allclose(divergence(S, [Z1], [0.25], mode, 2.0), alone / 4, atol=1e-6)  # the rest is bridged


@pytest.mark.parametrize("mode", MODES)
def test_teachers_without_weight_give_nothing(mode):
    """All weight may be that of bridged teachers."""
    for teachers in ([Z1], [Z1, Z2]):
        s = S.clone().requires_grad_()
        apart = divergence(s, teachers, [0.0] * len(teachers), mode, 2.0)
        apart.sum().backward()
        assert apart.tolist() == [0.0] and s.grad.tolist() == [[0.0] * 3]


def test_weights_are_those_of_the_ensemble_unless_set():
    class One:
        members, vocabulary = (), None

    class Both(One):
        members, weights = (One(), One()), [0.25, 0.75]

    def value(teacher, **options):
        method = MultiTeacher(MultiTeacher.Options(**options))
        method.check(None, teacher)
        given = Signals({"0/logits": Z1, "1/logits": Z2})
        batch = {"labels": torch.tensor([0])}
        return float(method.objective(Signals(logits=S), given, batch, None)["teacher"])

    own, even = value(Both()), value(Both(), weights="uniform")
    assert own == value(Both(), weights=[1.0, 3.0]) != even == value(Both(), weights=[1.0, 1.0])
    for wrong in ([1.0], [0.0, 0.0]):
        with pytest.raises(UsageError, match="for 2 teachers"):
            value(Both(), weights=wrong)


def test_confidence_is_the_inverse_of_entropy():
    sure, unsure = torch.tensor([[4.0, 0, 0]]), torch.tensor([[1.0, 0, 0]])
    entropy = [float(-(z.softmax(-1) * z.log_softmax(-1)).sum()) for z in (sure, unsure)]
    w = confidence([sure, unsure]).flatten().tolist()
    assert sum(w) == pytest.approx(1) and w[0] / w[1] == pytest.approx(entropy[1] / entropy[0], rel=1e-5)
    assert float(confidence([sure, unsure], 0.5).sum()) == pytest.approx(0.5)
    both = confidence([torch.cat([sure, unsure]), torch.cat([unsure, sure])])
    assert both[0].tolist() == pytest.approx(w) and both[1].tolist() == pytest.approx(w[::-1]), "at each position"


def test_loyalty_as_computed_by_hand():
    """Invariants 3 to 5, with logarithms to base 2 and e."""

    def of(*rows):
        return Predictions(np.log(np.clip(np.array(rows, float), 1e-30, None)), np.zeros(len(rows), int))

    p, q = of([0.75, 0.2, 0.05]), of([0.8, 0.1, 0.1])
    assert probability_loyalty(p, q) == pytest.approx(0.862286, abs=1e-6)
    assert probability_loyalty(p, q, base=np.e) == pytest.approx(0.885345, abs=1e-6)
    one, other = of([1, 0]), of([0, 1])
    assert probability_loyalty(one, one) == 1.0
    assert probability_loyalty(one, other) == pytest.approx(0, abs=1e-6)
    assert probability_loyalty(one, other, base=np.e) == pytest.approx(0.167445, abs=1e-6)
    classes = np.eye(4)
    assert agreement(of(*classes[[0, 2, 1, 3]]), of(*classes)) == 0.5
    values = [Predictions(np.array(row, float)[:, None], np.zeros(4)) for row in ([1, 2, 3, 5], [1.1, 1.9, 3.2, 4.0])]
    assert regression_loyalty(*values) == pytest.approx(0.970309, abs=1e-6)
    scaled = Predictions(3 * values[0].logits + 7, np.zeros(4))
    assert regression_loyalty(scaled, values[1]) == pytest.approx(0.970309, abs=1e-6)


def test_tokens_are_compared_where_their_characters_are_the_same():
    """ "unhappy now": one side reads un ##happy now, the other unhappy now; of two texts."""
    mine = torch.tensor([[0, 0, 0, -1], [1, 0, 2, 0], [2, 2, 7, 0], [3, 8, 11, 1]] * 2)
    theirs = torch.tensor([[0, 0, 0, -1], [1, 0, 7, 0], [2, 8, 11, 1]] * 2)
    bridge = Bridge([1, 2], [0, 2])
    student, teacher = torch.randn(8, 3), torch.randn(6, 3) + torch.tensor([9.0, 0, 0])
    value, many = bridge.divergence(student, mine, teacher, theirs, 2.0)
    assert many == 2
    by_hand = 0.0
    for i, j in ((3, 2), (7, 5)):
        p = (teacher[j, [0, 2]] / 2).softmax(-1)
        by_hand += float((p * (p.log() - (student[i, [1, 2]] / 2).log_softmax(-1))).sum())
    assert float(value) == pytest.approx(by_hand, rel=1e-5)
    unknown = torch.tensor([0.0, 9.0, 0.0]).repeat(6, 1)  # the teacher gives what both know next to nothing
    assert bridge.divergence(student, mine, unknown, theirs, 2.0) == (0.0, 0)
    a, b = by_word(student, mine, teacher, theirs)
    assert torch.allclose(a[0], student[1:3].mean(0)) and torch.allclose(b[3], teacher[5])
    assert len(a) == len(b) == 4


def test_tokens_far_into_a_text_are_compared():
    """Stored spans are int32; those of a batch are not."""
    mine = torch.tensor([[0, 0, 0, -1], [1, 0, 7, 0], [2, 2048, 2051, 1], [3, 4096, 4099, 2]])
    value, many = Bridge([0, 1], [0, 1]).divergence(torch.zeros(4, 2), mine, torch.ones(4, 2), mine.int(), 2.0)
    assert many == 3 and float(value) == pytest.approx(0, abs=1e-6)


class Of:
    """A model of tokens, without weights of its own members."""

    members = ()

    def __init__(self, vocabulary, width):
        self.vocabulary, self.tokenizer, self.wide = vocabulary, f"{vocabulary} tokens", width

    def layout(self, kind):
        return {"hidden_states": {"hidden_states": (None, 6, self.wide)}}[kind]

    def width(self, kind):
        return {"hidden_states": (3, self.wide)}[kind]


class Both(Of):
    members, weights = (Of("v", 5), Of("w", 4)), [0.25, 0.75]


class Turned(Both):
    members = Both.members[::-1]


MINE = torch.tensor([[0, 0, 0, -1], [1, 0, 2, 0], [2, 2, 7, 0], [3, 8, 11, 1]])
THEIRS = torch.tensor([[0, 0, 0, -1], [1, 0, 7, 0], [2, 8, 11, 1]])


@pytest.fixture
def bridged(monkeypatch):
    """What a student and two teachers give, of whom the second one, of more weight, has other tokens."""
    bridges = {("v tokens", "w tokens"): Bridge([1, 2], [0, 2])}
    monkeypatch.setattr(Bridge, "between", lambda a, b: bridges[a, b])
    torch.manual_seed(0)
    student = Signals(logits=torch.randn(4, 3), hidden_states=torch.randn(4, 3, 5))
    given = {"0/logits": torch.randn(4, 3), "0/hidden_states": torch.randn(4, 1, 5)}
    given |= {"1/logits": torch.randn(3, 4) + torch.tensor([9.0, 0, 9, 0]), "1/hidden_states": torch.randn(3, 1, 4)}
    return student, Signals({**given, "1/spans": THEIRS}), {"labels": torch.tensor([-1, 2, 0, -1]), "spans": MINE}


def made(teacher=None, **options):
    method, teacher = MultiTeacher(MultiTeacher.Options(**options), "spec"), teacher or Both("v", 5)
    method.needs(teacher)
    method.check(Of("v", 5), teacher)
    method.modules = method.extras(Of("v", 5), teacher)
    assert method.spec == "spec"
    return method


def cosine(a, b):
    return (1 - torch.cosine_similarity(a, b, -1)).sum().item()


def kl(s, z, tau=2.0):
    return divergence(s, [z], [1.0], "avg_loss", tau).sum().item()


def test_terms_of_teachers_with_and_without_other_tokens_by_hand(bridged):
    student, given, batch = bridged
    method = made(a_ce=3.0, a_mlm=0.5, tau=3.0)
    assert {name: tuple(one.weight.shape) for name, one in method.modules.items()} == {"width-1": (4, 5)}
    counts = {"tokens-1": 1, "words-1": 2}
    assert method.counts(batch, given) == counts
    log_q, mine = student.logits.log_softmax(-1), student.hidden_states[:, 2]
    labels = -(log_q[1, 2] + log_q[2, 0]).item()
    near = kl(student.logits, given["0/logits"], 3.0)
    far = kl(student.logits[3:, [1, 2]], given["1/logits"][2:, [0, 2]], 3.0)
    states = cosine(mine, given["0/hidden_states"][:, 0])
    own = method.modules["width-1"](mine)
    words = cosine(torch.stack([own[1:3].mean(0), own[3]]), given["1/hidden_states"][1:, 0])
    whole = {"labels": 4.0, "positions": 10.0, "tokens": 16.0, "tokens-1": 2.0, "words-1": 5.0}
    steps = {None: {"labels": 2, "positions": 4, "tokens": 4, **counts}, "step": whole}
    for of, n in steps.items():
        one = batch if of is None else {**batch, "mean_counts": whole, "attention_mask": torch.ones(1, 4)}
        terms = {name: value.item() for name, value in method.objective(student, given, one, None).items()}
        assert terms == pytest.approx({
            "labels": 0.5 * labels / n["labels"],
            "teacher": 3 * 9 * (0.25 * near / n["positions"] + 0.75 * far / n["tokens-1"]),
            "cosine": 0.25 * states / n["tokens"] + 0.75 * words / n["words-1"],
        }, rel=1e-5), of  # fmt: skip
    state = json.loads(json.dumps(method.state()))
    assert state == {"coverage-2": pytest.approx(2 / 6), "seen": {"1": [2.0, 6.0]}}
    other = made()
    assert other.state() == {}
    other.load_state(state)
    assert other.state() == state
    report, runs = SimpleNamespace(notes=[]), SimpleNamespace(evaluate=lambda one: {5: report}[one])
    assert other.evaluate(runs, 5) is report
    other.load_state({"seen": {"0": [1.0, 1.0]}})
    assert other.state()["coverage-1"] == 1.0 and other.evaluate(runs, 5) is report
    said = "teacher {} uses another vocabulary: the probabilities of {} of the training tokens were compared"
    assert report.notes == [said.format(2, "33.3%"), said.format(1, "100.0%")]
    other.load_state({})
    assert other.state() == {}
    sure = made(weights="confidence", tau=3.0).objective(student, given, batch, None)["teacher"].item()
    assert sure == pytest.approx(5 * 9 * 0.5 * (near / 4 + far), rel=1e-5), "one teacher alone has all of its weight"


def test_other_tokens_alone_or_strictly(bridged):
    student, given, batch = bridged
    strict = made(vocab_bridge="strict", a_cos=2.0)
    assert strict.modules == {} == made(a_cos=0.0).modules
    states = cosine(student.hidden_states[:, 2], given["0/hidden_states"][:, 0])
    terms = strict.objective(student, given, batch, None)
    assert terms["cosine"].item() == pytest.approx(2 * 0.25 * states / 4, rel=1e-5)
    turned = Signals({f"{'10'[int(name[0])]}{name[1:]}": value for name, value in given.items()})
    terms = made(Turned("v", 5), vocab_bridge="strict", a_cos=2.0).objective(student, turned, batch, None)
    assert terms["cosine"].item() == pytest.approx(2 * 0.75 * states / 4, rel=1e-5)
    alone = Of("w", 4)
    only = {name.partition("/")[2]: value for name, value in given.items() if name.startswith("1/")}
    terms = made(alone, vocab_bridge="strict").objective(student, Signals(only), batch, None)
    far = kl(student.logits[3:, [1, 2]], given["1/logits"][2:, [0, 2]])
    assert terms["teacher"].item() == pytest.approx(5 * 4 * far, rel=1e-5) and terms["cosine"].item() == 0
    unlike = {**only, "logits": torch.tensor([0.0, 9, 0, 0]).repeat(3, 1)}  # next to nothing on what both know
    terms = made(alone, a_cos=0).objective(student, Signals(unlike), batch, None)
    assert terms["teacher"].item() == 0 and set(terms) == {"labels", "teacher"}
    method, spans = made(alone), MINE.clone()
    spans[3, 3] = -1  # one word is left
    own = method.modules["width-0"](student.hidden_states[1:3, 2]).mean(0, keepdim=True)
    terms = method.objective(student, Signals(only), {**batch, "spans": spans}, None)
    assert terms["cosine"].item() == pytest.approx(cosine(own, only["hidden_states"][1:2, 0]), rel=1e-5)
    with pytest.raises(UsageError, match="as teacher 2 and the student use different vocabularies"):
        made(positions="masked")


def test_what_teachers_are_asked_for(bridged):
    method = MultiTeacher(MultiTeacher.Options())
    assert method.settings() == {"mlm_prob": 0.15, "whole": True, "bridge": True}
    assert method.needs(Both("v", 5)) == ("each:logits", "each:hidden_states:last", "each:spans")
    assert method.needs(Of("v", 5)) == ("logits", "hidden_states:6", "spans")
    assert method.needs(Of(None, 5)) == ("logits",) == method.needs(SimpleNamespace(members=())), "classes"
    other = MultiTeacher(MultiTeacher.Options(positions="masked", a_cos=0.5, vocab_bridge="off", mlm_prob=0.3))
    assert other.settings() == {"mlm_prob": 0.3, "whole": False, "bridge": False}
    assert other.needs(Of("v", 5)) == ("logits", "hidden_states:6") == other.needs(Of(None, 5))
    assert MultiTeacher(MultiTeacher.Options(a_cos=0)).needs(Of("v", 5)) == ("logits", "spans")


class Two(Both):
    members = (Of(None, 5), Of(None, 5))


def test_values_by_hand():
    s, z1, z2 = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [0.0]]), torch.tensor([[4.0], [3.0]])
    given, batch = Signals({"0/logits": z1, "1/logits": z2}), {"labels": torch.tensor([math.nan, 5.0])}
    terms = made(Two(None, 5)).objective(Signals(logits=s), given, batch, None)
    assert terms["labels"].item() == pytest.approx(2 * 9) and set(terms) == {"labels", "teacher"}
    assert terms["teacher"].item() == pytest.approx(5 * ((1 - 3.5) ** 2 + (2 - 2.25) ** 2) / 2)


@pytest.mark.parametrize("mode", MODES)
def test_sure_teachers_by_hand(mode):
    """Weights of their own at each of two positions, in each mode."""
    z1, z2, s = torch.cat([Z1, 3 * Z2]), torch.cat([2 * Z2, Z1]), torch.cat([S, -S])
    given, batch = Signals({"0/logits": z1, "1/logits": z2}), {"labels": torch.tensor([0, 1])}
    terms = made(Two(None, 5), weights="confidence", mode=mode).objective(Signals(logits=s), given, batch, None)
    w, (p1, p2) = confidence([z1, z2]).unsqueeze(-1), ((z / 2).softmax(-1) for z in (z1, z2))
    mixed = {"avg_prob": w[0] * p1 + w[1] * p2, "avg_logit": ((w[0] * z1 + w[1] * z2) / 2).softmax(-1)}
    apart = [(p * (p.log() - (s / 2).log_softmax(-1))).sum(-1, keepdim=True) for p in (p1, p2, mixed.get(mode, p1))]
    each = w[0] * apart[0] + w[1] * apart[1] if mode == "avg_loss" else apart[2]
    assert terms["teacher"].item() == pytest.approx(5 * 4 * each.sum().item() / 2, rel=1e-5)


def test_nothing_in_common_matches_nothing():
    assert [len(x) for x in matched(torch.tensor([1, 2]), torch.tensor([-1, 5]))] == [0, 0]
    assert [len(x) for x in matched(torch.tensor([1, -1]), torch.tensor([], dtype=torch.long))] == [0, 0]


def test_vocabularies_meet_in_what_tokens_stand_for():
    texts = ["good film great meal"] * 20
    whole, pieces = wordpiece(texts, 60, True, 32), wordpiece(texts, 22, True, 32)
    assert written(whole)[True, "film"] == whole.get_vocab()["film"]
    assert (False, "i") in written(pieces) and (True, "[MASK]") not in written(pieces)
    bridge = Bridge.between(whole, pieces)
    names = whole.convert_ids_to_tokens(bridge.mine.tolist())
    assert names == pieces.convert_ids_to_tokens(bridge.theirs.tolist()) and "f" in names
    with pytest.raises(CompatibilityError, match="no token in common"):
        Bridge.between(whole, wordpiece(["123 456"] * 9, 40, True, 32))


def test_marks_of_words_are_those_of_the_kind_of_tokenizer():
    """Headings and Maltese are letters of other vocabularies."""
    texts = ["good film ## ##ab caf\u00e9 \u0120awra"] * 20
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    bytewise.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    )
    of_pieces = {
        piece: n for n, piece in enumerate(["<unk>", "\u2581good", "\u2581film", "\u2581##", "##", "\u0120", "a"])
    }
    pieces = Tokenizer(models.Unigram([(piece, -1.0) for piece in of_pieces], 0))
    bpe, unigram = (PreTrainedTokenizerFast(tokenizer_object=one) for one in (bytewise, pieces))
    found, numbers = written(bpe), bpe.get_vocab()
    assert found[True, "film"] == numbers["\u0120film"] and found[False, "##"] == numbers["##"]
    assert found[True, "caf\u00e9"] == numbers["\u0120caf\u00c3\u00a9"]
    assert not any("\ufffd" in letters for _, letters in found)  # a half of one letter is not a half of another
    assert {(True, "good"), (True, "##"), (False, "##"), (False, "\u0120")} <= written(unigram).keys()
    words = Tokenizer(models.WordLevel({"good": 0, "film": 1, "?": 2}, "?"))
    assert written(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")) == {
        (True, "good"): 0,
        (True, "film"): 1,
    }
    bridge = Bridge.between(bpe, unigram)
    assert bridge.theirs[(bridge.mine == numbers["\u0120good"])].tolist() == [of_pieces["\u2581good"]]


@pytest.fixture
def masked(home, tmp_path):
    """A recipe with two teachers of different vocabularies, and the folder of each."""
    made = tiny.masked_recipe(tmp_path)
    texts = [row["text"] for row in tiny.rows(200)]
    folder = tmp_path / "pieces"
    folder.mkdir()
    tokenizer = wordpiece(texts, 90, True, 64)
    first = MaskedLm.load(tmp_path / "teacher")
    torch.manual_seed(5)
    first.module.model.config.vocab_size = len(tokenizer)
    other = MaskedLm(type(first.module.model)(first.module.model.config), tokenizer)
    with torch.no_grad():  # it thinks of whole words
        other.module.model.cls.predictions.bias[Bridge.between(first.tokenizer, tokenizer).theirs] += 9
    other.save(folder)
    one, two = made.pop("teacher"), {"source": f"path:{folder}"}
    return {**made, "task": "fill-mask", "method": "multi-teacher", "student": "layers:1"}, one, two


def run(recipe, teacher, out, **options):
    options = {"epochs": 2.0, "batch_size": 16, "precision": "float32", **options}
    return kdhub.distill(recipe={**recipe, "teacher": teacher, "options": options}, out=out)


def test_teachers_with_other_tokens(masked, tmp_path):
    recipe, one, two = masked
    both = {"source": "ensemble", "members": [one, two]}
    done = run(recipe, both, tmp_path / "both", lr=3e-3)
    records = [r for r in done.metrics() if "terms" in r]
    assert records[-1]["terms"]["teacher"] < records[0]["terms"]["teacher"]
    assert 0 < records[-1]["state"]["coverage-2"] < 1
    assert any("teacher 2 uses another vocabulary" in note for note in done.report["notes"])
    asked = done.provenance["signals"]
    assert {f"each:{kind} of teacher {n}" for kind in ("logits", "hidden_states:last", "spans") for n in (1, 2)} <= set(
        asked
    )
    alone = run(recipe, one, tmp_path / "alone")  # what it gave beside the other is found
    assert alone.provenance["signals"]["logits"]["computed"] == 0
    with pytest.raises(CompatibilityError, match="different vocabularies"):
        run(recipe, both, tmp_path / "off", vocab_bridge="off")


def test_one_teacher_twice_teaches_the_same(masked, tmp_path):
    recipe, one, _ = masked
    once = run(recipe, one, tmp_path / "once")
    twice = run(recipe, {"source": "ensemble", "members": [one, one]}, tmp_path / "twice")
    a, b = ([r["loss"] for r in done.metrics() if "terms" in r] for done in (once, twice))
    assert a == pytest.approx(b, rel=1e-4)
    with pytest.raises(UsageError, match="for 1 teachers"):
        run(recipe, one, tmp_path / "wrong", weights=[0.5, 0.5])


def test_a_link_with_another_key_is_the_recipe_that_was_written_out():
    """The teachers of the shipped recipe: `masked-pieces` is `masked-words` with a smaller vocabulary."""
    from kdhub.recipes.chain import resolve_recipe, resolved, unmade
    from kdhub.recipes.resolve import Resolver

    resolver = Resolver()
    first, second = unmade(resolve_recipe("multi-teacher", resolver=resolver), resolver)
    assert (first, second) == ("recipe:masked-words", 'recipe:masked-words?{"student.vocabulary":60}')
    link, written = (resolved(s, resolver).to_dict() for s in (second, "recipe:masked-pieces"))
    assert {k: v for k, v in link.items() if k not in ("name", "summary")} == {
        k: v for k, v in written.items() if k not in ("name", "summary")
    }


def test_a_start_of_another_task_in_a_shipped_recipe():
    from kdhub.recipes.chain import resolve_recipe, resolved
    from kdhub.recipes.resolve import Resolver

    resolver = Resolver()
    recipe = resolve_recipe("scenes-two-layers", resolver=resolver)
    start = resolved(recipe.student.source, resolver)
    assert (recipe.task, start.task, start.data["train"][0].sample) == ("text-pairs", "text-embedding", 4000)
