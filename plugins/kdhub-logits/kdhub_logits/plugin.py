"""What kdhub-logits provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, MetricSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl

IMAGE, TABLE, TEXT = "image-classification", "tabular-classification", "text-classification"
TASKS = (IMAGE, TABLE, TEXT)
SURVEY = "arXiv:2402.13116"
SIGNALS = ("logits", "features")


@hookimpl
def kdhub_tasks():
    def task(name, cls, summary, signals=SIGNALS):
        return TaskSpec(name=name, target=f"kdhub_logits.tasks:{cls}", signals=signals, summary=summary)

    yield task(IMAGE, "ImageClassification", "images to one class of a list", (*SIGNALS, "tokens"))
    yield task(TABLE, "TabularClassification", "rows of numbers to one class of a list")
    yield task(TEXT, "TextClassification", "texts to one class of a list")


@hookimpl
def kdhub_methods():
    def method(name, target, summary, paper, **spec):
        return MethodSpec(
            name=name,
            target=f"kdhub_logits.{target}",
            tasks=TASKS,
            summary=summary,
            paper=paper,
            **{"needs": ("logits",), "recipe": name} | spec,
        )

    soft = "soft_targets"
    yield method(
        "supervised", "supervised:Supervised", "labels alone: the baseline, and how teachers are made", SURVEY,
        needs=(), uses=("logits",), labels=True, aliases=("ce", "sft"),
    )  # fmt: skip
    yield method("kd", f"{soft}:Kd", "the teacher's soft targets beside the labels", "arXiv:1503.02531")
    yield method("reverse-kl", f"{soft}:ReverseKl", "soft targets by KL(student || teacher)", "arXiv:2306.08543")
    yield method("jsd", f"{soft}:Jsd", "soft targets by the generalised Jensen-Shannon divergence", "arXiv:2306.13649")
    yield method("tvd", f"{soft}:Tvd", "soft targets by total variation", "arXiv:2307.15190")
    yield method("skew-kl", f"{soft}:SkewKl", "soft targets by a skewed KL", "arXiv:2402.03898")
    yield method("akl", f"{soft}:Akl", "soft targets by forward and reverse KL, head against tail", "arXiv:2404.02657")
    yield method("dkd", f"{soft}:Dkd", "target class and other classes apart", "arXiv:2203.08679", labels=True)
    yield method("pld", "pld:Pld", "the teacher's ranking, true class first", "arXiv:2506.12542", labels=True)


@hookimpl
def kdhub_teachers():
    def local(**spec):
        return TeacherSpec(tasks=TASKS, gives=SIGNALS, live=True, **spec)

    yield local(name="path", target="kdhub_logits.teachers:path", argument="FOLDER", summary="a classifier folder")
    yield TeacherSpec(
        name="hf",
        target="kdhub_logits.teachers:hub",
        tasks=(TEXT,),
        gives=SIGNALS,
        argument="org/name[@revision]",
        live=True,
        summary="a transformers text classifier on the Hugging Face Hub",
    )


@hookimpl
def kdhub_students():
    def builder(name, function, tasks, argument, summary, exposes=SIGNALS, **spec):
        target = f"kdhub_logits.students:{function}"
        return StudentSpec(
            name=name, target=target, tasks=tasks, exposes=exposes, argument=argument, summary=summary, **spec
        )

    arrays, tokens = (IMAGE, TABLE), (*SIGNALS, "tokens")
    yield builder("mlp", "mlp", arrays, "WIDTH,...", "a fresh multilayer perceptron", example="8")
    yield builder("resnet", "resnet", (IMAGE,), "DEPTH", "a fresh ResNet for small images", tokens, example="8")
    yield builder(
        "vit", "vit", (IMAGE,), "patch=N,width=N,layers=N,heads=N", "a fresh small vision transformer", tokens,
        example="patch=2,width=8,layers=1,heads=2",
    )  # fmt: skip
    yield builder("path", "path", TASKS, "FOLDER", "a classifier folder")
    yield builder("hf", "hub", (TEXT,), "org/name[@revision]", "a transformers text model on the Hub")
    yield builder(
        "layers", "layers", (TEXT,), "N", "N evenly spaced layers of the teacher", example="1", from_teacher=True
    )


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(
        name="digits",
        target="kdhub_logits.data:digits",
        splits=("train", "validation", "test"),
        summary="1797 handwritten digits of 8 x 8 pixels, as scikit-learn has them",
    )


@hookimpl
def kdhub_metrics():
    def metric(name, function, summary, better=True, fidelity=False):
        return MetricSpec(
            name=name,
            target=f"kdhub_logits.metrics:{function}",
            tasks=TASKS,
            summary=summary,
            higher_is_better=better,
            fidelity=fidelity,
        )

    yield metric("accuracy", "accuracy", "share of rows whose most probable class is right")
    yield metric("accuracy@5", "top_5", "share of rows whose class is among the five most probable")
    yield metric("macro-f1", "macro_f1", "F1 of each class, unweighted mean")
    yield metric("nll", "nll", "mean -log probability of the right class, nats", better=False)
    yield metric("brier", "brier", "mean squared error of the probabilities, summed over classes", better=False)
    yield metric("ece", "calibration_error", "gap between confidence and accuracy, 15 bins", better=False)
    yield metric("auroc", "auroc", "area under the ROC curve, two classes")
    yield metric("auprc", "auprc", "average precision, two classes")
    yield metric("agreement", "agreement", "share of rows where student and teacher choose one class", fidelity=True)
    yield metric("kl", "divergence", "mean KL(teacher || student), nats", better=False, fidelity=True)
    yield metric("loyalty", "probability_loyalty", "1 - root of the Jensen-Shannon divergence, mean", fidelity=True)


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
