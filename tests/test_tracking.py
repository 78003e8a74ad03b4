"""Trackers: what they hear is read back from their own files; nobody hears of a run that names none."""

from __future__ import annotations

import logging
import sys

import pytest
import toy

import kdhub
from kdhub.errors import UnknownNameError, UsageError
from kdhub.training import tracking


def recipe(folder, **more):
    made = {"task": "toy-vectors", "method": "toy-hint", **toy.Vectors().tiny_recipe(folder), **more}
    made["options"] = {"batch_size": 8, "epochs": 1, "precision": "float32"}
    made["evaluation"] = {**made["evaluation"], "curve": 2, "cost": False}
    return made


def test_tensorboard_and_mlflow_hold_the_terms_the_curve_and_the_report(toys, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = kdhub.distill(recipe(tmp_path, tracking=["tensorboard", "mlflow"]), out=tmp_path / "run", page=False)
    lines = [line for line in run.metrics() if "terms" in line]
    (error,) = (m["value"] for m in run.report["measures"] if (m["metric"], m["subject"]) == ("toy-error", "student"))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    heard = [(one.step, one.value) for one in events.Scalars("train/loss")]
    assert heard == [(line["step"], pytest.approx(line["loss"], rel=1e-5)) for line in lines]
    assert {"train/lr", "curve/toy-error", *(f"train/terms/{name}" for name in lines[0]["terms"])} <= {
        *events.Tags()["scalars"]
    }
    assert events.Scalars("report/student/toy-points-test/toy-error")[0].value == pytest.approx(error, rel=1e-5)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(run.folder / "mlflow").as_uri())
    (one,) = client.search_runs([client.get_experiment_by_name("kdhub").experiment_id])
    assert one.info.status == "FINISHED" and one.data.params["method"] == "toy-hint"
    assert one.data.metrics["report/student/toy-points-test/toy-error"] == pytest.approx(error)
    history = client.get_metric_history(one.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert run.read_json(tracking.NOTE) == {"mlflow": one.info.run_id}


def test_what_cannot_follow_is_said_before_the_run(toys, tmp_path, monkeypatch):
    def refused(name, error, match):
        with pytest.raises(error, match=match) as caught:
            kdhub.distill(recipe(tmp_path, tracking=name), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return caught.value.hint

    assert "'tensorboard'" in refused("tensorbord", UnknownNameError, "no tracker named 'tensorbord'")
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert "pip install 'trackio'" in refused("trackio", UsageError, "needs trackio, which is not installed")
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    monkeypatch.setenv("NETRC", str(tmp_path / "nowhere"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert "WANDB_MODE=offline" in refused("wandb", UsageError, "tracking by wandb needs a login")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.check(["wandb"])


class Deaf(tracking.Tracker):
    module, package, calls = "json", "json", []

    def start(self, run, known):
        self.calls.append(known)
        return "its-name"

    def log(self, values, step):
        raise ConnectionError("gone")

    def finish(self, summary, failed):
        self.calls.append("finished")


def test_a_tracker_that_fails_does_not_end_the_run(toys, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(tracking.TRACKERS, "deaf", Deaf)
    monkeypatch.setattr(Deaf, "calls", [])
    with caplog.at_level(logging.WARNING, "kdhub"):
        run = kdhub.distill(recipe(tmp_path, tracking="deaf"), out=tmp_path / "run", page=False)
    assert run.finished("done") and Deaf.calls == [None]
    assert [r.getMessage() for r in caplog.records].count("deaf follows the run no longer: ConnectionError: gone") == 1


def test_numbers_have_the_same_names_in_all_of_them():
    line = {"step": 3, "loss": 1.5, "lr": 0.1, "terms": {"a": 1, "b": 0.5}, "training": "narrow", "fit": 2}
    assert tracking.named(line) == {
        "narrow/train/loss": 1.5, "narrow/train/lr": 0.1, "narrow/train/terms/a": 1.0, "narrow/train/terms/b": 0.5,
    }  # fmt: skip
    assert tracking.named({"step": 1, "metric": "ndcg@10", "measured": 0.5}) == {"curve/ndcg@10": 0.5}
    assert tracking.named({"step": 1, "probe": {"x": 2}}) == {"probe/x": 2.0}
    assert tracking._plain("ndcg@10 on a:b") == "ndcg_10 on a_b"
