"""Active learning: the specification's numbers, what every rule promises, and a whole run with labels from a file."""

from __future__ import annotations

import copy
import csv
import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from kdhub_logits import queries
from kdhub_logits.adapter import adapted
from kdhub_logits.methods.pcoreset import QUERIES, PCoreSet, _batches, two_head_loss
from kdhub_logits.queries import farthest, gaps
from kdhub_logits.teachers import Prototypes
from kdhub_tasks.classification.model import NetworkClassifier
from told import Few, Told

import kdhub
from kdhub.data.dataset import DataOptions
from kdhub.errors import AwaitingError, CompatibilityError, DataError, TrainingError, UnknownNameError
from kdhub.recipes.recipe import Ref
from kdhub.recipes.resolve import Resolver
from kdhub.sampler import Seen

POOL = np.array([[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.34, 0.33, 0.33], [0.5, 0.5, 0]])
ONE = np.array([[1.0, 0, 0]])


def test_picks_of_the_specification():
    assert farthest(POOL, ONE, 3).tolist() == [1, 2, 3]
    assert gaps(POOL, ONE) == pytest.approx([0.141421, 1.208305, 1.208305, 0.808332, 0.707107], abs=1e-6)
    second = gaps(POOL, np.concatenate([ONE, POOL[1:2]]))
    assert second[[0, 2, 3, 4]] == pytest.approx([0.141421, 0.989949, 0.575674, 0.509902], abs=1e-6)
    order = [2, 0, 1]
    assert farthest(POOL[:, order], ONE[:, order], 3).tolist() == [1, 2, 3], "blind to the order of the classes"
    assert gaps(np.eye(3)[:1], np.eye(3)[1:]) == pytest.approx([1.414214], abs=1e-6)
    assert farthest(POOL, ONE, 9).tolist() == [1, 2, 3, 4, 0], "all there are"


def test_the_running_minimum_is_the_greedy_rule():
    rng = np.random.default_rng(0)
    pool, anchors = rng.dirichlet(np.ones(5), 60), rng.dirichlet(np.ones(5), 4)
    have, left, picked, gaps = list(anchors), list(range(60)), [], []
    for _ in range(15):
        gap = {i: min(np.linalg.norm(pool[i] - a) for a in have) for i in left}
        best = max(gap, key=lambda i: (round(gap[i], 12), -i))
        picked.append(best)
        gaps.append(gap[best])
        have.append(pool[best])
        left.remove(best)
    assert farthest(pool, anchors, 15).tolist() == picked and gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize("rule", [queries.pcoreset, queries.coreset, queries.entropy, queries.badge])
def test_ties_go_to_the_lowest_position(rule):
    equal = Seen(np.full((6, 3), 1 / 3), np.ones((6, 2)))
    assert rule(equal, equal, 2, np.random.default_rng(0)).tolist() == [0, 1]


def test_rules_are_samplers_found_by_name():
    resolver = Resolver()
    assert resolver.select("badge", "image-classification") is queries.badge
    with pytest.raises(UnknownNameError, match="entropi"):
        resolver.select("entropi", "image-classification")
    with pytest.raises(CompatibilityError, match="no order of training rows"):
        resolver.sampler(Ref(source="entropy"), "image-classification")


def test_entropy_takes_the_least_sure():
    assert queries.entropy(Seen(POOL), Seen(ONE), 1, None).tolist() == [3]
    many = Seen(np.tile(POOL[[0, 3]], (40, 1)))
    assert queries.entropy(many, Seen(ONE), 40, None).tolist() == list(range(1, 80, 2)), "in their order"


def test_pcoreset_sees_probabilities_and_coreset_features():
    """Where one row is far by its probabilities and another one by its features."""
    pool, labelled = Seen(POOL[[0, 1]], np.array([[0.0, 1], [1, 0]])), Seen(ONE, np.array([[1.0, 0]]))
    assert queries.pcoreset(pool, labelled, 1, None).tolist() == [1]
    assert queries.coreset(pool, labelled, 1, None).tolist() == [0]


