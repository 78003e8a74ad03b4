"""A method for the tests that asks people: for the toy task, beside the methods of `toy.py`."""

from __future__ import annotations

import datasets
import numpy as np
import toy
from pydantic import Field

from kdhub import MethodSpec, hookimpl
from kdhub.dataset_student import DatasetStudent
from kdhub.method import Method, MethodOptions


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="toy-people", target="toy_people:People", tasks=toy.TASK, uses=(), summary="asks people")


class People(Method):
    """The student is a data set of a few rows with the label that people give them."""

    tiny_recipe = {"options": {"ask": 0}}

    class Options(MethodOptions):
        ask: int = Field(3, ge=0, le=10, description="rows that people label")

    def distill(self, run):
        rows = run.rows("train")
        examples = rows[np.arange(len(rows))]
        shown = {n: {"first": f"{examples[n]['x'][0]:.3f}"} for n in range(2, 2 + self.options.ask)}
        told = run.ask_people("signs.csv", shown, ("plus", "minus"))
        made = [{"x": examples[n]["x"], "y": [float(told.get(n) == "plus")] * toy.OUTPUTS} for n in (told or [0])]
        return DatasetStudent("toy-vectors", {"train": datasets.Dataset.from_list(made)})
