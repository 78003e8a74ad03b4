"""Edits of one picture: the task, and what is provided for it."""

from kdhub import DatasetSpec, FolderFormat, MethodSpec, MetricSpec, Role, StudentSpec, TaskSpec
from kdhub.specs import MAIN

NAME, BASES = "image-editing", "image-generation"
HERE = "kdhub_generative.editing"
LOWER = {"higher_is_better": False}
TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:ImageEditing", signals=("image", "x0"), starts=(BASES,),
        formats=(FolderFormat(keys=("guides", "from_image")),),
        summary="seeds, with what one picture shall become, to edits of it",
    ),
)  # fmt: skip

METHODS = (
    MethodSpec(
        name="sine", target="kdhub_generative.methods.sine:Sine", tasks=(NAME,), uses=("x0",), labels=True,
        summary="a copy of a diffusion, tuned on one picture, that guides the diffusion's early steps",
        roles=(Role(name=MAIN, tasks=(BASES, NAME), summary="the diffusion that edits"),),
        paper="arXiv:2212.04489", recipe="sine",
    ),
)  # fmt: skip

STUDENTS = (
    StudentSpec(
        name="guide", target=f"{HERE}.students:build_guide", tasks=(NAME,), from_teacher=True,
        summary="the teacher and a copy of it as its guide, whole or by low-rank adapters",
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="coloured", target=f"{HERE}.data:coloured", argument="DATA", example="digits",
        summary="another data set of grey pictures, painted red, green and blue, or one picture of it",
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,))
METRICS = (
    _metric("shape-kept", "shape_kept", "correlation of grey levels with the source"),
    _metric("colour-share", "colour_share", "share of all light in the colour that `evaluation.options.colour` names"),
    _metric(
        "shape-disorder", "shape_disorder", "largest rise of shape-kept where the guide counts less: its window ends "
        "earlier, its weight is smaller", **LOWER,
    ),
    _metric("colour-disorder", "colour_disorder", "largest fall of colour-share there", **LOWER),
)  # fmt: skip
