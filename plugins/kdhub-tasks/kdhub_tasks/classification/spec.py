"""Classification: the tasks, and what is provided for them."""

from functools import partial

from kdhub import DatasetSpec, FolderFormat, MetricSpec, NetworkSpec, StudentSpec, TaskSpec
from kdhub_tasks.signals import LAYERED

IMAGE, TABULAR = "image-classification", "tabular-classification"
HERE = "kdhub_tasks.classification"
CLASSES = ("classes", "labels", "named-classes")
FORMERLY = ("kdhub-logits",)
SIGNALS = ("logits", "features")

TASKS = (
    TaskSpec(
        name=IMAGE,
        target=f"{HERE}.task:ImageClassification",
        traits=(*CLASSES, "single-label", "arrays", "layers"),
        signals=(*SIGNALS, "tokens", *LAYERED),
        formats=(FolderFormat(heads=("ForImageClassification",)), FolderFormat(keys=("architecture",))),
        reads=(("image",),),
        formerly=FORMERLY,
        summary="images to one class of a list",
    ),
    TaskSpec(
        name=TABULAR,
        target=f"{HERE}.task:TabularClassification",
        traits=(*CLASSES, "single-label", "arrays"),
        signals=SIGNALS,
        reads=(("features",),),
        formerly=FORMERLY,
        summary="rows of numbers to one class of a list",
    ),
    TaskSpec(
        name="text-classification",
        target=f"{HERE}.task:TextClassification",
        traits=(*CLASSES, "single-label", "encoder", "layers"),
        signals=(*SIGNALS, *LAYERED),
        formats=(FolderFormat(heads=("ForSequenceClassification",)),),
        reads=(("text",),),
        formerly=FORMERLY,
        summary="texts to one class of a list",
    ),
    TaskSpec(
        name="token-classification",
        target=f"{HERE}.task:TokenClassification",
        traits=(*CLASSES, "words", "encoder", "layers"),
        signals=(*SIGNALS, *LAYERED),
        formats=(FolderFormat(heads=("ForTokenClassification",)),),
        reads=(("tokens",),),
        formerly=FORMERLY,
        summary="each word of a text to one class of a list",
    ),
)

_network = partial(NetworkSpec, formerly=FORMERLY)
NETWORKS = (
    _network(name="mlp", target=f"{HERE}.networks:Mlp", summary="multilayer perceptron"),
    _network(name="resnet", target=f"{HERE}.networks:CifarResNet", summary="ResNet for small images"),
    _network(name="vit", target=f"{HERE}.networks:Vit", summary="small vision transformer"),
    _network(name="timm", target=f"{HERE}.networks:Timm", summary="a network of the timm library"),
)


def _student(name: str, argument: str, summary: str, example: str = "", **spec: object) -> StudentSpec:
    target = f"{HERE}.students:{name.replace('-', '_')}"
    given = {"tasks": (IMAGE,), "exposes": (*SIGNALS, "tokens")} | spec
    return StudentSpec(
        name=name, target=target, argument=argument, summary=summary, example=example, formerly=FORMERLY, **given
    )


STUDENTS = (
    _student("mlp", "WIDTH,...", "a fresh multilayer perceptron", "8", tasks=(), traits=("arrays",), exposes=SIGNALS),
    _student("resnet", "DEPTH", "a fresh ResNet for small images", "8"),
    _student("resnet-checkpoint", "FILE", "a ResNet for CIFAR from a PyTorch checkpoint"),
    _student(
        "vit",
        "patch=N,width=N,layers=N,heads=N",
        "a fresh small vision transformer",
        "patch=2,width=8,layers=1,heads=2",
        exposes=(*SIGNALS, "tokens", *LAYERED),
    ),  # fmt: skip
    _student(
        "timm", "NAME", "a fresh network of the timm library, an extra (kdhub-tasks[timm])", exposes=SIGNALS
    ),  # fmt: skip
)

DATASETS = (
    DatasetSpec(
        name="digits",
        target=f"{HERE}.data:digits",
        splits=("train", "validation", "test"),
        formerly=FORMERLY,
        summary="1797 handwritten digits of 8 x 8 pixels, as scikit-learn has them",
    ),
    DatasetSpec(
        name="labels",
        target=f"{HERE}.data:labels",
        argument="DATA",
        example="digits",
        formerly=FORMERLY,
        summary="another data set with classes joined, a long tail, wrong labels, few labels or none",
    ),
)


def _metric(name: str, function: str, summary: str, better: bool = True, **spec: object) -> MetricSpec:
    given = {"traits": ("named-classes",), "formerly": FORMERLY} | spec
    target = f"{HERE}.metrics:{function}"
    return MetricSpec(name=name, target=target, summary=summary, higher_is_better=better, **given)


_fidelity = partial(_metric, fidelity=True)
METRICS = (
    _metric("accuracy", "accuracy", "share of rows whose most probable class is right"),
    _metric("accuracy@5", "top_5", "share of rows whose class is among the five most probable"),
    _metric("macro-f1", "macro_f1", "F1 of each class or label, unweighted mean"),
    _metric("micro-f1", "micro_f1", "F1 of all labels together, where rows have any number of them"),
    _metric("subset-accuracy", "subset_accuracy", "share of rows all of whose labels are right"),
    _metric("average-precision", "average_precision", "average precision of each label, unweighted mean"),
    _metric("pearson", "pearson", "linear correlation of predicted and true values"),
    _metric("spearman", "spearman", "rank correlation of predicted and true values"),
    _metric("rmse", "rmse", "root mean squared error of values", False),
    _metric(
        "entity-f1",
        "entity_f1",
        "F1 of whole entities, where classes are BIO",
        traits=(),
        tasks=("token-classification",),
    ),  # fmt: skip
    _metric("nll", "nll", "mean -log probability of the right class, nats", False),
    _metric("brier", "brier", "mean squared error of the probabilities, summed over classes", False),
    _metric("ece", "calibration_error", "gap between confidence and accuracy, 15 bins", False),
    _metric("auroc", "auroc", "area under the ROC curve, two classes"),
    _metric("auprc", "auprc", "average precision, two classes"),
    _fidelity("agreement", "agreement", "share of rows where student and teacher choose one class"),
    _fidelity("kl", "divergence", "mean KL(teacher || student), nats", False),
    _fidelity("loyalty", "probability_loyalty", "1 - root of the Jensen-Shannon divergence, mean"),
    _fidelity("loyalty-nats", "natural_loyalty", "the same with natural logarithms, as published"),
    _fidelity("score-rmse", "score_rmse", "root mean squared difference to the teacher's values", better=False),
    _fidelity("regression-loyalty", "regression_loyalty", "correlation of each class's scores over rows, mean"),
)
