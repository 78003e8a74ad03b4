"""DSE and pairs: the specification's numbers, the towers, rows as they come, saving, serving, and bad input."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_logits.soft_targets import label_losses
from kdhub_logits.tasks import Predictions
from kdhub_text import encoder, pair_metrics, tiny
from kdhub_text.dse import SOME, Dse, score_distances
from kdhub_text.pairs import TextPairs, scores, target
from kdhub_text.towers import ConcatHead, DotHead, Shape, TwoTowerStudent, leads, pool
from pydantic import ValidationError
from tokenizers import processors

import kdhub
from kdhub.data import Data
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import Progress
from kdhub.resolve import Resolver
from kdhub.student import BuildContext
from kdhub.task import Signals

U, V = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[2.0, 2.0, -1.0]])


def objective(logits, teacher, labels, **options):
    batch = {"labels": torch.tensor(labels), "mean_counts": {"positions": len(labels), "labels": len(labels)}}
    method = Dse(Dse.Options(**options), SimpleNamespace(needs=("logits",)))
    given = (Signals(logits=torch.tensor(logits)), Signals(logits=torch.tensor(teacher)))
    return {name: float(term) for name, term in method.objective(*given, batch, Progress(0, 1, 0.0)).items()}


# -- the specification's numbers ------------------------------------------------------------------------------


def test_features_and_product():
    assert ConcatHead.features(U, V).tolist() == [[1, -2, 3, 2, 2, -1, 2, -4, -3, 1, 4, 4]]
    assert DotHead()(U, V).tolist() == [[-5]]


def test_pooling_leaves_out_first_token_and_padding():
    states, mask = torch.tensor([[[9.0, 9], [1, 2], [3, 4], [7, 7]]]), torch.tensor([[1, 1, 1, 0]])
    assert pool([states], mask).tolist() == [[2, 3]]
    assert pool([states], mask, include_cls=True)[0].tolist() == pytest.approx([13 / 3, 5])
    assert pool([states, 2 * states], mask).tolist() == [[2, 3, 4, 6]]
    assert pool([states, 2 * states], mask, "average_top_mean").tolist() == [[3, 4.5]]
    assert pool([states], mask, "concat_top_sqrt_mean")[0].tolist() == pytest.approx([4 / 2**0.5, 6 / 2**0.5])
    assert pool([states, 2 * states], mask, "cls").tolist() == [[18, 18]]
    before = states.clone()
    assert pool([-states], mask, "concat_top_max").tolist() == [[-1, -2]]  # padding would be -7, no maximum of 0
    assert torch.equal(states, before)


@pytest.mark.parametrize("mode", ["mean", "sqrt_mean", "max"])
def test_a_text_of_one_token_is_that_token(mode):
    states = torch.tensor([[[9.0, -9], [7, 7]], [[1, 1], [3, -4]], [[8, 8], [8, 8]]])
    mask, how = torch.tensor([[1, 0], [1, 1], [0, 0]]), f"concat_top_{mode}"
    assert pool([states], mask, how).tolist() == [[9, -9], [3, -4], [0, 0]]
    assert pool([states[:1, :1]], mask[:1, :1], how).tolist() == [[9, -9]]


def test_a_first_word_is_pooled(folder):
    student = towers(folder)
    assert leads(student.encoder)
    student.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", student.tokenizer.sep_token_id)]
    )  # as T5
    student = TwoTowerStudent(student.encoder, student.classes, student.module.shape)
    ids, mask = torch.tensor(student.cutter().ids(["kabel lodan mifos"])), torch.ones(1, 4, dtype=torch.int64)
    network = student.module.cpu().eval()
    states = network.encoder[0].auto_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert torch.allclose(network.embed(ids, mask), torch.cat(states[-network.shape.top_layers :], -1).mean(1))


def test_scores_of_two_classes_are_a_difference():
    logits = torch.tensor([[-0.5, 1.5]])
    assert scores(logits).tolist() == scores(logits + 7).tolist() == [[2.0]]
    assert scores(torch.ones(2, 1)).shape == (2, 1) and scores(torch.ones(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(("alpha", "total"), [(0.5, 1.362038), (0.0, 0.474077), (1.0, 2.25)])
def test_loss_of_two_classes(alpha, total):
    terms = objective([[0.0, 0.5]], [[-1.0, 1.0]], [1], alpha=alpha)
    assert sum(terms.values()) == pytest.approx(total, abs=1e-6)
    assert set(terms) == {name for name, weight in (("teacher", alpha), ("labels", 1 - alpha)) if weight}


def test_loss_of_values_and_of_three_classes():
    assert objective([[2.0], [1.0]], [[3.0], [1.0]], [4.0, math.nan], alpha=0.5) == pytest.approx(
        {"teacher": 0.5 * 1 / 2, "labels": 0.5 * 4 / 2}  # the step has two labels, one of them here
    )
    apart = score_distances(torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, 0, 0]]))
    assert apart.tolist() == [13]  # summed over classes, not their mean


def test_label_losses_of_values_give_no_gradient_without_a_label():
    logits = torch.tensor([[1.0], [5.0]], requires_grad=True)
    each = label_losses(logits, torch.tensor([3.0, math.nan]))
    each.sum().backward()
    assert each.tolist() == [4, 0] and logits.grad.tolist() == [[-4], [0]]


def test_schedule_of_the_code_ends_half_way_down():
    rates = {
        units: Dse(Dse.Options(schedule_units=units, accumulate=2)).learning_rate(99, 100)
        for units in ("steps", "batches")
    }
    assert rates["steps"] == pytest.approx(0.01 / 0.9, rel=0.2) and rates["batches"] == pytest.approx(
        0.505 / 0.9, rel=0.02
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [({"embed_dim": 0}, "embed_dim is 0"), ({"freeze_encoder": True, "head": "dot"}, "there is nothing to train")],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValidationError, match=words):
        Dse.Options(**options)
    assert Dse.Options(**options | {"embed_dim": 8}).embed_dim == 8


# -- heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symmetric", "hidden", "number"), [(False, [5], 1), (True, [5, 4], 3), (True, [], 1)])
def test_blocks_score_as_rows_do(symmetric, hidden, number):
    torch.manual_seed(0)
    head, u, v = ConcatHead(6, number, hidden, symmetric), torch.randn(3, 6), torch.randn(4, 6)
    rows = torch.stack([head(one.expand(4, -1), v) for one in u])
    assert torch.allclose(head.block(u, v), rows, atol=1e-5)
    swapped = head(v[:3], u)
    assert torch.allclose(head(u, v[:3]), swapped, atol=1e-6) == symmetric


def test_dot_does_not_see_the_order():
    u, v = torch.randn(3, 6), torch.randn(3, 6)
    assert torch.equal(DotHead()(u, v), DotHead()(v, u))
    assert torch.allclose(DotHead().block(u, v)[..., 0].diagonal(), DotHead()(u, v)[:, 0], atol=1e-6)


# -- the student ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pairs")
    tiny.pair_recipe(made)
    return made


def towers(folder, classes=("no", "yes"), shape=None):
    context = BuildContext(Resolver().task("text-pairs"), None, 0, facts={"classes": list(classes)})
    student = Resolver().student(kdhub.recipe.Ref(source=f"towers:path:{folder / 'encoder'}"), context)
    if shape:
        student.stand(shape)
    return student


def test_a_vector_knows_nothing_of_the_other_text(folder):
    student, task = towers(folder), Resolver().task("text-pairs")
    prepare = task.preparer(student, None)
    one, other = prepare([{"sentence1": "kabel dan", "sentence2": text} for text in ("ka", "lobel mifos nugir")])
    batch = student.collate([one, other])
    hidden = []
    keep = student.encoder[0].auto_model.embeddings.register_forward_hook(lambda m, i, out: hidden.append(out))
    given = student.module.cpu().eval()(batch)["embeddings"]
    keep.remove()
    assert torch.equal(given[0, 0], given[1, 0])
    left, right = torch.autograd.grad(given[:, 0].pow(3).sum(), hidden)
    assert left.abs().sum() > 1e-3 and not right.any()


def test_ranking_calls_the_encoder_for_the_query_alone(folder):
    student, texts = towers(folder), tiny.random_texts(40, seed=3)
    kept, seen = student.embed(texts), []
    student.encoder[0].auto_model.register_forward_hook(lambda m, i, out: seen.append(len(out[0])))
    ranked = student.matrix(student.embed(["kabel lodan"]), kept)
    assert seen == [1] and ranked.shape == (1, 40)
    pairs = [{"sentence1": "kabel lodan", "sentence2": text} for text in texts]
    logits = student.signals(TextPairs().preparer(student, None)(pairs), "logits")["logits"]
    assert np.allclose(ranked[0], logits[:, 1] - logits[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "shape"),
    [
        (("score",), Shape(top_layers=2, embed_dim=6, symmetric=True, fc_dims=(8,))),
        (("a", "b", "c"), Shape("average_top_max", top_layers=2, fc_dims=())),
        (("no", "yes"), Shape("cls", head="dot", fc_dims=())),
    ],
)
def test_saved_and_loaded_without_the_method(folder, tmp_path, monkeypatch, classes, shape):
    student, texts = towers(folder, classes, shape), tiny.random_texts(6, seed=4)
    student.limit(9)
    student.save(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "kdhub_text.dse", None)
    loaded = kdhub.load(tmp_path)
    assert loaded.classes == list(classes) and loaded.module.shape == shape
    assert np.array_equal(student.embed(texts), loaded.embed(texts))
    v = student.embed(texts)
    assert np.array_equal(student.matrix(v, v), loaded.matrix(v, v))
    assert loaded.encode_pairs([(" ".join(texts), "ka")])[0]["cut"]


def test_one_tokenizer_is_made_for_each_limit(folder, monkeypatch):
    made, copy = [], encoder.fast_tokenizer
    student = towers(folder)
    monkeypatch.setattr(encoder, "fast_tokenizer", lambda model: made.append(model) or copy(model))
    pair = [("kabel lodan mifos nugir", "ka")]
    for max_length in (None, 500, 64, 5, 5, None):  # its own is 64
        assert len(student.encode_pairs(pair, max_length)[0]["tokens"][0]) == (5 if max_length == 5 else 6)
    assert len(made) == 2
    student.limit(4)
    assert len(student.encode_pairs(pair, 500)[0]["tokens"][0]) == 4 and len(made) == 3


@pytest.mark.parametrize("shape", [Shape("cls"), Shape(top_layers=1, include_cls=True), Shape("cls", embed_dim=5)])
def test_its_half_is_an_ordinary_sentence_encoder(folder, tmp_path, shape):
    from sentence_transformers import SentenceTransformer

    student, texts = towers(folder, shape=shape), tiny.random_texts(6, seed=4)
    student.save(tmp_path)
    vectors = SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(texts)
    assert np.allclose(vectors, student.embed(texts), atol=1e-5)
    assert Resolver().task("text-embedding").load(tmp_path / "encoder").width == vectors.shape[1]


def test_what_is_of_this_shape_stays(folder):
    student = towers(folder)
    head = student.module.head
    student.stand(Shape(top_layers=student.module.shape.top_layers))
    assert student.module.head is head
    for shape, words in ((Shape(top_layers=3), "3, the encoder has 2"), (Shape("cls", head="dot"), "one score")):
        student = towers(folder, ("a", "b", "c"))
        with pytest.raises(UsageError, match=words):
            student.stand(shape)


# -- rows as they come ----------------------------------------------------------------------------------------


def rows_of(*rows):
    return Data.from_rows("given", {"train": lambda: iter(rows)}, key={"rows": json.dumps(rows)})


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("row", "classes"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": 2.5}, ["score"]),
        ({"text": "a", "text_pair": "b", "label": 1}, ["0", "1"]),
        ({"text": "a", "text_pair": "b", "label": 1.0}, ["0", "1"]),
        ({"sentence1": "a", "sentence2": "b", "label": 1.5}, ["score"]),
        ({"sentence1": "a", "sentence2": "b", "label": "entailment"}, ["entailment"]),
    ],
)
def test_columns_say_what_is_asked(row, classes):
    task, parts = TextPairs(), [(rows_of(row), "train")]
    mean = {"mean": row.get("score", row.get("label"))} if classes == ["score"] else {}
    assert task.survey(parts) == {"classes": classes, **mean}
    assert task.training_table(parts).column_names[:2] == ["sentence1", "sentence2"]


@pytest.mark.usefixtures("home")
def test_no_pairs_and_no_values():
    with pytest.raises(DataError, match="no pairs of texts"):
        TextPairs().training_table([(rows_of({"text": "a", "label": 1}), "train")])
    with pytest.raises(DataError, match="no value"):
        target({"score": "much"}, ["score"])
    with pytest.raises(DataError, match="none of the 2 classes"):
        target({"label": 1.5}, ["a", "b"])
    assert target({"label": math.nan}, ["a", "b"]) == -1 and math.isnan(target({}, ["score"]))


def test_a_pair_reads_alike_in_any_batch(folder):
    teacher = Resolver().teacher(kdhub.recipe.Ref(source=f"path:{folder / 'teacher'}"), "text-pairs")
    pairs = [{"sentence1": a, "sentence2": b} for a, b in zip(tiny.random_texts(9, 1), tiny.random_texts(9, 2))]
    examples = TextPairs().preparer(None, teacher)(pairs)
    together = teacher.signals(examples, "logits")["logits"]
    alone = [teacher.signals([e], "logits")["logits"][0] for e in examples]
    assert np.allclose(together, alone, atol=1e-5)
    swapped = TextPairs().preparer(None, teacher)(
        [{"sentence1": p["sentence2"], "sentence2": p["sentence1"]} for p in pairs]
    )
    assert not np.allclose(together, teacher.signals(swapped, "logits")["logits"], atol=1e-3)  # it reads both together


# -- numbers --------------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    mine = Predictions(np.array([[1.0], [2.0], [4.0]], np.float32), np.array([1.0, 2.0, 3.0]), ["score"])
    theirs = Predictions(np.array([[1.0], [2.0], [3.0]], np.float32), np.array([1.0, 2.0, 3.0]), ["score"])
    assert pair_metrics.pearson(mine) == pytest.approx(0.981981, abs=1e-6)
    assert pair_metrics.score_rmse(mine, theirs) == pytest.approx((1 / 3) ** 0.5)
    assert pair_metrics.degradation(mine, theirs) == pytest.approx(1.8019, abs=1e-4)
    from kdhub_logits.metrics import regression_loyalty

    assert regression_loyalty(mine, theirs) == pytest.approx(0.981981, abs=1e-6)
    two = [
        Predictions(np.array(logits, np.float32), np.array([1, 0]), ["a", "b"])
        for logits in ([[0, 2], [0, 1]], [[1, 4], [3, 3]])
    ]
    assert pair_metrics.score_rmse(*two) == 1 and pair_metrics.f1(two[0]) == pytest.approx(2 / 3)


# -- a run ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("home")
def test_the_teacher_brings_the_scores_close(tmp_path):
    """With alpha = 1 the towers come closer to the cross-encoder's scores than with alpha = 0, and need no labels."""
    recipe = {"schema": 1, "task": "text-pairs", "method": "dse", **tiny.pair_recipe(tmp_path)}
    apart = {}
    for name, alpha in (("labels", 0.0), ("teacher", 1.0), ("unlabelled", 1.0)):
        if name == "unlabelled":
            rows = [{side: row[side] for side in ("sentence1", "sentence2")} for row in tiny.pairs(64, seed=1)]
            tiny.write_jsonl(tmp_path / "train.jsonl", rows)
        options = {"alpha": alpha, "top_layers": 2, "fc_dims": [16], "lr": 3e-3, "epochs": 8, "precision": "float32"}
        run = kdhub.distill({**recipe, "options": options}, out=tmp_path / f"run-{name}")
        measures = {m["metric"]: m.get("value") for m in run.report["measures"] if m["subject"] == "student"}
        apart[name] = measures["score-rmse"]
        assert {"pearson", "spearman", "regression-loyalty", "degradation"} <= set(measures)
    assert apart["teacher"] < 0.7 * apart["labels"]
    assert apart["unlabelled"] == pytest.approx(apart["teacher"], rel=1e-4)


