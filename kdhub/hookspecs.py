"""Every hook of kdhub, on one screen.

A plugin is a light module with some of these functions, each marked `@kdhub.hookimpl`, named by an entry
point in the group `kdhub`. The first nine yield specs; the others are called during the life of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from kdhub.specs import (
        DatasetSpec,
        ExporterSpec,
        MethodSpec,
        MetricSpec,
        NetworkSpec,
        SamplerSpec,
        StudentSpec,
        TaskSpec,
        TeacherSpec,
    )

hookspec = pluggy.HookspecMarker("kdhub")
hookimpl = pluggy.HookimplMarker("kdhub")

_KINDS = ("tasks", "methods", "teachers", "students", "datasets", "metrics", "samplers", "networks", "exporters")


def hooks_of(rooms: Iterable[Any], registry: Path | None = None) -> dict[str, Callable[[], Iterable[Any]]]:
    """The hooks of a plugin whose rooms declare their specs as constants (`TASKS`, `METHODS`, ...), for its module:
    `globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))`.

    Args:
        rooms: modules, in the order in which their specs are listed.
        registry: the plugin's catalogue.
    """

    def declared(name: str) -> Callable[[], Iterable[Any]]:
        return hookimpl(lambda: [spec for room in rooms for spec in getattr(room, name, ())])

    found = {f"kdhub_{kind}": declared(kind.upper()) for kind in _KINDS}
    return found | ({"kdhub_catalogs": hookimpl(lambda: [registry])} if registry else {})


@hookspec
def kdhub_methods() -> Iterable[MethodSpec]:
    """Distillation methods."""


@hookspec
def kdhub_teachers() -> Iterable[TeacherSpec]:
    """Kinds of teacher."""


@hookspec
def kdhub_students() -> Iterable[StudentSpec]:
    """Kinds of student builder."""


@hookspec
def kdhub_datasets() -> Iterable[DatasetSpec]:
    """Kinds of data source."""


@hookspec
def kdhub_tasks() -> Iterable[TaskSpec]:
    """Tasks."""


@hookspec
def kdhub_samplers() -> Iterable[SamplerSpec]:
    """Samplers."""


@hookspec
def kdhub_metrics() -> Iterable[MetricSpec]:
    """Metrics."""


@hookspec
def kdhub_networks() -> Iterable[NetworkSpec]:
    """Networks and wrappers that saved students name."""


@hookspec
def kdhub_exporters() -> Iterable[ExporterSpec]:
    """Formats that finished students are written in."""


@hookspec
def kdhub_catalogs() -> Iterable[Path]:
    """Folders laid out like `registry/`, stacked below the user's own."""


@hookspec
def kdhub_run_started(run: Any) -> None:
    """A run folder was made or opened again; recipe and provenance are written."""


@hookspec
def kdhub_step_logged(run: Any, record: dict) -> None:
    """One line went into `metrics.jsonl`."""


@hookspec
def kdhub_run_finished(run: Any, error: BaseException | None) -> None:
    """The run ended; `error` is None when it ended well."""


@hookspec
def kdhub_card(run: Any, sections: dict[str, str]) -> None:
    """The card is about to be written; `sections` (title -> Markdown) may be changed in place."""


@hookspec
def kdhub_commands(app: Any) -> None:
    """The Typer application is being built; add commands to it."""
