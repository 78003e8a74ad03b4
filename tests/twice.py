"""A process that trains two students in one run, for `test_kills.py`: started once with the number of steps of each
training, it forks a worker for each line.

A worker goes on with the run folder that the line names, or begins it, and says so by its exit code. Only the workers
compute: a fork of a process that has trained may hang.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import datasets  # noqa: F401 - what a run imports is loaded once, for all workers
import matplotlib.pyplot  # noqa: F401
import torch
import toy

from kdhub import MethodSpec, hookimpl
from kdhub.evaluation import card, plots  # noqa: F401
from kdhub.plugins import builtin
from kdhub.plugins.discovery import Plugins, set_plugins
from kdhub.training import engine, session  # noqa: F401
from kdhub.verbs.distill import distill


class Twice(toy.Hint):
    """A first student in a stage, then a second that starts from it; each with extras and a state of its own."""

    def distill(self, run):
        def first():
            trained = run.fit(toy.Hint(self.options, self.spec), run.student)
            return [value.tolist() for value in trained.module.state_dict().values()]

        kept = run.stage("first", first)
        (run.folder / "first.json").write_text(str(kept))
        second = toy.NetStudent(toy.Net(6))
        for value, numbers in zip(second.module.state_dict().values(), kept):
            value.copy_(torch.tensor(numbers) / 2)
        return run.fit(self, second)


class Plugin:
    @hookimpl
    def kdhub_methods(self):
        yield MethodSpec(
            name="toy-twice", target=f"{__name__}:Twice", tasks=toy.TASK, needs=("vector",), uses=("vector", "hidden")
        )


RECIPE = {
    "task": "toy-vectors",
    "method": "toy-twice",
    "teacher": "linear:1",
    "student": "mlp:6",
    "data": {"train": "toy-points"},
    "evaluation": {"data": [{"source": "toy-points", "split": "test"}], "cost": False},
    "options": {"batch_size": 8, "precision": "float32", "lr": 0.01, "checkpoint_steps": 3},
}


def main() -> None:
    plugins = Plugins()
    set_plugins(plugins)
    for plugin, name in ((builtin, "kdhub"), (toy, "kdhub-toy"), (Plugin(), "kdhub-twice")):
        plugins.register(plugin, name)
    print("ready", flush=True)
    for line in sys.stdin:
        folder = Path(line.strip())
        if (worker := os.fork()) == 0:
            torch.set_num_threads(1)
            begun = (folder / "recipe.yaml").exists()
            distill(resume=folder) if begun else distill(RECIPE, out=folder, set=[f"max_steps={sys.argv[1]}"])
            os._exit(0)
        print(worker, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
