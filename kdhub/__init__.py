"""kdhub, the hub for distilled models.

Everything the command line does is one call here: `kdhub.distill(recipe, **overrides)`, `kdhub.evaluate`,
`kdhub.export`, `kdhub.compare`, `kdhub.load`, `kdhub.publish`, `kdhub.pull`, `kdhub.verify`, `kdhub.search`. Names are
loaded on first use, so that `import kdhub` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kdhub.hookspecs import hookimpl
from kdhub.specs import (
    API_VERSION,
    DatasetSpec,
    ExporterSpec,
    FolderFormat,
    MethodSpec,
    MetricSpec,
    NetworkSpec,
    Role,
    RowForm,
    SamplerSpec,
    StudentSpec,
    TaskSpec,
    TeacherSpec,
)

_LAZY = {
    "distill": "kdhub.verbs.distill",
    "compare": "kdhub.verbs.compare",
    "evaluate": "kdhub.verbs.evaluate",
    "export": "kdhub.verbs.export",
    "label": "kdhub.verbs.label",
    "load": "kdhub.verbs.load",
    "publish": "kdhub.verbs.publish",
    "pull": "kdhub.verbs.pull",
    "render": "kdhub.verbs.render",
    "search": "kdhub.verbs.search",
    "verify": "kdhub.verbs.verify",
    "count_costs": "kdhub.evaluation.counting",
    "Recipe": "kdhub.recipes.recipe",
    "Run": "kdhub.recipes.run",
    "open_data": "kdhub.recipes.doors",
    "open_network": "kdhub.plugins.registry",
    "open_student": "kdhub.recipes.doors",
    "open_task": "kdhub.recipes.doors",
    "open_teacher": "kdhub.recipes.doors",
    "RunContext": "kdhub.method",
    "SavedTeacher": "kdhub.teachers.saved",
    "Method": "kdhub.method",
    "MethodOptions": "kdhub.method",
    "ObjectiveMethod": "kdhub.method",
    "Progress": "kdhub.method",
    "Signals": "kdhub.rows",
    "Teacher": "kdhub.teacher",
    "Student": "kdhub.student",
    "DatasetStudent": "kdhub.dataset_student",
    "NetworkTask": "kdhub.task",
    "Task": "kdhub.task",
    "Data": "kdhub.data.dataset",
    "Sampler": "kdhub.sampler",
    "KdhubError": "kdhub.errors",
}

__all__ = [
    "API_VERSION",
    "DatasetSpec",
    "ExporterSpec",
    "FolderFormat",
    "MethodSpec",
    "MetricSpec",
    "NetworkSpec",
    "Role",
    "RowForm",
    "SamplerSpec",
    "StudentSpec",
    "TaskSpec",
    "TeacherSpec",
    "hookimpl",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kdhub")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kdhub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