def test_a_head_of_values_begins_with_the_teachers_mean(folder):
    student, task = towers(folder, ("score",)), TextPairs()
    batch = task.collate(task.preparer(student, None)(tiny.pairs(SOME)), student)
    z = torch.linspace(2, 6, 3 * SOME).unsqueeze(1)  # of all rows that are given, more than the student reads
    Dse(Dse.Options()).initialise(student, batch, Signals(logits=z))
    assert float(student.module(batch)["logits"].detach().mean()) == pytest.approx(4, abs=1e-4)


@pytest.mark.usefixtures("home")
def test_two_classes_from_rows_to_report(tmp_path):
    """A cross-encoder by labels alone, under the other names of the columns; its scores into an inner product."""
    encoder = tiny.tiny_encoder(tmp_path / "encoder", layers=2, hidden=16, plain=True)
    rows = [
        {"text": r["sentence1"], "text_pair": r["sentence2"], "label": "same" if r["score"] > 0.3 else "other"}
        for r in tiny.pairs(48)
    ]
    data = {"source": f"path:{tiny.write_jsonl(tmp_path / 'rows.jsonl', rows)}"}
    shared = {
        "schema": 1,
        "task": "text-pairs",
        "data": {"train": [data]},
        "evaluation": {"data": [data], "cost": False},
    }
    options = {"lr": 3e-3, "epochs": 2, "precision": "float32"}
    cross = {"method": "supervised", "student": f"path:{encoder}", "options": {**options, "batch_size": 16}}
    made = kdhub.distill({**shared, **cross}, out=tmp_path / "cross")
    dse = {"method": "dse", "teacher": f"path:{made.student_folder}", "student": "towers:teacher"}
    run = kdhub.distill(
        {**shared, **dse, "options": {**options, "head": "dot", "embed_dim": 8, "top_layers": 2}}, out=tmp_path / "run"
    )
    found = {m["metric"] for m in run.report["measures"] if m["subject"] == "student" and m.get("value") is not None}
    assert {"accuracy", "f1", "agreement", "score-rmse", "degradation", "regression-loyalty"} <= found
    student = kdhub.load(run.folder)
    assert student.classes == ["other", "same"]
    vectors = student.embed([rows[0]["text"], rows[1]["text"]])
    assert np.allclose(student.matrix(vectors, vectors), vectors @ vectors.T, atol=1e-5)
    with pytest.raises(DataError, match="pairs with a label"):
        kdhub.evaluate(run.folder, data=f"path:{tiny.write_jsonl(tmp_path / 'sts.jsonl', tiny.pairs(4))}")


