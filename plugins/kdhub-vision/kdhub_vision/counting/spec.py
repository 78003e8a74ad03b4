"""Counting: the task, and what is provided for it."""

from kdhub import DatasetSpec, FolderFormat, MethodSpec, MetricSpec, NetworkSpec, StudentSpec, TaskSpec

NAME = "counting"
HERE = "kdhub_vision.counting"
PAPER = "arXiv:2003.10120"

TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:Counting", traits=("apart",), signals=("density",),
        formats=(FolderFormat(keys=("counter",)),),
        reads=(("image", "points"), ("image", "density"), ("image", "count")),
        summary="images to how many people, cells or things are in them, by a density map",
    ),
)  # fmt: skip

_method = MethodSpec.shorthand("kdhub_vision.methods.", tasks=(NAME,), paper=PAPER)
METHODS = (
    _method(
        "density", "density:Density", "counting by labels alone: squared error of density maps", uses=("density",),
        labels=True, baseline=True, recipe="digit-crowd-teacher", tags=("algorithm:supervised",),
    ),
    _method(
        "skt", "skt:Skt", "a counter's density maps, layers and the flow between them into one of a sixteenth its size",
        needs=("density",), live=True, recipe="skt", tags=("algorithm:feature", "algorithm:relation"),
    ),
)  # fmt: skip

NETWORKS = (
    NetworkSpec(name="csrnet", target=f"{HERE}.networks:CSRNet", summary="counter with dilated convolutions"),
)  # fmt: skip

_student = StudentSpec.shorthand(f"{HERE}.students:", tasks=(NAME,), exposes=("density",))
STUDENTS = (
    _student("csrnet", "csrnet", "a fresh CSRNet, its widths divided by N", argument="N", example="32"),
    _student(
        "divided", "divided_teacher", "a fresh network like the teacher's, its widths divided by N", argument="N",
        example="4", from_teacher=True,
    ),
)  # fmt: skip

_data = DatasetSpec.shorthand(f"{HERE}.", tasks=(NAME,))
DATASETS = (
    _data(
        "points", "data:points", "images of a folder with points, densities or counts in CSV, JSON, .mat or .npy",
        argument="FOLDER",
    ),
    _data(
        "pasted-digits", "generated:pasted_digits", "up to 20 handwritten digits at random places, to be counted",
        splits=("train", "validation", "test"),
    ),
    _data(
        "dots", "generated:dots", "images and dots of an .npz file, shared out by chance", argument="FILE",
        splits=("train", "validation", "test"),
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,), higher_is_better=False)
METRICS = (
    _metric("mae", "mae", "mean absolute error of the count"),
    _metric("rmse", "rmse", "root mean squared error of the count"),
    _metric("nae", "nae", "mean absolute error over the true count, of images that have any"),
    _metric("rae", "rae", "mae over that of always saying the mean count; 1 for a model that sees nothing"),
    *(
        _metric(f"game@{n}", f"game_{n}", f"absolute errors of {4**n} regions of an image, added up, mean")
        for n in (1, 2, 3)
    ),
    _metric("count-bias", "bias", "mean of predicted - true count; positive where too many are counted"),
    _metric("count-gap", "gap", "mean absolute difference of the student's and the teacher's count", fidelity=True),
)  # fmt: skip