def test_badge_begins_with_the_largest_gradient_whatever_is_labelled():
    """The gradient's length is |p - onehot| |features|; then the farthest direction from those chosen."""
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.55, 0.45], [0.2, 0.8]])
    pool = Seen(p, np.array([[1.0, 0], [1, 0], [0, 2], [3, 1]]))
    lengths = np.sqrt(2) * (1 - p.max(1)) * [1, 1, 2, np.sqrt(10)]
    assert lengths.argmax() == 2
    for labelled in (Seen(p[:1], pool.features[:1]), Seen(p[2:], pool.features[2:])):
        picked = queries.badge(pool, labelled, 9, None).tolist()
        assert picked == [2, 3, 0, 1], "3 points away from the others; 0 and 1 point one way"


def test_class_balanced_allots_by_true_labels():
    """Of 12: 1 / (1 + labelled) is 1/2, 1/4, 1/4 for the classes 0, 1 and 2 with 1, 3 and 3 labelled rows, so 6, 3 and
    3, whatever the pool's sizes and whatever the student says of labelled rows."""
    predicted = np.array([0] * 10 + [1] * 200 + [2] * 30)
    pool, labels = Seen(np.eye(4)[predicted]), np.array([0, 1, 1, 1, 2, 2, 2, 3])
    for said in (labels, np.zeros_like(labels), labels[::-1]):
        labelled = Seen(np.eye(4)[said], labels=labels)
        picked = queries.class_balanced(pool, labelled, 12, np.random.default_rng(0))
        assert np.bincount(predicted[picked]).tolist() == [6, 3, 3]
    many = queries.class_balanced(pool, labelled, 60, np.random.default_rng(0))
    assert np.bincount(predicted[many])[0] == 10 and len(set(many.tolist())) == 60, "a class may run out"
    assert np.bincount(predicted[queries.class_balanced(pool, labelled, 1, np.random.default_rng(0))]).tolist() == [1]
    even = Seen(np.eye(60)[np.arange(120) % 60]), Seen(np.eye(60)[:0], labels=np.arange(0, 60, 2))
    picked = queries.class_balanced(*even, 20, np.random.default_rng(0))
    assert sorted(picked % 60) == list(range(1, 41, 2)), "of classes that are as rare the first ones"
    draws = [queries.class_balanced(pool, labelled, 3, np.random.default_rng(n)).tolist() for n in range(3)]
    assert draws[0] != draws[1], "at random inside a class"


def test_heads_learn_from_their_own_source_alone():
    torch.manual_seed(0)
    of_labels, of_teacher = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    labels, teacher = torch.tensor([0, 1, 2]), torch.randn(6, 4)
    two_head_loss(of_labels, of_teacher, labels, teacher, 3, kd_weight=0.0).backward()
    assert of_teacher.grad.abs().max() == 0 and of_labels.grad.abs().max() > 0
    of_labels.grad = None
    two_head_loss(of_labels, of_teacher, labels, teacher, 3, ce_weight=0.0).backward()
    assert of_labels.grad.abs().max() == 0 and of_teacher.grad.abs().max() > 0
    # Each part of the teacher's term is a mean of its own: two equal parts count twice one.
    both = two_head_loss(of_labels, of_teacher[[0, 1, 2] * 2], labels, teacher[[0, 1, 2] * 2], 3, ce_weight=0.0)
    one = two_head_loss(of_labels, of_teacher[:3], labels, teacher[:3], 3, ce_weight=0.0)
    assert both.item() == pytest.approx(2 * one.item(), rel=1e-6)


FEATURES = {"form": "features"}
RECIPE = {
    "task": "tabular-classification",
    "method": "pcoreset",
    "teacher": {"source": "prototypes:digits", "noise": 0.8, "data": FEATURES},
    "student": "mlp:16",
    "data": {"train": [{"source": "digits", "split": "train", "limit": 200, "options": FEATURES}]},
    "evaluation": {"data": [{"source": "digits", "split": "test", "options": FEATURES}], "cost": False},
    "options": {"rounds": 2, "queries_per_round": 5, "steps": 20},
}


def test_steps_follow_the_labelled_rows():
    """200 passes over the labelled rows, unless steps are set."""
    method = PCoreSet(PCoreSet.Options())
    assert [method.steps(n) for n in (1, 10, 64, 65)] == [4, 32, 200, 204]
    assert PCoreSet(PCoreSet.Options(epochs=0.5, batch_size=10)).steps(3) == 1
    assert PCoreSet(PCoreSet.Options(steps=7)).steps(1000) == 7


