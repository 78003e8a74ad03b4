"""Plugins for the toy task that break the contracts, one rule each: what the conformance kit must catch."""

from __future__ import annotations

import os
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import toy
from torch import nn

from kdhub import DatasetSpec, MethodSpec, MetricSpec, SamplerSpec, StudentSpec, TeacherSpec, hookimpl
from kdhub.data.dataset import Data
from kdhub.method import Method, MethodOptions, ObjectiveMethod, TrainingOptions
from kdhub.metric import Measure
from kdhub.sampler import ShuffledSampler

ELSEWHERE = Path(tempfile.gettempdir()) / f"kdhub-wrong-{os.getpid()}"

METHODS: dict[str, dict] = {}


def wrong(name: str, **spec):
    def declare(cls):
        METHODS[name] = {"target": f"wrong:{cls.__name__}", "needs": ("vector",), "paper": "arXiv:1503.02531"} | spec
        return cls

    return declare


class Plain(ObjectiveMethod):
    """Nothing wrong with it: what the others go wrong from."""

    def objective(self, student, teacher, batch, progress):
        return {"match": (student.vector - teacher.vector).square().mean()}


wrong("right")(Plain)
wrong("no-paper", paper="")(Plain)
wrong("needs-nothing", needs=(), uses=("vector",))(Plain)


@wrong("asks-nobody")
class AsksNobody(Plain):
    def ask(self, student, batch, teacher):
        return teacher({"x": batch["x"] / 2})  # never called: its teacher's signals are stored


@wrong("undocumented")
class Undocumented(Plain):
    class Options(TrainingOptions):
        strength: float = 1.0


@wrong("wrong-defaults")
class WrongDefaults(Plain):
    defaults_for = {"classes": {"lr": -1.0}}


@wrong("moves-teacher")
class MovesTeacher(Plain):
    def adapt(self, student, teacher):
        self.teacher = teacher

    def objective(self, student, teacher, batch, progress):
        with torch.no_grad():
            self.teacher.module.map.weight.add_(0.1)
        return super().objective(student, teacher, batch, progress)


@wrong("forgets-its-head")
class ForgetsItsHead(Plain):
    """A head with an optimiser of its own: no checkpoint has it."""

    def adapt(self, student, teacher):
        torch.manual_seed(0)
        self.head = nn.Linear(toy.OUTPUTS, toy.OUTPUTS)
        self.optimiser = torch.optim.SGD(self.head.parameters(), 0.1)

    def objective(self, student, teacher, batch, progress):
        own = (self.head(student.vector.detach()) - teacher.vector).square().mean()
        self.optimiser.zero_grad()
        own.backward()
        self.optimiser.step()
        return {"match": (self.head(student.vector) - teacher.vector).square().mean()}


@wrong("undeclared-module")
class UndeclaredModule(Plain):
    """Gradients reach a module that nobody steps or saves."""

    def adapt(self, student, teacher):
        torch.manual_seed(0)
        self.projection = nn.Linear(toy.OUTPUTS, toy.OUTPUTS)

    def objective(self, student, teacher, batch, progress):
        return {"match": (self.projection(student.vector) - teacher.vector).square().mean()}


@wrong("unseeded")
class Unseeded(Plain):
    def objective(self, student, teacher, batch, progress):
        noise = np.random.default_rng().random()
        return {"match": (student.vector - teacher.vector).square().mean() * (1 + noise)}


@wrong("one-seed-only")
class OneSeedOnly(Plain):
    def distill(self, run):
        run.seed = 0
        return super().distill(run)


@wrong("mean-of-means")
class MeanOfMeans(Plain):
    """A mean over the rows of a batch that have something, which batches have not alike."""

    def objective(self, student, teacher, batch, progress):
        kept = batch["x"][:, 0] > 0
        apart = (student.vector - teacher.vector).square().mean(-1)
        return {"match": (apart * kept).sum() / kept.sum().clamp_min(1)}


