"""What all tasks share: training by labels alone, and models made from other models."""

from kdhub import MethodSpec, SamplerSpec, StudentSpec, TeacherSpec

SURVEY = "arXiv:2402.13116"
PROBLEMS = ("multi_label_classification", "regression")
"""`kdhub_tasks.classes.PROBLEMS`, which is not imported here: it needs NumPy."""

_method = MethodSpec.shorthand("kdhub_tasks.methods.", paper=SURVEY, problems=PROBLEMS)
METHODS = (
    _method(
        "supervised", "supervised:Supervised", "labels alone: the baseline, and how teachers are made",
        traits=("labels",), uses=("logits",), labels=True, aliases=("ce", "sft"), baseline=True, recipe="supervised",
        tags=("algorithm:supervised",), formerly=("kdhub-logits",),
    ),
    _method(
        "as-is", "as_is:AsIs", "no training: the start as a run of its own, measured and with a card",
        formerly=("kdhub-lm",),
    ),
)  # fmt: skip

PACKAGED = {"argument": "NAME", "example": "all-minilm-l6-v2"}
_teacher = TeacherSpec.shorthand("kdhub_tasks.", live=True)
TEACHERS = (
    _teacher(
        "ensemble", "ensemble:Ensemble", "several teachers combined: its `members`", gives=("logits",),
        traits=("labels",), formerly=("kdhub-logits",),
    ),
    _teacher(
        "packaged", "packaged:teacher", "an encoder that an installed Python package carries",
        tasks=("text-embedding",), gives=("embedding",), formerly=("kdhub-text",), **PACKAGED,
    ),
)  # fmt: skip

_student = StudentSpec.shorthand("kdhub_tasks.", traits=("encoder",))
STUDENTS = (
    _student(
        "layers", "layers:layers", "N evenly spaced layers of the teacher", traits=("layers",), argument="N",
        example="1", from_teacher=True, formerly=("kdhub-logits", "kdhub-text", "kdhub-lm"),
    ),
    StudentSpec(
        name="quantized", target="kdhub_tasks.quantized:quantized", argument="BITS", example="3",
        tasks=("causal-lm", "tabular-classification", "image-classification", "text-classification",
               "token-classification"),
        summary="a student whose linear layers have weights of 2 to 8 bits: `of`, or the teacher's own",
    ),
    _student(
        "packaged", "packaged:student", "an encoder that an installed Python package carries",
        formerly=("kdhub-logits", "kdhub-text"), **PACKAGED,
    ),
    _student(
        "words", "fresh:words", "a fresh encoder over the words of some rows", argument="layers=N,width=N,heads=N",
        formerly=("kdhub-text",),
    ),
)  # fmt: skip

SAMPLERS = (
    SamplerSpec(
        name="balanced", target="kdhub_tasks.sampling:BalancedSampler", summary="every class as often as any other",
        traits=("labels",), columns=("label",),
    ),
)  # fmt: skip
