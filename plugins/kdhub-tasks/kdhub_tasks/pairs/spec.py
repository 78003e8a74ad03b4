"""Pairs of texts: the task, and what is provided for it."""

from functools import partial

from kdhub import FolderFormat, MetricSpec, StudentSpec, TaskSpec
from kdhub_tasks.signals import LAYERED

NAME = "text-pairs"
HERE = "kdhub_tasks.pairs"
FORMERLY = ("kdhub-text",)
CLASSES = ("rows", "texts")
"""Forms of rows whose labels are classes."""
TOWERS = "two-towers"
"""`network` in the configuration of two towers."""
CROSS_ENCODER = ("ForSequenceClassification",)

TASKS = (
    TaskSpec(
        name=NAME,
        target=f"{HERE}.task:TextPairs",
        traits=("labels", "encoder", "layers"),
        signals=("logits", "features", *LAYERED),
        formats=(
            # As sentence-transformers saves a CrossEncoder, from version 6 on and before.
            FolderFormat(file="config_sentence_transformers.json", keys=("activation_fn",)),
            FolderFormat(heads=CROSS_ENCODER, keys=("sentence_transformers",)),
            FolderFormat(heads=CROSS_ENCODER, sure=False),
        ),
        reads=(("sentence1", "sentence2"), ("text", "text_pair")),
        formerly=FORMERLY,
        summary="pairs of texts to a class or a score",
    ),
)

STUDENTS = (
    StudentSpec(
        name="towers",
        target=f"{HERE}.students:towers",
        tasks=(NAME,),
        exposes=("logits", "embeddings"),
        argument="ENCODER|teacher",
        example="layers:1",
        formerly=FORMERLY,
        summary="two towers: one encoder reads each text separately",
    ),
)


def _metric(
    name: str, function: str, form: str | tuple[str, ...], summary: str, better: bool = True, room: str = "pairs",
    **spec: object,
) -> MetricSpec:  # fmt: skip
    return MetricSpec(
        name=name, target=f"kdhub_tasks.{room}.metrics:{function}", tasks=(NAME,), form=form, summary=summary,
        higher_is_better=better, formerly=FORMERLY, **spec,
    )  # fmt: skip


_of_classes = partial(_metric, form=CLASSES, room="classification")
METRICS = (
    _metric("pearson", "pearson", "sts", "linear correlation of predicted and human score"),
    _metric("spearman", "spearman", "sts", "rank correlation of predicted and human score"),
    _of_classes("accuracy", "accuracy", summary="share of pairs whose most probable class is right"),
    _metric("f1", "f1", CLASSES, "F1 of the second of two classes"),
    _of_classes("macro-f1", "macro_f1", summary="F1 of each class, unweighted mean"),
    _of_classes("auroc", "auroc", summary="area under the ROC curve, two classes"),
    _of_classes("nll", "nll", summary="mean -log probability of the right class, nats", better=False),
    _of_classes("agreement", "agreement", summary="share of pairs where student and teacher agree", fidelity=True),
    _of_classes(
        "loyalty", "probability_loyalty", summary="1 - root of the Jensen-Shannon divergence, mean", fidelity=True
    ),
    _metric(
        "regression-loyalty", "regression_loyalty", "", "Pearson's correlation with the teacher's scores",
        room="classification", fidelity=True,
    ),
    _metric(
        "score-rmse", "score_rmse", "", "root mean squared difference to the teacher's scores", False, fidelity=True
    ),
    _metric(
        "degradation", "degradation", "", "100 (teacher - student) / teacher of Pearson or accuracy", False,
        unit="%", fidelity=True,
    ),
)  # fmt: skip