@wrong("ignores-teacher")
class IgnoresTeacher(Plain):
    def objective(self, student, teacher, batch, progress):
        return {"match": (student.vector - batch["y"]).square().mean()}


@wrong("trains-on-test")
class TrainsOnTest(Plain):
    def distill(self, run):
        test = run.resolver.open_data("toy-points", toy.Data.from_rows("x", {}, key={}).options).split("test")
        with torch.no_grad():
            run.student.module.outer.bias.copy_(torch.tensor(test["y"]).mean(0))
        return super().distill(run)


@wrong("follows-evaluation")
class FollowsEvaluation(Plain):
    """Trains longer when there is something to score on."""

    def distill(self, run):
        self.options.max_steps = 5 if run.recipe.evaluation.data else 4
        return super().distill(run)


@wrong("reports-the-teacher")
class ReportsTheTeacher(Plain):
    def evaluate(self, run, student):
        report = super().evaluate(run, student)
        teacher = {(m.metric, m.dataset): m for m in report.measures if m.subject == "teacher"}
        report.measures = [
            replace(m, value=teacher[m.metric, m.dataset].value)
            if m.subject == "student" and (m.metric, m.dataset) in teacher
            else m
            for m in report.measures
        ]
        return report


@wrong("reports-little")
class ReportsLittle(Plain):
    def evaluate(self, run, student):
        report = super().evaluate(run, student)
        report.measures = [m for m in report.measures if m.subject != "student-before"]
        return report


@wrong("saves-another")
class SavesAnother(Plain):
    """Doubles the outputs in a way that is not saved."""

    def adapt(self, student, teacher):
        student.module.outer.register_forward_hook(lambda module, inputs, output: 2 * output)


@wrong("leaks-a-file")
class LeaksAFile(Plain):
    def distill(self, run):
        ELSEWHERE.write_text("mine")
        return super().distill(run)


@wrong("swallows-everything")
class SwallowsEverything(Plain):
    def distill(self, run):
        try:
            return super().distill(run)
        except BaseException:
            return run.student


@wrong("own-loop")
class OwnLoop(Method):
    """Trains by hand and never looks at the loss."""

    Options = MethodOptions

    def distill(self, run):
        rows = run.rows("train")
        student = run.student
        run.run.stage("student-before", lambda: [])
        optimiser = torch.optim.SGD(student.module.parameters(), 0.1)
        x = torch.tensor([e["x"] for e in rows[np.arange(len(rows))]])
        y = torch.as_tensor(run.signals(rows, "vector")[np.arange(len(rows))]["vector"])
        for step in range(3):
            loss = (student.module(x)["vector"] - y).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            run.log(step=step, loss=loss.item())
        return student

    def evaluate(self, run, student):
        report = super().evaluate(run, student)
        report.measures.append(Measure(metric="toy-error", value=1.0, subject="student-before"))
        return report


@wrong("silent-rows", uses=())
class SilentRows(toy.Label):
    """Makes rows and measures nothing of them."""

    def evaluate(self, run, student):
        report = super().evaluate(run, student)
        report.measures = [m for m in report.measures if m.subject == "teacher"]
        return report


class Miscounted(toy.DatasetStudent):
    def costs(self, folder):
        return {**super().costs(folder), "rows": 1}


@wrong("miscounts-rows", uses=())
class MiscountsRows(toy.Label):
    def distill(self, run):
        return Miscounted("toy-vectors", super().distill(run).splits)


# -- other kinds ----------------------------------------------------------------------------------------------


class Restless(toy.Linear):
    @property
    def identity(self):
        return {"kind": "restless", "id": uuid.uuid4().hex}


class Noisy(toy.Linear):
    def signals(self, examples, kind):
        return {k: v + np.random.default_rng().normal(size=v.shape) for k, v in super().signals(examples, kind).items()}


