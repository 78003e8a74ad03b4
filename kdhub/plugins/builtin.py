"""The core's own plugin, through the same door as anyone's: data, saved models, a sampler, ONNX."""

from __future__ import annotations

from collections.abc import Iterable

from kdhub.hookspecs import hookimpl
from kdhub.specs import DatasetSpec, ExporterSpec, SamplerSpec, StudentSpec, TeacherSpec

FAMILIES = ("kdhub-logits", "kdhub-text", "kdhub-lm")
"""Had kinds of saved models of their own."""
HUB = "ORG/NAME[@REVISION]"


@hookimpl
def kdhub_datasets() -> Iterable[DatasetSpec]:
    file = DatasetSpec.shorthand("kdhub.data.sources:", argument="FILE")
    yield file("text", "text", "one text a line")
    yield file("jsonl", "jsonl", "one JSON object a line")
    yield file("csv", "csv", "comma-separated values under a header, quoted as usual")
    yield file(
        "tsv", "tsv", "tab-separated values under a header; quoted only as pandas does, where a field has a quote"
    )
    yield file("parquet", "parquet", "a Parquet file")
    yield file("npz", "npz", "NumPy arrays with one first dimension; pickled ones are refused")
    yield file("path", "path", "a file, or a folder with a file for each split (BEIR too)", argument="FILE|FOLDER")
    yield file("stdin", "stdin", "texts or JSON lines from standard input; `-` for short", argument="[SHA256]")
    data = DatasetSpec.shorthand("kdhub.data.")
    yield data("hf", "hub_rows:hf", "a data set of the Hugging Face Hub, at a pinned commit", argument=HUB)
    yield data(
        "pydoc", "pydoc:pydoc",
        "documentation strings of the installed packages (train) and of Python's standard library (held out)",
        splits=("train", "corpus", "queries", "validation", "test"),
    )  # fmt: skip


@hookimpl
def kdhub_teachers() -> Iterable[TeacherSpec]:
    saved = TeacherSpec.shorthand("kdhub.teachers.saved:", gives=None, live=True, formerly=FAMILIES)
    yield saved("path", "path", "a saved model of the task, in a local folder", argument="FOLDER")
    yield saved("hf", "hub", "a model of the task on the Hugging Face Hub, at a pinned commit", argument=HUB)


@hookimpl
def kdhub_students() -> Iterable[StudentSpec]:
    start = StudentSpec.shorthand("kdhub.recipes.starts:", formerly=FAMILIES)
    yield start("path", "path", "a model in a local folder, or a body that gets a fresh head", argument="FOLDER")
    yield start("hf", "hub", "a model on the Hugging Face Hub, or a body that gets a fresh head", argument=HUB)
    yield StudentSpec(
        name="member", target="kdhub.recipes.starts:member", argument="FOLDER|recipe:NAME|ORG/NAME",
        summary="a member of a family of sizes, by name or the best within a budget",
    )  # fmt: skip


@hookimpl
def kdhub_samplers() -> Iterable[SamplerSpec]:
    sampler = SamplerSpec.shorthand("kdhub.sampler:")
    yield sampler("mixture", "MixtureSampler", "rows of several data sets in stated shares, drawn with replacement")


@hookimpl
def kdhub_exporters() -> Iterable[ExporterSpec]:
    yield ExporterSpec(
        name="onnx", target="kdhub.exporting.onnx:Onnx", summary="ONNX, for onnxruntime and all that reads it",
        quantize=("int8",), requires=("onnx", "onnxruntime", "onnxscript"), extra="kdhub[onnx]",
    )  # fmt: skip
