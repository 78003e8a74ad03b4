"""Features, sets of features, orders of classes, graphs of tokens, and mixed inputs: the specifications' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdhub_logits.methods.mixkd import MixKd, draw, mix, mixed_loss
from kdhub_logits.methods.self_distillation import SelfDistillation
from kdhub_logits.methods.similarity import Feature, Rank, median_distance, mmd2, rank_loss
from kdhub_logits.methods.trg import Trg, context, global_loss, graph, inner_loss, local_loss, same_grid
from kdhub_logits.wrappers import TwoHeads, rescaled
from kdhub_tasks.classification import networks, tiny
from kdhub_tasks.classification.arrays import ImageClassification
from kdhub_tasks.classification.model import TokenClassifier
from kdhub_tasks.classification.task import TextClassification
from kdhub_tasks.distances import attention_distance, feature_distance, layer_pairs
from kdhub_tasks.signals import LAYERED
from kdhub_tasks.transformer import TextClassifier
from pydantic import ValidationError

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals

Z, S = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.5, 0.0]])
HS, HT = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])


def near(value, expected, abs=2e-6):
    got = value.tolist() if isinstance(value, torch.Tensor) else value
    assert np.asarray(got) == pytest.approx(np.asarray(expected), abs=abs)


# -- features, orders -----------------------------------------------------------------------------------------


def test_feature_distances_of_the_specification():
    near(feature_distance(HS, HT).mean(), 1.25)
    near(feature_distance(HS, HT, "cosine"), [0.552786, 0.292893])
    near(feature_distance(HS, HT, "l1"), [1.0, 0.5])


def test_attention_maps_by_hand():
    """Two queries of two keys; one is attended as in the teacher. KL: (.75 ln 1.5 + .25 ln .5) / 2."""
    teacher, student = (torch.tensor(x).reshape(-1, 1) for x in ([0.5, 0.5, 0.75, 0.25], [0.5, 0.5, 0.5, 0.5]))
    near(attention_distance(student, teacher), 2 * 0.0625 / 4)
    near(attention_distance(student, teacher, "l1"), 2 * 0.25 / 4)
    near(attention_distance(student, teacher, "kl"), 0.065406)
    near(attention_distance(teacher, teacher, "kl"), 0.0)
    near(attention_distance(student.repeat(1, 3), teacher.repeat(1, 3), "kl"), 0.065406)
    near(attention_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), "kl"), 0.0)


def test_which_layers_are_compared():
    assert layer_pairs(2, 6) == [(1, 3), (2, 6)] and layer_pairs(3, 3) == [(1, 1), (2, 2), (3, 3)]
    assert layer_pairs(4, 6)[-1] == (4, 6) and layer_pairs(2, 1) == [(1, 1), (2, 1)]
    assert layer_pairs(2, 6, "last") == [(2, 6)] and layer_pairs(2, 6, (1, 4)) == [(1, 1), (2, 4)]
    for wrong in ((1,), (1, 7)):
        with pytest.raises(UsageError, match="2 layers, the teacher 6"):
            layer_pairs(2, 6, wrong)
    for options in ({"of": "attentions", "distance": "cosine"}, {"distance": "kl"}):
        with pytest.raises(ValidationError, match="distance must be one of"):
            Feature.Options(**options)


def test_layers_of_a_vision_transformer():
    """By PyTorch's own stack of layers, and one layer's attention by hand."""
    torch.manual_seed(0)
    net = networks.Vit([8, 8], 3, patch=4, width=8, layers=2, heads=2).eval()
    given = net({"x": torch.rand(5, 8, 8)})
    states, maps = given["hidden_states"], given["attentions"]
    assert states.shape == (5, 4, 2, 8) and maps.shape == (5, 16, 2) and "attentions" in given
    near(maps.reshape(5, 4, 4, 2).sum(2), np.ones((5, 4, 2)), abs=1e-5)
    torch.testing.assert_close(net.norm(states[:, :, -1]), given["tokens"])
    second = net.layers.layers[1]
    torch.testing.assert_close(second(states[:, :, 0]), states[:, :, 1])
    x = second.norm1(states[:, :, 0])
    q, k, _ = (x @ second.self_attn.in_proj_weight.T + second.self_attn.in_proj_bias).chunk(3, -1)
    heads = [torch.softmax(q[..., h] @ k[..., h].transpose(1, 2) / 2, -1) for h in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(maps[..., 1].reshape(5, 4, 4), sum(heads) / 2)
    maps.square().sum().backward()
    assert net.patches.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("of", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_layers_of_a_text_model_leave_padding_out(tmp_path, of):
    kind = TextClassifier if of.endswith("SequenceClassification") else TokenClassifier
    model = kind.load(tiny.text_classifier(tmp_path, of=of))
    words = [["a", "film"], ["a", "very", "great", "plot"]]
    examples = [{"text": " ".join(row), "words": row, "labels": [-1] * len(row)} for row in words]
    states, maps = (model.signals(examples, name)[name] for name in LAYERED)
    seen = [4, 6] if kind is TextClassifier else [2, 4]  # with [CLS] and [SEP], or the words alone
    assert [x.shape for x in states] == [(n, 2, 16) for n in seen] and [x.shape for x in maps] == [(16, 2), (36, 2)]
    alone = model.signals(examples[:1], "attentions")["attentions"][0]
    near(alone, maps[0], abs=1e-5)
    near(maps[1].reshape(6, 6, 2).sum(1), np.ones((6, 2)), abs=1e-5)
    own = model.module.model(**model.tokenizer(" ".join(words[0]), return_tensors="pt"), output_hidden_states=True)
    at = slice(None) if kind is TextClassifier else slice(1, 3)
    near(states[0][:, 1], own.hidden_states[2][0, at].detach(), abs=1e-5)


@pytest.mark.parametrize(
    ("of", "options", "layers"),
    [
        ("hidden_states", {}, "2"),
        ("hidden_states", {"layer_map": "last", "distance": "cosine"}, "2"),
        ("attentions", {"distance": "kl", "layer_map": [1]}, "1"),
    ],
)
def test_a_student_comes_near_its_teacher_layer_by_layer(tmp_path, of, options, layers):
    """One layer to two, of texts of many lengths; from the store, with the layers that are compared and no other."""
    recipe = {**tiny.text_recipe(tmp_path), "task": "text-classification", "method": "feature"}
    options = {"of": of, "alpha": 1.0, "lr": 1e-2, "epochs": 15, "precision": "float32", **options}
    run = kdhub.distill({**recipe, "options": options}, out=tmp_path / "run")
    assert run.provenance["signals"][f"{of}:{layers}"]["computed"] == 64
    losses = [line["loss"] for line in run.metrics()]
    assert losses[-1] < 0.75 * losses[0]


def test_layers_that_cannot_be_compared(tmp_path):
    method = Feature(Feature.Options(of="attentions"))
    method.pairs = [(1, 1)]
    with pytest.raises(CompatibilityError, match="positions differ"):
        method.apart(*(Signals(attentions=torch.ones(n, 1)) for n in (9, 16)), {})
    with pytest.raises(CompatibilityError, match="the student gives logits, features, not attentions"):
        kdhub.distill(
            {**ImageClassification().tiny_recipe(tmp_path), "task": "image-classification", "method": "feature"},
            set={"options.of": "attentions"}, out=tmp_path / "run",
        )  # fmt: skip


def texts(lengths, seed):
    """A batch of texts of these lengths, some without a label, and all signals of some model: (signals, batch)."""
    draw, n = torch.Generator().manual_seed(seed), len(lengths)
    maps = [torch.softmax(torch.randn(2, n, n, generator=draw), -1).flatten(1).T for n in lengths]
    signals = Signals(
        logits=torch.randn(n, 5, generator=draw).round(),  # some classes are equally probable
        features=torch.randn(n, 3, generator=draw),
        hidden_states=torch.randn(sum(lengths), 2, 3, generator=draw),
        attentions=torch.cat(maps),
    )
    labels, mask = torch.randint(-1, 2, (n,), generator=draw), torch.arange(9) < torch.tensor(lengths)[:, None]
    targets = torch.eye(5)[labels] * (labels >= 0)[:, None]
    return signals, {"labels": labels, "attention_mask": mask.long(), "targets": targets}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Feature, {}),
        (Feature, {"of": "hidden_states", "distance": "cosine"}),
        (Feature, {"of": "attentions"}),
        (Feature, {"of": "attentions", "distance": "kl"}),
        (Rank, {"rank_k": 4}),
        (Rank, {"form": "logistic"}),
        (MixKd, {"mode": "none"}),
        (MixKd, {"mode": "none", "temperature": 2.0}),
        (SelfDistillation, {"backend": "nn", "alpha": 0.5, "reg_coef": 0.0}),
    ],
)
def test_the_mean_of_a_step_does_not_depend_on_how_it_is_cut(cls, options):
    """Four batches of unequal texts, each divided by what a batch has on average, are one batch of all."""
    method, same = cls(cls.Options(**options)), torch.nn.Identity()
    method.pairs, method.modules = [(1, 1), (2, 2)], {"projector": same}
    if options.get("of") == "hidden_states":
        method.modules = {"projector": [same, same]}

    def terms(student, teacher, batch):
        return {k: v.item() for k, v in method.objective(student, teacher, batch, Progress(0, 1, 0.0)).items()}

    lengths = [(2, 7), (1, 4), (9, 3), (5, 5)]
    parts = [(*texts(n, i), texts(n, 9 + i)[0]) for i, n in enumerate(lengths)]
    counts = [TextClassification.counts(None, b) | method.counts(b, t) for _, b, t in parts]
    mean = {name: sum(c[name] for c in counts) / 4 for name in counts[0]}
    cut = [terms(s, t, b | {"mean_counts": mean}) for s, b, t in parts]
    student, batch, teacher = ({n: torch.cat([one[n] for one in all_]) for n in all_[0]} for all_ in zip(*parts))
    whole = terms(Signals(student), Signals(teacher), batch)
    assert {name: sum(one[name] for one in cut) / 4 for name in whole} == pytest.approx(whole, rel=1e-5)


def test_mmd_of_the_specification_and_zero_only_for_equal_sets():
    near(mmd2(HS, HT, [1.0]), 0.629067)
    near(mmd2(HS, HS.flip(0), [1.0, 2.0]), 0.0)
    far = mmd2(HS, HS + 100, [median_distance(HS, HS + 100)])
    assert 0.5 < far < 2.0, "the median keeps sets that are far apart in reach of the kernel"


def test_mmd_has_a_gradient_where_points_coincide():
    x = HS.clone().requires_grad_(True)
    mmd2(x, HT, [median_distance(x, HT)]).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_rank_losses_of_the_specification():
    near(rank_loss(S, Z), 0.333742)
    near(rank_loss(S, Z, form="logistic"), 0.496251)
    near(rank_loss(Z, Z), 0.0)
    near(rank_loss(S, Z, k=2), 0.420513 + 0.215048)  # only the pair of the teacher's two best: (p0-p1) - (q0-q1)
    near(rank_loss(torch.cat([S, Z]), torch.cat([Z, Z])), 0.333742 / 2)  # all rows' pairs weigh alike


@pytest.mark.parametrize("loss", ["hinge", "mse", "l1", "cosine", "mmd"])
def test_likeness_is_zero_with_zero_gradient_at_the_teacher(loss):
    torch.manual_seed(0)
    t = torch.randn(6, 4, dtype=torch.float64)
    s = t.clone().requires_grad_()
    value = {
        "hinge": lambda: rank_loss(s, t),
        "mmd": lambda: mmd2(s, t, [1.0, 2.0]),
    }.get(loss, lambda: feature_distance(s, t, loss).mean())()
    value.backward()
    assert abs(value.item()) < 1e-9 and (loss in ("hinge", "l1") or s.grad.abs().max() < 1e-9)


@pytest.mark.parametrize("form", ["hinge", "logistic"])
@pytest.mark.parametrize("hard", ["plain", "float16", "bfloat16", "impossible", "huge"])
def test_rank_equals_a_slow_loop(form, hard):
    generator = torch.Generator().manual_seed(5)
    s, t = (3 * torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    if hard in ("float16", "bfloat16"):
        s, t = (x.to(getattr(torch, hard)) for x in (s, t))
    elif hard == "impossible":
        s[:, 5:], t[:, 5:] = -torch.inf, -torch.inf
    elif hard == "huge":
        s, t = 1e4 * s, 1e4 * t
    total, pairs, k = 0.0, 0, 7 if hard == "huge" else 6  # which of many zeros are the sixth best is nobody's business
    for a, b in zip(s.double(), t.double()):
        p, q = torch.softmax(b, -1).tolist(), torch.softmax(a, -1).tolist()
        best = sorted(range(7), key=lambda i: -p[i])[:k]
        for i in best:
            for j in best:
                # in float32, as probabilities are compared there
                if np.float32(p[i]) > np.float32(p[j]):
                    pairs += 1
                    if form == "hinge":
                        total += max(0.0, (p[i] - p[j]) - (q[i] - q[j]))
                    else:
                        total += np.logaddexp(0, float(a[j] - a[i]))
    student = s.clone().requires_grad_()
    value = rank_loss(student, t, k=k, form=form)
    assert value.item() == pytest.approx(total / pairs, rel=1e-5, abs=1e-6)
    near(rank_loss(s + 7, t - 3, k=k, form=form), value.item(), abs=0.05 if hard == "bfloat16" else 5e-3)
    value.backward()
    assert torch.isfinite(student.grad).all()


# -- TRG ------------------------------------------------------------------------------------------------------

TT = torch.tensor([[0.0, 0.0], [1, 0], [0, 2], [3, 3]])


def test_the_graph_of_the_specification():
    near(graph(TT, 2, 1.0), [
        [0, 0.606531, 0.135335, 0], [0.606531, 0, 0.082085, 0.001503], [0.135335, 0.082085, 0, 0.006738], [0, 0, 0, 0]
    ])  # fmt: skip
    near(torch.exp(torch.tensor(-5.0 / (2 * 5.375))), graph(TT, 2, "auto")[1, 2])
    ts = torch.tensor([[0.0, 0.0], [2, 0], [0, 1], [3, 3]])
    near(graph(ts, 2, 1.0)[0, 1:3], [0.135335, 0.606531])
    for direction in ("student_teacher", "teacher_student"):  # this pair is symmetric
        near(local_loss(ts, TT, 2, 1.0, direction), 0.113688 / 4)
    skewed = torch.tensor([[0.0, 0.0], [2, 0], [0, 1], [3, 1]])
    near(local_loss(skewed, TT, 2, 1.0), 0.156724 / 4)
    near(local_loss(skewed, TT, 2, 1.0, "teacher_student"), 0.155188 / 4)


def test_the_contrast_of_the_specification():
    s, t = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[1.0, 0], [0, 1], [-1, 1]])
    near(global_loss(s, t, 1.0), [0.437783, 0.748573, 1.620621])
    for value, expected in ((global_loss(s, t, 1.0), 2.806978), (global_loss(s, t, 0.5), 2.903489)):
        near(value.sum(), expected)
    near(global_loss(t, t, 0.1).sum(), 0.104237)
    near(global_loss(s * torch.tensor([[2.0], [0.1], [7.0]]), t, 1.0).sum(), 2.806978)


def test_the_context_of_the_specification():
    f, g = torch.tensor([[[1.0, 0], [0, 1]]]), torch.tensor([[[2.0, 0], [0, 1]]])
    near(context(f)[0], [[0.669762, 0.330238], [0.330238, 0.669762]])
    near(context(g)[0, 0], [0.944193, 0.055807])
    near(inner_loss(g, f), 0.037656)
    near(inner_loss(f, f), 0.0)


def test_contexts_are_scaled_by_their_own_width():
    """Three tokens of two numbers and of five: not by how many tokens there are."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, width, generator=generator, dtype=torch.float64) for width in (2, 5))
    by_hand = []
    for tokens in (one, other):
        like = np.einsum("bnd,bmd->bnm", tokens, tokens) / math.sqrt(tokens.shape[-1])
        by_hand.append(np.exp(like) / np.exp(like).sum(-1, keepdims=True))
        near(context(tokens), by_hand[-1], abs=1e-12)
    near(inner_loss(one, other), np.square(by_hand[0] - by_hand[1]).mean(), abs=1e-12)