# -- rounds, by a plain loop ----------------------------------------------------------------------------------

OPTIONS = {
    "epochs": 5.0, "batch_size": 2, "warmup": 0.4, "lr": 0.05, "weight_decay": 0.1, "kd_temperature": 3.0,
    "ce_weight": 0.7, "kd_weight": 0.2, "head_mix": 0.25, "head_beta": 2.0,
}  # fmt: skip


def nine_rows(tmp_path, labels=(0, 1, 0, 1, 0, 1, 0, 1, -1), **options):
    """A method and a run: two classes, the last row without a label; the rule takes the last rows of the pool."""
    rng, asked = np.random.default_rng(0), []
    rows = [{"x": x, "label": y} for x, y in zip(rng.normal(size=(9, 2)).astype(np.float32), labels)]
    torch.manual_seed(0)
    config = {"network": "mlp", "shape": [2], "classes": ["a", "b"], "hidden": [3]}
    student, logits = NetworkClassifier("tabular-classification", config), rng.normal(size=(9, 2)).astype(np.float32)
    table = datasets.Dataset.from_list([{"picture": {"path": f"{n}.png"}, "n": n} for n in range(9)])
    run = Told(student, {"train": Few(rows, table), "validation": rows[:3]}, {"logits": logits}, seed=3)
    run.folder, run.asked = tmp_path, asked

    def last(pool, labelled, n, rng):
        asked.append((pool, labelled, n, rng.random()))
        return np.arange(len(pool.probabilities))[::-1][:n]

    run.select = {"last": last}.get
    return PCoreSet(PCoreSet.Options(strategy="last", **{**OPTIONS, **options})), run


def looped(run, number, labels, given=None, before=None):
    """A round in a plain loop, with OPTIONS; `before` are the weights it goes on from."""
    student, steps = copy.deepcopy(run.student), int(2.5 * len(labels) + 0.5)
    torch.manual_seed(3 * 1009 + number)
    student.wrap("two-heads", mix=0.25, beta=2.0)
    student.module.load_state_dict(before or student.module.state_dict())
    x, z = torch.from_numpy(np.stack([row["x"] for row in run.rows().examples])), given or run.given["logits"]
    optimiser = torch.optim.AdamW(student.module.parameters(), lr=1.0, weight_decay=0.1)
    draws, warm = np.random.default_rng([3, 2, number]), round(0.4 * steps)
    known, others = np.array(sorted(labels)), np.array([i for i in range(9) if i not in labels])
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.05 * min((step + 1) / warm, (steps - step) / (steps - warm))
        first, second = draws.choice(known, 2), draws.choice(others, 2)
        out = student.module({"x": x[[*first, *second]]})
        p = (torch.tensor(np.asarray(z))[[*first, *second]] / 3).softmax(-1)
        apart = 9 * (p * (p.log() - (out["of_teacher"] / 3).log_softmax(-1))).sum(-1)
        right = -out["of_labels"][:2].log_softmax(-1)[[0, 1], [labels[i] for i in first]]
        optimiser.zero_grad()
        (0.7 * right.mean() + 0.2 * (apart[:2].mean() + apart[2:].mean())).backward()
        optimiser.step()
    return student


def same(one, other):
    a, b = (x.module.state_dict() for x in (one, other))
    return list(a) == list(b) and all(torch.allclose(a[n], b[n], atol=1e-4) for n in a)  # AdamW widens rounding


def of_start(many=1):
    """The labelled rows at the start."""
    rng = np.random.default_rng([3, 0])
    found = [rng.permutation(np.arange(c, 8, 2))[:many].tolist() for c in (0, 1)]
    return {i: i % 2 for i in sum(found, [])}