class Narrow(toy.Linear):
    def layout(self, kind):
        return {kind: (toy.OUTPUTS + 1,)}


class Masked(toy.SizesStudent):
    """Cuts out another member than is asked for."""

    def cut(self, name):
        return super().cut(list(self.members)[0])


class Shared(toy.SizesStudent):
    """Its members are views of its own weights."""

    def cut(self, name):
        return toy.NetStudent(self.module.nets[name])


class Unsorted(toy.SizesStudent):
    pass


class Stuck(toy.SizesStudent):
    """Stays what it was chosen to be."""

    def choose(self, name):
        super().choose(name or self.module.member)


def families(name):
    """A builder of a family of this class."""

    def build(argument, context):
        torch.manual_seed(context.seed)
        hidden = [5, 2] if name == "Unsorted" else [2, 5]
        return globals()[name](toy.Pool(hidden))

    return build


masked, shared, unsorted, stuck = map(families, ("Masked", "Shared", "Unsorted", "Stuck"))


class Forgetful(ShuffledSampler):
    """Its order follows the losses, and its state does not say so."""

    def __init__(self, lengths, batch, seed, **options):
        super().__init__(lengths, batch, seed, **options)
        self.told = 0.0

    def observe(self, step, terms):
        self.told += sum(terms.values())

    def epoch(self, number):
        rng = np.random.default_rng(int(1000 * self.told) + number)
        yield from rng.integers(0, len(self.lengths), self.batch).tolist()


class Blind(ShuffledSampler):
    """Asks for a column and does not look at it."""


class Ragged(ShuffledSampler):
    def epoch(self, number):
        yield from range(len(self.lengths) - 1)


def moving() -> Data:
    stamp = uuid.uuid4().hex
    return Data.from_rows("moving", {"train": lambda: ({"text": f"{stamp} {i}"} for i in range(3))}, key={"k": stamp})


def unnamed() -> Data:
    """Has something for its rows to share, and none of them names it."""
    graph = toy.Shared({"name": "unnamed"}, lambda: {"edges": np.zeros((2, 2), np.int64)})
    return Data.from_rows("unnamed", {"train": lambda: [{"node": 1}]}, key={}, shared=[graph])


def nan(outputs) -> float:
    return float("nan")


@hookimpl
def kdhub_methods():
    for name, spec in METHODS.items():
        yield MethodSpec(name=name, tasks=toy.TASK, summary=name, **spec)


@hookimpl
def kdhub_teachers():
    for cls in (Restless, Noisy, Narrow):
        name = cls.__name__.lower()
        options = {"argument": "SEED", "example": "1", "tasks": toy.TASK, "gives": ("vector",)}
        yield TeacherSpec(name=name, target=f"wrong:{cls.__name__}", summary=name, **options)


def cousin(argument, context):
    student = toy.mlp("6", context)
    student.start["relation"] = "cousin"
    return student


@hookimpl
def kdhub_students():
    for name in ("cousin", "masked", "shared", "unsorted", "stuck"):
        yield StudentSpec(name=name, target=f"wrong:{name}", tasks=toy.TASK, exposes=("vector",), summary=name)


@hookimpl
def kdhub_samplers():
    yield SamplerSpec(name="forgetful", target="wrong:Forgetful", summary="forgetful")
    yield SamplerSpec(name="blind", target="wrong:Blind", summary="blind", columns=("label",))
    yield SamplerSpec(name="ragged", target="wrong:Ragged", summary="ragged")


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(name="unnamed", target="wrong:unnamed", summary="shares what nobody names")
    yield DatasetSpec(name="moving", target="wrong:moving", summary="other rows each time", splits=("train",))


@hookimpl
def kdhub_metrics():
    yield MetricSpec(name="nan", target="wrong:nan", tasks=toy.TASK, summary="no number")
    yield MetricSpec(name="nan-cost", target="wrong:nan", tasks=toy.TASK, summary="no number", cost=True)
