"""A task that nobody here knows: what it has by its traits, and that it works."""

from __future__ import annotations

import numpy as np
import pytest
from kdhub_tasks.classification.arrays import ArrayClassification

from kdhub import Data, DatasetSpec, TaskSpec, hookimpl
from kdhub.plugins.discovery import discover, set_plugins
from kdhub.plugins.registry import Registry
from kdhub.verbs.distill import distill

TASK = "spectrum-classification"
CLASSES = ("classes", "labels", "named-classes", "single-label", "apart", "arrays")


class Spectra(ArrayClassification):
    """Rows have `spectrum`, five intensities, and `label`."""

    name, column = TASK, "spectrum"

    def read(self, value):
        return np.asarray(value, np.float32)


def lines(n: int = 24) -> Data:
    def rows(seed):
        for i in range(n):
            noise = np.random.default_rng([seed, i]).normal(0, 0.1, 5)
            yield {"spectrum": (np.eye(5)[i % 3] + noise).tolist(), "label": ("iron", "gold", "lead")[i % 3]}

    return Data.from_rows("lines", {s: lambda s=s: rows(len(s)) for s in ("train", "test")}, key={"n": n})


class Plugin:
    @hookimpl
    def kdhub_tasks(self):
        signals = {"signals": ("logits", "features"), "reads": (("spectrum",),)}
        yield TaskSpec(name=TASK, target=f"{__name__}:Spectra", traits=CLASSES, summary="spectra to a class", **signals)

    @hookimpl
    def kdhub_datasets(self):
        yield DatasetSpec(name="lines", target=f"{__name__}:lines", splits=("train", "test"))


@pytest.fixture
def registry(isolated):
    plugins = discover()
    plugins.register(Plugin(), "kdhub-spectra")
    set_plugins(plugins)
    yield Registry(plugins)
    set_plugins(None)


def test_it_has_all_that_its_traits_and_signals_allow(registry):
    def named(kind):
        return {entry.name for entry in registry.all(kind, TASK)}

    soft = {"kd", "reverse-kl", "sym", "jsd", "tvd", "skew-kl", "akl", "dkd", "rank", "pld", "taid", "ddk"}
    assert soft | {"supervised", "feature", "mmd", "mixkd", "lelp", "multi-teacher", "pcoreset"} <= named("method")
    assert {"ensemble", "path", "hf", "prototypes"} <= named("teacher")
    assert {"mlp", "path", "hf"} <= named("student")
    assert {"accuracy", "agreement", "nll"} <= named("metric") and "entropy" in named("sampler")
    assert not {"trg", "swing", "dse", "gkd"} & named("method"), "it has no tokens, words, pairs or texts"
    assert "layers" not in named("student")


def test_it_is_taught_by_labels_by_a_teacher_and_by_an_ensemble(registry, tmp_path):
    from kdhub.recipes.resolve import Resolver

    options = {"max_steps": 40, "batch_size": 8, "lr": 0.05, "precision": "float32"}
    shared = {"task": TASK, "student": "mlp:8", "data": {"train": "lines"}, "options": options}
    shared["evaluation"] = {"data": [{"source": "lines", "split": "test"}], "cost": False}
    teacher = {"source": f"path:{tmp_path / 'supervised' / 'student'}"}
    members = {"source": "ensemble", "members": [teacher, teacher]}
    for method, own in {"supervised": {}, "kd": {"teacher": teacher}, "rank": {"teacher": members}}.items():
        run = distill({**shared, "method": method, **own}, out=tmp_path / method, resolver=Resolver(registry))
        scores = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "accuracy"}
        assert scores["student"] > 0.7, method  # of three classes, as many rows of each