def test_rounds_by_a_plain_loop(tmp_path):
    """What a round trains, shows the rule, asks for, logs and leaves; the last one is trained on all labels."""
    method, run = nine_rows(tmp_path, rounds=2, queries_per_round=4)
    made, labels, right = method.distill(run), of_start(), []
    for number, many in ((0, 4), (1, 2)):
        student, open_ = looped(run, number, labels), [i for i in range(8) if i not in labels]
        pool, here, n, drawn = run.asked[number]
        assert n == many and drawn == np.random.default_rng([3, 1, number]).random()
        for seen, which in ((pool, open_), (here, sorted(labels))):
            given = [student.signals(run.rows()[which], kind)[kind] for kind in ("logits", "features")]
            assert seen.probabilities == pytest.approx(np.exp(given[0]), abs=1e-5)
            assert seen.features == pytest.approx(given[1], abs=1e-5)
        assert here.labels.tolist() == [i % 2 for i in sorted(labels)] and pool.labels is None
        assert run.stages[f"round-{number}"]["rows"] == open_[::-1][:many]
        right.append((len(labels), student))
        labels |= {i: i % 2 for i in open_[::-1][:many]}
    right.append((8, looped(run, 2, labels)))
    assert same(made, right[-1][1]) and not made.module.training
    scores = [float(np.mean(one.signals(run.rows()[[0, 1, 2]], "logits")["logits"].argmax(1) == [0, 1, 0]))
              for _, one in right]  # fmt: skip
    assert run.lines == [
        {"step": n, "labels": many, "validation_accuracy": scores[n]} for n, (many, _) in enumerate(right)
    ]
    torch.manual_seed(3 * 1009)
    fresh = copy.deepcopy(run.student)
    fresh.wrap("two-heads", mix=0.25, beta=2.0)
    assert len(run.starts) == 1 and same(run.starts[0], fresh)
    report = method.evaluate(run, made)
    (over,) = report.measures
    assert (over.metric, over.subject, over.dataset, over.examples) == (
        "accuracy-over-rounds", "student", "validation rows", 3,
    )  # fmt: skip
    assert over.value == pytest.approx(np.mean(scores[1:])) and report.of is made
    del run.of_use["validation"]
    method, _ = nine_rows(tmp_path, rounds=1)
    made = method.distill(run)
    assert "validation_accuracy" not in run.lines[-1] and method.evaluate(run, made).measures == []


def test_a_pool_that_is_drawn_and_one_that_is_empty(tmp_path):
    method, run = nine_rows(tmp_path, rounds=1, max_pool=3)
    method.distill(run)
    open_ = np.array([i for i in range(8) if i not in of_start()])
    rng = np.random.default_rng([3, 1, 0])
    some = np.sort(rng.choice(open_, 3, replace=False))
    assert run.stages["round-0"]["rows"] == some[::-1][:2].tolist(), "as many as there are classes"
    assert run.asked[0][3] == rng.random()
    method, run = nine_rows(tmp_path, rounds=1, max_pool=6)
    method.distill(run)
    assert len(run.asked[0][0].probabilities) == 6
    method, run = nine_rows(tmp_path, rounds=4, start_per_class=9)
    made = method.distill(run)
    assert run.asked == [] and [line["step"] for line in run.lines] == [0, 4]
    assert same(made, looped(run, 4, of_start(9)))


def test_a_round_goes_on_from_the_one_before_by_a_plain_loop(tmp_path):
    method, run = nine_rows(tmp_path, rounds=3, queries_per_round=1, reinit=False)
    made, labels, before = method.distill(run), of_start(), None
    for number in range(4):
        student = looped(run, number, labels, before=before)
        before = student.module.state_dict()
        labels |= {max(i for i in range(8) if i not in labels): 0} if number < 3 else {}
        labels = {i: i % 2 for i in labels}
    assert same(made, student)
    assert sorted(file.name for file in (tmp_path / "rounds").iterdir()) == ["1.safetensors", "2.safetensors"]


def test_a_teacher_is_fitted_to_the_labels_of_each_round(tmp_path):
    method, run = nine_rows(tmp_path, rounds=1, queries_per_round=1, teacher_refresh=True)
    new, fitted = [[3.0, -float(n)] for n in range(9)], []
    run.teacher = SimpleNamespace(fitted=lambda rows, labels: fitted.append((rows, dict(labels))) or new)
    made, labels = method.distill(run), of_start()
    labels |= {i: i % 2 for i in run.stages["round-0"]["rows"]}
    assert fitted == [(run.rows().examples, labels)] and same(made, looped(run, 1, labels, given=new))


