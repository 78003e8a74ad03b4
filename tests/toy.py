"""A family of its own for the tests, as small as one can be: vectors to vectors, a teacher that is a matrix.

It goes through the public door only, and is as unlike LEAF as four methods can be: one with an extra module and a
state, one that makes a data set in stages, one whose live teacher sees mixed batches, and one without a teacher.
Register it with `plugins.register(toy, "kdhub-toy")`.
"""

from __future__ import annotations

import io
import json
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import nn

from kdhub import (
    DatasetSpec,
    MethodSpec,
    MetricSpec,
    SamplerSpec,
    StudentSpec,
    TaskSpec,
    TeacherSpec,
    hookimpl,
    open_data,
)
from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.data.shared import Shared, shared
from kdhub.dataset_student import DatasetStudent, splits_in
from kdhub.errors import DataError
from kdhub.method import Method, MethodOptions, ObjectiveMethod, TrainingOptions
from kdhub.pictures import Picture
from kdhub.rows import Signals
from kdhub.sampler import Sampler
from kdhub.student import Student
from kdhub.task import NetworkTask
from kdhub.teacher import Teacher

INPUTS, OUTPUTS = 4, 3
TASK = ("toy-vectors",)


# -- what it provides -----------------------------------------------------------------------------------------


@hookimpl
def kdhub_tasks():
    yield TaskSpec(name="toy-vectors", target="toy:Vectors", signals=("vector", "hidden"), summary="vectors to vectors")


@hookimpl
def kdhub_methods():
    def method(name, target, **spec):
        return MethodSpec(name=name, target=f"toy:{target}", tasks=TASK, summary="a toy", **spec)

    yield method("toy-hint", "Hint", needs=("vector",), uses=("vector", "hidden"), recipe="toy-hint")
    yield method("toy-label", "Label", needs=("vector",), uses=())
    yield method("toy-mix", "Mix", needs=("vector",), live=True)
    yield method("toy-plain", "Plain", uses=("vector",), labels=True)
    yield method("toy-attention", "Plain", needs=("attentions",))


@hookimpl
def kdhub_teachers():
    yield TeacherSpec(name="linear", target="toy:Linear", tasks=TASK, gives=("vector",), argument="SEED", live=True)
    yield TeacherSpec(name="far", target="toy:Linear", tasks=TASK, gives=("vector",), argument="SEED")


@hookimpl
def kdhub_students():
    yield StudentSpec(name="mlp", target="toy:mlp", tasks=TASK, exposes=("vector", "hidden"), argument="HIDDEN")
    yield StudentSpec(name="narrow", target="toy:mlp", tasks=TASK, exposes=("vector",), argument="HIDDEN")
    yield StudentSpec(name="sizes", target="toy:sizes", tasks=TASK, exposes=("vector", "hidden"), argument="N,N",
                      example="2,5", summary="a family")  # fmt: skip
    yield StudentSpec(name="table", target="toy:table", tasks=TASK, exposes=(), summary="rows, no model")


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(name="toy-points", target="toy:points", splits=("train", "test"))
    yield DatasetSpec(name="toy-first", target="toy:first", argument="DATA", summary="the first rows of others")
    yield DatasetSpec(name="toy-graph", target="toy:nodes", splits=("train", "test"), summary="nodes of a graph")


@hookimpl
def kdhub_samplers():
    yield SamplerSpec(name="toy-curious", target="toy:Curious", tasks=TASK)
    yield SamplerSpec(name="toy-sorted", target="toy:Sorted", tasks=TASK, columns=("place",))


@hookimpl
def kdhub_metrics():
    yield MetricSpec(name="toy-error", target="toy:error", tasks=TASK, form="rows", higher_is_better=False)
    yield MetricSpec(name="toy-spread", target="toy:spread", tasks=TASK, files=True)
    yield MetricSpec(name="toy-calls", target="toy:calls", tasks=TASK, cost=True, higher_is_better=False)
    yield MetricSpec(name="toy-distance", target="toy:distance", tasks=TASK, fidelity=True, higher_is_better=False)


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "data" / "toy"


# -- data -----------------------------------------------------------------------------------------------------


