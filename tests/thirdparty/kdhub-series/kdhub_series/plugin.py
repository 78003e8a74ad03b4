"""What kdhub-series provides."""

from kdhub import DatasetSpec, NetworkSpec, StudentSpec, TaskSpec, hookimpl

TASK = "series-classification"


@hookimpl
def kdhub_tasks():
    yield TaskSpec(
        name=TASK,
        target="kdhub_series.task:SeriesClassification",
        traits=("classes", "labels", "named-classes", "single-label", "apart", "arrays"),
        signals=("logits", "features"),
        reads=(("series",),),
        summary="time series to one class of a list",
    )


@hookimpl
def kdhub_networks():
    yield NetworkSpec(name="recurrent", target="kdhub_series.network:Recurrent", summary="gated recurrent units")


@hookimpl
def kdhub_students():
    yield StudentSpec(
        name="gru",
        target="kdhub_series.network:gru",
        tasks=(TASK,),
        argument="WIDTH",
        example="4",
        summary="a fresh recurrent network",
    )


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(name="waves", target="kdhub_series.data:waves", splits=("train", "test"), summary="noisy waves")
