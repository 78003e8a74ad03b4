"""Trackers of trainings: TensorBoard, Weights & Biases, MLflow, Trackio; those that a recipe names, and nothing else.

They hear each line that goes into `metrics.jsonl`, so that a method with a loop of its own is followed as well as one
that the Trainer trains: loss terms, learning rate, what `evaluation.curve` measures; and in the end the report's
figures as summary. A tracker that fails while the run goes on is told once, and the run goes on.
"""

from __future__ import annotations

import logging
import netrc
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from kdhub.errors import UnknownNameError, UsageError
from kdhub.evaluation.report import STUDENT, TEACHER, Report
from kdhub.ranks import rank
from kdhub.recipes.run import Run

logger = logging.getLogger("kdhub")

NOTE = "tracking.json"
"""Of a run folder: by which names trackers know the run, so that a resumed one goes on there."""


class Tracker(ABC):
    """One place where a run is followed.

    Attributes:
        module: what must be installed.
        package: what installs it.
    """

    module: str
    package: str

    @classmethod
    def check(cls) -> None:
        """Raises: UsageError: it cannot be used here, before anything was done."""

    @abstractmethod
    def start(self, run: Run, known: str | None) -> str | None:
        """Begin, or go on with a run that it knows; its name for the run."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def finish(self, summary: Mapping[str, float], failed: bool) -> None: ...


class TensorBoard(Tracker):
    """Event files below `tensorboard/` of the run folder."""

    module, package = "tensorboard", "kdhub[tensorboard]"

    def start(self, run: Run, known: str | None) -> str | None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.folder / "tensorboard"))
        self.writer.add_text("recipe", f"```yaml\n{run.recipe.to_yaml()}```")
        return None

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        self.log(summary, 0)
        self.writer.close()


class MLflow(Tracker):
    """The server of `MLFLOW_TRACKING_URI`, else files below `mlflow/` of the run folder."""

    module, package = "mlflow", "kdhub[mlflow]"

    def start(self, run: Run, known: str | None) -> str | None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlflow").absolute().as_uri()
        self.client = MlflowClient(tracking_uri=address)
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "kdhub")
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            known = self.client.create_run(experiment, run_name=run.folder.name).info.run_id
            for key, value in _flat(run.recipe.to_dict()).items():
                self.client.log_param(known, _plain(key), str(value)[:500])
        self.id = known
        return known

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, _plain(name), value, step=step)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        self.log(summary, 0)
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Wandb(Tracker):
    """Weights & Biases, project `kdhub` unless `WANDB_PROJECT` says otherwise."""

    module, package = "wandb", "wandb"

    @classmethod
    def check(cls) -> None:
        if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
            return
        try:
            known = netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai")
        except (OSError, netrc.NetrcParseError):
            known = None
        if not known:
            raise UsageError(
                "tracking by wandb needs a login", hint="wandb login; or WANDB_MODE=offline, which only writes files"
            )

    def start(self, run: Run, known: str | None) -> str | None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "kdhub")
        how = {"config": run.recipe.to_dict(), "dir": str(run.folder), "resume": "allow"}
        self.run = wandb.init(project=project, name=run.folder.name, id=known, **how)
        return self.run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=int(failed))


class Trackio(Tracker):
    """Trackio's files on this machine."""

    module, package = "trackio", "trackio"

    def start(self, run: Run, known: str | None) -> str | None:
        import trackio

        self.run = trackio.init(project="kdhub", name=known or run.folder.name, config=run.recipe.to_dict())
        return known or run.folder.name

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        self.run.log(dict(summary))
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip


def check(names: Sequence[str]) -> None:
    """Whether these can be used here.

    Raises:
        UnknownNameError: no such tracker. UsageError: it is not installed, or wants a login.
    """
    for name in names:
        if name not in TRACKERS:
            error = UnknownNameError("tracker", name, TRACKERS, where="tracking")
            error.hint = " ".join(filter(None, (error.hint, f"All of them: {', '.join(TRACKERS)}")))
            raise error
        tracker = TRACKERS[name]
        if find_spec(tracker.module) is None:
            raise UsageError(
                f"tracking by {name} needs {tracker.module}, which is not installed",
                hint=f"pip install '{tracker.package}', or leave it out of tracking",
            )
        tracker.check()


@contextmanager
def following(run: Run) -> Iterator[None]:
    """Have the trackers of a run's recipe hear what it logs, and in the end what its report says."""
    names = run.recipe.tracking if rank() == 0 else []
    if not names:
        yield
        return
    check(names)
    trackers = {name: TRACKERS[name]() for name in names}
    begun: dict[str, Tracker] = {}

    def ask(name: str, what: str, *values: Any) -> Any:
        try:
            return getattr(trackers[name], what)(*values)
        except Exception as error:  # whatever a library or a server makes of it: the run is worth more
            logger.warning("%s follows the run no longer: %s: %s", name, type(error).__name__, error)
            trackers.pop(name)
            begun.pop(name, None)

    def begin() -> None:
        known = run.read_json(NOTE, {})
        for name in [name for name in trackers if name not in begun]:
            begun[name] = trackers[name]
            if given := ask(name, "start", run, known.get(name)):
                known[name] = given
        run.write_json(NOTE, known)

    def heard(record: Mapping[str, Any]) -> None:
        if not begun and trackers:
            begin()
        values = named(record)
        for name in list(begun) if values else ():
            ask(name, "log", values, int(record.get("step", 0)))

    run.listeners.append(heard)
    failed = True
    try:
        yield
        failed = False
    finally:
        run.listeners.remove(heard)
        if not failed and not begun:
            begin()
        summary = {} if failed else figures(Report.from_dict(run.report)) if run.report else {}
        for name in list(begun):
            ask(name, "finish", summary, failed)


def named(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a logged line by the names under which trackers show them."""
    of = f"{record['training']}/" if record.get("training") else f"{record['fit']}/" if record.get("fit") else ""
    found = {f"{of}train/{key}": record[key] for key in ("loss", "lr", "epoch", "rows_per_second") if key in record}
    found |= {f"{of}train/terms/{name}": value for name, value in (record.get("terms") or {}).items()}
    found |= {f"{of}state/{name}": value for name, value in (record.get("state") or {}).items()}
    found |= {f"{of}probe/{name}": value for name, value in (record.get("probe") or {}).items()}
    if "metric" in record:
        found[f"{of}curve/{record['metric']}"] = record["measured"]
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def figures(report: Report) -> dict[str, float]:
    """The report's plain figures of teacher and student, and what each costs."""
    lines = [*(line for line in report.lines() if not line.variant), *report.costs()]
    return {
        "/".join(filter(None, ("report", subject, line.where.replace(" ", "-"), line.metric))): line.value(subject)
        for line in lines
        for subject in (TEACHER, STUDENT)
        if line.value(subject) is not None
    }


def _plain(name: str) -> str:
    """A name as MLflow takes it."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}
    return {name: value}