def test_people_label_what_is_chosen(tmp_path):
    """They see the names of files and no arrays; all rows may be chosen, and labelled ones need not be chosen."""
    method, run = nine_rows(tmp_path, rounds=1, oracle="file")
    run.ask_people = lambda name, shown, classes: {
        (QUERIES, "a b"): {n: "b" for n, of in shown.items() if of == {"picture": f"{n}.png"}}
    }[name, " ".join(classes)]  # fmt: skip
    method.distill(run)
    assert run.stages["round-0"]["rows"] == [8] and [line["labels"] for line in run.lines] == [8, 9]


def test_what_active_learning_cannot_be_done_with(tmp_path):
    with pytest.raises(DataError, match="no labelled row of the class b"):
        method, run = nine_rows(tmp_path, [0] * 9)
        method.distill(run)
    method, run = nine_rows(tmp_path, teacher_refresh=True)
    with pytest.raises(CompatibilityError, match="the teacher has none"):
        method.distill(run)
    method, run = nine_rows(tmp_path)
    run.given["logits"][8, 1] = np.inf
    with pytest.raises(TrainingError, match="not all numbers"):
        method.distill(run)
    run.student = SimpleNamespace(classes=["a", "b"])
    with pytest.raises(CompatibilityError, match="a second head"):
        method.distill(run)


def test_batches_of_labelled_rows_alone():
    drawn = list(_batches(np.array([4, 6]), np.array([], int), 3, 2, np.random.default_rng(0)))
    assert [len(first) for first, _ in drawn] == [3, 3] and all(len(second) == 0 for _, second in drawn)
    assert {int(i) for first, _ in drawn for i in first} <= {4, 6}


def student_of(run) -> bytes:
    return (run.folder / "student/model.safetensors").read_bytes()


def test_labels_from_a_file_round_by_round(tmp_path):
    """Every round stops and says which rows wait; what was chosen before stays chosen."""
    same = {"per_class": 20, "options": FEATURES}
    few = {"source": "labels:digits", "options": {**same, "labelled": 1}}
    recipe = {**RECIPE, "data": {"train": [few]}, "options": {**RECIPE["options"], "oracle": "file"}}
    labels = Resolver().open_data("labels:digits", DataOptions(), same).split("train")["label"]
    folder, asked, run = tmp_path / "run", [], None
    for turn in range(3):
        try:
            run = kdhub.distill(recipe, out=folder) if not turn else kdhub.distill(resume=folder)
        except AwaitingError as error:
            assert error.exit_code == 5 and "5 of 5 rows wait for a label" in error.message and "--resume" in error.hint
            with open(folder / QUERIES, newline="") as file:
                rows = list(csv.DictReader(file))
            asked.append([int(row["row"]) for row in rows if not row["label"]])
            with open(folder / QUERIES, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["row", "label"])
                writer.writerows([row["row"], labels[int(row["row"])]] for row in rows)
    assert run is not None and [len(rows) for rows in asked] == [5, 5] and not set(asked[0]) & set(asked[1])
    assert [record["labels"] for record in run.metrics()][-1] == 10 + 10


def test_prototypes_fitted_to_labels_know_more():
    """On digits, noisy means and five labelled rows a class; a class that is right by itself stays where it is."""
    teacher = Prototypes("digits", Prototypes.Options(noise=0.8, data=FEATURES))
    rows = Resolver().open_data("digits", DataOptions(), FEATURES).split("train")[:600]
    examples = [{"x": np.array(x)} for x in rows["features"]]
    truth = np.array(rows["label"])
    few = {int(i): int(c) for c in range(10) for i in np.flatnonzero(truth == c)[:5]}
    others = [i for i in range(600) if i not in few]
    before, after = (z[others].argmax(1) == truth[others] for z in (
        teacher.signals(examples, "logits")["logits"], teacher.fitted(examples, few)))  # fmt: skip
    assert after.mean() > before.mean() + 0.03
    start = np.eye(3)[:, :2] + 0.1
    same = adapted(start, start[:2], np.array([0, 1]), scale=20.0, steps=0)
    assert same == pytest.approx(start / np.linalg.norm(start, axis=1).mean())
    moved = adapted(start, np.array([[1.0, 0.1], [1.0, 0.2]]), np.array([0, 1]), scale=20.0) - same
    assert np.linalg.norm(moved[1]) > 3 * np.linalg.norm(moved[0]), "of the second class it was wrong"