def points(n: int = 40) -> Data:
    """Points with a smooth label; the test split is other points."""

    def rows(seed: int, n: int):
        for x in np.random.default_rng(seed).normal(size=(n, INPUTS)):
            yield {"x": x.tolist(), "y": np.sin(x[:OUTPUTS]).tolist()}

    splits = {"train": lambda: rows(0, n), "test": lambda: rows(1, 16)}
    return Data.from_rows("toy-points", splits, key={"n": n, "version": 1}, licence="cc0-1.0")


def first(argument: str, *, n: int = 4) -> Data:
    """The first rows of another data set."""
    data = open_data(argument)
    return data.remade(
        f"toy-first:{argument}", lambda split: islice(iterate(data.split(split)), n), data.splits, key={"n": n}
    )


def ring(n: int) -> dict[str, np.ndarray]:
    """A graph: each node with its features and its two neighbours."""
    numbers = np.arange(n)
    features = np.random.default_rng(0).normal(size=(n, INPUTS))
    return {"features": features, "neighbours": np.stack([(numbers - 1) % n, (numbers + 1) % n], 1)}


def nodes(n: int = 40) -> Data:
    """Nodes of a ring: a row names its graph and its node, and has a label."""
    graph = Shared({"name": "ring", "n": n}, lambda: ring(n))

    def rows(start: int):
        for node in range(start, n, 2):
            yield {"graph": graph.name, "node": node, "y": [float(node % 3)] * OUTPUTS}

    return Data.from_rows(
        "toy-graph", {"train": lambda: rows(0), "test": lambda: rows(1)}, key={"n": n}, shared=[graph]
    )


def x_of(example) -> list[float]:
    """What a network sees of a row: the row's own, or the mean of the neighbours of its node."""
    if "x" in example:
        return example["x"]
    graph = shared(example["graph"])
    return graph["features"][graph["neighbours"][example["node"]]].mean(0).tolist()


# -- models ---------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.inner, self.drop, self.outer = nn.Linear(INPUTS, hidden), nn.Dropout(0.5), nn.Linear(hidden, OUTPUTS)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.drop(torch.tanh(self.inner(x)))
        return {"vector": self.outer(hidden), "hidden": hidden}


class Vectors(NetworkTask):
    """Rows have `x`, and for methods with labels and for metrics also `y`."""

    name = "toy-vectors"
    primary = {"rows": "toy-error"}
    primary_signal = "vector"

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        scale: float = Field(1.0, gt=0, description="of the outputs")

    def training_table(self, parts):
        from datasets import concatenate_datasets

        for data, split in parts:
            if not {"x", "node"} & set(data.split(split).column_names):
                raise DataError(f"{data.name}, split {split!r}, has no column 'x'")
        return concatenate_datasets([data.split(split) for data, split in parts])

    def preparer(self, student, teacher, **settings):
        def prepare(rows):
            return [{**row, **seen(row), "cut": 0} for row in rows]

        def seen(row):
            if "graph" in row:
                return {"content": f"{row['graph']} {row['node']}".encode(), "length": 1}
            return {"content": np.asarray(row["x"], "<f4").tobytes(), "length": 1 + int(abs(row["x"][0]))}

        return prepare

    def collate(self, examples, student):
        batch = {"x": torch.tensor([x_of(e) for e in examples])}
        return batch | ({"y": torch.tensor([e["y"] for e in examples])} if "y" in examples[0] else {})

    def forward(self, module, inputs):
        return Signals(module(inputs["x"]))

    def load(self, folder, *, name=None):
        if (folder / "data").exists():
            return DatasetStudent.load(folder)
        config = json.loads((folder / "config.json").read_text())
        if "sizes" in config:
            return SizesStudent.load(folder, config["sizes"])
        net = Net(config["hidden"])
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return NetStudent(net.eval())

    def outputs(self, encode, data, split):
        table = data.split(split)
        return Outputs(encode(table, "vector")["vector"], np.asarray(table["y"]))

    def sample(self, data, split, n):
        rows = data.split(split).remove_columns("y")
        return rows.select(range(min(n, len(rows)))).to_list()

    def to_draw(self, outputs, n):
        return {"vectors": outputs.vectors[:n]}

    def draw(self, data, split, given):
        """A column for each subject, a line for each row: its vector as a colour."""
        columns = [given[name]["vectors"] for name in ("teacher", "student-before", "student") if name in given]
        pixels = np.stack(columns, axis=1).clip(-1, 1) * 127 + 128
        yield Picture("vectors.png", f"Vectors as colours: {', '.join(given)}.", png(pixels.astype(np.uint8)))

    def tiny_recipe(self, folder):
        return {
            "teacher": "linear:1",
            "student": "mlp:6",
            "data": {"train": "toy-points"},
            "evaluation": {"data": [{"source": "toy-points", "split": "test"}], "cost": False},
        }


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


