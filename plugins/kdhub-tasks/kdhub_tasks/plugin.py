"""What kdhub-tasks provides: each task declares its own in `spec.py`. No torch, no transformers here."""

from collections.abc import Iterable
from pathlib import Path

from kdhub import hookimpl
from kdhub.specs import Spec
from kdhub_tasks import spec
from kdhub_tasks.classification import spec as classification
from kdhub_tasks.embedding import spec as embedding
from kdhub_tasks.language import spec as language
from kdhub_tasks.masked import spec as masked
from kdhub_tasks.pairs import spec as pairs
from kdhub_tasks.questions import spec as questions
from kdhub_tasks.rows import spec as rows

ROOMS = (spec, classification, language, pairs, masked, questions, embedding, rows)


def _declared(what: str) -> Iterable[Spec]:
    for room in ROOMS:
        yield from getattr(room, what, ())


@hookimpl
def kdhub_tasks():
    yield from _declared("TASKS")


@hookimpl
def kdhub_methods():
    yield from _declared("METHODS")


@hookimpl
def kdhub_teachers():
    yield from _declared("TEACHERS")


@hookimpl
def kdhub_students():
    yield from _declared("STUDENTS")


@hookimpl
def kdhub_datasets():
    yield from _declared("DATASETS")


@hookimpl
def kdhub_metrics():
    yield from _declared("METRICS")


@hookimpl
def kdhub_samplers():
    yield from _declared("SAMPLERS")


@hookimpl
def kdhub_networks():
    yield from _declared("NETWORKS")


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