def test_prototypes_are_fitted_as_by_a_plain_loop():
    """SGD with momentum over all rows; a class is held by how right it was, one without rows is held fast."""
    rng = np.random.default_rng(0)
    start, vectors, labels = rng.normal(size=(3, 2)), rng.normal(size=(5, 2)), [0, 1, 1, 0, 0]
    p0 = torch.from_numpy(start / np.linalg.norm(start, axis=1).mean())
    f = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)

    def log_p(p):
        return (4 * f @ (p / p.norm(dim=1, keepdim=True)).T).log_softmax(1)[range(5), labels]

    right = log_p(p0).exp()
    held = torch.tensor([right[[0, 3, 4]].mean(), right[[1, 2]].mean(), 1.0], dtype=torch.float64)
    p, speed = p0.clone().requires_grad_(), torch.zeros_like(p0)
    for step in range(20):
        loss = -log_p(p).mean() + (held * (p - p0).square().sum(1)).mean()
        speed = 0.9 * speed + torch.autograd.grad(loss, p)[0]
        p = (p - 0.01 * min((step + 1) / 2, (20 - step) / 18) * speed).detach().requires_grad_()
    assert adapted(start, vectors, labels, scale=4.0, steps=20) == pytest.approx(p.detach().numpy(), abs=1e-12)
    assert adapted(start.astype(np.float32), vectors, labels, scale=4.0, steps=1).dtype == np.float64


def test_a_teacher_fitted_between_rounds(tmp_path):
    runs = [
        kdhub.distill({**RECIPE, "options": {**RECIPE["options"], "teacher_refresh": on}}, out=tmp_path / str(on))
        for on in (True, False)
    ]
    first = [json.loads((run.folder / "state.json").read_text())["stages"]["round-0"]["rows"] for run in runs]
    assert first[0] == first[1] and student_of(runs[0]) != student_of(runs[1]), "from the second round on"
    other = {**RECIPE, "teacher": f"path:{runs[0].student_folder}", "options": {"teacher_refresh": True}}
    with pytest.raises(CompatibilityError, match="teacher has none"):
        kdhub.distill(other, out=tmp_path / "other")


def test_the_same_seed_asks_for_the_same_rows_and_another_run_resumes_to_the_same_student(tmp_path):
    runs = [kdhub.distill(RECIPE, out=tmp_path / name) for name in ("a", "b")]
    assert student_of(runs[0]) == student_of(runs[1])
    stages = json.loads((runs[0].folder / "state.json").read_text())["stages"]
    assert len(stages["round-0"]["rows"]) == len(stages["round-1"]["rows"]) == 5
    other = kdhub.distill({**RECIPE, "seed": 1}, out=tmp_path / "c")
    assert student_of(other) != student_of(runs[0])


def test_a_student_that_goes_on_from_round_to_round(tmp_path, monkeypatch):
    """Without `reinit` a round begins with the weights of the one before, also where a run was stopped between."""
    recipe = {**RECIPE, "options": {**RECIPE["options"], "reinit": False}}
    starts, own = {}, PCoreSet._train

    def train(self, run, rows, given, labels, number, after=None):
        student = self._start(run, number, after)
        starts[number] = {n: v.clone() for n, v in student.module.state_dict().items()}
        made = own(self, run, rows, given, labels, number, after)
        starts[number, "end"] = {n: v.clone() for n, v in made.module.state_dict().items()}
        return made

    monkeypatch.setattr(PCoreSet, "_train", train)
    whole = kdhub.distill(recipe, out=tmp_path / "whole")
    for number in (1, 2):
        assert all(torch.equal(v, starts[number - 1, "end"][n]) for n, v in starts[number].items())
    kdhub.distill(RECIPE, out=tmp_path / "fresh")
    assert not all(torch.equal(v, starts[1, "end"][n]) for n, v in starts[2].items())

    def stop(self, run, rows, given, labels, number, after=None):
        if number == 2:
            raise KeyboardInterrupt
        return own(self, run, rows, given, labels, number, after)

    monkeypatch.setattr(PCoreSet, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        kdhub.distill(recipe, out=tmp_path / "cut")
    monkeypatch.setattr(PCoreSet, "_train", own)
    assert student_of(kdhub.distill(resume=tmp_path / "cut")) == student_of(whole)