@pytest.mark.usefixtures("home")
def test_a_student_that_reads_both_together_is_refused(tmp_path):
    recipe = {"schema": 1, "task": "text-pairs", "method": "dse", **tiny.pair_recipe(tmp_path), "student": "layers:1"}
    with pytest.raises(CompatibilityError, match="embeddings"):
        kdhub.distill(recipe, out=tmp_path / "run")
    assert isinstance(towers(tmp_path), TwoTowerStudent)


def test_kept_vectors_rank_as_pairs_do(folder, tmp_path, monkeypatch):
    from kdhub_text import kept

    student, texts = towers(folder, ("score",)), tiny.random_texts(30, seed=5)
    monkeypatch.setattr(kept, "BLOCK", 7)
    stored = kept.Kept.write(student, texts, tmp_path)
    positions, best = stored.rank(texts[:2], 5)
    whole = student.matrix(student.embed(texts[:2]), student.embed(texts))
    assert np.array_equal(positions, np.argsort(-whole, axis=1, kind="stable")[:, :5])
    assert np.allclose(best, -np.sort(-whole, axis=1)[:, :5], atol=1e-6)
    with pytest.raises(CompatibilityError, match="another student"):
        kept.Kept(towers(folder, ("score",), Shape("cls")), tmp_path)
    with pytest.raises(DataError, match="no kept vectors"):
        kept.Kept(student, tmp_path / "other")
    with pytest.raises(UsageError, match="no order"):
        kept.Kept.write(towers(folder, ("a", "b", "c")), texts, tmp_path).rank(texts)
