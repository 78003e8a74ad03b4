"""Condensed data sets: what is provided for them."""

from kdhub import DatasetSpec, MethodSpec, NetworkSpec, Role, StudentSpec

PAPER = "arXiv:2408.08201"
IMAGE = "image-classification"
HERE = "kdhub_vision.condensed."

NETWORKS = (
    NetworkSpec(name="tiny-clip", target=f"{HERE}clip:TinyClip", summary="small encoder of images and texts"),
    NetworkSpec(
        name="label-projector", target=f"{HERE}student:LabelProjector",
        summary="an encoder with low-rank deltas whose classes begin as texts",
    ),
)  # fmt: skip

STUDENTS = (
    StudentSpec(
        name="tiny-clip", target=f"{HERE}builders:tiny_clip", tasks=(IMAGE,), exposes=("logits", "features"),
        summary="a fresh small encoder of images and texts", argument="width=N,channels=N",
        example="width=8,channels=4",
    ),
    StudentSpec(
        name="distilled-set", target=f"{HERE}student:distilled_set", tasks=(IMAGE,), exposes=(),
        summary="a data set of images that makes its own labels",
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="styled", target=f"{HERE}data:styled", argument="DATA", example="digits",
        summary="another data set with its images turned and some inverted",
    ),
)  # fmt: skip

_method = MethodSpec.shorthand("kdhub_vision.methods.", tasks=(IMAGE,), labels=True, paper=PAPER)
METHODS = (
    _method(
        "hello", "hello:Hello", "a small data set of images whose labels are made by low-rank deltas of an encoder",
        uses=(), recipe="hello", tags=("algorithm:data-distillation",),
        roles=(
            Role(name="encoder", summary="sees images, and the classes' texts"),
            Role(name="weak", needs=("logits",), live=True, summary="classifiers of the real images, together"),
            Role(name="scorer", needs=("logits",), live=True, optional=True, summary="chooses patches"),
        ),
    ),
    _method(
        "hello-train", "hello_train:HelloTrain", "a live teacher's logits on crops that both see, or classes alone",
        uses=("logits",), recipe="hello-train", tags=("algorithm:divergence",),
        roles=(Role(name="labels", needs=("logits",), live=True, optional=True, summary="labels each view"),),
    ),
)  # fmt: skip