@pytest.mark.parametrize(("schedule", "half_way"), [("linear", 0.55), ("cosine", 0.55)])
def test_the_temperature_of_the_contrast_falls(schedule, half_way):
    """From 1 to 0.1 over the steps: by a straight line, or slowly at first."""
    method = Trg(Trg.Options(global_schedule=schedule, tokens=32))
    method.modules = method.extras(Grid(4), Grid(4))
    torch.manual_seed(0)
    logits, student, teacher = torch.zeros(8, 2), torch.randn(8, 4, 3), torch.randn(8, 4, 3)
    batch = {"labels": torch.zeros(8, dtype=torch.long), "chosen": torch.arange(32)}
    projected = method.modules["projection"](student.flatten(0, 1))
    quarter = {"linear": 0.775, "cosine": 1 - 0.9 * (1 - math.cos(math.pi / 4)) / 2}[schedule]
    for step, t in ((0, 1.0), (25, quarter), (50, half_way), (100, 0.1)):
        given = Signals(logits=logits, tokens=student), Signals(logits=logits, tokens=teacher)
        value = method.objective(*given, batch, Progress(step, 100, 0.0))["global"]
        near(value, global_loss(projected, teacher.flatten(0, 1), t).mean().item())


def test_the_graph_ignores_where_tokens_lie_and_how_they_are_numbered():
    torch.manual_seed(0)
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    value = local_loss(x, y, 4)
    near(local_loss(3 * x @ turn + 1.5, y, 4), value.item(), abs=1e-9)  # auto sigma: scaling too
    order = torch.randperm(20)
    near(local_loss(x[order], y[order], 4), value.item(), abs=1e-9)
    near(local_loss(x, x, 4), 0.0)


