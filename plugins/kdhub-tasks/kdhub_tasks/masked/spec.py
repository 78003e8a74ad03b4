"""Masked language modelling: the task, and what is provided for it."""

from kdhub import FolderFormat, MetricSpec, StudentSpec, TaskSpec

NAME = "fill-mask"
HERE = "kdhub_tasks.masked"
FORMERLY = ("kdhub-text",)

TASKS = (
    TaskSpec(
        name=NAME,
        target=f"{HERE}.task:FillMask",
        traits=("classes", "labels", "encoder", "layers"),
        signals=("logits", "features", "hidden_states"),
        formats=(FolderFormat(heads=("ForMaskedLM",)),),
        reads=(("text",),),
        formerly=FORMERLY,
        summary="masked language modelling",
    ),
)

_student = StudentSpec.shorthand(f"{HERE}.students:", tasks=(NAME,), formerly=FORMERLY)
STUDENTS = (
    _student(
        "config", "config", "a fresh BERT with the teacher's tokenizer, or with one trained on texts",
        argument="layers=N,width=N,heads=N",
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,), formerly=FORMERLY)
METRICS = (
    _metric(
        "masked-perplexity", "perplexity", "exp of the mean -log p of the masked tokens", higher_is_better=False
    ),
    _metric("masked-accuracy", "accuracy", "share of masked tokens predicted correctly"),
    _metric(
        "masked-agreement", "agreement", "share of masked tokens predicted as the teacher does", fidelity=True
    ),
)  # fmt: skip
