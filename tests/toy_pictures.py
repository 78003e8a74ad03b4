"""A second family for the tests: a row is a seed and a condition, a teacher draws a picture for it in some steps.

Its pictures are a signal with settings, `image:{"steps":4}`, stored or made live; the student draws in one step.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn

from kdhub import DatasetSpec, MethodSpec, MetricSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl
from kdhub.data.dataset import Data
from kdhub.fields import Field as Stored
from kdhub.files import canonical_json
from kdhub.method import ObjectiveMethod, TrainingOptions
from kdhub.rows import Signals
from kdhub.signals.settings import SignalSettings, own_noise
from kdhub.student import Student
from kdhub.task import NetworkTask
from kdhub.teacher import Teacher

SHAPE, CONDITIONS = (4, 4), ("dark", "light", "half")
TASK = ("toy-pictures",)


class Drawing(SignalSettings):
    signal = "image"
    steps: int = Field(8, ge=1, le=100, description="steps from noise to the picture")


@hookimpl
def kdhub_tasks():
    yield TaskSpec(name="toy-pictures", target="toy_pictures:Pictures", signals=("image",), summary="seeds to pictures")


@hookimpl
def kdhub_methods():
    method = MethodSpec.shorthand("toy_pictures:", tasks=TASK, needs=("image",), paper="arXiv:1503.02531")
    yield method("toy-draw", "Draw", "learns stored pictures")
    yield method("toy-draw-live", "DrawLive", "learns pictures as they are drawn", live=True)


@hookimpl
def kdhub_teachers():
    yield TeacherSpec(
        name="painter", target="toy_pictures:Painter", tasks=TASK, gives=("image",), live=True, summary="draws in steps"
    )


@hookimpl
def kdhub_students():
    yield StudentSpec(name="one-step", target="toy_pictures:one_step", tasks=TASK, summary="draws at once")


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(name="toy-seeds", target="toy_pictures:seeds", splits=("train", "test"), summary="seeds")


@hookimpl
def kdhub_metrics():
    metric = MetricSpec.shorthand("toy_pictures:", tasks=TASK)
    yield metric("toy-likeness", "unlike", "mean squared difference", fidelity=True, higher_is_better=False)
    yield metric("toy-brightness", "brightness", "mean of all pixels")


def seeds(n: int = 24) -> Data:
    def rows(first: int, many: int):
        for seed in range(first, first + many):
            yield {"seed": seed, "condition": CONDITIONS[seed % 3]}

    return Data.from_rows("toy-seeds", {"train": lambda: rows(0, n), "test": lambda: rows(1000, 9)}, key={"n": n})


class Brush(nn.Module):
    """Goes from noise to a picture: each step part of the way to what the condition asks for."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.aims = nn.Parameter(torch.rand(len(CONDITIONS), *SHAPE, generator=generator), requires_grad=False)

    def forward(self, inputs) -> dict[str, torch.Tensor]:
        x, aim, steps = inputs["noise"], self.aims[inputs["condition"]], inputs.get("steps", Drawing().steps)
        for _ in range(steps):
            x = x + (aim - x) / 2
        return {"image": x.clamp(0, 1)}


class OneStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.gain = nn.Parameter(torch.full((len(CONDITIONS), *SHAPE), 0.5)), nn.Parameter(torch.tensor(0.1))

    def forward(self, inputs) -> dict[str, torch.Tensor]:
        return {"image": self.mean[inputs["condition"]] + self.gain * inputs["noise"]}


def collated(examples) -> dict[str, torch.Tensor]:
    noise = torch.from_numpy(own_noise([e["seed"] for e in examples], SHAPE))
    return {"noise": noise, "condition": torch.tensor([CONDITIONS.index(e["condition"]) for e in examples])}


def drawn(module: nn.Module, examples, **how) -> np.ndarray:
    """Pictures as bytes."""
    with torch.no_grad():
        image = module({**collated(examples), **how})["image"]
    return (255 * image.clamp(0, 1)).round().to(torch.uint8).numpy()


class Pictures(NetworkTask):
    name = "toy-pictures"
    primary = {"rows": "toy-brightness"}
    primary_signal = "image"

    def preparer(self, student, teacher, **settings):
        def prepare(rows):
            seen = [canonical_json([row["seed"], row["condition"]]) for row in rows]
            return [{**row, "content": content, "length": 1, "cut": 0} for row, content in zip(rows, seen)]

        return prepare

    def collate(self, examples, student):
        return collated(examples)

    def forward(self, module, inputs):
        return Signals(module(inputs))

    def load(self, folder, *, name=None):
        student = one_step("", None)
        student.module.load_state_dict(load_file(folder / "model.safetensors"))
        return student

    def outputs(self, encode, data, split):
        return Outputs(encode(data.split(split), "image")["image"])

    def sample(self, data, split, n):
        return data.split(split).select(range(min(n, len(data.split(split))))).to_list()

    def tiny_recipe(self, folder):
        return {
            "teacher": "painter", "student": "one-step", "data": {"train": "toy-seeds"},
            "evaluation": {"data": [{"source": "toy-seeds", "split": "test"}], "cost": False},
        }  # fmt: skip


class Outputs:
    def __init__(self, images):
        self.images, self.examples = np.asarray(images, np.float64) / 255, len(images)


def brightness(outputs: Outputs) -> float:
    return float(outputs.images.mean())


def unlike(outputs: Outputs, teacher: Outputs) -> float:
    return float(np.square(outputs.images - teacher.images).mean())


class Painter(Teacher):
    """`asked` counts the pictures that were drawn in this process."""

    asked = 0
    group_rows = 5

    def __init__(self, argument="", options=None, *, task=None):
        super().__init__(argument, options, task=task)
        self.module = Brush().eval()

    @property
    def identity(self):
        return {"kind": "painter", "version": 1}

    def layout(self, kind):
        Drawing.parse(kind)
        return {"image": Stored("image", "uint8", SHAPE)}

    def signals(self, examples, kind):
        Painter.asked += len(examples)
        return {"image": drawn(self.module, examples, steps=Drawing.parse(kind).steps)}


class Artist(Student):
    task = "toy-pictures"

    def __init__(self, module, start=None):
        super().__init__(start)
        self.module = module

    def describe(self):
        return {"widths": {"image": list(SHAPE)}}

    def signals(self, examples, kind):
        return {"image": drawn(self.module, examples)}

    def save(self, folder):
        save_file(self.module.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"kdhub": 1, "task": self.task}))


def one_step(argument, context) -> Artist:
    return Artist(OneStep(), {"how": "fresh"})


class Draw(ObjectiveMethod):
    """A teacher's pictures drawn in `steps`, at once."""

    class Options(TrainingOptions):
        steps: int = Field(4, ge=1, le=100, description="of the teacher")

    tiny_recipe = {"options": {"steps": 2}}

    def needs(self, teacher):
        return (Drawing(steps=self.options.steps).kind,)

    def objective(self, student, teacher, batch, progress):
        return {"picture": (student.image - _fractions(teacher.image)).square().mean()}


class DrawLive(Draw):
    def ask(self, student, batch, teacher):
        return teacher({**batch, "steps": self.options.steps})


def _fractions(image: torch.Tensor) -> torch.Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image
