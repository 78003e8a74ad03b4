"""The core's own plugin: kinds of data and a sampler for every installation, through the same door as anyone's."""

from __future__ import annotations

from collections.abc import Iterable

from kdhub.hookspecs import hookimpl
from kdhub.specs import DatasetSpec, SamplerSpec


@hookimpl
def kdhub_datasets() -> Iterable[DatasetSpec]:
    def kind(name: str, argument: str, summary: str) -> DatasetSpec:
        module = "kdhub._hub_rows" if name == "hf" else "kdhub.sources"
        return DatasetSpec(name=name, target=f"{module}:{name}", argument=argument, summary=summary)

    yield kind("text", "FILE", "One text a line")
    yield kind("jsonl", "FILE", "One JSON object a line")
    yield kind("csv", "FILE", "Comma-separated values under a header, quoted as usual")
    yield kind("tsv", "FILE", "Tab-separated values under a header, without quoting")
    yield kind("parquet", "FILE", "A Parquet file")
    yield kind("npz", "FILE", "NumPy arrays with one first dimension; pickled ones are refused")
    yield kind("path", "FILE|FOLDER", "A file, told by its ending, or a folder with a file for each split (BEIR too)")
    yield kind("hf", "ORG/NAME[@REVISION]", "A data set of the Hugging Face Hub, at a pinned commit")
    yield kind("stdin", "[SHA256]", "Texts or JSON lines from standard input; `-` for short")
    yield DatasetSpec(
        name="pydoc",
        target="kdhub.pydoc_data:pydoc",
        summary="Documentation strings of the installed packages (train) and of Python's standard library (held out)",
        splits=("train", "corpus", "queries", "validation", "test"),
    )


@hookimpl
def kdhub_samplers() -> Iterable[SamplerSpec]:
    yield SamplerSpec(
        name="mixture",
        target="kdhub.sampler:MixtureSampler",
        summary="Rows of several data sets in stated shares, drawn with replacement",
    )
