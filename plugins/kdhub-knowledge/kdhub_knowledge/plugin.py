"""What kdhub-knowledge provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import MethodSpec, hookimpl
from kdhub_knowledge.sets import spec as sets

METHODS = (
    MethodSpec(
        name="evidence-fusion", target="kdhub_knowledge.methods.evidence_fusion:EvidenceFusion", tasks=(sets.NAME,),
        uses=(), labels=True, recipe="evidence-fusion", paper="arXiv:2502.14631",
        summary="labelled sets and experts as belief about which items can replace each other, fused",
    ),
)  # fmt: skip


@hookimpl
def kdhub_tasks():
    yield from sets.TASKS


@hookimpl
def kdhub_methods():
    yield from METHODS


@hookimpl
def kdhub_teachers():
    yield from sets.TEACHERS


@hookimpl
def kdhub_students():
    yield from sets.STUDENTS


@hookimpl
def kdhub_datasets():
    yield from sets.DATASETS


@hookimpl
def kdhub_metrics():
    yield from sets.METRICS


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
