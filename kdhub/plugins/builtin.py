"""The core's own plugin, through the same door as anyone's: data, saved models as teachers and starts, a sampler."""

from __future__ import annotations

from collections.abc import Iterable

from kdhub.hookspecs import hookimpl
from kdhub.specs import DatasetSpec, SamplerSpec, StudentSpec, TeacherSpec

FAMILIES = ("kdhub-logits", "kdhub-text", "kdhub-lm")
"""Had kinds of saved models of their own."""


@hookimpl
def kdhub_datasets() -> Iterable[DatasetSpec]:
    def kind(name: str, argument: str, summary: str) -> DatasetSpec:
        module = "kdhub.data.hub_rows" if name == "hf" else "kdhub.data.sources"
        return DatasetSpec(name=name, target=f"{module}:{name}", argument=argument, summary=summary)

    yield kind("text", "FILE", "one text a line")
    yield kind("jsonl", "FILE", "one JSON object a line")
    yield kind("csv", "FILE", "comma-separated values under a header, quoted as usual")
    yield kind("tsv", "FILE", "tab-separated values under a header, without quoting")
    yield kind("parquet", "FILE", "a Parquet file")
    yield kind("npz", "FILE", "NumPy arrays with one first dimension; pickled ones are refused")
    yield kind(
        "path",
        "FILE|FOLDER",
        "a file, or a folder with a file for each split (BEIR too)",
    )
    yield kind("hf", "ORG/NAME[@REVISION]", "a data set of the Hugging Face Hub, at a pinned commit")
    yield kind("stdin", "[SHA256]", "texts or JSON lines from standard input; `-` for short")
    yield DatasetSpec(
        name="pydoc",
        target="kdhub.data.pydoc:pydoc",
        summary="documentation strings of the installed packages (train) and of Python's standard library (held out)",
        splits=("train", "corpus", "queries", "validation", "test"),
    )


@hookimpl
def kdhub_teachers() -> Iterable[TeacherSpec]:
    def saved(name: str, function: str, argument: str, summary: str) -> TeacherSpec:
        target = f"kdhub.teachers.saved:{function}"
        return TeacherSpec(
            name=name, target=target, argument=argument, summary=summary, gives=None, live=True, formerly=FAMILIES
        )

    yield saved("path", "path", "FOLDER", "a saved model of the task, in a local folder")
    yield saved("hf", "hub", "ORG/NAME[@REVISION]", "a model of the task on the Hugging Face Hub, at a pinned commit")


@hookimpl
def kdhub_students() -> Iterable[StudentSpec]:
    def saved(name: str, function: str, argument: str, summary: str) -> StudentSpec:
        target = f"kdhub.recipes.starts:{function}"
        return StudentSpec(name=name, target=target, argument=argument, summary=summary, formerly=FAMILIES)

    yield saved("path", "path", "FOLDER", "a model in a local folder, or a body that gets a fresh head")
    yield saved("hf", "hub", "ORG/NAME[@REVISION]", "a model on the Hugging Face Hub, or a body that gets a fresh head")


@hookimpl
def kdhub_samplers() -> Iterable[SamplerSpec]:
    yield SamplerSpec(
        name="mixture",
        target="kdhub.sampler:MixtureSampler",
        summary="rows of several data sets in stated shares, drawn with replacement",
    )