class Outputs:
    def __init__(self, vectors, labels):
        self.vectors, self.labels, self.examples = vectors, labels, len(vectors)


def error(outputs: Outputs) -> float:
    return float(np.square(outputs.vectors - outputs.labels).mean())


def spread(folder: Path) -> dict[str, float]:
    """Of the labels of rows; a network has none."""
    return {name: float(np.std(rows["y"])) for name, rows in splits_in(folder).items()}


def calls(costed) -> int | None:
    """Of the network, for two rows; of rows the bytes of a label."""
    if costed.answer is None:
        return OUTPUTS * 8 if isinstance(costed.model, DatasetStudent) else None
    seen = []
    handle = costed.model.module.register_forward_hook(lambda *_: seen.append(1))
    costed.answer(2)
    handle.remove()
    return len(seen)


def distance(outputs: Outputs, teacher: Outputs) -> float:
    return float(np.square(outputs.vectors - teacher.vectors).mean())


def run_net(net: nn.Module, examples) -> np.ndarray:
    with torch.no_grad():
        return net.eval()(torch.tensor([x_of(e) for e in examples]))["vector"].numpy()


class NetStudent(Student):
    task = "toy-vectors"

    def __init__(self, module: Net, start=None):
        super().__init__(start)
        self.module = module

    def describe(self):
        return {"widths": {"vector": [OUTPUTS]}}

    def signals(self, examples, kind):
        return {kind: run_net(self.module, examples)}

    def save(self, folder):
        save_file(self.module.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"hidden": self.module.inner.out_features}))


class Pool(nn.Module):
    """Networks that share nothing, one of which is run; the last stands for the whole."""

    def __init__(self, hidden):
        super().__init__()
        self.nets = nn.ModuleDict({f"h{n}": Net(n) for n in hidden})
        self.member = None

    def forward(self, x):
        return self.nets[self.member or list(self.nets)[-1]](x)


class SizesStudent(NetStudent):
    """A family: a pool of networks, saved a file each."""

    @property
    def members(self):
        return {name: {"hidden": net.inner.out_features} for name, net in self.module.nets.items()}

    def choose(self, name):
        self.module.member = name

    def cut(self, name):
        net = Net(self.members[name]["hidden"])
        net.load_state_dict(self.module.nets[name].state_dict())
        return NetStudent(net.eval(), self.start)

    def save(self, folder):
        for name, net in self.module.nets.items():
            save_file(net.state_dict(), folder / f"{name}.safetensors")
        sizes = [how["hidden"] for how in self.members.values()]
        (folder / "config.json").write_text(json.dumps({"kdhub": 1, "task": self.task, "sizes": sizes}))

    @classmethod
    def load(cls, folder, sizes):
        pool = Pool(sizes)
        for name, net in pool.nets.items():
            net.load_state_dict(load_file(folder / f"{name}.safetensors"))
        return cls(pool.eval())


def sizes(argument, context) -> SizesStudent:
    torch.manual_seed(context.seed)
    return SizesStudent(Pool([int(n) for n in argument.split(",")]))


def mlp(argument, context) -> NetStudent:
    torch.manual_seed(context.seed)
    return NetStudent(Net(int(argument)), {"hidden": int(argument)})


def table(argument, context) -> DatasetStudent:
    """A student that is no model: a data set."""
    return DatasetStudent("toy-vectors")


class Matrix(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        self.map = nn.Linear(INPUTS, OUTPUTS)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            nn.init.normal_(p, generator=generator)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"vector": self.map(x)}


class Linear(Teacher):
    """`linear:SEED`. `asked` counts the rows any of its kind was asked for in this process."""

    class Options(Teacher.Options):
        gain: float = Field(1.0, gt=0)

    asked = 0
    group_rows = 16
    last: Linear | None = None

    def __init__(self, argument, options=None, *, task=None):
        super().__init__(argument, options, task=task)
        self.module = Matrix(int(argument)).eval()
        Linear.last = self

    @property
    def identity(self):
        return {"kind": "linear", "seed": self.argument, "gain": self.options.gain}

    def layout(self, kind):
        return {kind: (OUTPUTS,)}

    def signals(self, examples, kind):
        Linear.asked += len(examples)
        return {kind: run_net(self.module, examples) * self.options.gain}


