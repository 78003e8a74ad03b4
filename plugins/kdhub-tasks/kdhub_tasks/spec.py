"""What all tasks share: training by labels alone, and models made from other models."""

from kdhub import MethodSpec, StudentSpec, TeacherSpec

SURVEY = "arXiv:2402.13116"
PROBLEMS = ("multi_label_classification", "regression")
"""`kdhub_tasks.classes.PROBLEMS`, which is not imported here: it needs NumPy."""

METHODS = (
    MethodSpec(
        name="supervised",
        target="kdhub_tasks.methods.supervised:Supervised",
        traits=("labels",),
        uses=("logits",),
        labels=True,
        problems=PROBLEMS,
        aliases=("ce", "sft"),
        paper=SURVEY,
        baseline=True,
        recipe="supervised",
        tags=("algorithm:supervised",),
        formerly=("kdhub-logits",),
        summary="labels alone: the baseline, and how teachers are made",
    ),
    MethodSpec(
        name="as-is",
        target="kdhub_tasks.methods.as_is:AsIs",
        paper=SURVEY,
        problems=PROBLEMS,
        formerly=("kdhub-lm",),
        summary="no training: the start as a run of its own, measured and with a card",
    ),
)

TEACHERS = (
    TeacherSpec(
        name="ensemble",
        target="kdhub_tasks.ensemble:Ensemble",
        tasks=(
            "image-classification",
            "tabular-classification",
            "text-classification",
            "token-classification",
            "text-pairs",
            "fill-mask",
        ),
        gives=("logits",),
        live=True,
        formerly=("kdhub-logits",),
        summary="several teachers combined: its `members`",
    ),
    TeacherSpec(
        name="packaged",
        target="kdhub_tasks.packaged:teacher",
        tasks=("text-embedding",),
        gives=("embedding",),
        argument="NAME",
        example="all-minilm-l6-v2",
        live=True,
        formerly=("kdhub-text",),
        summary="an encoder that an installed Python package carries",
    ),
)

STUDENTS = (
    StudentSpec(
        name="layers",
        target="kdhub_tasks.layers:layers",
        traits=("layers",),
        argument="N",
        example="1",
        from_teacher=True,
        formerly=("kdhub-logits", "kdhub-text", "kdhub-lm"),
        summary="N evenly spaced layers of the teacher",
    ),
    StudentSpec(
        name="packaged",
        target="kdhub_tasks.packaged:student",
        traits=("encoder",),
        argument="NAME",
        example="all-minilm-l6-v2",
        formerly=("kdhub-logits", "kdhub-text"),
        summary="an encoder that an installed Python package carries",
    ),
    StudentSpec(
        name="words",
        target="kdhub_tasks.fresh:words",
        traits=("encoder",),
        argument="layers=N,width=N,heads=N",
        formerly=("kdhub-text",),
        summary="a fresh encoder over the words of some rows",
    ),
)