def test_tokens_of_different_grids_meet():
    fine, coarse = torch.arange(16.0).reshape(1, 16, 1), torch.zeros(1, 4, 3)
    a, b = same_grid(fine, coarse)
    near(a.flatten(), [2.5, 4.5, 10.5, 12.5])
    a, _ = same_grid(torch.cat([fine, 10 * fine], -1), coarse)
    near(a[0], [[2.5, 25], [4.5, 45], [10.5, 105], [12.5, 125]])
    assert b.shape == (1, 4, 3)
    a, _ = same_grid(fine, fine, patch=2)
    near(a[0, 0], [0, 1, 4, 5])


class Grid:
    """A student or a teacher of so many tokens."""

    def __init__(self, tokens: int, width: int = 3):
        self.shape = (tokens, width)

    def width(self, kind):
        return {"tokens": self.shape}[kind]

    def layout(self, kind):
        return {"tokens": {"tokens": self.shape}}[kind]


@pytest.mark.parametrize(("mine", "theirs", "patch"), [(49, 49, 2), (49, 64, 3), (36, 25, 2), (9, 9, 3), (8, 8, 1)])
def test_tokens_are_drawn_from_as_many_as_a_grid_gives(mine, theirs, patch):
    """Also where `patch` does not divide the side: what is left over at the far sides is no token."""
    method = Trg(Trg.Options(patch=patch))
    method.modules = method.extras(Grid(mine), Grid(theirs, 4))
    student, teacher = torch.randn(8, mine, 3), torch.randn(8, theirs, 4)
    batch = method.prepare_batch({"labels": torch.zeros(8, dtype=torch.long)}, torch.Generator().manual_seed(0))
    tokens, _ = same_grid(student, teacher, patch)
    assert sorted(batch["chosen"].tolist()) == list(range(8 * tokens.shape[1]))
    logits = torch.zeros(8, 2)
    given = Signals(logits=logits, tokens=student), Signals(logits=logits, tokens=teacher)
    assert all(torch.isfinite(term) for term in method.objective(*given, batch, Progress(0, 1, 0.0)).values())


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(CompatibilityError, match="patch must be at most the side of the smaller grid .patch=4, side=3"):
        Trg(Trg.Options(patch=4)).extras(Grid(9), Grid(16))
    with pytest.raises(CompatibilityError, match="patch=2, side=1"):
        Trg(Trg.Options(patch=2)).extras(Grid(1), Grid(16))
    for mine, theirs, patch in ((8, 9, 1), (9, 8, 1), (8, 8, 2)):
        with pytest.raises(
            CompatibilityError, match=f"{mine} tokens of the student and {theirs} of the teacher make no"
        ):
            Trg(Trg.Options(patch=patch)).extras(Grid(mine), Grid(theirs))
    assert Trg(Trg.Options(patch=3)).extras(Grid(9, 2), Grid(16, 5))["projection"].weight.shape == (45, 18)


