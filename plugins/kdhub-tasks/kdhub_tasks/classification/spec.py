"""Classification: the tasks, and what is provided for them."""

from functools import partial

from kdhub import DatasetSpec, FolderFormat, MetricSpec, NetworkSpec, StudentSpec, TaskSpec
from kdhub_tasks.signals import LAYERED

IMAGE, TABULAR = "image-classification", "tabular-classification"
HERE = "kdhub_tasks.classification"
ENCODERS = ("fill-mask", "text-embedding")
CLASSES = ("classes", "labels", "named-classes", "apart")
FORMERLY = ("kdhub-logits",)
SIGNALS = ("logits", "features")
LOWER = {"higher_is_better": False}

_task = TaskSpec.shorthand(f"{HERE}.", formerly=FORMERLY)
TASKS = (
    _task(
        IMAGE, "arrays:ImageClassification", "images to one class of a list", reads=(("image",),),
        traits=(*CLASSES, "single-label", "arrays", "layers"), signals=(*SIGNALS, "tokens", *LAYERED),
        formats=(FolderFormat(heads=("ForImageClassification",)), FolderFormat(keys=("architecture",))),
    ),
    _task(
        TABULAR, "arrays:TabularClassification", "rows of numbers to one class of a list", reads=(("features",),),
        traits=(*CLASSES, "single-label", "arrays"), signals=SIGNALS,
    ),
    _task(
        "text-classification", "task:TextClassification", "texts to one class of a list", reads=(("text",),),
        traits=(*CLASSES, "single-label", "encoder", "layers", "shown"), signals=(*SIGNALS, *LAYERED),
        formats=(FolderFormat(heads=("ForSequenceClassification",)),), starts=ENCODERS,
    ),
    _task(
        "token-classification", "tokens:TokenClassification", "each word of a text to one class of a list",
        reads=(("tokens",),), traits=(*CLASSES, "words", "encoder", "layers"), signals=(*SIGNALS, *LAYERED),
        formats=(FolderFormat(heads=("ForTokenClassification",)),), starts=ENCODERS,
    ),
)  # fmt: skip

_network = NetworkSpec.shorthand(f"{HERE}.networks:", formerly=FORMERLY)
NETWORKS = (
    _network("mlp", "Mlp", "multilayer perceptron"),
    _network("slimmable-mlp", "SlimmableMlp", "multilayer perceptron that runs at several shares of its width"),
    _network("resnet", "CifarResNet", "ResNet for small images"),
    _network("vit", "Vit", "small vision transformer"),
    _network("timm", "Timm", "a network of the timm library"),
)

_student = StudentSpec.shorthand(f"{HERE}.students:", tasks=(IMAGE,), exposes=(*SIGNALS, "tokens"), formerly=FORMERLY)
STUDENTS = (
    _student(
        "mlp", "mlp", "a fresh multilayer perceptron", argument="WIDTH,...", example="8", tasks=(), traits=("arrays",),
        exposes=SIGNALS,
    ),
    _student(
        "slimmable-mlp", "slimmable_mlp", "a fresh multilayer perceptron, a family of several widths",
        argument="WIDTH,...", example="8", tasks=(), traits=("arrays",), exposes=SIGNALS,
    ),
    _student("resnet", "resnet", "a fresh ResNet for small images", argument="DEPTH", example="8"),
    _student(
        "residual", "residual", "a fresh ResNet for small images with its width and its blocks in each stage",
        argument="width=N,stage1=N,stage2=N,stage3=N", example="width=4,stage1=1,stage2=1,stage3=1",
    ),
    _student(
        "resnet-checkpoint", "resnet_checkpoint", "a ResNet for CIFAR from a PyTorch checkpoint", argument="FILE"
    ),
    _student(
        "vit", "vit", "a fresh small vision transformer", argument="patch=N,width=N,layers=N,heads=N",
        example="patch=2,width=8,layers=1,heads=2", exposes=(*SIGNALS, "tokens", *LAYERED),
    ),
    _student(
        "timm", "timm", "a fresh network of the timm library, an extra (kdhub-tasks[timm])", argument="NAME",
        exposes=SIGNALS,
    ),
)  # fmt: skip

_data = DatasetSpec.shorthand(f"{HERE}.data:", formerly=FORMERLY)
_picture = DatasetSpec.shorthand(f"{HERE}.pictures:")
DATASETS = (
    _data(
        "digits", "digits", "1797 handwritten digits of 8 x 8 pixels, as scikit-learn has them",
        splits=("train", "validation", "test"),
    ),
    _data(
        "labels", "labels", "another data set with classes joined, a long tail, wrong labels, few labels or none",
        argument="DATA", example="digits",
    ),
    _picture("images", "images", "pictures in a folder: one folder a class, or all without classes", argument="FOLDER"),
    _picture(
        "resized", "resized", "another data set with its images brought to one size", argument="SIZE:DATA",
        example="6:digits",
    ),
)  # fmt: skip

OPERATING = (
    ("recall", "recall of the second of two classes", {}),
    ("threshold", "lowest probability of the second of two classes", LOWER),
)
"""Measures at a stated share of rows of the first class that are taken for the second: name, what it is, and more."""
_metric = MetricSpec.shorthand(f"{HERE}.metrics:", traits=("named-classes",), formerly=FORMERLY)
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
    _metric("rmse", "rmse", "root mean squared error of values", **LOWER),
    _metric(
        "entity-f1", "entity_f1", "F1 of whole entities, where classes are BIO", traits=(),
        tasks=("token-classification",),
    ),
    _metric("nll", "nll", "mean -log probability of the right class, nats", **LOWER),
    _metric("brier", "brier", "mean squared error of the probabilities, summed over classes", **LOWER),
    _metric("ece", "calibration_error", "gap between confidence and accuracy, 15 bins", **LOWER),
    _metric("auroc", "auroc", "area under the ROC curve, two classes"),
    _metric("auprc", "auprc", "average precision, two classes"),
    *(
        _metric(f"{name}-fpr@{percent}", f"{name}_at_{percent}", f"{what} at {percent} % false positives", **more)
        for name, what, more in OPERATING
        for percent in (1, 5)
    ),
    _fidelity("agreement", "agreement", "share of rows where student and teacher choose one class"),
    _fidelity("kl", "divergence", "mean KL(teacher || student), nats", **LOWER),
    _fidelity("loyalty", "probability_loyalty", "1 - root of the Jensen-Shannon divergence, mean"),
    _fidelity("loyalty-nats", "natural_loyalty", "the same with natural logarithms, as published"),
    _fidelity("score-rmse", "score_rmse", "root mean squared difference to the teacher's values", **LOWER),
    _fidelity("regression-loyalty", "regression_loyalty", "correlation of each class's scores over rows, mean"),
)  # fmt: skip
