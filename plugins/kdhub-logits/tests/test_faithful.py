"""What the specifications call assertable, over paired seeds. Slow; `-s` shows means and deviations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kdhub

pytestmark = pytest.mark.slow
TEST = {"data": [{"source": "digits", "split": "test"}], "cost": False}


@pytest.fixture
def arms(tmp_path):
    """`arms({"name": changes}, recipe, seeds)`: accuracies of each arm, one a seed; the data are drawn by the seed."""

    def run(changes: dict[str, dict[str, Any]], recipe: dict[str, Any], seeds: int = 5) -> dict[str, np.ndarray]:
        found: dict[str, list[float]] = {name: [] for name in changes}
        for seed in range(seeds):
            for name, change in changes.items():
                options = {**recipe.get("options", {}), **change.get("options", {})}
                whole = {"task": "image-classification", "evaluation": TEST, **recipe, **change, "options": options}
                train = dict(whole["data"]["train"][0])
                if train["source"].startswith("labels:"):
                    train["options"] = {**train["options"], "seed": seed}
                whole["data"] = {"train": [train]}
                made = kdhub.distill(whole, out=tmp_path / f"{name}-{seed}", seed=seed)
                scores = {m["subject"]: m["value"] for m in made.report["measures"] if m["metric"] == "accuracy"}
                found[name].append(scores["student"])
        values = {name: np.array(each) for name, each in found.items()}
        print({name: f"{each.mean():.4f} +- {each.std(ddof=1):.4f}" for name, each in values.items()})
        return values

    return run


SMALL = {
    "student": "mlp:24",
    "data": {"train": [{"source": "digits", "split": "train", "limit": 300}]},
    "options": {"lr": 5e-3, "batch_size": 64, "epochs": 60, "precision": "float32"},
}


def test_mixkd_its_own_temperature_bears_full_mixup(arms):
    mixkd = {"method": "mixkd", "teacher": "recipe:digits-teacher"}
    found = arms(
        {
            "std": {**mixkd, "options": {"mode": "none"}},
            "std, all mixed": {**mixkd, "options": {"mode": "fmu"}},
            "T 4": {**mixkd, "options": {"mode": "none", "temperature": 4.0}},
            "T 4, all mixed": {**mixkd, "options": {"mode": "fmu", "temperature": 4.0}},
        },
        SMALL,
    )
    assert (found["std, all mixed"] > found["T 4, all mixed"]).all()
    assert (found["std"] - found["std, all mixed"]).mean() <= 0.01
    assert (found["T 4"] - found["T 4, all mixed"]).mean() > (found["std"] - found["std, all mixed"]).mean()


def test_trg_is_above_kd_on_long_tailed_digits(arms):
    data = {"source": "labels:digits", "split": "train", "options": {"imbalance": 20, "per_class": 80}}
    tail = {
        "teacher": "recipe:digits-cnn",
        "student": "resnet:8",
        "data": {"train": [data]},
        "options": {"lr": 5e-3, "batch_size": 32, "epochs": 50, "precision": "float32"},
    }
    found = arms(
        {
            "supervised": {"method": "supervised", "teacher": None},
            "kd": {"method": "kd", "options": {"temperature": 4.0, "alpha": 0.9}},
            "trg": {"method": "trg"},
        },
        tail,
        seeds=3,
    )
    assert (found["trg"] - found["kd"]).mean() > 0


def test_unlabelled_rows_help_those_who_have_a_teacher(arms):
    """100 labels, and all rows without: kd, jsd, tvd and skew-kl above labels alone, reverse-kl at least equal."""
    data = {"source": "labels:digits", "split": "train", "options": {"labelled": 10}}
    few = {**SMALL, "student": "mlp:12", "teacher": "recipe:digits-teacher", "data": {"train": [data]}}
    soft = ("kd", "jsd", "tvd", "skew-kl", "reverse-kl")
    found = arms(
        {"supervised": {"method": "supervised", "teacher": None}} | {name: {"method": name} for name in soft}, few
    )
    for name in soft:
        gain = (found[name] - found["supervised"]).mean()
        assert gain > (0.02 if name != "reverse-kl" else 0), (name, gain)