@pytest.mark.parametrize("options", [{}, {"k": 2, "sigma": 1.5, "kl_direction": "teacher_student", "patch": 2}])
def test_terms_of_the_graph_of_tokens_have_their_weights(options):
    """Graph and contrast are of the tokens that were drawn, the context of all; soft targets are over the step."""
    weights = {"ce_weight": 0.5, "kd_weight": 0.25, "alpha": 2.0, "beta": 3.0, "gamma": 4.0, "temperature": 3.0}
    method = Trg(Trg.Options(**weights, **options, tokens=32, global_start=0.5, global_end=0.5))
    method.modules = method.extras(Grid(16), Grid(25, 4))
    assert method.modules["projection"].bias is None
    torch.manual_seed(0)
    s, t, z, q = torch.randn(8, 16, 3), torch.randn(8, 25, 4), torch.randn(8, 2), torch.randn(8, 2)
    batch = method.prepare_batch({"labels": torch.tensor([0, 1] * 4)}, torch.Generator().manual_seed(0))
    patch = options.get("patch", 1)
    mine, theirs = same_grid(s, t, patch)
    many = 8 * 16 // patch**2
    drawn = torch.randperm(many, generator=torch.Generator().manual_seed(0))[:32]
    assert torch.equal(batch["chosen"], drawn)
    own, other = mine.flatten(0, 1)[drawn], theirs.flatten(0, 1)[drawn]
    apart = (z / 3).softmax(-1) * ((z / 3).log_softmax(-1) - (q / 3).log_softmax(-1))
    graphs = {"k": 8, "sigma": "auto", "direction": "student_teacher"} if not options else {
        "k": 2, "sigma": 1.5, "direction": "teacher_student"}  # fmt: skip
    for step, positions, labels in ((None, 8, 8), ({"positions": 16.0, "labels": 4.0}, 16, 4)):
        given = Signals(logits=q, tokens=s), Signals(logits=z, tokens=t)
        more = {} if step is None else {"mean_counts": step}
        terms = method.objective(*given, {**batch, **more}, Progress(0, 1, 0.0))
        assert {name: value.item() for name, value in terms.items()} == pytest.approx({
            "labels": -0.5 * q.log_softmax(-1)[range(8), [0, 1] * 4].sum().item() / labels,
            "teacher": 0.25 * 9 * apart.sum().item() / positions,
            "inner": 2 * inner_loss(mine, theirs).item(),
            "local": 3 * local_loss(own, other, **graphs).item(),
            "global": 4 * global_loss(method.modules["projection"](own), other, 0.5).mean().item(),
        }, rel=1e-5)  # fmt: skip


