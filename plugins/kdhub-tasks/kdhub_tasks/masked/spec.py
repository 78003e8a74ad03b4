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

STUDENTS = (
    StudentSpec(
        name="config",
        target=f"{HERE}.students:config",
        tasks=(NAME,),
        argument="layers=N,width=N,heads=N",
        formerly=FORMERLY,
        summary="a fresh BERT with the teacher's tokenizer, or with one trained on texts",
    ),
)


def _metric(name: str, function: str, summary: str, better: bool = True, fidelity: bool = False) -> MetricSpec:
    return MetricSpec(
        name=name, target=f"{HERE}.metrics:{function}", tasks=(NAME,), summary=summary, higher_is_better=better,
        fidelity=fidelity, formerly=FORMERLY,
    )  # fmt: skip


METRICS = (
    _metric("masked-perplexity", "perplexity", "exp of the mean -log p of the masked tokens", False),
    _metric("masked-accuracy", "accuracy", "share of masked tokens predicted correctly"),
    _metric(
        "masked-agreement", "agreement", "share of masked tokens predicted as the teacher does", fidelity=True
    ),
)  # fmt: skip