# -- methods --------------------------------------------------------------------------------------------------


class Hint(ObjectiveMethod):
    """The output and, through a projection, the hidden layer are led to the teacher's vector. The weight of the hint
    follows a running mean, so that a resumed run is right only when it has extras and state back."""

    class Options(TrainingOptions):
        hint_weight: float = Field(1.0, ge=0, description="weight of the hint")

    batchwise = "the weight of the hint follows each batch"
    fail_at: int | None = None
    """Raise at this step, as a kill would."""

    def __init__(self, options, spec=None):
        super().__init__(options, spec)
        self.mean = 1.0

    def extras(self, student, teacher):
        torch.manual_seed(7)
        return {"projection": nn.Linear(student.module.inner.out_features, OUTPUTS)}

    def objective(self, student, teacher, batch, progress):
        if progress.step == Hint.fail_at:
            raise KeyboardInterrupt
        hint = (self.modules["projection"](student.hidden) - teacher.vector).square().mean()
        self.mean = 0.9 * self.mean + 0.1 * hint.item()
        match = (student.vector - teacher.vector).square().mean()
        return {"match": match, "hint": self.options.hint_weight * hint / self.mean}

    def state(self):
        return {"mean": self.mean}

    def load_state(self, state):
        self.mean = state["mean"]


class Label(Method):
    """The student is a data set: rows with the teacher's vector as their label, made in two stages."""

    class Options(MethodOptions):
        keep: float = Field(1.0, gt=0, le=1, description="share of the rows kept")

    fail = False

    def distill(self, run):
        rows = run.rows("train")
        count = run.stage("choose", lambda: round(self.options.keep * len(rows)))
        if Label.fail:
            raise KeyboardInterrupt

        def label():
            given = run.signals(rows, "vector")[np.arange(count)]["vector"]
            return [{"x": e["x"], "y": np.asarray(v, float).tolist()} for e, v in zip(rows[np.arange(count)], given)]

        return DatasetStudent("toy-vectors", {"train": datasets.Dataset.from_list(run.stage("label", label))})


class Mix(ObjectiveMethod):
    """The live teacher and the student see the same mixed rows."""

    batchwise = "rows of a batch are mixed"

    def prepare_batch(self, batch, generator):
        share = torch.rand(len(batch["x"]), 1, generator=generator)
        return {**batch, "x": share * batch["x"] + (1 - share) * batch["x"].flip(0)}

    def objective(self, student, teacher, batch, progress):
        return {"match": (student.vector - teacher.vector).square().mean()}


class Plain(ObjectiveMethod):
    """No teacher: the rows' own labels."""

    class Options(TrainingOptions):
        poison: int | None = Field(None, description="this step's loss is not a number")
        second: float = Field(0.0, description="another term of this size")

    def objective(self, student, teacher, batch, progress):
        terms = {"labels": (student.vector - batch["y"]).square().mean()}
        if self.options.second:
            terms["second"] = self.options.second * student.vector.square().mean()
        if self.options.poison == progress.step:
            terms["labels"] = terms["labels"] * float("nan")
        return terms


class Curious(Sampler):
    """Draws rows one by one with weights that follow the losses it was told of: order and weights are its state."""

    def __init__(self, lengths, batch, seed, **options):
        super().__init__(lengths, batch, seed, **options)
        self.bias = 0.0

    def epoch(self, number):
        rng = np.random.default_rng([self.seed, number])
        n = len(self.lengths)
        for _ in range(-(-n // self.batch) * self.batch):
            yield int(n * rng.random() ** (1 + self.bias))

    def observe(self, step, terms):
        self.bias = 0.5 * self.bias + sum(terms.values()) % 1

    def state(self):
        return {"bias": self.bias}

    def load_state(self, state):
        self.bias = state["bias"]


class Sorted(Sampler):
    """Rows by their column `place`; the last ones again where they are not whole batches."""

    def epoch(self, number):
        order = np.argsort(np.asarray(self.columns["place"]), kind="stable")
        return np.concatenate([order, order[len(order) - -len(order) % self.batch :]])