def test_a_graph_of_few_and_of_equal_tokens():
    """A token has no more neighbours than there are others; where all are equal it is as near to each."""
    near(graph(TT, 9, 1.0), graph(TT, 3, 1.0))
    near(graph(torch.ones(3, 2), 2), 1 - np.eye(3))
    near(graph(1e-3 * TT, 2), graph(TT, 2))
    x, y = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    near(local_loss(x, y), local_loss(x, y, 8, "auto", "student_teacher").item())


# -- mixup ----------------------------------------------------------------------------------------------------

ZT, ZS, TARGET = torch.tensor([[2.0, 0, -2, 4]]), torch.tensor([[1.0, 0, -1, 3]]), torch.tensor([[0.3, 0, 0, 0.7]])


def test_mixed_losses_of_the_specification():
    near(ZT.std(), 2.581989)
    near(torch.softmax(rescaled(ZT), -1)[0], [0.260212, 0.119929, 0.055274, 0.564586])
    near(torch.softmax(rescaled(ZS), -1)[0], [0.196374, 0.109342, 0.060882, 0.633401])
    labels, apart = mixed_loss(ZS, ZT, TARGET)
    near(apart, 0.014050)
    near(labels, 0.807976)
    near(0.1 * labels + 0.9 * apart, 0.093442)
    for s, t in ((ZS * 7 + 2, ZT), (ZS, 10 * ZT - 3)):
        assert [x.item() for x in mixed_loss(s, t, TARGET)] == pytest.approx([0.807976, 0.014050], abs=2e-6)
    near(mixed_loss(ZS, ZT, TARGET, 4.0)[1], 0.237014)
    near(mixed_loss(ZS, ZT, TARGET, 4.0)[1] / 16, 0.014813)
    near(0.9 * mixed_loss(ZS, ZT, TARGET, 4.0)[1], 0.213313)
    for sure in ([3.0, 1.0], [900.0, 1.0]):  # of two classes nothing is left to tell
        near(torch.softmax(rescaled(torch.tensor([sure])), -1)[0], [0.804430, 0.195570])
    for classes, most in ((10, 0.724), (100, 0.9955)):
        near(torch.softmax(rescaled(torch.eye(classes)[:1]), -1)[0, 0], most, abs=6e-4)
    for dtype in (torch.float16, torch.bfloat16):
        half = [x.to(dtype) for x in (ZS, ZT)]
        assert [x.item() for x in mixed_loss(*half, TARGET)] == pytest.approx([0.807976, 0.014050], abs=2e-6)
    assert all(torch.isfinite(x) for x in mixed_loss(torch.zeros(1, 4), torch.zeros(1, 4), TARGET))
    near(mixed_loss(ZS, ZT, torch.zeros(1, 4))[0], 0.0)  # no label


