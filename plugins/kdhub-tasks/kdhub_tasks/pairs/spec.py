"""Pairs of texts: the task, and what is provided for it."""

from functools import partial

from kdhub import FolderFormat, MetricSpec, StudentSpec, TaskSpec
from kdhub_tasks.classification.spec import OPERATING
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
        traits=("labels", "encoder", "layers", "shown"),
        signals=("logits", "features", *LAYERED),
        formats=(
            # As sentence-transformers saves a CrossEncoder, from version 6 on and before.
            FolderFormat(file="config_sentence_transformers.json", keys=("activation_fn",)),
            FolderFormat(heads=CROSS_ENCODER, keys=("sentence_transformers",)),
            FolderFormat(heads=CROSS_ENCODER, sure=False),
        ),
        starts=("fill-mask", "text-embedding"),
        reads=(("sentence1", "sentence2"), ("text", "text_pair")),
        formerly=FORMERLY,
        summary="pairs of texts to a class or a score",
    ),
)

_student = StudentSpec.shorthand(f"{HERE}.students:", tasks=(NAME,), formerly=FORMERLY)
STUDENTS = (
    _student(
        "towers", "towers", "two towers: one encoder reads each text separately", exposes=("logits", "embeddings"),
        argument="ENCODER|teacher", example="layers:1",
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand("kdhub_tasks.", tasks=(NAME,), formerly=FORMERLY)
_of_classes, _of_scores = partial(_metric, form=CLASSES), partial(_metric, form="sts")
_fidelity, _lower = {"fidelity": True}, {"higher_is_better": False}
METRICS = (
    _of_scores("pearson", "pairs.metrics:pearson", "linear correlation of predicted and human score"),
    _of_scores("spearman", "pairs.metrics:spearman", "rank correlation of predicted and human score"),
    _of_classes(
        "accuracy", "classification.metrics:accuracy", "share of pairs whose most probable class is right"
    ),
    _of_classes("f1", "pairs.metrics:f1", "F1 of the second of two classes"),
    _of_classes("macro-f1", "classification.metrics:macro_f1", "F1 of each class, unweighted mean"),
    _of_classes("auroc", "classification.metrics:auroc", "area under the ROC curve, two classes"),
    _of_classes("auprc", "classification.metrics:auprc", "average precision, two classes"),
    *(
        _of_classes(
            f"{name}-fpr@{percent}", f"classification.metrics:{name}_at_{percent}",
            f"{what} at a false-positive rate of {percent} %", **more,
        )
        for name, what, more in OPERATING
        for percent in (1, 5)
    ),
    _of_classes(
        "nll", "classification.metrics:nll", "mean -log probability of the right class, nats", **_lower
    ),
    _of_classes(
        "agreement", "classification.metrics:agreement", "share of pairs where student and teacher agree", **_fidelity
    ),
    _of_classes(
        "loyalty", "classification.metrics:probability_loyalty", "1 - root of the Jensen-Shannon divergence, mean",
        **_fidelity,
    ),
    _metric(
        "regression-loyalty", "classification.metrics:regression_loyalty",
        "Pearson's correlation with the teacher's scores", **_fidelity,
    ),
    _metric(
        "score-rmse", "pairs.metrics:score_rmse", "root mean squared difference to the teacher's scores",
        **_lower, **_fidelity,
    ),
    _metric(
        "degradation", "pairs.metrics:degradation", "100 (teacher - student) / teacher of Pearson or accuracy",
        unit="%", **_lower, **_fidelity,
    ),
)  # fmt: skip
