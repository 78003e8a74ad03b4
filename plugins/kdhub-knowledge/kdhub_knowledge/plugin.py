"""What kdhub-knowledge provides: each room declares its own in `spec.py`. No torch, no transformers here."""

from collections.abc import Iterable
from pathlib import Path

from kdhub import hookimpl
from kdhub.specs import Spec
from kdhub_knowledge.commonsense import spec as commonsense
from kdhub_knowledge.commonsense import spec_typed as typed_commonsense
from kdhub_knowledge.guards import spec as guards
from kdhub_knowledge.items import spec as items
from kdhub_knowledge.relations import spec as relations
from kdhub_knowledge.sets import spec as sets

ROOMS = (
    commonsense,
    guards,
    items,
    relations,
    sets,
    typed_commonsense,
)


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
def kdhub_networks():
    yield from _declared("NETWORKS")


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
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"


@hookimpl
def kdhub_card(run, sections):
    """A room says in the cards of its students what their readers must know."""
    for room in ROOMS:
        if said := getattr(room, "card", None):
            said(run, sections)