def test_exactly_the_asked_share_is_mixed():
    rng = np.random.default_rng(0)
    for fraction in (0.0, 0.1, 0.5, 1.0):
        first, second, share = draw(64, 1.0, fraction, rng)
        assert (share < 1).sum() == round(64 * fraction)
        assert sorted(first) == sorted(second) == list(range(64))
    clean = np.mean([(draw(64, 1.0, 0.1, rng, with_replacement=True)[2] == 1).mean() for _ in range(400)])
    assert 1 - (1 - 1 / 64) ** 57 == pytest.approx(0.5925, abs=5e-5) and clean == pytest.approx(0.5925, abs=0.01)


def test_mixing_keeps_what_it_must():
    x, y = torch.randn(6, 2, 3), torch.eye(6)
    first, second = torch.randperm(6), torch.randperm(6)
    near(mix(x, first, second, torch.ones(6)), x[first])
    near(mix(x, first, first, torch.rand(6)), x[first])
    near(mix(y, first, second, torch.rand(6)).sum(1), np.ones(6))


def test_a_batch_is_mixed_with_its_labels_and_the_same_under_one_seed():
    method = MixKd(MixKd.Options(mode="fmu"))
    method.classes = 3
    batch = {"x": torch.eye(3).repeat(4, 1), "labels": torch.arange(3).repeat(4)}
    made = [method.prepare_batch(batch, torch.Generator().manual_seed(1)) for _ in range(2)]
    near(made[0]["x"], made[0]["targets"])  # inputs are their own one-hot labels
    near(made[0]["x"], made[1]["x"])
    assert not torch.equal(made[0]["x"], batch["x"])
    method = MixKd(MixKd.Options(mode="none"))
    method.classes = 3
    unlabelled = method.prepare_batch({"x": torch.eye(3), "labels": torch.tensor([0, -1, 2])}, torch.Generator())
    near(unlabelled["targets"], [[1, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_the_published_student_has_the_rescaled_logits(tmp_path):
    from kdhub_tasks.classification.folders import load
    from kdhub_tasks.classification.model import NetworkClassifier

    torch.manual_seed(0)
    student = NetworkClassifier(
        "image-classification", {"network": "mlp", "shape": [4], "classes": list("abc"), "hidden": [5]}
    )
    plain = student.signals([{"x": np.ones(4, np.float32)}], "logits")["logits"]
    student.wrap("rescaled")
    student.save(tmp_path)
    again = load(tmp_path).signals([{"x": np.ones(4, np.float32)}], "logits")["logits"]
    assert again.std(ddof=1) == pytest.approx(1.0, abs=1e-5) and (again.argmax() == plain.argmax())


def test_two_heads_mix_as_the_specification_says():
    class Fixed(torch.nn.Module):
        def forward(self, inputs):
            return {"logits": torch.tensor([[2.0, 1.0, 0.0]]), "features": torch.ones(1, 1)}

    for beta, expected in ((1.0, [0.377636, 0.244728, 0.377636]), (0.5, [0.340559, 0.181019, 0.478422])):
        heads = TwoHeads(Fixed(), features=1, classes=3, mix=0.5, beta=beta)
        with torch.no_grad():
            heads.head.weight.zero_()
            heads.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
        near(heads({})["logits"].exp()[0], expected)
        assert math.isfinite(heads({})["logits"].sum().item())


def test_what_is_trained_along_does_not_depend_on_what_was_stored(tmp_path):
    """A teacher whose outputs are there is not even built, and so draws no random numbers."""
    short = ["options.epochs=1", "evaluation.cost=false"]
    teacher = kdhub.distill("digits-teacher", out=tmp_path / "teacher", set=short).student_folder
    recipe = {
        "task": "image-classification", "method": "feature", "teacher": f"path:{teacher}", "student": "mlp:8",
        "data": {"train": [{"source": "digits", "split": "train", "limit": 64}]}, "options": {"epochs": 1},
        "evaluation": {"cost": False},
    }  # fmt: skip
    kdhub.distill({**recipe, "method": "kd"}, out=tmp_path / "first")  # from here on the teacher's facts are known
    runs = [kdhub.distill(recipe, out=tmp_path / name) for name in "ab"]
    assert [run.provenance["signals"]["features"]["computed"] for run in runs] == [64, 0]
    assert len({(run.student_folder / "model.safetensors").read_bytes() for run in runs}) == 1
